"""The ICE restarts of one call: when one is due, our half of its negotiation, and glare. Knows signaling frames; how a path is made stands in `ice_restart`.

Rule 1. A restart is due when the relay credentials grow old, a relay drains, the path is dead, or the application asks. One attempt at a time; after one that
failed the next waits. A path that works goes on whatever happens to its successor; a call that finds none for LOST_S ends.
Rule 2. Both sides may offer. The peer's offer beside our own open one is answered by the polite side, which gives its own up, and ignored by the other; the
server refuses the polite side's with `glare` (docs/protocol.md). Whoever answers gathers with fresh credentials too: one restart renews both sides.
Rule 3. An open offer is said twice, because events may be lost; whoever has answered it says the answer again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

from .errors import HeliographError, RefusedError
from .ice_restart import Path, Paths, Remote, RestartFailedError
from .ice_servers import Draining, IceServers, retry_after_s, retry_lost_after_s
from .ids import make_id

_LOG = logging.getLogger("heliograph_client")
TICK_S = 1.0
OFFER_S, REPEAT_AFTER_S = 10.0, 4.0  # for so long the server keeps the polite side from offering beside an open offer
GAVE_WAY_S = 2.0
FETCH_S = 10.0
LOST_S = 30.0
NEVER = float("inf")

Why = Literal["asked", "lost", "draining", "renewal", "peer"]


class Negotiation:
    """One offer with its answer: our new path, and of our own offer the peer's answer."""

    def __init__(self, negotiation_id: str, path: Path) -> None:
        self.negotiation_id, self.path = negotiation_id, path
        self.answered: asyncio.Future[Remote] = asyncio.get_running_loop().create_future()


