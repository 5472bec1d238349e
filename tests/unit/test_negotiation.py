"""Who rings, whose offer stands, who is told what: one frame after the other."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from heliograph.effects import Notify, Post
from heliograph.errors import CallAnswered, CallEnded, Glare, HeliographError, NegotiationStale, NotFound
from heliograph.messages import Frame
from heliograph.negotiation import PAST_NEGOTIATIONS, Absent, Action, Call, Decision, Device, Missed, Signal, Tell, expire, request, to_effects
from heliograph.presence import Connection

ANA, BEN, EVE = "acc_a", "acc_b", "acc_e"
CALLER = Device(ANA, "dev_2")
POLITE, IMPOLITE, THIRD = Device(BEN, "dev_1"), Device(BEN, "dev_3"), Device(BEN, "dev_5")  # of the callee: dev_1 is smaller than the caller's dev_2
BENS = ("dev_1", "dev_3", "dev_5")
OPENING: tuple[Action, Action] = ("offer", "answer")
CLOSING: tuple[Action, Action] = ("candidate", "bye")
LIVE = {ANA: ("dev_2",), BEN: BENS}


class Story:
    """A record and what the last frame led to."""

    def __init__(self, call: Call | None = None) -> None:
        self.call, self.now_ms, self.live = call, 1_000, dict(LIVE)
        self.decision = Decision()

    def send(
        self, actor: Device, action: Action, negotiation_id: str = "", *, to: str | None = None, device: str | None = None, reason: str = "hangup"
    ) -> Decision:
        to = to or (BEN if actor == CALLER else ANA)
        before = self.call
        self.call, self.decision = request(before, actor, Signal(action, "call_1", to, device, negotiation_id, reason), self.live.get(to, ()), self.now_ms)
        if before is not None:
            assert self.call is not None
            assert self.call is before if self.call == before else self.call.version == before.version + 1
        return self.decision

    @property
    def known(self) -> Call:
        assert self.call is not None
        return self.call

    def told(self) -> list[tuple[str, tuple[str, ...] | None]]:
        return [(effect.event, effect.device_ids) for effect in self.decision.effects if isinstance(effect, Tell)]

    def refusal(self) -> type[HeliographError] | None:
        return type(self.decision.refusal) if self.decision.refusal else None


def ringing(device: str | None = None) -> Story:
    story = Story()
    story.send(CALLER, "offer", "n1", device=device)
    return story


def answered(by: Device = IMPOLITE) -> Story:
    story = ringing()
    story.send(by, "answer", "n1")
    assert story.known.state == "stable"
    return story


def test_an_offer_to_an_account_rings_each_of_its_devices_with_that_devices_role() -> None:
    story = ringing()
    tells = [effect for effect in story.decision.effects if isinstance(effect, Tell)]
    assert [(tell.event, tell.device_ids, tell.body) for tell in tells] == [
        ("offer", ("dev_1",), {"polite": True}),
        ("offer", ("dev_3",), {"polite": False}),
        ("offer", ("dev_5",), {"polite": False}),
    ]
    call = story.known
    assert (call.state, call.ringing, call.polite_device_id, call.version, call.started_at_ms) == ("ringing", BENS, None, 1, 1_000)


def test_the_first_answer_has_the_call_and_the_others_stop_ringing() -> None:
    story = answered(IMPOLITE)
    answer, others = story.decision.effects
    assert answer == Tell("answer", ANA, ("dev_2",), {"polite": True})
    assert others == Tell("bye", BEN, ("dev_1", "dev_5"), {"call_id": "call_1", "reason": "answered_elsewhere"}, is_relayed=False)
    call = story.known
    assert (call.answered_by, call.polite, call.polite_device_id, call.callee, call.version) == ("dev_3", "caller", "dev_2", IMPOLITE, 2)


def test_a_second_device_that_answers_is_refused_and_its_byes_and_candidates_end_nothing() -> None:
    story = answered(IMPOLITE)
    call = story.call
    for loud in OPENING:
        story.send(POLITE, loud, "n1")
        assert story.refusal() is CallAnswered
    for quiet in CLOSING:
        assert story.send(POLITE, quiet, "n1") == Decision()
    assert story.call is call


def test_a_device_that_declines_leaves_the_others_ringing_and_the_last_one_ends_the_call() -> None:
    story = ringing()
    for device, left in ((IMPOLITE, ("dev_1", "dev_5")), (THIRD, ("dev_1",))):
        assert story.send(device, "bye", reason="declined") == Decision()
        assert (story.known.state, story.known.ringing) == ("ringing", left)
    story.send(CALLER, "offer", "n1")
    assert story.told() == [("offer", ("dev_1",))], "an offer sent again does not ring where it was declined"
    story.send(POLITE, "bye", reason="declined")
    assert story.told() == [("bye", ("dev_2",))]
    assert (story.known.state, story.known.reason) == ("ended", "declined")


def test_a_device_that_comes_while_it_rings_is_rung_by_the_offer_sent_again() -> None:
    story = Story()
    story.live[BEN] = ("dev_1",)
    story.send(CALLER, "offer", "n1")
    story.live[BEN] = ("dev_1", "dev_3")
    story.send(CALLER, "offer", "n1")
    assert story.told() == [("offer", ("dev_1",)), ("offer", ("dev_3",))]
    assert story.known.ringing == ("dev_1", "dev_3")


def test_nobody_there_is_told_to_the_caller_and_pushed_once() -> None:
    story = Story()
    story.live[BEN] = ()
    assert story.send(CALLER, "offer", "n1") == Decision((Absent(BEN, is_pushed=True),))
    assert story.send(CALLER, "offer", "n1") == Decision((Absent(BEN, is_pushed=False),))
    assert Missed not in {type(effect) for effect in expire(story.known, 60_000)[1].effects}
    story.live[BEN] = BENS
    story.send(CALLER, "offer", "n1")
    assert len(story.told()) == 3, "woken by the push, they can still be rung"


def test_a_call_that_nobody_answers_in_time_is_missed_and_the_late_frame_is_refused() -> None:
    story = ringing()
    assert expire(story.known, 30_999)[0] is story.call
    story.now_ms = 31_000
    story.send(POLITE, "answer", "n1")
    assert story.refusal() is CallEnded
    told, others, missed = story.decision.effects
    assert told == Tell("bye", ANA, ("dev_2",), {"call_id": "call_1", "reason": "no_answer"}, is_relayed=False)
    assert others == Tell("bye", BEN, BENS, {"call_id": "call_1", "reason": "no_answer"}, is_relayed=False)
    assert missed == Missed(BEN, ANA)
    assert (story.known.state, story.known.reason, story.known.version) == ("ended", "no_answer", 2)
    assert expire(story.known, 99_999) == (story.call, Decision())
    assert story.send(POLITE, "bye") == Decision(), "told once"


def test_an_answered_call_never_times_out() -> None:
    assert expire(answered().known, 10**12)[1] == Decision()


def test_a_bye_ends_the_call_for_both_sides_and_again_ends_nothing() -> None:
    story = answered()
    story.send(CALLER, "bye")
    assert story.told() == [("bye", ("dev_3",))]
    call = story.call
    story.send(CALLER, "bye")
    assert story.told() == [("bye", ("dev_3",))], "sent again, relayed again"
    assert story.send(IMPOLITE, "bye") == Decision()
    assert story.call is call
    for actor in (CALLER, IMPOLITE):
        for action in (*OPENING, CLOSING[0]):
            story.send(actor, action, "n9")
            assert (story.refusal(), story.told()) == (CallEnded, [])


def test_the_caller_who_gives_up_stops_all_that_ring() -> None:
    story = ringing()
    for _ in range(2):
        story.send(CALLER, "bye")
        assert story.told() == [("bye", BENS)]
    story.send(IMPOLITE, "answer", "n1")
    assert story.refusal() is CallEnded


def test_a_bye_that_overtakes_its_offer_keeps_it_from_ringing() -> None:
    story = Story()
    story.send(CALLER, "bye")
    assert story.told() == [("bye", BENS)]
    story.send(CALLER, "offer", "n1")
    assert (story.refusal(), story.known.state) == (CallEnded, "ended")


def test_a_restart_is_a_new_offer_of_either_side_with_a_new_id() -> None:
    story = answered()
    for actor, peer, state, number in ((IMPOLITE, CALLER, "have_offer_from_callee", 2), (CALLER, IMPOLITE, "have_offer_from_caller", 3)):
        story.send(actor, "offer", f"n{number}")
        assert story.decision.effects == (Tell("offer", peer.account_id, (peer.device_id,), {"polite": peer == CALLER}),)
        assert story.known.state == state
        story.send(peer, "answer", f"n{number}")
        assert story.decision.effects == (Tell("answer", actor.account_id, (actor.device_id,), {"polite": actor == CALLER}),)
        assert (story.known.state, story.known.negotiation_id) == ("stable", f"n{number}")
    story.send(CALLER, "offer", "n2")
    assert story.refusal() is NegotiationStale, "an id is used once"


@pytest.mark.parametrize("callee", [POLITE, IMPOLITE])
def test_in_glare_the_impolite_offer_stands_whichever_came_first(callee: Device) -> None:
    polite, impolite = (callee, CALLER) if callee == POLITE else (CALLER, callee)
    story = answered(callee)
    story.send(impolite, "offer", "hard")
    story.send(polite, "offer", "soft")
    assert (story.refusal(), story.told(), story.known.negotiation_id) == (Glare, [], "hard")
    assert story.send(polite, "candidate", "soft") == Decision(), "of an ignored offer: dropped without error"
    story.send(polite, "answer", "hard")
    assert story.known.state == "stable"

    story = answered(callee)
    story.send(polite, "offer", "soft")
    story.send(impolite, "offer", "hard")
    assert (story.refusal(), story.told(), story.known.negotiation_id) == (None, [("offer", (polite.device_id,))], "hard")
    story.send(impolite, "answer", "soft")
    assert story.refusal() is NegotiationStale
    story.send(polite, "offer", "soft")
    assert story.refusal() is NegotiationStale
    story.send(polite, "answer", "hard")
    assert story.known.state == "stable"


def test_while_an_account_rings_the_callers_offer_stands() -> None:
    story = ringing()
    for device in (POLITE, IMPOLITE):
        story.send(device, "offer", f"by {device.device_id}")
        assert (story.refusal(), story.known.negotiation_id, story.known.answered_by) == (Glare, "n1", None)


def test_a_device_that_was_called_alone_may_outrank_the_caller() -> None:
    story = ringing("dev_1")
    story.send(POLITE, "offer", "m")
    assert story.refusal() is Glare
    story = ringing("dev_3")
    story.send(IMPOLITE, "offer", "m")
    assert (story.known.state, story.known.answered_by, story.told()) == ("have_offer_from_callee", "dev_3", [("offer", ("dev_2",))])
    story.send(CALLER, "answer", "m")
    assert story.known.state == "stable"


def test_an_offer_without_an_answer_gives_way_in_time_to_the_polite_side() -> None:
    story = answered()  # the caller is polite
    story.send(IMPOLITE, "offer", "lost")
    story.now_ms += 9_999
    story.send(CALLER, "offer", "n2")
    assert story.refusal() is Glare
    story.now_ms += 1
    story.send(CALLER, "offer", "n3")
    assert (story.refusal(), story.known.negotiation_id) == (None, "n3")


def test_a_newer_offer_of_the_same_side_replaces_its_older_one() -> None:
    story = ringing()
    story.send(CALLER, "offer", "n2")
    assert len(story.told()) == 3
    story.send(IMPOLITE, "answer", "n1")
    assert story.refusal() is NegotiationStale
    story.send(IMPOLITE, "answer", "n2")
    assert story.known.answered_by == "dev_3"


def test_answers_that_fit_no_open_offer_are_stale() -> None:
    story = Story()
    story.send(IMPOLITE, "answer", "n1")
    assert (story.refusal(), story.call) == (NegotiationStale, None)
    for actor, negotiation_id in ((IMPOLITE, "n0"), (CALLER, "n1")):
        story = ringing()
        story.send(actor, "answer", negotiation_id)
        assert (story.refusal(), story.known.state) == (NegotiationStale, "ringing")
    story = answered()
    story.send(IMPOLITE, "offer", "n1")
    assert story.refusal() is NegotiationStale, "the other side's id"


def test_a_frame_sent_again_has_its_effects_again_and_changes_nothing() -> None:
    story = answered()
    call = story.call
    story.send(CALLER, "offer", "n1")
    assert story.told() == [("offer", ("dev_3",))], "the answer got lost: it will be repeated"
    story.send(IMPOLITE, "answer", "n1")
    assert story.told() == [("answer", ("dev_2",))]
    assert story.call is call


def test_candidates_are_passed_on_before_and_after_their_description() -> None:
    story = Story()
    assert story.send(CALLER, "candidate", "n1") == Decision((Tell("candidate", BEN, None, {}),))
    assert story.call is None
    story.send(CALLER, "candidate", "n1", device="dev_3")
    assert story.told() == [("candidate", ("dev_3",))]
    story = ringing()
    story.send(CALLER, "candidate", "n1")
    assert story.told() == [("candidate", BENS)]
    story.send(IMPOLITE, "candidate", "n1")
    assert story.told() == [("candidate", ("dev_2",))]
    story = answered()
    for negotiation_id in ("n1", "n2"):  # n2: its offer is on its way
        story.send(CALLER, "candidate", negotiation_id)
        assert story.told() == [("candidate", ("dev_3",))]


def test_a_restart_that_reaches_nobody_leaves_the_call_as_it_was() -> None:
    story = answered()
    call = story.call
    story.live[BEN] = ("dev_1",)
    assert story.send(CALLER, "offer", "n2") == Decision((Absent(BEN, is_pushed=False),))
    assert story.call is call


def test_who_has_no_part_in_a_call_is_told_that_there_is_none() -> None:
    story = answered()
    call = story.call
    for action in (*OPENING, *CLOSING):
        for actor, to in ((Device(EVE, "dev_9"), BEN), (Device(EVE, "dev_2"), BEN), (Device(ANA, "dev_7"), BEN), (CALLER, EVE), (IMPOLITE, BEN)):
            story.send(actor, action, "n1", to=to)
            assert (story.refusal(), story.told()) == (NotFound, [])
    assert story.call is call
    story = ringing("dev_3")
    story.send(POLITE, "answer", "n1")
    assert story.refusal() is NotFound, "another device was called"
    story = Story()
    story.send(CALLER, "offer", "n1", to=ANA, device="dev_2")
    assert (story.refusal(), story.call) == (NotFound, None)


def test_a_call_between_two_devices_of_one_account_rings_the_others_alone() -> None:
    story = Story()
    story.live[ANA] = ("dev_2", "dev_4")
    story.send(CALLER, "offer", "n1", to=ANA)
    assert story.told() == [("offer", ("dev_4",))]
    story.send(Device(ANA, "dev_4"), "answer", "n1")
    assert (story.known.answered_by, story.told()) == ("dev_4", [("answer", ("dev_2",))])


def test_two_accounts_on_one_device_have_different_roles() -> None:
    one, two = Device(ANA, "dev_1"), Device(BEN, "dev_1")
    assert one.is_polite_to(two) is not two.is_polite_to(one)


def test_a_lost_record_is_made_anew_by_a_restart_of_either_side() -> None:
    story = Story()
    story.send(IMPOLITE, "offer", "n7", device="dev_2")
    assert story.told() == [("offer", ("dev_2",))]
    story.send(CALLER, "answer", "n7", device="dev_3")
    assert (story.known.state, story.known.polite_device_id) == ("stable", "dev_2")


@pytest.mark.parametrize("story", [ringing(), ringing("dev_3"), answered()])
def test_a_record_survives_the_store_and_is_small(story: Story) -> None:
    call = replace(story.known, past=tuple("n" * 64 for _ in range(PAST_NEGOTIATIONS)))
    text = json.dumps(call.as_json())
    assert Call.from_json(json.loads(text)) == call
    assert len(text) < 2_000


@pytest.mark.parametrize("change", [{"state": "busy"}, {"caller": None}, {"caller": {"x": 1}}, {"past": None}, {"unknown": 1}])
def test_what_is_no_record_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="record"):
        Call.from_json(ringing().known.as_json() | change)
    with pytest.raises(ValueError, match="record"):
        Call.from_json({})


def test_only_so_many_old_negotiations_are_remembered() -> None:
    story = answered()
    for number in range(50):
        story.send(CALLER, "offer", f"m{number}")
    assert len(story.known.past) == PAST_NEGOTIATIONS


def test_effects_become_posts_to_the_sockets_of_the_named_devices_and_pushes() -> None:
    call_id = "call_" + "1" * 32
    body = {"call_id": call_id, "to": {"account_id": BEN}, "negotiation_id": "n1", "sdp": "v=0"}
    frame = Frame("offer", "msg_" + "1" * 32, 1, "trace", "room_1", body)
    sockets = {BEN: [Connection(f"b{d}", d, 1, "online", 1) for d in ("dev_1", "dev_3")], ANA: [Connection("a", "dev_2", 1, "online", 1)]}
    signal = Signal.of("offer", body)
    call, decision = request(None, CALLER, signal, [c.device_id for c in sockets[BEN]], 5)
    assert decision.account_ids == {BEN}
    posts = to_effects(decision, frame, CALLER, "acme", "a", sockets, 5)
    assert [(post.connection_id, post.event.body["polite"]) for post in posts if isinstance(post, Post)] == [("bdev_1", True), ("bdev_3", False)]
    assert isinstance(posts[0], Post)
    assert posts[0].event.room_id == "room_1"
    sent = posts[0].event.body
    assert {"call_id": call_id, "negotiation_id": "n1", "sdp": "v=0", "polite": True, "id": frame.id, "from": {"account_id": ANA, "device_id": "dev_2"}} == sent

    everywhere = to_effects(Decision((Tell("candidate", ANA, None, {}), Missed(BEN, ANA))), frame, CALLER, "acme", "a", sockets, 5)
    assert [type(effect) for effect in everywhere] == [Notify], "not to the sender's own socket"
    push, told = to_effects(Decision((Absent(BEN, is_pushed=True),)), frame, CALLER, "acme", "a", {}, 5)
    assert isinstance(push, Notify)
    assert isinstance(told, Post)
    assert (push.kind, push.account_id, push.notification_id, push.expires_at_ms) == ("missed_call", BEN, "ntf_" + "1" * 32, 30_005)
    assert (told.connection_id, told.event.event, told.event.body) == ("a", "callee_absent", {"call_id": call_id, "account_id": BEN})

    assert call is not None
    frame = replace(frame, action="answer", body=body | {"to": {"account_id": ANA}})
    _, decision = request(call, IMPOLITE, Signal.of("answer", frame.body), ["dev_2"], 6)
    answer, bye = to_effects(decision, frame, IMPOLITE, "acme", "bdev_3", sockets, 6)
    assert isinstance(answer, Post)
    assert isinstance(bye, Post)
    assert (answer.connection_id, answer.event.body["polite"]) == ("a", True)
    assert (bye.connection_id, bye.event.event, bye.event.body) == ("bdev_1", "bye", {"call_id": call_id, "reason": "answered_elsewhere"})
