"""The local WebSocket API against what the API Gateway developer guide says of the real one; each test names its page."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from adapters import outbox_apigateway as outbox
from adapters import sigv4
from functions.routes import Authorizer, Function, Socket
from local.gateway_limits import Limits
from local.lambdas import FunctionError
from tests.contract.gateways import Gateway

LOCAL = sigv4.Credentials("local", "secret")
OFFERED = [Subprotocol("heliograph.v1"), Subprotocol("ticket.abc")]
FUNCTIONS = (
    Function("authorizer", "Decides.", (Authorizer("sec-websocket-protocol"),), ()),
    Function("opened", "Opens.", (Socket("$connect", "Open.", answers=False),), ()),
    Function("closed", "Closes.", (Socket("$disconnect", "Closed.", answers=False),), ()),
    Function("talk", "Talks.", (Socket("say", "Answers."), Socket("mute", "Does not.", answers=False), Socket("$default", "The rest.")), ()),
)
ALLOW = {"principalId": "acc_1", "context": {"account_id": "acc_1", "n": 7, "is_new": True}}


def _policy(effect: str, resource: str) -> dict[str, object]:
    statement = {"Effect": effect, "Action": "execute-api:Invoke", "Resource": resource}
    return {**ALLOW, "policyDocument": {"Version": "2012-10-17", "Statement": [statement]}}


class World:
    """What the functions were asked, and what they answer."""

    def __init__(self, functions: tuple[Function, ...] = FUNCTIONS, limits: Limits | None = None) -> None:
        self.events: list[tuple[str, Any]] = []
        self.answers: dict[str, Callable[[Any], object]] = {
            "authorizer": lambda event: _policy("Allow", event["methodArn"]),
            "opened": lambda _: {"statusCode": 200, "headers": {"Sec-WebSocket-Protocol": "heliograph.v1"}},
            "talk": lambda event: {"statusCode": 200, "body": f"heard {event['body']}"},
        }
        self.gateway = Gateway(functions, self.invoke, region="eu-central-1", credentials=LOCAL, limits=limits)
        self.outbox: outbox.Outbox

    async def __aenter__(self) -> World:
        await self.gateway.start()
        self.outbox = outbox.Outbox(self.gateway.connections_url, region="eu-central-1", credentials=lambda: LOCAL)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.outbox.aclose()
        await self.gateway.close()

    async def invoke(self, name: str, event: Any) -> object:
        self.events.append((name, event))
        answer: object = self.answers[name](event) if name in self.answers else {"statusCode": 200}
        return await answer if isinstance(answer, Awaitable) else answer

    async def open(self, query: str = "", **more: Any) -> ClientConnection:
        return await connect(self.gateway.socket_url + query, **({"subprotocols": OFFERED, "compression": None} | more))

    async def refused(self, **more: Any) -> tuple[int, str]:
        with pytest.raises(InvalidStatus) as caught:
            await self.open(**more)
        return caught.value.response.status_code, (caught.value.response.body or b"").decode()

    async def event(self, name: str) -> Any:
        for _ in range(200):
            for found, event in self.events:
                if found == name:
                    return event
            await asyncio.sleep(0.01)
        pytest.fail(f"{name} was not invoked; seen: {[found for found, _ in self.events]}")

    def names(self) -> list[str]:
        return [name for name, _ in self.events]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as world:
        yield world


# --- events


async def test_connect_has_headers_query_and_the_common_context(world: World) -> None:
    """Set up integration requests for WebSocket APIs; recorded $connect events: only $connect carries headers and query."""
    async with await world.open("?a=1&a=2&b=3", additional_headers={"X-Mine": "1"}, user_agent_header="toy/1"):
        event = await world.event("opened")
    assert event["headers"]["X-Mine"] == "1"
    assert event["multiValueHeaders"]["X-Mine"] == ["1"]
    assert event["queryStringParameters"] == {"a": "2", "b": "3"}
    assert event["multiValueQueryStringParameters"] == {"a": ["1", "2"], "b": ["3"]}
    assert event["isBase64Encoded"] is False
    context = event["requestContext"]
    assert (context["routeKey"], context["eventType"], context["messageDirection"], context["stage"]) == ("$connect", "CONNECT", "IN", "local")
    assert context["identity"] == {"sourceIp": "127.0.0.1", "userAgent": "toy/1"}
    assert re.fullmatch(r"[A-Za-z0-9_-]{15}=", context["connectionId"])
    assert isinstance(context["connectedAt"], int)
    assert context["requestTimeEpoch"] >= context["connectedAt"]
    assert context.keys() == {
        "routeKey", "eventType", "extendedRequestId", "requestTime", "messageDirection", "stage", "connectedAt", "requestTimeEpoch", "identity",
        "requestId", "domainName", "connectionId", "apiId", "authorizer",
    }  # fmt: skip


async def test_query_fields_are_absent_when_there_is_no_query(world: World) -> None:
    """Recorded $connect events: no queryStringParameters without a query."""
    async with await world.open():
        event = await world.event("opened")
    assert "queryStringParameters" not in event


async def test_a_message_has_no_headers_and_no_query(world: World) -> None:
    """Recorded MESSAGE events: requestContext with messageId, body, isBase64Encoded, nothing else."""
    async with await world.open("?a=1") as socket:
        await socket.send('{"action":"say"}')
        assert await socket.recv() == 'heard {"action":"say"}'
        opened = await world.event("opened")
        event = await world.event("talk")
    assert event.keys() == {"requestContext", "body", "isBase64Encoded"}
    context = event["requestContext"]
    assert (context["eventType"], context["routeKey"]) == ("MESSAGE", "say")
    assert context["messageId"]
    assert context["connectionId"] == opened["requestContext"]["connectionId"]
    assert context["connectedAt"] == opened["requestContext"]["connectedAt"]


async def test_disconnect_tells_how_the_socket_closed(world: World) -> None:
    """Manage disconnections with $disconnect: disconnectStatusCode and disconnectReason."""
    socket = await world.open()
    await socket.close(4001, "enough")
    event = await world.event("closed")
    context = event["requestContext"]
    assert (context["eventType"], context["routeKey"]) == ("DISCONNECT", "$disconnect")
    assert (context["disconnectStatusCode"], context["disconnectReason"]) == (4001, "enough")
    assert context["authorizer"]["account_id"] == "acc_1"
    assert event["headers"].keys() == {"Host", "x-api-key", "X-Forwarded-For", "x-restapi"}
    assert "body" not in event


async def test_a_cut_line_is_a_disconnect_too(world: World) -> None:
    """Manage disconnections with $disconnect: best effort, also when the client vanished; the code is 1006."""
    socket = await world.open()
    socket.transport.abort()
    event = await world.event("closed")
    assert event["requestContext"]["disconnectStatusCode"] == 1006


# --- routes


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ('{"action":"say"}', "say"),
        ('{"action":"other"}', "$default"),
        ('{"action":"$connect"}', "$default"),
        ('{"action":{"a":1}}', "$default"),
        ("not json", "$default"),
        ("[]", "$default"),
    ],
)
async def test_the_route_is_selected_by_action(world: World, body: str, key: str) -> None:
    """WebSocket routes: $request.body.action; not JSON or no match goes to $default."""
    async with await world.open() as socket:
        await socket.send(body)
        event = await world.event("talk")
    assert event["requestContext"]["routeKey"] == key


async def test_without_a_default_route_the_client_gets_forbidden() -> None:
    """WebSocket routes: without $default a message that matches no route gets an error frame."""
    bare = tuple(Function(f.name, f.summary, tuple(r for r in f.routes if not (isinstance(r, Socket) and r.key == "$default")), ()) for f in FUNCTIONS)
    async with World(bare) as world, await world.open() as socket:
        await socket.send("{}")
        frame = json.loads(await socket.recv())
        assert frame["message"] == "Forbidden"
        assert frame.keys() == {"message", "connectionId", "requestId"}
        assert "talk" not in world.names()


async def test_a_route_without_a_route_response_answers_nothing(world: World) -> None:
    """Set up route responses for WebSocket APIs: without one the body of the function's answer is not sent."""
    async with await world.open() as socket:
        await socket.send('{"action":"mute"}')
        await world.event("talk")
        await socket.send('{"action":"say"}')
        assert await socket.recv() == 'heard {"action":"say"}'


