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

from adapters.settings import now_ms, settings
from functions import admission, wiring
from functions.put_off import audit_refusal
from functions.routes import Http, http_routes, socket_routes
from functions.signing_out import close_sockets
from heliograph import errors
from heliograph.access import authorise, own
from heliograph.auth import Identity, identity_from
from heliograph.messages import Frame, Reference, parse_frame, reference
from heliograph.presence import Connection
from heliograph.shapes import SHAPES, JsonObject, check_idempotency_key, is_trace_id, parse_json

MAX_BODY_BYTES = 64 * 1024
ORDER_WAIT_S, ORDER_POLL_S = 0.8, 0.01
PROVES_ANEW = "reauth"
"""The one frame that is taken on a socket whose authentication has expired."""
LambdaEvent = dict[str, Any]

_HTTP: dict[str, Http] = {route.key: route for _, route in http_routes()}
_SOCKET = {route.key: route for _, route in socket_routes()}
_REFUSALS = {error.code: error for error in (errors.TokenExpired, errors.OriginRefused)}
"""What the authorizer says of a request that it lets through to be refused here; anything else is a bad token."""
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

    @property
    def action(self) -> str:
        """What the caller wants to do, as `access` names it; only on routes that carry a scope."""
        if self.route.scope is None:
            raise errors.Unauthenticated
        return self.route.scope


@dataclass(frozen=True, slots=True)
class Received:
    """A validated frame, with who sent it and through which socket."""

    frame: Frame
    identity: Identity
    connection_id: str
    generation: int
    now_ms: int

    @property
    def action(self) -> str:
        """What the sender wants to do, as `access` names it."""
        return _scope(self.frame.action)


def rest(handlers: Mapping[str, Callable[[Request], JsonObject]]) -> Callable[[LambdaEvent, Any], JsonObject]:
    """The Lambda handler of a function with HTTP routes: route key -> what answers it."""

    def handler(event: LambdaEvent, context: Any) -> JsonObject:
        given = event["headers"].get("x-trace-id")
        trace_id = str(given) if is_trace_id(given) else uuid.uuid4().hex
        route, caller = _HTTP[event["routeKey"]], list[Identity]()
        try:
            request, key = _request(event, route, trace_id, caller)
            answer = _answer(handlers[route.key], request, key, context)
            _log("request", trace_id, context, request.caller, route=route.key, status=route.status)
        except Exception as caught:
            return _refused(caught, trace_id, context, route.key, *caller)
        return _http_answer(route.status, answer, trace_id)

    return handler


def socket(actions: Mapping[str, Callable[[Received], JsonObject]]) -> Callable[[LambdaEvent, Any], JsonObject]:
    """The Lambda handler of a function with WebSocket routes: action -> what answers it with an acknowledgement."""

    def handler(event: LambdaEvent, context: Any) -> JsonObject:
        about, text = event["requestContext"], event.get("body") or ""
        about_frame = reference(text)
        trace_id, caller = about_frame.trace_id or uuid.uuid4().hex, list[Identity]()
        try:
            with _in_turn(identity_from(about.get("authorizer") or {}), about, about_frame) as identity:
                caller.append(identity)
                frame = parse_frame(text, _BODY_SHAPES)
                authorise(identity, _scope(frame.action), own(identity))
                received = Received(frame, identity, about["connectionId"], int(about["connectedAt"]), now_ms())
                answer = actions[frame.action](received)
            _log("frame", trace_id, context, identity, action=frame.action, room_id=frame.room_id)
        except Exception as caught:
            answer = _translated(caught, trace_id, context, about["routeKey"], *caller).body(trace_id, about_frame.id)
        return {"statusCode": 200, "body": json.dumps(answer, separators=(",", ":"))}

    return handler


def either(
    rest_handler: Callable[[LambdaEvent, Any], JsonObject], socket_handler: Callable[[LambdaEvent, Any], JsonObject]
) -> Callable[[LambdaEvent, Any], JsonObject]:
    """The Lambda handler of a function with both kinds of routes."""
    return lambda event, context: (socket_handler if "connectionId" in event["requestContext"] else rest_handler)(event, context)


@contextmanager
def _in_turn(who: Identity, about: Mapping[str, Any], about_frame: Reference) -> Iterator[Identity]:
    """Whoever sent this frame, as the session store knows them, once it is the frame's turn.

    Frames of one socket are taken in the order of client_seq, although workers run at once: waits ORDER_WAIT_S for a missing one, then goes on without it;
    OutOfOrder for one that comes after a later one. Without Redis nobody waits, nor after it lost the count: else every socket would hold a worker for
    ORDER_WAIT_S at the moment when all of them come back. Nor does a frame that is refused anyway, else a flood with gaps would hold every worker.
    """
    seq, connection_id, route_key = about_frame.client_seq, about["connectionId"], about["routeKey"]
    owner = (who.tenant_id, who.account_id, connection_id)
    verdict = admission.ask(who, _SOCKET[route_key].limit, connection_id)
    if seq is not None and verdict.last_seq is not None and not verdict.is_hopeless:
        _wait_for_turn(owner, seq, verdict.last_seq)
    try:
        yield _admitted(verdict, about, route_key)
    finally:
        if seq is not None:
            with suppress(errors.Unavailable):
                wiring.connections().advance_seq(*owner, seq)


