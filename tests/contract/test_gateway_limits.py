"""The quotas of API Gateway on the local one; each test names where AWS states the figure, or says that it is assumed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from functions.routes import Function, Http
from local.gateway_limits import Limits, Rate, Throttle, TokenBucket
from tests.contract.test_gateway_sockets import FUNCTIONS as SOCKET_FUNCTIONS
from tests.contract.test_gateway_sockets import World

FUNCTIONS = (*SOCKET_FUNCTIONS, Function("things", "Toys.", (Http("GET", "/v1/things", "Public.", None), Http("GET", "/v1/rare", "Public.", None)), ()))
_PLENTY = Rate(1e6, 1e6)


def _world(**limits: Any) -> World:
    return World(FUNCTIONS, Limits(**limits))


async def _ended(socket: ClientConnection) -> tuple[int | None, str | None]:
    async for _ in socket:  # ends with 1000 and 1001
        pass
    return socket.close_code, socket.close_reason


async def _told(world: World) -> tuple[int, str]:
    context = (await world.event("closed"))["requestContext"]
    return context["disconnectStatusCode"], context["disconnectReason"]


async def _get(world: World, path: str = "/v1/things") -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.get(world.gateway.http_url + path) as response:
        return response.status, json.loads(await response.text() or "null")


# --- the figures


def test_the_defaults_are_the_published_quotas() -> None:
    """Quotas for WebSocket APIs: idle 10 minutes, duration 2 hours, integration 29 s, 500 connections a second, message 128 KB, frame 32 KB.
    Quotas for HTTP APIs: 30 s, 10 MB. Account-level quotas: 10,000 requests a second with a bucket of 5,000."""
    limits = Limits()
    assert (limits.idle_s, limits.connection_s, limits.socket_timeout_s, limits.new_connections.per_s) == (600, 7200, 29, 500)
    assert (limits.message_bytes, limits.frame_bytes) == (131_072, 32_768)
    assert (limits.http_timeout_s, limits.http_body_bytes) == (30, 10_485_760)
    assert limits.requests == Rate(10_000, 5_000)


def test_a_token_bucket_gives_its_burst_and_then_its_rate() -> None:
    """Protecting your WebSocket API: the token bucket algorithm, a token counts for a request."""
    bucket = TokenBucket(Rate(per_s=4, burst=3))
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(100.25), bucket.take(100.25)] == [True, False]
    assert [bucket.take(200.0) for _ in range(4)] == [True, True, True, False], "an idle bucket holds its burst and no more"
    assert not bucket.take(199.0), "a clock that steps back gives nothing"


def test_the_accounts_rate_lets_ten_thousand_requests_a_second_pass_and_no_more() -> None:
    """Account-level quotas: 10,000 requests a second; the burst of 5,000 comes once."""
    throttle = Throttle(Limits())
    passed = sum(throttle.admits("message", 50 + millisecond / 1000) for millisecond, _ in itertools.product(range(1000), range(30)))
    assert 14_900 <= passed <= 15_000


# --- a socket's life


async def test_an_idle_socket_is_closed_with_1001_and_disconnect_says_so() -> None:
    """Quotas for WebSocket APIs: idle connection timeout. Code and reason are observed of AWS, not documented."""
    async with _world(idle_s=0.3) as world:
        socket, started = await world.open(), time.monotonic()
        assert await _ended(socket) == (1001, "Going away")
        assert 0.25 < time.monotonic() - started < 20
        assert await _told(world) == (1001, "Going away")


async def test_any_message_in_either_direction_keeps_a_socket_open() -> None:
    """Quotas for WebSocket APIs: the timeout is for idle connections. Twins: one only listens, one only speaks, one does neither."""
    async with _world(idle_s=0.6) as world:
        listening, speaking, silent = await world.open(), await world.open(), await world.open()
        connection_id = next(event for name, event in world.events if name == "opened")["requestContext"]["connectionId"]
        for _ in range(10):
            await asyncio.sleep(0.12)
            assert (await world.outbox.post(connection_id, b"still there")).kind == "delivered"
            await speaking.send('{"action":"mute"}')
        assert (listening.close_code, speaking.close_code) == (None, None)
        assert await _ended(silent) == (1001, "Going away")


async def test_a_protocol_ping_is_no_message() -> None:
    """Documented nowhere; assumed, so that a client which relies on it is found out here. A browser cannot send one anyway."""
    async with _world(idle_s=0.4) as world:
        socket = await world.open()
        ended = asyncio.create_task(_ended(socket))
        for _ in range(100):
            if ended.done():
                break
            with contextlib.suppress(ConnectionClosed):
                await socket.ping()
            await asyncio.sleep(0.1)
        assert await asyncio.wait_for(ended, 0) == (1001, "Going away")


async def test_a_busy_socket_ends_after_its_two_hours() -> None:
    """Quotas for WebSocket APIs: connection duration 2 hours, whatever passes over it."""
    async with _world(connection_s=0.5) as world:
        socket, started = await world.open(), time.monotonic()
        await socket.send("x")
        async for _ in socket:
            await asyncio.sleep(0.01)
            with contextlib.suppress(ConnectionClosed):
                await socket.send("x")
        assert 0.4 < time.monotonic() - started < 20
        assert (socket.close_code, socket.close_reason) == (1001, "Going away")
        assert await _told(world) == (1001, "Going away")


async def test_a_post_to_a_socket_that_the_gateway_closed_is_gone_at_once() -> None:
    """@connections: GoneException once the connection has ended, also while the closing handshake still waits for a client that sleeps."""
    async with _world(idle_s=0.2) as world:
        socket = await world.open()
        socket.transport.pause_reading()
        connection_id = (await world.event("opened"))["requestContext"]["connectionId"]
        await asyncio.sleep(0.5)
        assert (await world.outbox.post(connection_id, b"late")).kind == "gone"
        assert await _told(world) == (1001, "Going away")


async def test_the_time_scale_shortens_a_sockets_life_and_nothing_else() -> None:
    """Ours: at 1200 the ten idle minutes pass in half a second; a function that takes longer than 29 s / 1200 still answers, on the real clock."""
    assert (Limits(time_scale=60).real_idle_s, Limits(time_scale=60).real_connection_s) == (10, 120)
    async with _world(time_scale=1200) as world:
        at_ms: list[int] = []

        async def talk(event: Any) -> object:
            await asyncio.sleep(0.1)
            at_ms.append(event["requestContext"]["requestTimeEpoch"])
            return {"statusCode": 200, "body": "done"}

        world.answers["talk"] = talk
        socket, now_ms = await world.open(), time.time_ns() // 1_000_000
        await socket.send("x")
        assert await socket.recv() == "done"
        assert abs(at_ms[0] - now_ms) < 10_000
        assert await asyncio.wait_for(_ended(socket), 30) == (1001, "Going away")


# --- how many


async def test_too_many_new_connections_are_429_before_anybody_is_asked() -> None:
    """Quotas for WebSocket APIs: new connections a second. That the handshake is answered 429 is assumed from "Protecting your WebSocket API"."""
    async with _world(new_connections=Rate(10, 2)) as world:
        await world.open()
        await world.open()
        status, body = await world.refused()
        assert (status, json.loads(body)["message"]) == (429, "Too Many Requests")
        assert world.names().count("authorizer") == 2
        await asyncio.sleep(0.15)
        await world.open()


async def test_a_throttled_http_request_is_429_and_reaches_no_function() -> None:
    """Throttle requests to your HTTP APIs: 429 Too Many Requests; the body is the gateway's usual one."""
    async with _world(requests=Rate(0.001, 1)) as world:
        assert await _get(world) == (200, None)
        assert await _get(world) == (429, {"message": "Too Many Requests"})
        assert world.names() == ["things"]


