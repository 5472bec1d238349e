"""Client frames are parsed or refused with a stable code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.routes import socket_routes
from heliograph.errors import HeliographError, Malformed, TooLarge, UnknownAction
from heliograph.messages import MAX_FRAME_BYTES, ROOM_ACTIONS, Event, Reference, acknowledgement, parse_frame, reference

SHAPES = {route.key: route.body for _, route in socket_routes() if not route.key.startswith("$")}
GOOD: dict[str, Any] = {
    "action": "message",
    "id": "msg_" + "0" * 32,
    "room_id": "room_" + "0" * 32,
    "client_seq": 1,
    "trace_id": "trace-0123456789",
    "body": {"text": "hello"},
}


def parse(changes: dict[str, Any], *, without: str = "") -> Any:
    data = {key: value for key, value in (GOOD | changes).items() if key != without}
    return parse_frame(json.dumps(data), SHAPES)


def test_a_valid_frame_keeps_what_it_said() -> None:
    frame = parse({})
    assert (frame.action, frame.room, frame.client_seq, frame.body) == ("message", GOOD["room_id"], 1, {"text": "hello"})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"action": "explode"}, UnknownAction),
        ({"action": "$connect"}, UnknownAction),
        ({"action": 5}, Malformed),
        ({"id": "msg_1"}, Malformed),
        ({"id": "room_" + "0" * 32}, Malformed),
        ({"client_seq": 0}, Malformed),
        ({"client_seq": 2**60}, Malformed),
        ({"client_seq": "1"}, Malformed),
        ({"trace_id": "short"}, Malformed),
        ({"trace_id": "a" * 15 + "\n" + "b" * 9}, Malformed),
        ({"room_id": "acc_" + "0" * 32}, Malformed),
        ({"room_id": None}, Malformed),
        ({"extra": 1}, Malformed),
        ({"body": {"text": 5}}, Malformed),
        ({"body": []}, Malformed),
        ({"body": {"text": "x" * MAX_FRAME_BYTES}}, TooLarge),
    ],
)
def test_a_bad_frame_is_refused_and_its_twin_passes(changes: dict[str, Any], error: type[HeliographError]) -> None:
    with pytest.raises(error):
        parse(changes)
    assert parse({}).action == "message"


@pytest.mark.parametrize("field", ["id", "client_seq", "trace_id", "body", "room_id", "action"])
def test_a_frame_that_lacks_a_field_is_malformed(field: str) -> None:
    with pytest.raises(Malformed):
        parse({}, without=field)


def test_actions_on_a_room_need_one_and_others_do_not() -> None:
    assert set(SHAPES) >= ROOM_ACTIONS
    hello = parse_frame(json.dumps({**{k: v for k, v in GOOD.items() if k not in ("room_id", "body")}, "action": "hello"}), SHAPES)
    assert hello.room_id is None
    with pytest.raises(ValueError, match="no room"):
        _ = hello.room


def test_a_refusal_can_name_the_frame_even_when_the_frame_is_bad() -> None:
    assert reference(json.dumps(GOOD | {"action": "explode"})) == Reference(GOOD["id"], GOOD["trace_id"], 1)
    assert reference("{") == Reference()
    assert reference(json.dumps({"id": "<script>", "trace_id": 5, "client_seq": True})) == Reference()


def test_an_event_leaves_out_what_it_does_not_have() -> None:
    assert json.loads(Event("presence", 1, "t", {}).serialize()) == {"event": "presence", "at_ms": 1, "trace_id": "t", "body": {}}
    full = json.loads(Event("message", 1, "t", {}, "room", "e", 0).serialize())
    assert (full["room_id"], full["epoch"], full["offset"]) == ("room", "e", 0)


def test_an_acknowledgement_with_an_offset_says_that_the_frame_is_durable() -> None:
    assert acknowledgement("msg") == {"re": "msg"}
    assert acknowledgement("msg", "e", 7) == {"re": "msg", "epoch": "e", "offset": 7}


@given(st.binary(max_size=400) | st.text(max_size=400))
def test_any_bytes_are_a_frame_or_a_named_refusal(data: bytes | str) -> None:
    with pytest.raises(HeliographError):
        parse_frame(data, SHAPES)
    reference(data)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), st.none() | st.integers() | st.text(max_size=40) | st.lists(st.integers(), max_size=3), max_size=4))
def test_any_change_of_a_valid_frame_is_a_frame_or_a_named_refusal(changes: dict[str, Any]) -> None:
    try:
        parse(changes)
    except HeliographError as refusal:
        assert refusal.status in (400, 413)
