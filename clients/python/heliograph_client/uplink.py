"""The device's way to the server: one open socket at a time, replaced when it closes, falls silent or grows old.

Rule 1. Nothing ends it but `close()`. A device that was replaced elsewhere, or is signed out, waits until it is told to go on.
Rule 2. A planned replacement makes before it breaks: the new socket says hello and joins before the old one is closed.
Rule 3. A socket that does not acknowledge a ping is dead, whatever TCP believes. After a server that was only late, the next one has longer.
Rule 4. Before a socket's access token expires the socket is given the next one. A socket that is refused as expired or signed out is replaced as any lost one:
the next ticket tells whether this device is still signed in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, Protocol

import aiohttp

from .backoff import Backoff, full_jitter_s, prove_after_s, replace_after_s
from .connection import Connection, Frame, open_connection
from .errors import AUTH_EXPIRED, AUTH_OVER, ConnectionLostError, HeliographError, RefusedError, SignedOutError, TimedOutError
from .exchange import PROOF, Exchange
from .frames import Event, Refusal
from .rest import Rest

_LOG = logging.getLogger("heliograph_client")
PING_TIMEOUT_S, HINTED_PING_TIMEOUT_S = 5.0, 2.0
HINT_GRACE_S = 0.3  # an attempt under way when the hint comes has this long to succeed
REPLACED = "connected_elsewhere"
ENDED = (AUTH_EXPIRED, "signed_out")  # reasons of `closed` after which another socket is opened
CLIENT_NAME = "heliograph-python/0.1.0"


class Device(Protocol):
    """What stands behind the socket."""

    def receive(self, event: Event) -> None:
        """An event came, from whichever socket."""

    async def come_back(self) -> None:
        """A new socket said hello: join again."""

    def pings(self) -> list[Mapping[str, Any]]:
        """The bodies of one round of pings."""

    def is_on_call(self) -> bool:
        """Whether presence must be fresher than usual."""


class Uplink:
    """Keeps a socket open. `welcome` is the body of the last `welcome` event."""

    def __init__(
        self, url: str, rest: Rest, http: aiohttp.ClientSession, exchange: Exchange, device: Device, *, timeout_s: float, replace_every_s: float | None
    ) -> None:
        """`timeout_s` bounds opening a socket; `replace_every_s` stands in for the time that the server names."""
        self.welcome: dict[str, Any] = {}
        self._url, self._rest, self._http = url, rest, http
        self._exchange, self._device = exchange, device
        self._timeout_s, self._replace_every_s = timeout_s, replace_every_s
        self._connection: Connection | None = None
        self._online = asyncio.Event()
        self._hint = asyncio.Event()  # offline: try now
        self._nudge = asyncio.Event()  # online: ping now
        self._resume = asyncio.Event()  # replaced or signed out: go on
        self._signed_out: asyncio.Future[SignedOutError] = asyncio.get_running_loop().create_future()  # what an attempt to come back was told
        self._backoff = Backoff()
        self._running: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Open the first socket, or go on after this device was replaced or signed out; raises when that fails."""
        if self._running is None:
            self._adopt(await self._open())
            self._running = asyncio.create_task(self._run(), name="heliograph uplink")
            return
        self._signed_out = asyncio.get_running_loop().create_future()
        self.resume()
        current: asyncio.Future[Any] = asyncio.ensure_future(self.current())
        outcomes: set[asyncio.Future[Any]] = {current, self._signed_out}
        try:
            await asyncio.wait(outcomes, timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            current.cancel()
        if current.done():
            return
        if self._signed_out.done():
            raise self._signed_out.result()
        raise TimedOutError(f"Not connected for {self._timeout_s:g} s.")

    async def current(self) -> Connection:
        """The open socket; waits for one."""
        while self._connection is None or self._connection.ended.is_set():
            await self._online.wait()
        return self._connection

    @property
    def is_online(self) -> bool:
        """Whether a socket is open and has said hello."""
        return self._online.is_set()

    def network_available(self) -> None:
        """A hint that the network is back: try now instead of after the pause; a socket that seems open is probed."""
        if self.is_online:
            self._nudge.set()
        else:
            self._hint.set()

    def ping_now(self) -> None:
        """Do not wait for the next ping's time: the interval changed."""
        self._nudge.set()

    def resume(self) -> None:
        """Go on after this device was replaced or signed out."""
        self._resume.set()
        self.network_available()

    async def renew(self) -> None:
        """Another session began: a socket of the one before makes way for its own, and what waited goes on."""
        await self.drop()
        self._resume.set()
        self._hint.set()

    async def drop(self) -> None:
        """Close the socket; the next attempt finds out whether there may be another one."""
        if self._connection is not None:
            await self._connection.close()

    async def close(self) -> None:
        """Close the socket and stop."""
        tasks = [task for task in (self._running, *self._tasks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._connection is not None:
            await self._connection.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)  # sockets of attempts that were cut off are closing

    # opening

    async def _open(self, replaces: Connection | None = None) -> Connection:
        """A socket that was welcomed. From its hello on the server may close the one it replaces."""
        connection: Connection | None = None
        timeout_s, ticket = self._timeout_s * self._backoff.patience, None
        try:
            async with asyncio.timeout(timeout_s):
                ticket = (await self._rest.call("POST", "/v1/tickets"))["ticket"]
                connection = await open_connection(self._http, self._url, ticket, await self._rest.token())
                connection.start(self._receive, self._ended)
                if replaces is not None:
                    replaces.is_superseded = True
                await self._exchange.request("hello", None, {"client": CLIENT_NAME}, timeout_s=timeout_s, over=connection)
                welcome, session = await asyncio.shield(connection.welcome), self._rest.session
                if session is None or welcome.body.get("account_id", session.account_id) != session.account_id:
                    raise ConnectionLostError("Somebody signed in or out during the attempt.")
                return connection
        except BaseException as error:
            if connection is not None:
                self._spawn(connection.close())
            if isinstance(error, TimeoutError | TimedOutError) and ticket is not None:
                self._backoff.too_late()
            if isinstance(error, TimeoutError):
                raise TimedOutError("The server sent no welcome.") from None
            raise

    def _adopt(self, connection: Connection) -> None:
        welcome = connection.welcome.result()
        self._connection, self.welcome = connection, welcome.body
        if welcome.at_ms is not None:
            self._rest.clock.told(welcome.at_ms)
            self._plan_proof(connection, welcome.body.get("auth_expires_at_ms"))
        self._backoff.opened(_now_s())
        self._hint.clear()
        if connection.ended.is_set():
            return
        self._online.set()

    def _receive(self, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Refusal) and frame.error.code == REPLACED:
            self._replaced(connection, Event("closed", {"reason": REPLACED}))
            self._exchange.lost(connection)  # what went over it may go over the next one
            return
        if isinstance(frame, Refusal) and frame.error.code == AUTH_OVER:
            self._spawn(connection.close())  # rule 4; what went over it may go over the next one
            return
        if not isinstance(frame, Event):
            self._exchange.receive(frame)
            return
        if frame.event == "closed" and frame.body.get("reason") == REPLACED:
            self._replaced(connection, frame)
            return
        if frame.event == "closed" and frame.body.get("reason") in ENDED:
            self._spawn(connection.close())  # rule 4
            return
        if frame.event == "welcome" and not connection.welcome.done():
            connection.welcome.set_result(frame)
        self._device.receive(frame)

    def _replaced(self, connection: Connection, closed: Event) -> None:
        """Another socket of this device has the place: expected when it is our own next one, else the end until `resume`."""
        if connection.is_superseded or connection.is_replaced or connection.ended.is_set():
            return
        connection.is_replaced = True
        self._resume.clear()
        self._device.receive(closed)
        self._spawn(connection.close())

    def _ended(self, connection: Connection) -> None:
        if connection is self._connection:
            self._online.clear()
        self._exchange.lost(connection)

    # staying open

    async def _run(self) -> None:
        while True:
            connection = self._connection
            if connection is None or connection.ended.is_set():
                if connection is not None and connection.is_replaced:
                    await self._resume.wait()  # coming back would only fight the successor
                    self._backoff.collapse()
                connection = await self._reconnect()
            await self._attend(connection)

    async def _reconnect(self) -> Connection:
        """Try until a socket is open."""
        while True:
            await self._pause()
            self._resume.clear()  # before the attempt: who signs in while it fails is not overheard
            try:
                connection = await self._hinted(self._open())
            except SignedOutError as error:
                await self._wait_signed_out(error)
            except HeliographError as error:
                _LOG.info("no connection, attempt %d: %s", self._backoff.attempt, error)
            else:
                self._adopt(connection)
                self._spawn(self._device.come_back())
                return connection

    async def _pause(self) -> None:
        if await _within(self._hint, _now_s() + self._backoff.pause_s(_now_s(), _dice())):
            self._backoff.collapse()
        self._hint.clear()

    async def _hinted(self, opening: Coroutine[Any, Any, Connection]) -> Connection:
        """An attempt; one that hangs when the hint comes is given up, because it may hang on the network that is gone."""
        attempt = asyncio.create_task(opening, name="heliograph attempt")
        hint = asyncio.create_task(self._hint.wait(), name="heliograph hint")
        try:
            await asyncio.wait({attempt, hint}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({attempt}, timeout=HINT_GRACE_S)
            if attempt.done():
                return attempt.result()
            raise ConnectionLostError("The network changed during the attempt.")
        finally:
            attempt.cancel()
            hint.cancel()
            await asyncio.gather(attempt, hint, return_exceptions=True)

    async def _wait_signed_out(self, error: SignedOutError) -> None:
        if not self._signed_out.done():
            self._signed_out.set_result(error)
        self._device.receive(Event("signed_out", {"code": error.code, "message": error.message}))
        await self._resume.wait()
        self._backoff.collapse()

    async def _attend(self, connection: Connection) -> None:
        """Until the socket ends or is replaced: ping it, prove who speaks on it, and open the next one in time."""
        beside = [
            asyncio.create_task(self._ping(connection), name="heliograph ping"),
            asyncio.create_task(self._stay_proved(connection), name="heliograph proof"),
        ]
        replace_s = _now_s() + self._replace_after_s(connection.welcome.result())
        try:
            while not await _within(connection.ended, replace_s):
                if await self._replace(connection):
                    return
                replace_s = _now_s() + self._backoff.pause_s(_now_s(), _dice())
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    def _replace_after_s(self, welcome: Event) -> float:
        reconnect_by_ms = welcome.body.get("reconnect_by_ms")
        if self._replace_every_s is not None:
            return self._replace_every_s
        if not isinstance(reconnect_by_ms, int) or welcome.at_ms is None:
            return float("inf")
        return replace_after_s(welcome.at_ms, reconnect_by_ms, _dice())

    async def _replace(self, old: Connection) -> bool:
        """Make before break (rule 2); the old socket stays when the new one cannot be had."""
        try:
            new = await self._open(replaces=old)
        except HeliographError as error:
            _LOG.info("the socket is not replaced yet: %s", error)
            return False
        self._adopt(new)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                await self._device.come_back()
        await old.close()
        return True

    async def _ping(self, connection: Connection) -> None:
        """Rule 3."""
        while True:
            is_nudged = await _within(self._nudge, _now_s() + self._ping_every_s(connection) * (0.9 + 0.1 * _dice()))
            self._nudge.clear()
            timeout_s = HINTED_PING_TIMEOUT_S if is_nudged else PING_TIMEOUT_S * self._backoff.patience
            try:
                for body in self._device.pings():
                    await self._exchange.request("ping", None, body, timeout_s=timeout_s, over=connection)
            except HeliographError as error:
                if isinstance(error, RefusedError) and not isinstance(error, SignedOutError):
                    if not error.retryable:
                        self._spawn(self._device.come_back())  # a room is no longer ours: joining tells which
                    continue
                _LOG.info("the socket is dead: %s", error)
                if isinstance(error, TimedOutError) and not is_nudged:
                    self._backoff.too_late()
                await connection.close()
                return

    def _ping_every_s(self, connection: Connection) -> float:
        welcome = connection.welcome.result().body
        return float((welcome.get("heartbeat_call_s") if self._device.is_on_call() else None) or welcome.get("heartbeat_s") or 20)

    # whose it is

    async def prove(self, connection: Connection, token: str) -> None:
        """Give a socket a fresh token instead of this one (rule 4), unless somebody did. Raises HeliographError; a socket that cannot have one is closed."""
        async with connection.proving:
            if connection.token != token:
                return
            try:
                fresh = await self._rest.token(instead_of=token)
                await self._exchange.request(PROOF, None, {"access_token": fresh}, timeout_s=self._timeout_s, over=connection)
            except RefusedError as error:
                if error.retryable:
                    raise
                _LOG.info("the socket is given up: %s", error)
                await connection.close()
                raise connection.lost() from error
            connection.token = fresh
            session = self._rest.session
            self._plan_proof(connection, session.expires_at_ms if session is not None and session.access_token == fresh else None)

    async def _stay_proved(self, connection: Connection) -> None:
        attempt = 0
        while not await _within(connection.ended, connection.prove_at_s):
            if _now_s() < connection.prove_at_s:
                continue  # a refused frame led to a fresh token meanwhile
            try:
                await self.prove(connection, connection.token)
                attempt = 0
            except HeliographError as error:
                _LOG.info("the socket has no fresh token yet: %s", error)
                connection.prove_at_s = _now_s() + full_jitter_s(attempt, _dice())
                attempt += 1

    def _plan_proof(self, connection: Connection, expires_at_ms: object) -> None:
        """By the server's clock; without an end, as a server of an earlier version says none, there is nothing to do."""
        if isinstance(expires_at_ms, int):
            life_s = (expires_at_ms - self._rest.clock.now_ms()) / 1_000
            connection.prove_at_s = _now_s() + prove_after_s(life_s, _dice())

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _dice() -> float:
    return random.random()  # noqa: S311 - jitter, not a secret


async def _within(event: asyncio.Event, until_s: float) -> bool:
    """Whether the event was set by then. Not `asyncio.wait_for`, which in Python 3.11 may swallow a cancellation."""
    try:
        async with asyncio.timeout_at(None if until_s == float("inf") else until_s):
            return await event.wait()
    except TimeoutError:
        return False