def _admitted(verdict: admission.Verdict, about: Mapping[str, Any], route_key: str) -> Identity:
    """The sender; a socket that is nobody's any more is closed, whatever Redis knew of it when its session ended."""
    try:
        return verdict.admitted(now_ms(), may_be_expired=route_key == PROVES_ANEW)
    except errors.Unauthenticated as refusal:
        if reason := verdict.closes(refusal, now_ms(), settings().reauth_grace_s):
            own_socket = Connection(about["connectionId"], verdict.who.device_id, int(about["connectedAt"]), "online", now_ms())
            with suppress(errors.Unavailable):
                close_sockets(verdict.who.tenant_id, verdict.who.account_id, [own_socket], reason, uuid.uuid4().hex)
        raise


def _wait_for_turn(owner: tuple[str, str, str], seq: int, last: int | None) -> None:
    end_s = time.monotonic() + ORDER_WAIT_S
    while last is not None and last < seq - 1 and time.monotonic() < end_s:
        time.sleep(ORDER_POLL_S)
        try:
            last = wiring.connections().last_seq(*owner)
        except errors.Unavailable:
            return  # it went away meanwhile, and the count with it
    if last is not None and last >= seq:
        raise errors.OutOfOrder


def _scope(action: str) -> str:
    scope = _SOCKET[action].scope
    if scope is None:
        raise ValueError(f"{action} has no scope in the route table")
    return scope


def _request(event: LambdaEvent, route: Http, trace_id: str, caller: list[Identity]) -> tuple[Request, str | None]:
    """The validated request and its Idempotency-Key; puts who is asking into `caller`, for the log of a refusal."""
    if route.scope is not None:
        caller.append(_caller(event, route))
        authorise(caller[0], route.scope, own(caller[0]))
    else:
        address = admission.caller_address(event["headers"], event["requestContext"]["http"]["sourceIp"])
        if route.limit is not None:
            admission.admit_stranger(admission.address(address), *dict.fromkeys(("address", route.limit)))
    key = check_idempotency_key(event["headers"].get("idempotency-key")) if route.method == "POST" else None
    path = {name: str(value) for name, value in (event.get("pathParameters") or {}).items()}
    query = SHAPES[route.query].check(dict(event.get("queryStringParameters") or {}), "query") if route.query else {}
    body = SHAPES[route.body].check(parse_json(_body(event), MAX_BODY_BYTES), "body") if route.body else {}
    return Request(route, path, query, body, trace_id, now_ms(), caller[0] if caller else None), key


def _caller(event: LambdaEvent, route: Http) -> Identity:
    context = event["requestContext"].get("authorizer", {}).get("lambda") or {}
    if "refusal" in context:
        raise _REFUSALS.get(context["refusal"], errors.TokenInvalid)
    return admission.ask(identity_from(context), route.limit).admitted(now_ms())


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


def _refused(caught: Exception, trace_id: str, context: Any, route_key: str, *caller: Identity) -> JsonObject:
    error = _translated(caught, trace_id, context, route_key, *caller)
    answer = _http_answer(error.status, error.body(trace_id), trace_id)
    if error.retry_after_ms is not None:
        answer["headers"]["retry-after"] = str(-(-error.retry_after_ms // 1000))
    return answer


def _translated(caught: Exception, trace_id: str, context: Any, route_key: str, *caller: Identity) -> errors.HeliographError:
    if isinstance(caught, errors.HeliographError):
        notes = {"note": "; ".join(caught.__notes__)} if hasattr(caught, "__notes__") else {}  # why, in our own words: for the log, not for the caller
        _log("refused", trace_id, context, next(iter(caller), None), route=route_key, code=caught.code, **notes)
        if isinstance(caught, errors.Forbidden):
            for who in caller:
                _audit(who, route_key, caught.code, trace_id)
        return caught
    wiring.logger().error("internal error", trace_id=trace_id, route=route_key, exc_info=caught)
    return errors.Internal()


def _audit(who: Identity, route_key: str, code: str, trace_id: str) -> None:
    """A refusal goes to the ledger, as long as there are not too many of them, and never stands in the way of the answer."""
    with suppress(errors.RateLimited, errors.Unavailable):
        admission.admit_to_ledger(who)
        audit_refusal(who, route_key, code, trace_id)


def _http_answer(status: int, body: JsonObject, trace_id: str) -> JsonObject:
    headers = {"content-type": "application/json", "cache-control": "no-store", "x-trace-id": trace_id}
    return {"statusCode": status, "headers": headers, "body": json.dumps(body, separators=(",", ":"))}


def _log(what: str, trace_id: str, context: Any, identity: Identity | None, **fields: Any) -> None:
    if identity is not None:
        fields |= {"tenant_id": identity.tenant_id, "account_id": identity.account_id, "device_id": identity.device_id}
    wiring.logger().info(what, trace_id=trace_id, function=context.function_name, request_id=context.aws_request_id, **fields)
