"""Calls that ring and calls that are on. Imports aiortc only when somebody calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from .errors import TimedOutError
from .frames import Event
from .ice_servers import Draining, IceServers

if TYPE_CHECKING:
    from .call import Call, IcePolicy, Signaling
    from .opus import AudioProfile, Source

_LOG = logging.getLogger("heliograph_client")


class IncomingCall:
    """Somebody calls; `answer` or `decline`."""

    def __init__(self, calls: Calls, room_id: str, offer: Mapping[str, Any]) -> None:
        """`offer` is the body of an `offer` event."""
        self._calls = calls
        self._offer = offer
        self.room_id = room_id
        self.call_id: str = offer["call_id"]
        self.peer: dict[str, str] = dict(offer["from"])
        self.candidates: list[Mapping[str, Any]] = []  # those that came before the answer
        self.is_over = False

    async def answer(
        self,
        *,
        ice_policy: IcePolicy = "all",
        ice_servers: Sequence[Mapping[str, Any]] | None = None,
        source: Source | None = None,
        profile: AudioProfile | None = None,
    ) -> Call:
        """Take the call; `await call.connected()` next."""
        call = await self._calls.new(self.room_id, self.peer, self.call_id, ice_servers, ice_policy, source, profile)
        await call.answer(self._offer, self.candidates)
        return call

    async def decline(self, reason: Literal["declined", "busy"] = "declined") -> None:
        """Refuse the call."""
        self.is_over = True
        await self._calls.decline(self, reason)


class Calls:
    """Hands a call's events to the call, or lets it ring."""

    def __init__(
        self, client: Signaling, fetch_servers: Callable[[], Awaitable[IceServers]], server_ms: Callable[[], int], on_begin: Callable[[], None]
    ) -> None:
        """`fetch_servers` fetches those of the deployment, `server_ms` is the server's time; `on_begin` is told when a call begins."""
        self._client, self._fetch_servers, self._server_ms, self._on_begin = client, fetch_servers, server_ms, on_begin
        self._calls: dict[str, Call] = {}
        self._ringing: dict[str, IncomingCall] = {}
        self._incoming: asyncio.Queue[IncomingCall] = asyncio.Queue()

    @property
    def is_on(self) -> bool:
        """Whether there is a call."""
        return bool(self._calls)

    async def handle(self, event: Event) -> None:
        """An event of any kind, one after the other, so that a candidate never overtakes its answer."""
        if event.event == "relay_draining":
            self._drain(event)
        call_id = event.body.get("call_id")
        if not isinstance(call_id, str) or event.room_id is None:
            return
        if event.event == "offer" and call_id not in self._calls and call_id not in self._ringing:
            self._ringing[call_id] = ringing = IncomingCall(self, event.room_id, event.body)
            self._incoming.put_nowait(ringing)
        elif call_id in self._calls:
            await self._calls[call_id].handle(event.event, event.body)
        elif call_id in self._ringing and event.event == "candidate":
            self._ringing[call_id].candidates.append(event.body)
        elif call_id in self._ringing and event.event == "bye":
            self._ringing.pop(call_id).is_over = True

    def _drain(self, event: Event) -> None:
        draining = Draining.parse(event.body)
        if draining is None:
            _LOG.warning("A relay_draining event could not be read, trace_id %s: %r", event.trace_id, event.body)
            return
        for call in self._calls.values():
            call.drain(draining)

    async def incoming(self, timeout_s: float | None) -> IncomingCall:
        """The next call that rings and was not hung up meanwhile."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    ringing = await self._incoming.get()
                    if not ringing.is_over:
                        return ringing
        except TimeoutError:
            raise TimedOutError(f"Nobody called within {timeout_s:g} s.") from None

    async def decline(self, ringing: IncomingCall, reason: str) -> None:
        """Tell the caller."""
        await self._client.request("bye", ringing.room_id, {"call_id": ringing.call_id, "to": ringing.peer, "reason": reason})

    async def new(
        self,
        room_id: str,
        peer: Mapping[str, str],
        call_id: str,
        ice_servers: Sequence[Mapping[str, Any]] | None,
        ice_policy: IcePolicy,
        source: Source | None,
        profile: AudioProfile | None,
    ) -> Call:
        """A call that is neither offered nor answered yet."""
        from .call import Call

        fetch = self._fetch_servers if ice_servers is None else None  # an application's own servers are renewed by nobody
        call = Call(
            self._client,
            room_id,
            peer,
            call_id=call_id,
            ice_servers=await self._fetch_servers() if ice_servers is None else ice_servers,
            ice_policy=ice_policy,
            source=source,
            profile=profile,
            fetch_servers=fetch,
            server_ms=self._server_ms,
        )
        self._calls[call_id] = call
        self._ringing.pop(call_id, None)
        call.on_end(lambda: self._calls.pop(call_id, None))
        self._on_begin()
        return call

    async def hang_up(self) -> None:
        """End what is still talking."""
        for call in list(self._calls.values()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await call.hangup()
