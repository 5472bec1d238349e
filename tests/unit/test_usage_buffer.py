"""What waits for the ledger: the newest of each allocation, final records before snapshots, within a bound, with pauses that grow."""

from __future__ import annotations

import pytest

from media_fleet.readings import AllocationUsage
from media_fleet.usage_buffer import MAX_PAUSE_S, UsageBuffer


def usage(number: int, packets: int = 1, ended_at_ms: int | None = None) -> AllocationUsage:
    return AllocationUsage(f"9:acc_{number}:dev", f"203.0.113.1:{number}", packets * 100, 0, packets, 0, 1_000, 2_000, ended_at_ms)


def final(number: int, packets: int = 1) -> AllocationUsage:
    return usage(number, packets, 2_000)


def test_of_one_allocation_the_newest_record_waits_and_the_final_one_replaces_it() -> None:
    buffer = UsageBuffer()
    for packets in (1, 2, 3):
        buffer.snapshot(usage(1, packets))
    assert len(buffer) == 1
    assert buffer.end(final(1, 4)) == []
    assert buffer.take(10, 0) == [final(1, 4)]
    assert len(buffer) == 0


def test_final_records_go_before_snapshots_and_each_kind_in_its_order() -> None:
    buffer = UsageBuffer()
    for number in (1, 2):
        buffer.snapshot(usage(number))
    buffer.snapshot(usage(1, 2))  # it is newer than that of 2 now
    for number in (3, 4):
        buffer.end(final(number))
    assert buffer.take(3, 0) == [final(3), final(4), usage(2)]
    assert buffer.take(3, 0) == [usage(1, 2)]


def test_an_allocation_that_carried_nothing_since_its_last_stored_record_is_not_told_again() -> None:
    buffer = UsageBuffer()
    buffer.snapshot(usage(1, 0))
    assert len(buffer) == 0
    buffer.snapshot(usage(1, 5))
    buffer.stored(buffer.take(10, 0))
    buffer.snapshot(usage(1, 5))
    assert len(buffer) == 0
    buffer.snapshot(usage(1, 6))
    assert buffer.take(10, 0) == [usage(1, 6)]
    buffer.end(final(1, 0))  # that it ended is told whatever it carried
    assert buffer.take(10, 0) == [final(1, 0)]


def test_over_the_bound_the_oldest_snapshot_goes_and_no_final_record() -> None:
    buffer = UsageBuffer(most=3)
    for number in (1, 2):
        buffer.snapshot(usage(number))
    for number in (3, 4, 5):
        assert buffer.end(final(number)) == []
    assert buffer.given_up == 2
    assert buffer.take(10, 0) == [final(3), final(4), final(5)]


def test_a_snapshot_finds_no_room_among_final_records() -> None:
    buffer = UsageBuffer(most=1)
    buffer.end(final(1))
    buffer.snapshot(usage(2))
    assert (buffer.given_up, buffer.drain()) == (1, [final(1)])


def test_without_a_snapshot_to_give_up_the_oldest_final_record_is_handed_back() -> None:
    buffer = UsageBuffer(most=2)
    assert [buffer.end(final(number)) for number in (1, 2, 3, 4)] == [[], [], [final(1)], [final(2)]]
    assert buffer.drain() == [final(3), final(4)]


def test_what_could_not_be_written_goes_first_again_unless_there_is_something_newer_of_it() -> None:
    buffer = UsageBuffer()
    for number in (1, 2, 3):
        buffer.snapshot(usage(number))
    buffer.end(final(4))
    batch = buffer.take(10, 0)
    buffer.end(final(1, 9))  # ended meanwhile
    buffer.snapshot(usage(2, 7))
    buffer.end(final(5))
    assert buffer.failed(batch, 0) == []
    buffer.hurry()
    assert buffer.take(10, 0) == [final(4), final(1, 9), final(5), usage(2, 7), usage(3)]


def test_a_batch_that_comes_back_keeps_the_bound() -> None:
    buffer = UsageBuffer(most=2)
    for number in (1, 2):
        buffer.end(final(number))
    batch = buffer.take(10, 0)
    for number in (3, 4):
        buffer.end(final(number))
    assert buffer.failed(batch, 0) == [final(1), final(2)]
    assert buffer.drain() == [final(3), final(4)]


def test_after_a_failure_nothing_is_taken_for_a_while_that_doubles_up_to_a_minute() -> None:
    buffer, now_s = UsageBuffer(), 100.0
    buffer.end(final(1))
    for pause_s in (1, 2, 4, 8, 16, 32, MAX_PAUSE_S, MAX_PAUSE_S):
        buffer.failed(buffer.take(1, now_s), now_s)
        assert buffer.take(1, now_s + pause_s - 0.1) == []
        now_s += pause_s
    buffer.stored(buffer.take(1, now_s))  # it goes: the next failure begins anew
    buffer.end(final(2))
    buffer.failed(buffer.take(1, now_s), now_s)
    assert buffer.take(1, now_s + 0.9) == []
    assert buffer.take(1, now_s + 1) == [final(2)]


def test_what_is_put_off_waits_last_in_line_and_holds_up_nobody() -> None:
    buffer = UsageBuffer()
    for number in (1, 2):
        buffer.end(final(number))
    assert buffer.put_off(buffer.take(1, 0)) == []
    assert buffer.take(10, 0) == [final(2), final(1)]


@pytest.mark.parametrize("most", [1, 7, 50])
def test_whatever_comes_the_bound_holds_and_no_final_record_vanishes(most: int) -> None:
    buffer, ended, out = UsageBuffer(most), set(), []
    for step in range(600):
        if step % 3:
            buffer.snapshot(usage(step % 40, step))
        else:
            ended.add(final(step + 1_000))
            out += buffer.end(final(step + 1_000))
        if step % 11 == 0:
            batch = buffer.take(5, step)
            if step % 2:
                out += buffer.failed(batch, step)
            else:
                buffer.stored(batch)
                out += batch
        assert len(buffer) <= most
    out += buffer.drain()
    finals = [each for each in out if each.ended_at_ms is not None]
    assert set(finals) == ended
    assert len(finals) == len(ended)
