"""Every frame of a live socket: validated, decided by a rule, acknowledged, routed only to entitled sockets."""

from __future__ import annotations

from dataclasses import replace

from adapters.settings import settings
from functions import edge, wiring
from functions.edge import Received
from functions.perform import perform, post_to_account, post_to_room
from functions.presence_fanout import tell
from heliograph.bitrate.board import Report, State, decide
from heliograph.effects import Close, Effect, Post
from heliograph.messages import Event, acknowledgement
from heliograph.presence import Connection, live, superseded
from heliograph.rooms import Participant, Room, entered
from heliograph.shapes import JsonObject
from heliograph.signaling import relay, sender, to_room

RECONNECT_BY_MS = 110 * 60_000  # API Gateway ends a socket after two hours


def hello(received: Received) -> JsonObject:
    who, now_ms = received.identity, received.now_ms
    own = Connection(received.connection_id, who.device_id, received.generation, "online", now_ms)
    known = wiring.connections().put(who.tenant_id, who.account_id, own)
    older = superseded(known, own)
    if older:
        wiring.connections().remove(who.tenant_id, who.account_id, [c.connection_id for c in older])
    presence = tell(who.tenant_id, who.account_id, [c for c in known if c not in older], received.frame.trace_id, now_ms)
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
            "reconnect_by_ms": received.generation + RECONNECT_BY_MS,
            "presence": [item.as_json() for item in presence],
        },
    )
    closed = _event(received, "closed", {"reason": "connected_elsewhere"})
    replaced: list[Effect] = [effect for c in older for effect in (Post(c.connection_id, closed), Close(c.connection_id, "connected_elsewhere"))]
    perform([Post(own.connection_id, welcome), *replaced])
    return acknowledgement(received.frame.id)


def join(received: Received) -> JsonObject:
    room, who = _room(received), received.identity
    own = Participant(received.connection_id, who.account_id, who.device_id)
    participants = wiring.connections().enter_room(who.tenant_id, room.room_id, own)
    head = wiring.streams().head(room)
    roster = [{"account_id": p.account_id, "device_id": p.device_id} for p in participants]
    snapshot = {"room_id": room.room_id, "name": room.name, "members": room.members_json(), "participants": roster}
    joined = _event(received, "participant_joined", sender(who), room)
    posts: list[Effect] = [Post(own.connection_id, replace(_event(received, "room", snapshot, room), epoch=room.epoch, offset=head))]
    post_to_room(who.tenant_id, room.room_id, [*posts, *to_room(joined, participants, except_connection_id=own.connection_id)])
    return acknowledgement(received.frame.id, room.epoch, head)


def leave(received: Received) -> JsonObject:
    room, who = _room(received), received.identity
    wiring.connections().leave_room(who.tenant_id, room.room_id, [received.connection_id])
    left = _event(received, "participant_left", sender(who), room)
    post_to_room(who.tenant_id, room.room_id, to_room(left, wiring.connections().in_room(who.tenant_id, room.room_id)))
    return acknowledgement(received.frame.id)


def message(received: Received) -> JsonObject:
    room, who, frame = _room(received), received.identity, received.frame
    event = _event(received, "message", frame.body | {"id": frame.id, "from": sender(who)}, room)
    offset, _ = wiring.streams().append(room, who.device_id, frame.id, event)
    event = replace(event, epoch=room.epoch, offset=offset)  # a repeat is posted again: the first attempt may have died before it could
    participants = wiring.connections().in_room(who.tenant_id, room.room_id)
    post_to_room(who.tenant_id, room.room_id, to_room(event, participants, except_connection_id=received.connection_id))
    return acknowledgement(frame.id, room.epoch, offset)


def pass_on(received: Received) -> JsonObject:
    room, who = _room(received), received.identity
    account_id = received.frame.body["to"]["account_id"]
    callee = live(wiring.connections().of_account(who.tenant_id, account_id), received.now_ms, settings().heartbeat_s)
    effects = relay(received.frame, who, room, received.connection_id, callee, received.now_ms)
    gone = post_to_account(who.tenant_id, account_id, effects)
    if gone and received.frame.action == "offer" and gone >= {c.connection_id for c in callee}:
        perform(relay(received.frame, who, room, received.connection_id, [], received.now_ms))  # everybody turned out to be gone
    return acknowledgement(received.frame.id)


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
    who, now_ms = received.identity, received.now_ms
    known = {c.connection_id: c for c in wiring.connections().of_account(who.tenant_id, who.account_id)}
    own = known.get(received.connection_id) or Connection(received.connection_id, who.device_id, received.generation, "online", now_ms)
    wiring.connections().put(who.tenant_id, who.account_id, replace(own, seen_at_ms=now_ms))
    participant = Participant(received.connection_id, who.account_id, who.device_id)
    for named in received.frame.body.get("rooms", []):
        room = entered(wiring.rooms().get(who.tenant_id, named["room_id"]), who.account_id)
        wiring.connections().enter_room(who.tenant_id, room.room_id, participant)
    return acknowledgement(received.frame.id)


def _room(received: Received) -> Room:
    return entered(wiring.rooms().get(received.identity.tenant_id, received.frame.room), received.identity.account_id)


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
