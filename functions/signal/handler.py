"""Every frame of a live socket: validated, decided by a rule, acknowledged, routed only to entitled sockets."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from adapters.settings import settings
from functions import edge, wiring
from functions.calling import pass_on
from functions.edge import Received
from functions.live_rooms import come_back, enter, post_to_room
from functions.live_rooms import leave as leave_room
from functions.perform import perform
from functions.presence_fanout import Known, acquaintances, presences, tell
from functions.put_off import look_after
from heliograph.access import authorise
from heliograph.access import own as own_tenant
from heliograph.bitrate.board import Report, State, decide
from heliograph.effects import Close, Effect, Post
from heliograph.errors import NotFound, Unavailable
from heliograph.messages import Event, acknowledgement
from heliograph.presence import Connection, superseded
from heliograph.rooms import Participant, Room, entered
from heliograph.shapes import JsonObject
from heliograph.streams import Position, is_behind, recover

RECONNECT_BY_MS = 110 * 60_000  # API Gateway ends a socket after two hours


def hello(received: Received) -> JsonObject:
    who, now_ms, trace_id = received.identity, received.now_ms, received.frame.trace_id
    own = Connection(received.connection_id, who.device_id, received.generation, "online", now_ms)
    look_after(who, own.connection_id, trace_id)  # first: whatever happens to this socket from now on, somebody looks
    older, others = list[Connection](), Known()
    with suppress(Unavailable):  # without Redis nobody is known; the socket is welcome all the same, and pings register it later
        known = wiring.connections().put(who.tenant_id, who.account_id, own)
        older = superseded(known, own)
        if older:
            wiring.connections().remove(who.tenant_id, who.account_id, [c.connection_id for c in older])
        others = acquaintances(who.tenant_id, who.account_id)
        tell(who.tenant_id, who.account_id, [c for c in known if c not in older], trace_id, now_ms, others)
    welcome = _event(
        received,
        "welcome",
        {
            "connection_id": own.connection_id,
            "tenant_id": who.tenant_id,
            "account_id": who.account_id,
            "device_id": who.device_id,
            "generation": own.generation,
            "heartbeat_s": settings().heartbeat_s,
            "heartbeat_call_s": settings().heartbeat_call_s,
            "reconnect_by_ms": received.generation + RECONNECT_BY_MS,
            "auth_expires_at_ms": who.expires_at_ms,
            "presence": [item.as_json() for item in presences(others, now_ms)],
        },
    )
    closed = _event(received, "closed", {"reason": "connected_elsewhere"})
    replaced: list[Effect] = [effect for c in older for effect in (Post(c.connection_id, closed), Close(c.connection_id, "connected_elsewhere"))]
    perform([Post(own.connection_id, welcome), *replaced])
    return acknowledgement(received.frame.id)


def join(received: Received) -> JsonObject:
    room, who = _room(received), received.identity
    own = Participant(received.connection_id, who.account_id, who.device_id)
    is_new, roster = enter(who.tenant_id, room.room_id, own, received.frame.trace_id, received.now_ms)
    head = wiring.streams().head(room)  # after entering: an event is either posted to this socket or at most at the head
    had = Position.of(received.frame.body)
    recovery = recover(had, room.epoch, head, lambda after, limit: wiring.streams().page(room, after, limit))
    snapshot = {"room_id": room.room_id, "name": room.name, "members": room.members_json(), **roster.as_json(), **recovery.as_json()}
    perform([Post(own.connection_id, replace(_event(received, "room", snapshot, room), epoch=room.epoch, offset=head))])
    if is_new:
        joined = _event(received, "participant_joined", who.as_sender() | roster.position(), room)
        post_to_room(who.tenant_id, room.room_id, joined, except_connection_id=own.connection_id)
    return acknowledgement(received.frame.id, room.epoch, head)


def leave(received: Received) -> JsonObject:
    room, who = _room(received), received.identity
    was_in, roster = leave_room(who.tenant_id, room.room_id, received.connection_id)
    if was_in:
        post_to_room(who.tenant_id, room.room_id, _event(received, "participant_left", who.as_sender() | roster.position(), room))
    return acknowledgement(received.frame.id)


def message(received: Received) -> JsonObject:
    room, who, frame = _room(received), received.identity, received.frame
    event = _event(received, "message", frame.body | {"id": frame.id, "from": who.as_sender()}, room)
    offset, _ = wiring.streams().append(room, who.device_id, frame.id, event)
    # a repeat is posted again: the first attempt may have died before it could
    post_to_room(who.tenant_id, room.room_id, replace(event, epoch=room.epoch, offset=offset), except_connection_id=received.connection_id)
    return acknowledgement(frame.id, room.epoch, offset)


def stats(received: Received) -> JsonObject:
    room, who, body = _room(received), received.identity, received.frame.body
    owner = (who.tenant_id, who.account_id, who.device_id, body["call_id"])
    before = wiring.boards().get(*owner)
    after, decision = decide(before or State(), Report(**{k: v for k, v in body.items() if k != "call_id"}), received.now_ms)
    wiring.boards().put(*owner, replace(after, told=decision.fingerprint()))
    if before is None or before.told != decision.fingerprint():
        perform([Post(received.connection_id, _event(received, "rung", {"call_id": body["call_id"], **decision.as_json()}, room))])
    return acknowledgement(received.frame.id)


def ping(received: Received) -> JsonObject:
    """Keeps the socket alive, writes again what Redis may have lost, and finds lost posts: they are durable, so this works without Redis too."""
    who, named_rooms = received.identity, received.frame.body.get("rooms", [])
    if named_rooms:
        authorise(who, "rooms:read", own_tenant(who))  # first: a refused frame changes nothing
    with suppress(Unavailable):
        own = wiring.connections().own(who.tenant_id, who.account_id, received.connection_id, who.device_id, received.generation, received.now_ms)
        wiring.connections().put(who.tenant_id, who.account_id, own)
    for named in named_rooms:
        with suppress(NotFound):  # no longer a member: the other rooms still count
            _keep_up(received, named["room_id"], Position.of(named))
    return acknowledgement(received.frame.id)


def _keep_up(received: Received, room_id: str, had: Position | None) -> None:
    who = received.identity
    room = entered(wiring.rooms().get(who.tenant_id, room_id), who, "rooms:read")
    own = Participant(received.connection_id, who.account_id, who.device_id)
    come_back(who.tenant_id, room_id, own, received.frame.trace_id, received.now_ms)
    head = wiring.streams().head(room)
    if had is not None and is_behind(had, room.epoch, head, lambda: wiring.streams().page(room, had.offset, 1), received.now_ms):
        perform([Post(received.connection_id, replace(_event(received, "behind", {}, room), epoch=room.epoch, offset=head))])


def _room(received: Received) -> Room:
    return entered(wiring.rooms().get(received.identity.tenant_id, received.frame.room), received.identity, received.action)


def _event(received: Received, name: str, body: JsonObject, room: Room | None = None) -> Event:
    return Event(name, received.now_ms, received.frame.trace_id, body, room.room_id if room else None)


ACTIONS = {
    "hello": hello,
    "join": join,
    "leave": leave,
    "message": message,
    "offer": pass_on,
    "answer": pass_on,
    "candidate": pass_on,
    "bye": pass_on,
    "stats": stats,
    "ping": ping,
}
handler = edge.socket(ACTIONS)
