"""The OpenAPI 3.1 document, generated from the route table and the shapes."""

from __future__ import annotations

import re

from functions.routes import Http, http_routes
from heliograph import errors
from heliograph.shapes import SHAPES, JsonObject

VERSION = "0.1.0"
_BY_GATEWAY = frozenset({"401", "413", "429", "500", "503"})
_GATEWAY_REFUSAL: JsonObject = {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}, "additionalProperties": False}
_EVERYWHERE = ("malformed", "internal", "unavailable", "rate_limited", "origin_refused")


def document(server_url: str) -> JsonObject:
    """The document for an API that is served at this URL."""
    paths: dict[str, JsonObject] = {}
    for function, route in http_routes():
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(function.name, route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Heliograph", "version": VERSION, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": server_url}],
        "paths": paths,
        "components": {
            "schemas": {name: shape.schema() for name, shape in SHAPES.items()} | {"Error": _error_schema(), "GatewayRefusal": _GATEWAY_REFUSAL},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _operation(tag: str, route: Http) -> JsonObject:
    operation: JsonObject = {
        "summary": route.summary,
        "operationId": re.sub(r"[^a-z]+", "_", f"{route.method}_{route.path}".lower()).strip("_"),
        "tags": [tag],
        "parameters": _parameters(route),
        "responses": {str(route.status): {"description": "Done.", "content": _content(route.answer)}} | _refusals(route),
    }
    if route.scope is not None:
        operation |= {"security": [{"bearer": []}], "x-scope": route.scope}
    if route.body:
        operation["requestBody"] = {"required": True, "content": _content(route.body)}
    return operation


def _parameters(route: Http) -> list[JsonObject]:
    in_path = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{(\w+)}", route.path)]
    shape = SHAPES[route.query] if route.query else None
    in_query = [{"name": name, "in": "query", "schema": kind.schema()} for name, kind in shape.optional.items()] if shape else []
    key = {"name": "Idempotency-Key", "in": "header", "required": True, "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}}
    return [*in_path, *in_query, *([key] if route.method == "POST" else [])]


def _refusals(route: Http) -> dict[str, JsonObject]:
    codes = [*_EVERYWHERE, *route.errors, *(("token_invalid", "token_expired", "forbidden") if route.scope else ())]
    by_status: dict[str, list[str]] = {}
    for error in errors.catalogue():
        if error.code in codes or (route.method == "POST" and error.status in (409, 413)):
            by_status.setdefault(str(error.status), []).append(error.code)
    answers = {status: {"description": ", ".join(found), "content": _refusal(status)} for status, found in sorted(by_status.items())}
    return answers | {"431": {"description": "The headers are larger than API Gateway takes.", "content": _content("GatewayRefusal")}}


def _content(name: str | None) -> JsonObject:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"} if name else {}}}


def _refusal(status: str) -> JsonObject:
    """Ours has a code; API Gateway's own, before any function, only a message."""
    if status not in _BY_GATEWAY:
        return _content("Error")
    return {"application/json": {"schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Error", "GatewayRefusal")]}}}


def _error_schema() -> JsonObject:
    return {
        "type": "object",
        "required": ["code", "message", "retryable", "trace_id"],
        "properties": {
            "code": {"type": "string", "enum": sorted({error.code for error in errors.catalogue()})},
            "message": {"type": "string"},
            "retryable": {"type": "boolean"},
            "retry_after_ms": {"type": "integer"},
            "trace_id": {"type": "string"},
            "re": {"type": "string"},
        },
    }
