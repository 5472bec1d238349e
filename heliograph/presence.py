"""Presence: one status per account, made of its live connections. A connection that missed its heartbeats does not count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from heliograph.shapes import JsonObject

STALE_AFTER_HEARTBEATS = 2.5
_RANK = ("on_a_call", "busy", "online", "away")  # the first one any device says is the account's


@dataclass(frozen=True, slots=True)
class Connection:
    """A live socket of an account. A higher `generation` of the same device replaces a lower one."""

    connection_id: str
    device_id: str
    generation: int
    status: str
    seen_at_ms: int


@dataclass(frozen=True, slots=True)
class Presence:
    account_id: str
    status: str
    devices: int
    last_seen_at_ms: int

    def as_json(self) -> JsonObject:
        return {"account_id": self.account_id, "status": self.status, "devices": self.devices, "last_seen_at_ms": self.last_seen_at_ms}


def live(connections: Iterable[Connection], now_ms: int, heartbeat_s: int) -> list[Connection]:
    """The connections that count: heard of lately, and of each device only the newest generation."""
    oldest_ms = now_ms - int(heartbeat_s * STALE_AFTER_HEARTBEATS * 1000)
    newest: dict[str, Connection] = {}
    for connection in connections:
        known = newest.get(connection.device_id)
        if connection.seen_at_ms >= oldest_ms and (known is None or connection.generation > known.generation):
            newest[connection.device_id] = connection
    return list(newest.values())


def superseded(connections: Iterable[Connection], by: Connection) -> list[Connection]:
    """Older connections of the same device, to be closed: a reconnect always wins."""
    return [c for c in connections if c.device_id == by.device_id and c.connection_id != by.connection_id and c.generation <= by.generation]


def presence_of(account_id: str, connections: Iterable[Connection], last_seen_at_ms: int, now_ms: int, heartbeat_s: int) -> Presence:
    """The account's presence at this time."""
    counted = live(connections, now_ms, heartbeat_s)
    said = {connection.status for connection in counted}
    status = next((status for status in _RANK if status in said), "offline")
    seen = max((connection.seen_at_ms for connection in counted), default=last_seen_at_ms)
    return Presence(account_id, status, len({c.device_id for c in counted}), max(seen, last_seen_at_ms))
