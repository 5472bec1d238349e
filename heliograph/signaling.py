"""Signaling: which sockets get an offer, an answer, a candidate or a bye, and what happens when nobody is there."""

from __future__ import annotations

from collections.abc import Sequence

from heliograph.auth import Identity
from heliograph.effects import Effect, Notify, Post
from heliograph.messages import Event, Frame
from heliograph.presence import Connection
from heliograph.rooms import Participant, Room, member_named
from heliograph.shapes import JsonObject

CALL_PUSH_S = 30  # an invitation is dropped when it is late, not delivered late


def sender(actor: Identity) -> JsonObject:
    return {"account_id": actor.account_id, "device_id": actor.device_id}


def relay(frame: Frame, actor: Identity, room: Room, own_connection_id: str, callee: Sequence[Connection], now_ms: int) -> list[Effect]:
    """The effects of one offer, answer, candidate or bye.

    `callee` are the live connections of the account in `to`. NotFound when that account is not in the room.
    An offer that reaches nobody becomes a push, and the caller is told `callee_absent`. A frame sent again has the same effects; its id
    lets the receiver, and the push path, drop the repeat.
    """
    to = frame.body["to"]
    account_id = member_named(room, to["account_id"])
    device_id = to.get("device_id")
    body = {key: value for key, value in frame.body.items() if key != "to"} | {"from": sender(actor), "id": frame.id}
    event = Event(frame.action, now_ms, frame.trace_id, body, room.room_id)
    targets = [c for c in callee if c.connection_id != own_connection_id and device_id in (None, c.device_id)]
    if targets or frame.action != "offer":
        return [Post(c.connection_id, event) for c in targets]
    call_id = frame.body["call_id"]
    absent = Event("callee_absent", now_ms, frame.trace_id, {"call_id": call_id, "account_id": account_id}, room.room_id)
    push = Notify(
        "ntf_" + frame.id.removeprefix("msg_"),
        actor.tenant_id,
        account_id,
        "missed_call",
        room.room_id,
        {"call_id": call_id, "from_account_id": actor.account_id},
        now_ms + CALL_PUSH_S * 1000,
        frame.trace_id,
    )
    return [push, Post(own_connection_id, absent)]


def to_room(event: Event, participants: Sequence[Participant], *, except_connection_id: str | None = None) -> list[Post]:
    """One post per live socket of the room."""
    return [Post(p.connection_id, event) for p in participants if p.connection_id != except_connection_id]
