"""This API as an OpenAPI document."""

from __future__ import annotations

from adapters.settings import settings
from functions import edge
from functions.edge import Request
from functions.openapi_document import document
from heliograph.shapes import JsonObject


def describe(request: Request) -> JsonObject:
    return document(settings().issuer)


handler = edge.rest({"GET /v1/openapi.json": describe})
