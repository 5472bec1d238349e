"""Federated sign-in and service assertions: which verified claims are taken for a person or a service, and what may stand in a token's header.

Signatures are checked by adapters (identity_oidc, identity_firebase, assertions_jwt). Sources: OpenID Connect Core 1.0 (2, 3.1.3.7), RFC 7523, RFC 8725.
Every refusal is one and the same IdentityRefused; its reason is a note for our log and never reaches the caller.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from heliograph.errors import IdentityRefused, Malformed
from heliograph.ids import TENANT_PATTERN, is_id
from heliograph.shapes import JsonObject, parse_json

MAX_TOKEN_CHARS = 8192
LEEWAY_S = 60
"""How far the clock of an identity provider or of a service may be from ours."""
MAX_ID_TOKEN_AGE_S = 86_400
"""An ID token proves a sign-in that just happened; however far its `exp`, a day after `iat` it proves nothing."""
MAX_ASSERTION_S = 300
FIREBASE_ISSUER = "https://securetoken.google.com/"

Kind = Literal["oidc", "firebase"]
Provisioning = Literal["linked", "create"]
KINDS: tuple[Kind, ...] = ("oidc", "firebase")
PROVISIONINGS: tuple[Provisioning, ...] = ("linked", "create")

# A header that brings or points to a key of its own, or asks for an extension (RFC 7515, 4.1; RFC 8725, 3.10).
_FOREIGN = frozenset({"jku", "jwk", "x5u", "x5c", "crit"})
_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+")
_KEY_ID = re.compile(r"[\x21-\x7e]{1,255}")
_SUBJECT = re.compile("[^\0\ud800-\udfff]{1,255}")
_JTI = re.compile(r"[A-Za-z0-9._~:+/=-]{8,64}")
_TENANT = re.compile(TENANT_PATTERN)
_PROJECT = re.compile(r"[a-z][a-z0-9.:-]{3,62}")
_URL = re.compile(r"https?://[\x21-\x7e]{1,500}")


@dataclass(frozen=True, slots=True)
class Provider:
    """An identity provider that a tenant trusts. `linked` lets in those whom the operator linked to an account, `create` makes an account at first sight.

    `audience` is our client id there, or the Firebase project; `jwks_uri` may be empty for Firebase: Google's certificates. ValueError for what cannot be.
    """

    tenant_id: str
    issuer: str
    audience: str
    kind: Kind
    jwks_uri: str
    provisioning: Provisioning

    def __post_init__(self) -> None:
        if not _TENANT.fullmatch(self.tenant_id):
            raise ValueError(f"A tenant id is of the form {TENANT_PATTERN}.")
        if self.kind not in KINDS or self.provisioning not in PROVISIONINGS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, provisioning one of {', '.join(PROVISIONINGS)}.")
        if not _URL.fullmatch(self.issuer) or not _SUBJECT.fullmatch(self.audience):
            raise ValueError("The issuer is a URL, the audience a text of 1 to 255 characters.")
        if self.kind == "firebase" and (not _PROJECT.fullmatch(self.audience) or self.issuer != FIREBASE_ISSUER + self.audience):
            raise ValueError(f"The issuer of a Firebase project is {FIREBASE_ISSUER}<project>, its audience the project id.")
        if self.kind == "oidc" and self.issuer.startswith(FIREBASE_ISSUER):
            raise ValueError(f"Tokens of {FIREBASE_ISSUER} are Firebase's: the kind is firebase.")
        if not (_URL.fullmatch(self.jwks_uri) or (self.kind == "firebase" and not self.jwks_uri)):
            raise ValueError("jwks_uri is a URL.")


@dataclass(frozen=True, slots=True)
class Subject:
    """A person as an identity provider knows them. Never an e-mail address: addresses change hands."""

    issuer: str
    subject: str


def refusal(reason: str) -> IdentityRefused:
    """The one refusal; `reason` is one of our own words, kept as a note (`__notes__`) for the log."""
    refused = IdentityRefused()
    refused.add_note(reason)
    return refused


def unverified(token: str) -> tuple[JsonObject, JsonObject]:
    """Header and claims of a compact JWS (RFC 7515, 7.1), nothing proven: good for choosing whom to ask. IdentityRefused when it is not one."""
    if len(token) > MAX_TOKEN_CHARS:
        raise refusal("too long")
    match = _COMPACT.fullmatch(token)
    if match is None:
        raise refusal("not a token")
    return _object(match[1]), _object(match[2])


def claimed_issuer(id_token: str) -> str:
    """Which issuer the token says it comes from; IdentityRefused when it says nothing of the kind."""
    issuer = unverified(id_token)[1].get("iss")
    if not isinstance(issuer, str) or not _URL.fullmatch(issuer):
        raise refusal("iss")
    return issuer


def key_id(header: Mapping[str, Any], algorithms: Sequence[str]) -> str:
    """The `kid` of an ID token's header; IdentityRefused for a key of its own, an algorithm not allowed, or another kind of token (RFC 8725, 3.11)."""
    if not _FOREIGN.isdisjoint(header):
        raise refusal("header")
    if header.get("alg") not in algorithms:
        raise refusal("alg")
    if str(header.get("typ", "JWT")).upper() != "JWT":
        raise refusal("typ")
    kid = header.get("kid")
    if not isinstance(kid, str) or not _KEY_ID.fullmatch(kid):
        raise refusal("kid")
    return kid


