"""Calls as the server sees them: perfect negotiation between two devices, and "ring all, the first answer wins".

Knows frames' ids and roles; must not know SDP, sockets or stores. Source of the client's half: the W3C's "perfect negotiation" (WebRTC 1.0, section 10.7).

    ringing                  the caller's offer waits for the first answer of a device of the callee
    stable                   the last offer was answered
    have_offer_from_caller   an offer within the call (ICE restart, new track) waits for its answer
    have_offer_from_callee
    ended

Rule 1: one negotiation at a time. Its id is new for each offer; what names an older one is refused (offer, answer) or dropped (candidate).
Rule 2: when both sides offer, the impolite side's offer stands whichever came first; the polite side's is refused with `glare`, or gives way. The polite side
is the smaller device id. While a call rings to a whole account, the caller's offer stands.
Rule 3: a frame sent again has the effects it had, without changing the record: a lost event is repaired by sending its frame again.
Rule 4: an offer that nobody answered within OFFER_S no longer keeps the polite side from offering. So there is always a way on, or the call has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from heliograph.effects import Effect, Notify, Post
from heliograph.errors import CallAnswered, CallEnded, Glare, HeliographError, NegotiationStale, NotFound
from heliograph.messages import Event, Frame
from heliograph.presence import Connection
from heliograph.shapes import JsonObject

RING_S = 30
OFFER_S = 10
PAST_NEGOTIATIONS = 16  # remembered, so that a late frame of one is not taken for news
MISSED_CALL_PUSH_S = 30  # as a missed call's push so far: dropped when it is late

Action = Literal["offer", "answer", "candidate", "bye"]
Side = Literal["caller", "callee"]
State = Literal["ringing", "stable", "have_offer_from_caller", "have_offer_from_callee", "ended"]
STATES: tuple[State, ...] = ("ringing", "stable", "have_offer_from_caller", "have_offer_from_callee", "ended")


@dataclass(frozen=True, slots=True)
class Device:
    account_id: str
    device_id: str

    def is_polite_to(self, other: Device) -> bool:
        """The smaller device id is polite; accounts decide where two of them share a device."""
        return (self.device_id, self.account_id) < (other.device_id, other.account_id)


@dataclass(frozen=True, slots=True)
class Signal:
    """What the record needs of an offer, answer, candidate or bye."""

    action: Action
    call_id: str
    to_account_id: str
    to_device_id: str | None = None
    negotiation_id: str = ""  # a bye has none
    reason: str = "hangup"

    @classmethod
    def of(cls, action: Action, body: Mapping[str, Any]) -> Signal:
        """From a frame's checked body."""
        to = body["to"]
        return cls(action, body["call_id"], to["account_id"], to.get("device_id"), body.get("negotiation_id", ""), body.get("reason", "hangup"))


@dataclass(frozen=True, slots=True)
class Call:
    """The record of one call. `version` rises by one with each change, for a compare-and-set; 1 is a new record."""

    call_id: str
    caller: Device
    callee_account_id: str
    to_device_id: str | None  # the one device that was called; None: all of the account
    state: State
    negotiation_id: str
    offered_by: Side
    offered_at_ms: int
    started_at_ms: int
    answered_by: str | None = None
    ringing: tuple[str, ...] = ()
    declined: tuple[str, ...] = ()
    past: tuple[str, ...] = ()
    ended_by: Side | None = None
    reason: str | None = None
    is_pushed: bool = False
    version: int = 1

    @property
    def callee(self) -> Device | None:
        """The caller's peer: the device that answered or was called; None while several ring."""
        device_id = self.answered_by or self.to_device_id
        return Device(self.callee_account_id, device_id) if device_id else None

    @property
    def polite(self) -> Side | None:
        """The polite side; None until the pair is known."""
        return None if self.callee is None else "caller" if self.caller.is_polite_to(self.callee) else "callee"

    @property
    def polite_device_id(self) -> str | None:
        peer = self.callee
        return None if peer is None else min(self.caller, peer, key=lambda device: (device.device_id, device.account_id)).device_id

    def as_json(self) -> JsonObject:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Call:
        """The record as stored; ValueError for anything else."""
        try:
            known = {**value, "caller": Device(**value["caller"])} | {name: tuple(value[name]) for name in ("ringing", "declined", "past")}
            call = cls(**known)
        except (KeyError, TypeError):
            raise ValueError("not a call's record") from None
        if call.state not in STATES:
            raise ValueError("a call's record is in no known state")
        return call


