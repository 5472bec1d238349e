"""The table of client connections: who may connect, and until when each may go on. Each refusal has its passing twin; time is an argument."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media_fleet.turn.allocation import FiveTuple
from media_fleet.turn.connections import SLOT_S, Closed, Connection, Connections, StreamLimits, source_of


def five_tuple(port: int, host: str = "192.0.2.1", transport: str = "tcp") -> FiveTuple:
    return (host, port), ("198.51.100.1", 3478), transport


def table(**limits: Any) -> Connections:
    return Connections(StreamLimits(**limits))


def admitted(connections: Connections, port: int = 1, now: float = 0.0, host: str = "192.0.2.1", *, is_open: bool = True) -> Connection:
    connection = connections.admit(five_tuple(port, host), now, is_open=is_open)
    assert connection is not None
    return connection


def ends(connections: Connections, until: float) -> tuple[float, Closed] | None:
    """When the table's own deadlines close its one connection, and why; None when they have not by `until`."""
    while (at := connections.next_deadline()) is not None and at <= until:
        for connection, reason in connections.tick(at):
            connections.remove(connection, reason)
            return at, reason
    return None


# Who may connect


def test_up_to_the_limit_connect_and_the_next_one_when_one_has_left() -> None:
    connections = table(max_connections=3)
    living = [admitted(connections, port, host=f"192.0.2.{port}") for port in range(3)]
    assert connections.admit(five_tuple(4), 0.0, is_open=True) is None
    assert (len(connections), connections.refused) == (3, {"connections": 1})
    connections.remove(living[0], Closed.CLIENT)
    admitted(connections, 4)
    assert (len(connections), connections.accepted) == (3, 4)


@pytest.mark.parametrize(
    ("first", "same", "other"), [("192.0.2.1", "192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8:0:0:ffff::2", "2001:db8:0:1::1"), ("::1", "::2", "1::1")]
)
def test_a_source_has_its_limit_and_others_their_own(first: str, same: str, other: str) -> None:
    connections = table(max_connections_per_source=1)
    connection = admitted(connections, 1, host=first)
    assert connections.admit(five_tuple(2, same), 0.0, is_open=True) is None
    assert connections.refused == {"source": 1}
    admitted(connections, 3, host=other)
    connections.remove(connection, Closed.CLIENT)
    admitted(connections, 4, host=same)


def test_a_source_is_an_ipv4_address_or_an_ipv6_64() -> None:
    assert source_of("192.0.2.1") == "192.0.2.1"
    assert source_of("2001:db8:1:2:3:4:5:6") == source_of("2001:db8:1:2::") == "2001:0db8:0001:0002::/64"


def test_of_a_refused_connection_nothing_is_kept() -> None:
    connections = table(max_connections=1)
    admitted(connections)
    before = len(connections._wheel), len(connections._per_source)
    for port in range(1_000):
        assert connections.admit(five_tuple(port, f"198.51.100.{port % 250}"), 0.0, is_open=True) is None
    assert (len(connections._wheel), len(connections._per_source)) == before


# Until when


def test_a_connection_without_tls_ends_and_one_with_it_goes_on() -> None:
    connections = table(handshake_s=10, first_message_s=1_000)
    admitted(connections, is_open=False)
    assert ends(connections, 1_000) == (10, Closed.HANDSHAKE)
    connection = admitted(connections, is_open=False, now=20)
    connections.opened(connection, 29)
    assert ends(connections, 1_000) is None


def test_a_connection_without_a_message_ends_and_one_with_one_goes_on() -> None:
    connections = table(first_message_s=10, idle_s=1_000)
    admitted(connections, now=5)
    assert ends(connections, 1_000) == (15, Closed.FIRST_MESSAGE)
    connection = admitted(connections, now=20)
    connections.received(connection, 29, has_message=True, has_partial=False)
    assert ends(connections, 1_000) is None


def test_the_first_message_is_waited_for_from_the_end_of_the_handshake() -> None:
    connections = table(handshake_s=10, first_message_s=10)
    connections.opened(admitted(connections, is_open=False), 9)
    assert ends(connections, 1_000) == (19, Closed.FIRST_MESSAGE)


def test_a_silent_connection_without_an_allocation_ends_and_one_that_says_something_goes_on() -> None:
    connections = table(idle_s=60)
    connection = admitted(connections)
    for now in (1, 50, 100):
        connections.received(connection, now, has_message=True, has_partial=False)
        assert connections.tick(now) == []
    assert ends(connections, 1_000) == (160, Closed.IDLE)


