"""Assertions of service accounts: a JWT that the service signs with its own key to prove who it is (RFC 7523; type and audience as RFC 7523bis has them).

Header exactly {alg, kid, typ}; the key is one that the operator registered for this account, and each type of key has its algorithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heliograph.identities import LEEWAY_S, check_assertion, refusal, service_in, unverified
from heliograph.shapes import JsonObject

TYP = "client-authentication+jwt"
LEAST_RSA_BITS, MOST_RSA_BITS = 2048, 8192
_HEADER = {"alg", "kid", "typ"}
_REQUIRED = ["iss", "sub", "aud", "exp", "iat", "jti", "tenant_id"]


def named(assertion: str) -> tuple[str, str]:
    """(tenant_id, account_id) that the assertion says it comes from, nothing proven: whose keys to fetch. IdentityRefused when it says nothing of the kind."""
    return service_in(unverified(assertion)[1])


def verify(assertion: str, keys: Sequence[Mapping[str, str]], audience: str, now_ms: int) -> JsonObject:
    """The claims, proven by one of these keys (`{kid, public_pem}` of the account that `named` named); IdentityRefused.

    An unknown account has no keys: call it all the same, with none.
    """
    import jwt

    header, _ = unverified(assertion)
    if set(header) != _HEADER or header["typ"] != TYP:
        raise refusal("header")
    pem = next((key["public_pem"] for key in keys if key["kid"] == header["kid"]), None)
    if pem is None:
        raise refusal("kid")
    try:
        key, algorithms = _registered(pem)
        claims: JsonObject = jwt.decode(
            assertion, key, algorithms=algorithms, audience=audience, leeway=LEEWAY_S, options={"require": _REQUIRED, "strict_aud": True}
        )
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise refusal(type(error).__name__) from None
    check_assertion(claims, audience, now_ms)
    return claims


def check_public_key(pem: str) -> str:
    """The key as it is stored: one clean SubjectPublicKeyInfo. ValueError says what is wrong with it."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if "PRIVATE KEY" in pem:
        raise ValueError("This is a private key: it stays with the service. Register its public half.")
    text: bytes = _registered(pem)[0].public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


def _registered(pem: str) -> tuple[Any, list[str]]:
    """The key and the algorithms it may be used with; ValueError for a key we do not take."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("This is not a public key in PEM (-----BEGIN PUBLIC KEY-----).") from None
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return key, ["ES256"]
    if isinstance(key, RSAPublicKey) and LEAST_RSA_BITS <= key.key_size <= MOST_RSA_BITS:
        return key, ["RS256", "PS256"]
    if isinstance(key, Ed25519PublicKey):
        return key, ["EdDSA"]
    raise ValueError(f"A key is EC P-256, Ed25519, or RSA of {LEAST_RSA_BITS} to {MOST_RSA_BITS} bits.")