@dataclass(frozen=True, slots=True)
class Tell:
    """An event for devices of an account; None means all but the sender's. `is_relayed`: the frame's own body goes with it."""

    event: Action
    account_id: str
    device_ids: tuple[str, ...] | None
    body: JsonObject
    is_relayed: bool = True


@dataclass(frozen=True, slots=True)
class Absent:
    """Nobody was there for an offer: the sender is told, and the account gets a push if `is_pushed`."""

    account_id: str
    is_pushed: bool


@dataclass(frozen=True, slots=True)
class Missed:
    """The account gets a push that it missed a call."""

    account_id: str
    from_account_id: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows. Effects hold even beside a refusal: a late frame finds the call missed, is refused, and both sides are told."""

    effects: tuple[Tell | Absent | Missed, ...] = ()
    refusal: HeliographError | None = None

    @property
    def account_ids(self) -> set[str]:
        """The accounts whose connections `to_effects` needs."""
        return {effect.account_id for effect in self.effects if isinstance(effect, Tell)}


@dataclass(frozen=True, slots=True)
class _Request:
    """One frame beside what it meets."""

    actor: Device
    side: Side
    signal: Signal
    device_ids: Sequence[str]
    now_ms: int
    offer_s: int


Outcome = tuple[Call, Decision]


def request(
    call: Call | None,
    actor: Device,
    signal: Signal,
    device_ids: Sequence[str],
    now_ms: int,
    *,
    ring_s: int = RING_S,
    offer_s: int = OFFER_S,
) -> tuple[Call | None, Decision]:
    """The record after one frame, and what follows from it. The very same object means that nothing is to be stored.

    `device_ids` are the live devices of `signal.to_account_id`. Store the record where its `version` was the one read, and on conflict
    decide again; perform the effects; then raise the refusal. A device that has no part in the call gets `NotFound`, as for an unknown call.
    """
    if call is None:
        return _first(actor, signal, device_ids, now_ms)
    current, expired = _expire(call, now_ms, ring_s)
    side = _side(current, actor)
    if side is None or signal.to_account_id != (current.callee_account_id if side == "caller" else current.caller.account_id):
        return _counted(call, current), replace(expired, refusal=NotFound())
    after, decision = _RULES[signal.action](current, _Request(actor, side, signal, device_ids, now_ms, offer_s))
    return _counted(call, after), Decision(expired.effects + decision.effects, decision.refusal)


def expire(call: Call, now_ms: int, *, ring_s: int = RING_S) -> Outcome:
    """Ends a call that nobody answered in time. `request` does it first; anything else that reads the record may."""
    after, decision = _expire(call, now_ms, ring_s)
    return _counted(call, after), decision


def _counted(before: Call, after: Call) -> Call:
    return before if after == before else replace(after, version=before.version + 1)


def _expire(call: Call, now_ms: int, ring_s: int) -> Outcome:
    if call.state != "ringing" or now_ms < call.started_at_ms + ring_s * 1000:
        return call, Decision()
    told = _of_server(call, "no_answer", Device(call.callee_account_id, ""), call.ringing)
    missed = () if call.is_pushed else (Missed(call.callee_account_id, call.caller.account_id),)
    return replace(call, state="ended", reason="no_answer", ringing=()), Decision((_of_server(call, "no_answer", call.caller)[0], *told, *missed))


def _side(call: Call, actor: Device) -> Side | None:
    if actor == call.caller:
        return "caller"
    return "callee" if actor.account_id == call.callee_account_id and call.to_device_id in (None, actor.device_id) else None


# The first frame of a call


def _first(actor: Device, signal: Signal, device_ids: Sequence[str], now_ms: int) -> tuple[Call | None, Decision]:
    """No record: a new call, or one whose record was lost. An ICE restart then makes it anew, and everything else goes to where it is addressed."""
    if Device(signal.to_account_id, signal.to_device_id or "") == actor:
        return None, Decision(refusal=NotFound())
    if signal.action == "answer":
        return None, Decision(refusal=NegotiationStale())
    if signal.action == "candidate":  # it may overtake its offer
        return None, Decision((Tell("candidate", signal.to_account_id, None if signal.to_device_id is None else (signal.to_device_id,), {}),))
    call = Call(signal.call_id, actor, signal.to_account_id, signal.to_device_id, "ringing", signal.negotiation_id, "caller", now_ms, now_ms)
    asked = _Request(actor, "caller", signal, device_ids, now_ms, OFFER_S)
    if signal.action == "bye":  # it may overtake its offer too, which must not ring then
        return _bye(replace(call, ringing=tuple(device.device_id for device in _called(call, asked))), asked)
    return _ring(call, asked)


def _ring(call: Call, asked: _Request) -> Outcome:
    """Rings every live device that was called and has not declined, those that came since the last time included."""
    wanted = _called(call, asked)
    if not wanted:
        return replace(call, is_pushed=True), Decision((Absent(call.callee_account_id, is_pushed=not call.is_pushed),))
    tells = tuple(_relay(device, "offer", {"polite": device.is_polite_to(call.caller)}) for device in wanted)
    ringing = tuple(dict.fromkeys((*call.ringing, *(device.device_id for device in wanted))))
    return replace(call, ringing=ringing), Decision(tells)


def _called(call: Call, asked: _Request) -> list[Device]:
    callee = [Device(call.callee_account_id, d) for d in asked.device_ids if call.to_device_id in (None, d) and d not in call.declined]
    return [device for device in callee if device != call.caller]


# Offers


def _offer(call: Call, asked: _Request) -> Outcome:
    closed = _closed(call, asked)
    if closed is not None:
        return closed
    if asked.signal.negotiation_id == call.negotiation_id and asked.side == call.offered_by:
        return _ring(call, asked) if call.state == "ringing" else (call, _to_peer(call, asked))
    if asked.signal.negotiation_id in (call.negotiation_id, *call.past):
        return call, Decision(refusal=NegotiationStale())
    if _is_glare(call, asked) and not _wins(call, asked):
        return _ignoring(call, asked.signal.negotiation_id), Decision(refusal=Glare())
    return _take(call, asked)


def _is_glare(call: Call, asked: _Request) -> bool:
    """Whether the other side's offer waits for an answer."""
    return call.state != "stable" and call.offered_by != asked.side