def test_a_silent_connection_with_an_allocation_goes_on_until_it_has_none() -> None:
    connections = table(idle_s=60)
    connection = admitted(connections)
    connections.keep(connection, True, 1)
    assert ends(connections, 10_000) is None
    connections.keep(connection, False, 10_000)
    assert ends(connections, 20_000) == (10_060, Closed.IDLE)


def test_an_incomplete_message_may_not_stay_and_a_complete_one_may_take_as_long() -> None:
    connections = table(partial_s=10, idle_s=1_000)
    connection = admitted(connections)
    connections.keep(connection, True, 0)
    connections.received(connection, 1, has_message=False, has_partial=True)
    connections.received(connection, 9, has_message=True, has_partial=False)
    assert ends(connections, 100) is None
    for now in (100, 103, 106, 109):
        connections.received(connection, now, has_message=False, has_partial=True)
    assert ends(connections, 1_000) == (110, Closed.PARTIAL)


def test_each_message_has_its_own_time() -> None:
    """A busy client whose reads always end within a message is no slow one."""
    connections = table(partial_s=10)
    connection = admitted(connections)
    connections.keep(connection, True, 0)
    for now in range(0, 100, 9):
        connections.received(connection, now, has_message=True, has_partial=True)
        assert connections.tick(now) == []
    assert ends(connections, 1_000) == (109, Closed.PARTIAL)


def test_a_client_that_reads_nothing_ends_and_one_that_reads_again_goes_on() -> None:
    connections = table(stalled_s=30)
    connection = admitted(connections)
    connections.keep(connection, True, 0)
    connections.filled(connection, 5)
    connections.drained(connection)
    assert ends(connections, 100) is None
    connections.filled(connection, 100)
    connections.filled(connection, 120)
    assert ends(connections, 1_000) == (130, Closed.STALLED)


def test_the_reason_is_the_deadline_that_came_first() -> None:
    connections = table(first_message_s=10, partial_s=3)
    connection = admitted(connections)
    connections.received(connection, 1, has_message=False, has_partial=True)
    assert ends(connections, 100) == (4, Closed.PARTIAL)


def test_what_left_is_not_told_again() -> None:
    connections = table(first_message_s=10)
    connections.remove(admitted(connections), Closed.CLIENT)
    assert ends(connections, 100) is None
    assert (len(connections), connections.closed, connections._per_source) == (0, {"client": 1}, {})


def test_next_deadline_is_none_when_nothing_is_due_ever() -> None:
    connections = table()
    assert connections.next_deadline() is None
    connections.keep(admitted(connections), True, 0)
    connections.tick(1_000)
    assert connections.next_deadline() is None


def test_messages_do_not_make_the_table_grow() -> None:
    connections = table()
    connection = admitted(connections)
    for now in range(10_000):
        connections.received(connection, now / 1_000, has_message=True, has_partial=now % 2 == 0)
        connections.keep(connection, now % 3 == 0, now / 1_000)
    assert sum(map(len, connections._wheel.values())) == 1


events = st.lists(st.tuples(st.sampled_from(["message", "partial", "keep", "leave", "full", "drain", "wait"]), st.floats(0, 5)), max_size=40)


seconds = st.sampled_from([0.1, 1.0, 10.0, 60.0])


@given(st.fixed_dictionaries(dict.fromkeys(("handshake_s", "first_message_s", "partial_s", "idle_s", "stalled_s"), seconds)), events)
def test_whatever_happens_a_deadline_is_found_within_a_quarter_second_and_never_early(limits: dict[str, float], happened: list[tuple[str, float]]) -> None:
    """The wheel against the plain definition: the earliest of the five deadlines."""
    connections, now = table(**limits), 0.0
    connection = admitted(connections)
    for event, wait_s in happened:
        now += wait_s
        due = [reason for _, reason in connections.tick(now)]
        deadlines = list(connections._deadlines(connection))
        late = [at for at, _ in deadlines if at + SLOT_S < now]
        assert bool(due) >= bool(late)
        if due:
            assert min(deadlines) <= (now, due[0])
            return
        if event == "message":
            connections.received(connection, now, has_message=True, has_partial=False)
        elif event == "partial":
            connections.received(connection, now, has_message=False, has_partial=True)
        elif event in ("keep", "leave"):
            connections.keep(connection, event == "keep", now)
        elif event == "full":
            connections.filled(connection, now)
        elif event == "drain":
            connections.drained(connection)
