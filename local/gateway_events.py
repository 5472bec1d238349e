"""The events API Gateway makes and the answers it understands, as pure functions over plain data.

Sources: API Gateway developer guide, "Create AWS Lambda proxy integrations for HTTP APIs" (payload 2.0), "Control access to HTTP APIs with Lambda
authorizers", "Set up integration requests for WebSocket APIs", "Output from an API Gateway Lambda authorizer".
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from local.gateway_limits import ACCOUNT_ID, HTTP_API_ID, SOCKET_API_ID

Event = dict[str, Any]
_TEXT_TYPE: Final = re.compile(r"text/.*|application/(json|xml|javascript)|application/.*\+(json|xml)", re.IGNORECASE)
_HOP_HEADERS: Final = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding", "upgrade", "date", "server"})


class MalformedAnswer(Exception):
    """The function answered something API Gateway cannot make a response of."""


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as it was sent: undecoded path and query, headers in order."""

    method: str
    path: str
    query: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    source_ip: str
    request_id: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What goes back to the client."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    cookies: tuple[str, ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Handshake:
    """What a WebSocket connection knows from its opening request; every later event is made from it."""

    connection_id: str
    stage: str
    headers: Sequence[tuple[str, str]]
    query: str
    source_ip: str
    connected_at_ms: int
    authorizer: Mapping[str, object] | None = None

    def header(self, name: str) -> str | None:
        """The last value of a header, whatever its case."""
        return next((value for key, value in reversed(self.headers) if key.lower() == name), None)


def message(text: str) -> bytes:
    """API Gateway's own answer body."""
    return json.dumps({"message": text}, separators=(",", ":")).encode()


def http_refusal(status: int, text: str) -> HttpAnswer:
    """An answer the gateway gives by itself."""
    return HttpAnswer(status, {"content-type": "application/json"}, body=message(text))


# --- HTTP API, payload format 2.0


def http_event(request: HttpRequest, route_key: str, path_parameters: Mapping[str, str], authorizer: Mapping[str, object] | None) -> Event:
    """The event of a Lambda proxy integration. Fields without a value are absent, not null."""
    event = _http_common(request, route_key, path_parameters)
    if authorizer is not None:
        event["requestContext"]["authorizer"] = authorizer
    if request.body:
        event["body"], event["isBase64Encoded"] = _body(request)
    else:
        event["isBase64Encoded"] = False
    return event


def http_authorizer_event(request: HttpRequest, route_key: str, path_parameters: Mapping[str, str], identity: str, region: str) -> Event:
    """The event of a Lambda authorizer, payload 2.0."""
    event = _http_common(request, route_key, path_parameters)
    arn = f"arn:aws:execute-api:{region}:{ACCOUNT_ID}:{HTTP_API_ID}/$default/{request.method}{request.path}"
    return {**event, "type": "REQUEST", "routeArn": arn, "identitySource": [identity]}


def _http_common(request: HttpRequest, route_key: str, path_parameters: Mapping[str, str]) -> Event:
    headers, cookies = _joined(request.headers)
    event: Event = {"version": "2.0", "routeKey": route_key, "rawPath": unquote(request.path), "rawQueryString": request.query}
    if cookies:
        event["cookies"] = cookies
    event["headers"] = headers
    if pairs := parse_qsl(request.query, keep_blank_values=True):
        event["queryStringParameters"] = {name: ",".join(v for n, v in pairs if n == name) for name, _ in pairs}
    domain = headers.get("host", "localhost")
    event["requestContext"] = {
        "accountId": ACCOUNT_ID,
        "apiId": HTTP_API_ID,
        "domainName": domain,
        "domainPrefix": domain.partition(".")[0],
        "http": {
            "method": request.method,
            "path": unquote(request.path),
            "protocol": "HTTP/1.1",
            "sourceIp": request.source_ip,
            "userAgent": headers.get("user-agent", ""),
        },
        "requestId": request.request_id,
        "routeKey": route_key,
        "stage": "$default",
        "time": clf_time(request.at_ms),
        "timeEpoch": request.at_ms,
    }
    if path_parameters:
        event["pathParameters"] = dict(path_parameters)
    return event


def _joined(headers: Sequence[tuple[str, str]]) -> tuple[dict[str, str], list[str]]:
    """Lower-case names, several values of one name joined by a comma; cookies apart."""
    joined: dict[str, str] = {}
    cookies: list[str] = []
    for name, value in headers:
        lowered = name.lower()
        if lowered == "cookie":
            cookies += [part.strip() for part in value.split(";") if part.strip()]
        else:
            joined[lowered] = f"{joined[lowered]},{value}" if lowered in joined else value
    return joined, cookies