def _wins(call: Call, asked: _Request) -> bool:
    """Rules 2 and 4. While all devices of an account ring, none of them is the peer yet, and none can outrank the caller."""
    if call.callee is None:
        return False
    is_old = call.state != "ringing" and asked.now_ms >= call.offered_at_ms + asked.offer_s * 1000
    return is_old or asked.side != call.polite


def _take(call: Call, asked: _Request) -> Outcome:
    """The offer becomes the call's negotiation, whether or not another one waited."""
    new = replace(_ignoring(call, call.negotiation_id), negotiation_id=asked.signal.negotiation_id, offered_by=asked.side, offered_at_ms=asked.now_ms)
    if call.state == "ringing" and asked.side == "caller":
        return _ring(new, asked)
    peer = _peer(call, asked.side)
    if peer is None or peer.device_id not in asked.device_ids:  # it reached nobody: the call is as before
        return call, Decision((Absent(asked.signal.to_account_id, is_pushed=False),))
    state: State = "have_offer_from_caller" if asked.side == "caller" else "have_offer_from_callee"
    answered_by = call.answered_by or call.to_device_id  # the called device's own offer takes the call, too
    new = replace(new, state=state, answered_by=answered_by, ringing=())
    return new, _to_peer(new, asked)


# Answers


def _answer(call: Call, asked: _Request) -> Outcome:
    closed = _closed(call, asked)
    if closed is not None:
        return closed
    if asked.signal.negotiation_id != call.negotiation_id or asked.side == call.offered_by:
        return call, Decision(refusal=NegotiationStale())
    if call.state != "ringing":  # in stable it is a repeat
        return replace(call, state="stable"), _to_peer(call, asked)
    bound = replace(call, state="stable", answered_by=asked.actor.device_id, ringing=())
    others = tuple(device_id for device_id in call.ringing if device_id != asked.actor.device_id)
    return bound, Decision((*_to_peer(bound, asked).effects, *_of_server(call, "answered_elsewhere", asked.actor, others)))


# Candidates


def _candidate(call: Call, asked: _Request) -> Outcome:
    """Of this negotiation, or of one whose offer is still on its way: relayed. Of an older or ignored one, or from a device out of the call: dropped."""
    if call.state == "ended":
        return call, Decision(refusal=CallEnded())
    if _is_passed_over(call, asked) or asked.actor.device_id in call.declined or asked.signal.negotiation_id in call.past:
        return call, Decision()
    return call, _to_peer(call, asked)


# Byes


def _bye(call: Call, asked: _Request) -> Outcome:
    if call.state == "ended":
        return call, _to_peer(call, asked) if asked.side == call.ended_by and not _is_passed_over(call, asked) else Decision()
    if _is_passed_over(call, asked):
        return call, Decision()
    if call.state != "ringing" or asked.side == "caller":
        return _ended(call, asked), _to_peer(call, asked)
    left = tuple(device_id for device_id in call.ringing if device_id != asked.actor.device_id)
    declined = tuple(dict.fromkeys((*call.declined, asked.actor.device_id)))
    if left:
        return replace(call, ringing=left, declined=declined), Decision()
    return replace(_ended(call, asked), declined=declined), _to_peer(call, asked)


