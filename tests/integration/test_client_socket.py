"""The client against a scripted server: tickets, refresh, acknowledgements, retries, coming back. Frames are read by the server's own parser."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import WSCloseCode, web

from functions.routes import socket_routes
from heliograph.messages import Frame, acknowledgement, dump, parse_frame
from heliograph_client import Client, ConnectionLostError, InvalidRequestError, NotFoundError, SignedOutError, TimedOutError
from heliograph_client.ids import make_id, now_ms

BODY_SHAPES = {route.key: route.body for _, route in socket_routes() if not route.key.startswith("$")}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
Reply = Callable[[Frame, web.WebSocketResponse], Awaitable[None]]


class Script:
    """A server that does what a test tells it; it counts what it saw."""

    def __init__(self) -> None:
        self.url = ""
        self.frames: list[Frame] = []
        self.posts: list[tuple[str, str]] = []  # (path, Idempotency-Key)
        self.tokens = 0
        self.token_life_ms = 900_000
        self.dead_tokens: set[str] = set()
        self.tickets: set[str] = set()
        self.heartbeat_s = 20.0
        self.late_s = 0.0  # how long a hello waits
        self.refuse_posts: list[int] = []
        self.reply: Reply = acknowledge
        self.sockets: list[web.WebSocketResponse] = []

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._count])
        app.router.add_post("/v1/tokens", self._token)
        app.router.add_post("/v1/tokens/refresh", self._token)
        app.router.add_post("/v1/tickets", self._ticket)
        app.router.add_get("/v1/presence", self._presence)
        app.router.add_get("/socket", self._socket)
        return app

    @web.middleware
    async def _count(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.method == "POST":
            self.posts.append((request.path, request.headers["Idempotency-Key"]))
            if self.refuse_posts:
                return web.json_response({"message": "Service Unavailable"}, status=self.refuse_posts.pop(0))
        is_open = request.path in ("/v1/tokens", "/v1/tokens/refresh", "/socket")
        if not is_open and request.headers["Authorization"].removeprefix("Bearer ") in self.dead_tokens:
            return web.json_response({"message": "Unauthorized"}, status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _token(self, request: web.Request) -> web.Response:
        self.tokens += 1
        names = {"tenant_id": "acme", "account_id": make_id("acc"), "device_id": make_id("dev"), "token_type": "Bearer"}
        secrets = {"access_token": f"access{self.tokens}", "refresh_token": f"refresh{self.tokens}"}
        return web.json_response({**names, **secrets, "expires_at_ms": now_ms() + self.token_life_ms}, status=201)

    async def _ticket(self, request: web.Request) -> web.Response:
        ticket = f"one.use-{len(self.posts)}"
        self.tickets.add(ticket)
        return web.json_response({"ticket": ticket, "expires_at_ms": now_ms() + 30_000}, status=201)

    async def _presence(self, request: web.Request) -> web.Response:
        return web.json_response({"presence": []})

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        offered = [item.strip() for item in request.headers["Sec-WebSocket-Protocol"].split(",")]
        if offered[0] != "heliograph.v1" or offered[1].removeprefix("ticket.") not in self.tickets:
            raise web.HTTPForbidden
        self.tickets.clear()
        socket = web.WebSocketResponse(protocols=("heliograph.v1",))
        await socket.prepare(request)
        self.sockets.append(socket)
        async for message in socket:
            frame = parse_frame(message.data, BODY_SHAPES)
            self.frames.append(frame)
            if frame.action == "hello":
                await asyncio.sleep(self.late_s)
                await acknowledge(frame, socket)
                await post(socket, "welcome", {"heartbeat_s": self.heartbeat_s})
            else:
                await self.reply(frame, socket)
        return socket


async def acknowledge(frame: Frame, socket: web.WebSocketResponse) -> None:
    await socket.send_str(dump(acknowledgement(frame.id)).decode())


async def post(socket: web.WebSocketResponse, event: str, body: dict[str, Any], **more: Any) -> None:
    await socket.send_str(dump({"event": event, "at_ms": now_ms(), "trace_id": TRACE, "body": body, **more}).decode())


async def refuse(frame: Frame, socket: web.WebSocketResponse, code: str, *, retryable: bool = False, retry_after_ms: int = 0) -> None:
    await socket.send_str(
        dump({"code": code, "message": "No.", "retryable": retryable, "retry_after_ms": retry_after_ms, "trace_id": TRACE, "re": frame.id}).decode()
    )


async def until(holds: Callable[[], bool], missing: str, timeout_s: float = 30.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - what is awaited lives in the server and has no event
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"after {timeout_s:g} s still missing: {missing}")


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Script]:
    runner = web.AppRunner(script.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    script.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield script
    await runner.cleanup()


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    async with serving(Script()) as script:
        yield script


@contextlib.asynccontextmanager
async def online(script: Script, timeout_s: float = 30.0) -> AsyncIterator[Client]:
    async with Client(script.url, script.url.replace("http", "ws") + "/socket", timeout_s=timeout_s) as client:
        await client.sign_in("acme", "ana", "secret")
        await client.connect()
        yield client


async def test_frames_of_one_socket_are_counted_from_one_and_acknowledged(script: Script) -> None:
    async with online(script) as client:
        await client.set_presence("busy")
        ack = await client.send_text(make_id("room"), "hello")
    assert ack.re == script.frames[-1].id
    assert [(frame.action, frame.client_seq) for frame in script.frames] == [("hello", 1), ("presence", 2), ("message", 3)]


async def test_a_refusal_raises_the_class_of_its_code(script: Script) -> None:
    async def not_found(frame: Frame, socket: web.WebSocketResponse) -> None:
        await refuse(frame, socket, "not_found")

    script.reply = not_found
    async with online(script) as client:
        with pytest.raises(NotFoundError) as refusal:
            await client.join(make_id("room"))
    assert refusal.value.trace_id == TRACE
    assert len(script.frames) == 2, "what cannot succeed is not sent again"


async def test_a_retryable_refusal_is_answered_with_the_same_id(script: Script) -> None:
    async def busy_once(frame: Frame, socket: web.WebSocketResponse) -> None:
        if len(script.frames) == 2:
            await refuse(frame, socket, "rate_limited", retryable=True, retry_after_ms=20)
        else:
            await acknowledge(frame, socket)

    script.reply = busy_once
    async with online(script) as client:
        await client.send_text(make_id("room"), "hello")
    assert script.frames[1].id == script.frames[2].id
    assert [frame.client_seq for frame in script.frames] == [1, 2, 3]


async def test_a_frame_without_acknowledgement_times_out(script: Script) -> None:
    async def silence(frame: Frame, socket: web.WebSocketResponse) -> None:
        pass

    script.reply = silence
    async with online(script, timeout_s=0.4) as client:
        with pytest.raises(TimedOutError, match="message"):
            await client.send_text(make_id("room"), "hello")
    assert len({frame.id for frame in script.frames if frame.action == "message"}) == 1


async def test_a_frame_cut_off_by_a_lost_socket_is_sent_again_on_the_next_one(script: Script) -> None:
    async def cut_once(frame: Frame, socket: web.WebSocketResponse) -> None:
        if len(script.sockets) == 1:
            await socket.close(code=WSCloseCode.GOING_AWAY)
        else:
            await acknowledge(frame, socket)

    script.reply = cut_once
    async with online(script) as client:
        await client.send_text(make_id("room"), "hello")
    texts = [frame for frame in script.frames if frame.action == "message"]
    assert [frame.id for frame in texts] == [texts[0].id] * 2
    assert texts[1].client_seq == 2, "a new socket counts anew"


async def test_a_server_that_is_late_is_given_more_time_and_no_second_hello(script: Script) -> None:
    """Every attempt that is given up costs a busy server as much as one that succeeds: with one patience for all a crowd never comes back."""
    async with online(script, timeout_s=0.5) as client:
        script.late_s = 0.75
        await script.sockets[0].close(code=WSCloseCode.GOING_AWAY)
        await until(lambda: not client.is_online, "the lost socket noticed")
        await until(lambda: client.is_online, "a welcome that takes longer than the first attempt waits", timeout_s=15.0)
        attempts = len(script.sockets) - 1
        assert attempts > 1, "the first attempt waits half a second only"
        assert [frame.action for frame in script.frames].count("hello") <= 1 + attempts, "one hello a socket"


async def test_a_device_that_was_replaced_does_not_fight_its_successor(script: Script) -> None:
    async with online(script, timeout_s=0.3) as client:
        await post(script.sockets[0], "closed", {"reason": "connected_elsewhere"})
        await script.sockets[0].close()
        with pytest.raises(TimedOutError, match="not connected"):
            await client.set_presence("online")
    assert len(script.sockets) == 1


async def test_pings_keep_the_rooms_alive_and_name_the_position(script: Script) -> None:
    script.heartbeat_s = 0.1
    room_id = make_id("room")

    async def positioned(frame: Frame, socket: web.WebSocketResponse) -> None:
        await socket.send_str(dump(acknowledgement(frame.id, *(("e1", 12) if frame.action == "join" else ()))).decode())

    script.reply = positioned
    async with online(script) as client:
        await client.join(room_id)
        await until(lambda: any(frame.action == "ping" for frame in script.frames), "a ping")
    ping = next(frame for frame in script.frames if frame.action == "ping")
    assert ping.body == {"rooms": [{"room_id": room_id, "epoch": "e1", "offset": 12}]}


async def test_a_token_refused_before_its_time_is_refreshed_too(script: Script) -> None:
    script.dead_tokens.add("access1")
    async with Client(script.url, "ws://unused") as client:
        await client.sign_in("acme", "ana", "secret")
        await client.presence()
    assert script.tokens == 2


async def test_a_post_is_repeated_with_its_idempotency_key(script: Script) -> None:
    script.refuse_posts = [503, 503]
    async with Client(script.url, "ws://unused") as client:
        await client.sign_in("acme", "ana", "secret")
    assert len(script.posts) == 3
    assert len({key for _, key in script.posts}) == 1


async def test_a_wrong_request_is_not_repeated(script: Script) -> None:
    script.refuse_posts = [400]
    async with Client(script.url, "ws://unused") as client:
        with pytest.raises(InvalidRequestError):
            await client.sign_in("acme", "ana", "secret")
    assert len(script.posts) == 1


async def test_without_signing_in_nothing_is_sent(script: Script) -> None:
    async with Client(script.url, "ws://unused") as client:
        with pytest.raises(SignedOutError):
            await client.presence()


async def test_a_server_that_cannot_be_reached_is_a_lost_connection() -> None:
    async with Client("http://127.0.0.1:9", "ws://127.0.0.1:9") as client:
        with pytest.raises(ConnectionLostError):
            await client.sign_in("acme", "ana", "secret")


async def test_an_offer_rings_with_the_candidates_that_overtook_the_answer(script: Script) -> None:
    room_id, call_id, caller = make_id("room"), make_id("call"), {"account_id": make_id("acc"), "device_id": make_id("dev")}
    async with online(script) as client:
        socket = script.sockets[0]
        await post(socket, "offer", {"call_id": call_id, "negotiation_id": "neg_1", "sdp": "v=0", "from": caller}, room_id=room_id)
        await post(socket, "candidate", {"call_id": call_id, "negotiation_id": "neg_1", "candidate": "", "from": caller}, room_id=room_id)
        incoming = await client.incoming_call(timeout_s=2)
        await until(lambda: bool(incoming.candidates), "the candidate")
        await incoming.decline("busy")
    assert script.frames[-1].body == {"call_id": call_id, "to": caller, "reason": "busy"}


async def test_a_call_hung_up_before_anybody_looked_does_not_ring(script: Script) -> None:
    room_id, call_id, caller = make_id("room"), make_id("call"), {"account_id": make_id("acc"), "device_id": make_id("dev")}
    async with online(script) as client:
        with client.subscribe("bye") as byes:
            await post(script.sockets[0], "offer", {"call_id": call_id, "negotiation_id": "neg_1", "sdp": "v=0", "from": caller}, room_id=room_id)
            await post(script.sockets[0], "bye", {"call_id": call_id, "reason": "hangup", "from": caller}, room_id=room_id)
            await byes.next(timeout_s=2)
        with pytest.raises(TimedOutError, match="Nobody called"):
            await client.incoming_call(timeout_s=0.1)
