"""ID tokens of any OpenID Connect provider: signatures by PyJWT, keys by its PyJWKClient (cached set, no redirects, one refresh per cooldown for unknown kids).

What PyJWKClient lacks while a provider is away is added here: a rest between attempts, and the last key set for an hour.
"""

from __future__ import annotations

import math
import time
from functools import cache, lru_cache
from http.client import HTTPException
from typing import Any

from heliograph.errors import Unavailable
from heliograph.identities import LEEWAY_S, Provider, Subject, key_id, refusal, subject_of, unverified
from heliograph.shapes import JsonObject

ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
TIMEOUT_S, LIFESPAN_S, COOLDOWN_S = 3, 300, 30
REST_S, STALE_S = 5, 3600
MOST_PROVIDERS = 256
_REQUIRED = ["iss", "aud", "sub", "exp", "iat"]


class OidcTokens:
    """One key set per provider, kept for the process; providers that publish at the same URL share it."""

    def __init__(
        self, *, timeout_s: float = TIMEOUT_S, lifespan_s: float = LIFESPAN_S, cooldown_s: float = COOLDOWN_S, rest_s: float = REST_S, stale_s: float = STALE_S
    ) -> None:
        def key_set(jwks_uri: str) -> Any:
            return _key_set_class()(jwks_uri, timeout=timeout_s, lifespan=lifespan_s, cooldown_duration=cooldown_s, rest_s=rest_s, stale_s=stale_s)

        self._key_set = lru_cache(maxsize=MOST_PROVIDERS)(key_set)

    def verify(self, id_token: str, provider: Provider, now_ms: int) -> Subject:
        """Who signed in; IdentityRefused, or Unavailable when the provider's keys are out of reach."""
        header, _ = unverified(id_token)
        key = self._key_set(provider.jwks_uri).key(key_id(header, ALGORITHMS))
        return subject_of(provider, _verified(id_token, key, provider), now_ms)


def _verified(id_token: str, key: Any, provider: Provider) -> JsonObject:
    """The claims. `key` carries its own algorithm, and PyJWT refuses a token of another: a public key is never an HMAC secret."""
    import jwt

    try:
        return jwt.decode(
            id_token,
            key,
            algorithms=list(ALGORITHMS),
            audience=provider.audience,
            issuer=provider.issuer,
            leeway=LEEWAY_S,
            options={"require": _REQUIRED, "enforce_minimum_key_length": True},
        )
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise refusal(type(error).__name__) from None


@cache
def _key_set_class() -> Any:
    """A subclass of PyJWKClient, made where it is first needed: importing jwt costs a cold start."""
    from jwt import PyJWK, PyJWKClient, PyJWKClientConnectionError, PyJWKClientError, PyJWTError

    class KeySet(PyJWKClient):
        def __init__(self, uri: str, *, rest_s: float, stale_s: float, **options: Any) -> None:
            super().__init__(uri, **options)
            self._rest_s, self._stale_s = rest_s, stale_s
            self._failed_at = -math.inf

        def key(self, kid: str) -> PyJWK:
            """The published key; IdentityRefused when there is none of that name, Unavailable when nobody can say."""
            try:
                return self.get_signing_key(kid)
            except PyJWKClientConnectionError:
                return self._kept(kid)
            except PyJWKClientError:
                raise refusal("kid") from None

        def fetch_data(self) -> Any:
            """Every way to fail is one error here: a provider that answers nonsense is away, its users are not refused. Then it is left alone for a moment."""
            if time.monotonic() - self._failed_at < self._rest_s:
                raise PyJWKClientConnectionError("the last attempt failed a moment ago")
            try:
                return super().fetch_data()
            except (OSError, HTTPException, ValueError, RecursionError, PyJWTError) as error:
                self._failed_at = time.monotonic()
                raise PyJWKClientConnectionError(type(error).__name__) from error

        def _kept(self, kid: str) -> PyJWK:
            """A key of the last set that was fetched, if that is not too old to trust."""
            last = self.jwk_set_cache.jwk_set_with_timestamp if self.jwk_set_cache else None
            if last is not None and time.monotonic() - last.get_timestamp() < self._stale_s:
                known = self.match_kid([key for key in last.get_jwk_set().keys if key.public_key_use in ("sig", None)], kid)
                if known is not None:
                    return known
            raise Unavailable("The identity provider is out of reach for a moment; try again.")

    return KeySet
