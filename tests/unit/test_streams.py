"""Recovery is complete, or says that it is not."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from heliograph.messages import Event
from heliograph.streams import IN_FLIGHT_MS, MAX_BYTES, MAX_EVENTS, Position, is_behind, recover


def stream(length: int, text: str = "x") -> list[Event]:
    return [Event("message", 1000 * n, "trace", {"text": text}, "room", "e", n) for n in range(1, length + 1)]


def page_of(events: list[Event]) -> Callable[[int, int], list[Event]]:
    return lambda after, limit: [event for event in events if event.offset is not None and after < event.offset <= after + limit]


def test_a_client_without_a_position_begins_at_the_head() -> None:
    assert recover(None, "e", 7, lambda *_: []).as_json() == {"recovered": True, "events": [], "more": False}


def test_a_position_of_another_epoch_or_past_the_head_is_not_recovered() -> None:
    for had in (Position("other", 3), Position("e", 8)):
        assert not recover(had, "e", 7, lambda *_: stream(7)).recovered
    assert recover(Position("e", 7), "e", 7, lambda *_: []).recovered


def test_a_page_with_a_hole_is_not_recovered() -> None:
    holey = [event for event in stream(7) if event.offset != 5]
    assert not recover(Position("e", 3), "e", 7, page_of(holey)).recovered
    assert recover(Position("e", 3), "e", 7, page_of(stream(7))).recovered


def test_more_than_fits_a_frame_is_cut_at_an_event_and_said() -> None:
    long = recover(Position("e", 0), "e", 50, page_of(stream(50, "x" * 4000)))
    assert long.more
    assert 0 < sum(len(event.serialize()) for event in long.events) <= MAX_BYTES


@given(st.integers(0, 300), st.integers(0, 320))
def test_what_is_recovered_follows_the_position_without_a_hole(head: int, offset: int) -> None:
    recovery = recover(Position("e", offset), "e", head, page_of(stream(head)))
    assert recovery.recovered == (offset <= head)
    if recovery.recovered:
        assert [event.offset for event in recovery.events] == list(range(offset + 1, min(head, offset + MAX_EVENTS) + 1))
        assert recovery.more == (head - offset > MAX_EVENTS)


def test_a_client_is_behind_when_it_misses_what_is_no_longer_in_flight() -> None:
    first = stream(3)[2:]
    assert not is_behind(Position("e", 3), "e", 3, list, 0)
    assert is_behind(Position("other", 3), "e", 3, list, 0)
    assert is_behind(Position("e", 4), "e", 3, list, 0)
    assert is_behind(Position("e", 2), "e", 3, lambda: first, 3000 + IN_FLIGHT_MS + 1)
    assert not is_behind(Position("e", 2), "e", 3, lambda: first, 3000 + IN_FLIGHT_MS)
