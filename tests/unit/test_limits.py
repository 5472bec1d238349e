"""Rate limits by name: what a deployment may override, whose bucket an address is."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.routes import FUNCTIONS, Http, Socket
from heliograph.limits import LIMITS, address_key, overridden

ROUTES = [route for function in FUNCTIONS for route in function.routes if isinstance(route, Http | Socket)]
UNLIMITED = {"GET /v1/jwks.json", "GET /v1/openapi.json", "GET /v1/asyncapi.json", "$connect", "$disconnect"}
"""Documents that never change, and what the gateway itself sends; `$connect` is counted by the authorizer."""
GUESSED = {"sign_in", "password", "relay_credentials", "accounts", "audited_refusals"}


def test_every_route_and_frame_has_a_limit_that_exists() -> None:
    limits = {route.key: route.limit for route in ROUTES}
    assert {key for key, limit in limits.items() if limit is None} == UNLIMITED
    assert {limit for limit in limits.values() if limit} <= set(LIMITS)


def test_every_limit_is_named_documented_and_says_how_it_fails() -> None:
    for name, limit in LIMITS.items():
        assert limit.name == name
        assert limit.doc.endswith(".")
        assert limit.burst >= 1
    assert {name for name, limit in LIMITS.items() if limit.fails == "closed"} == GUESSED, "closed: what can be guessed or collected"


def test_a_route_of_strangers_is_counted_by_address_and_one_of_callers_is_not() -> None:
    for route in ROUTES:
        if route.limit is not None and route.key != "$default":
            assert (LIMITS[route.limit].per == "address") == (route.scope is None), route.key


def test_a_deployment_overrides_limits_by_name_and_the_rest_stays() -> None:
    limits = overridden("messages=5/0.5, sign_in=1/2")
    assert (limits["messages"].burst, limits["messages"].per_s, limits["messages"].interval_us) == (5, 0.5, 2_000_000)
    assert limits["messages"].fails == LIMITS["messages"].fails
    assert limits["tickets"] == LIMITS["tickets"]
    assert overridden("") == LIMITS


@pytest.mark.parametrize(
    "text", ["nothing=1/1", "messages", "messages=0/1", "messages=1/0", "messages=-1/1", "messages=1/1/1", "messages=1e3/1", "messages=1/nan"]
)
def test_an_override_of_another_form_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"name=burst/per_s|needs a burst"):
        overridden(text)
    assert overridden("messages=1/1")


def test_an_ipv6_subscriber_has_one_bucket_and_a_mapped_address_is_the_ipv4_one() -> None:
    assert address_key("203.0.113.7") == "203.0.113.7"
    assert address_key("2001:db8:1:2:3:4:5:6") == address_key("2001:db8:1:2::1") == "2001:db8:1:2::"
    assert address_key("2001:db8:1:3::1") != address_key("2001:db8:1:2::1")
    assert address_key("::ffff:203.0.113.7") == "203.0.113.7"
    assert address_key("fe80::1%eth0") == "fe80::"


@given(st.text(max_size=60))
def test_any_text_has_a_bucket(text: str) -> None:
    assert address_key(text)


@given(st.text(max_size=60))
def test_any_override_is_taken_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert set(overridden(text)) == set(LIMITS)
