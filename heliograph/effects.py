"""What a rule wants done in the world; the shells do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from heliograph.messages import Event


@dataclass(frozen=True, slots=True)
class Post:
    """Send an event to one socket."""

    connection_id: str
    event: Event


@dataclass(frozen=True, slots=True)
class Close:
    """Close one socket."""

    connection_id: str
    reason: Literal["connected_elsewhere", "signed_out", "token_expired"]


@dataclass(frozen=True, slots=True)
class Notify:
    """Queue a push to every device of an account."""

    notification_id: str
    tenant_id: str
    account_id: str
    kind: Literal["incoming_call", "missed_call", "message"]
    room_id: str
    data: dict[str, str]
    expires_at_ms: int
    trace_id: str


Effect = Post | Close | Notify
