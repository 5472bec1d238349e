"""When the client comes back, and when it replaces its socket or its token: pauses and times without a clock."""

from __future__ import annotations

import pytest

from heliograph_client.backoff import BASE_S, CAP_S, MOST_PATIENCE, SHORTEST_PROOF_S, STABLE_S, Backoff, full_jitter_s, prove_after_s, replace_after_s
from heliograph_client.clock import Clock
from heliograph_client.events import Relayed
from heliograph_client.frames import Event


def test_pauses_double_up_to_the_cap_and_jitter_is_full() -> None:
    assert [full_jitter_s(attempt, 1.0) for attempt in range(8)] == [0.5, 1, 2, 4, 8, 16, CAP_S, CAP_S]
    assert full_jitter_s(5, 0.0) == 0.0
    assert full_jitter_s(10_000, 1.0) == CAP_S


def test_only_a_socket_that_stayed_starts_the_pauses_anew() -> None:
    backoff = Backoff()
    assert [backoff.pause_s(0.0, 1.0) for _ in range(3)] == [BASE_S, 2 * BASE_S, 4 * BASE_S]
    backoff.opened(100.0)
    assert backoff.pause_s(100.0 + STABLE_S - 1, 1.0) == 8 * BASE_S, "a socket that flaps is not stable"
    backoff.opened(200.0)
    assert backoff.pause_s(200.0 + STABLE_S, 1.0) == BASE_S


def test_the_hint_starts_the_pauses_anew() -> None:
    backoff = Backoff(attempt=9)
    backoff.collapse()
    assert backoff.pause_s(0.0, 1.0) == BASE_S


def test_a_server_that_was_late_is_waited_for_longer_until_a_socket_stays_or_the_network_is_another() -> None:
    backoff = Backoff()
    seen = []
    for _ in range(4):
        seen.append(backoff.patience)
        backoff.too_late()
    assert seen == [1, 2, MOST_PATIENCE, MOST_PATIENCE]
    backoff.opened(100.0)
    backoff.pause_s(100.0 + STABLE_S - 1, 1.0)
    assert backoff.patience == MOST_PATIENCE
    backoff.opened(200.0)
    backoff.pause_s(200.0 + STABLE_S, 1.0)
    assert backoff.patience == 1
    backoff.too_late()
    backoff.collapse()
    assert backoff.patience == 1


def test_a_socket_is_replaced_before_its_time_at_a_moment_of_its_own() -> None:
    begun_ms, by_ms = 1_735_689_600_000, 1_735_689_600_000 + 110 * 60_000
    assert replace_after_s(begun_ms, by_ms, 0.0) == pytest.approx(99 * 60)
    assert replace_after_s(begun_ms, by_ms, 1.0) == pytest.approx(107.8 * 60)
    assert replace_after_s(by_ms, begun_ms, 0.5) == 0.0


def test_a_socket_gets_its_next_token_a_minute_to_a_minute_and_a_half_before_the_end() -> None:
    assert [prove_after_s(900, fraction) for fraction in (0.0, 1.0)] == [840, 810]
    assert [prove_after_s(300, fraction) for fraction in (0.0, 1.0)] == [240, 210]


def test_of_a_short_life_seven_to_eight_tenths_are_used() -> None:
    assert [prove_after_s(100, fraction) for fraction in (0.0, 1.0)] == [pytest.approx(80), pytest.approx(70)]


@pytest.mark.parametrize("life_s", [0.5, 0.0, -3600.0])
def test_a_life_that_seems_over_already_makes_nobody_spin(life_s: float) -> None:
    assert prove_after_s(life_s, 0.5) == SHORTEST_PROOF_S


def test_the_servers_time_goes_on_from_where_the_server_told_it() -> None:
    clock = Clock()
    clock.told(1_000)
    assert 1_000 <= clock.now_ms() < 61_000
    clock.told(5_000_000)
    assert 5_000_000 <= clock.now_ms() < 5_060_000


def relayed(frame_id: str, device_id: str) -> Event:
    return Event("candidate", {"id": frame_id, "from": {"account_id": "acc_1", "device_id": device_id}}, "room_1")


def test_a_frame_relayed_again_counts_once() -> None:
    known = Relayed(remembered=2)
    assert [known.is_new(relayed(frame_id, "dev_1")) for frame_id in ("msg_1", "msg_1", "msg_2")] == [True, False, True]
    assert known.is_new(relayed("msg_1", "dev_2")), "ids are unique per device"
    assert known.is_new(relayed("msg_1", "dev_1")), "long ago"
    assert [known.is_new(Event("bye", {"reason": "no_answer"})) for _ in range(2)] == [True, True], "of the server's own there is no telling apart"
