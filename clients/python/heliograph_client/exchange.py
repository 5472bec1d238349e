"""Frames out, acknowledgements back: each frame is kept under its id until it is acknowledged, refused for good or given up.

A frame sent again keeps its id and takes a fresh client_seq, on whatever socket is open then. One that is refused because the socket's token expired is sent
again once the socket has a fresh one. Knows nothing of rooms.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .backoff import full_jitter_s
from .connection import Connection
from .errors import AUTH_EXPIRED, ConnectionLostError, HeliographError, RateLimitedError, RefusedError, ServerError, TimedOutError
from .frames import Ack, Event, GatewayMessage, Refusal
from .ids import make_id

RETRY_BASE_S = 0.1
PROOF = "reauth"  # the action by which a socket gets a fresh token
Body = Mapping[str, Any] | Callable[[], Mapping[str, Any]]  # a callable is asked at each attempt
_GATEWAY_FAILURES = {"Too Many Requests": RateLimitedError, "Internal server error": ServerError}


@dataclass(slots=True)
class Pending:
    """A frame without acknowledgement; `failed` is that of the attempt under way, `connection` the socket it went over."""

    action: str
    frame_id: str
    trace_id: str
    room_id: str | None
    body: Mapping[str, Any]
    acknowledged: asyncio.Future[Ack]
    failed: asyncio.Future[HeliographError] | None = None
    connection: Connection | None = None

    def fail(self, error: HeliographError) -> None:
        """End the attempt under way."""
        if self.failed is not None and not self.failed.done():
            self.failed.set_result(error)


class Exchange:
    """What this device asked and was not yet answered."""

    def __init__(
        self,
        current: Callable[[], Awaitable[Connection]],
        on_durable: Callable[[str, Ack], None],
        prove: Callable[[Connection, str], Awaitable[None]],
    ) -> None:
        """`current` waits for an open socket; `on_durable(room_id, ack)` is told of own messages before anything that came after them.

        `prove(connection, token)` gives a socket another token than the one that expired; raises HeliographError.
        """
        self._current = current
        self._on_durable = on_durable
        self._prove = prove
        self._pending: dict[str, Pending] = {}

    async def request(
        self,
        action: str,
        room_id: str | None,
        body: Body,
        *,
        timeout_s: float,
        trace_id: str | None = None,
        over: Connection | None = None,
    ) -> Ack:
        """Send a frame until it is acknowledged, on the socket `over` or on whichever is open. Raises HeliographError.

        On a socket of its own a frame is not sent twice for silence alone: what is late there comes later still behind its double.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        pending = Pending(action, make_id("msg"), trace_id or new_trace_id(), room_id, {}, loop.create_future())
        self._pending[pending.frame_id] = pending
        has_proved = False
        try:
            for attempt in range(1_000):
                connection = over or await self._open_by(deadline_s, action, timeout_s)
                pending.body, token = body() if callable(body) else body, connection.token
                left_s = deadline_s - loop.time()
                error = await self._attempt(pending, connection, max(0.1, left_s if over is not None else min(left_s, timeout_s / 2)))
                if error is None:
                    return pending.acknowledged.result()
                if error.code == AUTH_EXPIRED and action != PROOF and not has_proved:
                    error = await self._prove_by(deadline_s, connection, token)
                    has_proved = error is None
                if error is not None:
                    await self._pause(pending, error, attempt, deadline_s, is_bound=over is not None)
            raise TimedOutError(f"{action}: no acknowledgement after 1000 attempts.")
        finally:
            del self._pending[pending.frame_id]

    async def _open_by(self, deadline_s: float, action: str, timeout_s: float) -> Connection:
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._current()
        except TimeoutError:
            raise TimedOutError(f"{action}: not connected for {timeout_s:g} s.") from None

    async def _prove_by(self, deadline_s: float, connection: Connection, token: str) -> HeliographError | None:
        """Have the token replaced that the frame was refused with; None when it was."""
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._prove(connection, token)
        except HeliographError as error:
            return error
        except TimeoutError:
            return TimedOutError("The socket got no fresh token in time.")
        return None

    async def _attempt(self, pending: Pending, connection: Connection, timeout_s: float) -> HeliographError | None:
        """Send once; None when it was acknowledged."""
        if pending.acknowledged.done():
            return None
        pending.failed, pending.connection = asyncio.get_running_loop().create_future(), connection
        try:
            await connection.send(pending.action, pending.frame_id, pending.trace_id, pending.room_id, pending.body)
        except ConnectionLostError as error:
            return error
        answers: set[asyncio.Future[Any]] = {pending.acknowledged, pending.failed}
        await asyncio.wait(answers, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if pending.acknowledged.done():
            return None
        if pending.failed.done():
            return pending.failed.result()
        return TimedOutError(f"{pending.action}: no acknowledgement within {timeout_s:g} s.")

    async def _pause(self, pending: Pending, error: HeliographError, attempt: int, deadline_s: float, *, is_bound: bool) -> None:
        """Wait before the next attempt, or raise when there is none; an acknowledgement that comes late ends the pause."""
        is_lost = isinstance(error, ConnectionLostError)
        after_s = error.retry_after_s if isinstance(error, RefusedError) else None
        pause_s = 0.0 if is_lost else (after_s or 0.0) + full_jitter_s(attempt, random.random(), RETRY_BASE_S)  # noqa: S311 - jitter, not a secret
        if not error.retryable or (is_lost and is_bound) or asyncio.get_running_loop().time() + pause_s >= deadline_s:
            raise error
        await asyncio.wait({pending.acknowledged}, timeout=pause_s)

    def receive(self, frame: Ack | Refusal | GatewayMessage) -> None:
        """An answer came, from whichever socket."""
        if isinstance(frame, GatewayMessage):
            self._fail_the_only_one(frame.message)
        elif isinstance(frame, Refusal):
            if frame.re in self._pending:
                self._pending[frame.re].fail(frame.error)
        elif frame.re in self._pending:
            self._acknowledge(self._pending[frame.re], frame)

    def _acknowledge(self, pending: Pending, ack: Ack) -> None:
        if pending.acknowledged.done():
            return
        pending.acknowledged.set_result(ack)
        if pending.action == "message" and pending.room_id is not None:
            self._on_durable(pending.room_id, ack)

    def _fail_the_only_one(self, message: str) -> None:
        """API Gateway says that a frame failed, not which: with one on its way it is that one, with more their timeouts decide."""
        kind = _GATEWAY_FAILURES.get(message)
        waiting = [
            pending for pending in self._pending.values() if pending.failed is not None and not pending.acknowledged.done() and not pending.failed.done()
        ]
        if kind is not None and len(waiting) == 1:
            waiting[0].fail(kind("gateway", message, retryable=True))

    def stands_for_ack(self, event: Event) -> bool:
        """Whether a stream event is an own message that still waits for its acknowledgement, and so is as good as that."""
        pending = self._pending.get(str(event.body.get("id")))
        if pending is None or pending.acknowledged.done() or pending.room_id != event.room_id or event.event != pending.action:
            return False
        pending.acknowledged.set_result(Ack(pending.frame_id, event.epoch, event.offset))
        return True

    def lost(self, connection: Connection) -> None:
        """A socket ended: what went over it is sent again over the next one."""
        for pending in self._pending.values():
            if pending.connection is connection:
                pending.fail(connection.lost())


def new_trace_id() -> str:
    """32 hex digits that follow a request through the server's logs."""
    return secrets.token_hex(16)