@pytest.mark.parametrize("fails", [lambda _: 1 / 0, lambda _: None, lambda _: {"statusCode": 200, "body": {}}], ids=["error", "nothing", "object body"])
async def test_an_error_of_the_function_is_an_error_frame(world: World, fails: Callable[[Any], object]) -> None:
    """Troubleshooting WebSocket APIs: {"message":"Internal server error","connectionId","requestId"}; the socket stays open."""

    def answer(event: Any) -> object:
        try:
            return fails(event)
        except ZeroDivisionError as error:
            raise FunctionError("ZeroDivisionError", str(error)) from error

    world.answers["talk"] = answer
    async with await world.open() as socket:
        await socket.send('{"action":"say"}')
        frame = json.loads(await socket.recv())
        assert frame["message"] == "Internal server error"
        assert frame["connectionId"] == (await world.event("opened"))["requestContext"]["connectionId"]
        del world.answers["talk"]
        await socket.ping()


async def test_messages_of_one_connection_run_concurrently(world: World) -> None:
    """Invoke your backend service: nothing orders the messages of one connection across invocations."""
    gate = asyncio.Event()

    async def talk(event: Any) -> object:
        if "slow" in event["body"]:
            await gate.wait()
        return {"statusCode": 200, "body": event["body"]}

    world.answers["talk"] = talk
    async with await world.open() as socket:
        await socket.send("slow")
        await socket.send("quick")
        assert await socket.recv() == "quick"
        gate.set()
        assert await socket.recv() == "slow"


