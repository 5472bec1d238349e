"""The stream of one room, put in order. Pure: time is an argument, what is to be done comes back as effects.

Rule 1. Events leave in the order of their offsets, each once.
Rule 2. What lies past a gap is held. If the gap is not filled within GAP_WAIT_S (posts overtake each other, and so does the acknowledgement
        of an own message), the stream asks for recovery, and asks again with growing pauses until there is no gap.
Rule 3. An own message has no event: its acknowledgement fills its offset.
Rule 4. At most MAX_HELD events are held. What is dropped is still known to exist, and recovered.
Rule 5. What cannot be recovered is never skipped in silence: a `stream_reset` event says where the stream goes on. Only a page, which is an answer,
        can say so; a snapshot may be late or doubled. An epoch that was left never comes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .frames import Event, parse_event

GAP_WAIT_S = 0.3
AGAIN_S, AGAIN_CAP_S = 2.0, 20.0
MAX_HELD = 256


class Position(NamedTuple):
    """A place in a stream: everything up to and including `offset` of this `epoch` is known."""

    epoch: str
    offset: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand this event to the application."""

    event: Event


@dataclass(frozen=True, slots=True)
class Join:
    """Send `join` with the stream's position; the `room` event that follows recovers."""


@dataclass(frozen=True, slots=True)
class ReadPage:
    """Read a page of the room's events over REST."""

    after: Position


Effect = Deliver | Join | ReadPage


