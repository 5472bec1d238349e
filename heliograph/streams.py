"""Recovery of a room's stream: complete, or said not to be. Positions are (epoch, offset); offsets are dense."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from heliograph.messages import Event, dump
from heliograph.shapes import JsonObject

MAX_EVENTS = 100
IN_FLIGHT_MS = 1_500
MAX_BYTES = 80 * 1024  # the snapshot around them must stay below API Gateway's 128 KB


@dataclass(frozen=True, slots=True)
class Position:
    """Up to where a client has a room's stream."""

    epoch: str
    offset: int

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Position | None:
        """The position in a frame's body, or None when the client has none."""
        return cls(body["epoch"], body["offset"]) if "epoch" in body and "offset" in body else None


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a client that comes back gets. `more`: the rest is to be read page by page."""

    recovered: bool
    events: Sequence[Event] = ()
    more: bool = False

    def as_json(self) -> JsonObject:
        return {"recovered": self.recovered, "events": [event.as_json() for event in self.events], "more": self.more}


def recover(had: Position | None, epoch: str, head: int, page: Callable[[int, int], Sequence[Event]], max_events: int = MAX_EVENTS) -> Recovery:
    """The events after the client's position, as many as one frame or page takes.

    A client without a position begins at the head. `page(after, limit)` reads the stream. A page with a hole is not recovered: never partial.
    """
    if had is None:
        return Recovery(recovered=True)
    if had.epoch != epoch or had.offset > head:
        return Recovery(recovered=False)
    wanted = min(max_events, head - had.offset)
    missed = page(had.offset, wanted) if wanted else ()
    if [event.offset for event in missed] != list(range(had.offset + 1, had.offset + 1 + wanted)):
        return Recovery(recovered=False)
    fitting = _fitting(missed)
    return Recovery(True, fitting, had.offset + len(fitting) < head)


def is_behind(had: Position, epoch: str, head: int, first_missed: Callable[[], Sequence[Event]], now_ms: int) -> bool:
    """Whether a client at this position has missed something. An event of the last IN_FLIGHT_MS may still be on its way."""
    if had.epoch != epoch or had.offset > head:
        return True
    return had.offset < head and all(now_ms - event.at_ms > IN_FLIGHT_MS for event in first_missed())


def _fitting(events: Sequence[Event]) -> Sequence[Event]:
    used = 0
    for index, event in enumerate(events):
        used += len(dump(event.as_json()))
        if used > MAX_BYTES:
            return events[:index]
    return events
