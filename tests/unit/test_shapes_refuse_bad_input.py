"""Bad input gets one named error; the valid twin passes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.errors import HeliographError, Malformed, TooLarge
from heliograph.shapes import SHAPES, check_idempotency_key, is_trace_id, parse_json

ROOM = "room_" + "0" * 32
CALL = "call_" + "0" * 32
GOOD_BODY = {"call_id": CALL, "loss": 0.5, "rtt_ms": 10}


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b'{"a": ' + b"9" * 21 + b"}",
        b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"a":' * 10_000,
        '{"a": "\u2200"}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32-le"),
        '{"a": 1}'.encode("utf-8-sig"),
    ],
)
def test_json_that_is_not_one_plain_object_is_malformed(text: bytes) -> None:
    with pytest.raises(Malformed):
        parse_json(text, 100_000)
    assert parse_json(b'{"a": {"b": [1, 2.5, "x", null, true]}}', 100_000) == {"a": {"b": [1, 2.5, "x", None, True]}}


def test_json_over_the_limit_is_too_large_and_at_the_limit_passes() -> None:
    text = json.dumps({"a": "x" * 100}).encode()
    with pytest.raises(TooLarge):
        parse_json(text, len(text) - 1)
    assert parse_json(text, len(text)) == {"a": "x" * 100}


def test_brackets_inside_strings_do_not_count_as_nesting() -> None:
    assert parse_json(json.dumps({"a": "[" * 100 + '\\"'}), 1000) == {"a": "[" * 100 + '\\"'}


@pytest.mark.parametrize(
    "change",
    [
        {"call_id": "call_1"},
        {"call_id": None},
        {"call_id": ["x"]},
        {"loss": 1.01},
        {"loss": True},
        {"loss": "0.1"},
        {"rtt_ms": -1},
        {"unknown": 1},
        {"has_video": "yes"},
    ],
)
def test_a_field_of_the_wrong_form_is_malformed(change: dict[str, object]) -> None:
    with pytest.raises(Malformed, match="body"):
        SHAPES["Stats"].check(GOOD_BODY | change, "body")
    assert SHAPES["Stats"].check(GOOD_BODY, "body") == GOOD_BODY


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "", "x" * 4001])
def test_text_with_nul_lone_surrogates_or_of_the_wrong_length_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        SHAPES["Text"].check({"text": text}, "body")
    assert SHAPES["Text"].check({"text": "naïve 🚒"}, "body") == {"text": "naïve 🚒"}


@pytest.mark.parametrize("name", ["../etc/passwd", "a/b", "a\\b", "a\nb", ""])
def test_a_file_name_that_could_leave_its_folder_is_malformed(name: str) -> None:
    body = {"media_id": "med_" + "0" * 32, "room_id": ROOM, "content_type": "audio/ogg", "length_bytes": 1, "sha256": "0" * 64}
    with pytest.raises(Malformed):
        SHAPES["NewMedia"].check(body | {"file_name": name}, "body")
    assert SHAPES["NewMedia"].check(body | {"file_name": "clip 1.ogg"}, "body")["file_name"] == "clip 1.ogg"


@pytest.mark.parametrize("key", [None, "", "a" * 65, "a b", "ключ", 7])
def test_an_idempotency_key_of_another_form_is_malformed(key: object) -> None:
    with pytest.raises(Malformed):
        check_idempotency_key(key)
    assert check_idempotency_key("a-Z_9") == "a-Z_9"


def test_a_trace_id_is_taken_over_only_in_its_form() -> None:
    assert is_trace_id("a" * 16)
    assert not any(is_trace_id(value) for value in ("a" * 15, "a" * 65, 'x"}' * 8, None, 5))


def test_every_shape_describes_itself_as_json_schema() -> None:
    for name, shape in SHAPES.items():
        schema = shape.schema()
        assert schema["type"] == "object", name
        assert set(schema["required"]) <= set(schema["properties"]), name


@given(st.binary(max_size=300))
def test_any_bytes_are_parsed_or_refused_by_name(data: bytes) -> None:
    try:
        assert isinstance(parse_json(data, 200), dict)
    except HeliographError as refusal:
        assert refusal.status in (400, 413)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(sorted(SHAPES)), _json)
def test_any_value_fits_a_shape_or_is_malformed(name: str, value: object) -> None:
    try:
        assert isinstance(SHAPES[name].check(value, "body"), dict)
    except Malformed as refusal:
        assert refusal.code == "malformed"
