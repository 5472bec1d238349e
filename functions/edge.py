"""The edge of every function: a Lambda event in, a validated request or frame to the handler, one wire form for answers and errors out.

The only broad `except` of the functions stands here: it logs with the trace_id and answers "internal".
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from adapters.settings import now_ms
from functions import wiring
from functions.routes import Http, http_routes, socket_routes
from heliograph import errors
from heliograph.auth import Identity, identity_from
from heliograph.messages import Frame, Reference, parse_frame, reference
from heliograph.shapes import SHAPES, JsonObject, check_idempotency_key, is_trace_id, parse_json

MAX_BODY_BYTES = 64 * 1024
ORDER_WAIT_S, ORDER_POLL_S = 0.8, 0.01
LambdaEvent = dict[str, Any]

_HTTP: dict[str, Http] = {route.key: route for _, route in http_routes()}
_SOCKET = {route.key: route for _, route in socket_routes()}
_BODY_SHAPES = {key: route.body for key, route in _SOCKET.items() if not key.startswith("$")}


@dataclass(frozen=True, slots=True)
class Request:
    """A validated call of a REST route."""

    route: Http
    path: dict[str, str]
    query: JsonObject
    body: JsonObject
    trace_id: str
    now_ms: int
    caller: Identity | None = None

    @property
    def identity(self) -> Identity:
        """Who is asking; only on routes that carry a scope."""
        if self.caller is None:
            raise errors.Unauthenticated
        return self.caller


@dataclass(frozen=True, slots=True)
class Received:
    """A validated frame, with who sent it and through which socket."""

    frame: Frame
    identity: Identity
    connection_id: str
    generation: int
    now_ms: int


def rest(handlers: Mapping[str, Callable[[Request], JsonObject]]) -> Callable[[LambdaEvent, Any], JsonObject]:
    """The Lambda handler of a function with HTTP routes: route key -> what answers it."""

    def handler(event: LambdaEvent, context: Any) -> JsonObject:
        given = event["headers"].get("x-trace-id")
        trace_id = str(given) if is_trace_id(given) else uuid.uuid4().hex
        route = _HTTP[event["routeKey"]]
        try:
            request, key = _request(event, route, trace_id)
            answer = _answer(handlers[route.key], request, key, context)
            _log("request", trace_id, context, request.caller, route=route.key, status=route.status)
        except Exception as caught:
            return _refused(caught, trace_id, context, route.key)
        return _http_answer(route.status, answer, trace_id)

    return handler


def socket(actions: Mapping[str, Callable[[Received], JsonObject]]) -> Callable[[LambdaEvent, Any], JsonObject]:
    """The Lambda handler of a function with WebSocket routes: action -> what answers it with an acknowledgement."""

    def handler(event: LambdaEvent, context: Any) -> JsonObject:
        about, text = event["requestContext"], event.get("body") or ""
        about_frame = reference(text)
        trace_id = about_frame.trace_id or uuid.uuid4().hex
        try:
            identity = identity_from(about.get("authorizer") or {})
            with _in_turn(identity, about["connectionId"], about_frame):
                frame = parse_frame(text, _BODY_SHAPES)
                identity.must_have(_SOCKET[frame.action].scope)
                received = Received(frame, identity, about["connectionId"], int(about["connectedAt"]), now_ms())
                answer = actions[frame.action](received)
            _log("frame", trace_id, context, identity, action=frame.action, room_id=frame.room_id)
        except Exception as caught:
            answer = _translated(caught, trace_id, context, about["routeKey"]).body(trace_id, about_frame.id)
        return {"statusCode": 200, "body": json.dumps(answer, separators=(",", ":"))}

    return handler


def either(
    rest_handler: Callable[[LambdaEvent, Any], JsonObject], socket_handler: Callable[[LambdaEvent, Any], JsonObject]
) -> Callable[[LambdaEvent, Any], JsonObject]:
    """The Lambda handler of a function with both kinds of routes."""
    return lambda event, context: (socket_handler if "connectionId" in event["requestContext"] else rest_handler)(event, context)


@contextmanager
def _in_turn(identity: Identity, connection_id: str, about_frame: Reference) -> Iterator[None]:
    """Frames of one socket in the order of client_seq, although workers run at once.

    Waits ORDER_WAIT_S for a missing one, then goes on without it; OutOfOrder for one that comes after a later one. Without Redis nobody waits, nor after
    it lost the count: else every socket would hold a worker for ORDER_WAIT_S at the moment when all of them come back.
    """
    seq, owner = about_frame.client_seq, (identity.tenant_id, identity.account_id, connection_id)
    if seq is None:
        yield
        return
    try:
        _wait_for_turn(owner, seq)
    except errors.Unavailable:
        wiring.logger().warning("order is not checked: no session store", connection_id=connection_id)
    try:
        yield
    finally:
        with suppress(errors.Unavailable):
            wiring.connections().advance_seq(*owner, seq)


def _wait_for_turn(owner: tuple[str, str, str], seq: int) -> None:
    end_s = time.monotonic() + ORDER_WAIT_S
    while (last := wiring.connections().last_seq(*owner)) is not None and last < seq - 1 and time.monotonic() < end_s:
        time.sleep(ORDER_POLL_S)
    if last is not None and last >= seq:
        raise errors.OutOfOrder


def _request(event: LambdaEvent, route: Http, trace_id: str) -> tuple[Request, str | None]:
    caller = _caller(event, route)
    key = check_idempotency_key(event["headers"].get("idempotency-key")) if route.method == "POST" else None
    path = {name: str(value) for name, value in (event.get("pathParameters") or {}).items()}
    query = SHAPES[route.query].check(dict(event.get("queryStringParameters") or {}), "query") if route.query else {}
    body = SHAPES[route.body].check(parse_json(_body(event), MAX_BODY_BYTES), "body") if route.body else {}
    return Request(route, path, query, body, trace_id, now_ms(), caller), key


def _caller(event: LambdaEvent, route: Http) -> Identity | None:
    if route.scope is None:
        return None
    context = event["requestContext"].get("authorizer", {}).get("lambda") or {}
    if "refusal" in context:
        raise errors.TokenExpired if context["refusal"] == errors.TokenExpired.code else errors.TokenInvalid
    identity = identity_from(context)
    identity.must_have(route.scope)
    return identity


def _body(event: LambdaEvent) -> bytes:
    text = event.get("body") or "{}"
    return base64.b64decode(text) if event.get("isBase64Encoded") else text.encode("utf-8", "surrogatepass")


def _answer(handle: Callable[[Request], JsonObject], request: Request, key: str | None, context: Any) -> JsonObject:
    if request.route.replay != "stored" or key is None:
        return handle(request)
    from adapters.idempotency_mongo import once

    owner = f"{request.identity.tenant_id}/{request.identity.account_id}"
    full_key = f"{owner}/{request.route.method} {request.route.path}/{json.dumps(request.path)}/{key}"
    return once(wiring.database().idempotency, full_key, request.body, context, lambda: handle(request))


def _refused(caught: Exception, trace_id: str, context: Any, route_key: str) -> JsonObject:
    error = _translated(caught, trace_id, context, route_key)
    answer = _http_answer(error.status, error.body(trace_id), trace_id)
    if error.retry_after_ms is not None:
        answer["headers"]["retry-after"] = str(-(-error.retry_after_ms // 1000))
    return answer


def _translated(caught: Exception, trace_id: str, context: Any, route_key: str) -> errors.HeliographError:
    if isinstance(caught, errors.HeliographError):
        _log("refused", trace_id, context, None, route=route_key, code=caught.code)
        return caught
    wiring.logger().error("internal error", trace_id=trace_id, route=route_key, exc_info=caught)
    return errors.Internal()


def _http_answer(status: int, body: JsonObject, trace_id: str) -> JsonObject:
    headers = {"content-type": "application/json", "cache-control": "no-store", "x-trace-id": trace_id}
    return {"statusCode": status, "headers": headers, "body": json.dumps(body, separators=(",", ":"))}


def _log(what: str, trace_id: str, context: Any, identity: Identity | None, **fields: Any) -> None:
    if identity is not None:
        fields |= {"tenant_id": identity.tenant_id, "account_id": identity.account_id, "device_id": identity.device_id}
    wiring.logger().info(what, trace_id=trace_id, function=context.function_name, request_id=context.aws_request_id, **fields)
