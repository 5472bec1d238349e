"""Where pushes of a device go."""

from __future__ import annotations

from functions import edge, wiring
from functions.edge import Request
from heliograph.access import Resource, authorise
from heliograph.push import Target
from heliograph.shapes import JsonObject


def put_push_target(request: Request) -> JsonObject:
    who = request.identity
    authorise(who, request.action, Resource(who.tenant_id, account_id=who.account_id, device_id=request.path["device_id"]))
    target = Target(who.device_id, request.body["target_kind"], request.body["target"])
    wiring.accounts().put_push_target(who.tenant_id, who.account_id, target, request.now_ms)
    return {"device_id": who.device_id, "stored_at_ms": request.now_ms}


handler = edge.rest({"PUT /v1/devices/{device_id}/push-target": put_push_target})
