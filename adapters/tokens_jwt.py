"""Access tokens and tickets: ES256 JWTs by PyJWT, one `typ` per kind (RFC 8725, 3.11). Keys are `{current, previous}`, each `{kid, private_pem}`.

Rotation overlaps: whoever signs takes the current key within FRESH_S of its rotation, whoever verifies asks again when it meets a `kid` it does not know, and
tokens of the previous key are good until they expire. A key that is withdrawn, being neither current nor previous, is forgotten by everybody within FRESH_S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from adapters.secrets_aws import ASKED_AGAIN_S, Rotated
from heliograph.auth import ACCESS_TYP, LEEWAY_S, LONGEST_S
from heliograph.errors import TokenExpired, TokenInvalid
from heliograph.shapes import JsonObject

ALGORITHM = "ES256"
LONGEST_TOKEN = 4096
_HEADER = {"alg", "kid", "typ"}
_REQUIRED = ("iss", "aud", "sub", "exp", "iat", "jti")


class Tokens:
    def __init__(self, read: Callable[[], dict[str, Any]], clock: Callable[[], int], *, issuer: str, audience: str) -> None:
        """`read` gives the keys as they are now, `clock` milliseconds."""
        self._keys, self._issuer, self._audience = Rotated(lambda: _keys(read()), clock), issuer, audience

    def sign(self, claims: JsonObject, typ: str) -> str:
        keys = self._keys.get()
        return jwt.encode(claims, keys.by_kid[keys.current], algorithm=ALGORITHM, headers={"kid": keys.current, "typ": typ})

    def verify(self, token: str, typ: str) -> JsonObject:
        """The claims; TokenExpired or TokenInvalid. The key is chosen among ours by `kid`; a header that says more than alg, kid and typ is refused."""
        try:
            if len(token) > LONGEST_TOKEN:
                raise TokenInvalid
            header = jwt.get_unverified_header(token)
            key = self._key(header.get("kid"))
            if key is None or header.keys() != _HEADER or header["typ"] != typ or header["alg"] != ALGORITHM:
                raise TokenInvalid
            claims: JsonObject = jwt.decode(
                token,
                key.public_key(),
                algorithms=[ALGORITHM],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S if typ == ACCESS_TYP else 0,
                options={"require": list(_REQUIRED)},
            )
            if claims["exp"] - claims["iat"] > LONGEST_S[typ]:
                raise TokenInvalid  # whoever made it, no token of ours lives longer
        except jwt.ExpiredSignatureError:
            raise TokenExpired from None
        except (jwt.PyJWTError, ValueError, TypeError):
            raise TokenInvalid from None
        return claims

    def key_set(self) -> JsonObject:
        """The public keys as a JWK Set (RFC 7517)."""
        algorithm = jwt.algorithms.ECAlgorithm
        keys = [algorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig", "alg": ALGORITHM} for kid, key in self._keys.get().by_kid.items()]
        return {"keys": keys}

    def _key(self, kid: object) -> EllipticCurvePrivateKey | None:
        if not isinstance(kid, str):
            return None
        return self._keys.get().by_kid.get(kid) or self._keys.get(ASKED_AGAIN_S).by_kid.get(kid)


@dataclass(frozen=True, slots=True)
class _Keys:
    current: str
    by_kid: dict[str, EllipticCurvePrivateKey]


def _keys(secret: dict[str, Any]) -> _Keys:
    by_kid = {str(key["kid"]): _private(key["private_pem"]) for key in (secret["current"], secret.get("previous")) if key}
    return _Keys(str(secret["current"]["kid"]), by_kid)


def _private(pem: str) -> EllipticCurvePrivateKey:
    key = load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ValueError("the token key is not an EC key")
    return key
