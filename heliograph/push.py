"""Pushes: the queued notification, and what FCM is asked to send. An outcome says what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from heliograph.effects import Notify
from heliograph.shapes import JsonObject

TITLES = {"incoming_call": "Incoming call", "missed_call": "You are being called", "message": "New message"}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a device's pushes go."""

    device_id: str
    kind: Literal["token", "fid"]
    value: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the provider said, by what to do next. `retry_after_s` goes with try_later."""

    what: Literal["delivered", "target_dead", "try_later", "rejected", "misconfigured"]
    detail: str
    retry_after_s: float | None = None


def queue_message(notify: Notify) -> JsonObject:
    """The body of the queue message."""
    return {
        "notification_id": notify.notification_id,
        "tenant_id": notify.tenant_id,
        "account_id": notify.account_id,
        "kind": notify.kind,
        "room_id": notify.room_id,
        "data": notify.data,
        "expires_at_ms": notify.expires_at_ms,
        "trace_id": notify.trace_id,
        "schema_version": 1,
    }


def parse_queue_message(message: Mapping[str, Any]) -> Notify:
    """The queued notification; KeyError or TypeError when it is not one of ours (the queue then dead-letters it)."""
    fields = ("notification_id", "tenant_id", "account_id", "kind", "room_id", "data", "expires_at_ms", "trace_id")
    return Notify(**{name: message[name] for name in fields})


def payload(notify: Notify) -> dict[str, str]:
    """The data part of the push: flat text; the id lets a client drop a repeat."""
    return {"notification_id": notify.notification_id, "kind": notify.kind, "room_id": notify.room_id, "trace_id": notify.trace_id, **notify.data}
