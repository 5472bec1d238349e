"""Offers, answers, candidates and byes: checked, decided by the negotiation's rules, passed on to entitled sockets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from adapters.settings import now_ms, settings
from functions import put_off, wiring
from functions.edge import Received
from functions.live_rooms import post_to_room
from functions.perform import perform
from heliograph.messages import Event, Frame, acknowledgement
from heliograph.negotiation import Absent, Call, Decision, Device, Missed, Signal, expire, request, to_effects
from heliograph.presence import Connection, live
from heliograph.rooms import Room, entered, member_named
from heliograph.sdp import check_candidate, check_description
from heliograph.shapes import JsonObject

Decide = Callable[[Call | None], tuple[Call | None, Decision]]


def pass_on(received: Received) -> JsonObject:
    """One signaling frame. The record of the call decides who gets it and what is refused."""
    who, frame = received.identity, _checked(received.frame)
    if frame is None:
        return acknowledgement(received.frame.id)  # a candidate that must not be seen: taken, and passed to nobody
    room = entered(wiring.rooms().get(who.tenant_id, frame.room), who, received.action)
    signal, actor = Signal.of(frame.action, frame.body), Device(who.account_id, who.device_id)  # type: ignore[arg-type]
    callee_id = member_named(room, signal.to_account_id)
    devices = tuple(c.device_id for c in _live(who.tenant_id, callee_id, received.now_ms))
    decision = _decide(room, signal.call_id, lambda call: request(call, actor, signal, devices, received.now_ms))
    reached = _perform(room, decision, frame, actor, received.connection_id, received.now_ms)
    if frame.action == "offer" and decision.refusal is None and devices and not reached:  # every socket turned out to be gone
        decision = _decide(room, signal.call_id, lambda call: request(call, actor, signal, (), received.now_ms))
        _perform(room, decision, frame, actor, received.connection_id, received.now_ms)
    if frame.action == "offer" and decision.refusal is None:
        put_off.end_ringing(room, signal.call_id, frame.trace_id)
    if decision.refusal is not None:
        raise decision.refusal
    return acknowledgement(frame.id)


def end_ringing(timer: dict[str, Any]) -> None:
    """The timer of an offer: a call that nobody answered ends, and is missed."""
    room, at_ms = wiring.rooms().get(timer["tenant_id"], timer["room_id"]), now_ms()
    call = wiring.calls().get(timer["tenant_id"], timer["room_id"], timer["call_id"])
    if room is None or call is None:
        return
    frame = Frame("bye", "msg_" + call.call_id.removeprefix("call_"), 1, timer["trace_id"], room.room_id, {"call_id": call.call_id})
    decision = _decide(room, call.call_id, lambda found: expire(found, at_ms) if found else (None, Decision()))
    _perform(room, decision, frame, call.caller, "", at_ms)


def _checked(frame: Frame) -> Frame | None:
    """The frame with an SDP or candidate that may be passed on; None for a candidate that may not."""
    may_be_private = settings().private_candidates == "pass"
    if frame.action in ("offer", "answer"):
        sdp = check_description(frame.body["sdp"], "offer" if frame.action == "offer" else "answer", allow_private=may_be_private)
        return replace(frame, body=frame.body | {"sdp": sdp})
    if frame.action == "candidate":
        line = check_candidate(frame.body["candidate"], allow_private=may_be_private)
        return None if line is None else replace(frame, body=frame.body | {"candidate": line})
    return frame


def _decide(room: Room, call_id: str, decide: Decide) -> Decision:
    """Decides on the stored record, again when it changed meanwhile."""
    while True:
        before = wiring.calls().get(room.tenant_id, room.room_id, call_id)
        after, decision = decide(before)
        if after is None or after is before or wiring.calls().replace(room.tenant_id, room.room_id, after, before):
            return decision


def _perform(room: Room, decision: Decision, frame: Frame, actor: Device, own_connection_id: str, at_ms: int) -> bool:
    """Does what was decided; whether somebody was reached."""
    connections = {account_id: _live(room.tenant_id, account_id, at_ms) for account_id in decision.account_ids}
    effects = to_effects(decision, frame, actor, room.tenant_id, own_connection_id, connections, at_ms)
    gone = perform(effects)
    for account_id, found in connections.items():
        lost = gone & {c.connection_id for c in found}
        if lost:
            wiring.connections().remove(room.tenant_id, account_id, lost)
    for effect in decision.effects:
        if isinstance(effect, Missed) or (isinstance(effect, Absent) and effect.is_pushed):
            _note_missed(room, effect.account_id, actor, frame, at_ms)
    return any(c.connection_id not in gone for found in connections.values() for c in found)


def _note_missed(room: Room, account_id: str, caller: Device, frame: Frame, at_ms: int) -> None:
    """A missed call stands in the room's stream, once per call and callee."""
    call_id: str = frame.body["call_id"]
    body = {"call_id": call_id, "account_id": account_id, "from": {"account_id": caller.account_id, "device_id": caller.device_id}}
    event = Event("missed_call", at_ms, frame.trace_id, body, room.room_id)
    offset, is_new = wiring.streams().append(room, caller.device_id, f"missed/{call_id}/{account_id}", event)
    if is_new:
        post_to_room(room.tenant_id, room.room_id, replace(event, epoch=room.epoch, offset=offset))


def _live(tenant_id: str, account_id: str, at_ms: int) -> list[Connection]:
    return live(wiring.connections().of_account(tenant_id, account_id), at_ms, wiring.heartbeat())
