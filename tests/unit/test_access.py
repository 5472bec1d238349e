"""The one decision about access: every scope, role, tenant, membership, owner and device, against a second statement of the rules."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.access import HIDDEN, Resource, authorise, own
from heliograph.auth import SCOPES, Identity, claims_for, identity_from
from heliograph.errors import Forbidden, HeliographError, NotFound, TokenInvalid

ANA, BEN = (f"acc_{digit * 32}" for digit in "ab")
DEV, OTHER_DEV = (f"dev_{digit * 32}" for digit in "01")
ALL_SCOPES = sorted(set().union(*SCOPES.values()))
MEMBERS_DO = ["calls:write", "devices:write", "media:read", "media:write", "messages:write", "presence:read", "presence:write", "rooms:read", "rooms:write"]
MEMBERS_DO += ["sessions:read", "sessions:write", "signal:connect"]
ADMINS_ALONE = ["accounts:write", "audit:read", "evidence:read"]


def who(role: str, scope: str | None = None) -> Identity:
    return Identity("acme", ANA, DEV, "ses_" + "0" * 32, role, " ".join(sorted(SCOPES[role])) if scope is None else scope, 1, 2)


def answer(identity: Identity, action: str, resource: Resource | None) -> str:
    try:
        authorise(identity, action, resource)
    except HeliographError as refusal:
        return refusal.code
    return "allowed"


def test_roles_have_what_is_written_here_and_nothing_else() -> None:
    assert {role: sorted(scopes) for role, scopes in SCOPES.items()} == {
        "member": MEMBERS_DO,
        "moderator": sorted([*MEMBERS_DO, "rooms:moderate"]),
        "admin": sorted([*MEMBERS_DO, "rooms:moderate", *ADMINS_ALONE]),
        "service": ["notifications:send", "rooms:read"],
    }


@pytest.mark.parametrize(("role", "action"), list(itertools.product(SCOPES, ALL_SCOPES)))
def test_a_role_may_what_its_scopes_say_in_its_own_tenant_alone(role: str, action: str) -> None:
    may, identity = action in SCOPES[role], who(role)
    refusal = "not_found" if action in HIDDEN else "forbidden"
    assert answer(identity, action, own(identity)) == ("allowed" if may else refusal)
    assert answer(identity, action, Resource("globex")) == ("not_found" if may else refusal)
    assert answer(identity, action, None) == ("not_found" if may else refusal)


@pytest.mark.parametrize("action", ADMINS_ALONE)
def test_what_admins_alone_do_is_not_done_by_a_token_that_only_claims_the_scope(action: str) -> None:
    for role in ("member", "moderator", "service"):
        assert answer(who(role, action), action, own(who(role))) != "allowed"
    assert answer(who("admin"), action, own(who("admin"))) == "allowed"


@pytest.mark.parametrize("action", ALL_SCOPES)
def test_a_token_with_fewer_scopes_than_its_role_may_only_what_it_carries(action: str) -> None:
    narrow = who("admin", "rooms:read")
    assert (answer(narrow, action, own(narrow)) == "allowed") == (action == "rooms:read")


def test_a_scope_must_be_in_the_token_as_a_whole_word() -> None:
    for action in ("rooms", "rooms:rea", "ooms:read", ""):
        assert answer(who("member"), action, own(who("member"))) == "forbidden"
    assert answer(who("member"), "rooms:read", own(who("member"))) == "allowed"


def test_the_evidence_area_answers_those_who_may_not_as_if_it_had_nothing() -> None:
    for role in ("member", "moderator", "service"):
        with pytest.raises(NotFound) as hidden:
            authorise(who(role), "evidence:read", own(who(role)))
        with pytest.raises(NotFound) as unknown:
            authorise(who("admin"), "evidence:read", None)
        assert hidden.value.body("t") == unknown.value.body("t")
    with pytest.raises(Forbidden):
        authorise(who("member"), "accounts:write", own(who("member")))


_tenants, _accounts, _devices = st.sampled_from(["acme", "globex"]), st.sampled_from([ANA, BEN]), st.sampled_from([DEV, OTHER_DEV])


@given(
    st.builds(
        Resource,
        _tenants,
        st.none() | st.frozensets(_accounts),
        st.none() | _accounts,
        st.none() | _devices,
    )
)
def test_a_thing_is_the_callers_only_when_nothing_about_it_is_somebody_elses(resource: Resource) -> None:
    is_ours = resource.tenant_id == "acme"
    is_ours = is_ours and not (resource.member_ids is not None and ANA not in resource.member_ids)
    is_ours = is_ours and resource.account_id != BEN and resource.device_id != OTHER_DEV
    assert answer(who("member"), "rooms:read", resource) == ("allowed" if is_ours else "not_found")


def test_an_identity_comes_only_from_complete_claims() -> None:
    ana = replace(who("member"), issued_at_ms=4_000, expires_at_ms=904_000)
    claims = claims_for(ana, issuer="i", audience="a", now_ms=5_000, lifetime_s=10, jti="j")
    assert (claims["iat"], claims["exp"]) == (5, 15)
    assert identity_from(claims) == ana
    assert identity_from(ana.as_context()) == ana
    assert all(isinstance(value, str) for value in ana.as_context().values())
    bad: list[dict[str, Any]] = [{"sub": "acc_1"}, {"role": "root"}, {"scope": None}, {"tenant_id": 5}, {"sid": "x"}]
    bad += [{"expires_at_ms": value} for value in (None, True, -1, "soon", "1" * 16, 1.5, "٣")]
    for change in bad:
        with pytest.raises(TokenInvalid):
            identity_from(claims | change)


@given(
    st.dictionaries(
        st.sampled_from(["sub", "tenant_id", "device_id", "sid", "role", "scope", "issued_at_ms", "expires_at_ms"]), st.none() | st.text() | st.integers()
    )
)
def test_any_claims_are_an_identity_or_invalid(claims: dict[str, Any]) -> None:
    with contextlib.suppress(TokenInvalid):
        assert isinstance(identity_from(claims), Identity)
