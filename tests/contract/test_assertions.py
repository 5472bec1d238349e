"""Assertions of service accounts (RFC 7523, RFC 7523bis): what is refused, each beside the assertion that passes; and which keys may be registered."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from adapters.assertions_jwt import TYP, check_public_key, named, verify
from adapters.settings import now_ms
from heliograph.errors import IdentityRefused
from heliograph.identities import LEEWAY_S, MAX_ASSERTION_S, MAX_TOKEN_CHARS

OURS = "https://api.heliograph.example"
SERVICE, STRANGER = "acc_" + "5" * 32, "acc_" + "6" * 32
EC_KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED_KEY = ed25519.Ed25519PrivateKey.generate()


def pem(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


KEYS = [{"kid": "ec", "public_pem": pem(EC_KEY)}, {"kid": "rsa", "public_pem": pem(RSA_KEY)}, {"kid": "ed", "public_pem": pem(ED_KEY)}]


def now_s() -> int:
    return now_ms() // 1000


def claims(**changes: Any) -> dict[str, Any]:
    fresh = {"iss": SERVICE, "sub": SERVICE, "aud": OURS, "tenant_id": "acme", "iat": now_s(), "exp": now_s() + 60, "jti": "0123456789abcdef"}
    return {name: value for name, value in (fresh | changes).items() if value is not None}


def signed(payload: dict[str, Any] | None = None, key: Any = EC_KEY, algorithm: str = "ES256", **header: Any) -> str:
    return jwt.encode(claims() if payload is None else payload, key, algorithm=algorithm, headers={"kid": "ec", "typ": TYP} | header)


def proven(assertion: str, keys: list[dict[str, str]] = KEYS, audience: str = OURS) -> dict[str, Any]:
    return verify(assertion, keys, audience, now_ms())


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=").decode()


def with_header(header: object) -> str:
    return ".".join([segment(header), *signed().split(".")[1:]])


def with_claims(data: bytes) -> str:
    head, _, signature = signed().split(".")
    return ".".join([head, segment(data), signature])


def hmac_by_public_key() -> str:
    text = segment({"alg": "HS256", "kid": "ec", "typ": TYP}) + "." + segment(claims())
    return f"{text}.{segment(hmac.digest(pem(EC_KEY).encode(), text.encode(), hashlib.sha256))}"


def tampered() -> str:
    return with_claims(json.dumps(claims(tenant_id="globex")).encode())


# what is done -> (why it is refused, the assertion)
ATTACKS: dict[str, tuple[str, Callable[[], str]]] = {
    "alg none": ("not a token", lambda: f"{segment({'alg': 'none', 'kid': 'ec', 'typ': TYP})}.{segment(claims())}."),
    "alg none with a signature": ("InvalidAlgorithmError", lambda: with_header({"alg": "none", "kid": "ec", "typ": TYP})),
    "HS256 with the public key": ("InvalidAlgorithmError", hmac_by_public_key),
    "another key": ("InvalidSignatureError", lambda: signed(key=OTHER)),
    "another key of the account": ("InvalidAlgorithmError", lambda: signed(key=RSA_KEY, algorithm="RS256")),
    "RS384": ("InvalidAlgorithmError", lambda: signed(key=RSA_KEY, algorithm="RS384", kid="rsa")),
    "unknown kid": ("kid", lambda: signed(kid="nobody")),
    "kid that is a path": ("kid", lambda: signed(kid="../../dev/null")),
    "kid that is not text": ("kid", lambda: with_header({"alg": "ES256", "kid": ["ec"], "typ": TYP})),
    "no kid": ("header", lambda: with_header({"alg": "ES256", "typ": TYP})),
    "plain JWT typ": ("header", lambda: signed(typ="JWT")),
    "an access token's typ": ("header", lambda: signed(typ="at+jwt")),
    "no typ": ("header", lambda: signed(typ=None)),
    "a key by jku": ("header", lambda: signed(key=OTHER, jku="https://evil.example/jwks.json")),
    "a key in the header": ("header", lambda: signed(key=OTHER, jwk=jwt.algorithms.ECAlgorithm.to_jwk(OTHER.public_key(), as_dict=True))),
    "a certificate by x5u": ("header", lambda: signed(x5u="https://evil.example/cert")),
    "crit": ("header", lambda: signed(crit=["exp"], exp=1)),
    "changed payload": ("InvalidSignatureError", tampered),
    "issued by another": ("iss", lambda: signed(claims(iss=STRANGER))),
    "for another server": ("InvalidAudienceError", lambda: signed(claims(aud="https://other.example"))),
    "for several servers": ("InvalidAudienceError", lambda: signed(claims(aud=[OURS, "https://other.example"]))),
    "for our token endpoint, which is not our issuer": ("InvalidAudienceError", lambda: signed(claims(aud=f"{OURS}/v1/tokens/service"))),
    "expired": ("exp", lambda: signed(claims(iat=now_s() - 100, exp=now_s() - 1))),
    "long expired": ("ExpiredSignatureError", lambda: signed(claims(iat=now_s() - 200, exp=now_s() - 100))),
    "good for longer than allowed": ("exp", lambda: signed(claims(exp=now_s() + MAX_ASSERTION_S + 5))),
    "far exp": ("exp", lambda: signed(claims(exp=now_s() + 10 * 365 * 86_400))),
    "issued in the future": ("ImmatureSignatureError", lambda: signed(claims(iat=now_s() + 70, exp=now_s() + 80))),
    "not valid yet": ("ImmatureSignatureError", lambda: signed(claims(nbf=now_s() + 70))),
    "jti too short to be one": ("jti", lambda: signed(claims(jti="1"))),
    "jti of 65 characters": ("jti", lambda: signed(claims(jti="j" * 65))),
    "not an account": ("sub", lambda: signed(claims(iss="ana", sub="ana"))),
    "tenant of another form": ("tenant_id", lambda: signed(claims(tenant_id="../acme"))),
    "oversized": ("too long", lambda: signed(claims(padding="p" * MAX_TOKEN_CHARS))),
    "claims 5,000 deep": ("not a token", lambda: with_claims(b"[" * 5000)),
    "a claim named twice": ("not a token", lambda: with_claims(b'{"sub": "a", "sub": "b"}')),
    "not a token": ("not a token", lambda: "garbage"),
    "empty": ("not a token", lambda: ""),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_forged_assertion_is_refused_and_its_twin_passes(name: str) -> None:
    reason, attack = ATTACKS[name]
    with pytest.raises(IdentityRefused) as caught:
        proven(attack())
    assert caught.value.__notes__ == [reason]
    assert proven(signed())["sub"] == SERVICE


@pytest.mark.parametrize("name", ["iss", "aud", "tenant_id", "iat", "exp", "jti"])
def test_every_claim_is_needed(name: str) -> None:
    with pytest.raises(IdentityRefused) as caught:
        proven(signed(claims(**{name: None})))
    assert caught.value.__notes__ == ["MissingRequiredClaimError"]
    assert proven(signed())


@pytest.mark.parametrize(("kid", "key", "algorithm"), [("ec", EC_KEY, "ES256"), ("rsa", RSA_KEY, "RS256"), ("rsa", RSA_KEY, "PS256"), ("ed", ED_KEY, "EdDSA")])
def test_each_type_of_key_passes_with_its_algorithms(kid: str, key: Any, algorithm: str) -> None:
    assertion = signed(claims(iat=now_s() + LEEWAY_S - 10, exp=now_s() + LEEWAY_S - 10 + MAX_ASSERTION_S), key, algorithm, kid=kid)
    assert proven(assertion)["tenant_id"] == "acme"
    assert named(assertion) == ("acme", SERVICE)


def test_time_is_the_callers_as_well() -> None:
    """The clock of the machine and the time that the rule is given must both find it good."""
    assertion = signed(claims(exp=now_s() + 30))
    with pytest.raises(IdentityRefused):
        verify(assertion, KEYS, OURS, now_ms() + 31_000)
    assert verify(assertion, KEYS, OURS, now_ms() + 20_000)


def test_an_account_without_keys_refuses_as_one_with_other_keys() -> None:
    with pytest.raises(IdentityRefused) as without:
        proven(signed(), keys=[])
    with pytest.raises(IdentityRefused) as with_others:
        proven(signed(), keys=[{"kid": "ec", "public_pem": pem(OTHER)}])
    assert without.value.body("t") == with_others.value.body("t")


@pytest.mark.parametrize("change", [{"tenant_id": "Acme"}, {"tenant_id": None}, {"sub": None}, {"sub": "acc_1"}])
def test_an_assertion_that_names_nobody_is_refused_before_any_key_is_fetched(change: dict[str, Any]) -> None:
    with pytest.raises(IdentityRefused):
        named(signed(claims(**change)))
    assert named(signed()) == ("acme", SERVICE)


@pytest.mark.parametrize("key", [EC_KEY, RSA_KEY, ED_KEY])
def test_a_key_worth_the_name_is_registered_as_one_clean_text(key: Any) -> None:
    assert check_public_key(f"# made by the platform team\n{pem(key)}\n") == pem(key)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (lambda: pem(ec.generate_private_key(ec.SECP384R1())), "EC P-256"),
        (lambda: pem(ec.generate_private_key(ec.SECP256K1())), "EC P-256"),
        (lambda: pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "RSA of 2048"),  # noqa: S505
        (lambda: pem(ed448.Ed448PrivateKey.generate()), "Ed25519"),
        (lambda: pem(x25519.X25519PrivateKey.generate()), "Ed25519"),
        (lambda: pem(dsa.generate_private_key(key_size=2048)), "EC P-256"),
        (lambda: EC_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(), "private key"),
        (lambda: "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key"),
        (lambda: "secret", "not a public key"),
        (lambda: "", "not a public key"),
    ],
)
def test_a_key_that_we_do_not_take_says_why(text: Callable[[], str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_public_key(text())


def test_a_stored_key_that_we_do_not_take_proves_nothing() -> None:
    weak = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(IdentityRefused):
        proven(signed(key=weak, algorithm="ES384"), keys=[{"kid": "ec", "public_pem": pem(weak)}])
    assert proven(signed())
