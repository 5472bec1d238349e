"""Membership, presence and signaling as pure rules."""

from __future__ import annotations

from dataclasses import replace

import pytest

from heliograph.auth import SCOPES, Identity
from heliograph.effects import Notify, Post
from heliograph.errors import NotFound, TooLarge
from heliograph.fanout import to_room
from heliograph.ledger import GENESIS, entry, first_broken
from heliograph.links import MAX_UPLOAD_BYTES, Media, announced
from heliograph.messages import Event
from heliograph.presence import Connection, Heartbeat, live, presence_of, superseded
from heliograph.push import parse_queue_message, payload, queue_message
from heliograph.rooms import Participant, entered, member_named, new_room

BEAT = Heartbeat(idle_s=60, call_s=20)
ANA, BEN, EVE = (f"acc_{digit * 32}" for digit in "abe")
ROOM = new_room("acme", "room_" + "0" * 32, "Depot", "epoch", ANA, [BEN, ANA, BEN])
WHO = Identity("acme", ANA, "dev_" + "0" * 32, "ses_" + "0" * 32, "member", " ".join(SCOPES["member"]), 4_000, 9_000)


def connection(connection_id: str, device_id: str = "dev_1", generation: int = 1, status: str = "online", seen_at_ms: int = 1000) -> Connection:
    return Connection(connection_id, device_id, generation, status, seen_at_ms)


def test_a_room_has_its_owner_first_and_each_member_once() -> None:
    assert [(m.account_id, m.role) for m in ROOM.members] == [(ANA, "owner"), (BEN, "member")]


def test_a_foreign_room_answers_exactly_as_an_unknown_one() -> None:
    eve, ben = replace(WHO, account_id=EVE), replace(WHO, account_id=BEN)
    with pytest.raises(NotFound) as foreign:
        entered(ROOM, eve, "rooms:read")
    with pytest.raises(NotFound) as unknown:
        entered(None, eve, "rooms:read")
    assert foreign.value.body("t") == unknown.value.body("t")
    assert entered(ROOM, ben, "rooms:read") is ROOM


def test_nobody_can_be_addressed_who_is_not_in_the_room() -> None:
    with pytest.raises(NotFound):
        member_named(ROOM, EVE)
    assert member_named(ROOM, BEN) == BEN


def test_an_event_goes_to_every_socket_in_the_room_but_the_senders() -> None:
    event, people = Event("message", 1, "t", {}), [Participant("a", ANA, "d1"), Participant("b", BEN, "d2")]
    assert to_room(event, people, except_connection_id="a") == [Post("b", event)]
    assert len(to_room(event, people)) == 2


def test_a_connection_that_missed_its_heartbeats_does_not_count() -> None:
    both = [connection("old", seen_at_ms=0), connection("new", "dev_2", seen_at_ms=160_000)]
    assert [c.connection_id for c in live(both, 160_000, BEAT)] == ["new"]
    assert presence_of(BEN, [both[0]], 0, 160_000, BEAT).status == "offline"
    assert presence_of(BEN, both, 0, 160_000, BEAT).as_json() == {"account_id": BEN, "status": "online", "devices": 1, "last_seen_at_ms": 160_000}


def test_a_socket_on_a_call_is_missed_within_a_minute() -> None:
    on_a_call = [connection("c", status="on_a_call", seen_at_ms=0)]
    assert live(on_a_call, 50_000, BEAT)
    assert not live(on_a_call, 50_001, BEAT)


def test_a_socket_is_told_of_those_it_watches_and_by_default_of_everybody() -> None:
    assert connection("c").wants(ANA)
    assert Connection("c", "dev_1", 1, "online", 1, (BEN,)).wants(BEN)
    assert not Connection("c", "dev_1", 1, "online", 1, (BEN,)).wants(ANA)


def test_a_reconnect_of_a_device_supersedes_its_older_sockets_and_never_a_newer_one() -> None:
    old, new, other = connection("old", generation=1), connection("new", generation=2), connection("x", "dev_2", 9)
    assert superseded([old, new, other], new) == [old]
    assert superseded([old, new, other], old) == []
    assert live([old, new], 1000, BEAT) == [new]


def test_the_busiest_device_says_how_the_account_is() -> None:
    both = [connection("a", status="away"), connection("b", "dev_2", status="on_a_call")]
    assert presence_of(BEN, both, 0, 1000, BEAT).status == "on_a_call"


def test_a_changed_or_missing_ledger_entry_is_found() -> None:
    first = entry("acme", 1, GENESIS, 5, "signed_in", ANA, "dev", {})
    second = entry("acme", 2, first["hash"], 6, "link_issued", ANA, "med", {"expires_s": 3})
    third = entry("acme", 3, second["hash"], 7, "signed_in", BEN, "dev", {})
    assert first_broken([first, second, third]) is None
    assert first_broken([first, second | {"detail": {"expires_s": 900}}, third]) == 2
    assert first_broken([first, third]) == 3


def test_a_queued_notification_survives_the_queue_and_its_payload_is_flat_text() -> None:
    push = Notify("ntf_1", "acme", BEN, "missed_call", ROOM.room_id, {"call_id": "call_1", "from_account_id": ANA}, 30_005, "trace")
    assert parse_queue_message(queue_message(push)) == push
    assert all(isinstance(value, str) for value in payload(push).values())
    with pytest.raises(KeyError):
        parse_queue_message({"notification_id": "x"})


def test_an_object_key_holds_ids_only_and_a_file_over_the_limit_is_refused() -> None:
    media = Media("acme", "med_1", "room_1", ANA, "../../x", "audio/ogg", MAX_UPLOAD_BYTES, "0" * 64)
    assert announced(media).key == "acme/room_1/med_1"
    with pytest.raises(TooLarge):
        announced(Media("acme", "med_1", "room_1", ANA, "x", "audio/ogg", MAX_UPLOAD_BYTES + 1, "0" * 64))
