"""What the rules rely on in MongoDB and Redis, on real servers."""

from __future__ import annotations

import secrets
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, fields, replace
from types import SimpleNamespace
from typing import Any

import pytest

from adapters import keys, redis_client
from adapters.accounts_mongo import Account, Accounts
from adapters.board_redis import Boards
from adapters.calls_redis import Calls
from adapters.connections_redis import Connections
from adapters.idempotency_mongo import once
from adapters.ledger_mongo import Ledger
from adapters.live_mongo import SpareLive
from adapters.media_mongo import MediaRecords
from adapters.migrations_mongo import migrate
from adapters.one_use_mongo import OneUse as SpareOneUse
from adapters.one_use_redis import OneUse
from adapters.passwords_argon2 import hashed, is_right
from adapters.pushes_mongo import Pushes
from adapters.rooms_mongo import Rooms
from adapters.sessions_mongo import Sessions
from adapters.settings import Settings, SettingsError, load, now_ms, random_bytes
from adapters.streams_mongo import Streams
from heliograph.bitrate.board import State
from heliograph.errors import Conflict, ConnectedElsewhere, IdTaken, InProgress, Unavailable
from heliograph.ids import new_id
from heliograph.ledger import first_broken
from heliograph.links import Media
from heliograph.messages import Event
from heliograph.negotiation import Call, Device
from heliograph.presence import Connection
from heliograph.push import Target
from heliograph.rooms import Participant, Room, new_room
from heliograph.sessions import SECRET_BYTES, Session, begun


def made(prefix: str) -> str:
    return new_id(prefix, now_ms(), random_bytes())


def room_of(tenant_id: str, *members: str) -> Room:
    return new_room(tenant_id, made("room"), "Depot", "e1", made("acc"), members)


def text(number: int) -> Event:
    return Event("message", number, "trace", {"text": str(number)})


def test_migrating_twice_changes_nothing(database: Any) -> None:
    before = {name: sorted(database[name].index_information()) for name in database.list_collection_names()}
    migrate(database)
    assert before == {name: sorted(database[name].index_information()) for name in database.list_collection_names()}


def test_a_document_without_its_required_fields_is_refused_by_the_database(database: Any, tenant_id: str) -> None:
    from pymongo.errors import WriteError

    good = {"tenant_id": tenant_id, "room_id": "r", "name": "n", "epoch": "e", "schema_version": 1}
    with pytest.raises(WriteError):
        database.rooms.insert_one({key: value for key, value in good.items() if key != "epoch"})
    database.rooms.insert_one(good)


def test_eight_writers_leave_dense_offsets_and_no_message_twice(database: Any, redis_server: Any, tenant_id: str) -> None:
    room, streams = room_of(tenant_id), Streams(database, redis_server)

    def write(writer: int) -> list[int]:
        device = made("dev")
        return [streams.append(room, device, made("msg"), text(writer))[0] for _ in range(12)]

    with ThreadPoolExecutor(8) as pool:
        offsets = sorted(offset for written in pool.map(write, range(8)) for offset in written)
    assert offsets == list(range(1, 97))
    assert [event.offset for event in streams.page(room, 0, 200)] == offsets
    assert streams.head(room) == 96


def test_a_message_sent_again_has_its_first_offset_and_is_not_stored_twice(database: Any, redis_server: Any, tenant_id: str) -> None:
    room, streams, device, message = room_of(tenant_id), Streams(database, redis_server), made("dev"), made("msg")
    assert streams.append(room, device, message, text(1)) == (1, True)
    assert streams.append(room, made("dev"), message, text(2)) == (2, True)
    assert streams.append(room, device, message, text(1)) == (1, False)
    assert streams.head(room) == 2


def test_a_stream_goes_on_where_it_was_after_redis_lost_everything(database: Any, redis_server: Any, tenant_id: str) -> None:
    room, streams = room_of(tenant_id), Streams(database, redis_server)
    for number in range(3):
        streams.append(room, made("dev"), made("msg"), text(number))
    redis_server.delete(keys.room_head(tenant_id, room.room_id, room.epoch))
    assert streams.append(room, made("dev"), made("msg"), text(9)) == (4, True)


def test_a_stream_takes_messages_while_redis_is_away(database: Any, tenant_id: str) -> None:
    nobody = redis_client.connect("redis://127.0.0.1:1/0", "single")
    room, streams = room_of(tenant_id), Streams(database, nobody)
    assert [streams.append(room, made("dev"), made("msg"), text(n))[0] for n in range(2)] == [1, 2]
    redis_client.forget_failure()


