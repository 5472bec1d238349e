"""The device's way to the server: one open socket at a time, replaced when it closes, falls silent or grows old.

Rule 1. Nothing ends it but `close()`. A device that was replaced elsewhere, or is signed out, waits until it is told to go on.
Rule 2. A planned replacement makes before it breaks: the new socket says hello and joins before the old one is closed.
Rule 3. A socket that does not acknowledge a ping is dead, whatever TCP believes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Coroutine, Mapping
from typing import Any, Protocol

import aiohttp

from .backoff import Backoff, replace_after_s
from .connection import Connection, Frame, open_connection
from .errors import ConnectionLostError, HeliographError, RefusedError, SignedOutError, TimedOutError
from .exchange import Exchange
from .frames import Event, Refusal
from .rest import Rest

_LOG = logging.getLogger("heliograph_client")
PING_TIMEOUT_S, HINTED_PING_TIMEOUT_S = 5.0, 2.0
HINT_GRACE_S = 0.3  # an attempt under way when the hint comes has this long to succeed
REPLACED = "connected_elsewhere"
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
        self._backoff = Backoff()
        self._running: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self) -> None:
        """Open the first socket, or go on after this device was replaced or signed out; raises when that fails."""
        if self._running is None:
            self._adopt(await self._open())
            self._running = asyncio.create_task(self._run(), name="heliograph uplink")
            return
        self.resume()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self.current()
        except TimeoutError:
            raise TimedOutError(f"Not connected for {self._timeout_s:g} s.") from None

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
        try:
            async with asyncio.timeout(self._timeout_s):
                ticket = (await self._rest.call("POST", "/v1/tickets"))["ticket"]
                connection = await open_connection(self._http, self._url, ticket)
                connection.start(self._receive, self._ended)
                if replaces is not None:
                    replaces.is_superseded = True
                await self._exchange.request("hello", None, {"client": CLIENT_NAME}, timeout_s=self._timeout_s, over=connection)
                await asyncio.shield(connection.welcome)
                return connection
        except BaseException as error:
            if connection is not None:
                self._spawn(connection.close())
            if isinstance(error, TimeoutError):
                raise TimedOutError("The server sent no welcome.") from None
            raise

    def _adopt(self, connection: Connection) -> None:
        self._connection, self.welcome = connection, connection.welcome.result().body
        self._backoff.opened(asyncio.get_running_loop().time())
        self._hint.clear()
        if connection.ended.is_set():
            return
        self._online.set()

    def _receive(self, connection: Connection, frame: Frame) -> None:
        if isinstance(frame, Refusal) and frame.error.code == REPLACED:
            self._replaced(connection, Event("closed", {"reason": REPLACED}))
            self._exchange.lost(connection)  # what went over it may go over the next one
            return
        if not isinstance(frame, Event):
            self._exchange.receive(frame)
            return
        if frame.event == "closed" and frame.body.get("reason") == REPLACED:
            self._replaced(connection, frame)
            return
        if frame.event == "welcome" and not connection.welcome.done():
            connection.welcome.set_result(frame)
        self._device.receive(frame)

    def _replaced(self, connection: Connection, closed: Event) -> None:
        """Another socket of this device has the place: expected when it is our own next one, else the end until `resume`."""
        if connection.is_superseded or connection.is_replaced or connection.ended.is_set():
            return
        connection.is_replaced = True
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
                    await self._wait_to_resume()  # coming back would only fight the successor
                connection = await self._reconnect()
            await self._attend(connection)

    async def _reconnect(self) -> Connection:
        """Try until a socket is open."""
        while True:
            await self._pause()
            try:
                connection = await self._hinted(self._open())
            except SignedOutError as error:
                self._device.receive(Event("signed_out", {"code": error.code, "message": error.message}))
                await self._wait_to_resume()
            except HeliographError as error:
                _LOG.info("no connection, attempt %d: %s", self._backoff.attempt, error)
            else:
                self._adopt(connection)
                self._spawn(self._device.come_back())
                return connection

    async def _pause(self) -> None:
        pause_s = self._backoff.pause_s(asyncio.get_running_loop().time(), random.random())  # noqa: S311 - jitter, not a secret
        if await _within(self._hint, asyncio.get_running_loop().time() + pause_s):
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

    async def _wait_to_resume(self) -> None:
        self._resume.clear()
        await self._resume.wait()
        self._backoff.collapse()

    async def _attend(self, connection: Connection) -> None:
        """Until the socket ends or is replaced: ping it, and open the next one in time."""
        pinging = asyncio.create_task(self._ping(connection), name="heliograph ping")
        replace_s = asyncio.get_running_loop().time() + self._replace_after_s(connection.welcome.result())
        try:
            while not await _within(connection.ended, replace_s):
                if await self._replace(connection):
                    return
                pause_s = self._backoff.pause_s(asyncio.get_running_loop().time(), random.random())  # noqa: S311 - jitter
                replace_s = asyncio.get_running_loop().time() + pause_s
        finally:
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)

    def _replace_after_s(self, welcome: Event) -> float:
        reconnect_by_ms = welcome.body.get("reconnect_by_ms")
        if self._replace_every_s is not None:
            return self._replace_every_s
        if not isinstance(reconnect_by_ms, int) or welcome.at_ms is None:
            return float("inf")
        return replace_after_s(welcome.at_ms, reconnect_by_ms, random.random())  # noqa: S311 - jitter, not a secret

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
            jitter = 0.9 + 0.1 * random.random()  # noqa: S311 - jitter, not a secret
            is_nudged = await _within(self._nudge, asyncio.get_running_loop().time() + self._ping_every_s(connection) * jitter)
            self._nudge.clear()
            timeout_s = HINTED_PING_TIMEOUT_S if is_nudged else PING_TIMEOUT_S
            try:
                for body in self._device.pings():
                    await self._exchange.request("ping", None, body, timeout_s=timeout_s, over=connection)
            except RefusedError as error:
                if not error.retryable:
                    self._spawn(self._device.come_back())  # a room is no longer ours: joining tells which
            except HeliographError as error:
                _LOG.info("the socket is dead: %s", error)
                await connection.close()
                return

    def _ping_every_s(self, connection: Connection) -> float:
        welcome = connection.welcome.result().body
        return float((welcome.get("heartbeat_call_s") if self._device.is_on_call() else None) or welcome.get("heartbeat_s") or 20)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _within(event: asyncio.Event, until_s: float) -> bool:
    """Whether the event was set by then. Not `asyncio.wait_for`, which in Python 3.11 may swallow a cancellation."""
    try:
        async with asyncio.timeout_at(None if until_s == float("inf") else until_s):
            return await event.wait()
    except TimeoutError:
        return False
