"""Fan-out: what goes where, in which order, and how often presence is told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.effects import Post
from heliograph.errors import Malformed
from heliograph.fanout import Batch, Job, PresenceWindow, Scope, hub_of, job_of, parse_job, plan
from heliograph.messages import Event


def event(number: int = 1, name: str = "message") -> Event:
    return Event(name, number, "t" * 16, {"text": str(number)}, "room_1")


def posts(of: Event, *connection_ids: str) -> list[Post]:
    return [Post(connection_id, of) for connection_id in connection_ids]


MANY = tuple(f"c{number}=" for number in range(5))


def test_few_recipients_are_posted_to_directly_and_one_more_goes_to_the_hub() -> None:
    assert plan(posts(event(), *MANY[:4]), 4).wide == ()
    found = plan(posts(shared := event(), *MANY), 4)
    assert (found.direct, found.wide) == ((), (Batch(shared, MANY),))


def test_the_snapshot_of_a_join_stays_here_while_the_others_are_told_by_the_hub() -> None:
    snapshot, joined = event(1, "room"), event(2, "participant_joined")
    found = plan([Post("own=", snapshot), *posts(joined, *MANY)], 4)
    assert found.direct == (Post("own=", snapshot),)
    assert found.wide == (Batch(joined, MANY),)


def test_whatever_else_a_call_has_for_a_socket_of_a_wide_event_goes_the_same_way() -> None:
    wide, after = event(1), event(2)
    found = plan([*posts(wide, *MANY), Post(MANY[0], after), Post("other=", after)], 4)
    assert found.wide == (Batch(wide, MANY), Batch(after, (MANY[0],)))
    assert found.direct == (Post("other=", after),)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcdefgh")), max_size=40), st.integers(0, 6))
def test_no_plan_loses_repeats_or_reorders_a_post(what: list[tuple[int, str]], limit: int) -> None:
    events = [event(number) for number in range(4)]
    given_posts = [Post(connection_id, events[number]) for number, connection_id in what]
    found = plan(given_posts, limit)
    far = [Post(each, batch.event) for batch in found.wide for each in batch.connection_ids]
    for connection_id in "abcdefgh":
        here, there = ([p for p in some if p.connection_id == connection_id] for some in (found.direct, far))
        assert not (here and there)
        assert here + there == [p for p in given_posts if p.connection_id == connection_id]


def test_a_job_survives_the_channel() -> None:
    scope = Scope("t1", "room_1")
    job = job_of(scope, Batch(event(), MANY))
    assert parse_job(job.serialize()) == job
    assert (job.event, job.place, job.may_be_shed) == ("message", "t1/room_1", False)
    told = job_of(Scope("t1", account_id="acc_1", owners=dict.fromkeys(MANY, "acc_2")), Batch(event(1, "presence"), MANY))
    assert parse_job(told.serialize()) == told
    assert (told.place, told.owners, told.may_be_shed) == ("t1/acc_1", ("acc_2",) * 5, True)


GOOD = json.loads(Job("t1", "message", b"{}", ("c=",), room_id="room_1").serialize())


@pytest.mark.parametrize(
    "wrong",
    [
        {"tenant_id": ""},
        {"tenant_id": 1},
        {"data": None},
        {"data": "\ud800"},
        {"event": []},
        {"connection_ids": "c="},
        {"connection_ids": [""]},
        {"room_id": None},
        {"room_id": 7},
        {"account_id": ""},
        {"owners": ["acc_1", "acc_2"]},
    ],
)
def test_a_job_of_another_form_is_malformed(wrong: dict[str, object]) -> None:
    assert parse_job(json.dumps(GOOD).encode()).room_id == "room_1"
    with pytest.raises(Malformed):
        parse_job(json.dumps(GOOD | wrong).encode())


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_job_or_malformed(data: bytes) -> None:
    try:
        parse_job(data)
    except Malformed:
        return
    raise AssertionError("nothing of this kind is a job")


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(Malformed):
        parse_job(b"[" * 100_000)


def test_when_a_hub_goes_only_its_own_rooms_move() -> None:
    hubs = [f"s-{number:016x}" for number in range(3)]
    before = {f"t/room_{number}": hub_of(f"t/room_{number}", hubs) for number in range(900)}
    shares = [sum(1 for hub in before.values() if hub == each) for each in hubs]
    assert min(shares) > 230, shares
    after = {place: hub_of(place, hubs[1:]) for place in before}
    assert all(after[place] == hub for place, hub in before.items() if hub != hubs[0])
    assert hub_of("t/room_1", []) is None
    assert hub_of("t/room_1", hubs) == hub_of("t/room_1", reversed(hubs))


def test_presence_of_one_account_is_told_to_one_recipient_once_a_second() -> None:
    window = PresenceWindow()
    assert window.due_s("c=", "acc_1", 10.0) == 10.0
    window.sent("c=", "acc_1", 10.0)
    assert window.due_s("c=", "acc_1", 10.4) == 11.0
    assert window.due_s("c=", "acc_2", 10.4) == 10.4
    assert window.due_s("d=", "acc_1", 10.4) == 10.4
    assert window.due_s("c=", "acc_1", 11.0) == 11.0


def test_a_window_forgets_what_is_over() -> None:
    window = PresenceWindow()
    for number in range(10_000):
        window.sent(f"c{number}", "acc", number / 1000)
    window.due_s("x", "acc", 60.0)
    assert (len(window._sent), len(window._order)) == (0, 0)
