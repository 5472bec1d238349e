"""Time-limited credentials for our relays (draft-uberti-behave-turn-rest): for those that the registry knows, else for the configured ones."""

from __future__ import annotations

from contextlib import suppress

from adapters.settings import random_bytes, settings
from functions import edge, wiring
from functions.edge import Request
from heliograph.auth import Identity
from heliograph.errors import Unavailable
from heliograph.ice import turn_password, turn_username
from heliograph.relays import RelayNode, choose, told_urls
from heliograph.shapes import JsonObject


def ice_servers(request: Request) -> JsonObject:
    who, ttl_s = request.identity, settings().turn_credential_s
    username = turn_username(request.now_ms // 1000 + ttl_s, who.account_id, who.device_id)
    password = turn_password(wiring.turn_secret().current, username)
    groups = told_urls(_relays(who, ttl_s), settings().turn_urls)
    servers: list[JsonObject] = [{"urls": urls, "username": username, "credential": password} for urls in groups]
    if settings().stun_urls:
        servers.insert(0, {"urls": settings().stun_urls.split(",")})
    return {"ice_servers": servers, "ttl_s": ttl_s, "expires_at_ms": request.now_ms + ttl_s * 1000}


def _relays(who: Identity, ttl_s: int) -> list[RelayNode]:
    """Those of the registry that take new allocations; none while the session store is away or slow: it costs its time-out, once."""
    relays = wiring.relays()
    with suppress(Unavailable):
        chosen = choose(relays.live(), random_bytes())
        with suppress(Unavailable):  # without it a relay's usage waits for its tenant, and a drain is not told to this account
            relays.tell_tenant(who.account_id, who.tenant_id, ttl_s)
        return chosen
    return []


handler = edge.rest({"GET /v1/ice-servers": ice_servers})
