"""Sessions, roles and the audit log over REST. What admins do answers for their own tenant only."""

from __future__ import annotations

from adapters.settings import now_ms
from functions import edge, wiring
from functions.edge import Request
from functions.signing_out import end_sessions
from heliograph.access import Resource, authorise
from heliograph.errors import Conflict, NotFound
from heliograph.shapes import JsonObject

DEFAULT_PAGE, MAX_PAGE = 100, 200
AUDITED = ("seq", "at_ms", "kind", "actor", "subject", "detail", "hash")


def list_sessions(request: Request) -> JsonObject:
    who = request.identity
    names = ("sid", "device_id", "signed_in_at_ms", "refreshed_at_ms")
    found = wiring.sessions().of_account(who.tenant_id, who.account_id)
    return {"sessions": [{name: getattr(session, name) for name in names} | {"is_current": session.sid == who.sid} for session in found]}


def end_all(request: Request) -> JsonObject:
    who = request.identity
    found = wiring.sessions().of_account(who.tenant_id, who.account_id)
    end_sessions(found, who.account_id, "signed_out", request.trace_id)
    return {"ended": len(found)}


def end_one(request: Request) -> JsonObject:
    who = request.identity
    session = wiring.sessions().get(who.tenant_id, who.account_id, request.path["sid"])
    authorise(who, request.action, Resource(session.tenant_id, account_id=session.account_id) if session else None)
    end_sessions([session] if session else [], who.account_id, "signed_out", request.trace_id)
    return {"ended": 1}


def end_of_account(request: Request) -> JsonObject:
    who, account_id = request.identity, request.path["account_id"]
    _must_exist(request)
    found = wiring.sessions().of_account(who.tenant_id, account_id, request.query.get("device_id"))
    end_sessions(found, who.account_id, "revoked", request.trace_id)
    return {"ended": len(found)}


def set_role(request: Request) -> JsonObject:
    """The account's tokens are refreshed from now on; what they refresh into has the new role."""
    who, account_id, role = request.identity, request.path["account_id"], request.body["role"]
    before = _must_exist(request)
    if account_id == who.account_id:
        raise Conflict("Nobody changes their own role; ask another admin.")
    if before == "service":
        raise Conflict("A service account stays one.")
    wiring.ledger().record(who.tenant_id, request.now_ms, "role_changed", who.account_id, account_id, {"from": before, "to": role})
    wiring.accounts().set_role(who.tenant_id, account_id, role)
    wiring.sessions().set_role(who.tenant_id, account_id, role)
    wiring.admissions().make_stale(who.tenant_id, account_id, now_ms())  # after the writes: whoever read the old role began before this
    return {"account_id": account_id, "role": role}


def audit(request: Request) -> JsonObject:
    who = request.identity
    limit = min(max(int(request.query.get("limit", DEFAULT_PAGE)), 1), MAX_PAGE)
    entries, head = wiring.ledger().page(who.tenant_id, int(request.query.get("after", "0")), limit)
    return {"entries": [{name: entry[name] for name in AUDITED} for entry in entries], "head": head}


def _must_exist(request: Request) -> str:
    """The role of the account in the path; NotFound when the caller's tenant has no such account."""
    who = request.identity
    account = wiring.accounts().by_id(who.tenant_id, request.path["account_id"])
    authorise(who, request.action, Resource(account.tenant_id) if account else None)
    if account is None:
        raise NotFound  # authorise did already
    return account.role


handler = edge.rest(
    {
        "GET /v1/sessions": list_sessions,
        "DELETE /v1/sessions": end_all,
        "DELETE /v1/sessions/{sid}": end_one,
        "DELETE /v1/accounts/{account_id}/sessions": end_of_account,
        "PUT /v1/accounts/{account_id}/role": set_role,
        "GET /v1/audit": audit,
    }
)