def _body(request: HttpRequest) -> tuple[str, bool]:
    content_type = next((value for name, value in request.headers if name.lower() == "content-type"), "")
    if _TEXT_TYPE.fullmatch(content_type.partition(";")[0].strip()):
        try:
            return request.body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(request.body).decode(), True


def parse_http_answer(answer: object) -> HttpAnswer:
    """The response of a function: a dict with `statusCode`, or any value, which is then the JSON body of a 200. Raises MalformedAnswer."""
    if not isinstance(answer, dict) or "statusCode" not in answer:
        body = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
        return HttpAnswer(200, {"content-type": "application/json"}, body=body.encode())
    headers, cookies = _or(answer.get("headers"), {}), _or(answer.get("cookies"), [])
    if not isinstance(headers, dict) or not isinstance(cookies, list):
        raise MalformedAnswer("headers must be an object, cookies a list")
    lowered = {str(name).lower(): _header_value(value) for name, value in headers.items()}
    lowered = {name: value for name, value in lowered.items() if name not in _HOP_HEADERS}
    lowered.setdefault("content-type", "text/plain;charset=UTF-8")
    return HttpAnswer(_status(answer), lowered, tuple(map(str, cookies)), _answer_body(answer))


def _or(value: object, otherwise: object) -> object:
    return otherwise if value is None else value


def _header_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise MalformedAnswer("a header value must be a string, number or boolean")
    return str(value)


def _status(answer: Mapping[str, object]) -> int:
    status = answer.get("statusCode", 200)
    if isinstance(status, bool) or not re.fullmatch(r"[1-5]\d\d", str(status)):
        raise MalformedAnswer(f"statusCode {status!r} is not a status")
    return int(str(status))


def _answer_body(answer: Mapping[str, object]) -> bytes:
    body = answer.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise MalformedAnswer("body must be a string")
    try:
        return base64.b64decode(body, validate=True) if answer.get("isBase64Encoded") else body.encode()
    except binascii.Error as error:
        raise MalformedAnswer("body is not base64") from error


def parse_simple_response(answer: object) -> tuple[bool, Mapping[str, object] | None]:
    """A simple authorizer response `{isAuthorized, context?}`. Raises MalformedAnswer."""
    if not isinstance(answer, dict) or not isinstance(answer.get("isAuthorized"), bool):
        raise MalformedAnswer("isAuthorized must be a boolean")
    context = answer.get("context")
    if context is not None and not isinstance(context, dict):
        raise MalformedAnswer("context must be an object")
    return answer["isAuthorized"], context


# --- WebSocket API


def connect_event(handshake: Handshake, request_id: str) -> Event:
    """`$connect`: the only event with the client's headers and query."""
    return {
        **_opening(handshake),
        "requestContext": socket_context(handshake, "$connect", "CONNECT", request_id, handshake.connected_at_ms),
        "isBase64Encoded": False,
    }


def socket_authorizer_event(handshake: Handshake, request_id: str, region: str) -> Event:
    """The REQUEST authorizer of `$connect`."""
    context = socket_context(handshake, "$connect", "CONNECT", request_id, handshake.connected_at_ms)
    return {"type": "REQUEST", "methodArn": method_arn(handshake.stage, region), **_opening(handshake), "stageVariables": {}, "requestContext": context}


def message_event(handshake: Handshake, route_key: str, request_id: str, message_id: str, body: str, at_ms: int) -> Event:
    """One message of the client: no headers, no query."""
    context = socket_context(handshake, route_key, "MESSAGE", request_id, at_ms) | {"messageId": message_id}
    return {"requestContext": context, "body": body, "isBase64Encoded": False}


def disconnect_event(handshake: Handshake, request_id: str, code: int, reason: str, at_ms: int) -> Event:
    """`$disconnect`: the gateway's own few headers, and how the socket closed."""
    host = handshake.header("host") or ""
    headers = {"Host": host, "x-api-key": "", "X-Forwarded-For": "", "x-restapi": ""}
    context = socket_context(handshake, "$disconnect", "DISCONNECT", request_id, at_ms)
    context |= {"disconnectStatusCode": code, "disconnectReason": reason or ("Client-side close frame status not set" if code == 1005 else "")}
    return {"headers": headers, "multiValueHeaders": {name: [value] for name, value in headers.items()}, "requestContext": context, "isBase64Encoded": False}


