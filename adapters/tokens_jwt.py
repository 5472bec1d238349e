"""Access tokens and tickets: ES256 JWTs by PyJWT, one `typ` per kind (RFC 8725, 3.11). Keys are `{current, previous}`, each `{kid, private_pem}`.

Rotation overlaps: whoever signs takes the current key within FRESH_S of its rotation, whoever verifies asks again when it meets a `kid` it does not know, and
tokens of the previous key are good until they expire. A key that is withdrawn, being neither current nor previous, is forgotten by everybody within FRESH_S.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from heliograph.auth import ACCESS_TYP, LEEWAY_S, LONGEST_S
from heliograph.errors import TokenExpired, TokenInvalid, Unavailable
from heliograph.shapes import JsonObject

ALGORITHM = "ES256"
FRESH_S = 300
ASKED_AGAIN_S = 5
"""How often an unknown `kid` may make a process read the keys: anybody can send one."""
LONGEST_TOKEN = 4096
_HEADER = {"alg", "kid", "typ"}
_REQUIRED = ("iss", "aud", "sub", "exp", "iat", "jti")


class Tokens:
    def __init__(self, read: Callable[[], dict[str, Any]], clock: Callable[[], int], *, issuer: str, audience: str) -> None:
        """`read` gives the keys as they are now, `clock` milliseconds."""
        self._read_keys, self._clock, self._issuer, self._audience = read, clock, issuer, audience
        self._read_at_ms = clock()
        self._read()

    def sign(self, claims: JsonObject, typ: str) -> str:
        self._stay_fresh()
        return jwt.encode(claims, self._keys[self._current], algorithm=ALGORITHM, headers={"kid": self._current, "typ": typ})

    def verify(self, token: str, typ: str) -> JsonObject:
        """The claims; TokenExpired or TokenInvalid. The key is chosen among ours by `kid`; a header that says more than alg, kid and typ is refused."""
        self._stay_fresh()
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
        self._stay_fresh()
        algorithm = jwt.algorithms.ECAlgorithm
        keys = [algorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, "use": "sig", "alg": ALGORITHM} for kid, key in self._keys.items()]
        return {"keys": keys}

    def _key(self, kid: object) -> EllipticCurvePrivateKey | None:
        if not isinstance(kid, str):
            return None
        if kid not in self._keys:
            self._stay_fresh(ASKED_AGAIN_S)
        return self._keys.get(kid)

    def _stay_fresh(self, oldest_s: int = FRESH_S) -> None:
        """Reads keys that were read longer ago than that; while they cannot be read those at hand go on."""
        if self._clock() - self._read_at_ms > oldest_s * 1000:
            self._read_at_ms = self._clock()
            with suppress(Unavailable):
                self._read()

    def _read(self) -> None:
        keys = self._read_keys()
        self._current = str(keys["current"]["kid"])
        self._keys = {str(key["kid"]): _private(key["private_pem"]) for key in (keys["current"], keys.get("previous")) if key}


def _private(pem: str) -> EllipticCurvePrivateKey:
    key = load_pem_private_key(pem.encode(), password=None)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ValueError("the token key is not an EC key")
    return key