async def test_a_slow_function_is_a_timeout_frame() -> None:
    """Quotas for WebSocket APIs: integration timeout 29 s; the client gets "Endpoint request timed out"."""
    async with World(limits=Limits(socket_timeout_s=0.2)) as world, await world.open() as socket:
        world.answers["talk"] = lambda _: asyncio.sleep(5)
        await socket.send("x")
        assert json.loads(await socket.recv())["message"] == "Endpoint request timed out"


# --- handshake


async def test_no_identity_source_is_401_without_asking(world: World) -> None:
    """Control access to WebSocket APIs with REQUEST authorizers: a missing identity source is 401, the function is not invoked."""
    status, body = await world.refused(subprotocols=None)
    assert (status, json.loads(body)["message"]) == (401, "Unauthorized")
    assert world.events == []


async def test_the_authorizer_sees_the_handshake_and_its_context_stands_in_every_later_event(world: World) -> None:
    """Control access to WebSocket APIs with REQUEST authorizers: methodArn; context values arrive as strings in all routes."""
    async with await world.open("?a=1") as socket:
        await socket.send("x")
        asked, opened, talked = await world.event("authorizer"), await world.event("opened"), await world.event("talk")
    assert asked["type"] == "REQUEST"
    assert re.fullmatch(r"arn:aws:execute-api:eu-central-1:\d{12}:\w+/local/\$connect", asked["methodArn"])
    assert asked["headers"]["Sec-WebSocket-Protocol"] == "heliograph.v1, ticket.abc"
    assert asked["queryStringParameters"] == {"a": "1"}
    assert asked["requestContext"]["connectionId"] == opened["requestContext"]["connectionId"]
    assert "authorizer" not in asked["requestContext"]
    for event in (opened, talked):
        context = event["requestContext"]["authorizer"]
        assert context == {"principalId": "acc_1", "integrationLatency": 0, "account_id": "acc_1", "n": "7", "is_new": "true"}


def _boom(_: Any) -> object:
    raise FunctionError("ValueError", "boom")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda event: _policy("Deny", event["methodArn"]), 403),
        (lambda _: _policy("Allow", "arn:aws:execute-api:eu-central-1:000000000000:other/*"), 403),
        (lambda _: _boom(_), 500),
        (lambda _: {"isAuthorized": True}, 500),
        (lambda event: _policy("Allow", event["methodArn"]) | {"context": {"nested": {}}}, 500),
    ],
    ids=["deny", "other resource", "error", "simple response", "nested context"],
)
async def test_what_the_authorizer_says_counts(world: World, answer: Callable[[Any], object], status: int) -> None:
    """Output from an API Gateway Lambda authorizer: an IAM policy; simple responses are HTTP-API only; context is flat."""
    world.answers["authorizer"] = answer
    assert (await world.refused())[0] == status
    assert world.names() == ["authorizer"]


