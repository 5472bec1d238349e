"""Access tokens and tickets: ES256 JWTs by PyJWT, one `typ` per kind (RFC 8725, 3.11). Keys are `{current, previous}`, each `{kid, private_pem}`."""

from __future__ import annotations

from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from heliograph.errors import TokenExpired, TokenInvalid
from heliograph.shapes import JsonObject

ALGORITHM = "ES256"
LEEWAY_S = 30
_REQUIRED = ("iss", "aud", "sub", "exp", "iat", "jti")


class Tokens:
    def __init__(self, keys: dict[str, Any], *, issuer: str, audience: str) -> None:
        self._issuer, self._audience = issuer, audience
        self._current = str(keys["current"]["kid"])
        self._keys = {str(key["kid"]): _private(key["private_pem"]) for key in (keys["current"], keys.get("previous")) if key}

    def sign(self, claims: JsonObject, typ: str) -> str:
        return jwt.encode(claims, self._keys[self._current], algorithm=ALGORITHM, headers={"kid": self._current, "typ": typ})

    def verify(self, token: str, typ: str) -> JsonObject:
        """The claims; TokenExpired or TokenInvalid. The key is chosen among ours by `kid`, nothing else in the header is trusted."""
        try:
            header = jwt.get_unverified_header(token)
            key = self._keys.get(header.get("kid", ""))
            if key is None or header.get("typ") != typ or header.get("alg") != ALGORITHM:
                raise TokenInvalid
            return jwt.decode(
                token,
                key.public_key(),
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S if typ == "at+jwt" else 0,
                options={"require": list(_REQUIRED)},
            )
        except jwt.ExpiredSignatureError:
            raise TokenExpired from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise TokenInvalid from None

    def key_set(self) -> JsonObject:
        """The public keys as a JWK Set (RFC 7517)."""
        algorithm = jwt.algorithms.ECAlgorithm
        keys = [algorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig", "alg": ALGORITHM} for kid, key in self._keys.items()]
        return {"keys": keys}


def _private(pem: str) -> EllipticCurvePrivateKey:
    key = load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ValueError("the token key is not an EC key")
    return key
