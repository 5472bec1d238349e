"""Two peers, a server and a network that loses, doubles and reorders: whatever happens, both sides end up agreeing, and so does the record."""

from __future__ import annotations

import itertools
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from heliograph.errors import CallAnswered, CallEnded, Glare, NegotiationStale
from heliograph.negotiation import RING_S, Action, Call, Device, Signal, Tell, expire, request

ANA, BEN = "acc_a", "acc_b"


class Sent(NamedTuple):
    """A frame on its way to the server."""

    device: Device
    action: Action
    negotiation_id: str


class Told(NamedTuple):
    """An event (or, with `refusal`, a refusal) on its way to a device."""

    device: Device
    event: str
    negotiation_id: str
    is_polite: bool | None = None
    refusal: type | None = None


@dataclass
class Peer:
    """The client's half of perfect negotiation, as docs/protocol.md asks for it; no SDP, only which one is in force."""

    device: Device
    is_polite: bool | None = None  # as told by the server
    local: str | None = None  # the offer that waits for its answer
    agreed: str | None = None  # the negotiation in force
    answered: set[str] = field(default_factory=set)
    is_in_call: bool = False
    has_ended: bool = False
    wants_offer: bool = False
    count: int = 0
    out: list[Sent] = field(default_factory=list)

    def send(self, action: Action, negotiation_id: str = "") -> None:
        self.out.append(Sent(self.device, action, negotiation_id))

    def offer(self) -> None:
        self.count += 1
        self.local, self.wants_offer, self.is_in_call = f"{self.device.device_id}.{self.count}", False, True
        self.send("offer", self.local)

    def hear(self, told: Told) -> None:
        if told.refusal is not None:
            self.be_refused(told)
        elif told.event == "bye":
            self.has_ended = True
        elif self.has_ended:
            if told.event == "offer":
                self.send("bye")
        elif told.event == "offer":
            self.hear_offer(told)
        elif told.event == "answer":
            self.hear_answer(told)

    def hear_offer(self, told: Told) -> None:
        self.is_polite = told.is_polite
        if told.negotiation_id in self.answered:
            if told.negotiation_id == self.agreed:
                self.send("answer", told.negotiation_id)  # the first one was lost
            return
        if self.local is not None and not self.is_polite:
            return  # glare: the impolite side ignores it
        self.wants_offer, self.local = self.wants_offer or self.local is not None, None  # rolled back, offered again later
        self.agreed, self.is_in_call = told.negotiation_id, True
        self.answered.add(told.negotiation_id)
        self.send("answer", told.negotiation_id)

    def hear_answer(self, told: Told) -> None:
        self.is_polite = told.is_polite
        if self.local == told.negotiation_id:
            self.agreed, self.local = told.negotiation_id, None

    def be_refused(self, told: Told) -> None:
        if told.refusal in (CallEnded, CallAnswered):
            self.has_ended = True
        elif told.refusal in (Glare, NegotiationStale):
            if told.event == "offer" and self.local == told.negotiation_id:
                self.local, self.wants_offer = None, True
            elif told.event == "answer" and self.agreed == told.negotiation_id:
                self.wants_offer = True

    def tick(self) -> None:
        """Time passed without a word: repeat the open offer, or make the one that is due."""
        if self.has_ended or not self.is_in_call:
            return
        if self.local is not None:
            self.send("offer", self.local)
        elif self.wants_offer:
            self.offer()