class Stream:
    """One room: frames go in as they come, events come out in order."""

    def __init__(self, room_id: str, position: Position | None = None) -> None:
        """Without a position the stream begins at the head that the first join reports."""
        self.room_id = room_id
        self.position = position
        self._held: dict[Position, Event] = {}
        self._own: set[Position] = set()
        self._heads: dict[str, int] = {}  # epoch -> the newest offset known to exist
        self._past: set[str] = set()
        self._attempts = 0
        self._deadline_s: float | None = None

    def join_body(self, now_s: float) -> dict[str, Any]:
        """The body of a `join` that is sent now."""
        if self.position is None:
            return {}
        self._ask_again_later(now_s)
        return {"epoch": self.position.epoch, "offset": self.position.offset}

    def joined(self, epoch: str, head: int, now_s: float) -> list[Effect]:
        """The acknowledgement of a `join`: the stream's head."""
        self._begin(epoch, head)
        self._note(epoch, head)
        return self._advance(now_s)

    def receive(self, event: Event, now_s: float) -> list[Effect]:
        """A stream event that was posted."""
        self._hold(event)
        return self._advance(now_s)

    def fill(self, epoch: str, offset: int, now_s: float) -> list[Effect]:
        """The acknowledgement of an own message (rule 3)."""
        if self._note(epoch, offset):
            self._own.add(Position(epoch, offset))
        return self._advance(now_s)

    def behind(self, epoch: str, head: int, now_s: float) -> list[Effect]:
        """Event `behind`: the head is not where we are, so a post was lost, or the server has lost the end of its stream."""
        self._note(epoch, head)
        is_ahead = self.position is not None and self.position.epoch == epoch and head < self.position.offset
        if self._attempts == 0 and (is_ahead or self._is_behind()):
            self._deadline_s = now_s
        return self.tick(now_s)

    def room(self, event: Event, now_s: float) -> list[Effect]:
        """Event `room`: the snapshot that follows a join, with what was missed.

        That our position cannot be recovered is asked again over REST: an event may be late or doubled, a page answers what is asked now.
        """
        if event.epoch is None or event.offset is None or event.epoch in self._past:
            return []
        if self.position is None:
            self._begin(event.epoch, event.offset)
            return self._advance(now_s)
        if event.epoch != self.position.epoch or not event.body.get("recovered", True):
            self._note(event.epoch, event.offset)
            self._deadline_s = now_s + AGAIN_S
            return [ReadPage(self.position)]
        effects = self._merge(event.epoch, event.offset, event.body, now_s)
        return effects + (self._read_on(now_s) if event.body.get("more", True) else [])

    def page(self, after: Position, body: Mapping[str, Any], now_s: float) -> list[Effect]:
        """A page of `GET /v1/rooms/{room_id}/events` that was asked for `after`. One is asked for at a time, so pages come in their order."""
        before, epoch, head = self.position, body.get("epoch"), body.get("head")
        if not isinstance(epoch, str) or not isinstance(head, int) or epoch in self._past or before is None:
            return []
        effects = self._merge(epoch, head, body, now_s, is_answer=after == before)
        return effects + (self._read_on(now_s) if self.position != before else [])  # a page without progress is left to the deadline

    def tick(self, now_s: float) -> list[Effect]:
        """Ask for recovery when it is time to."""
        if self._deadline_s is None or now_s < self._deadline_s:
            return []
        self._ask_again_later(now_s)
        return [Join()]

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self._deadline_s

    def _begin(self, epoch: str, head: int) -> None:
        if self.position is None and epoch not in self._past:
            self.position = Position(epoch, head)
            self._prune()

    def _note(self, epoch: str, offset: int) -> bool:
        """Learn that an offset exists; whether it is still to come."""
        if not self._is_to_come(Position(epoch, offset)):
            return False
        self._heads[epoch] = max(offset, self._heads.get(epoch, 0))
        return True

    def _hold(self, event: Event) -> None:
        if event.epoch is None or event.offset is None or not self._note(event.epoch, event.offset):
            return
        self._held.setdefault(Position(event.epoch, event.offset), event)
        if len(self._held) > MAX_HELD:
            here = self.position.epoch if self.position is not None else None
            del self._held[max(self._held, key=lambda at: (at.epoch != here, at.offset))]  # what is needed last, and of another epoch first

    def _advance(self, now_s: float) -> list[Effect]:
        """Release what follows the position without a gap; then wait, or have nothing to wait for."""
        ready: list[Effect] = []
        while self.position is not None:
            following = Position(self.position.epoch, self.position.offset + 1)
            event = self._held.pop(following, None)
            if following in self._own:
                self._own.discard(following)
            elif event is not None:
                ready.append(Deliver(event))
            else:
                break
            self.position = following
        if not self._is_behind():
            self._deadline_s, self._attempts = None, 0
        elif self._deadline_s is None:
            self._deadline_s = now_s + GAP_WAIT_S
        return ready

    def _is_behind(self) -> bool:
        """Something exists that was not delivered: past our offset, or in another epoch."""
        here = self.position
        return here is not None and any(epoch != here.epoch or head > here.offset for epoch, head in self._heads.items())

    def _ask_again_later(self, now_s: float) -> None:
        self._deadline_s = now_s + min(AGAIN_CAP_S, AGAIN_S * 2.0**self._attempts)
        self._attempts = min(self._attempts + 1, 10)

    def _merge(self, epoch: str, head: int, body: Mapping[str, Any], now_s: float, *, is_answer: bool = False) -> list[Effect]:
        """Take over a recovery; `is_answer` when it is surely about our position, so that what it does not have is lost."""
        events, here = _events(body.get("events"), self.room_id), self.position
        assert here is not None
        start = events[0].offset - 1 if events and events[0].offset is not None else head
        is_lost = is_answer and (not body.get("recovered", True) or bool(events and start > here.offset))
        effects = [self._reset(epoch, start)] if epoch != here.epoch or is_lost else []
        self._heads = {epoch: self._heads.get(epoch, 0)}  # the server says which epoch it is; a newer one will be heard of again
        self._note(epoch, head)
        for event in events:
            self._hold(event)
            effects += self._advance(now_s)
        return effects + self._advance(now_s)

    def _read_on(self, now_s: float) -> list[Effect]:
        if self.position is None or self._heads.get(self.position.epoch, 0) <= self.position.offset:
            return []
        self._deadline_s = now_s + AGAIN_S
        return [ReadPage(self.position)]

    def _reset(self, epoch: str, offset: int) -> Effect:
        """Go on elsewhere, and say so (rule 5)."""
        before = self.position
        assert before is not None
        if epoch != before.epoch:
            self._past.add(before.epoch)
        self.position = Position(epoch, offset)
        self._prune()
        return Deliver(Event("stream_reset", {"previous": {"epoch": before.epoch, "offset": before.offset}}, self.room_id, epoch, offset))

    def _prune(self) -> None:
        self._held = {at: event for at, event in self._held.items() if self._is_to_come(at)}
        self._own = {at for at in self._own if self._is_to_come(at)}
        self._heads = {epoch: head for epoch, head in self._heads.items() if self._is_to_come(Position(epoch, head))}

    def _is_to_come(self, at: Position) -> bool:
        here = self.position
        return at.epoch not in self._past and not (here is not None and here.epoch == at.epoch and at.offset <= here.offset)


def is_in_stream(event: Event) -> bool:
    """Whether an event stands in the room's stream; `room` and `behind` carry the head's position, not their own."""
    return event.room_id is not None and event.epoch is not None and event.offset is not None and event.event not in ("room", "behind")


def _events(frames: object, room_id: str) -> Sequence[Event]:
    parsed = [parse_event({"room_id": room_id} | frame) for frame in frames if isinstance(frame, dict)] if isinstance(frames, list) else []
    return [event for event in parsed if event is not None]
