"""Tells those who share a room with an account how that account is: at once, and then at most once a second."""

from __future__ import annotations

from collections.abc import Iterable

from functions import wiring
from functions.perform import perform
from functions.put_off import tell_presence
from heliograph.effects import Post
from heliograph.fanout import Scope
from heliograph.messages import Event
from heliograph.presence import Connection, Presence, live, presence_of

Known = dict[str, tuple[list[Connection], int]]


def acquaintances(tenant_id: str, account_id: str) -> Known:
    """Everybody who shares a room with the account: their connections and when they were last seen."""
    return wiring.connections().of_accounts(tenant_id, sorted(wiring.rooms().acquaintances(tenant_id, account_id)))


def presences(known: Known, now_ms: int) -> list[Presence]:
    """The presence of each."""
    return [presence_of(account_id, theirs, seen, now_ms, wiring.heartbeat()) for account_id, (theirs, seen) in known.items()]


def tell(tenant_id: str, account_id: str, connections: Iterable[Connection], trace_id: str, now_ms: int, known: Known | None = None) -> None:
    """Posts the account's presence to its acquaintances, or queues that when it was told less than a second ago."""
    may_now, must_queue = wiring.connections().may_tell_presence(tenant_id, account_id)
    if may_now:
        tell_now(tenant_id, account_id, connections, trace_id, now_ms, known)
    elif must_queue:
        tell_presence(tenant_id, account_id, trace_id)


def tell_now(tenant_id: str, account_id: str, connections: Iterable[Connection], trace_id: str, now_ms: int, known: Known | None = None) -> None:
    """Posts the account's presence to every socket that wants it."""
    event = Event("presence", now_ms, trace_id, presence_of(account_id, connections, now_ms, now_ms, wiring.heartbeat()).as_json())
    others = acquaintances(tenant_id, account_id) if known is None else known
    owner = {c.connection_id: other for other, (theirs, _) in others.items() for c in live(theirs, now_ms, wiring.heartbeat()) if c.wants(account_id)}
    for gone in perform([Post(connection_id, event) for connection_id in owner], Scope(tenant_id, account_id=account_id, owners=owner)):
        wiring.connections().remove(tenant_id, owner[gone], [gone])
