"""The decision board: down at once, up after a hold, each decision with its reason. Minutes of network in milliseconds of test."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.bitrate.board import LADDER, Decision, Report, Rung, State, decide, state_from


def run(state: State, report: Report, seconds: int, start_ms: int) -> tuple[State, list[Decision]]:
    decisions = []
    for second in range(seconds):
        state, decision = decide(state, report, start_ms + second * 1000)
        decisions.append(decision)
    return state, decisions


def test_the_top_rung_is_the_customers_row() -> None:
    top = LADDER[0]
    assert (top.audio.bitrate_bps, top.audio.channels, top.video.max_height, top.video.max_fps) == (64_000, 2, 1080, 30)


def test_the_ladder_steps_down_evenly_and_leaves_room_between_down_and_up() -> None:
    assert [rung.number for rung in LADDER] == list(range(1, 10))
    assert [rung.down_bps for rung in LADDER] == sorted((rung.down_bps for rung in LADDER), reverse=True)
    for rung in LADDER[:-1]:
        assert rung.up_bps >= 1.2 * rung.down_bps, rung.name


@pytest.mark.parametrize("rung", [rung for rung in LADDER if rung.down_bps])
def test_what_a_rung_says_fits_the_budget_at_which_it_is_left(rung: Rung) -> None:
    _, decision = decide(State(rung=rung.number), Report(available_bps=rung.down_bps), 1000)
    assert decision.rung.number == rung.number
    assert decision.audio.wire_bps <= rung.down_bps


def test_a_good_link_climbs_to_the_top_one_rung_at_a_time() -> None:
    state, decisions = run(State(), Report(available_bps=5e6, rtt_ms=40, loss=0.0, has_video=True), 60, 1000)
    numbers = [decision.rung.number for decision in decisions]
    assert state.rung == 1
    assert all(0 <= before - after <= 1 for before, after in itertools.pairwise(numbers))
    assert decisions[-1].video.max_height == 1080


def test_a_collapse_steps_down_at_once_to_what_fits_and_says_why() -> None:
    _, decision = decide(State(rung=1), Report(available_bps=45_000), 1000)
    assert (decision.rung.name, decision.audio.ptime_ms) == ("audio_only", 60)
    assert "45 kbit/s" in decision.rule
    assert decision.to_step_up.startswith("thumbnail: above 125 kbit/s")
    assert decision.as_json()["reason"]["inputs"]["available_bps"] == 45_000


def test_a_step_up_waits_for_the_hold_time_and_one_bad_report_starts_it_anew() -> None:
    good, bad = Report(available_bps=1e6, loss=0.0), Report(available_bps=1e6, loss=0.05)
    state, _ = run(State(rung=4), good, 6, 1000)
    assert state.rung == 4
    state, _ = decide(state, bad, 7000)
    state, decisions = run(state, good, 8, 8000)
    assert [d.rung.number for d in decisions].index(3) == 6


def test_a_failed_step_up_doubles_the_hold() -> None:
    state, _ = run(State(rung=4), Report(available_bps=1e6), 8, 1000)
    assert state.rung == 3
    state, _ = decide(state, Report(available_bps=400_000), 9000)
    assert (state.rung, state.hold_ms) == (4, 12_000)


def test_without_an_estimate_of_its_own_a_client_gets_what_was_delivered() -> None:
    _, decision = decide(State(rung=4), Report(sent_bps=87_000, loss=0.5, rtt_ms=600), 1000)
    assert decision.rung.name == "audio_only"
    assert decision.inputs["target_bps"] == round(87_000 * 0.5 * 0.95)


def test_a_link_that_nobody_can_talk_over_records_now_and_delivers_later() -> None:
    _, decision = decide(State(rung=7), Report(available_bps=50_000, rtt_ms=3_000), 1000)
    assert decision.rung.action == "store and forward"
    state, decisions = run(State(rung=8, target_bps=20_000), Report(loss=0.6, sent_bps=20_000), 6, 1000)
    assert state.rung == 9
    assert decisions[0].rung.number < 10


def test_forward_error_correction_is_asked_for_only_where_opus_gains_by_it() -> None:
    _, lossy = decide(State(rung=4), Report(available_bps=300_000, loss=0.05), 1000)
    _, clean = decide(State(rung=4), Report(available_bps=300_000, loss=0.0), 1000)
    _, low = decide(State(rung=8), Report(available_bps=20_000, loss=0.05), 1000)
    assert (lossy.audio.fec, lossy.audio.loss_percent) == (True, 10)
    assert not clean.audio.fec
    assert not low.audio.fec


def test_a_state_survives_the_store_and_drops_what_it_does_not_know() -> None:
    state = State(rung=7, target_bps=5.0, told="x")
    assert state_from(state.as_json() | {"later": 1}) == state
    assert replace(state, rung=1) != state


_numbers = st.none() | st.floats(0, 1e9)


@given(st.lists(st.tuples(_numbers, _numbers, _numbers, st.none() | st.floats(0, 1), _numbers, st.booleans()), max_size=30))
def test_any_reports_leave_a_rung_of_the_ladder_and_a_reason(reports: list[tuple[float | None, ...]]) -> None:
    state = State()
    for index, values in enumerate(reports):
        report = Report(values[0], values[1], values[2], values[3], None, values[4], bool(values[5]))
        state, decision = decide(state, report, 1000 * index)
        assert decision.rung in LADDER
        assert decision.rule
        assert state.target_bps >= 0
