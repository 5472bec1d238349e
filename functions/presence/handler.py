"""Presence: a device sets its status or chooses whom it watches, a caller reads that of everybody who shares a room."""

from __future__ import annotations

from dataclasses import replace

from functions import edge, wiring
from functions.edge import Received, Request
from functions.presence_fanout import acquaintances, presences, tell
from heliograph.messages import acknowledgement
from heliograph.presence import Connection
from heliograph.shapes import JsonObject


def set_status(received: Received) -> JsonObject:
    who = received.identity
    known = wiring.connections().put(who.tenant_id, who.account_id, replace(_own(received), status=received.frame.body["status"]))
    tell(who.tenant_id, who.account_id, known, received.frame.trace_id, received.now_ms)
    return acknowledgement(received.frame.id)


def watch(received: Received) -> JsonObject:
    who = received.identity
    wiring.connections().put(who.tenant_id, who.account_id, replace(_own(received), watches=tuple(received.frame.body["account_ids"])))
    return acknowledgement(received.frame.id)


def read(request: Request) -> JsonObject:
    who = request.identity
    own = wiring.connections().of_accounts(who.tenant_id, [who.account_id])
    return {"presence": [item.as_json() for item in presences(own | acquaintances(who.tenant_id, who.account_id), request.now_ms)]}


def _own(received: Received) -> Connection:
    who = received.identity
    return wiring.connections().own(who.tenant_id, who.account_id, received.connection_id, who.device_id, received.generation, received.now_ms)


handler = edge.either(edge.rest({"GET /v1/presence": read}), edge.socket({"presence": set_status, "watch": watch}))
