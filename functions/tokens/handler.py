"""Sign-in by password, identity provider or assertion; refresh, socket tickets, proofs on a live socket, public keys."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from adapters.accounts_mongo import Account
from adapters.passwords_argon2 import is_right
from adapters.settings import random_bytes, settings
from functions import admission, edge, wiring
from functions.edge import Received, Request
from functions.signing_in import account_of_assertion, account_of_identity
from functions.signing_out import end_sessions
from heliograph.access import Resource, authorise
from heliograph.auth import ACCESS_TYP, LEEWAY_S, SCOPES, TICKET_S, TICKET_TYP, Identity, claims_for, identity_from
from heliograph.errors import CredentialsInvalid, IdentityRefused, TokenInvalid, Unavailable
from heliograph.ids import new_id
from heliograph.messages import acknowledgement
from heliograph.sessions import SECRET_BYTES, SESSION_S, RefreshToken, Session, begun, parse_refresh_token
from heliograph.sessions import refresh as decide
from heliograph.shapes import JsonObject

ROTATIONS = 3
"""How often a refresh is decided anew because another one came first; the second time its answer is the same successor."""


def sign_in(request: Request) -> JsonObject:
    """A login that nobody has costs the same reads, the same hashing and the same entry as a wrong password."""
    body = request.body
    tenant_id, login = body["tenant_id"], body["login"]
    admission.admit_stranger(f"{tenant_id}/login/{_digest(login)}", "password")
    account = wiring.accounts().by_login(tenant_id, login)
    if not is_right(body["password"], account.password_hash if account else None) or account is None:
        _note_refusal(request, tenant_id, account.account_id if account else "unknown", "password", {})
        raise CredentialsInvalid
    return _begin(request, account, body["device_id"], "password")


def sign_in_by_identity(request: Request) -> JsonObject:
    tenant_id = request.body["tenant_id"]
    try:
        account, provider = account_of_identity(tenant_id, request.body["id_token"], request.now_ms)
    except IdentityRefused as refusal:
        _note_refusal(request, tenant_id, "unknown", "identity", {"note": "; ".join(getattr(refusal, "__notes__", []))})
        raise
    return _begin(request, account, request.body["device_id"], provider)


def sign_in_as_service(request: Request) -> JsonObject:
    """A service's session ends with its access token: it signs another assertion. Its sessions overlap, because many processes may be one service."""
    account = account_of_assertion(request.body["assertion"], request.now_ms)
    session, token = _stored(request, account, request.body["device_id"], "assertion", settings().access_token_s + LEEWAY_S)[:2]
    return {name: value for name, value in _pair(session, token, request.now_ms).items() if name != "refresh_token"}


def refresh(request: Request) -> JsonObject:
    token = parse_refresh_token(request.body["refresh_token"])
    if token is None:
        raise _refused()
    for _ in range(ROTATIONS):
        session = wiring.sessions().get(token.tenant_id, token.account_id, token.sid)
        if session is None:
            raise _refused()
        outcome, after, successor = decide(session, token, request.now_ms, settings().refresh_grace_s * 1000)
        if outcome == "reused":
            end_sessions([session], session.account_id, "refresh_reused", request.trace_id)
        if successor is None:
            raise _refused()
        stored = session if outcome == "repeated" else wiring.sessions().rotate(after)
        if stored is not None:
            return _pair(stored, successor, request.now_ms)
    raise Unavailable("Another refresh of this session is under way; try again.", retry_after_ms=100)


def ticket(request: Request) -> JsonObject:
    """MongoDB is asked whether the session lives: a socket outlives every mark that Redis may lose."""
    who = request.identity
    if wiring.sessions().get(who.tenant_id, who.account_id, who.sid) is None:
        raise TokenInvalid("The session has ended; sign in again.")
    return {"ticket": _signed(who, TICKET_TYP, TICKET_S, request.now_ms), "expires_at_ms": request.now_ms + TICKET_S * 1000}


def reauth(received: Received) -> JsonObject:
    """A fresh access token of the same device, by which the socket lives on."""
    before = received.identity
    after = identity_from(wiring.tokens().verify(received.frame.body["access_token"], ACCESS_TYP))
    if (after.tenant_id, after.account_id, after.device_id) != (before.tenant_id, before.account_id, before.device_id):
        raise TokenInvalid
    who = admission.ask(after, None).admitted(received.now_ms)
    authorise(who, received.action, Resource(before.tenant_id, account_id=before.account_id, device_id=before.device_id))
    wiring.admissions().prove(who, received.connection_id)
    return acknowledgement(received.frame.id)


def keys(request: Request) -> JsonObject:
    return wiring.tokens().key_set()


def _begin(request: Request, account: Account, device_id: str, how: str) -> JsonObject:
    """A person's new session on this device; the one before ends."""
    session, token, earlier = _stored(request, account, device_id, how, SESSION_S)
    end_sessions(earlier, account.account_id, "signed_in_again", request.trace_id)
    return _pair(session, token, request.now_ms)


def _stored(request: Request, account: Account, device_id: str, how: str, lifetime_s: int) -> tuple[Session, RefreshToken, list[Session]]:
    now_ms, sid = request.now_ms, new_id("ses", request.now_ms, random_bytes())
    random = secrets.token_bytes(2 * SECRET_BYTES)
    session, token = begun(account.tenant_id, account.account_id, device_id, sid, account.role, now_ms, random, lifetime_s)
    earlier = wiring.sessions().start(session)
    wiring.ledger().record(account.tenant_id, now_ms, "signed_in", account.account_id, device_id, {"sid": sid, "how": how})
    return session, token, earlier


def _pair(session: Session, token: RefreshToken, now_ms: int) -> JsonObject:
    lifetime_s, scope = settings().access_token_s, " ".join(sorted(SCOPES[session.role]))
    expires_at_ms = now_ms + lifetime_s * 1000
    who = Identity(session.tenant_id, session.account_id, session.device_id, session.sid, session.role, scope, now_ms, expires_at_ms)
    return {
        "access_token": _signed(who, ACCESS_TYP, lifetime_s, now_ms),
        "refresh_token": str(token),
        "token_type": "Bearer",
        "expires_at_ms": expires_at_ms,
        "tenant_id": who.tenant_id,
        "account_id": who.account_id,
        "device_id": who.device_id,
    }


def _signed(who: Identity, typ: str, lifetime_s: int, now_ms: int) -> str:
    claims = claims_for(who, issuer=settings().issuer, audience=settings().audience, now_ms=now_ms, lifetime_s=lifetime_s, jti=secrets.token_urlsafe(16))
    return wiring.tokens().sign(claims, typ)


def _note_refusal(request: Request, tenant_id: str, account_id: str, how: str, detail: dict[str, Any]) -> None:
    """Into the tenant's ledger; a tenant that nobody has gets none."""
    if not wiring.accounts().has_tenant(tenant_id):
        return
    more = {"how": how, "trace_id": request.trace_id, **detail}
    wiring.ledger().record(tenant_id, request.now_ms, "sign_in_refused", account_id, account_id, more)


def _refused() -> TokenInvalid:
    return TokenInvalid("The refresh token is not valid; sign in again.")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


_rest = edge.rest(
    {
        "POST /v1/tokens": sign_in,
        "POST /v1/tokens/identity": sign_in_by_identity,
        "POST /v1/tokens/service": sign_in_as_service,
        "POST /v1/tokens/refresh": refresh,
        "POST /v1/tickets": ticket,
        "GET /v1/jwks.json": keys,
    }
)
handler = edge.either(_rest, edge.socket({"reauth": reauth}))
