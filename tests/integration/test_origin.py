"""With CloudFront before the APIs nobody comes past it, on public routes, guarded ones and `$connect`; without it everything is as it was.

The functions' own handlers, with real stores and API Gateway's events around them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import pytest

from adapters import settings as settings_module
from adapters.settings import PREFIX
from bench._signal_world import new_id
from functions import wiring
from heliograph.auth import SCOPES, Identity
from tests.conftest import Stores
from tests.integration.access_world import SOURCE_IP, AccessWorld, Asked, OpenSocket, access_world

CURRENT, PREVIOUS = "the-secret-of-today", "the-secret-of-yesterday"
VIEWER, VIEWER_V6 = "203.0.113.9", "2001:db8:1:2::9"
Headers = Sequence[tuple[str, str]]
REFUSED: Final[dict[str, Headers]] = {
    "no secret": [],
    "an empty secret": [("x-heliograph-origin", "")],
    "a wrong secret": [("x-heliograph-origin", "the-secret-of-tomorrow")],
    "part of the secret": [("x-heliograph-origin", CURRENT[:-1])],
    "only an address": [("CloudFront-Viewer-Address", f"{VIEWER}:1234")],
    "a wrong secret with an address": [("x-heliograph-origin", "guess"), ("CloudFront-Viewer-Address", f"{VIEWER}:1234")],
}
TAKEN: Final[dict[str, Headers]] = {"the current secret": [("x-heliograph-origin", CURRENT)], "the previous secret": [("X-Heliograph-Origin", PREVIOUS)]}
PUBLIC: Final = ("POST /v1/tokens", "GET /v1/jwks.json", "GET /v1/openapi.json", "GET /v1/asyncapi.json")


@pytest.fixture(scope="module")
def world(stores: Stores) -> Iterator[AccessWorld]:
    with access_world(stores.redis_url, stores.mongodb_uri) as made:
        made.cloud.secrets["origin"] = {"current": CURRENT, "previous": PREVIOUS}
        os.environ[PREFIX + "LIMITS"] = "address=500/0.1,sign_in=100/0.1"  # buckets that are still there when a test looks
        settings_module.settings.cache_clear()
        wiring.limits.cache_clear()
        yield made


@pytest.fixture(autouse=True)
def no_buckets(world: AccessWorld) -> None:
    for key in world.redis.keys("*limit:*"):
        world.redis.delete(key)


@contextmanager
def behind_cloudfront(world: AccessWorld, headers: Headers) -> Iterator[None]:
    """The setting is made; every request and handshake comes with these headers."""
    os.environ[PREFIX + "ORIGIN_SECRET_ID"] = "origin"
    settings_module.settings.cache_clear()
    world.gateway.added = headers
    try:
        yield
    finally:
        del os.environ[PREFIX + "ORIGIN_SECRET_ID"]
        settings_module.settings.cache_clear()
        world.gateway.added = ()


def state(world: AccessWorld) -> dict[str, Any]:
    """Everything that is stored or was sent, buckets of limits included."""
    stored = {key: world.redis.dump(key) if world.redis.type(key) != "string" else world.redis.get(key) for key in sorted(world.redis.keys("*"))}
    documents = {name: list(world.database[name].find(sort=[("_id", 1)])) for name in sorted(world.database.list_collection_names())}
    return {"redis": stored, "mongo": documents, "posted": dict(world.cloud.posted), "queued": list(world.cloud.queued), "audited": list(world.cloud.audited)}


def sign_in(world: AccessWorld) -> Asked:
    body = {"tenant_id": world.tenant_id, "login": world.peer.login, "device_id": new_id("dev"), "password": world.password}
    return Asked(body=body)


def rest(world: AccessWorld, key: str, token: str | None = None) -> tuple[int, str]:
    answer = world.gateway.rest(key, sign_in(world) if key == "POST /v1/tokens" else Asked(), token)
    return answer.status, json.loads(answer.body).get("code", "")


def who(world: AccessWorld) -> Identity:
    return replace(world.person("member").identity, scope=" ".join(sorted(SCOPES["member"])))


def owners(world: AccessWorld) -> set[str]:
    """Whose buckets of addresses were touched."""
    return {key.split("{address/")[1].split("}")[0] for key in world.redis.keys("hg:{address/*") if "limit:" in key}


@pytest.mark.parametrize("name", REFUSED)
def test_who_comes_past_cloudfront_is_refused_on_public_routes_and_changes_nothing(world: AccessWorld, name: str) -> None:
    with behind_cloudfront(world, REFUSED[name]):
        before = state(world)
        assert {key: rest(world, key) for key in PUBLIC} == dict.fromkeys(PUBLIC, (403, "origin_refused"))
        assert state(world) == before
    with behind_cloudfront(world, TAKEN["the current secret"]):
        assert {key: rest(world, key)[0] for key in PUBLIC} == dict.fromkeys(PUBLIC, 200) | {"POST /v1/tokens": 201}


@pytest.mark.parametrize("name", REFUSED)
def test_who_comes_past_cloudfront_is_refused_on_guarded_routes_and_changes_nothing(world: AccessWorld, name: str) -> None:
    token = world.access_token(who(world))
    with behind_cloudfront(world, REFUSED[name]):
        before = state(world)
        assert rest(world, "GET /v1/rooms", token) == (403, "origin_refused")
        assert rest(world, "POST /v1/tickets", "not-a-token") == (403, "origin_refused"), "before anybody looks at the token"
        assert state(world) == before
    with behind_cloudfront(world, TAKEN["the current secret"]):
        assert rest(world, "GET /v1/rooms", token) == (200, "")
        assert rest(world, "POST /v1/tickets", "not-a-token") == (401, "token_invalid")


@pytest.mark.parametrize("name", REFUSED)
def test_who_comes_past_cloudfront_opens_no_socket_and_the_ticket_stays_good(world: AccessWorld, name: str) -> None:
    ticket = world.ticket(who(world))
    with behind_cloudfront(world, REFUSED[name]):
        before = state(world)
        assert world.gateway.open(ticket) is None
        assert state(world) == before
    with behind_cloudfront(world, TAKEN["the current secret"]):
        assert world.gateway.open(ticket) is not None


@pytest.mark.parametrize("name", TAKEN)
def test_both_secrets_are_taken_while_they_change(world: AccessWorld, name: str) -> None:
    caller = who(world)
    with behind_cloudfront(world, TAKEN[name]):
        assert rest(world, "POST /v1/tokens") == (201, "")
        assert rest(world, "GET /v1/rooms", world.access_token(caller)) == (200, "")
        assert world.gateway.open(world.ticket(caller)) is not None


@pytest.mark.parametrize(("address", "owner"), [(VIEWER, VIEWER), (VIEWER_V6, "2001:db8:1:2::")])
def test_the_address_is_cloudfronts_word_and_goes_with_the_socket(world: AccessWorld, address: str, owner: str) -> None:
    caller = who(world)
    with behind_cloudfront(world, [*TAKEN["the current secret"], ("CloudFront-Viewer-Address", f"{address}:46532")]):
        assert rest(world, "POST /v1/tokens") == (201, "")
        socket = world.gateway.open(world.ticket(caller))
        assert owners(world) == {owner}
        assert address_of(socket) == address
        assert b'"re"' in world.gateway.frame(opened(socket), "ping", Asked(body={}))


def test_an_address_that_cannot_be_read_is_cloudfronts_own(world: AccessWorld) -> None:
    with behind_cloudfront(world, [*TAKEN["the current secret"], ("CloudFront-Viewer-Address", "everybody:1")]):
        assert rest(world, "POST /v1/tokens") == (201, "")
        assert owners(world) == {SOURCE_IP}


def test_without_cloudfront_neither_header_is_believed_and_nobody_is_refused(world: AccessWorld) -> None:
    """The laptop, and a deployment with `edge=none`."""
    world.gateway.added = [("CloudFront-Viewer-Address", f"{VIEWER}:1"), ("X-Forwarded-For", VIEWER), ("x-heliograph-origin", "anything")]
    try:
        assert rest(world, "POST /v1/tokens") == (201, "")
        socket = world.gateway.open(world.ticket(who(world)))
    finally:
        world.gateway.added = ()
    assert owners(world) == {SOURCE_IP}
    assert address_of(socket) == SOURCE_IP


def test_a_request_does_not_ask_for_the_secret(world: AccessWorld) -> None:
    wiring.origin_secret.cache_clear()
    token = world.access_token(who(world))
    with behind_cloudfront(world, TAKEN["the current secret"]):
        before = world.cloud.read["origin"]
        for _ in range(20):
            assert rest(world, "GET /v1/rooms", token) == (200, "")
        assert world.cloud.read["origin"] == before + 1
    with behind_cloudfront(world, REFUSED["a wrong secret"]):
        for _ in range(20):
            assert rest(world, "GET /v1/rooms", token) == (403, "origin_refused")
        assert world.cloud.read["origin"] == before + 1, "read a moment ago: a wrong one cannot make us ask again"


def opened(socket: OpenSocket | None) -> OpenSocket:
    assert socket is not None
    return socket


def address_of(socket: OpenSocket | None) -> Any:
    """What the authorizer's context carries to every later frame."""
    context = opened(socket).handshake.authorizer
    assert context is not None
    return context["address"]