class World:
    """Peers, the record and everything that is on its way, in any order."""

    def __init__(self, callees: int = 1, caller_id: str = "dev_2") -> None:
        self.caller = Peer(Device(ANA, caller_id))
        self.callees = [Peer(Device(BEN, f"dev_{number}")) for number in (1, 3, 5)[:callees]]
        self.peers = {peer.device: peer for peer in (self.caller, *self.callees)}
        self.call: Call | None = None
        self.way: list[Sent | Told] = []
        self.now_ms = 0
        self.holders: set[str] = set()

    def collect(self) -> None:
        for peer in self.peers.values():
            self.way += peer.out
            peer.out.clear()

    def offer(self, peer: Peer) -> None:
        peer.offer()
        self.collect()

    def deliver(self, index: int) -> None:
        item = self.way.pop(index)
        if isinstance(item, Told):
            self.peers[item.device].hear(item)
            self.collect()
        else:
            self.serve(item)

    def serve(self, sent: Sent) -> None:
        to = BEN if sent.device == self.caller.device else ANA
        live = [device.device_id for device in self.peers if device.account_id == to]
        before = self.call
        self.call, decision = request(before, sent.device, Signal(sent.action, "call_1", to, None, sent.negotiation_id), live, self.now_ms)
        assert before is None or (self.call is not None and self.call.version - before.version == (self.call != before))
        if self.call is not None and self.call.answered_by is not None:
            self.holders.add(self.call.answered_by)
        if decision.refusal is not None:
            assert type(decision.refusal) in (Glare, NegotiationStale, CallAnswered, CallEnded)
            self.way.append(Told(sent.device, sent.action, sent.negotiation_id, refusal=type(decision.refusal)))
        for effect in decision.effects:
            if isinstance(effect, Tell):
                known = live if effect.device_ids is None else effect.device_ids
                self.way += [Told(Device(effect.account_id, d), effect.event, sent.negotiation_id, effect.body.get("polite")) for d in known]

    def check(self) -> None:
        """What holds at any time."""
        assert len(self.holders) <= 1, "two devices were given the call"
        assert sum(peer.is_polite is True for peer in (self.caller, *[p for p in self.callees if p.device.device_id in self.holders])) <= 1

    def settle(self) -> None:
        """A fair network: everything arrives, and clients repeat what had no answer, until nothing is left to say."""
        for _ in range(40):
            while self.way:
                self.deliver(0)
                self.check()
            if self.is_settled():
                return
            self.now_ms += 1_000
            for peer in self.peers.values():
                peer.tick()
            self.collect()
        raise AssertionError(f"still talking after 40 s: {self.call} {self.peers.values()}")

    def is_settled(self) -> bool:
        live = [peer for peer in self.peers.values() if peer.is_in_call and not peer.has_ended]
        return not self.way and all(peer.local is None and not peer.wants_offer for peer in live)

    def assert_agreement(self) -> None:
        """Both in the same negotiation, which is the record's; or nobody in a call."""
        self.settle()
        if self.call is None:
            return
        if self.call.state == "ringing":  # the offer or the hang-up got lost, and nobody is left who would repeat it
            self.now_ms += RING_S * 1_000
            self.call, _ = expire(self.call, self.now_ms)
        holder = next((peer for peer in self.callees if peer.device.device_id == self.call.answered_by), None)
        if self.call.state != "ended" and holder is not None:
            self.probe(holder)
        if self.call.state == "ended":
            for peer in self.peers.values():
                self.probe(peer)
                assert peer.has_ended or not peer.is_in_call, f"{peer} believes in a call that ended"
            return
        assert holder is not None, "settled, not ended, and nobody answered"
        assert self.call.state == "stable"
        assert self.caller.agreed == holder.agreed == self.call.negotiation_id
        assert {self.caller.is_polite, holder.is_polite} == {True, False}, "exactly one is polite, and both were told"
        for other in self.callees:
            self.probe(other)
            assert other is holder or other.has_ended or not other.is_in_call

    def probe(self, peer: Peer) -> None:
        """A further offer is always possible, or tells that the call has ended."""
        if peer.is_in_call and not peer.has_ended:
            self.offer(peer)
            self.settle()


class Calls(RuleBasedStateMachine):
    """Any order of offers, restarts, candidates, byes, losses, repeats and deliveries."""

    @initialize(callees=st.integers(1, 3), caller_id=st.sampled_from(["dev_0", "dev_2", "dev_9"]))
    def begin(self, callees: int, caller_id: str) -> None:
        self.world = World(callees, caller_id)
        self.world.offer(self.world.caller)

    def peer(self, data: st.DataObject) -> Peer:
        return data.draw(st.sampled_from(list(self.world.peers.values())))

    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        peer = self.peer(data)
        if peer.is_in_call and not peer.has_ended and peer.local is None:
            self.world.offer(peer)

    @rule(data=st.data(), action=st.sampled_from(["candidate", "bye"]))
    def say(self, data: st.DataObject, action: Action) -> None:
        peer = self.peer(data)
        if peer.is_in_call and (action == "candidate" or data.draw(st.integers(0, 4)) == 0):
            peer.has_ended = peer.has_ended or action == "bye"
            peer.send(action, peer.local or peer.agreed or "n" if action == "candidate" else "")
            self.world.collect()

    @rule(data=st.data(), what=st.sampled_from(["deliver", "deliver", "deliver", "lose", "double"]))
    @precondition(lambda self: self.world.way)
    def travel(self, data: st.DataObject, what: str) -> None:
        index = data.draw(st.integers(0, len(self.world.way) - 1))
        if what == "deliver":
            self.world.deliver(index)
        elif what == "lose":
            self.world.way.pop(index)
        elif len(self.world.way) < 30:
            self.world.way.append(self.world.way[index])

    @rule(passed_ms=st.sampled_from([100, 4_000, 11_000]))
    def wait(self, passed_ms: int) -> None:
        self.world.now_ms += passed_ms
        for peer in self.world.peers.values():
            peer.tick()
        self.world.collect()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.assert_agreement()


