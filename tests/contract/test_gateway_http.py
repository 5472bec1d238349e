"""The local HTTP API against what the API Gateway developer guide says of the real one; each test names its page."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from adapters import sigv4
from functions.routes import Authorizer, Function, Http
from local.gateway_limits import Limits
from local.lambdas import FunctionError
from tests.contract.gateways import Gateway

FUNCTIONS = (
    Function("authorizer", "Decides.", (Authorizer("authorization"),), ()),
    Function(
        "things",
        "Toys.",
        (
            Http("GET", "/v1/things", "Public.", None),
            Http("POST", "/v1/things", "Public.", None),
            Http("GET", "/v1/things/{thing_id}", "Public.", None),
            Http("GET", "/v1/things/special", "Public.", None),
            Http("GET", "/v1/mine/{thing_id}", "Guarded.", "things:read"),
        ),
        (),
    ),
)


class World:
    """What the functions were asked, and what they answer."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.url = ""
        self.session: aiohttp.ClientSession

    async def invoke(self, name: str, event: Any) -> object:
        self.events.append((name, event))
        answer: object = self.answers[name](event) if name in self.answers else {"statusCode": 200}
        return await answer if isinstance(answer, Awaitable) else answer

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, str, Any]:
        async with self.session.request(method, self.url + path, **more) as response:
            return response.status, await response.text(), response.headers


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    gateway = Gateway(
        FUNCTIONS,
        world.invoke,
        region="eu-central-1",
        credentials=sigv4.Credentials("local", "secret"),
        allow_origins=("http://localhost:5173",),
        limits=Limits(http_timeout_s=0.2, http_body_bytes=100_000),
    )
    await gateway.start()
    world.url = gateway.http_url
    async with aiohttp.ClientSession() as world.session:
        yield world
    await gateway.close()


