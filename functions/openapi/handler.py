"""This API as an OpenAPI and an AsyncAPI document."""

from __future__ import annotations

from adapters.settings import settings
from functions import asyncapi_document, edge, openapi_document
from functions.edge import Request
from heliograph.shapes import JsonObject


def describe_rest(request: Request) -> JsonObject:
    return openapi_document.document(settings().issuer)


def describe_socket(request: Request) -> JsonObject:
    return asyncapi_document.document(settings().connections_url)


handler = edge.rest({"GET /v1/openapi.json": describe_rest, "GET /v1/asyncapi.json": describe_socket})
