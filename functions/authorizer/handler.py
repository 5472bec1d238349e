"""Decides who may come in: access tokens on HTTP routes, one-time tickets on `$connect`.

An HTTP request with a bad token is let through with a `refusal` instead of an identity, because API Gateway's own 403 has no stable code;
the edge refuses it before anything else. A socket is refused by the gateway.
"""

from __future__ import annotations

from typing import Any

from adapters.settings import now_ms
from functions import wiring
from heliograph.auth import ACCESS_TYP, TICKET_TYP, Identity, identity_from
from heliograph.errors import HeliographError, TokenInvalid, Unauthenticated, Unavailable
from heliograph.messages import TICKET_PREFIX


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return _socket_policy(event) if "methodArn" in event else _http_answer(event)


def _http_answer(event: dict[str, Any]) -> dict[str, Any]:
    try:
        scheme, _, token = event["headers"].get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise TokenInvalid
        return {"isAuthorized": True, "context": identity_from(wiring.tokens().verify(token, ACCESS_TYP)).as_context()}
    except Unauthenticated as refusal:
        return {"isAuthorized": True, "context": {"refusal": refusal.code}}


def _socket_policy(event: dict[str, Any]) -> dict[str, Any]:
    try:
        return _policy("Allow", event["methodArn"], _ticket_owner(event))
    except HeliographError as refusal:
        wiring.logger().info("socket refused", code=refusal.code, request_id=event["requestContext"]["requestId"])
        return _policy("Deny", event["methodArn"], None)


def _ticket_owner(event: dict[str, Any]) -> Identity:
    headers = {name.lower(): value for name, value in event["headers"].items()}
    offered = [item.strip() for item in headers.get("sec-websocket-protocol", "").split(",")]
    tickets = [item.removeprefix(TICKET_PREFIX) for item in offered if item.startswith(TICKET_PREFIX)]
    if len(tickets) != 1:
        raise TokenInvalid
    claims = wiring.tokens().verify(tickets[0], TICKET_TYP)
    identity = identity_from(claims)
    if not _is_first_use(identity, claims["jti"]):
        raise TokenInvalid
    return identity


def _is_first_use(identity: Identity, jti: str) -> bool:
    """Redis says so, or MongoDB while Redis is away: a socket can be opened as long as either answers."""
    try:
        return wiring.tickets().take(identity.tenant_id, identity.account_id, jti)
    except Unavailable:
        return wiring.spare_tickets().take(identity.tenant_id, identity.account_id, jti, now_ms())


def _policy(effect: str, resource: str, identity: Identity | None) -> dict[str, Any]:
    statement = {"Action": "execute-api:Invoke", "Effect": effect, "Resource": resource}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    context = identity.as_context() if identity else {}
    return {"principalId": identity.account_id if identity else "nobody", "policyDocument": document, "context": context}
