"""Live sockets and what their coming and going means to others: posts to rooms, sockets that turn out to be gone, leaving."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from functions import wiring
from functions.perform import perform
from functions.presence_fanout import tell
from heliograph.errors import Unavailable
from heliograph.fanout import Scope
from heliograph.messages import Event
from heliograph.rooms import Participant
from heliograph.signaling import to_room


def post_to_room(tenant_id: str, room_id: str, event: Event, *, except_connection_id: str | None = None) -> None:
    """Posts to every socket in the room; one that is gone leaves it, and the others are told.

    Without Redis nobody can be reached: a durable event is found by position within a heartbeat, an ephemeral one is lost as it may be.
    """
    try:
        participants = wiring.connections().in_room(tenant_id, room_id)
    except Unavailable:
        wiring.logger().warning("room not reached: no session store", trace_id=event.trace_id, tenant_id=tenant_id, room_id=room_id)
        return
    gone = perform(to_room(event, participants, except_connection_id=except_connection_id), Scope(tenant_id, room_id))
    with suppress(Unavailable):
        take_out(tenant_id, room_id, [p for p in participants if p.connection_id in gone], event)


def take_out(tenant_id: str, room_id: str, gone: Sequence[Participant], because: Event) -> None:
    """Takes sockets out of a room and tells those who are left; ends, because each step has fewer sockets."""
    for participant in gone:
        was_in, roster = wiring.connections().leave_room(tenant_id, room_id, [participant.connection_id])
        if not was_in:
            continue
        body = {"account_id": participant.account_id, "device_id": participant.device_id, **roster.position()}
        left = Event("participant_left", because.at_ms, because.trace_id, body, room_id)
        also_gone = perform(to_room(left, roster.participants), Scope(tenant_id, room_id))
        take_out(tenant_id, room_id, [p for p in roster.participants if p.connection_id in also_gone], because)


def leave_all(tenant_id: str, account_id: str, device_id: str, connection_id: str, trace_id: str, now_ms: int) -> None:
    """Takes a socket out of presence and out of every room of its account."""
    left = wiring.connections().remove(tenant_id, account_id, [connection_id])
    own, because = Participant(connection_id, account_id, device_id), Event("participant_left", now_ms, trace_id, {})
    for room in wiring.rooms().of_account(tenant_id, account_id, limit=1000):
        take_out(tenant_id, room.room_id, [own], because)
    tell(tenant_id, account_id, left, trace_id, now_ms)
