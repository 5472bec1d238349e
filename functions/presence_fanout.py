"""Tells everybody who shares a room with an account how that account is."""

from __future__ import annotations

from adapters.settings import settings
from functions import wiring
from functions.perform import perform
from heliograph.effects import Post
from heliograph.messages import Event
from heliograph.presence import Connection, Presence, live, presence_of


def tell(tenant_id: str, account_id: str, connections: list[Connection], trace_id: str, now_ms: int) -> list[Presence]:
    """Posts the account's presence to its acquaintances' live sockets; returns the acquaintances' own presence."""
    heartbeat_s = settings().heartbeat_s
    others = wiring.connections().of_accounts(tenant_id, sorted(wiring.rooms().acquaintances(tenant_id, account_id)))
    own = presence_of(account_id, connections, now_ms, now_ms, heartbeat_s)
    event = Event("presence", now_ms, trace_id, own.as_json())
    owner = {c.connection_id: other for other, (theirs, _) in others.items() for c in live(theirs, now_ms, heartbeat_s)}
    for gone in perform(Post(connection_id, event) for connection_id in owner):
        wiring.connections().remove(tenant_id, owner[gone], [gone])
    return [presence_of(other, theirs, seen, now_ms, heartbeat_s) for other, (theirs, seen) in others.items()]
