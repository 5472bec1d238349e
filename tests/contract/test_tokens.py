"""Access tokens and tickets: what is refused (RFC 8725), each beside the token that passes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from adapters.secrets_aws import ASKED_AGAIN_S, FRESH_S
from adapters.settings import now_ms
from adapters.tokens_jwt import Tokens
from heliograph.auth import ACCESS_TYP, LEEWAY_S, SCOPES, TICKET_TYP, Identity, claims_for
from heliograph.errors import TokenExpired, TokenInvalid, Unavailable

WHO = Identity("acme", "acc_" + "0" * 32, "dev_" + "0" * 32, "ses_" + "0" * 32, "member", " ".join(SCOPES["member"]), 1, 2)


def pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
KEYS = {"current": {"kid": "k1", "private_pem": pem(KEY)}, "previous": None}
TOKENS = Tokens(lambda: KEYS, now_ms, issuer="https://i", audience="heliograph")


def claims(**changes: Any) -> dict[str, Any]:
    fresh = claims_for(WHO, issuer="https://i", audience="heliograph", now_ms=now_ms(), lifetime_s=30, jti="j")
    return {name: value for name, value in (fresh | changes).items() if value is not None}


def signed(payload: dict[str, Any], *, key: Any = KEY, algorithm: str = "ES256", **header: Any) -> str:
    return jwt.encode(payload, key, algorithm=algorithm, headers={"kid": "k1", "typ": ACCESS_TYP} | header)


def unsigned(payload: dict[str, Any]) -> str:
    parts = ({"alg": "none", "typ": ACCESS_TYP, "kid": "k1"}, payload)
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


def hmac_by_public_key() -> str:
    """The classic confusion: an HS256 token signed with the public key's bytes. PyJWT refuses to make one, so it is made by hand."""
    import hashlib
    import hmac

    head, body = unsigned(claims()).rstrip(".").split(".")
    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": ACCESS_TYP, "kid": "k1"}).encode()).rstrip(b"=").decode()
    mac = hmac.digest(PUBLIC, f"{head}.{body}".encode(), hashlib.sha256)
    return f"{head}.{body}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def with_header(header: bytes) -> str:
    return ".".join([base64.urlsafe_b64encode(header).rstrip(b"=").decode(), *signed(claims()).split(".")[1:]])


def tampered() -> str:
    head, _, signature = signed(claims()).split(".")
    other = base64.urlsafe_b64encode(json.dumps(claims(role="admin")).encode()).rstrip(b"=").decode()
    return f"{head}.{other}.{signature}"


