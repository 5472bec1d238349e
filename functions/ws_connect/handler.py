"""`$connect`: registers the socket and selects the subprotocol. It cannot post to its own connection: the welcome answers `hello`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from adapters.settings import now_ms
from functions import wiring
from heliograph.auth import identity_from
from heliograph.errors import HeliographError, Unavailable
from heliograph.messages import SUBPROTOCOL
from heliograph.presence import Connection


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    about = event["requestContext"]
    headers = {name.lower(): value for name, value in event["headers"].items()}
    if SUBPROTOCOL not in [item.strip() for item in headers.get("sec-websocket-protocol", "").split(",")]:
        return {"statusCode": 400}
    try:
        who = identity_from(about["authorizer"])
        connection = Connection(about["connectionId"], who.device_id, int(about["connectedAt"]), "online", now_ms())
        with suppress(Unavailable):  # without Redis the socket opens too: it can write, and its pings register it once Redis is back
            wiring.connections().put(who.tenant_id, who.account_id, connection)
    except HeliographError as refusal:
        wiring.logger().warning("connect refused", code=refusal.code, request_id=about["requestId"])
        return {"statusCode": refusal.status}
    wiring.logger().info("connected", tenant_id=who.tenant_id, account_id=who.account_id, device_id=who.device_id, connection_id=connection.connection_id)
    return {"statusCode": 200, "headers": {"Sec-WebSocket-Protocol": SUBPROTOCOL}}
