"""Who may do what: roles, scopes, token claims (RFC 8725, RFC 9068). Signing and verifying are the adapter's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from heliograph.errors import Forbidden, TokenInvalid
from heliograph.ids import is_id
from heliograph.shapes import JsonObject

ACCESS_TYP, TICKET_TYP = "at+jwt", "ticket+jwt"
ACCESS_TOKEN_S = 900
TICKET_S = 30
SESSION_S = 30 * 86_400

Role = Literal["member", "moderator", "admin", "service"]

_MEMBER = "signal:connect presence:read presence:write rooms:read rooms:write messages:write calls:write devices:write media:read media:write"
SCOPES: dict[str, frozenset[str]] = {
    "member": frozenset(_MEMBER.split()),
    "moderator": frozenset(_MEMBER.split()) | {"rooms:moderate"},
    "admin": frozenset(_MEMBER.split()) | {"rooms:moderate", "evidence:read", "accounts:write"},
    "service": frozenset({"notifications:send", "rooms:read"}),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is asking: what a verified token says."""

    tenant_id: str
    account_id: str
    device_id: str
    sid: str
    role: str
    scope: str

    def must_have(self, scope: str | None) -> None:
        """Raises Forbidden when the token does not carry the scope; None is allowed to everybody signed in."""
        if scope is not None and scope not in self.scope.split():
            raise Forbidden(f"The token does not carry the scope {scope}.")

    def as_sender(self) -> JsonObject:
        """Who said it, as events carry it."""
        return {"account_id": self.account_id, "device_id": self.device_id}

    def as_context(self) -> dict[str, str]:
        """The authorizer's context: flat text, as API Gateway carries it to every later event."""
        return asdict(self)


def identity_from(claims: Mapping[str, Any]) -> Identity:
    """The identity in verified claims or in the authorizer's context; TokenInvalid when one is missing or of the wrong form."""
    values: dict[str, Any] = {name: claims.get(name) for name in ("tenant_id", "device_id", "sid", "role", "scope")}
    values["account_id"] = claims.get("account_id", claims.get("sub"))
    if not all(isinstance(value, str) for value in values.values()):
        raise TokenInvalid
    identity = Identity(**values)
    if not (is_id(identity.account_id, "acc") and is_id(identity.device_id, "dev") and is_id(identity.sid, "ses") and identity.role in SCOPES):
        raise TokenInvalid
    return identity


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
    }
