"""`$disconnect`: takes the socket out of its rooms and out of presence. Best effort; TTLs and the first 410 do the same later."""

from __future__ import annotations

import uuid
from typing import Any

from adapters.settings import now_ms
from functions import wiring
from functions.perform import post_to_room
from functions.presence_fanout import tell
from heliograph.auth import identity_from
from heliograph.messages import Event
from heliograph.signaling import sender, to_room


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    about = event["requestContext"]
    who, connection_id = identity_from(about["authorizer"]), about["connectionId"]
    trace_id, at_ms = uuid.uuid4().hex, now_ms()
    left = wiring.connections().remove(who.tenant_id, who.account_id, [connection_id])
    for room in wiring.rooms().of_account(who.tenant_id, who.account_id):
        if wiring.connections().leave_room(who.tenant_id, room.room_id, [connection_id]):
            notice = Event("participant_left", at_ms, trace_id, sender(who), room.room_id)
            post_to_room(who.tenant_id, room.room_id, to_room(notice, wiring.connections().in_room(who.tenant_id, room.room_id)))
    tell(who.tenant_id, who.account_id, left, trace_id, at_ms)
    wiring.logger().info("disconnected", trace_id=trace_id, tenant_id=who.tenant_id, account_id=who.account_id, connection_id=connection_id)
    return {"statusCode": 200}