class Restarts:
    """Keeps a call on a path that works and on credentials that are good. `done` holds the reasons of those that succeeded, oldest first."""

    def __init__(
        self,
        paths: Paths,
        servers: IceServers,
        fetch: Callable[[], Awaitable[IceServers]] | None,
        now_ms: Callable[[], int],
        send: Callable[[str, Mapping[str, Any]], Awaitable[None]],
        give_up: Callable[[Literal["failed", "hangup"]], Awaitable[None]],
    ) -> None:
        """`fetch` gets fresh servers (None: there are no others), `now_ms` is the server's time, `send` sends a frame of this call, `give_up` ends it."""
        self.done: list[Why] = []
        self._paths, self._servers, self._fetch, self._now_ms, self._send, self._give_up = paths, servers, fetch, now_ms, send, give_up
        self._own: Negotiation | None = None
        self._theirs: Negotiation | None = None
        self._said: tuple[str, str] = ("", "")  # which offer was answered last, and how
        self._early: deque[Mapping[str, Any]] = deque(maxlen=64)  # candidates whose path is not there yet
        self._attempting: asyncio.Task[None] | None = None
        self._answering: asyncio.Task[None] | None = None
        self._due_ms = self._drain_ms = NEVER  # by the server's clock: a machine that slept is told the time
        self._lost_s: float | None = None
        self._is_asked = False
        self._draining: frozenset[str] = frozenset()
        self._attempt = 0
        self._not_before_s = 0.0
        self._wake = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._is_over = False

    # when one is due

    def start(self) -> None:
        """The call is connected."""
        if self._running is None:
            self._settle(self._servers)
            self._running = asyncio.create_task(self._run(), name="heliograph restarts")

    def ask(self) -> None:
        """Restart now."""
        self._is_asked = True
        self._hurry()

    def drain(self, draining: Draining) -> None:
        """Relays go away: move, if one of them is ours."""
        self._draining |= draining.relay_hosts
        if draining.relay_hosts & self._paths.current.relay_hosts:
            now_ms = self._now_ms()
            self._drain_ms = min(self._drain_ms, now_ms + 1_000 * draining.move_after_s(now_ms, _dice()))
            self._hurry()

    def look(self) -> None:
        """Something seems to be wrong with the path."""
        self._wake.set()

    def _hurry(self) -> None:
        self._not_before_s = 0.0
        self._wake.set()

    def _settle(self, servers: IceServers) -> None:
        """On a path that works, gathered with these servers."""
        self._servers, self._lost_s, self._is_asked, self._attempt, self._not_before_s = servers, None, False, 0, 0.0
        now_ms = self._now_ms()
        after_s = None if self._fetch is None else servers.renew_after_s(now_ms, _dice())
        self._due_ms, self._drain_ms = NEVER if after_s is None else now_ms + 1_000 * after_s, NEVER

    def _wanted(self) -> tuple[float, Why]:
        """When the next attempt is to begin by the loop's clock, and why."""
        why: Why
        at_ms, why = (self._drain_ms, "draining") if self._drain_ms < self._due_ms else (self._due_ms, "renewal")
        if self._lost_s is not None or self._is_asked:
            at_ms, why = 0.0, "asked" if self._lost_s is None else "lost"
        return max(_now_s() + (at_ms - self._now_ms()) / 1_000, self._not_before_s), why

    async def _run(self) -> None:
        while not self._is_over:
            wait_s = TICK_S if self._is_answering else min(TICK_S, max(0.0, self._wanted()[0] - _now_s()))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            self._wake.clear()
            await self._listen()
            at_s, why = self._wanted()
            if self._lost_s is not None and _now_s() >= self._lost_s + LOST_S:
                await self._give_up("failed")
            elif _now_s() >= at_s and not self._is_answering:
                await self._try(why)

    async def _listen(self) -> None:
        """Find out whether somebody is at the other end."""
        path = self._paths.current
        if self._paths.is_heard():
            self._lost_s = None
        elif self._lost_s is None and not await self._paths.answers() and self._paths.current is path:
            _LOG.warning("Nothing comes from the peer any more: another path is looked for.")
            self._lost_s, self._attempt = _now_s(), 0
            self._hurry()

    async def _try(self, why: Why) -> None:
        self._attempting = asyncio.create_task(self._restart(why), name="heliograph restart")
        await asyncio.wait({self._attempting}, timeout=None if self._lost_s is None else self._lost_s + LOST_S - _now_s())
        if not self._attempting.done():
            await _ended(self._attempting)
        if self._attempting.cancelled():  # it gave way to the peer's, or came too late
            self._not_before_s = _now_s() + GAVE_WAY_S
        elif (error := self._attempting.exception()) is not None:
            await self._failed(why, error)

    async def _failed(self, why: Why, error: BaseException) -> None:
        _LOG.log(logging.INFO if isinstance(error, HeliographError) else logging.ERROR, "An ICE restart (%s) failed: %r", why, error)
        code = error.code if isinstance(error, RefusedError) else None
        if code in ("call_ended", "call_answered"):
            await self._give_up("hangup")
        elif code in ("glare", "negotiation_stale"):  # the peer's offer is on its way
            self._not_before_s = _now_s() + GAVE_WAY_S
        else:
            dice, left_s = _dice(), self._servers.left_s(self._now_ms())
            self._not_before_s = _now_s() + (retry_lost_after_s(self._attempt, dice) if why == "lost" else retry_after_s(self._attempt, dice, left_s))
            self._attempt += 1

    async def stop(self) -> None:
        """The call is over."""
        self._is_over = True
        tasks = [task for task in (self._running, self._attempting, self._answering) if task is not None and task is not asyncio.current_task()]
        for task in tasks:
            await _ended(task)

    # how

    async def _restart(self, why: Why) -> None:
        """One attempt. Raises HeliographError; it is cancelled where it gives way to the peer's."""
        servers = await self._fresh(must_be_new=why == "renewal")
        path = await self._paths.gather(servers)
        self._own = own = Negotiation(make_id("neg"), path)
        try:
            await path.describe(await self._offer(own))
            await self._feed()
            await path.connect()
            self._use(path, servers, why)
        finally:
            self._own = None
            if self._paths.current is not path:
                self._paths.drop(path)

    async def _offer(self, own: Negotiation) -> Remote:
        body = {"negotiation_id": own.negotiation_id, "sdp": self._paths.description(own.path, "offer")}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OFFER_S):
                for pause_s in (REPEAT_AFTER_S, OFFER_S):
                    await self._send("offer", body)
                    await asyncio.wait({own.answered}, timeout=pause_s)
                    if own.answered.done():
                        return own.answered.result()
        raise RestartFailedError(f"The peer did not answer within {OFFER_S:g} s.")

    async def _answer(self, negotiation_id: str, sdp: str) -> None:
        """Answer the peer's offer and move with it. Raises HeliographError; it is cancelled when the peer offers anew."""
        remote = self._paths.remote(sdp)
        servers = await self._fresh(must_be_new=False)
        path = await self._paths.gather(servers)
        self._theirs = Negotiation(negotiation_id, path)
        try:
            await path.describe(remote)
            self._said = (negotiation_id, self._paths.description(path, "answer"))
            await self._say_answer()
            await self._feed()
            await path.connect()
            self._use(path, servers, "peer")
        finally:
            self._theirs = None
            if self._paths.current is not path:
                self._paths.drop(path)

    async def _say_answer(self) -> None:
        negotiation_id, sdp = self._said
        await self._send("answer", {"negotiation_id": negotiation_id, "sdp": sdp})

    def _use(self, path: Path, servers: IceServers, why: Why) -> None:
        _LOG.info("The call moved to another path: %s.", why)
        self._paths.use(path)
        self._settle(servers)
        self.done.append(why)

    async def _fresh(self, *, must_be_new: bool) -> IceServers:
        """Servers to gather with, those of draining and dead relays last. Raises RestartFailedError when there are only old ones, and they will not do."""
        servers = self._servers
        if self._fetch is not None:
            try:
                async with asyncio.timeout(FETCH_S):
                    servers = await self._fetch()
            except (HeliographError, TimeoutError) as error:
                if must_be_new or (servers.left_s(self._now_ms()) or 1) <= 0:
                    raise RestartFailedError(f"No fresh relay credentials: {error or 'not in time'}") from error
        dead = {self._paths.current.turn_host} if self._lost_s is not None else set()
        return servers.avoiding(self._draining | dead, self._attempt)

    # what the peer says

    @property
    def _is_answering(self) -> bool:
        return self._answering is not None and not self._answering.done()

    async def offered(self, body: Mapping[str, Any]) -> None:
        """An `offer` event within the call."""
        negotiation_id = str(body.get("negotiation_id"))
        if self._running is None:
            _LOG.info("An offer within the call came before it was connected: ignored, it will be repeated.")
        elif negotiation_id == self._said[0]:
            with contextlib.suppress(HeliographError):
                await self._say_answer()
        elif self._theirs is not None and self._theirs.negotiation_id == negotiation_id:
            pass  # the answer is on its way
        elif self._own is not None and not self._own.answered.done() and not body.get("polite"):
            _LOG.info("Both offered: ours stands.")
        else:
            for task in (self._attempting, self._answering):
                if task is not None:
                    await _ended(task)
            self._answering = asyncio.create_task(self._answer(negotiation_id, str(body.get("sdp"))), name="heliograph restart")
            self._answering.add_done_callback(self._was_answered)

    def _was_answered(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.log(logging.INFO if isinstance(error, HeliographError) else logging.ERROR, "The peer's ICE restart failed: %r", error)
        self._wake.set()

    def answer(self, body: Mapping[str, Any]) -> None:
        """An `answer` event that is not of the call's first offer."""
        own = self._own
        if own is None or own.negotiation_id != body.get("negotiation_id") or own.answered.done():
            return  # of an offer that we gave up
        try:
            own.answered.set_result(self._paths.remote(str(body.get("sdp"))))
        except RestartFailedError as error:
            own.answered.set_exception(error)

    def absent(self) -> None:
        """The peer's device has no socket just now."""
        if self._own is not None and not self._own.answered.done():
            self._own.answered.set_exception(RestartFailedError("The peer has no socket just now."))

    async def add_candidate(self, body: Mapping[str, Any]) -> None:
        """A `candidate` event that is not of the call's first offer; those of negotiations that are over are never asked for again."""
        self._early.append(body)
        await self._feed()

    async def _feed(self) -> None:
        for negotiation in (self._own, self._theirs):
            if negotiation is not None and negotiation.path.is_described:
                ready = [body for body in self._early if body.get("negotiation_id") == negotiation.negotiation_id]
                for body in ready:
                    self._early.remove(body)
                for body in ready:
                    try:
                        await negotiation.path.add_candidate(str(body.get("candidate", "")))
                    except ValueError as error:
                        _LOG.info("A candidate was not read: %s", error)


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _dice() -> float:
    return random.random()  # noqa: S311 - jitter, not a secret
