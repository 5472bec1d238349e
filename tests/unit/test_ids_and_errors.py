"""Ids are UUIDv7 with a prefix; errors are a closed, documented list."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph import errors
from heliograph.ids import PREFIXES, is_id, new_id


@given(st.sampled_from(PREFIXES), st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_an_id_is_a_uuid_of_version_7_that_carries_its_time(prefix: str, now_ms: int, random: bytes) -> None:
    made = new_id(prefix, now_ms, random)
    value = uuid.UUID(made.partition("_")[2])
    assert (value.version, value.variant, value.int >> 80) == (7, uuid.RFC_4122, now_ms)
    assert is_id(made, prefix)


def test_ids_sort_by_time() -> None:
    assert new_id("msg", 1, b"\xff" * 10) < new_id("msg", 2, b"\x00" * 10)


def test_an_id_of_an_unknown_kind_or_without_randomness_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="prefix"):
        new_id("foo", 1, b"0" * 10)
    with pytest.raises(ValueError, match="random"):
        new_id("msg", 1, b"0")


@pytest.mark.parametrize("text", ["", "msg_", "msg_" + "0" * 31, "msg_" + "G" * 32, "room_" + "0" * 32, "msg_" + "0" * 32 + "\n"])
def test_text_that_is_not_an_id_is_not_taken_for_one(text: str) -> None:
    assert not is_id(text, "msg")
    assert is_id("msg_" + "0" * 32, "msg")


def test_every_error_has_its_own_code_a_sentence_and_a_status() -> None:
    listed = list(errors.catalogue())
    assert len({error.code for error in listed}) == len(listed)
    for error in listed:
        assert 400 <= error.status < 600, error
        assert error.sentence.endswith("."), error


def test_an_error_says_all_the_wire_form_asks_for() -> None:
    assert errors.RateLimited(retry_after_ms=100).body("trace", "msg") == {
        "code": "rate_limited",
        "message": errors.RateLimited.sentence,
        "retryable": True,
        "trace_id": "trace",
        "retry_after_ms": 100,
        "re": "msg",
    }
