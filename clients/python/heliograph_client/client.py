"""The client: one signed-in device, its socket kept open, its rooms, files and calls."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import mimetypes
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import aiohttp

from .errors import ConnectionLostError, HeliographError, RefusedError, SignedOutError, TimedOutError, parse_error
from .events import Subscription
from .frames import SUBPROTOCOL, TICKET_PREFIX, Ack, Event, Refusal, build_frame, parse_event, parse_frame
from .ids import make_id
from .rest import Rest, Session, backoff_s

if TYPE_CHECKING:
    from .call import Call, IcePolicy
    from .opus import AudioProfile, Source

_LOG = logging.getLogger("heliograph_client")
CLIENT_NAME = "heliograph-python/0.1.0"
Status = Literal["online", "away", "busy", "on_a_call"]


class IncomingCall:
    """Somebody calls; `answer` or `decline`."""

    def __init__(self, client: Client, room_id: str, offer: Mapping[str, Any]) -> None:
        """`offer` is the body of an `offer` event."""
        self._client = client
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
        servers = await self._client.ice_servers() if ice_servers is None else ice_servers
        call = self._client._new_call(self.room_id, self.peer, self.call_id, servers, ice_policy, source, profile)
        await call.answer(self._offer, self.candidates)
        return call

    async def decline(self, reason: Literal["declined", "busy"] = "declined") -> None:
        """Refuse the call."""
        self.is_over = True
        await self._client.request("bye", self.room_id, {"call_id": self.call_id, "to": self.peer, "reason": reason})


class Client:
    """A signed-in device: REST, one WebSocket that comes back by itself, rooms, presence, files, calls."""

    def __init__(self, rest_url: str, socket_url: str, *, timeout_s: float = 10.0) -> None:
        """`rest_url` is what stands before `/v1`, `socket_url` the WebSocket API's URL; `timeout_s` bounds each wait for an acknowledgement."""
        self._rest_url = rest_url
        self._socket_url = socket_url
        self._timeout_s = timeout_s
        self._http: aiohttp.ClientSession | None = None
        self._rest: Rest | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._online = asyncio.Event()
        self._is_closing = False
        self._is_replaced = False
        self._client_seq = 0
        self._waiting: dict[str, asyncio.Future[Ack]] = {}
        self._positions: dict[str, tuple[str, int]] = {}  # room_id -> (epoch, offset) of the newest event seen
        self._joined: list[str] = []
        self._subscriptions: set[Subscription] = set()
        self._callbacks: dict[str, list[Callable[[Event], None]]] = {}
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._ringing: dict[str, IncomingCall] = {}
        self._incoming: asyncio.Queue[IncomingCall] = asyncio.Queue()
        self._calls: dict[str, Call] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.welcome: dict[str, Any] = {}  # body of the last `welcome` event

    async def __aenter__(self) -> Client:
        """Open the HTTP session."""
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60, sock_connect=5))
        self._rest = Rest(self._rest_url, self._http)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hang up, close the socket, end every task."""
        await self.close()

    async def close(self) -> None:
        """Hang up what is still talking and go offline."""
        self._is_closing = True
        for call in list(self._calls.values()):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(call.hangup(), 2)
        if self._socket is not None:
            await self._socket.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    # signing in and the socket

    @property
    def rest(self) -> Rest:
        """REST with this device's token, for routes this class does not wrap."""
        if self._rest is None:
            raise RuntimeError("use `async with Client(...) as client`")
        return self._rest

    @property
    def session(self) -> Session:
        """Who is signed in; raises SignedOutError before `sign_in`."""
        if self.rest.session is None:
            raise SignedOutError("signed_out", "Call sign_in first.")
        return self.rest.session

    async def sign_in(self, tenant_id: str, login: str, password: str, device_id: str | None = None) -> Session:
        """Sign in; keep `device_id` between runs so that the device stays the same one."""
        return await self.rest.sign_in(tenant_id, login, password, device_id or make_id("dev"))

    async def connect(self) -> dict[str, Any]:
        """Open the socket and answer the `welcome`; from then on it is opened again whenever it closes."""
        await self._open()
        self._tasks.append(asyncio.create_task(self._keep_open(), name="heliograph socket"))
        self._tasks.append(asyncio.create_task(self._dispatch(), name="heliograph events"))
        return self.welcome

    async def _open(self) -> None:
        assert self._http is not None
        ticket = (await self.rest.call("POST", "/v1/tickets"))["ticket"]
        try:
            socket = await self._http.ws_connect(self._socket_url, protocols=(SUBPROTOCOL, TICKET_PREFIX + ticket), max_msg_size=256 * 1024)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConnectionLostError(f"The socket did not open: {error}") from error
        self._client_seq, self._socket = 0, socket
        welcome = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(socket, welcome), name="heliograph reader")
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._exchange("hello", make_id("msg"), new_trace_id(), None, {"client": CLIENT_NAME}, self._timeout_s)
                self.welcome = await welcome
        except BaseException as error:
            await socket.close()
            if isinstance(error, TimeoutError):
                raise TimedOutError("The server sent no welcome.") from None
            raise
        self._online.set()

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, welcome: asyncio.Future[dict[str, Any]]) -> None:
        """Until the socket closes: acknowledgements to their futures, events to the inbox."""
        async for message in socket:
            frame = parse_frame(message.data) if message.type is aiohttp.WSMsgType.TEXT else None
            if isinstance(frame, Event):
                if frame.event == "closed":
                    self._is_replaced = True  # this device opened another socket elsewhere: coming back would only fight it
                if frame.event == "welcome" and not welcome.done():
                    welcome.set_result(frame.body)
                self._inbox.put_nowait(frame)
            elif frame is not None and frame.re in self._waiting:
                self._settle(self._waiting[frame.re], frame)
        self._online.clear()
        lost = ConnectionLostError(f"The socket closed with code {socket.close_code}.")
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(lost)
        if not welcome.done():
            welcome.set_exception(lost)
        welcome.exception()  # retrieved: nobody may be waiting for it any more

    @staticmethod
    def _settle(future: asyncio.Future[Ack], frame: Ack | Refusal) -> None:
        if not future.done():
            if isinstance(frame, Refusal):
                future.set_exception(frame.error)
            else:
                future.set_result(frame)

    async def _keep_open(self) -> None:
        """Ping while open, come back with full jitter when closed."""
        while True:
            pinging = asyncio.create_task(self._ping(), name="heliograph ping")
            await self._reader
            pinging.cancel()
            await asyncio.gather(pinging, return_exceptions=True)
            attempt = 0
            while not (self._is_closing or self._is_replaced):
                await asyncio.sleep(backoff_s(attempt))
                try:
                    await self._open()
                    await self._come_back()
                    break
                except HeliographError as error:
                    if isinstance(error, SignedOutError):
                        return
                    attempt += 1
            if self._is_closing or self._is_replaced:
                return

    async def _ping(self) -> None:
        every_s = float(self.welcome.get("heartbeat_s", 20))
        while True:
            await asyncio.sleep(every_s)
            rooms = [
                {"room_id": room_id, **({"epoch": self._positions[room_id][0], "offset": self._positions[room_id][1]} if room_id in self._positions else {})}
                for room_id in self._joined[:50]
            ]
            try:
                await self.request("ping", None, {"rooms": rooms})
            except HeliographError:
                if self._socket is not None:
                    await self._socket.close()  # half-open: the reader ends and the socket is opened anew

    async def _come_back(self) -> None:
        """Join again every room, and hand out what was missed meanwhile."""
        for room_id in list(self._joined):
            epoch, offset = self._positions.get(room_id, ("", 0))
            ack = await self.request("join", room_id)
            if epoch and ack.epoch == epoch and (ack.offset or 0) > offset:
                missed = await self.rest.call("GET", f"/v1/rooms/{quote(room_id)}/events", query={"epoch": epoch, "after": str(offset)})
                for frame in missed["events"]:
                    event = parse_event(frame)
                    if event is not None:
                        self._inbox.put_nowait(event)

    # frames and events

    async def request(self, action: str, room_id: str | None = None, body: Mapping[str, Any] | None = None, *, trace_id: str | None = None) -> Ack:
        """Send a frame and wait for its acknowledgement; sent again with the same id while that may help. Raises HeliographError."""
        frame_id, trace_id = make_id("msg"), trace_id or new_trace_id()
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        for attempt in range(10):
            left_s = deadline_s - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(max(0.0, left_s)):
                    await self._online.wait()
                return await self._exchange(action, frame_id, trace_id, room_id, body or {}, max(0.1, min(left_s, self._timeout_s / 2)))
            except TimeoutError:
                raise TimedOutError(f"{action}: not connected for {self._timeout_s:g} s.") from None
            except HeliographError as error:
                after_s = error.retry_after_s if isinstance(error, RefusedError) else None
                after_s = after_s if after_s is not None else backoff_s(attempt)
                if not error.retryable or asyncio.get_running_loop().time() + after_s >= deadline_s:
                    raise
                await asyncio.sleep(after_s)
        raise TimedOutError(f"{action}: no acknowledgement after 10 attempts.")

    async def _exchange(self, action: str, frame_id: str, trace_id: str, room_id: str | None, body: Mapping[str, Any], timeout_s: float) -> Ack:
        assert self._socket is not None
        self._client_seq += 1
        text = build_frame(action, frame_id, self._client_seq, trace_id, room_id, body)
        future: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()
        self._waiting[frame_id] = future
        try:
            await self._socket.send_str(text)
            return await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            raise TimedOutError(f"{action}: no acknowledgement within {timeout_s:g} s.") from None
        except (ConnectionError, aiohttp.ClientError) as error:
            raise ConnectionLostError(f"{action}: {error}") from error
        finally:
            del self._waiting[frame_id]

    def subscribe(self, *names: str) -> Subscription:
        """Collect events of these names (all without names) from now on: `with client.subscribe("message") as messages: await messages.next()`."""
        subscription = Subscription(frozenset(names), self._subscriptions.discard)
        self._subscriptions.add(subscription)
        return subscription

    @property
    def events(self) -> Subscription:
        """Every event from now on: `async for event in client.events`."""
        return self.subscribe()

    def on(self, name: str, callback: Callable[[Event], None]) -> None:
        """Call back on each event of this name."""
        self._callbacks.setdefault(name, []).append(callback)

    async def _dispatch(self) -> None:
        """One event after the other, so that a candidate never overtakes its answer."""
        while True:
            event = await self._inbox.get()
            try:
                await self._deliver(event)
            except Exception:  # a callback's or a peer's fault must not silence what comes after it
                _LOG.exception("An event could not be handled: %s, trace_id %s", event.event, event.trace_id)

    async def _deliver(self, event: Event) -> None:
        if event.room_id and event.epoch and event.offset is not None:
            epoch, offset = self._positions.get(event.room_id, (event.epoch, 0))
            self._positions[event.room_id] = (event.epoch, max(event.offset, offset) if epoch == event.epoch else event.offset)
        for subscription in list(self._subscriptions):
            subscription.put(event)
        for callback in self._callbacks.get(event.event, []):
            callback(event)
        await self._signal(event)

    async def _signal(self, event: Event) -> None:
        """Hand a call's event to the call, or let it ring."""
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

    # rooms, presence, text

    async def create_room(self, name: str, member_ids: Sequence[str], room_id: str | None = None) -> dict[str, Any]:
        """Create a room with these accounts and the caller; answers the Room."""
        return await self.rest.call("POST", "/v1/rooms", {"room_id": room_id or make_id("room"), "name": name, "member_ids": list(member_ids)})

    async def join(self, room_id: str) -> Ack:
        """Enter a room live; after a reconnect it is joined again. The ack is the stream's head position."""
        ack = await self.request("join", room_id)
        if room_id not in self._joined:
            self._joined.append(room_id)
        if ack.epoch is not None and ack.offset is not None:
            self._positions[room_id] = (ack.epoch, ack.offset)
        return ack

    async def leave(self, room_id: str) -> Ack:
        """Leave a room live; membership stays."""
        if room_id in self._joined:
            self._joined.remove(room_id)
        return await self.request("leave", room_id)

    async def send_text(self, room_id: str, text: str) -> Ack:
        """Append a text to the room's stream; the ack carries its epoch and offset."""
        return await self.request("message", room_id, {"text": text})

    async def set_presence(self, status: Status) -> Ack:
        """Set the status of this device."""
        return await self.request("presence", None, {"status": status})

    async def presence(self) -> list[dict[str, Any]]:
        """Presence of everybody who shares a room with this account."""
        rows: list[dict[str, Any]] = (await self.rest.call("GET", "/v1/presence"))["presence"]
        return rows

    async def register_push_target(self, target: str, target_kind: Literal["token", "fid"] = "token") -> None:
        """Say where pushes of this device go."""
        await self.rest.call("PUT", f"/v1/devices/{self.session.device_id}/push-target", {"target_kind": target_kind, "target": target})

    # files

    async def upload_file(self, room_id: str, path: str | Path) -> str:
        """Send a file to a room; answers its media_id once the server verified the checksum."""
        assert self._http is not None
        path = Path(path)
        digest, length_bytes = await asyncio.to_thread(_digest, path)
        media_id = make_id("med")
        content_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        body = {"media_id": media_id, "room_id": room_id, "file_name": path.name, "content_type": content_type, "length_bytes": length_bytes, "sha256": digest}
        upload = (await self.rest.call("POST", "/v1/media", body))["upload"]
        file = await asyncio.to_thread(path.open, "rb")
        with contextlib.closing(file):
            async with self._http.request(upload.get("method", "PUT"), upload["url"], data=file, headers=upload.get("headers", {})) as response:
                if response.status >= 300:
                    raise parse_error({"message": f"The store refused the upload: {(await response.text())[:200]}"}, response.status)
        await self.rest.call("POST", f"/v1/media/{media_id}/complete")
        return media_id

    async def download_link(self, media_id: str, expires_s: int = 300) -> str:
        """A URL that works for `expires_s` seconds (1 to 900) for whoever holds it."""
        link: str = (await self.rest.call("POST", f"/v1/media/{media_id}/links", {"expires_s": expires_s}))["url"]
        return link

    # calls

    async def ice_servers(self) -> list[dict[str, Any]]:
        """STUN and TURN servers with time-limited credentials."""
        servers: list[dict[str, Any]] = (await self.rest.call("GET", "/v1/ice-servers"))["ice_servers"]
        return servers

    async def call(
        self,
        room_id: str,
        account_id: str,
        ice_policy: IcePolicy = "all",
        *,
        ice_servers: Sequence[Mapping[str, Any]] | None = None,
        source: Source | None = None,
        profile: AudioProfile | None = None,
    ) -> Call:
        """Call a member of the room: the offer is out when this returns; `await call.connected()` next."""
        servers = await self.ice_servers() if ice_servers is None else ice_servers
        call = self._new_call(room_id, {"account_id": account_id}, make_id("call"), servers, ice_policy, source, profile)
        await call.offer()
        return call

    async def incoming_call(self, timeout_s: float | None = None) -> IncomingCall:
        """Wait until somebody calls; calls that were hung up meanwhile are skipped."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    ringing = await self._incoming.get()
                    if not ringing.is_over:
                        return ringing
        except TimeoutError:
            raise TimedOutError(f"Nobody called within {timeout_s:g} s.") from None

    def _new_call(
        self,
        room_id: str,
        peer: Mapping[str, str],
        call_id: str,
        servers: Sequence[Mapping[str, Any]],
        ice_policy: IcePolicy,
        source: Source | None,
        profile: AudioProfile | None,
    ) -> Call:
        from .call import Call

        call = Call(self, room_id, peer, call_id=call_id, ice_servers=servers, ice_policy=ice_policy, source=source, profile=profile)
        self._calls[call_id] = call
        self._ringing.pop(call_id, None)
        call.on_end(lambda: self._calls.pop(call_id, None))
        return call


def new_trace_id() -> str:
    """32 hex digits that follow a request through the server's logs."""
    return secrets.token_hex(16)


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
