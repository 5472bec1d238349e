"""Sign-in, refresh, socket tickets and public keys."""

from __future__ import annotations

import hashlib
import secrets

from adapters.accounts_mongo import Session
from adapters.passwords_argon2 import is_right
from adapters.settings import random_bytes, settings
from functions import edge, wiring
from functions.edge import Request
from heliograph.auth import ACCESS_TYP, SCOPES, SESSION_S, TICKET_S, TICKET_TYP, Identity, claims_for
from heliograph.errors import CredentialsInvalid, TokenInvalid
from heliograph.ids import new_id
from heliograph.shapes import JsonObject


def sign_in(request: Request) -> JsonObject:
    body, now_ms = request.body, request.now_ms
    account = wiring.accounts().by_login(body["tenant_id"], body["login"])
    if not is_right(body["password"], account.password_hash if account else None) or account is None:
        raise CredentialsInvalid
    refresh_token, sid = secrets.token_urlsafe(32), new_id("ses", now_ms, random_bytes())
    session = Session(account.tenant_id, account.account_id, body["device_id"], sid, account.role, _digest(refresh_token), now_ms + SESSION_S * 1000)
    wiring.accounts().start_session(session)
    wiring.ledger().record(account.tenant_id, now_ms, "signed_in", account.account_id, body["device_id"], {"sid": sid})
    return _pair(session, refresh_token, now_ms)


def refresh(request: Request) -> JsonObject:
    now_ms, successor = request.now_ms, secrets.token_urlsafe(32)
    session = wiring.accounts().rotate(_digest(request.body["refresh_token"]), _digest(successor), now_ms, now_ms + SESSION_S * 1000)
    if session is None:
        raise TokenInvalid("The refresh token is not valid; sign in again.")
    return _pair(session, successor, now_ms)


def ticket(request: Request) -> JsonObject:
    return {"ticket": _signed(request.identity, TICKET_TYP, TICKET_S, request.now_ms), "expires_at_ms": request.now_ms + TICKET_S * 1000}


def keys(request: Request) -> JsonObject:
    return wiring.tokens().key_set()


def _pair(session: Session, refresh_token: str, now_ms: int) -> JsonObject:
    scope = " ".join(sorted(SCOPES[session.role]))
    who = Identity(session.tenant_id, session.account_id, session.device_id, session.sid, session.role, scope)
    return {
        "access_token": _signed(who, ACCESS_TYP, settings().access_token_s, now_ms),
        "refresh_token": refresh_token,
        "token_type": "Bearer",
        "expires_at_ms": now_ms + settings().access_token_s * 1000,
        "tenant_id": who.tenant_id,
        "account_id": who.account_id,
        "device_id": who.device_id,
    }


def _signed(who: Identity, typ: str, lifetime_s: int, now_ms: int) -> str:
    claims = claims_for(who, issuer=settings().issuer, audience=settings().audience, now_ms=now_ms, lifetime_s=lifetime_s, jti=secrets.token_urlsafe(16))
    return wiring.tokens().sign(claims, typ)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


handler = edge.rest({"POST /v1/tokens": sign_in, "POST /v1/tokens/refresh": refresh, "POST /v1/tickets": ticket, "GET /v1/jwks.json": keys})