def test_a_page_begins_after_the_position_and_ends_at_the_limit(database: Any, redis_server: Any, tenant_id: str) -> None:
    room, streams = room_of(tenant_id), Streams(database, redis_server)
    for number in range(5):
        streams.append(room, made("dev"), made("msg"), text(number))
    assert [event.offset for event in streams.page(room, 2, 2)] == [3, 4]
    assert streams.page(room, 5, 10) == []


def test_the_ledger_is_one_chain_under_four_writers_and_a_changed_entry_is_found(database: Any, tenant_id: str) -> None:
    ledger = Ledger(database)
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda n: ledger.record(tenant_id, n, "test", "me", "it", {"n": n}), range(20)))
    assert sorted(numbers) == list(range(1, 21))
    assert first_broken(ledger.entries(tenant_id)) is None
    database.ledger.update_one({"tenant_id": tenant_id, "seq": 7}, {"$set": {"detail": {"n": 99}}})
    assert first_broken(ledger.entries(tenant_id)) == 7


def new_session(tenant_id: str, account_id: str, device_id: str) -> Session:
    return begun(tenant_id, account_id, device_id, made("ses"), "member", now_ms(), secrets.token_bytes(2 * SECRET_BYTES))[0]


def test_of_many_who_rotate_a_session_at_once_one_does(database: Any, tenant_id: str) -> None:
    sessions, session = Sessions(database), new_session(tenant_id, made("acc"), made("dev"))
    assert sessions.start(session) == []
    after = replace(session, n=1, refresh_hash="another")
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda _: sessions.rotate(after), range(20)))
    assert [found for found in stored if found] == [after]
    assert sessions.get(tenant_id, session.account_id, session.sid) == after


def test_an_ended_session_cannot_be_rotated_and_its_end_is_claimed_by_one_trace_until_it_is_forgotten(database: Any, tenant_id: str) -> None:
    sessions, session = Sessions(database), new_session(tenant_id, made("acc"), made("dev"))
    sessions.start(session)
    owner = (tenant_id, session.account_id, session.sid)
    assert sessions.claim_ending(*owner, "first")
    assert not sessions.claim_ending(*owner, "second")
    assert sessions.claim_ending(*owner, "first"), "who died before the end was in the ledger does it again"
    assert (sessions.get(*owner), sessions.rotate(replace(session, n=1)), sessions.of_account(tenant_id, session.account_id)) == (None, None, [])
    sessions.forget(*owner)
    assert not sessions.claim_ending(*owner, "first")


def test_signing_in_again_names_the_devices_earlier_session_and_no_other(database: Any, tenant_id: str) -> None:
    sessions, account_id, device_id = Sessions(database), made("acc"), made("dev")
    first, other, second = (new_session(tenant_id, account_id, device) for device in (device_id, made("dev"), device_id))
    assert (sessions.start(first), sessions.start(other), sessions.start(second)) == ([], [], [first])


def test_a_rotation_does_not_undo_a_role_that_changed_meanwhile(database: Any, tenant_id: str) -> None:
    sessions, session = Sessions(database), new_session(tenant_id, made("acc"), made("dev"))
    sessions.start(session)
    sessions.set_role(tenant_id, session.account_id, "moderator")
    rotated = sessions.rotate(replace(session, n=1))
    assert rotated is not None
    assert rotated.role == "moderator"


def test_an_account_is_found_in_its_own_tenant_alone(database: Any, tenant_id: str) -> None:
    accounts = Accounts(database)
    account = Account(tenant_id, made("acc"), "ana", hashed("right"), "member")
    accounts.put(account)
    assert accounts.by_login(tenant_id, "ana") == account
    assert accounts.by_id(tenant_id, account.account_id) == account
    assert accounts.by_login(tenant_id + "x", "ana") is None
    assert accounts.by_id(tenant_id + "x", account.account_id) is None
    assert accounts.known(tenant_id, [account.account_id, made("acc")]) == {account.account_id}
    assert accounts.known(tenant_id + "x", [account.account_id]) == set()


def test_a_password_is_right_or_wrong_and_an_unknown_login_is_wrong() -> None:
    stored = hashed("right")
    assert stored.startswith("$argon2id$")
    assert is_right("right", stored)
    assert not is_right("wrong", stored)
    assert not is_right("right", None)
    assert not is_right("right", "not a hash")