async def test_wildcards_in_the_policy_match(world: World) -> None:
    """Output from an API Gateway Lambda authorizer: `*` matches any part of the ARN."""
    world.answers["authorizer"] = lambda _: _policy("Allow", "arn:aws:execute-api:*:*:*/local/*")
    async with await world.open():
        pass


@pytest.mark.parametrize(("answer", "status"), [(lambda _: {"statusCode": 409}, 409), (_boom, 502), (lambda _: None, 502)], ids=["409", "error", "nothing"])
async def test_connect_decides_over_the_handshake(world: World, answer: Callable[[Any], object], status: int) -> None:
    """Manage connected users with $connect: a non-2xx status or an error refuses the connection, and there is no $disconnect."""
    world.answers["opened"] = answer
    assert (await world.refused())[0] == status
    await asyncio.sleep(0.05)
    assert world.names() == ["authorizer", "opened"]


async def test_another_stage_is_forbidden(world: World) -> None:
    """An unknown stage is 403."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(world.gateway.socket_url.replace("/local", "/other"))
    assert caught.value.response.status_code == 403


@pytest.mark.parametrize(
    ("headers", "chosen"),
    [
        ({"Sec-WebSocket-Protocol": "heliograph.v1"}, "heliograph.v1"),
        ({"sec-websocket-protocol": "heliograph.v1"}, "heliograph.v1"),
        ({}, None),
        ({"Sec-WebSocket-Protocol": "heliograph.v1, ticket.abc"}, None),
        ({"Sec-WebSocket-Protocol": "other"}, None),
    ],
)
async def test_the_subprotocol_is_the_one_connect_returns(world: World, headers: dict[str, str], chosen: str | None) -> None:
    """Routes for WebSocket APIs, "$connect routes that require a WebSocket subprotocol": exactly one of those offered, else the client has none."""
    world.answers["opened"] = lambda _: {"statusCode": 200, "headers": headers}
    async with await world.open() as socket:
        assert socket.subprotocol == chosen


async def test_the_connection_does_not_exist_during_connect(world: World) -> None:
    """Manage connected users with $connect: "the connection is not fully established until $connect has completed"; a post to it is 410."""
    outcomes = []

    async def opened(event: Any) -> object:
        outcomes.append(await world.outbox.post(event["requestContext"]["connectionId"], b"early"))
        return {"statusCode": 200}

    world.answers["opened"] = opened
    async with await world.open() as socket:
        await socket.send("x")
        assert await socket.recv() == "heard x"
    assert [outcome.kind for outcome in outcomes] == ["gone"]


# --- frames


async def _close_code(socket: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        await socket.recv()
    return socket.close_code


async def test_a_frame_above_32_kb_closes_with_1009(world: World) -> None:
    """Quotas for WebSocket APIs: frame 32 KB, else 1009."""
    async with await world.open() as socket:
        await socket.send("x" * 32 * 1024)
        await socket.recv()
        await socket.send("x" * (32 * 1024 + 1))
        assert await _close_code(socket) == 1009
    assert len(world.events) == 3


async def test_a_message_of_128_kb_in_frames_passes_and_a_larger_one_closes_with_1009(world: World) -> None:
    """Quotas for WebSocket APIs: message payload 128 KB in frames of at most 32 KB."""
    world.answers["talk"] = lambda event: {"statusCode": 200, "body": str(len(event["body"]))}
    async with await world.open() as socket:
        await socket.send(["x" * 32 * 1024] * 4)
        assert await socket.recv() == str(128 * 1024)
        await socket.send(["x" * 32 * 1024] * 4 + ["x"])
        assert await _close_code(socket) == 1009
    closed = await world.event("closed")
    assert closed["requestContext"]["disconnectStatusCode"] == 1009


async def test_a_binary_frame_closes_with_1003(world: World) -> None:
    """Working with binary media types for WebSocket APIs: incoming binary messages are not supported; close 1003."""
    async with await world.open() as socket:
        await socket.send(b"\x00")
        assert await _close_code(socket) == 1003
    await world.event("closed")
    assert "talk" not in world.names()


async def test_closing_the_gateway_closes_every_socket_and_tells_disconnect() -> None:
    """A laptop that shuts down leaves no connection behind."""
    async with World() as world:
        socket = await world.open()
    assert await _close_code(socket) == 1001
    assert "closed" in world.names()