async def test_a_throttled_message_is_answered_with_the_gateways_frame_and_the_socket_stays() -> None:
    """Protecting your WebSocket API: clients may receive 429; that an open socket hears of it in the gateway's own frame is assumed."""
    async with _world(routes={"say": Rate(5, 1)}) as world, await world.open() as socket:
        await socket.send('{"action":"say"}')
        assert await socket.recv() == 'heard {"action":"say"}'
        await socket.send('{"action":"say"}')
        frame = json.loads(await socket.recv())
        assert frame["message"] == "Too Many Requests"
        assert frame.keys() == {"message", "connectionId", "requestId"}
        await asyncio.sleep(0.25)
        await socket.send('{"action":"say"}')
        assert await socket.recv() == 'heard {"action":"say"}'
        assert world.names().count("talk") == 2


async def test_a_routes_throttle_leaves_the_other_routes_alone() -> None:
    """Throttle requests to your HTTP APIs, "Route-level throttling": a route's own rate, below the account's."""
    async with _world(routes={"GET /v1/rare": Rate(0.001, 1)}) as world:
        assert [(await _get(world, path))[0] for path in ("/v1/rare", "/v1/rare", "/v1/things", "/v1/things")] == [200, 429, 200, 200]


async def test_http_sockets_and_callbacks_take_from_one_bucket() -> None:
    """Account-level quotas: 10,000 requests a second across HTTP, REST and WebSocket APIs and the WebSocket callback API. Here the bucket holds five:
    $connect, a message, a post, two HTTP requests."""
    async with _world(requests=Rate(0.001, 5), new_connections=_PLENTY) as world, await world.open() as socket:
        connection_id = (await world.event("opened"))["requestContext"]["connectionId"]
        await socket.send("x")
        assert await socket.recv() == "heard x"
        assert (await world.outbox.post(connection_id, b"y")).kind == "delivered"
        assert await socket.recv() == "y"
        assert [(await _get(world))[0] for _ in range(3)] == [200, 200, 429]
        await socket.send("x")
        assert json.loads(await socket.recv())["message"] == "Too Many Requests"
        assert (await world.refused())[0] == 429
        assert await _raw_post(world, connection_id) == (429, "LimitExceededException")


async def _raw_post(world: World, connection_id: str) -> tuple[int, str]:
    """One post without the sender's own retries."""
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import ClientError

    client: Any = botocore.session.get_session().create_client(
        "apigatewaymanagementapi",
        endpoint_url=world.gateway.connections_url,
        region_name="eu-central-1",
        aws_access_key_id="local",
        aws_secret_access_key="secret",
        config=Config(retries={"total_max_attempts": 1}),
    )
    with pytest.raises(ClientError) as caught:
        await asyncio.to_thread(client.post_to_connection, ConnectionId=connection_id, Data=b"x")
    response: Any = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


# --- how long


async def test_a_slow_function_is_503_to_an_http_client() -> None:
    """Quotas for HTTP APIs: 30 s; Troubleshooting HTTP API Lambda integrations: 503 Service Unavailable."""
    async with _world(http_timeout_s=0.2) as world:
        world.answers["things"] = lambda _: asyncio.sleep(5)
        assert await _get(world) == (503, {"message": "Service Unavailable"})


async def test_a_slow_connect_is_504_at_the_handshake() -> None:
    """Quotas for WebSocket APIs: integration timeout 29 s, also of $connect; that the status is 504 is assumed."""
    async with _world(socket_timeout_s=0.2) as world:
        world.answers["opened"] = lambda _: asyncio.sleep(5)
        assert (await world.refused())[0] == 504