def test_a_dead_push_target_is_dropped_unless_the_device_has_a_new_one(database: Any, tenant_id: str) -> None:
    accounts, account_id = Accounts(database), made("acc")
    old, new = Target("dev_1", "token", "old"), Target("dev_1", "fid", "new")
    accounts.put_push_target(tenant_id, account_id, old, 1)
    accounts.put_push_target(tenant_id, account_id, new, 2)
    accounts.drop_push_target(tenant_id, account_id, old)
    assert accounts.push_targets(tenant_id, account_id) == [new]
    accounts.drop_push_target(tenant_id, account_id, new)
    assert accounts.push_targets(tenant_id, account_id) == []


def test_a_room_id_is_taken_once_per_tenant_and_seen_by_its_members_alone(database: Any, tenant_id: str) -> None:
    rooms, ben = Rooms(database), made("acc")
    room = room_of(tenant_id, ben)
    rooms.create(room, 1)
    with pytest.raises(IdTaken):
        rooms.create(room, 2)
    assert rooms.get(tenant_id, room.room_id) == room
    assert rooms.get(tenant_id + "x", room.room_id) is None
    assert rooms.of_account(tenant_id, ben) == [room]
    assert rooms.of_account(tenant_id, ben, after=room.room_id) == []
    assert rooms.acquaintances(tenant_id, ben) == {room.members[0].account_id}
    assert rooms.acquaintances(tenant_id, made("acc")) == set()


def test_a_file_becomes_ready_once(database: Any, tenant_id: str) -> None:
    records = MediaRecords(database)
    media = Media(tenant_id, made("med"), "room", "acc", "clip", "audio/ogg", 5, "0" * 64)
    records.create(media, 1)
    with pytest.raises(IdTaken):
        records.create(media, 1)
    assert records.make_ready(media, 2)[1]
    assert not records.make_ready(media, 3)[1]
    found = records.get(tenant_id, media.media_id)
    assert found is not None
    assert found.state == "ready"
    assert records.get(tenant_id + "x", media.media_id) is None


def test_a_push_is_settled_per_device(database: Any, tenant_id: str) -> None:
    pushes = Pushes(database)
    pushes.settle(tenant_id, "ntf", "dev_1", "delivered", "name", 1)
    assert pushes.is_settled(tenant_id, "ntf", "dev_1")
    assert not pushes.is_settled(tenant_id, "ntf", "dev_2")


CONTEXT = SimpleNamespace(get_remaining_time_in_millis=lambda: 5_000)


def test_a_post_sent_twice_with_one_key_acts_once(database: Any, tenant_id: str) -> None:
    acted: list[int] = []

    def act() -> dict[str, Any]:
        acted.append(1)
        return {"n": len(acted)}

    assert once(database.idempotency, tenant_id, "key", {"a": 1}, CONTEXT, act) == {"n": 1}
    assert once(database.idempotency, tenant_id, "key", {"a": 1}, CONTEXT, act) == {"n": 1}
    assert once(database.idempotency, tenant_id, "another key", {"a": 1}, CONTEXT, act) == {"n": 2}
    (kept,) = {each["tenant_id"] for each in database.idempotency.find({"tenant_id": tenant_id})}
    assert kept == tenant_id


def test_a_key_used_with_another_body_is_a_conflict(database: Any, tenant_id: str) -> None:
    once(database.idempotency, tenant_id, "key", {"a": 1}, CONTEXT, lambda: {"n": 1})
    with pytest.raises(Conflict):
        once(database.idempotency, tenant_id, "key", {"a": 2}, CONTEXT, lambda: {"n": 2})


def test_a_refused_post_may_be_sent_again_with_its_key(database: Any, tenant_id: str) -> None:
    def refuse() -> dict[str, Any]:
        raise IdTaken

    with pytest.raises(IdTaken):
        once(database.idempotency, tenant_id, "key", {}, CONTEXT, refuse)
    assert once(database.idempotency, tenant_id, "key", {}, CONTEXT, lambda: {"ok": 1}) == {"ok": 1}


def test_a_post_that_is_still_running_is_not_run_beside_itself(database: Any, tenant_id: str) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow() -> dict[str, Any]:
        entered.set()
        leave.wait(10)
        return {"ok": 1}

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(once, database.idempotency, tenant_id, "key", {}, CONTEXT, slow)
        entered.wait(10)
        with pytest.raises(InProgress):
            once(database.idempotency, tenant_id, "key", {}, CONTEXT, lambda: {"ok": 2})
        leave.set()
        assert first.result(10) == {"ok": 1}


