"""Who said it, and one post per live socket of a room."""

from __future__ import annotations

from collections.abc import Sequence

from heliograph.auth import Identity
from heliograph.effects import Post
from heliograph.messages import Event
from heliograph.rooms import Participant
from heliograph.shapes import JsonObject


def sender(actor: Identity) -> JsonObject:
    return {"account_id": actor.account_id, "device_id": actor.device_id}


def to_room(event: Event, participants: Sequence[Participant], *, except_connection_id: str | None = None) -> list[Post]:
    """One post per live socket of the room."""
    return [Post(p.connection_id, event) for p in participants if p.connection_id != except_connection_id]