def socket_context(handshake: Handshake, route_key: str, event_type: str, request_id: str, at_ms: int) -> Event:
    """The `requestContext` that all WebSocket events share; the authorizer's context stands in every event after it."""
    context: Event = {
        "routeKey": route_key,
        "eventType": event_type,
        "extendedRequestId": request_id,
        "requestTime": clf_time(at_ms),
        "messageDirection": "IN",
        "stage": handshake.stage,
        "connectedAt": handshake.connected_at_ms,
        "requestTimeEpoch": at_ms,
        "identity": identity_of(handshake),
        "requestId": request_id,
        "domainName": handshake.header("host") or "localhost",
        "connectionId": handshake.connection_id,
        "apiId": SOCKET_API_ID,
    }
    if handshake.authorizer is not None:
        context["authorizer"] = dict(handshake.authorizer)
    return context


def identity_of(handshake: Handshake) -> dict[str, str]:
    """Who connected, as events and `GET /@connections` tell it."""
    user_agent = handshake.header("user-agent")
    return {"sourceIp": handshake.source_ip} | ({"userAgent": user_agent} if user_agent else {})


def _opening(handshake: Handshake) -> Event:
    many: dict[str, list[str]] = {}
    for name, value in handshake.headers:
        many.setdefault(name, []).append(value)
    event: Event = {"headers": {name: values[-1] for name, values in many.items()}, "multiValueHeaders": many}
    if pairs := parse_qsl(handshake.query, keep_blank_values=True):
        event["queryStringParameters"] = dict(pairs)
        event["multiValueQueryStringParameters"] = {name: [v for n, v in pairs if n == name] for name, _ in pairs}
    return event


def method_arn(stage: str, region: str) -> str:
    """What the authorizer of `$connect` is asked about."""
    return f"arn:aws:execute-api:{region}:{ACCOUNT_ID}:{SOCKET_API_ID}/{stage}/$connect"


def select_route(body: str, keys: Mapping[str, object]) -> str | None:
    """`$request.body.action`, else `$default`, else None."""
    try:
        frame = json.loads(body)
    except (ValueError, RecursionError):  # nesting too deep for the parser is not JSON either
        frame = None
    action = frame.get("action") if isinstance(frame, dict) else None
    if isinstance(action, str) and action in keys and not action.startswith("$"):
        return action
    return "$default" if "$default" in keys else None


def error_frame(text: str, connection_id: str, request_id: str) -> str:
    """API Gateway's own frame to a client."""
    return json.dumps({"message": text, "connectionId": connection_id, "requestId": request_id}, separators=(",", ":"))


def parse_socket_answer(answer: object) -> HttpAnswer:
    """What a function of the WebSocket API returned; raises MalformedAnswer unless it is an object with the proxy's fields."""
    if not isinstance(answer, dict):
        raise MalformedAnswer("a WebSocket function must return an object")
    headers = _or(answer.get("headers"), {})
    if not isinstance(headers, dict):
        raise MalformedAnswer("headers must be an object")
    return HttpAnswer(_status(answer), {str(name).lower(): _header_value(value) for name, value in headers.items()}, (), _answer_body(answer))


def parse_policy(answer: object, arn: str) -> tuple[bool, Mapping[str, object]]:
    """Whether an IAM policy lets `execute-api:Invoke` pass for this ARN, and the context for later events. Raises MalformedAnswer.

    Context values reach integrations as strings; a value that is neither string, number nor boolean is an error.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("principalId"), str) or not isinstance(answer.get("policyDocument"), dict):
        raise MalformedAnswer("principalId and policyDocument are needed")
    context = answer.get("context") or {}
    if not isinstance(context, dict) or any(not isinstance(value, str | int | float | bool) for value in context.values()):
        raise MalformedAnswer("context must be flat: strings, numbers, booleans")
    statements = answer["policyDocument"].get("Statement", [])
    effects = {statement.get("Effect") for statement in _many(statements) if isinstance(statement, dict) and _covers(statement, arn)}
    strings = {str(name): str(value).lower() if isinstance(value, bool) else str(value) for name, value in context.items()}
    return effects == {"Allow"}, {"principalId": answer["principalId"], "integrationLatency": 0, **strings}


def _covers(statement: Mapping[str, object], arn: str) -> bool:
    actions = [str(action).lower() for action in _many(statement.get("Action"))]
    resources = [str(resource) for resource in _many(statement.get("Resource"))]
    return any(fnmatch.fnmatchcase("execute-api:invoke", action) for action in actions) and any(fnmatch.fnmatchcase(arn, _escaped(r)) for r in resources)


def _escaped(pattern: str) -> str:
    return pattern.replace("[", "[[]")


def _many(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def clf_time(at_ms: int) -> str:
    """The common log format's time, as `requestTime` has it."""
    return time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(at_ms // 1000))
