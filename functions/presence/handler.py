"""Presence: a device sets its status, a caller reads that of everybody who shares a room."""

from __future__ import annotations

from adapters.settings import settings
from functions import edge, wiring
from functions.edge import Received, Request
from functions.presence_fanout import tell
from heliograph.messages import acknowledgement
from heliograph.presence import Connection, presence_of
from heliograph.shapes import JsonObject


def set_status(received: Received) -> JsonObject:
    who, status = received.identity, received.frame.body["status"]
    own = Connection(received.connection_id, who.device_id, received.generation, status, received.now_ms)
    known = wiring.connections().put(who.tenant_id, who.account_id, own)
    tell(who.tenant_id, who.account_id, known, received.frame.trace_id, received.now_ms)
    return acknowledgement(received.frame.id)


def read(request: Request) -> JsonObject:
    who = request.identity
    others = sorted(wiring.rooms().acquaintances(who.tenant_id, who.account_id) | {who.account_id})
    found = wiring.connections().of_accounts(who.tenant_id, others)
    heartbeat_s = settings().heartbeat_s
    return {"presence": [presence_of(other, theirs, seen, request.now_ms, heartbeat_s).as_json() for other, (theirs, seen) in found.items()]}


handler = edge.either(edge.rest({"GET /v1/presence": read}), edge.socket({"presence": set_status}))
