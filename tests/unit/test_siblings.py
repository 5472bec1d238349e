"""What workers of one node hand to each other: nothing but a datagram between relayed addresses of two of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media_fleet.siblings import parse, serialize
from media_fleet.turn import TurnSettings, relay_id_of

MINE, SIBLINGS = 50_000, 50_003  # of worker 0 and of worker 1
V4, V6 = "192.0.2.1", "2001:db8::1"


def settings(*hosts: str, worker: int = 0) -> TurnSettings:
    return TurnSettings(realm="north", relay_hosts=hosts or (V4, V6), worker=worker, workers=2)


@pytest.mark.parametrize("host", [V4, V6])
@pytest.mark.parametrize("payload", [b"", b"hello", bytes(65_400)])
def test_a_datagram_arrives_with_both_its_relayed_addresses(host: str, payload: bytes) -> None:
    relay_id = relay_id_of((host, MINE))
    assert parse(serialize(relay_id, (host, SIBLINGS), payload), settings()) == (relay_id, (host, SIBLINGS), payload)


@pytest.mark.parametrize(
    ("relay_id", "sender", "why"),
    [
        (SIBLINGS, (V4, SIBLINGS), "it is for another worker"),
        (MINE, (V4, MINE), "it does not come from another worker"),
        (MINE, (V4, 3478), "its sender is no relayed address"),
        (3478, (V4, SIBLINGS), "it is for no relayed address"),
        (MINE, (V6, SIBLINGS), "the families differ"),
    ],
)
def test_what_no_worker_would_hand_over_is_dropped(relay_id: int, sender: tuple[str, int], why: str) -> None:
    assert parse(serialize(relay_id, sender, b"x"), settings()) is None, why
    assert parse(serialize(MINE, (V4, SIBLINGS), b"x"), settings()) is not None


def test_a_family_that_the_node_does_not_have_is_dropped() -> None:
    data = serialize(relay_id_of((V6, MINE)), (V6, SIBLINGS), b"x")
    assert parse(data, settings(V4)) is None
    assert parse(data, settings(V6)) is not None


@given(st.binary(max_size=64) | st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)).map(lambda ids: b"".join(n.to_bytes(4, "big") for n in ids)))
def test_nothing_that_arrives_raises_and_what_passes_is_between_two_workers(data: bytes) -> None:
    here = settings()
    if (arrived := parse(data, here)) is not None:
        relay_id, sender, _ = arrived
        assert here.is_mine(relay_id)
        assert here.is_a_siblings(relay_id_of(sender))
        assert sender[0] in here.relay_hosts