def _ended(call: Call, asked: _Request) -> Call:
    return replace(call, state="ended", ended_by=asked.side, reason=asked.signal.reason)


# Parts of the rules


def _closed(call: Call, asked: _Request) -> Outcome | None:
    """The refusal of an offer or answer that comes too late, or from a device that came too late."""
    if call.state == "ended":
        return call, Decision(refusal=CallEnded())
    return (call, Decision(refusal=CallAnswered())) if _is_passed_over(call, asked) else None


def _is_passed_over(call: Call, asked: _Request) -> bool:
    """Whether another device of the account has the call."""
    return asked.side == "callee" and call.answered_by not in (None, asked.actor.device_id)


def _ignoring(call: Call, negotiation_id: str) -> Call:
    return replace(call, past=(*call.past, negotiation_id)[-PAST_NEGOTIATIONS:])


def _peer(call: Call, side: Side) -> Device | None:
    return call.callee if side == "caller" else call.caller


def _to_peer(call: Call, asked: _Request) -> Decision:
    """The frame goes to the other side, descriptions with its role; before an answer, to all that ring."""
    if asked.side == "caller" and call.answered_by is None:
        return Decision((Tell(asked.signal.action, call.callee_account_id, call.ringing, {}),) if call.ringing else ())
    peer = _peer(call, asked.side)
    if peer is None:
        return Decision()
    has_role = asked.signal.action in ("offer", "answer")
    return Decision((_relay(peer, asked.signal.action, {"polite": peer.is_polite_to(asked.actor)} if has_role else {}),))


def _relay(device: Device, event: Action, body: JsonObject) -> Tell:
    return Tell(event, device.account_id, (device.device_id,), body)


def _of_server(call: Call, reason: str, device: Device, device_ids: tuple[str, ...] | None = None) -> tuple[Tell, ...]:
    """A bye that no peer sent: to one device, or to several of its account."""
    to = (device.device_id,) if device_ids is None else device_ids
    return (Tell("bye", device.account_id, to, {"call_id": call.call_id, "reason": reason}, is_relayed=False),) if to else ()


_RULES: dict[Action, Callable[[Call, _Request], Outcome]] = {"offer": _offer, "answer": _answer, "candidate": _candidate, "bye": _bye}


# Wiring


def to_effects(
    decision: Decision, frame: Frame, actor: Device, tenant_id: str, own_connection_id: str, connections: Mapping[str, Sequence[Connection]], now_ms: int
) -> list[Effect]:
    """A decision on a frame as posts and pushes; `connections` holds the live ones of each of `decision.account_ids`."""
    relayed = {key: value for key, value in frame.body.items() if key != "to"} | {"from": asdict(actor), "id": frame.id}
    effects: list[Effect] = []
    for effect in decision.effects:
        if isinstance(effect, Tell):
            event = Event(effect.event, now_ms, frame.trace_id, relayed | effect.body if effect.is_relayed else effect.body, frame.room)
            effects += [Post(c.connection_id, event) for c in connections[effect.account_id] if _is_for(effect, c, own_connection_id)]
        elif isinstance(effect, Missed):
            effects.append(_push(effect.account_id, effect.from_account_id, frame, tenant_id, now_ms))
        else:
            if effect.is_pushed:
                effects.append(_push(effect.account_id, actor.account_id, frame, tenant_id, now_ms))
            absent = {"call_id": frame.body["call_id"], "account_id": effect.account_id}
            effects.append(Post(own_connection_id, Event("callee_absent", now_ms, frame.trace_id, absent, frame.room)))
    return effects


def _is_for(tell: Tell, connection: Connection, own_connection_id: str) -> bool:
    return connection.connection_id != own_connection_id if tell.device_ids is None else connection.device_id in tell.device_ids


def _push(account_id: str, from_account_id: str, frame: Frame, tenant_id: str, now_ms: int) -> Notify:
    """The id is the call's: however often a missed call is noticed, it is one push."""
    call_id: str = frame.body["call_id"]
    data = {"call_id": call_id, "from_account_id": from_account_id}
    notification_id = "ntf_" + call_id.removeprefix("call_")
    return Notify(notification_id, tenant_id, account_id, "missed_call", frame.room, data, now_ms + MISSED_CALL_PUSH_S * 1000, frame.trace_id)
