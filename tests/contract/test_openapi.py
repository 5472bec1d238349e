"""The OpenAPI document is one by the specification's own schema, and says what the route table says."""

from __future__ import annotations

import re

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError

from functions.openapi_document import document
from functions.routes import http_routes
from heliograph.shapes import JsonObject

DOCUMENT = document("https://api.example.com")


def operations() -> dict[str, JsonObject]:
    return {f"{method.upper()} {path}": operation for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()}


def test_it_is_a_valid_openapi_3_1_document() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_the_validator_finds_what_is_wrong() -> None:
    broken = DOCUMENT | {"paths": {"/v1/rooms/{room_id}": {"get": {"responses": {"200": {"description": "Done."}}}}}}
    with pytest.raises(OpenAPIValidationError, match="room_id"):
        OpenAPIV31SpecValidator(broken).validate()


def test_every_route_is_an_operation_and_every_operation_a_route() -> None:
    assert set(operations()) == {route.key for _, route in http_routes()}


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for operation in operations().values()]
    assert len(ids) == len(set(ids))


def test_what_needs_a_token_says_so_and_what_is_public_does_not() -> None:
    scopes = {route.key: route.scope for _, route in http_routes()}
    assert {key: operation.get("x-scope") for key, operation in operations().items()} == scopes
    assert {key for key, operation in operations().items() if "security" in operation} == {key for key, scope in scopes.items() if scope}


def test_every_reference_leads_somewhere() -> None:
    names = set(re.findall(r"#/components/schemas/(\w+)", str(DOCUMENT["paths"])))
    assert names <= set(DOCUMENT["components"]["schemas"])
