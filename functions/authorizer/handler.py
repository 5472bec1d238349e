"""Decides who may come in: access tokens on HTTP routes, one-time tickets on `$connect`.

An HTTP request with a bad token is let through with a `refusal` instead of an identity, because API Gateway's own 403 has no stable code;
the edge refuses it before anything else. A socket is refused by the gateway. Where CloudFront stands before the APIs, who came past it is refused first.
The caller's address goes into the context, because a socket's later frames have no headers.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

from adapters.settings import now_ms
from functions import admission, wiring
from functions.one_use import is_first_use
from heliograph.access import authorise, own
from heliograph.auth import ACCESS_TYP, TICKET_S, TICKET_TYP, Identity, identity_from
from heliograph.errors import HeliographError, OriginRefused, TokenInvalid, Unauthenticated
from heliograph.messages import TICKET_PREFIX

KEPT_S = 2 * TICKET_S
CONNECT = "signal:connect"


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return _socket_policy(event) if "methodArn" in event else _http_answer(event)


def _http_answer(event: dict[str, Any]) -> dict[str, Any]:
    try:
        address = admission.caller_address(event["headers"], event["requestContext"]["http"]["sourceIp"])
        scheme, _, token = event["headers"].get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise TokenInvalid
        who = identity_from(wiring.tokens().verify(token, ACCESS_TYP))
        return {"isAuthorized": True, "context": who.as_context() | {"address": address}}
    except (Unauthenticated, OriginRefused) as refusal:
        return {"isAuthorized": True, "context": {"refusal": refusal.code}}


def _socket_policy(event: dict[str, Any]) -> dict[str, Any]:
    headers = {name.lower(): value for name, value in event["headers"].items()}
    try:
        address = admission.caller_address(headers, event["requestContext"]["identity"]["sourceIp"])
        admission.admit_stranger(admission.address(address), "address")
        who = _ticket_owner(headers, event["requestContext"]["requestId"])
        return _policy("Allow", event["methodArn"], who.account_id, who.as_context() | {"address": address})
    except HeliographError as refusal:
        wiring.logger().info("socket refused", code=refusal.code, request_id=event["requestContext"]["requestId"])
        return _policy("Deny", event["methodArn"], "nobody", {})


def _ticket_owner(headers: dict[str, str], request_id: str) -> Identity:
    offered = [item.strip() for item in headers.get("sec-websocket-protocol", "").split(",")]
    tickets = [item.removeprefix(TICKET_PREFIX) for item in offered if item.startswith(TICKET_PREFIX)]
    if len(tickets) != 1:
        raise TokenInvalid
    claims = wiring.tokens().verify(tickets[0], TICKET_TYP)
    identity = identity_from(claims)
    if not is_first_use(identity.tenant_id, identity.account_id, claims["jti"], KEPT_S):
        _note_second_use(identity, request_id)
        raise TokenInvalid
    who = admission.ask(identity, None).admitted(now_ms())  # the session may have ended since the ticket was bought
    authorise(who, CONNECT, own(who))
    return who


def _note_second_use(who: Identity, request_id: str) -> None:
    """Somebody else may have read the ticket: that stands in the ledger."""
    with suppress(HeliographError):
        admission.admit_to_ledger(who)
        detail = {"sid": who.sid, "request_id": request_id, "trace_id": uuid.uuid4().hex}
        wiring.ledger().record(who.tenant_id, now_ms(), "ticket_refused", who.account_id, who.device_id, detail)


def _policy(effect: str, resource: str, principal_id: str, context: dict[str, str]) -> dict[str, Any]:
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": resource}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    return {"principalId": principal_id, "policyDocument": document, "context": context}