def test_connections_come_and_go_per_account_and_every_key_has_a_ttl(redis_server: Any, tenant_id: str) -> None:
    connections = Connections(redis_server)
    one, two = Connection("c1=", "dev_1", 1, "online", 5), Connection("c2=", "dev_2", 2, "away", 6)
    assert connections.put(tenant_id, "acc", one) == [one]
    assert sorted(connections.put(tenant_id, "acc", two), key=lambda c: c.connection_id) == [one, two]
    assert connections.of_accounts(tenant_id, ["acc", "nobody"])["nobody"] == ([], 0)
    assert connections.of_accounts(tenant_id, ["acc"])["acc"][1] == 6
    assert connections.remove(tenant_id, "acc", ["c1="]) == [two]
    assert connections.of_account(tenant_id + "x", "acc") == []
    participant = Participant("c2=", "acc", "dev_2")
    is_new, roster = connections.enter_room(tenant_id, "room", participant)
    assert (is_new, roster.version, roster.participants) == (True, 1, (participant,))
    assert connections.enter_room(tenant_id, "room", participant) == (False, roster)
    assert connections.in_room(tenant_id, "room") == [participant]
    OneUse(redis_server).take(tenant_id, "acc", "jti", 60)
    Boards(redis_server).put(tenant_id, "acc", "dev", "call", State(rung=7))
    held = list(redis_server.scan_iter(f"hg:{{{tenant_id}/*"))
    assert len(held) == 8
    assert all(0 < redis_server.ttl(key) <= keys.LAST_SEEN_S for key in held)
    was_in, emptied = connections.leave_room(tenant_id, "room", ["c2="])
    assert (was_in, emptied.epoch, emptied.version, emptied.participants) == (True, roster.epoch, 2, ())
    assert connections.leave_room(tenant_id, "room", ["c2="]) == (False, emptied)


def test_a_roster_that_redis_lost_begins_a_new_epoch(redis_server: Any, tenant_id: str) -> None:
    connections, participant = Connections(redis_server), Participant("c", "acc", "dev")
    _, before = connections.enter_room(tenant_id, "room", participant)
    redis_server.delete(keys.room_live(tenant_id, "room"), keys.room_roster(tenant_id, "room"))
    is_new, after = connections.enter_room(tenant_id, "room", participant)
    assert is_new
    assert after.epoch != before.epoch


def test_a_socket_that_was_replaced_by_a_newer_one_of_its_device_is_told_so(redis_server: Any, tenant_id: str) -> None:
    connections = Connections(redis_server)
    connections.put(tenant_id, "acc", Connection("new", "dev_1", 2, "away", 5, ("acc_1",)))
    with pytest.raises(ConnectedElsewhere):
        connections.own(tenant_id, "acc", "old", "dev_1", 1, 6)
    assert connections.own(tenant_id, "acc", "new", "dev_1", 2, 6) == Connection("new", "dev_1", 2, "away", 6, ("acc_1",))
    assert connections.own(tenant_id, "acc", "other", "dev_2", 1, 6) == Connection("other", "dev_2", 1, "online", 6)


def test_presence_is_told_once_a_second_and_the_last_change_is_queued_once(redis_server: Any, tenant_id: str) -> None:
    connections = Connections(redis_server)
    assert [connections.may_tell_presence(tenant_id, "acc") for _ in range(3)] == [(True, False), (False, True), (False, False)]
    connections.presence_is_due(tenant_id, "acc")
    assert connections.may_tell_presence(tenant_id, "acc") == (False, True)


def test_the_handled_sequence_number_of_a_socket_only_rises(redis_server: Any, tenant_id: str) -> None:
    connections = Connections(redis_server)
    connections.put(tenant_id, "acc", Connection("c", "dev", 1, "online", 1))
    for seq, expected in ((3, 3), (2, 3), (4, 4)):
        connections.advance_seq(tenant_id, "acc", "c", seq)
        assert connections.last_seq(tenant_id, "acc", "c") == expected


def test_a_store_that_hangs_costs_one_time_out_and_not_one_per_command(tenant_id: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        connections = Connections(redis_client.connect(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", "single"))
        started_ms = now_ms()
        for _ in range(20):
            with pytest.raises(Unavailable):
                connections.of_account(tenant_id, "acc")
        assert now_ms() - started_ms < 3_000
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # nor is it asked a second time before it is left alone
            silent.accept()
    redis_client.forget_failure()


def test_a_ticket_is_taken_once(redis_server: Any, tenant_id: str) -> None:
    tickets = OneUse(redis_server)
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda _: tickets.take(tenant_id, "acc", "jti", 60), range(8))) == [False] * 7 + [True]


def test_a_ticket_is_taken_once_in_mongodb_too(database: Any, tenant_id: str) -> None:
    tickets = SpareOneUse(database)
    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(lambda _: tickets.take(tenant_id, "acc", "jti", 60, now_ms()), range(8))) == [False] * 7 + [True]
    assert tickets.take(tenant_id, "acc", "another", 60, now_ms())
    assert database.used_tickets.index_information()["expires_at_1"]["expireAfterSeconds"] == 0


