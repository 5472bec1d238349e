"""Time-limited credentials for our relay (draft-uberti-behave-turn-rest)."""

from __future__ import annotations

from adapters.settings import settings
from functions import edge, wiring
from functions.edge import Request
from heliograph.ice import turn_password, turn_username
from heliograph.shapes import JsonObject


def ice_servers(request: Request) -> JsonObject:
    who, ttl_s = request.identity, settings().turn_credential_s
    username = turn_username(request.now_ms // 1000 + ttl_s, who.account_id, who.device_id)
    password = turn_password(wiring.turn_secret().current, username)
    servers: list[JsonObject] = [{"urls": settings().turn_urls.split(","), "username": username, "credential": password}]
    if settings().stun_urls:
        servers.insert(0, {"urls": settings().stun_urls.split(",")})
    return {"ice_servers": servers, "ttl_s": ttl_s, "expires_at_ms": request.now_ms + ttl_s * 1000}


handler = edge.rest({"GET /v1/ice-servers": ice_servers})
