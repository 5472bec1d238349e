"""The client: one signed-in device, its rooms, files and calls. What keeps the socket open and the streams whole stands in `uplink` and `rooms`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import aiohttp

from . import files
from .calls import Calls, IncomingCall
from .errors import NotFoundError, SignedOutError
from .events import Relayed, Subscription
from .exchange import Body, Exchange
from .frames import Ack, Event
from .ice_servers import IceServers
from .ids import make_id
from .rest import Rest, Session
from .rooms import Rooms
from .stream import Position, is_in_stream
from .uplink import Uplink

if TYPE_CHECKING:
    from .call import Call, IcePolicy
    from .connection import Connection
    from .opus import AudioProfile, Source

_LOG = logging.getLogger("heliograph_client")
ICE_SERVERS_TIMEOUT_S = 5.0  # of an attempt: somebody waits for a path
Status = Literal["online", "away", "busy", "on_a_call"]


class Client:
    """A signed-in device: REST, one WebSocket that comes back by itself, rooms, presence, files, calls."""

    def __init__(self, rest_url: str, socket_url: str, *, timeout_s: float = 10.0, reconnect_every_s: float | None = None) -> None:
        """`rest_url` is what stands before `/v1`, `socket_url` the WebSocket API's URL; `timeout_s` bounds each wait for an acknowledgement.

        `reconnect_every_s` replaces the socket that often instead of when the server says (a little before two hours).
        """
        self._rest_url, self._socket_url = rest_url, socket_url
        self._timeout_s, self._reconnect_every_s = timeout_s, reconnect_every_s
        self._http: aiohttp.ClientSession | None = None
        self._rest: Rest | None = None
        self._uplink: Uplink | None = None
        self._exchange = Exchange(
            self._current, lambda room_id, ack: self._rooms.acknowledged(room_id, ack), lambda connection, token: self._link.prove(connection, token)
        )
        self._rooms = Rooms(self._send_join, lambda path, query: self.rest.call("GET", path, query=query), self._ready, lambda: self.is_online)
        self._calls = Calls(self, self._fetch_servers, lambda: self.rest.clock.now_ms(), self._call_began)
        self._relayed = Relayed()
        self._status: Status = "online"
        self._watched: list[str] | None = None
        self._subscriptions: set[Subscription] = set()
        self._callbacks: dict[str, list[Callable[[Event], None]]] = {}
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._dispatching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Client:
        """Open the HTTP session."""
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60, sock_connect=5))
        self._rest = Rest(self._rest_url, self._http)
        self._uplink = Uplink(
            self._socket_url, self._rest, self._http, self._exchange, self, timeout_s=self._timeout_s, replace_every_s=self._reconnect_every_s
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Hang up, close the socket, end every task."""
        await self.close()

    async def close(self) -> None:
        """Hang up what is still talking and go offline."""
        await self._calls.hang_up()
        await self._rooms.close()
        if self._uplink is not None:
            await self._uplink.close()
        if self._dispatching is not None:
            self._dispatching.cancel()
            await asyncio.gather(self._dispatching, return_exceptions=True)
        if self._rest is not None:
            await self._rest.close()
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
    def _link(self) -> Uplink:
        if self._uplink is None:
            raise RuntimeError("use `async with Client(...) as client`")
        return self._uplink

    async def _current(self) -> Connection:
        return await self._link.current()

    @property
    def session(self) -> Session:
        """Who is signed in; raises SignedOutError before `sign_in`."""
        if self.rest.session is None:
            raise SignedOutError("signed_out", "Call sign_in first.")
        return self.rest.session

    async def sign_in(self, tenant_id: str, login: str, password: str, device_id: str | None = None) -> Session:
        """Sign in; keep `device_id` between runs so that the device stays the same one. Once connected, the socket comes back by itself, as this account's."""
        session = await self.rest.sign_in(tenant_id, login, password, device_id or make_id("dev"))
        await self._link.renew()
        return session

    async def sign_in_with_identity(self, tenant_id: str, id_token: str, device_id: str | None = None) -> Session:
        """As `sign_in`, with the ID token of an OIDC provider or a Firebase project that the tenant trusts; else SignedOutError `identity_refused`."""
        session = await self.rest.sign_in_with_identity(tenant_id, id_token, device_id or make_id("dev"))
        await self._link.renew()
        return session

    async def sessions(self) -> list[dict[str, Any]]:
        """Where this account is signed in, oldest first: `[{sid, device_id, signed_in_at_ms, refreshed_at_ms, is_current}]`."""
        rows: list[dict[str, Any]] = (await self.rest.call("GET", "/v1/sessions"))["sessions"]
        return rows

    async def end_session(self, sid: str) -> None:
        """Sign out one device of this account: its socket is closed, its tokens are dead. NotFoundError when there is no such session, or not any more."""
        await self.rest.call("DELETE", f"/v1/sessions/{quote(sid, safe='')}")

    async def sign_out(self) -> None:
        """Hang up, end this device's session, and forget its tokens and rooms. Raises ConnectionLostError and the like with nothing forgotten."""
        await self._calls.hang_up()
        with contextlib.suppress(SignedOutError, NotFoundError):  # it is over already
            for session in await self.sessions():
                if session["is_current"]:
                    await self.end_session(session["sid"])
        await self._forget()

    async def sign_out_everywhere(self) -> None:
        """As `sign_out`, on every device of this account."""
        await self._calls.hang_up()
        with contextlib.suppress(SignedOutError):
            await self.rest.call("DELETE", "/v1/sessions")
        await self._forget()

    async def _forget(self) -> None:
        self.rest.session = None
        self._rooms.forget()
        self._status, self._watched = "online", None
        await self._link.drop()

    async def connect(self) -> dict[str, Any]:
        """Open the socket and answer the `welcome`; from then on it is opened again whenever it closes.

        After event `closed` (this device is connected elsewhere) the socket stays closed until this is called again: it takes the place back. Raises
        HeliographError; SignedOutError when the session is over, and then `sign_in` alone brings the socket back.
        """
        if self._dispatching is None:
            self._dispatching = asyncio.create_task(self._dispatch(), name="heliograph events")
        await self._link.connect()
        return self.welcome

    @property
    def welcome(self) -> dict[str, Any]:
        """Body of the last `welcome` event."""
        return self._link.welcome

    @property
    def is_online(self) -> bool:
        """Whether the socket is open."""
        return self._uplink is not None and self._uplink.is_online

    def network_available(self) -> None:
        """Tell the client that the network is back or another one: it reconnects at once, and probes a socket that only seems open."""
        self._link.network_available()

    async def come_back(self) -> None:
        """Called by the uplink when a new socket said hello: rooms are joined with their positions, what belongs to the socket is said again."""
        await self._rooms.come_back()
        if self._status != "online":
            await self.set_presence(self._status)
        if self._watched is not None:
            await self.watch(self._watched)

    def pings(self) -> list[Mapping[str, Any]]:
        """Called by the uplink: the bodies of one round of pings."""
        return self._rooms.ping_rooms()

    def is_on_call(self) -> bool:
        """Whether this device is on a call."""
        return self._calls.is_on or self._status == "on_a_call"

    # frames and events

    async def request(
        self, action: str, room_id: str | None = None, body: Body | None = None, *, trace_id: str | None = None, timeout_s: float | None = None
    ) -> Ack:
        """Send a frame and wait for its acknowledgement, for the connection too while offline; sent again with the same id while that may help.

        Raises HeliographError; `timeout_s` is the client's unless given.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        return await self._exchange.request(action, room_id, body or {}, trace_id=trace_id, timeout_s=limit_s)

    async def _send_join(self, room_id: str, body: Callable[[], Mapping[str, Any]]) -> Ack:
        return await self.request("join", room_id, body)

    def receive(self, event: Event) -> None:
        """Called by the uplink for each event, from whichever socket."""
        if self._relayed.is_new(event):
            self._rooms.receive(event)

    def _ready(self, event: Event) -> None:
        """An event in its turn; an own message that was still waiting for its acknowledgement has it now."""
        if not (is_in_stream(event) and self._exchange.stands_for_ack(event)):
            self._inbox.put_nowait(event)

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
        while True:
            event = await self._inbox.get()
            try:
                await self._deliver(event)
            except Exception:  # a callback's or a peer's fault must not silence what comes after it
                _LOG.exception("An event could not be handled: %s, trace_id %s", event.event, event.trace_id)

    async def _deliver(self, event: Event) -> None:
        for subscription in list(self._subscriptions):
            subscription.put(event)
        for callback in self._callbacks.get(event.event, []):
            callback(event)
        await self._calls.handle(event)

    # rooms, presence, text

    async def create_room(self, name: str, member_ids: Sequence[str], room_id: str | None = None) -> dict[str, Any]:
        """Create a room with these accounts and the caller; answers the Room."""
        return await self.rest.call("POST", "/v1/rooms", {"room_id": room_id or make_id("room"), "name": name, "member_ids": list(member_ids)})

    async def join(self, room_id: str, after: Position | None = None) -> Ack:
        """Enter a room live; after a reconnect it is joined again. The ack is the stream's head position.

        Events after the head come in order, each once. With `after`, the last position the application has, they begin right after it.
        """
        return await self._rooms.join(room_id, after)

    async def leave(self, room_id: str) -> Ack:
        """Leave a room live; membership stays."""
        self._rooms.leave(room_id)
        return await self.request("leave", room_id)

    def position(self, room_id: str) -> Position | None:
        """Up to where the stream of a joined room was handed out; keep it to go on from there in the next run."""
        room = self._rooms.get(room_id)
        return room.stream.position if room is not None else None

    def participants(self, room_id: str) -> list[dict[str, str]]:
        """Who is live in a joined room: `[{account_id, device_id}]`."""
        room = self._rooms.get(room_id)
        return room.roster.as_json() if room is not None else []

    async def send_text(self, room_id: str, text: str, *, timeout_s: float | None = None) -> Ack:
        """Append a text to the room's stream; the ack carries its epoch and offset. An own text comes as this ack, not as an event.

        Offline it waits for the connection; TimedOutError when there was none, or no acknowledgement, in `timeout_s`.
        """
        return await self.request("message", room_id, {"text": text}, timeout_s=timeout_s)

    async def set_presence(self, status: Status) -> Ack:
        """Set the status of this device."""
        self._status = status
        return await self.request("presence", None, {"status": status})

    async def watch(self, account_ids: Sequence[str]) -> Ack:
        """Be told only of these accounts' presence; without it of everybody who shares a room."""
        self._watched = list(account_ids)
        return await self.request("watch", None, {"account_ids": self._watched})

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
        return await files.upload(self.rest, self._http, room_id, Path(path))

    async def download_link(self, media_id: str, expires_s: int = 300) -> str:
        """A URL that works for `expires_s` seconds (1 to 900) for whoever holds it."""
        link: str = (await self.rest.call("POST", f"/v1/media/{media_id}/links", {"expires_s": expires_s}))["url"]
        return link

    # calls

    async def ice_servers(self) -> list[dict[str, Any]]:
        """STUN and TURN servers with time-limited credentials."""
        return [dict(server) for server in (await self._fetch_servers()).servers]

    async def _fetch_servers(self) -> IceServers:
        return IceServers.parse(await self.rest.call("GET", "/v1/ice-servers", timeout_s=ICE_SERVERS_TIMEOUT_S))

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
        call = await self._calls.new(room_id, {"account_id": account_id}, make_id("call"), ice_servers, ice_policy, source, profile)
        await call.offer()
        return call

    async def incoming_call(self, timeout_s: float | None = None) -> IncomingCall:
        """Wait until somebody calls; calls that were hung up meanwhile are skipped."""
        return await self._calls.incoming(timeout_s)

    def _call_began(self) -> None:
        if self._uplink is not None:
            self._uplink.ping_now()