async def test_the_event_is_payload_2_0(world: World) -> None:
    """Create AWS Lambda proxy integrations for HTTP APIs: payload format version 2.0."""
    headers = [("X-One", "a"), ("X-One", "b"), ("Cookie", "c1=1; c2=2"), ("User-Agent", "toy/1")]
    await world.ask("GET", "/v1/things/th%C3%BCng?a=1&a=2&b=", headers=headers)
    ((name, event),) = world.events
    assert name == "things"
    assert event["version"] == "2.0"
    assert event["routeKey"] == "GET /v1/things/{thing_id}"
    assert event["rawPath"] == "/v1/things/thüng"
    assert event["rawQueryString"] == "a=1&a=2&b="
    assert event["queryStringParameters"] == {"a": "1,2", "b": ""}
    assert event["cookies"] == ["c1=1", "c2=2"]
    assert event["headers"]["x-one"] == "a,b"
    assert "cookie" not in event["headers"]
    assert event["headers"]["x-forwarded-proto"] == "http"
    assert event["pathParameters"] == {"thing_id": "thüng"}
    assert event["isBase64Encoded"] is False
    assert "body" not in event
    context = event["requestContext"]
    assert context["http"] == {"method": "GET", "path": "/v1/things/thüng", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": "toy/1"}
    assert (context["routeKey"], context["stage"]) == (event["routeKey"], "$default")
    assert context["domainName"].startswith("127.0.0.1")
    assert re.fullmatch(r"\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000", context["time"])
    assert abs(context["timeEpoch"] - time.time_ns() // 1_000_000) < 5000
    assert context["requestId"]
    assert "authorizer" not in context


@pytest.mark.parametrize(
    ("content_type", "body", "is_base64"),
    [
        ("application/json", b'{"a":1}', False),
        ("application/vnd.api+json; charset=utf-8", b"{}", False),
        ("text/plain", "grüß".encode(), False),
        ("application/octet-stream", b"\x00\xff", True),
        ("application/json", b"\xff", True),
    ],
)
async def test_binary_bodies_come_as_base64(world: World, content_type: str, body: bytes, is_base64: bool) -> None:
    """Working with binary media types for HTTP APIs: text and JSON arrive as text, the rest as base64."""
    await world.ask("POST", "/v1/things", data=body, headers={"Content-Type": content_type})
    event = world.events[0][1]
    assert event["isBase64Encoded"] is is_base64
    assert (base64.b64decode(event["body"]) if is_base64 else event["body"].encode()) == body


async def test_literal_routes_win_over_parameters(world: World) -> None:
    """Create routes for HTTP APIs: the most specific match is chosen."""
    await world.ask("GET", "/v1/things/special")
    assert world.events[0][1]["routeKey"] == "GET /v1/things/special"
    assert "pathParameters" not in world.events[0][1]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/nothing"), ("DELETE", "/v1/things"), ("GET", "/v1/things/a/b"), ("OPTIONS", "/v1/things")])
async def test_an_unknown_route_is_404(world: World, method: str, path: str) -> None:
    """Create routes for HTTP APIs: no match and no $default route is 404 {"message":"Not Found"}; a known path with another method too."""
    status, body, headers = await world.ask(method, path)
    assert (status, body) == (404, '{"message":"Not Found"}')
    assert headers["content-type"].startswith("application/json")
    assert world.events == []


@pytest.mark.parametrize(
    ("answer", "status", "body", "content_type"),
    [
        ({"statusCode": 201, "headers": {"Content-Type": "text/css", "X-Mine": "1"}, "body": "b"}, 201, "b", "text/css"),
        ({"statusCode": 204}, 204, "", "text/plain;charset=UTF-8"),
        ({"statusCode": "202", "body": "b"}, 202, "b", "text/plain;charset=UTF-8"),
        ({"statusCode": 200, "body": base64.b64encode(b"raw").decode(), "isBase64Encoded": True}, 200, "raw", "text/plain;charset=UTF-8"),
        ({"bare": "value"}, 200, '{"bare":"value"}', "application/json"),
        ("Hello from Lambda!", 200, "Hello from Lambda!", "application/json"),
        ([1, 2], 200, "[1,2]", "application/json"),
    ],
)
async def test_both_forms_of_an_answer(world: World, answer: object, status: int, body: str, content_type: str) -> None:
    """Create AWS Lambda proxy integrations for HTTP APIs: Lambda function response for format 2.0; without statusCode it is inferred."""
    world.answers["things"] = lambda _: answer
    got_status, got_body, headers = await world.ask("GET", "/v1/things")
    assert (got_status, got_body) == (status, body)
    if status != 204:
        assert headers["content-type"] == content_type
    if isinstance(answer, dict) and "headers" in answer:
        assert headers["x-mine"] == "1"


async def test_cookies_become_set_cookie_headers(world: World) -> None:
    """Create AWS Lambda proxy integrations for HTTP APIs: `cookies` of format 2.0."""
    world.answers["things"] = lambda _: {"statusCode": 200, "cookies": ["a=1; Secure", "b=2"]}
    _, _, headers = await world.ask("GET", "/v1/things")
    assert headers.getall("set-cookie") == ["a=1; Secure", "b=2"]


@pytest.mark.parametrize("answer", [{"statusCode": "ok"}, {"statusCode": 200, "body": {"a": 1}}, {"statusCode": 200, "headers": []}])
async def test_a_malformed_answer_is_500(world: World, answer: object) -> None:
    """Troubleshooting HTTP API Lambda integrations: a malformed response is 500 {"message":"Internal Server Error"}."""
    world.answers["things"] = lambda _: answer
    assert (await world.ask("GET", "/v1/things"))[:2] == (500, '{"message":"Internal Server Error"}')


async def test_a_function_error_is_500(world: World) -> None:
    """Troubleshooting HTTP API Lambda integrations."""

    def fail(_: Any) -> object:
        raise FunctionError("ValueError", "no")

    world.answers["things"] = fail
    assert (await world.ask("GET", "/v1/things"))[:2] == (500, '{"message":"Internal Server Error"}')


async def test_a_slow_function_is_503(world: World) -> None:
    """Quotas for HTTP APIs: integration timeout 30 s, answered 503 {"message":"Service Unavailable"}."""
    world.answers["things"] = lambda _: asyncio.sleep(5)
    assert (await world.ask("GET", "/v1/things"))[:2] == (503, '{"message":"Service Unavailable"}')


async def test_too_large_a_body_is_413(world: World) -> None:
    """Quotas for HTTP APIs: payload size 10 MB (here made smaller)."""
    assert Limits().http_body_bytes == 10 * 1024 * 1024
    status, body, _ = await world.ask("POST", "/v1/things", data=b"x" * 100_001)
    assert (status, body) == (413, '{"message":"Request Entity Too Large"}')
    assert world.events == []


def _padded(line: str, url: str, head_bytes: int) -> dict[str, str]:
    """Headers that make a request of exactly that many bytes; the client adds Host, Accept, Accept-Encoding and User-Agent only where they are not given."""
    headers = {"Host": url.removeprefix("http://"), "Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "toy/1"}
    return headers | {"X-Padding": "x" * (head_bytes - len(line) - sum(map(len, headers.values())))}


async def test_request_line_and_header_values_have_10_240_bytes_and_one_more_is_431(world: World) -> None:
    """Quotas for HTTP APIs: total combined size of request line and header values 10,240 bytes. The status is RFC 6585's, section 5; AWS names none."""
    assert Limits().http_head_bytes == 10_240
    refused = (431, '{"message":"Request Header Fields Too Large"}')
    line = "GET /v1/things HTTP/1.1"
    assert (await world.ask("GET", "/v1/things", headers=_padded(line, world.url, 10_241)))[:2] == refused
    assert (await world.ask("GET", "/v1/things?" + "x" * 11_000))[:2] == refused
    assert (await world.ask("GET", "/v1/things", headers={f"X-{number}": "x" * 200 for number in range(60)}))[:2] == refused
    assert (await world.ask("GET", "/v1/mine/7", headers={"Authorization": "Bearer " + "x" * 500_000}))[:2] == refused
    assert world.events == [], "neither the function nor the authorizer is asked"
    assert (await world.ask("GET", "/v1/things", headers=_padded(line, world.url, 10_240)))[0] == 200


# --- Lambda authorizer


async def test_no_identity_source_is_401_without_asking(world: World) -> None:
    """Control access to HTTP APIs with AWS Lambda authorizers: a missing identity source is 401 and the function is not invoked."""
    assert (await world.ask("GET", "/v1/mine/7"))[:2] == (401, '{"message":"Unauthorized"}')
    assert world.events == []


async def test_the_authorizer_is_asked_with_payload_2_0_and_its_context_reaches_the_function(world: World) -> None:
    """Control access to HTTP APIs with AWS Lambda authorizers: payload 2.0, simple responses; context at requestContext.authorizer.lambda."""
    world.answers["authorizer"] = lambda _: {"isAuthorized": True, "context": {"account_id": "acc_1", "scopes": ["a", "b"], "n": 1}}
    status, _, _ = await world.ask("GET", "/v1/mine/7?x=1", headers={"Authorization": "Bearer t"})
    assert status == 200
    (first, asked), (second, event) = world.events
    assert (first, second) == ("authorizer", "things")
    assert (asked["version"], asked["type"], asked["identitySource"]) == ("2.0", "REQUEST", ["Bearer t"])
    assert re.fullmatch(r"arn:aws:execute-api:eu-central-1:\d{12}:\w+/\$default/GET/v1/mine/7", asked["routeArn"])
    assert (asked["routeKey"], asked["pathParameters"], asked["queryStringParameters"]) == ("GET /v1/mine/{thing_id}", {"thing_id": "7"}, {"x": "1"})
    assert event["requestContext"]["authorizer"] == {"lambda": {"account_id": "acc_1", "scopes": ["a", "b"], "n": 1}}


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [({"isAuthorized": False}, 403, "Forbidden"), ({"allowed": True}, 500, "Internal Server Error"), (None, 500, "Internal Server Error")],
)
async def test_what_the_authorizer_says_counts(world: World, answer: object, status: int, text: str) -> None:
    """Control access to HTTP APIs with AWS Lambda authorizers: false is 403; an error or an answer of another form is 500."""
    world.answers["authorizer"] = lambda _: answer
    assert (await world.ask("GET", "/v1/mine/7", headers={"Authorization": "x"}))[:2] == (status, json.dumps({"message": text}, separators=(",", ":")))
    assert [name for name, _ in world.events] == ["authorizer"]


# --- CORS

ORIGIN = "http://localhost:5173"


async def test_the_gateway_answers_preflights_itself(world: World) -> None:
    """Configure CORS for HTTP APIs: preflights are answered without an integration, even for guarded routes; a foreign origin gets no headers."""
    asking = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "authorization"}
    status, _, headers = await world.ask("OPTIONS", "/v1/mine/7", headers=asking)
    assert status == 204
    assert headers["access-control-allow-origin"] == ORIGIN
    assert "PUT" in headers["access-control-allow-methods"]
    assert "authorization" in headers["access-control-allow-headers"]
    _, _, headers = await world.ask("OPTIONS", "/v1/mine/7", headers=asking | {"Origin": "http://elsewhere"})
    assert "access-control-allow-origin" not in headers
    assert world.events == []


async def test_cors_headers_stand_on_every_answer_and_the_functions_own_are_ignored(world: World) -> None:
    """Configure CORS for HTTP APIs: "API Gateway ignores CORS headers returned from your backend integration"."""
    world.answers["things"] = lambda _: {"statusCode": 200, "headers": {"Access-Control-Allow-Origin": "*"}}
    for path, status in (("/v1/things", 200), ("/v1/mine/7", 401), ("/nowhere", 404)):
        got, _, headers = await world.ask("GET", path, headers={"Origin": ORIGIN})
        assert (got, headers.getall("access-control-allow-origin")) == (status, [ORIGIN])
    _, _, headers = await world.ask("GET", "/v1/things")
    assert "access-control-allow-origin" not in headers
