"""What is taken from an ID token and from a service's assertion, each refusal beside the claims that pass."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import IdentityRefused, Unauthenticated
from heliograph.identities import (
    LEEWAY_S,
    MAX_ASSERTION_S,
    MAX_ID_TOKEN_AGE_S,
    MAX_TOKEN_CHARS,
    Provider,
    Subject,
    check_assertion,
    claimed_issuer,
    key_id,
    refusal,
    service_in,
    subject_of,
    unverified,
)

NOW_S = 1_800_000_000
NOW_MS = NOW_S * 1000
ISSUER, AUDIENCE = "https://login.example", "heliograph-web"
OIDC = Provider("acme", ISSUER, AUDIENCE, "oidc", "https://login.example/keys", "linked")
FIREBASE = Provider("acme", "https://securetoken.google.com/acme-calls", "acme-calls", "firebase", "", "create")
SERVICE = "acc_" + "5" * 32
OURS = "https://api.heliograph.example"
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.sampled_from(["tenant", AUDIENCE]) | st.text(max_size=5), SCALARS, max_size=3)


def changed(claims: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in (claims | changes).items() if value is not None}


def person(**changes: Any) -> dict[str, Any]:
    return changed({"iss": ISSUER, "sub": "ana", "aud": AUDIENCE, "iat": NOW_S - 5, "exp": NOW_S + 3600}, changes)


def firebase_person(**changes: Any) -> dict[str, Any]:
    details = {"identities": {"email": ["ana@acme.example"]}, "sign_in_provider": "password"}
    return changed(person(iss=FIREBASE.issuer, aud=FIREBASE.audience, firebase=details), changes)


def service(**changes: Any) -> dict[str, Any]:
    fresh = {"iss": SERVICE, "sub": SERVICE, "aud": OURS, "tenant_id": "acme", "iat": NOW_S, "exp": NOW_S + 60, "jti": "0123456789abcdef"}
    return changed(fresh, changes)


def segment(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(header: object, claims: object) -> str:
    return f"{segment(header)}.{segment(claims)}.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sub": "x" * 255},
        {"sub": "Ünï ☎\n"},
        {"aud": [AUDIENCE]},
        {"azp": "android-app"},
        {"aud": [AUDIENCE, "other"], "azp": AUDIENCE},
        {"iat": NOW_S + LEEWAY_S},
        {"iat": NOW_S - MAX_ID_TOKEN_AGE_S},
        {"exp": NOW_S - LEEWAY_S + 1},
        {"exp": NOW_S + 0.5},
        {"firebase": {"tenant": "somebody else's claim"}},
    ],
)
def test_claims_that_a_provider_may_send_name_their_subject(changes: dict[str, Any]) -> None:
    assert subject_of(OIDC, person(**changes), NOW_MS) == Subject(ISSUER, changes.get("sub", "ana"))


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("iss", {"iss": "https://evil.example"}),
        ("iss", {"iss": ISSUER + "/"}),
        ("aud", {"aud": "other"}),
        ("aud", {"aud": []}),
        ("aud", {"aud": [AUDIENCE, 7], "azp": AUDIENCE}),
        ("aud", {"aud": {AUDIENCE: True}}),
        ("azp", {"aud": [AUDIENCE, "other"]}),
        ("azp", {"aud": [AUDIENCE, "other"], "azp": "other"}),
        ("azp", {"aud": [AUDIENCE, AUDIENCE], "azp": [AUDIENCE]}),
        ("iat", {"iat": NOW_S + LEEWAY_S + 1}),
        ("iat", {"iat": NOW_S - MAX_ID_TOKEN_AGE_S - LEEWAY_S}),
        ("iat", {"iat": str(NOW_S)}),
        ("iat", {"iat": True}),
        ("iat", {"iat": float("nan")}),
        ("exp", {"exp": NOW_S - LEEWAY_S}),
        ("exp", {"exp": float("inf")}),
        ("exp", {"exp": 1e12}),
        ("sub", {"sub": ""}),
        ("sub", {"sub": "x" * 256}),
        ("sub", {"sub": "a\0b"}),
        ("sub", {"sub": "\ud800"}),
        ("sub", {"sub": 7}),
        ("events", {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}),
    ],
)
def test_claims_that_are_not_ours_or_not_of_now_are_refused(reason: str, changes: dict[str, Any]) -> None:
    with pytest.raises(IdentityRefused) as refused:
        subject_of(OIDC, person(**changes), NOW_MS)
    assert refused.value.__notes__ == [reason]


@pytest.mark.parametrize("name", ["iss", "sub", "aud", "iat", "exp"])
def test_every_claim_of_an_id_token_is_needed(name: str) -> None:
    with pytest.raises(IdentityRefused):
        subject_of(OIDC, person(**{name: None}), NOW_MS)
    assert subject_of(OIDC, person(), NOW_MS)


def test_a_user_of_an_identity_platform_tenant_is_not_the_projects_user_of_that_uid() -> None:
    """Their uids are unique in their tenant only, and its administrator may choose them."""
    with pytest.raises(IdentityRefused):
        subject_of(FIREBASE, firebase_person(firebase={"tenant": "customer-7", "sign_in_provider": "password"}), NOW_MS)
    assert subject_of(FIREBASE, firebase_person(), NOW_MS).subject == "ana"


def test_a_refusal_says_the_same_whatever_its_reason_and_keeps_the_reason_for_the_log() -> None:
    one, other = refusal("sub"), refusal("kid")
    assert one.body("t") == other.body("t")
    assert "sub" not in json.dumps(one.body("t"))
    assert (one.status, one.retryable, isinstance(one, Unauthenticated)) == (401, False, True)
    assert (one.__notes__, other.__notes__) == (["sub"], ["kid"])


@pytest.mark.parametrize(
    "changes",
    [
        {"alg": "none"},
        {"alg": "HS256"},
        {"alg": ["RS256"]},
        {"alg": None},
        {"kid": None},
        {"kid": ""},
        {"kid": 7},
        {"kid": "../../etc/passwd\n"},
        {"kid": "k" * 256},
        {"jku": "https://evil.example/keys"},
        {"jwk": {}},
        {"x5u": "https://evil.example/cert"},
        {"x5c": []},
        {"crit": ["b64"]},
        {"typ": "at+jwt"},
        {"typ": "logout+jwt"},
        {"typ": ["JWT"]},
    ],
)
def test_a_header_that_chooses_its_own_proof_or_is_of_another_kind_is_refused(changes: dict[str, Any]) -> None:
    good = {"alg": "RS256", "kid": "k1", "typ": "JWT", "x5t": "thumbprint"}
    with pytest.raises(IdentityRefused):
        key_id(changed(good, changes), ("RS256", "ES256"))
    assert key_id(good, ("RS256", "ES256")) == "k1"
    assert key_id({"alg": "ES256", "kid": "k1"}, ("RS256", "ES256")) == "k1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "a.b",
        "a.b.c.d",
        token({"alg": "RS256"}, {"iss": ISSUER}) + "\n",
        token({"alg": "none"}, {"iss": ISSUER}).rsplit(".", 1)[0] + ".",
        token([], {"iss": ISSUER}),
        token({}, b'{"iss": "https://a.example", "iss": "https://b.example"}'),
        token({}, b'{"iss": "https://login.example", "exp": NaN}'),
        token({}, b'{"iss": "https://login.example", "deep": ' + b"[" * 3000 + b"]" * 2000 + b"}"),
        token({}, b"\xff\xfe{\x00}\x00"),
        token({}, json.dumps({"iss": ISSUER}).encode("utf-16")),
        token({}, {"iss": 7}),
        token({}, {"iss": "file:///etc/passwd"}),
        token({}, {}),
        "é.é.é",
        "\ud800.a.b",
    ],
)
def test_what_is_not_a_token_names_no_issuer(text: str) -> None:
    with pytest.raises(IdentityRefused):
        claimed_issuer(text)
    assert claimed_issuer(token({"alg": "RS256"}, {"iss": ISSUER})) == ISSUER


def test_a_token_of_8192_characters_is_parsed_and_one_more_is_not() -> None:
    head = token({}, {"iss": ISSUER}).rsplit(".", 1)[0]
    longest = f"{head}.".ljust(MAX_TOKEN_CHARS, "A")
    assert claimed_issuer(longest) == ISSUER
    with pytest.raises(IdentityRefused):
        claimed_issuer(longest + "A")


@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]{1,40}\.[A-Za-z0-9_-]{1,40}\.[A-Za-z0-9_-]{1,40}", fullmatch=True))
def test_any_text_is_a_token_or_is_refused(text: str) -> None:
    try:
        header, claims = unverified(text)
    except IdentityRefused:
        return
    assert isinstance(header, dict)
    assert isinstance(claims, dict)


@given(st.dictionaries(st.sampled_from(["iss", "aud", "azp", "iat", "exp", "sub", "firebase", "events"]), JSON))
def test_any_claims_name_a_subject_or_are_refused(changes: dict[str, Any]) -> None:
    for provider, claims in ((OIDC, person()), (FIREBASE, firebase_person())):
        try:
            subject = subject_of(provider, claims | changes, NOW_MS)
        except IdentityRefused:
            continue
        assert subject.issuer == provider.issuer
        assert 1 <= len(subject.subject) <= 255


@given(st.dictionaries(st.sampled_from(["alg", "kid", "typ", "jku", "crit"]), JSON))
def test_any_header_names_a_key_or_is_refused(changes: dict[str, Any]) -> None:
    with suppress(IdentityRefused):
        assert key_id({"alg": "RS256", "kid": "k1"} | changes, ("RS256",)).isascii()


@given(st.dictionaries(st.sampled_from(["iss", "sub", "aud", "tenant_id", "iat", "exp", "jti"]), JSON))
def test_any_claims_are_an_assertion_or_are_refused(changes: dict[str, Any]) -> None:
    try:
        check_assertion(service() | changes, OURS, NOW_MS)
    except IdentityRefused:
        return
    assert service_in(service() | changes)[1] == SERVICE


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"exp": NOW_S + MAX_ASSERTION_S},
        {"exp": NOW_S + 0.5},
        {"iat": NOW_S - 200, "exp": NOW_S + 1},
        {"iat": NOW_S + LEEWAY_S, "exp": NOW_S + LEEWAY_S + MAX_ASSERTION_S},
        {"jti": "8-letter"},
        {"jti": "urn:uuid:01890a5d-ac96-774b-bcce-b302099a8057"},
        {"scope": "a claim that we do not know"},
    ],
)
def test_an_assertion_of_a_service_holds(changes: dict[str, Any]) -> None:
    check_assertion(service(**changes), OURS, NOW_MS)
    assert service_in(service(**changes)) == ("acme", SERVICE)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("tenant_id", {"tenant_id": "Acme"}),
        ("tenant_id", {"tenant_id": "acme\n"}),
        ("tenant_id", {"tenant_id": ["acme"]}),
        ("sub", {"sub": "dev_" + "5" * 32, "iss": "dev_" + "5" * 32}),
        ("sub", {"sub": "acc_1"}),
        ("sub", {"sub": SERVICE + "\n"}),
        ("iss", {"iss": "acc_" + "6" * 32}),
        ("aud", {"aud": OURS + "/v1/tokens/service"}),
        ("aud", {"aud": [OURS]}),
        ("aud", {"aud": "heliograph"}),
        ("iat", {"iat": NOW_S + LEEWAY_S + 1, "exp": NOW_S + LEEWAY_S + 2}),
        ("iat", {"iat": "now"}),
        ("exp", {"iat": NOW_S - 10, "exp": NOW_S}),
        ("exp", {"exp": NOW_S + MAX_ASSERTION_S + 1}),
        ("exp", {"iat": NOW_S + 50, "exp": NOW_S + 40}),
        ("exp", {"exp": 10**11}),
        ("jti", {"jti": "7-chars"}),
        ("jti", {"jti": "x" * 65}),
        ("jti", {"jti": "new\nline-"}),
        ("jti", {"jti": 1234567890}),
    ],
)
def test_an_assertion_that_is_not_of_the_form_or_not_of_now_is_refused(reason: str, changes: dict[str, Any]) -> None:
    with pytest.raises(IdentityRefused) as refused:
        check_assertion(service(**changes), OURS, NOW_MS)
    assert refused.value.__notes__ == [reason]


@pytest.mark.parametrize("name", ["iss", "sub", "aud", "tenant_id", "iat", "exp", "jti"])
def test_every_claim_of_an_assertion_is_needed(name: str) -> None:
    with pytest.raises(IdentityRefused):
        check_assertion(service(**{name: None}), OURS, NOW_MS)
    check_assertion(service(), OURS, NOW_MS)


@pytest.mark.parametrize(
    ("provider", "changes"),
    [
        (OIDC, {"tenant_id": "Acme"}),
        (OIDC, {"issuer": "login.example"}),
        (OIDC, {"issuer": ""}),
        (OIDC, {"issuer": "https://securetoken.google.com/acme-calls"}),
        (OIDC, {"audience": ""}),
        (OIDC, {"jwks_uri": ""}),
        (OIDC, {"jwks_uri": "file:///etc/passwd"}),
        (OIDC, {"kind": "saml"}),
        (OIDC, {"provisioning": "anybody"}),
        (FIREBASE, {"issuer": "https://securetoken.google.com/other"}),
        (FIREBASE, {"audience": "other-project"}),
        (FIREBASE, {"issuer": "https://securetoken.google.com/a/../b", "audience": "a/../b"}),
    ],
)
def test_a_provider_that_cannot_be_is_not_made(provider: Provider, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        replace(provider, **changes)
    assert replace(FIREBASE, jwks_uri="https://certificates.example") == replace(replace(FIREBASE), jwks_uri="https://certificates.example")