def test_who_is_live_is_known_without_redis(database: Any, tenant_id: str) -> None:
    spare, one, two = SpareLive(database), Participant("c1=", "acc", "dev_1"), Participant("c2=", "acc", "dev_2")
    for participant in (one, two, two):
        spare.enter(tenant_id, "room", participant, now_ms())
    assert sorted(spare.in_room(tenant_id, "room"), key=lambda p: p.connection_id) == [one, two]
    assert spare.in_room(tenant_id + "x", "room") == spare.in_room(tenant_id, "other") == []
    spare.leave(tenant_id, "room", ["c1="])
    assert spare.in_room(tenant_id, "room") == [two]


def test_a_sockets_count_of_frames_begins_when_it_opens_and_is_missing_after_redis_lost_it(redis_server: Any, tenant_id: str) -> None:
    connections = Connections(redis_server)
    assert connections.last_seq(tenant_id, "acc", "c") is None
    connections.put(tenant_id, "acc", Connection("c", "dev", 1, "online", 1))
    assert connections.last_seq(tenant_id, "acc", "c") == 0
    redis_server.delete(keys.last_seq(tenant_id, "acc", "c"))
    connections.advance_seq(tenant_id, "acc", "c", 7)
    assert connections.last_seq(tenant_id, "acc", "c") is None


def test_the_boards_memory_survives_the_store(redis_server: Any, tenant_id: str) -> None:
    boards, state = Boards(redis_server), State(rung=3, target_bps=5.5, told="x")
    assert boards.get(tenant_id, "acc", "dev", "call") is None
    boards.put(tenant_id, "acc", "dev", "call", state)
    assert boards.get(tenant_id, "acc", "dev", "call") == state


def test_a_store_that_is_away_is_an_error_that_may_be_tried_again(tenant_id: str) -> None:
    with pytest.raises(Unavailable) as refusal:
        Connections(redis_client.connect("redis://127.0.0.1:1/0", "single")).of_account(tenant_id, "acc")
    assert refusal.value.retryable
    redis_client.forget_failure()


GOOD_SETTINGS = {f"HELIOGRAPH_{item.name.upper()}": "x" for item in fields(Settings) if item.default is MISSING}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"HELIOGRAPH_STAGE": ""}, "HELIOGRAPH_STAGE is not set"),
        ({"HELIOGRAPH_STAGGE": "x"}, "HELIOGRAPH_STAGGE is not a setting"),
        ({"HELIOGRAPH_ACCESS_TOKEN_S": "soon"}, "whole number"),
        ({"HELIOGRAPH_ACCESS_TOKEN_S": "901"}, "between 1 and 900"),
        ({"HELIOGRAPH_HEARTBEAT_S": "1"}, "between 20 and 240"),
        ({"HELIOGRAPH_REDIS_MODE": "many"}, "single or cluster"),
    ],
)
def test_a_wrong_setting_stops_the_start_with_one_sentence(change: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        load(GOOD_SETTINGS | change)
    assert load(GOOD_SETTINGS | {"HELIOGRAPH_HEARTBEAT_S": "60", "PATH": "/bin"}).heartbeat_s == 60


def test_a_calls_record_is_written_only_over_the_version_that_was_read(redis_server: Any, tenant_id: str) -> None:
    calls = Calls(redis_server)
    first = Call("call_1", Device("acc_1", "dev_1"), "acc_2", None, "ringing", "n1", "caller", 5, 5, ringing=("dev_2",))
    second = replace(first, state="ended", version=2)
    assert calls.get(tenant_id, "room", "call_1") is None
    assert not calls.replace(tenant_id, "room", second, first)
    assert calls.replace(tenant_id, "room", first, None)
    assert not calls.replace(tenant_id, "room", first, None)
    assert calls.get(tenant_id, "room", "call_1") == first
    assert calls.replace(tenant_id, "room", second, first)
    assert calls.get(tenant_id, "room", "call_1") == second
    assert 0 < redis_server.ttl(keys.call(tenant_id, "room", "call_1")) <= keys.ENDED_CALL_S