def subject_of(provider: Provider, claims: Mapping[str, Any], now_ms: int) -> Subject:
    """Who the claims of a verified ID token are about; IdentityRefused when they are not this provider's, not for us, or not of now."""
    now_s = now_ms / 1000
    if claims.get("iss") != provider.issuer:
        raise refusal("iss")
    _check_audience(claims, provider.audience)
    issued_s, expires_s = _seconds(claims, "iat"), _seconds(claims, "exp")
    if not now_s - MAX_ID_TOKEN_AGE_S - LEEWAY_S < issued_s <= now_s + LEEWAY_S:
        raise refusal("iat")
    if expires_s <= now_s - LEEWAY_S:
        raise refusal("exp")
    if "events" in claims:  # a security event, such as a logout token, is not a sign-in (RFC 8417, 4.5)
        raise refusal("events")
    if provider.kind == "firebase" and _has_firebase_tenant(claims):
        raise refusal("firebase.tenant")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not _SUBJECT.fullmatch(subject):
        raise refusal("sub")
    return Subject(provider.issuer, subject)


def service_in(claims: Mapping[str, Any]) -> tuple[str, str]:
    """(tenant_id, account_id) that an assertion names; IdentityRefused when they are not of the form."""
    tenant_id, account_id = claims.get("tenant_id"), claims.get("sub")
    if not isinstance(tenant_id, str) or not _TENANT.fullmatch(tenant_id):
        raise refusal("tenant_id")
    if not isinstance(account_id, str) or not is_id(account_id, "acc"):
        raise refusal("sub")
    return tenant_id, account_id


def check_assertion(claims: Mapping[str, Any], audience: str, now_ms: int) -> None:
    """Whether a service's verified assertion holds now (RFC 7523, 3; `aud` as RFC 7523bis, 4: our issuer URL and nothing else); IdentityRefused if not.

    Its `exp` has no leeway, so whoever remembers its `jti` until then has it seen once.
    """
    _, account_id = service_in(claims)
    if claims.get("iss") != account_id:
        raise refusal("iss")
    if claims.get("aud") != audience:
        raise refusal("aud")
    now_s, issued_s, expires_s = now_ms / 1000, _seconds(claims, "iat"), _seconds(claims, "exp")
    if issued_s > now_s + LEEWAY_S:
        raise refusal("iat")
    if expires_s <= now_s or not 0 < expires_s - issued_s <= MAX_ASSERTION_S:
        raise refusal("exp")
    jti = claims.get("jti")
    if not isinstance(jti, str) or not _JTI.fullmatch(jti):
        raise refusal("jti")


def _object(segment: str) -> JsonObject:
    try:
        text = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)).decode()
        return parse_json(text, MAX_TOKEN_CHARS)
    except (ValueError, Malformed):
        raise refusal("not a token") from None


def _check_audience(claims: Mapping[str, Any], audience: str) -> None:
    """OpenID Connect Core, 3.1.3.7: with several audiences the one it was issued to, `azp`, must be ours."""
    named = claims.get("aud")
    listed = named if isinstance(named, list) else [named]
    if audience not in listed or not all(isinstance(item, str) for item in listed):
        raise refusal("aud")
    if len(listed) > 1 and claims.get("azp") != audience:
        raise refusal("azp")


def _has_firebase_tenant(claims: Mapping[str, Any]) -> bool:
    """A user of an Identity Platform tenant: such a uid is unique in that tenant only, another tenant's administrator could import the same one."""
    details = claims.get("firebase")
    return isinstance(details, Mapping) and details.get("tenant") is not None


def _seconds(claims: Mapping[str, Any], name: str) -> float:
    """A NumericDate (RFC 7519, 2); IdentityRefused when it is missing or not a number of this millennium."""
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value < 1e11:
        raise refusal(name)
    return float(value)
