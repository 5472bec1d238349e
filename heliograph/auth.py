"""Who is asking: roles, scopes, token claims (RFC 8725, RFC 9068). Signing and verifying are the adapter's, what a caller may do is `access`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from heliograph.errors import TokenInvalid
from heliograph.ids import is_id
from heliograph.shapes import JsonObject

ACCESS_TYP, TICKET_TYP = "at+jwt", "ticket+jwt"
ACCESS_TOKEN_S = 900
TICKET_S = 30
LONGEST_S = {ACCESS_TYP: ACCESS_TOKEN_S, TICKET_TYP: TICKET_S}
LEEWAY_S = 30
"""How long after its expiry an access token, and the socket opened with it, is still taken: clocks differ."""

Role = Literal["member", "moderator", "admin", "service"]
PEOPLE: tuple[Role, ...] = ("member", "moderator", "admin")

_MEMBER = (
    "signal:connect presence:read presence:write rooms:read rooms:write messages:write calls:write devices:write media:read media:write "
    "sessions:read sessions:write"
)
SCOPES: dict[str, frozenset[str]] = {
    "member": frozenset(_MEMBER.split()),
    "moderator": frozenset(_MEMBER.split()) | {"rooms:moderate"},
    "admin": frozenset(_MEMBER.split()) | {"rooms:moderate", "evidence:read", "accounts:write", "audit:read"},
    "service": frozenset({"notifications:send", "rooms:read"}),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is asking: what a verified token says. `expires_at_ms` is the end of the authentication: the access token's, in a ticket too."""

    tenant_id: str
    account_id: str
    device_id: str
    sid: str
    role: str
    scope: str
    issued_at_ms: int
    expires_at_ms: int

    def as_sender(self) -> JsonObject:
        """Who said it, as events carry it."""
        return {"account_id": self.account_id, "device_id": self.device_id}

    def as_context(self) -> dict[str, str]:
        """The authorizer's context: flat text, as API Gateway carries it to every later event."""
        return {name: str(getattr(self, name)) for name in _TEXTS + _TIMES}


_TIMES = ("issued_at_ms", "expires_at_ms")
_TEXTS = tuple(item.name for item in fields(Identity) if item.name not in _TIMES)


def identity_from(claims: Mapping[str, Any]) -> Identity:
    """The identity in verified claims or in the authorizer's context; TokenInvalid when one is missing or of the wrong form."""
    values: dict[str, Any] = {name: claims.get(name) for name in _TEXTS}
    values["account_id"] = claims.get("account_id", claims.get("sub"))
    if not all(isinstance(value, str) for value in values.values()):
        raise TokenInvalid
    values |= {name: _whole(claims.get(name)) for name in _TIMES}
    identity = Identity(**values)
    if not (is_id(identity.account_id, "acc") and is_id(identity.device_id, "dev") and is_id(identity.sid, "ses") and identity.role in SCOPES):
        raise TokenInvalid
    return identity


def _whole(value: object) -> int:
    """A time in claims (a number) or in a context (its text)."""
    text = str(value)
    if isinstance(value, bool) or not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise TokenInvalid
    return int(text)


def claims_for(identity: Identity, *, issuer: str, audience: str, now_ms: int, lifetime_s: int, jti: str) -> JsonObject:
    """The claims of an access token or ticket; `typ` and `kid` stand in the header."""
    now_s = now_ms // 1000
    return {
        "iss": issuer,
        "aud": audience,
        "sub": identity.account_id,
        "iat": now_s,
        "exp": now_s + lifetime_s,
        "jti": jti,
        "tenant_id": identity.tenant_id,
        "device_id": identity.device_id,
        "sid": identity.sid,
        "role": identity.role,
        "scope": identity.scope,
        "issued_at_ms": identity.issued_at_ms,
        "expires_at_ms": identity.expires_at_ms,
    }
