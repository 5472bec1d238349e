"""Firebase ID tokens by firebase-admin: RS256, Google's certificates, cached as their Cache-Control says. No credential is needed to verify.

A token of a user whom Firebase has disabled since is taken until it expires (an hour at most): asking Firebase at each sign-in would need its credential.
"""

from __future__ import annotations

import json
import math
import time
from functools import lru_cache
from typing import Any

from heliograph.errors import Unavailable
from heliograph.identities import LEEWAY_S, Provider, Subject, key_id, refusal, subject_of, unverified
from heliograph.shapes import JsonObject

ALGORITHMS = ("RS256",)
TIMEOUT_S, REST_S = 5, 5
MOST_PROJECTS = 64


class FirebaseTokens:
    """One client per project, kept for the process with its certificates."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S, rest_s: float = REST_S) -> None:
        self._project = lru_cache(maxsize=MOST_PROJECTS)(lambda project_id, certificates_url: _Project(project_id, certificates_url, timeout_s, rest_s))

    def verify(self, id_token: str, provider: Provider, now_ms: int) -> Subject:
        """Who signed in; IdentityRefused, or Unavailable when Google's certificates are out of reach."""
        header, _ = unverified(id_token)
        key_id(header, ALGORITHMS)
        return subject_of(provider, self._project(provider.audience, provider.jwks_uri).verified(id_token), now_ms)


class _Project:
    """The client of one Firebase project; after a failed fetch of certificates it is left alone for a moment."""

    def __init__(self, project_id: str, certificates_url: str, timeout_s: float, rest_s: float) -> None:
        self._client = _client(project_id, certificates_url, timeout_s)
        self._rest_s, self._failed_at = rest_s, -math.inf

    def verified(self, id_token: str) -> JsonObject:
        from firebase_admin import auth

        if time.monotonic() - self._failed_at < self._rest_s:
            raise self._unavailable()
        try:
            claims: JsonObject = self._client.verify_id_token(id_token, clock_skew_seconds=LEEWAY_S)
        except auth.CertificateFetchError:
            raise self._unavailable(has_failed=True) from None
        except auth.InvalidIdTokenError as error:
            if isinstance(error.cause, json.JSONDecodeError):  # the endpoint answered with something else than certificates
                raise self._unavailable(has_failed=True) from None
            raise refusal(type(error).__name__) from None
        except (ValueError, TypeError) as error:
            raise refusal(type(error).__name__) from None
        return claims

    def _unavailable(self, *, has_failed: bool = False) -> Unavailable:
        if has_failed:
            self._failed_at = time.monotonic()
        return Unavailable("The identity provider is out of reach for a moment; try again.")


def _client(project_id: str, certificates_url: str, timeout_s: float) -> Any:
    """A client that can only verify. The private names used here are pinned by a contract test."""
    import firebase_admin
    from firebase_admin import auth
    from google.auth.credentials import AnonymousCredentials

    anonymous: Any = AnonymousCredentials()  # type: ignore[no-untyped-call]
    client = auth.Client(firebase_admin.App(f"heliograph-{project_id}", anonymous, {"projectId": project_id, "httpTimeout": timeout_s}))
    if client.emulated:
        raise RuntimeError("FIREBASE_AUTH_EMULATOR_HOST is set: firebase-admin would take unsigned tokens")
    if certificates_url:
        verifier = client._token_verifier
        verifier.id_token_verifier.cert_url = certificates_url
        verifier.request.session.max_redirects = 0
    return client
