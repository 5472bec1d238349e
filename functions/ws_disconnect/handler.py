"""`$disconnect`: takes the socket out of its rooms and out of presence. Best effort; the sweeper and the first 410 do the same later."""

from __future__ import annotations

import uuid
from typing import Any

from adapters.settings import now_ms
from functions import wiring
from functions.live_rooms import leave_all
from heliograph.auth import identity_from


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    about = event["requestContext"]
    who, connection_id, trace_id = identity_from(about["authorizer"]), about["connectionId"], uuid.uuid4().hex
    leave_all(who.tenant_id, who.account_id, who.device_id, connection_id, trace_id, now_ms())
    wiring.logger().info("disconnected", trace_id=trace_id, tenant_id=who.tenant_id, account_id=who.account_id, connection_id=connection_id)
    return {"statusCode": 200}