ATTACKS: dict[str, Callable[[], str]] = {
    "alg none": lambda: unsigned(claims()),
    "HS256 with the public key": hmac_by_public_key,
    "another key": lambda: signed(claims(), key=OTHER),
    "unknown kid": lambda: signed(claims(), kid="k2"),
    "kid that is a path": lambda: signed(claims(), kid="../../dev/null"),
    "kid that is not text": lambda: with_header(b'{"alg":"ES256","typ":"at+jwt","kid":["k1"]}'),
    "key by jku": lambda: signed(claims(), key=OTHER, jku="https://evil/keys"),
    "jku beside our own key": lambda: signed(claims(), jku="https://evil/keys"),
    "x5u beside our own key": lambda: signed(claims(), x5u="https://evil/cert"),
    "a critical header": lambda: signed(claims(), crit=["exp"]),
    "a life longer than ours": lambda: signed(claims(exp=now_ms() // 1000 + 10**6)),
    "made in the future": lambda: signed(claims(iat=now_ms() // 1000 + 600, exp=now_ms() // 1000 + 700)),
    "exp that is text": lambda: signed(claims(exp="soon")),
    "longer than any of ours": lambda: signed(claims(scope="x" * 5000)),
    "a ticket as access token": lambda: signed(claims(), typ=TICKET_TYP),
    "plain JWT typ": lambda: signed(claims(), typ="JWT"),
    "no exp": lambda: signed(claims(exp=None)),
    "no jti": lambda: signed(claims(jti=None)),
    "other issuer": lambda: signed(claims(iss="https://evil")),
    "other audience": lambda: signed(claims(aud="other")),
    "changed payload": tampered,
    "cut short": lambda: signed(claims())[:-5],
    "not a token": lambda: "garbage",
    "empty": lambda: "",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_forged_token_is_invalid_and_its_twin_passes(name: str) -> None:
    with pytest.raises(TokenInvalid):
        TOKENS.verify(ATTACKS[name](), ACCESS_TYP)
    assert TOKENS.verify(signed(claims()), ACCESS_TYP)["sub"] == WHO.account_id


def test_an_expired_token_says_so_and_a_ticket_has_no_leeway() -> None:
    now = now_ms() // 1000
    with pytest.raises(TokenExpired):
        TOKENS.verify(signed(claims(exp=now - LEEWAY_S - 1)), ACCESS_TYP)
    assert TOKENS.verify(signed(claims(exp=now - LEEWAY_S + 10)), ACCESS_TYP)
    with pytest.raises(TokenExpired):
        TOKENS.verify(signed(claims(exp=now - 1), typ=TICKET_TYP), TICKET_TYP)


class Vault:
    """Keys that are rotated while somebody holds a copy."""

    def __init__(self, keys: dict[str, Any]) -> None:
        self.keys, self.reads, self.at_ms = keys, 0, now_ms()
        self.tokens = Tokens(self.read, lambda: self.at_ms, issuer="https://i", audience="heliograph")

    def read(self) -> dict[str, Any]:
        self.reads += 1
        if not self.keys:
            raise Unavailable
        return self.keys


ROTATED = {"current": {"kid": "k2", "private_pem": pem(OTHER)}, "previous": KEYS["current"]}


def test_the_previous_key_still_verifies_and_the_current_one_signs() -> None:
    rotated = Vault(ROTATED).tokens
    assert rotated.verify(signed(claims()), ACCESS_TYP)["jti"] == "j"
    assert jwt.get_unverified_header(rotated.sign(claims(), ACCESS_TYP))["kid"] == "k2"
    assert {key["kid"] for key in rotated.key_set()["keys"]} == {"k1", "k2"}


def test_a_process_that_holds_old_keys_learns_of_a_rotation_from_the_first_token_and_signs_with_the_new_key_within_five_minutes() -> None:
    vault = Vault(KEYS)
    vault.keys = ROTATED
    vault.at_ms += ASKED_AGAIN_S * 1000 + 1
    assert vault.tokens.verify(signed(claims(), key=OTHER, kid="k2"), ACCESS_TYP)["jti"] == "j"
    behind = Vault(KEYS)
    behind.keys = ROTATED
    assert jwt.get_unverified_header(behind.tokens.sign(claims(), ACCESS_TYP))["kid"] == "k1"
    behind.at_ms += FRESH_S * 1000 + 1
    assert jwt.get_unverified_header(behind.tokens.sign(claims(), ACCESS_TYP))["kid"] == "k2"


def test_a_withdrawn_key_is_forgotten_within_five_minutes_by_those_who_only_verify() -> None:
    vault = Vault(ROTATED)
    vault.keys = {"current": ROTATED["current"], "previous": None}
    old = signed(claims())
    assert vault.tokens.verify(old, ACCESS_TYP)["jti"] == "j"
    vault.at_ms += FRESH_S * 1000 + 1
    with pytest.raises(TokenInvalid):
        vault.tokens.verify(old, ACCESS_TYP)
    assert vault.tokens.verify(signed(claims(), key=OTHER, kid="k2"), ACCESS_TYP)["jti"] == "j"


def test_keys_that_cannot_be_read_again_go_on_and_are_asked_for_once_in_a_while() -> None:
    vault = Vault(KEYS)
    vault.at_ms += FRESH_S * 1000 + 1
    vault.keys = {}
    for _ in range(5):
        assert vault.tokens.verify(signed(claims()), ACCESS_TYP)["jti"] == "j"
    assert vault.reads == 2


def test_unknown_kids_make_a_process_read_the_keys_at_most_once_in_five_seconds() -> None:
    vault = Vault(KEYS)
    vault.at_ms += ASKED_AGAIN_S * 1000 + 1
    for number in range(50):
        with pytest.raises(TokenInvalid):
            vault.tokens.verify(signed(claims(), kid=f"guess-{number}"), ACCESS_TYP)
    assert vault.reads == 2, "once at the start, once for all guesses"


def test_the_published_keys_verify_our_tokens_and_hold_nothing_private() -> None:
    (key,) = TOKENS.key_set()["keys"]
    assert "d" not in key
    public: Any = jwt.algorithms.ECAlgorithm.from_jwk(key)
    assert jwt.decode(TOKENS.sign(claims(), ACCESS_TYP), public, algorithms=["ES256"], audience="heliograph")["sub"] == WHO.account_id
