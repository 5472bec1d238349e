"""Which relays a client is told: those that take allocations, by what they have free; and what the registry may hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.relays import RelayNode, choose, parse_node, told_urls, turn_urls

NODE = RelayNode("n1", ("turn:203.0.113.1:3478?transport=udp",), "up", 10, 100, 1_900_000_000_000)


def node(name: str, allocations: int = 0, capacity: int = 100, **more: object) -> RelayNode:
    return replace(NODE, node_id=name, allocations=allocations, capacity=capacity, **more)  # type: ignore[arg-type]


def names(nodes: list[RelayNode]) -> set[str]:
    return {each.node_id for each in nodes}


def test_at_most_two_relays_are_told_and_each_once() -> None:
    chosen = choose([node(f"n{number}") for number in range(5)], b"draw")
    assert len(chosen) == len(names(chosen)) == 2
    assert names(choose([node("n1")], b"draw")) == {"n1"}
    assert choose([], b"draw") == []


def test_a_draining_relay_and_a_full_one_are_not_told_and_one_with_a_place_is() -> None:
    fleet = [node("drains", state="draining"), node("full", 100), node("over", 101), node("almost full", 99)]
    assert names(choose(fleet, b"draw")) == {"almost full"}
    assert choose(fleet[:3], b"draw") == []


def test_the_same_draw_chooses_the_same_relays_and_others_choose_others() -> None:
    fleet = [node(f"n{number}") for number in range(5)]
    assert choose(fleet, b"draw") == choose(list(reversed(fleet)), b"draw")
    assert len({frozenset(names(choose(fleet, bytes([draw])))) for draw in range(64)}) > 3


def test_relays_are_told_in_proportion_to_what_they_have_free() -> None:
    fleet = [node("empty", 0), node("half", 50), node("nine tenths", 90)]
    first = Counter(choose(fleet, draw.to_bytes(2, "big"))[0].node_id for draw in range(4_000))
    for name, share in (("empty", 100 / 160), ("half", 50 / 160), ("nine tenths", 10 / 160)):
        assert abs(first[name] / 4_000 - share) < 0.03, first  # four standard deviations; the draws are fixed


def test_an_entry_reads_as_it_was_written() -> None:
    assert parse_node(NODE.serialize()) == NODE


@pytest.mark.parametrize(
    "changed",
    [
        {"urls": ()},
        {"urls": ("http://203.0.113.1",)},
        {"urls": ("turn:203.0.113.1 turn:203.0.113.2",)},
        {"urls": ("turn:" + "a" * 300,)},
        {"urls": ("turn:a",) * 17},
        {"node_id": ""},
        {"state": "gone"},
        {"allocations": -1},
        {"capacity": True},
        {"capacity": 10**400},
        {"at_ms": 1.5},
    ],
)
def test_an_entry_of_the_wrong_form_is_none(changed: dict[str, object]) -> None:
    assert parse_node(replace(NODE, **changed).serialize()) is None  # type: ignore[arg-type]


@given(st.one_of(st.text(), st.recursive(st.none() | st.integers() | st.text(), lambda some: st.lists(some) | st.dictionaries(st.text(), some)).map(repr)))
def test_no_text_in_the_registry_is_an_exception(text: str) -> None:
    assert parse_node(text) is None


def test_an_entry_of_a_newer_version_with_more_fields_is_understood() -> None:
    assert parse_node(NODE.serialize().replace("{", '{"region":"eu-west-1",', 1)) == NODE


def test_urls_name_each_listener_and_turns_only_under_the_name_of_a_certificate() -> None:
    assert turn_urls("203.0.113.1", udp=3478) == ("turn:203.0.113.1:3478?transport=udp",)
    assert turn_urls("203.0.113.1", udp=3478, tcp=3479, tls=443) == ("turn:203.0.113.1:3478?transport=udp", "turn:203.0.113.1:3479?transport=tcp")
    assert turn_urls("2001:db8::1", tcp=3478, tls=443, tls_host="r1.example.com") == (
        "turn:[2001:db8::1]:3478?transport=tcp",
        "turns:r1.example.com:443?transport=tcp",
    )


def test_without_a_relay_of_the_registry_the_configured_ones_are_told() -> None:
    assert told_urls([], "turn:a:3478,turn:b:3478") == [["turn:a:3478", "turn:b:3478"]]
    assert told_urls([NODE, node("n2")], "turn:a:3478") == [list(NODE.urls)] * 2
