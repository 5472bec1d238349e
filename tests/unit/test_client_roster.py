"""Who is live in a room, as the client knows it: versions decide, a snapshot replaces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from heliograph_client.frames import Event
from heliograph_client.roster import Roster
from heliograph_client.stream import GAP_WAIT_S, Deliver, Effect, Join

ROOM = "room_018f3c2a7b9d7c4e8a1b2c3d4e5f6001"


def change(version: int, who: str, *, is_here: bool = True, epoch: str = "r1") -> Event:
    body = {"account_id": f"acc_{who}", "device_id": f"dev_{who}", "roster_epoch": epoch, "roster_version": version}
    return Event("participant_joined" if is_here else "participant_left", body, ROOM)


def snapshot(version: int, *who: str, epoch: str = "r1") -> dict[str, object]:
    people = [{"account_id": f"acc_{name}", "device_id": f"dev_{name}"} for name in who]
    return {"participants": people, "roster_epoch": epoch, "roster_version": version}


def people(roster: Roster) -> list[str]:
    return [item["account_id"].removeprefix("acc_") for item in roster.as_json()]


def delivered(effects: list[Effect]) -> list[int]:
    return [effect.event.body["roster_version"] for effect in effects if isinstance(effect, Deliver)]


def test_a_snapshot_removes_whoever_is_absent() -> None:
    roster = Roster()
    roster.snapshot(snapshot(3, "ana", "ben"), 0.0)
    roster.snapshot(snapshot(9, "ben", "cem"), 0.0)
    assert people(roster) == ["ben", "cem"]


def test_changes_are_applied_in_the_order_of_their_versions_and_once() -> None:
    roster = Roster()
    roster.snapshot(snapshot(1, "ana"), 0.0)
    assert delivered(roster.change(change(3, "ben", is_here=False), 0.0)) == []
    assert delivered(roster.change(change(2, "ben"), 0.0)) == [2, 3]
    assert delivered(roster.change(change(2, "ben"), 0.0)) == []
    assert people(roster) == ["ana"]
    assert roster.next_deadline() is None


def test_a_device_stays_while_one_of_its_two_sockets_is_there() -> None:
    roster = Roster()
    roster.snapshot(snapshot(1, "ana", "ben"), 0.0)
    roster.change(change(2, "ben"), 0.0)
    roster.change(change(3, "ben", is_here=False), 0.0)
    assert people(roster) == ["ana", "ben"]
    roster.change(change(4, "ben", is_here=False), 0.0)
    assert people(roster) == ["ana"]
    roster.snapshot(snapshot(5, "ana", "ana"), 0.0)
    assert people(roster) == ["ana"]
    roster.change(change(6, "ana", is_here=False), 0.0)
    assert people(roster) == ["ana"]


def test_a_gap_ends_in_a_new_join() -> None:
    roster = Roster()
    roster.snapshot(snapshot(1), 0.0)
    roster.change(change(3, "ben"), 10.0)
    assert roster.tick(10.0) == []
    assert roster.tick(10.0 + GAP_WAIT_S) == [Join()]
    assert delivered(roster.snapshot(snapshot(2, "ana"), 11.0)) == [3], "what came early follows the snapshot"
    assert people(roster) == ["ana", "ben"]
    assert roster.next_deadline() is None


def test_another_roster_epoch_ends_in_a_new_join_at_once_and_the_old_one_is_over() -> None:
    roster = Roster()
    roster.snapshot(snapshot(7, "ana"), 0.0)
    assert roster.change(change(1, "ben", epoch="r2"), 0.0) == [Join()]
    assert roster.change(change(2, "cem", epoch="r2"), 0.1) == [], "one join is under way"
    roster.snapshot(snapshot(2, "ben", "cem", epoch="r2"), 0.2)
    assert roster.change(change(8, "dan"), 0.3) == []
    roster.snapshot(snapshot(9, "ana", "dan"), 0.4)
    assert people(roster) == ["ben", "cem"]


def test_a_snapshot_that_was_overtaken_changes_nothing() -> None:
    roster = Roster()
    roster.snapshot(snapshot(2, "ana", "ben"), 0.0)
    roster.snapshot(snapshot(1, "ana"), 0.0)
    assert people(roster) == ["ana", "ben"]


def test_a_server_without_versions_is_believed() -> None:
    roster = Roster()
    joined = Event("participant_joined", {"account_id": "acc_ana", "device_id": "dev_ana"}, ROOM)
    assert roster.change(joined, 0.0) == [Deliver(joined)]
    assert people(roster) == ["ana"]


@given(st.data())
def test_any_loss_and_any_order_end_with_the_servers_roster(data: st.DataObject) -> None:
    truth: dict[str, None] = {}
    changes: list[Event] = []
    roster = Roster()
    roster.snapshot(snapshot(0), 0.0)
    for version in range(1, data.draw(st.integers(1, 12)) + 1):
        who = data.draw(st.sampled_from(["ana", "ben", "cem"]))
        changes.append(change(version, who, is_here=who not in truth))
        truth = {name: None for name in truth if name != who} if who in truth else {**truth, who: None}
    for posted in data.draw(st.permutations(changes)):
        for _ in range(data.draw(st.integers(0, 2))):
            roster.change(posted, 0.0)
    if roster.tick(60.0):
        roster.snapshot(snapshot(len(changes), *truth), 60.0)
    elif roster.version != ("r1", len(changes)):
        return  # the newest ones are lost and nobody knows: the next snapshot tells
    assert people(roster) == list(truth)
