"""Live sockets and what their coming and going means to others: posts to rooms, sockets that turn out to be gone, leaving."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from adapters.settings import random_bytes
from functions import wiring
from functions.perform import perform
from functions.presence_fanout import tell
from functions.put_off import enter_again
from heliograph.errors import Unavailable
from heliograph.fanout import Scope, to_room
from heliograph.messages import Event
from heliograph.rooms import Participant, Roster


def enter(tenant_id: str, room_id: str, own: Participant, trace_id: str, now_ms: int) -> tuple[bool, Roster]:
    """Puts a socket into the room: (whether Redis did not have it there before, the roster now). A new one is kept in MongoDB too.

    Without Redis the roster is MongoDB's, under an epoch that nobody shares; it is tried again from the timers queue until Redis has the socket.
    """
    try:
        is_new, roster = wiring.connections().enter_room(tenant_id, room_id, own)
    except Unavailable:
        wiring.spare_live().enter(tenant_id, room_id, own, now_ms)
        enter_again(tenant_id, room_id, own, trace_id)
        return False, Roster(random_bytes().hex(), 0, tuple(wiring.spare_live().in_room(tenant_id, room_id)))
    if is_new:
        wiring.spare_live().enter(tenant_id, room_id, own, now_ms)
    return is_new, roster


def come_back(tenant_id: str, room_id: str, own: Participant, trace_id: str, now_ms: int) -> None:
    """A socket that Redis does not have in a room: all who were there are there again, and each learns that its roster is of another epoch.

    The socket itself is told too: it joins again, and so has what it missed.
    """
    is_new, roster = enter(tenant_id, room_id, own, trace_id, now_ms)
    if not is_new:
        return
    with suppress(Unavailable):
        restore(tenant_id, room_id, roster.participants)
    body = {"account_id": own.account_id, "device_id": own.device_id, **roster.position()}
    post_to_room(tenant_id, room_id, Event("participant_joined", now_ms, trace_id, body, room_id))


def leave(tenant_id: str, room_id: str, connection_id: str) -> tuple[bool, Roster]:
    """Takes a socket out of the room: (whether it was in it, the roster now)."""
    was_in, roster = wiring.connections().leave_room(tenant_id, room_id, [connection_id])
    if was_in:
        wiring.spare_live().leave(tenant_id, room_id, [connection_id])
    return was_in, roster


def post_to_room(tenant_id: str, room_id: str, event: Event, *, except_connection_id: str | None = None) -> None:
    """Posts to every socket in the room; one that is gone leaves it, and the others are told. Without Redis the room is as MongoDB has it."""
    try:
        participants: Sequence[Participant] = wiring.connections().in_room(tenant_id, room_id)
        if except_connection_id is not None and except_connection_id not in [p.connection_id for p in participants]:
            participants = restore(tenant_id, room_id, participants)  # the sender is not in the room: Redis may have lost it
    except Unavailable:
        participants = wiring.spare_live().in_room(tenant_id, room_id)
    gone = perform(to_room(event, participants, except_connection_id=except_connection_id), Scope(tenant_id, room_id))
    with suppress(Unavailable):
        take_out(tenant_id, room_id, [p for p in participants if p.connection_id in gone], event)


def restore(tenant_id: str, room_id: str, participants: Sequence[Participant]) -> Sequence[Participant]:
    """Fills a room that Redis lost with those whom MongoDB has; whoever is gone leaves again with the next post."""
    known = {p.connection_id for p in participants}
    for lost in wiring.spare_live().in_room(tenant_id, room_id):
        if lost.connection_id not in known:
            participants = wiring.connections().enter_room(tenant_id, room_id, lost)[1].participants
    return participants


def take_out(tenant_id: str, room_id: str, gone: Sequence[Participant], because: Event) -> None:
    """Takes sockets out of a room and tells those who are left; ends, because each step has fewer sockets."""
    for participant in gone:
        was_in, roster = leave(tenant_id, room_id, participant.connection_id)
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