Calls.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
test_calls_agree_whatever_the_network_does = Calls.TestCase


def connected(caller_id: str) -> World:
    world = World(1, caller_id)
    world.offer(world.caller)
    world.settle()
    return world


@pytest.mark.parametrize("caller_id", ["dev_0", "dev_2"])
@pytest.mark.parametrize("steps", [6])
def test_every_interleaving_of_two_offers_that_cross_ends_in_agreement(caller_id: str, steps: int) -> None:
    """Glare in a running call: each of the first six messages is delivered, lost or doubled, in every order; then the network is fair."""
    start = connected(caller_id)
    for peer in (start.caller, start.callees[0]):
        start.offer(peer)
    frontier = {repr((start.way, start.call, start.peers)): start}
    ends = 0
    for _ in range(steps):
        reached: dict[str, World] = {}
        for world in frontier.values():
            for index, what in itertools.product(range(len(world.way)), ("deliver", "lose", "double")):
                branch = deepcopy(world)
                if what == "deliver":
                    branch.deliver(index)
                elif what == "lose":
                    branch.way.pop(index)
                else:
                    branch.way.append(branch.way[index])
                branch.check()
                branch.way.sort(key=repr)
                reached[repr((branch.way, branch.call, branch.peers))] = branch
            ends += 1
            world.assert_agreement()
        frontier = reached
    for world in frontier.values():
        ends += 1
        world.assert_agreement()
    print(f"{ends} states, each settled")


@pytest.mark.parametrize("callee_id", ["dev_1", "dev_3"])
def test_no_sequence_of_six_frames_of_two_peers_leaves_a_call_stuck(callee_id: str) -> None:
    """Every sequence of six of: offer, answer, candidate, bye of either side (8^6 = 262,144), merged where the record is the same."""
    caller, callee = Device(ANA, "dev_2"), Device(BEN, callee_id)
    frames: list[tuple[Device, Action]] = [(device, action) for device in (caller, callee) for action in ("offer", "answer", "candidate", "bye")]
    frontier: dict[str, tuple[Call | None, int]] = {"": (None, 1)}
    sequences = 0
    for depth in range(6):
        reached: dict[str, tuple[Call | None, int]] = {}
        for call, ways in frontier.values():
            for device, action in frames:
                after = step(call, device, action, f"n{depth}")
                assert_sound(call, after, caller, callee)
                key = repr(after)
                reached[key] = (after, reached.get(key, (None, 0))[1] + ways)
        frontier = reached
        sequences = sum(ways for _, ways in frontier.values())
    assert sequences == 8**6
    assert {call.state for call, _ in frontier.values() if call} == {"ringing", "stable", "have_offer_from_caller", "have_offer_from_callee", "ended"}


def step(call: Call | None, device: Device, action: Action, new_id: str) -> Call | None:
    """One frame: a new offer, or an answer or candidate for what is current."""
    to = BEN if device.account_id == ANA else ANA
    negotiation_id = new_id if action == "offer" or call is None else call.negotiation_id
    return request(call, device, Signal(action, "call_1", to, None, negotiation_id), live_of(to), 1_000)[0]


def live_of(account_id: str) -> list[str]:
    return ["dev_2"] if account_id == ANA else ["dev_1", "dev_3"]


def assert_sound(before: Call | None, after: Call | None, caller: Device, callee: Device) -> None:
    if after is None:
        return
    if before is not None:
        assert before.answered_by in (None, after.answered_by), "the call never moves to another device"
        assert before.state != "ended" or after == before, "nothing happens after the end"
        assert before.state != "stable" or after.state != "ringing"
    if after.state == "ended":
        return
    later_ms = 1_000 + 10_000
    for device in (caller, callee):
        to = BEN if device.account_id == ANA else ANA
        taken, decision = request(after, device, Signal("offer", "call_1", to, None, "probe"), live_of(to), later_ms)
        assert taken is not None
        if after.state == "ringing" and Device(after.callee_account_id, device.device_id) == device:
            assert type(decision.refusal) is Glare, "it must answer, or decline"
        else:
            assert (decision.refusal, taken.negotiation_id) == (None, "probe"), "a way on for both, at the latest when an open offer is old"
