"""Presence: one status per account, made of its live connections. A connection that missed its heartbeats does not count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from heliograph.shapes import JsonObject

STALE_AFTER_HEARTBEATS = 2.5
ON_A_CALL = "on_a_call"
_RANK = (ON_A_CALL, "busy", "online", "away")  # the first one any device says is the account's


@dataclass(frozen=True, slots=True)
class Connection:
    """A live socket of an account. A higher `generation` of the same device replaces a lower one."""

    connection_id: str
    device_id: str
    generation: int
    status: str
    seen_at_ms: int
    watches: tuple[str, ...] | None = None  # the accounts whose presence it wants; None: everybody who shares a room

    def wants(self, account_id: str) -> bool:
        """Whether this socket is told of that account's presence."""
        return self.watches is None or account_id in self.watches


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How often sockets ping: more often on a call, because 10,000 requests a second are shared by everything in an account."""

    idle_s: int
    call_s: int

    def stale_after_ms(self, status: str) -> int:
        """After how much silence a socket of this status does not count."""
        return int((self.call_s if status == ON_A_CALL else self.idle_s) * STALE_AFTER_HEARTBEATS * 1000)


@dataclass(frozen=True, slots=True)
class Presence:
    account_id: str
    status: str
    devices: int
    last_seen_at_ms: int

    def as_json(self) -> JsonObject:
        return {"account_id": self.account_id, "status": self.status, "devices": self.devices, "last_seen_at_ms": self.last_seen_at_ms}


def live(connections: Iterable[Connection], now_ms: int, heartbeat: Heartbeat) -> list[Connection]:
    """The connections that count: heard of lately, and of each device only the newest generation."""
    newest: dict[str, Connection] = {}
    for connection in connections:
        known = newest.get(connection.device_id)
        if now_ms - connection.seen_at_ms <= heartbeat.stale_after_ms(connection.status) and (known is None or connection.generation > known.generation):
            newest[connection.device_id] = connection
    return list(newest.values())


def superseded(connections: Iterable[Connection], by: Connection) -> list[Connection]:
    """Older connections of the same device, to be closed: a reconnect always wins."""
    return [c for c in connections if c.device_id == by.device_id and c.connection_id != by.connection_id and c.generation <= by.generation]


def presence_of(account_id: str, connections: Iterable[Connection], last_seen_at_ms: int, now_ms: int, heartbeat: Heartbeat) -> Presence:
    """The account's presence at this time."""
    counted = live(connections, now_ms, heartbeat)
    said = {connection.status for connection in counted}
    status = next((status for status in _RANK if status in said), "offline")
    seen = max((connection.seen_at_ms for connection in counted), default=last_seen_at_ms)
    return Presence(account_id, status, len({c.device_id for c in counted}), max(seen, last_seen_at_ms))
