"""The hub's backlog: order per socket, presence coalesced and shed first, slow sockets in a line of their own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from heliograph.fanout import Job
from media_fleet.hub_backlog import Backlog


def text(data: str, *connection_ids: str) -> Job:
    return Job("t", "message", data.encode(), connection_ids or ("c=",), room_id="room_1")


def told(data: str, *connection_ids: str, account_id: str = "acc_1") -> Job:
    return Job("t", "presence", data.encode(), connection_ids or ("c=",), account_id=account_id, owners=("acc_9",) * len(connection_ids or ("c=",)))


def take_all(backlog: Backlog, now_s: float) -> list[tuple[str, str]]:
    found = []
    while taken := backlog.take(now_s):
        found.append((taken[0], taken[1].job.data.decode()))
        backlog.done(taken[0])
    return found


def test_a_socket_has_one_post_in_flight_and_the_others_do_not_wait_for_it() -> None:
    backlog = Backlog()
    backlog.add(text("1", "a", "b"), 0)
    backlog.add(text("2", "a", "b"), 0)
    first, second = backlog.take(0), backlog.take(0)
    assert first is not None
    assert second is not None
    assert (first[0], second[0], backlog.take(0), backlog.size) == ("a", "b", None, 2)
    backlog.done("b")
    assert take_all(backlog, 0) == [("b", "2")]
    backlog.done("a")
    assert take_all(backlog, 0) == [("a", "2")]
    assert backlog.is_idle


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "take", "done", "gone", "slow"])), max_size=60))
def test_whatever_happens_durable_events_of_a_socket_keep_their_order_and_are_counted(steps: list[tuple[str, str]]) -> None:
    backlog, number = Backlog(per_socket=1000), 0
    added: dict[str, list[str]] = {"a": [], "b": [], "c": []}
    seen: dict[str, list[str]] = {"a": [], "b": [], "c": []}
    busy: set[str] = set()
    for connection_id, step in steps:
        if step == "add":
            number += 1
            backlog.add(text(str(number), connection_id), 0)
            added[connection_id].append(str(number))
        elif step == "take" and (taken := backlog.take(0)):
            assert taken[0] not in busy
            busy.add(taken[0])
            seen[taken[0]].append(taken[1].job.data.decode())
        elif step in ("done", "slow") and connection_id in busy:
            busy.discard(connection_id)
            backlog.done(connection_id, is_slow=step == "slow")
        elif step == "gone":
            dropped = backlog.forget(connection_id)
            added[connection_id] = added[connection_id][: len(added[connection_id]) - dropped]
        assert backlog.size == sum(len(added[each]) - len(seen[each]) for each in "abc")
    for each in busy:
        backlog.done(each)
    for connection_id, data in take_all(backlog, 0):
        seen[connection_id].append(data)
    assert seen == added
    assert backlog.is_idle


def test_presence_waits_for_its_second_and_the_newest_wins() -> None:
    backlog = Backlog()
    backlog.add(told("online"), 0)
    assert take_all(backlog, 0) == [("c=", "online")]
    backlog.add(told("busy"), 0.2)
    backlog.add(told("away"), 0.4)
    assert (take_all(backlog, 0.5), backlog.next_deadline(), backlog.size) == ([], 1.0, 1)
    backlog.tick(1.0)
    assert take_all(backlog, 1.0) == [("c=", "away")]
    assert (backlog.counts.coalesced, backlog.is_idle, backlog.next_deadline()) == (1, True, None)


def test_accounts_and_recipients_have_seconds_of_their_own() -> None:
    backlog = Backlog()
    backlog.add(told("1", "a"), 0)
    take_all(backlog, 0)
    backlog.add(told("2", "b"), 0.1)
    backlog.add(told("3", "a", account_id="acc_2"), 0.1)
    assert take_all(backlog, 0.1) == [("b", "2"), ("a", "3")]
    backlog.add(told("4", "b"), 0.9)
    backlog.add(told("5", "a"), 0.95)
    assert backlog.next_deadline() == 1.0
    backlog.tick(1.05)
    assert take_all(backlog, 1.05) == [("a", "5")]
    backlog.tick(1.1)
    assert take_all(backlog, 1.1) == [("b", "4")]


def test_a_minute_of_flapping_costs_one_event_a_second_and_recipient() -> None:
    backlog, sent = Backlog(), 0
    for step in range(600):
        now_s = step / 10
        backlog.add(told(str(step), "a", "b"), now_s)
        backlog.tick(now_s)
        sent += len(take_all(backlog, now_s))
    assert sent <= 2 * 60
    assert sent + backlog.counts.coalesced + backlog.size == 2 * 600


def test_over_the_limit_presence_is_shed_and_durable_events_never_are() -> None:
    backlog = Backlog(shed_over=10)
    backlog.add(told("p", *(f"p{n}" for n in range(8))), 0)
    backlog.add(text("m", *(f"m{n}" for n in range(5))), 0)
    assert (backlog.size, backlog.counts.shed) == (5, 8)
    backlog.add(text("n", *(f"m{n}" for n in range(5))), 0)
    backlog.add(told("q", "p0"), 0)
    assert (backlog.size, backlog.counts.shed) == (10, 9)
    assert [data for _, data in take_all(backlog, 0)] == ["m"] * 5 + ["n"] * 5
    backlog.add(told("r", "p0"), 0)
    assert take_all(backlog, 0) == [("p0", "r")]


def test_slow_sockets_take_their_own_lanes_only() -> None:
    backlog = Backlog(slow_lanes=1)
    backlog.add(text("1", "a", "b", "c"), 0)
    for each in "abc":
        backlog.take(0)
        backlog.done(each, is_slow=each != "c")
    backlog.add(text("2", "a", "b", "c"), 0)
    taken = [backlog.take(0), backlog.take(0), backlog.take(0)]
    assert [each and each[0] for each in taken] == ["c", "a", None]
    backlog.done("a")
    assert [each and each[0] for each in (backlog.take(0), backlog.take(0))] == ["b", None]


def test_a_socket_that_takes_nothing_any_more_does_not_fill_the_memory() -> None:
    backlog = Backlog(per_socket=3)
    backlog.add(text("0", "a"), 0)
    backlog.take(0)
    for number in range(1, 8):
        backlog.add(text(str(number), "a"), 0)
    assert (backlog.counts.overflown, backlog.size) == (6, 1)
    backlog.done("a")
    assert take_all(backlog, 0) == [("a", "7")]
