"""A room's stream in the client: whatever is lost, doubled, overtaken or cut off, the application gets the server's stream in order, each event once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from heliograph_client.frames import Event
from heliograph_client.stream import AGAIN_S, GAP_WAIT_S, MAX_HELD, Deliver, Effect, Join, Position, ReadPage, Stream, is_in_stream

ROOM = "room_018f3c2a7b9d7c4e8a1b2c3d4e5f6001"


def event(offset: int, epoch: str = "e1") -> Event:
    return Event("message", {"id": f"msg_{epoch}_{offset}", "text": str(offset)}, ROOM, epoch, offset)


def as_frame(item: Event) -> dict[str, Any]:
    return {"event": item.event, "epoch": item.epoch, "offset": item.offset, "body": item.body}


def snapshot(head: int, events: list[Event] | None = None, *, epoch: str = "e1", recovered: bool = True, more: bool = False) -> Event:
    return Event("room", {"recovered": recovered, "events": [as_frame(item) for item in events or []], "more": more}, ROOM, epoch, head)


def page(head: int, events: list[Event], *, recovered: bool = True) -> dict[str, Any]:
    return {"epoch": "e1", "head": head, "recovered": recovered, "events": [as_frame(item) for item in events]}


def offsets(effects: list[Effect]) -> list[int | None]:
    return [effect.event.offset for effect in effects if isinstance(effect, Deliver)]


def at(offset: int, epoch: str = "e1") -> Stream:
    return Stream(ROOM, Position(epoch, offset))


def test_events_leave_in_order_and_once() -> None:
    stream = at(0)
    assert offsets(stream.receive(event(2), 0.0)) == []
    assert offsets(stream.receive(event(1), 0.0)) == [1, 2]
    assert offsets(stream.receive(event(1), 0.0) + stream.receive(event(2), 0.0)) == []
    assert stream.next_deadline() is None


def test_a_gap_is_waited_for_and_then_recovered_with_growing_pauses() -> None:
    stream = at(0)
    stream.receive(event(2), 10.0)
    assert stream.next_deadline() == 10.0 + GAP_WAIT_S
    assert stream.tick(10.0 + GAP_WAIT_S / 2) == []
    assert stream.tick(10.4) == [Join()]
    assert stream.next_deadline() == 10.4 + AGAIN_S
    assert stream.tick(12.4) == [Join()]
    assert stream.next_deadline() == 12.4 + 2 * AGAIN_S
    assert offsets(stream.room(snapshot(2, [event(1), event(2)]), 12.5)) == [1, 2]
    assert stream.next_deadline() is None


def test_an_own_message_fills_its_offset_whichever_comes_first() -> None:
    early, late = at(0), at(0)
    assert offsets(early.fill("e1", 1, 0.0) + early.receive(event(2), 0.0)) == [2]
    assert offsets(late.receive(event(2), 0.0)) == []
    assert offsets(late.fill("e1", 1, 0.1)) == [2]
    assert late.next_deadline() is None
    assert offsets(late.room(snapshot(2, [event(1), event(2)]), 0.2)) == [], "recovery does not bring an acknowledged message again"


def test_the_first_join_begins_at_the_head_and_what_was_before_it_is_not_delivered() -> None:
    stream = Stream(ROOM)
    assert stream.join_body(0.0) == {}
    assert offsets(stream.receive(event(5), 0.0) + stream.receive(event(6), 0.0)) == []
    assert offsets(stream.room(snapshot(5, recovered=False), 0.0)) == [6]
    assert offsets(stream.joined("e1", 5, 0.0)) == []
    assert stream.position == Position("e1", 6)


def test_a_recovery_that_is_longer_than_one_event_goes_on_in_pages() -> None:
    stream = at(0)
    assert stream.join_body(0.0) == {"epoch": "e1", "offset": 0}
    effects = stream.room(snapshot(5, [event(1), event(2)], more=True), 0.0)
    assert offsets(effects) == [1, 2]
    assert effects[-1] == ReadPage(Position("e1", 2))
    effects = stream.page(Position("e1", 2), page(6, [event(3), event(4)]), 0.0)
    assert effects[-1] == ReadPage(Position("e1", 4))
    assert offsets(stream.page(Position("e1", 4), page(6, [event(5), event(6)]), 0.0)) == [5, 6]


def test_a_page_without_progress_is_not_read_in_a_circle() -> None:
    stream = at(0)
    stream.room(snapshot(5, [], more=True), 0.0)
    assert stream.page(Position("e1", 0), page(5, []), 0.0) == []
    assert stream.next_deadline() is not None


def test_a_new_epoch_is_a_reset_and_the_old_one_never_comes_back() -> None:
    stream = at(7)
    assert offsets(stream.receive(event(3, "e2"), 0.0)) == []
    assert stream.room(snapshot(2, epoch="e2", recovered=False), 0.0) == [ReadPage(Position("e1", 7))]
    effects = stream.page(Position("e1", 7), page(2, [], recovered=False) | {"epoch": "e2"}, 0.0)
    assert [effect.event.event for effect in effects if isinstance(effect, Deliver)] == ["stream_reset", "message"]
    reset = effects[0].event if isinstance(effects[0], Deliver) else None
    assert reset == Event("stream_reset", {"previous": {"epoch": "e1", "offset": 7}}, ROOM, "e2", 2)
    assert stream.receive(event(8), 0.0) == stream.room(snapshot(9, [event(8), event(9)]), 0.0) == stream.behind("e1", 9, 0.0) == []
    assert stream.position == Position("e2", 3)


def test_a_snapshot_of_an_epoch_between_does_not_lead_back() -> None:
    stream = at(7)
    stream.room(snapshot(1, epoch="e3", recovered=False), 0.0)
    stream.page(Position("e1", 7), page(1, [], recovered=False) | {"epoch": "e3"}, 0.0)
    assert stream.room(snapshot(4, epoch="e2", recovered=False), 0.0) == [ReadPage(Position("e3", 1))]
    assert stream.page(Position("e3", 1), page(1, []) | {"epoch": "e3"}, 0.0) == []
    assert stream.position == Position("e3", 1)
    assert stream.next_deadline() is None


def test_a_position_that_is_too_old_is_a_reset_to_the_oldest_event_there_is() -> None:
    stream = at(3)
    assert stream.room(snapshot(902, recovered=False), 0.0) == [ReadPage(Position("e1", 3))], "asked again where the answer cannot be a late one"
    assert offsets(stream.page(Position("e1", 3), page(902, [event(901), event(902)], recovered=False), 0.0)) == [900, 901, 902]


def test_a_hole_that_the_server_cannot_fill_is_said_too() -> None:
    stream = at(3)
    effects = stream.page(Position("e1", 3), page(7, [event(6), event(7)]), 0.0)
    assert offsets(effects) == [5, 6, 7]
    assert next(effect.event.event for effect in effects if isinstance(effect, Deliver)) == "stream_reset"


def test_a_server_that_lost_the_end_of_its_stream_is_followed_and_says_so() -> None:
    stream = at(9)
    assert stream.behind("e1", 7, 0.0) == [Join()]
    assert stream.room(snapshot(7, recovered=False), 0.0) == [ReadPage(Position("e1", 9))]
    assert offsets(stream.page(Position("e1", 9), page(7, [], recovered=False), 0.0)) == [7]
    assert offsets(stream.receive(event(8), 0.0)) == [8]
    assert stream.page(Position("e1", 9), page(7, [], recovered=False), 0.0) == [], "an answer to an older question"


def test_behind_recovers_at_once_but_not_while_recovery_is_under_way() -> None:
    stream = at(1)
    assert stream.behind("e1", 1, 0.0) == []
    assert stream.behind("e1", 2, 0.0) == [Join()]
    assert stream.behind("e1", 2, 0.1) == []


def test_only_so_many_events_are_held_and_what_was_dropped_is_recovered() -> None:
    stream = at(0)
    for offset in range(2, MAX_HELD + 20):
        stream.receive(event(offset), 0.0)
    assert len(offsets(stream.receive(event(1), 0.0))) == MAX_HELD
    assert stream.next_deadline() is not None, "those that were dropped are known to be missing"


def test_a_server_that_does_not_recover_is_read_by_pages() -> None:
    stream = at(12)
    stream.join_body(0.0)
    effects = stream.room(Event("room", {"participants": []}, ROOM, "e1", 14), 0.0)
    assert effects == [ReadPage(Position("e1", 12))]


def test_the_head_on_a_snapshot_is_not_a_place_in_the_stream() -> None:
    assert is_in_stream(event(1))
    assert not is_in_stream(snapshot(1))
    assert not is_in_stream(Event("behind", {}, ROOM, "e1", 4))
    assert not is_in_stream(Event("offer", {}, ROOM))


@dataclass
class Server:
    """The truth: the stream of each epoch, and what recovery of a position answers."""

    epoch: str = "e1"
    events: list[Event] = field(default_factory=list)
    past: dict[str, int] = field(default_factory=dict)

    @property
    def head(self) -> int:
        return len(self.events)

    def append(self) -> Event:
        self.events.append(event(self.head + 1, self.epoch))
        return self.events[-1]

    def room(self, position: dict[str, Any], limit: int) -> Event:
        is_known = position.get("epoch") == self.epoch
        missed = self.events[position["offset"] :][:limit] if is_known else []
        more = is_known and position["offset"] + len(missed) < self.head
        return snapshot(self.head, missed, epoch=self.epoch, recovered=is_known, more=more)

    def page(self, after: Position, limit: int) -> dict[str, Any]:
        is_known = after.epoch == self.epoch
        start = after.offset if is_known else max(0, self.head - limit)
        found = [as_frame(item) for item in self.events[start : start + limit]]
        return {"epoch": self.epoch, "head": self.head, "recovered": is_known, "events": found}


class AnyNetwork(RuleBasedStateMachine):
    """Frames on the wire may be lost, doubled and overtaken; sockets die; recoveries are cut; the stream begins a new life."""

    def __init__(self) -> None:
        super().__init__()
        self.server, self.stream, self.now_s = Server(), Stream(ROOM, Position("e1", 0)), 0.0
        self.wire: list[Any] = []  # events, own acknowledgements as Position
        self.answer: tuple[Position, dict[str, Any]] | None = None  # a page on its way: one at a time, once or never
        self.pending: set[str] = set()  # own messages without acknowledgement
        self.got: list[tuple[str, int]] = []  # every offset the application knows, delivered or acknowledged
        self.start = Position("e1", 0)

    # what the world does

    @rule()
    def somebody_writes(self) -> None:
        self.wire.append(self.server.append())

    @rule(is_echoed=st.booleans())
    def we_write(self, is_echoed: bool) -> None:
        mine = self.server.append()
        assert mine.epoch is not None
        assert mine.offset is not None
        self.pending.add(mine.body["id"])
        self.wire.append(Position(mine.epoch, mine.offset))
        if is_echoed:  # another socket of this device is in the room during a swap
            self.wire.append(mine)

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def something_arrives(self, data: st.DataObject) -> None:
        self._arrive(self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1))))

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def something_arrives_and_will_again(self, data: st.DataObject) -> None:
        self._arrive(data.draw(st.sampled_from(self.wire)))

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def something_is_lost(self, data: st.DataObject) -> None:
        self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1)))

    @precondition(lambda self: self.answer)
    @rule(is_lost=st.booleans())
    def a_page_comes(self, is_lost: bool) -> None:
        answer, self.answer = self.answer, None
        if answer is not None and not is_lost:
            self._perform(self.stream.page(*answer, self.now_s))

    @rule(limit=st.integers(0, 3))
    def the_socket_dies_and_comes_back(self, limit: int) -> None:
        self.wire.clear()
        self._join(limit)

    @rule(limit=st.integers(0, 3))
    def the_socket_is_replaced(self, limit: int) -> None:
        self._join(limit)

    @rule(seconds=st.floats(0.01, 5.0))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self._perform(self.stream.tick(self.now_s))

    @rule()
    def the_stream_begins_anew(self) -> None:
        self.server.past[self.server.epoch] = self.server.head
        self.server.epoch, self.server.events = f"e{len(self.server.past) + 1}", []

    # how the shell behaves

    def _join(self, limit: int) -> None:
        self.wire.append(self.server.room(self.stream.join_body(self.now_s), limit))

    def _arrive(self, frame: Any) -> None:
        if isinstance(frame, Position):
            if f"msg_{frame.epoch}_{frame.offset}" in self.pending:
                self._acknowledge(frame.epoch, frame.offset)
        elif frame.event == "room":
            self._perform(self.stream.room(frame, self.now_s))
        else:
            self._perform(self.stream.receive(frame, self.now_s))

    def _acknowledge(self, epoch: str, offset: int) -> None:
        self.pending.discard(f"msg_{epoch}_{offset}")
        self.acknowledged.add((epoch, offset))
        self._perform(self.stream.fill(epoch, offset, self.now_s))

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Join):
                self._join(2)
            elif isinstance(effect, ReadPage):
                self.answer = self.answer or (effect.after, self.server.page(effect.after, 2))
            else:
                self._deliver(effect.event)

    def _deliver(self, item: Event) -> None:
        assert item.epoch is not None
        assert item.offset is not None
        if item.event == "stream_reset":
            assert int(item.epoch[1:]) > int(self.start.epoch[1:]), "an epoch that was left never comes back, and nothing else was lost"
            self._check_complete(Position(*[item.body["previous"][name] for name in ("epoch", "offset")]))
            self.start, self.got = Position(item.epoch, item.offset), []
            return
        if item.body["id"] in self.pending:  # as good as its acknowledgement
            self.pending.discard(item.body["id"])
            self.acknowledged.add((item.epoch, item.offset))
            return
        assert (item.epoch, item.offset) not in self.acknowledged, "an acknowledged message was delivered as an event too"
        self.got.append((item.epoch, item.offset))

    @property
    def acknowledged(self) -> set[tuple[str, int]]:
        known: set[tuple[str, int]] = self.__dict__.setdefault("_acknowledged", set())
        return known

    # what must hold

    def _check_complete(self, until: Position) -> None:
        assert self.start.epoch == until.epoch
        mine = {offset for epoch, offset in self.acknowledged if epoch == until.epoch and self.start.offset < offset <= until.offset}
        assert sorted([offset for _, offset in self.got] + list(mine)) == list(range(self.start.offset + 1, until.offset + 1))

    @invariant()
    def what_was_delivered_is_in_order_and_complete(self) -> None:
        assert self.stream.position is not None
        assert self.got == sorted(set(self.got))
        assert {epoch for epoch, _ in self.got} <= {self.start.epoch}
        self._check_complete(self.stream.position)

    def teardown(self) -> None:
        """The network heals and a ping finds out: everything is there in the end."""
        for _ in range(20):
            while self.wire:
                self._arrive(self.wire.pop(0))
            while self.answer:
                self.a_page_comes(is_lost=False)
            self._perform(self.stream.behind(self.server.epoch, self.server.head, self.now_s))
            self.now_s += 30.0
            self._perform(self.stream.tick(self.now_s))
        self.what_was_delivered_is_in_order_and_complete()
        if self.server.head or self.stream.position == Position(self.server.epoch, 0):
            assert self.stream.position == Position(self.server.epoch, self.server.head)


AnyNetwork.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestAnyNetwork = AnyNetwork.TestCase
