"""The HTTP API: finds the route, asks the authorizer, invokes, answers; CORS as API Gateway's own configuration does it.

Source: API Gateway developer guide, "HTTP APIs"; the shapes of events and answers stand in gateway_events.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from aiohttp import web
from multidict import CIMultiDict

from functions.routes import Authorizer, Function, Http
from local import gateway_events as events
from local.gateway_limits import THROTTLED, Invoke, Limits, Throttle
from local.lambdas import FunctionError

_log = logging.getLogger(__name__)
CORS_HEADERS: Final = ("authorization", "content-type", "idempotency-key", "traceparent", "x-trace-id")
CORS_METHODS: Final = ("GET", "POST", "PUT", "DELETE")
CORS_MAX_AGE_S: Final = 300
PARSER_BYTES: Final = 1024 * 1024  # what the HTTP parser lets pass as one line: far above our limit, so that ours answers


@dataclass(frozen=True, slots=True)
class _Route:
    function: str
    route: Http
    pattern: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class _Refused(Exception):
    answer: events.HttpAnswer


class HttpApi:
    """Answers the requests of the HTTP API."""

    def __init__(self, functions: Sequence[Function], invoke: Invoke, limits: Limits, region: str, allow_origins: Sequence[str], throttle: Throttle) -> None:
        self._invoke, self._limits, self._region, self._allow_origins, self._throttle = invoke, limits, region, frozenset(allow_origins), throttle
        found = [(function.name, route) for function in functions for route in function.routes if isinstance(route, Http)]
        self._routes = [_Route(name, route, _pattern(route.path)) for name, route in sorted(found, key=lambda pair: pair[1].path.count("{"))]
        identities = {route.identity_header: function.name for function in functions for route in function.routes if isinstance(route, Authorizer)}
        self._authorizer = identities.get("authorization")

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request."""
        origin, request_id = request.headers.get("origin"), str(uuid.uuid4())
        if _head_bytes(request) > self._limits.http_head_bytes:
            answer = events.http_refusal(431, "Request Header Fields Too Large")
        elif request.method == "OPTIONS" and self._allow_origins and origin and "access-control-request-method" in request.headers:
            answer = events.HttpAnswer(204)
        else:
            try:
                answer = await self._answer(request, request_id)
            except _Refused as refused:
                answer = refused.answer
        headers = CIMultiDict(answer.headers)
        headers["apigw-requestid"] = request_id
        for cookie in answer.cookies:
            headers.add("set-cookie", cookie)
        self._add_cors(headers, origin, is_preflight=request.method == "OPTIONS")
        return web.Response(status=answer.status, headers=headers, body=answer.body or None)

    def _add_cors(self, headers: CIMultiDict[str], origin: str | None, *, is_preflight: bool) -> None:
        """With a CORS configuration API Gateway ignores the function's own CORS headers."""
        if not self._allow_origins:
            return
        for name in [name for name in headers if name.lower().startswith("access-control-")]:
            headers.popall(name, None)
        if origin is None or not ({"*", origin} & self._allow_origins):
            return
        headers["access-control-allow-origin"] = "*" if "*" in self._allow_origins else origin
        headers["vary"] = "origin"
        if is_preflight:
            headers["access-control-allow-methods"] = ",".join(CORS_METHODS)
            headers["access-control-allow-headers"] = ",".join(CORS_HEADERS)
            headers["access-control-max-age"] = str(CORS_MAX_AGE_S)
        else:
            headers["access-control-expose-headers"] = "apigw-requestid,retry-after"

    async def _answer(self, incoming: web.BaseRequest, request_id: str) -> events.HttpAnswer:
        path, _, query = incoming.raw_path.partition("?")
        found, parameters = self._find(incoming.method, path)
        if not self._throttle.admits(found.route.key, asyncio.get_running_loop().time()):
            return events.http_refusal(429, THROTTLED)
        try:
            body = await incoming.read()
        except web.HTTPRequestEntityTooLarge:
            return events.http_refusal(413, "Request Entity Too Large")
        request = events.HttpRequest(
            incoming.method, path, query, _forwarded(incoming), body, incoming.remote or "127.0.0.1", request_id, time.time_ns() // 1_000_000
        )
        authorizer = await self._authorize(request, found.route, parameters) if found.route.scope is not None else None
        event = events.http_event(request, found.route.key, parameters, authorizer)
        try:
            return events.parse_http_answer(await asyncio.wait_for(self._invoke(found.function, event), self._limits.http_timeout_s))
        except TimeoutError:
            return events.http_refusal(503, "Service Unavailable")
        except (FunctionError, events.MalformedAnswer) as error:
            _log.warning("%s %s: %s", found.function, found.route.key, error)
            return events.http_refusal(500, "Internal Server Error")

    def _find(self, method: str, path: str) -> tuple[_Route, Mapping[str, str]]:
        for candidate in self._routes:
            if candidate.route.method == method and (match := candidate.pattern.fullmatch(path)):
                return candidate, {name: unquote(value) for name, value in match.groupdict().items()}
        raise _Refused(events.http_refusal(404, "Not Found"))

    async def _authorize(self, request: events.HttpRequest, route: Http, parameters: Mapping[str, str]) -> Mapping[str, object]:
        identity = next((value for name, value in request.headers if name.lower() == "authorization" and value), None)
        if identity is None:
            raise _Refused(events.http_refusal(401, "Unauthorized"))
        if self._authorizer is None:
            raise ValueError(f"{route.key} needs an authorizer and the table has none")
        event = events.http_authorizer_event(request, route.key, parameters, identity, self._region)
        try:
            answer = await asyncio.wait_for(self._invoke(self._authorizer, event), self._limits.authorizer_timeout_s)
            is_authorized, context = events.parse_simple_response(answer)
        except (FunctionError, events.MalformedAnswer, TimeoutError) as error:
            _log.warning("authorizer for %s: %s", route.key, error)
            raise _Refused(events.http_refusal(500, "Internal Server Error")) from error
        if not is_authorized:
            raise _Refused(events.http_refusal(403, "Forbidden"))
        return {"lambda": context}


def _head_bytes(request: web.BaseRequest) -> int:
    """The request line and the values of all headers, as API Gateway's quota counts them."""
    line = f"{request.method} {request.raw_path} HTTP/{request.version.major}.{request.version.minor}"
    return len(line.encode("utf-8", "surrogateescape")) + sum(len(value) for _, value in request.raw_headers)


def _forwarded(request: web.BaseRequest) -> list[tuple[str, str]]:
    """The client's headers and those API Gateway adds."""
    headers = [(name.decode("latin-1"), value.decode("utf-8", "replace")) for name, value in request.raw_headers]
    hop = {"connection", "keep-alive", "transfer-encoding", "x-amzn-trace-id"}
    trace = f"Root=1-{time.time_ns() // 1_000_000_000:08x}-{uuid.uuid4().hex[:24]}"
    kept = [(name, value) for name, value in headers if name.lower() not in hop]
    return [
        *kept,
        ("x-amzn-trace-id", trace),
        ("x-forwarded-for", request.remote or ""),
        ("x-forwarded-port", request.host.rpartition(":")[2]),
        ("x-forwarded-proto", "http"),
    ]


def _pattern(path: str) -> re.Pattern[str]:
    """API Gateway's path as a regular expression; `{name}` is one segment, `{name+}` the rest."""
    parts = re.split(r"\{(\w+)(\+?)\}", path)
    pieces = [re.escape(parts[0])]
    for name, greedy, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        pieces.append(f"(?P<{name}>{'.+' if greedy else '[^/]+'}){re.escape(literal)}")
    return re.compile("".join(pieces))
