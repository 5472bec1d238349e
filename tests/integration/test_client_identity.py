"""The client's session against a small server that keeps sessions by the server's own rules: lost answers, sockets whose token runs out, signing out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from functions.routes import socket_routes
from heliograph.errors import HeliographError, IdentityRefused, NotFound, RateLimited, TokenExpired, TokenInvalid, Unauthenticated, Unavailable
from heliograph.ids import new_id
from heliograph.messages import Frame, acknowledgement, dump, parse_frame
from heliograph.sessions import SECRET_BYTES, Session, begun, parse_refresh_token, refresh
from heliograph_client import Client, ConnectionLostError, Event, NotFoundError, RateLimitedError, SignedOutError, TimedOutError, make_id
from heliograph_client.ids import now_ms

BODY_SHAPES = {route.key: route.body for _, route in socket_routes() if not route.key.startswith("$")}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
HOUR_MS = 3_600_000


@dataclass(frozen=True)
class Issued:
    """What an access token says."""

    sid: str
    account_id: str
    device_id: str
    issued_at_ms: int
    expires_at_ms: int


@dataclass
class Peer:
    """An open socket, and the token by which it is known."""

    socket: web.WebSocketResponse
    token: Issued
    seqs: list[int] = field(default_factory=list)


class Gatehouse:
    """The server: sessions, tickets and sockets; a test says how long tokens live, which answers are lost and what is refused."""

    def __init__(self) -> None:
        self.url = ""
        self.ahead_ms = 0  # of the client's clock
        self.token_life_ms = 900_000
        self.grace_ms = 30_000
        self.leeway_ms = 0
        self.sessions: dict[str, Session] = {}
        self.issued: dict[str, Issued] = {}
        self.tickets: dict[str, Issued] = {}
        self.stale_before_ms = 0
        self.asked: Counter[str] = Counter()  # "POST /v1/tickets" and so on
        self.presented: list[str] = []  # refresh tokens
        self.keys: list[str] = []  # Idempotency-Keys of refreshes
        self.lost_answers = 0  # of the next refreshes
        self.refresh_s = 0.0
        self.limited_ms: list[int] = []  # retry_after_ms of the next answers
        self.peers: list[Peer] = []
        self.frames: list[Frame] = []
        self.refuse: Callable[[Peer, Frame], HeliographError | None] = lambda peer, frame: None

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._edge])
        app.router.add_post("/v1/tokens", self._password)
        app.router.add_post("/v1/tokens/identity", self._identity)
        app.router.add_post("/v1/tokens/refresh", self._refresh)
        app.router.add_post("/v1/tickets", self._ticket)
        app.router.add_get("/v1/presence", self._presence)
        app.router.add_get("/v1/sessions", self._list)
        app.router.add_delete("/v1/sessions", self._end_all)
        app.router.add_delete("/v1/sessions/{sid}", self._end_one)
        app.router.add_get("/socket", self._socket)
        return app

    def now_ms(self) -> int:
        return now_ms() + self.ahead_ms

    @web.middleware
    async def _edge(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        self.asked[f"{request.method} {request.path}"] += 1
        try:
            if self.limited_ms:
                raise RateLimited(retry_after_ms=self.limited_ms.pop(0))
            return await handler(request)
        except HeliographError as error:
            return web.json_response(error.body(TRACE), status=error.status)

    # sessions

    def _answer(self, session: Session, refresh_token: object) -> web.Response:
        token, now = secrets.token_urlsafe(16), self.now_ms()
        self.issued[token] = Issued(session.sid, session.account_id, session.device_id, now, now + self.token_life_ms)
        names = {"tenant_id": session.tenant_id, "account_id": session.account_id, "device_id": session.device_id, "token_type": "Bearer"}
        return web.json_response({**names, "access_token": token, "refresh_token": str(refresh_token), "expires_at_ms": now + self.token_life_ms}, status=201)

    def _begin(self, login: str, device_id: str) -> web.Response:
        account_id = "acc_" + login.encode().hex().rjust(32, "0")
        for session in [each for each in self.sessions.values() if each.device_id == device_id]:
            self.end(session.sid)
        now = self.now_ms()
        session, token = begun("acme", account_id, device_id, new_id("ses", now, secrets.token_bytes(10)), "member", now, secrets.token_bytes(2 * SECRET_BYTES))
        self.sessions[session.sid] = session
        return self._answer(session, token)

    def end(self, sid: str, *, quietly: bool = False) -> None:
        """Signed out; `quietly` leaves the sockets to find out by themselves."""
        self.sessions.pop(sid)
        for peer in [] if quietly else [peer for peer in self.peers if peer.token.sid == sid]:
            asyncio.get_running_loop().create_task(self.close(peer, "signed_out"))

    async def close(self, peer: Peer, reason: str) -> None:
        self.peers.remove(peer)
        with contextlib.suppress(ConnectionError):
            await self.post(peer, "closed", {"reason": reason})
        await peer.socket.close()

    async def _password(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return self._begin(body["login"], body["device_id"])

    async def _identity(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if not body["id_token"].startswith("of."):
            raise IdentityRefused
        return self._begin(body["id_token"].removeprefix("of."), body["device_id"])

    async def _refresh(self, request: web.Request) -> web.StreamResponse:
        text = (await request.json())["refresh_token"]
        self.presented.append(text)
        self.keys.append(request.headers["Idempotency-Key"])
        token = parse_refresh_token(text)
        session = self.sessions.get(token.sid) if token else None
        if token is None or session is None:
            raise TokenInvalid
        outcome, after, successor = refresh(session, token, self.now_ms(), self.grace_ms)
        if outcome == "reused":
            self.end(session.sid)
        if successor is None:
            raise TokenInvalid
        self.sessions[session.sid] = after
        answer = self._answer(after, successor)
        await asyncio.sleep(self.refresh_s)
        if self.lost_answers:
            self.lost_answers -= 1
            assert request.transport is not None
            request.transport.abort()
        return answer

    def caller(self, request: web.Request) -> Issued:
        who = self.issued.get(request.headers["Authorization"].removeprefix("Bearer "))
        if who is None or who.sid not in self.sessions:
            raise TokenInvalid
        return self._fresh(who)

    def _fresh(self, who: Issued) -> Issued:
        if self.now_ms() > who.expires_at_ms + self.leeway_ms or who.issued_at_ms < self.stale_before_ms:
            raise TokenExpired
        return who

    async def _ticket(self, request: web.Request) -> web.StreamResponse:
        ticket = secrets.token_urlsafe(16)
        self.tickets[ticket] = self.caller(request)
        return web.json_response({"ticket": ticket, "expires_at_ms": self.now_ms() + 30_000}, status=201)

    async def _presence(self, request: web.Request) -> web.StreamResponse:
        self.caller(request)
        return web.json_response({"presence": []})

    async def _list(self, request: web.Request) -> web.StreamResponse:
        who = self.caller(request)
        own = [session for session in self.sessions.values() if session.account_id == who.account_id]
        rows = [
            {
                "sid": session.sid,
                "device_id": session.device_id,
                "signed_in_at_ms": session.signed_in_at_ms,
                "refreshed_at_ms": session.refreshed_at_ms,
                "is_current": session.sid == who.sid,
            }
            for session in own
        ]
        return web.json_response({"sessions": rows})

    async def _end_one(self, request: web.Request) -> web.StreamResponse:
        who, session = self.caller(request), self.sessions.get(request.match_info["sid"])
        if session is None or session.account_id != who.account_id:
            raise NotFound
        self.end(session.sid)
        return web.json_response({"ended": 1})

    async def _end_all(self, request: web.Request) -> web.StreamResponse:
        who = self.caller(request)
        own = [session.sid for session in self.sessions.values() if session.account_id == who.account_id]
        for sid in own:
            self.end(sid)
        return web.json_response({"ended": len(own)})

    # sockets

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        who = self.tickets.pop(request.headers["Sec-WebSocket-Protocol"].split("ticket.")[1])
        socket = web.WebSocketResponse(protocols=("heliograph.v1",))
        await socket.prepare(request)
        peer = Peer(socket, who)
        self.peers.append(peer)
        async for message in socket:
            frame = parse_frame(message.data, BODY_SHAPES)
            self.frames.append(frame)
            peer.seqs.append(frame.client_seq)
            try:
                await self._take(peer, frame)
                await socket.send_str(dump(acknowledgement(frame.id)).decode())
            except HeliographError as error:
                await socket.send_str(dump(error.body(TRACE, frame.id)).decode())
        if peer in self.peers:
            self.peers.remove(peer)
        return socket

    async def _take(self, peer: Peer, frame: Frame) -> None:
        refusal = self.refuse(peer, frame)
        if refusal is not None:
            raise refusal
        if frame.action == "reauth":
            token = self.issued.get(frame.body["access_token"])
            if token is None or token.sid not in self.sessions or token.device_id != peer.token.device_id:
                raise TokenInvalid
            peer.token = self._fresh(token)
            return
        if peer.token.sid not in self.sessions:
            raise TokenInvalid
        self._fresh(peer.token)
        if frame.action == "hello":
            await self.post(peer, "welcome", {"account_id": peer.token.account_id, "heartbeat_s": 60, "auth_expires_at_ms": peer.token.expires_at_ms})

    async def post(self, peer: Peer, event: str, body: dict[str, Any]) -> None:
        await peer.socket.send_str(json.dumps({"event": event, "at_ms": self.now_ms(), "trace_id": TRACE, "body": body}))

    # what a test looks at

    def of(self, action: str) -> list[Frame]:
        return [frame for frame in self.frames if frame.action == action]

    @property
    def refreshes(self) -> int:
        """How often sessions went on."""
        return sum(session.n for session in self.sessions.values())


@pytest.fixture
async def house() -> AsyncIterator[Gatehouse]:
    house = Gatehouse()
    runner = web.AppRunner(house.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    house.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield house
    await runner.cleanup()


@contextlib.asynccontextmanager
async def signed_in(house: Gatehouse, login: str = "ana", **options: Any) -> AsyncIterator[Client]:
    async with Client(house.url, house.url.replace("http", "ws") + "/socket", **options) as client:
        await client.sign_in("acme", login, "secret")
        yield client


@contextlib.asynccontextmanager
async def online(house: Gatehouse, login: str = "ana", **options: Any) -> AsyncIterator[Client]:
    async with signed_in(house, login, **options) as client:
        await client.connect()
        yield client


def heard(client: Client) -> list[Event]:
    """What the application is told of its session from now on."""
    events: list[Event] = []
    for name in ("closed", "signed_out", "room_lost"):
        client.on(name, events.append)
    return events


def names(events: list[Event]) -> list[str]:
    return [event.event for event in events]


async def until(holds: Callable[[], bool], missing: str, timeout_s: float = 30.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - what is awaited lives in the server and has no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"after {timeout_s:g} s still missing: {missing}")


def refuse_once(action: str, error: HeliographError) -> Callable[[Peer, Frame], HeliographError | None]:
    """The first frame of an action is refused."""
    left = [error]
    return lambda peer, frame: left.pop() if frame.action == action and left else None


# Tokens


async def test_a_token_is_refreshed_before_it_expires_and_only_once(house: Gatehouse) -> None:
    house.token_life_ms = 2_000
    async with signed_in(house) as client:
        first = client.session.access_token
        await client.presence()
        assert client.session.access_token == first, "of a short life four fifths are good"
        await asyncio.sleep(1.7)
        await asyncio.gather(*(client.presence() for _ in range(5)))
        assert client.session.access_token != first
    assert (house.refreshes, len(house.presented)) == (1, 1)


async def test_a_token_that_expired_unnoticed_is_refreshed_and_the_request_sent_once_more(house: Gatehouse) -> None:
    async with signed_in(house) as client:
        await asyncio.sleep(0.002)
        house.stale_before_ms = house.now_ms()
        assert await client.presence() == []
        assert house.asked["GET /v1/presence"] == 2
        house.stale_before_ms = house.now_ms() + HOUR_MS
        with pytest.raises(SignedOutError) as refusal:
            await client.presence()
    assert refusal.value.code == "token_expired", "a fresh token that is refused too is not tried for ever"
    assert house.asked["GET /v1/presence"] == 4


async def test_a_session_that_ended_is_signed_out_after_one_refresh(house: Gatehouse) -> None:
    async with signed_in(house) as client:
        house.end(next(iter(house.sessions)))
        with pytest.raises(SignedOutError) as refusal:
            await client.presence()
    assert refusal.value.code == "token_invalid"
    assert house.asked == {"POST /v1/tokens": 1, "GET /v1/presence": 1, "POST /v1/tokens/refresh": 1}


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_a_refresh_whose_answer_is_lost_presents_the_same_token_and_gets_the_same_successor(house: Gatehouse, lost: int) -> None:
    async with signed_in(house) as client:
        before = client.session
        await asyncio.sleep(0.002)
        house.stale_before_ms, house.lost_answers = house.now_ms(), lost
        await client.presence()
        after = client.session
        assert house.presented == [before.refresh_token] * (lost + 1)
        assert (len(set(house.keys)), house.refreshes) == (1, 1)
        await asyncio.sleep(0.002)
        house.stale_before_ms = house.now_ms()
        await client.presence()
        assert (house.presented[-1], house.refreshes) == (after.refresh_token, 2), "the session goes on with the successor"


async def test_when_every_answer_is_lost_the_next_request_within_the_grace_still_finds_the_session(house: Gatehouse) -> None:
    async with signed_in(house) as client:
        await asyncio.sleep(0.002)
        house.stale_before_ms, house.lost_answers = house.now_ms(), 4
        with pytest.raises(ConnectionLostError):
            await client.rest.token(instead_of=client.session.access_token)
        await client.presence()
        assert house.refreshes == 1


async def test_after_the_grace_the_old_token_ends_the_session(house: Gatehouse) -> None:
    async with signed_in(house) as client:
        await asyncio.sleep(0.002)
        house.stale_before_ms, house.lost_answers = house.now_ms(), 4
        with pytest.raises(ConnectionLostError):
            await client.rest.token(instead_of=client.session.access_token)
        house.grace_ms = -1
        with pytest.raises(SignedOutError):
            await client.presence()
        assert house.sessions == {}


async def test_a_refresh_goes_on_when_nobody_waits_for_it_any_more(house: Gatehouse) -> None:
    async with signed_in(house) as client:
        before = client.session
        await asyncio.sleep(0.002)
        house.stale_before_ms, house.refresh_s = house.now_ms(), 0.2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.presence()
        await until(lambda: client.session.refresh_token != before.refresh_token, "the successor")
    assert len(house.presented) == 1


async def test_a_refresh_that_hangs_is_given_up_while_the_grace_lasts(house: Gatehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heliograph_client.rest.REFRESH_TIMEOUT_S", 0.2)
    async with signed_in(house) as client:
        before = client.session
        house.refresh_s = 30.0
        asking = asyncio.create_task(client.rest.token(instead_of=before.access_token))
        await until(lambda: len(house.presented) == 1, "the first attempt")
        house.refresh_s = 0.0
        assert await asking != before.access_token
    assert house.presented == [before.refresh_token] * 2


async def test_the_answer_of_a_refresh_does_not_replace_a_session_that_began_meanwhile(house: Gatehouse) -> None:
    async with signed_in(house) as client:
        first = client.session
        house.refresh_s = 0.2
        asking = asyncio.create_task(client.rest.token(instead_of=first.access_token))
        await until(lambda: len(house.presented) == 1, "the refresh")
        second = await client.sign_in("acme", "ben", "secret", first.device_id)
        assert await asking == second.access_token
        assert client.session == second


# Sockets whose token runs out


@pytest.mark.parametrize("ahead_ms", [0, HOUR_MS, -HOUR_MS], ids=["clocks agree", "the client is an hour behind", "the client is an hour ahead"])
async def test_a_socket_gets_a_fresh_token_before_its_own_runs_out(house: Gatehouse, ahead_ms: int) -> None:
    house.token_life_ms, house.ahead_ms = 1_500, ahead_ms
    async with online(house) as client:
        events = heard(client)
        await until(lambda: len(house.of("reauth")) == 3, "three fresh tokens", 6)
        await client.set_presence("busy")
        assert names(events) == []
        assert len(house.peers) == 1
        assert house.peers[0].seqs == list(range(1, len(house.frames) + 1)), "reauth is numbered as any frame"
        assert len({frame.body["access_token"] for frame in house.of("reauth")}) == 3
    assert len(house.of("hello")) == 1


async def test_a_socket_of_a_server_that_names_no_end_is_left_alone(house: Gatehouse) -> None:
    house.token_life_ms = 400
    house.leeway_ms = HOUR_MS

    async def welcome_without_end(peer: Peer, event: str, body: dict[str, Any]) -> None:
        body.pop("auth_expires_at_ms", None)
        await Gatehouse.post(house, peer, event, body)

    house.post = welcome_without_end  # type: ignore[method-assign]
    async with online(house) as client:
        await asyncio.sleep(1.2)
        await client.set_presence("busy")
    assert house.of("reauth") == []


async def test_frames_refused_as_expired_are_sent_again_after_one_reauth(house: Gatehouse) -> None:
    async with online(house) as client:
        events = heard(client)
        await asyncio.sleep(0.002)
        house.stale_before_ms = house.now_ms()  # as after a change of role
        acks = await asyncio.gather(*(client.send_text(make_id("room"), str(number)) for number in range(5)))
        texts = house.of("message")
        assert (len(house.of("reauth")), house.refreshes) == (1, 1)
        assert Counter(frame.id for frame in texts) == dict.fromkeys([ack.re for ack in acks], 2)
        assert len({frame.client_seq for frame in texts}) == 10, "fresh client_seqs"
        assert (names(events), len(house.of("hello"))) == ([], 1)


async def test_a_hello_refused_as_expired_is_said_again(house: Gatehouse) -> None:
    house.refuse = refuse_once("hello", TokenExpired())
    async with online(house) as client:
        await client.set_presence("busy")
    assert [frame.action for frame in house.frames] == ["hello", "reauth", "hello", "presence"]


async def test_a_frame_refused_as_expired_twice_is_refused(house: Gatehouse) -> None:
    house.refuse = lambda peer, frame: TokenExpired() if frame.action == "message" else None
    async with online(house) as client:
        with pytest.raises(SignedOutError) as refusal:
            await client.send_text(make_id("room"), "hello")
        assert refusal.value.code == "token_expired"
        assert (len(house.of("message")), len(house.of("reauth"))) == (2, 1)
        await client.set_presence("busy")


async def test_a_reauth_that_fails_for_a_moment_is_tried_again(house: Gatehouse) -> None:
    house.refuse = refuse_once("reauth", Unavailable())
    async with online(house) as client:
        await asyncio.sleep(0.002)
        house.stale_before_ms = house.now_ms()
        await client.set_presence("busy")
    assert [frame.action for frame in house.frames] == ["hello", "presence", "reauth", "reauth", "presence"]


async def test_a_socket_that_takes_no_fresh_token_is_replaced(house: Gatehouse) -> None:
    house.refuse = refuse_once("reauth", Unauthenticated())
    async with online(house) as client:
        events = heard(client)
        await asyncio.sleep(0.002)
        house.stale_before_ms = house.now_ms()
        await client.send_text(make_id("room"), "hello")
        assert names(events) == []
    assert len({frame.id for frame in house.of("message")}) == 1
    assert len(house.of("hello")) == 2


async def test_a_socket_closed_because_its_token_expired_is_opened_again(house: Gatehouse) -> None:
    async with online(house) as client:
        events = heard(client)
        await house.close(house.peers[0], "token_expired")
        await client.set_presence("busy")
        assert names(events) == [], "a lost socket as any other"
    assert len(house.of("hello")) == 2


# Signed out


@pytest.mark.parametrize("reason", ["closed", "refused"])
async def test_a_device_that_was_signed_out_says_so_once_and_waits(house: Gatehouse, reason: str) -> None:
    async with online(house, timeout_s=0.5) as client:
        events = heard(client)
        house.end(next(iter(house.sessions)), quietly=reason == "refused")
        with pytest.raises(TimedOutError, match="not connected"):
            await client.set_presence("busy")
        await asyncio.sleep(1)
        assert [(event.event, event.body["code"]) for event in events] == [("signed_out", "token_invalid")]
        assert (house.asked["POST /v1/tickets"], house.asked["POST /v1/tokens/refresh"]) == (2, 1), "one question, one answer"
        with pytest.raises(SignedOutError):
            await client.connect()
        sending = asyncio.create_task(client.send_text(make_id("room"), "kept", timeout_s=5))
        await client.sign_in("acme", "ana", "secret", client.session.device_id)
        await sending
        await client.connect()
        assert client.is_online


@pytest.mark.parametrize("reason", ["closed", "refused"])
async def test_a_device_that_is_signed_in_after_all_comes_back(house: Gatehouse, reason: str) -> None:
    async with online(house) as client:
        events = heard(client)
        if reason == "closed":
            await house.close(house.peers[0], "signed_out")
        else:
            house.refuse = refuse_once("message", TokenInvalid())
        await client.send_text(make_id("room"), "hello")
        assert names(events) == []
    assert len(house.of("hello")) == 2
    assert len({frame.id for frame in house.of("message")}) == 1


async def test_a_room_is_kept_when_the_socket_is_refused_and_not_the_room(house: Gatehouse) -> None:
    room_id = make_id("room")
    async with online(house) as client:
        events = heard(client)
        await client.join(room_id)
        house.refuse = lambda peer, frame: TokenExpired() if frame.action == "join" else None
        await client.come_back()
        house.refuse = lambda peer, frame: None
        assert names(events) == []
        await house.close(house.peers[0], "token_expired")
        await until(lambda: len(house.of("join")) == 4, "the join on the next socket")


async def test_signing_in_as_somebody_else_brings_their_own_socket(house: Gatehouse) -> None:
    async with online(house) as client:
        first = client.welcome["account_id"]
        await client.sign_in("acme", "ben", "secret", client.session.device_id)
        await client.connect()
        assert client.welcome["account_id"] == client.session.account_id != first
        await until(lambda: len(house.peers) == 1, "the end of the first socket")


# Signing in and out


async def test_an_identity_providers_token_signs_in_and_a_refused_one_does_not(house: Gatehouse) -> None:
    async with Client(house.url, house.url.replace("http", "ws") + "/socket") as client:
        with pytest.raises(SignedOutError) as refusal:
            await client.sign_in_with_identity("acme", "forged")
        assert refusal.value.code == "identity_refused"
        session = await client.sign_in_with_identity("acme", "of.ana")
        await client.connect()
        assert client.welcome["account_id"] == session.account_id


async def test_sessions_are_listed_and_one_is_ended(house: Gatehouse) -> None:
    async with online(house) as here, online(house) as there:
        rows = await here.sessions()
        assert [row["device_id"] for row in rows if row["is_current"]] == [here.session.device_id]
        other = next(row["sid"] for row in rows if not row["is_current"])
        events = heard(there)
        await here.end_session(other)
        await until(lambda: names(events) == ["signed_out"], "the word that it is signed out")
        with pytest.raises(NotFoundError):
            await here.end_session(other)
        assert here.is_online
        assert len(await here.sessions()) == 1


async def test_signing_out_ends_the_session_and_forgets_it(house: Gatehouse) -> None:
    async with online(house) as client:
        events = heard(client)
        await client.join(make_id("room"))
        await client.sign_out()
        assert (house.sessions, client.rest.session) == ({}, None)
        await until(lambda: names(events) == ["signed_out"], "the word that it is signed out")
        with pytest.raises(SignedOutError):
            await client.presence()
        with pytest.raises(SignedOutError):
            await client.connect()
        await client.sign_in("acme", "ana", "secret")
        await client.connect()
        await client.set_presence("busy")
        assert len(house.of("join")) == 1, "rooms of a session that was ended are not joined by the next one"


async def test_signing_out_of_a_session_that_is_over_is_no_error(house: Gatehouse) -> None:
    async with signed_in(house) as client:
        house.end(next(iter(house.sessions)))
        await client.sign_out()
        assert client.rest.session is None


async def test_signing_out_everywhere_reaches_the_other_devices(house: Gatehouse) -> None:
    async with online(house) as here, online(house) as there, online(house, "ben") as ben:
        events = heard(there)
        await here.sign_out_everywhere()
        await until(lambda: names(events) == ["signed_out"], "the word that it is signed out")
        assert here.rest.session is None
        assert ben.is_online


# Limits


async def test_a_request_over_a_limit_waits_as_long_as_it_is_told_and_not_for_long(house: Gatehouse) -> None:
    async with signed_in(house) as client:
        before_s = asyncio.get_running_loop().time()
        house.limited_ms = [300]
        await client.presence()
        assert asyncio.get_running_loop().time() - before_s >= 0.3
        house.limited_ms = [100_000]
        with pytest.raises(RateLimitedError) as refusal:
            await client.sign_in("acme", "ana", "guess")
        assert refusal.value.retry_after_s == 100
        assert asyncio.get_running_loop().time() - before_s < 20


async def test_a_frame_over_a_limit_waits_as_long_as_it_is_told(house: Gatehouse) -> None:
    house.refuse = refuse_once("message", RateLimited(retry_after_ms=300))
    async with online(house) as client:
        before_s = asyncio.get_running_loop().time()
        await client.send_text(make_id("room"), "hello")
        assert asyncio.get_running_loop().time() - before_s >= 0.3
    assert len({frame.id for frame in house.of("message")}) == 1


async def test_a_frame_that_would_wait_longer_than_its_time_is_refused_at_once(house: Gatehouse) -> None:
    house.refuse = refuse_once("message", RateLimited(retry_after_ms=60_000))
    async with online(house, timeout_s=5) as client:
        before_s = asyncio.get_running_loop().time()
        with pytest.raises(RateLimitedError):
            await client.send_text(make_id("room"), "hello")
        assert asyncio.get_running_loop().time() - before_s < 4
