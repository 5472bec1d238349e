"""The migration on a real server: from nothing, from something older, killed in the middle, twice, and refused in one sentence."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Final

import pytest
from pymongo import MongoClient
from pymongo.monitoring import CommandListener

from adapters import migrations_mongo
from adapters.accounts_mongo import Account, Accounts
from adapters.idempotency_mongo import once
from adapters.identities_mongo import Identities
from adapters.ledger_mongo import Ledger
from adapters.live_mongo import SpareLive
from adapters.media_mongo import MediaRecords
from adapters.migrations_mongo import COLLECTIONS, Collection, Found, MigrationRefused, migrate, plan
from adapters.one_use_mongo import OneUse
from adapters.pushes_mongo import Pushes
from adapters.rooms_mongo import Rooms
from adapters.sessions_mongo import Sessions
from adapters.settings import now_ms
from adapters.streams_mongo import Streams
from adapters.usage_mongo import RelayUsage
from heliograph.identities import Provider, Subject
from heliograph.links import Media
from heliograph.messages import Event
from heliograph.push import Target
from heliograph.rooms import Participant, new_room
from heliograph.sessions import SECRET_BYTES, begun
from tests.conftest import Stores
from tests.contract.mongos_stub import mongos
from tests.contract.test_usage_mongo import record
from tests.mongo_with_login import MongoWithLogin, mongo_with_login
from tests.running import ROOT, wait_until

READS: Final = {"ping", "hello", "ismaster", "listCollections", "listIndexes", "find", "endSessions"}


class Heard(CommandListener):
    """The names of the commands that a client sent."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def started(self, event: Any) -> None:
        self.names.append(event.command_name)

    def succeeded(self, event: Any) -> None: ...
    def failed(self, event: Any) -> None: ...


def client_of(uri: str, *listeners: CommandListener) -> Any:
    return MongoClient(uri, event_listeners=listeners)


@pytest.fixture
def name(stores: Stores) -> Iterator[str]:
    """A database that does not exist yet."""
    made = "migrated-" + secrets.token_hex(6)
    yield made
    with client_of(stores.mongodb_uri) as client:
        client.drop_database(made)
        client.config.collections.delete_many({"_id": {"$regex": f"^{made}"}})


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def fresh(stores: Stores, name: str, heard: Heard) -> Iterator[Any]:
    with client_of(stores.mongodb_uri, heard) as client:
        yield client[name]


def state_of(database: Any) -> dict[str, Any]:
    """Everything that a migration can change but documents."""
    return {
        each["name"]: (each["options"], sorted((dict(index) for index in database[each["name"]].list_indexes()), key=lambda index: str(index["name"])))
        for each in database.list_collections()
    }


def outcome(uri: str, name: str) -> str:
    """The sentence of a refusal."""
    with pytest.raises(MigrationRefused) as refused:
        migrations_mongo.run(uri, name, within_s=3_600)
    return str(refused.value)


def command(*argv: str, uri: str, name: str) -> subprocess.Popen[str]:
    environment = os.environ | {"HELIOGRAPH_MONGODB_URI": uri}
    words = [sys.executable, "-m", "admin", "--database", name, "migrate", *argv]
    return subprocess.Popen(words, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# --- the table


@pytest.mark.parametrize("collection", COLLECTIONS.values(), ids=COLLECTIONS)
def test_every_unique_index_starts_with_the_shard_key_and_that_with_the_tenant(collection: Collection) -> None:
    key = collection.shard_key
    assert key[0] == "tenant_id"
    assert "tenant_id" in collection.fields
    assert collection.unique, "without one nothing tells a document from its double"
    assert all(index[: len(key)] == key for index in collection.unique)
    assert all(index[0] == "tenant_id" for index in collection.plain)


def test_the_decision_page_gives_the_reason_of_every_key() -> None:
    page = (ROOT / "docs/decisions/0014-shard-keys-and-migrations.md").read_text()
    rows = [f"| `{name}` | {', '.join(collection.shard_key)} | {collection.why} |" for name, collection in COLLECTIONS.items()]
    assert [row for row in rows if row not in page] == []
    assert page.count("| `") == len(rows)


def test_the_fingerprint_is_the_same_in_another_process_and_another_for_another_table(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = migrations_mongo.fingerprint()
    code = "from adapters import migrations_mongo; print(migrations_mongo.fingerprint())"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == ours
    monkeypatch.setattr(migrations_mongo, "COLLECTIONS", {name: collection for name, collection in COLLECTIONS.items() if name != "rooms"})
    assert migrations_mongo.fingerprint() != ours


# --- a sharded cluster


def test_on_a_mongos_every_collection_is_sharded_after_its_indexes() -> None:
    steps = plan("heliograph", Found(shard_keys={}))
    admin = [dict(step.command) for step in steps if step.is_admin]
    assert admin == [
        {"enableSharding": "heliograph"},
        {"shardCollection": "heliograph.accounts", "key": {"tenant_id": 1}},
        {"shardCollection": "heliograph.sessions", "key": {"tenant_id": 1, "account_id": 1}},
        {"shardCollection": "heliograph.identity_providers", "key": {"tenant_id": 1}},
        {"shardCollection": "heliograph.identities", "key": {"tenant_id": 1, "issuer": 1, "subject": 1}},
        {"shardCollection": "heliograph.devices", "key": {"tenant_id": 1, "account_id": 1}},
        {"shardCollection": "heliograph.rooms", "key": {"tenant_id": 1, "room_id": 1}},
        {"shardCollection": "heliograph.room_events", "key": {"tenant_id": 1, "room_id": 1}},
        {"shardCollection": "heliograph.media", "key": {"tenant_id": 1, "media_id": 1}},
        {"shardCollection": "heliograph.ledger", "key": {"tenant_id": 1, "seq": 1}},
        {"shardCollection": "heliograph.relay_usage", "key": {"tenant_id": 1, "account_id": 1}},
        {"shardCollection": "heliograph.room_live", "key": {"tenant_id": 1, "room_id": 1}},
        {"shardCollection": "heliograph.used_tickets", "key": {"tenant_id": 1, "account_id": 1}},
        {"shardCollection": "heliograph.pushes", "key": {"tenant_id": 1, "notification_id": 1}},
        {"shardCollection": "heliograph.idempotency", "key": {"tenant_id": 1, "_id": 1}},
    ]
    assert all(tuple(each["key"]) == COLLECTIONS[name].shard_key for name, each in zip(COLLECTIONS, admin[1:], strict=True)), "the order of a key counts"
    assert [step.is_admin for step in steps] == sorted(step.is_admin for step in steps), "an index of the key must stand before"


def test_nothing_of_sharding_is_sent_to_a_server_that_is_no_mongos(fresh: Any, heard: Heard) -> None:
    migrate(fresh)
    assert {"create", "createIndexes"} < set(heard.names) <= READS | {"create", "createIndexes"}


def test_a_mongos_gets_the_commands_over_the_wire_once(stores: Stores, name: str) -> None:
    with client_of(stores.mongodb_uri) as upstream:
        upstream.admin.command("ping")
        with mongos(upstream) as router:
            first = migrations_mongo.run(router.uri, name, within_s=20)
            sent = list(router.sharding)
            assert migrations_mongo.run(router.uri, name, within_s=20) == []
        assert sent == router.sharding
    assert sent == [{**step.command, "$db": "admin"} for step in plan(name, Found(shard_keys={})) if step.is_admin]
    assert first[-1] == "shard idempotency by tenant_id, _id"


def test_a_collection_that_is_sharded_otherwise_is_left_to_a_person() -> None:
    keys = {name: collection.shard_key for name, collection in COLLECTIONS.items()}
    migrated = Found(
        {name: collection.validator for name, collection in COLLECTIONS.items()},
        {name: collection.indexes for name, collection in COLLECTIONS.items()},
        shard_keys=keys,
    )
    assert plan("heliograph", migrated) == []
    with pytest.raises(MigrationRefused, match=r"rooms is sharded by room_id and must be by tenant_id, room_id: .*reshardCollection"):
        plan("heliograph", Found(migrated.validators, migrated.indexes, shard_keys=keys | {"rooms": ("room_id",)}))


# --- again and again


def test_the_second_run_says_nothing_and_writes_nothing(fresh: Any, heard: Heard) -> None:
    done = migrate(fresh)
    assert {f"create collection {each}" for each in COLLECTIONS} < set(done)
    before = state_of(fresh)
    heard.names.clear()
    assert migrate(fresh) == []
    assert set(heard.names) <= READS
    assert state_of(fresh) == before


def test_a_rehearsal_says_the_same_and_makes_nothing(fresh: Any) -> None:
    said = migrate(fresh, is_rehearsal=True)
    assert fresh.list_collection_names() == []
    assert migrate(fresh) == said


def at_rest(database: Any) -> Found:
    """What is there once the server has done what it was asked last: it outlives who asked."""
    seen: list[Found] = []

    def is_at_rest() -> bool:
        seen.append(migrations_mongo._look(database))
        return seen[-1] in seen[-2:-1]

    wait_until("two looks that are alike", is_at_rest, 30, every_s=0.5)
    return seen[-1]


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_run_killed_in_the_middle_is_completed_by_the_next_one(fresh: Any, stores: Stores, name: str, after: int) -> None:
    process = command(uri=stores.mongodb_uri, name=name)
    wait_until(f"{after} collections", lambda: len(fresh.list_collection_names()) >= after or process.poll() is not None, 30, every_s=0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was still at work"
    left = plan(name, at_rest(fresh))
    assert left
    assert migrate(fresh) == [step.says for step in left]
    whole = fresh.client[name + "-whole"]
    try:
        migrate(whole)
        assert state_of(fresh) == state_of(whole)
    finally:
        fresh.client.drop_database(whole.name)


def test_four_runs_at_once_leave_what_one_leaves(fresh: Any, stores: Stores, name: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: migrations_mongo.run(stores.mongodb_uri, name, within_s=30), range(4)))
    assert migrate(fresh) == []


def test_documents_of_older_versions_are_brought_forward_or_removed_and_newer_ones_stay(fresh: Any) -> None:
    account = {"tenant_id": "t", "role": "member", "password_hash": "h"}
    fresh.accounts.insert_many([{**account, "account_id": f"acc_{n}", "login": f"l{n}", "schema_version": n} for n in (1, 2, 3)])
    fresh.sessions.insert_one({"tenant_id": "t", "account_id": "acc_1", "sid": "old", "schema_version": 1})
    done = migrate(fresh)
    assert "bring documents of version 1 in accounts to version 2" in done
    assert "remove documents of version 1 from sessions" in done
    assert [each["schema_version"] for each in fresh.accounts.find({}).sort("account_id", 1)] == [2, 2, 3]
    assert Accounts(fresh).by_id("t", "acc_1") == Account("t", "acc_1", "l1", "h", "member")
    assert list(fresh.sessions.find({})) == []
    assert migrate(fresh) == []


def test_adapters_write_the_versions_of_the_table(database: Any, redis_server: Any, tenant_id: str) -> None:
    now = now_ms()
    account, room = Account(tenant_id, "acc_1", "l", "h", "member"), new_room(tenant_id, "room_1", "Depot", "e1", "acc_1", ())
    Accounts(database).put(account)
    Accounts(database).put_push_target(tenant_id, "acc_1", Target("dev_1", "token", "x"), now)
    session, _ = begun(tenant_id, "acc_1", "dev_1", "sid", "member", now, bytes(2 * SECRET_BYTES))
    Sessions(database).start(session)
    Identities(database).put_provider(Provider(tenant_id, "https://id.example.com", "us", "oidc", "https://id.example.com/keys", "linked"))
    Identities(database).link(tenant_id, Subject("https://id.example.com", "s"), "acc_1")
    Rooms(database).create(room, now)
    Streams(database, redis_server).append(room, "dev_1", "msg_1", Event("message", now, "trace", {"text": "hi"}))
    MediaRecords(database).create(Media(tenant_id, "med_1", "room_1", "acc_1", "f", "text/plain", 1, "0" * 64), now)
    Ledger(database).record(tenant_id, now, "test", "me", "it", {})
    SpareLive(database).enter(tenant_id, "room_1", Participant("c1=", "acc_1", "dev_1"), now)
    OneUse(database).take(tenant_id, "acc_1", "jti", 60, now)
    RelayUsage(database).put([record(tenant_id, "a", 1)])
    Pushes(database).settle(tenant_id, "ntf", "dev_1", "delivered", "", now)
    once(database.idempotency, tenant_id, "key", {}, SimpleNamespace(get_remaining_time_in_millis=lambda: 5_000), lambda: {"ok": 1})
    written = {each: {document["schema_version"] for document in database[each].find({"tenant_id": tenant_id})} for each in COLLECTIONS}
    assert written == {each: {collection.version} for each, collection in COLLECTIONS.items()}


# --- refusals


def test_an_index_with_other_options_is_named_before_anything_is_done(fresh: Any) -> None:
    fresh.sessions.create_index("expires_at", expireAfterSeconds=60)
    with pytest.raises(MigrationRefused, match=r'The index expires_at_1 of sessions .*"expireAfterSeconds": 60.*db\.sessions\.dropIndex\("expires_at_1"\)'):
        migrate(fresh)
    assert fresh.list_collection_names() == ["sessions"]
    fresh.sessions.drop_index("expires_at_1")
    assert migrate(fresh)


def test_an_index_of_the_same_keys_under_another_name_is_taken(fresh: Any) -> None:
    fresh.rooms.create_index([("tenant_id", 1), ("room_id", 1)], unique=True, name="by_id")
    assert "create index rooms (tenant_id, room_id unique)" not in migrate(fresh)
    assert migrate(fresh) == []


def test_a_name_that_stands_for_other_keys_is_refused(fresh: Any) -> None:
    fresh.rooms.create_index("name", name="tenant_id_1_room_id_1")
    with pytest.raises(MigrationRefused, match="tenant_id_1_room_id_1 of rooms has other keys"):
        migrate(fresh)


def test_documents_that_break_a_unique_rule_stop_the_run_and_the_next_one_goes_on(fresh: Any) -> None:
    fresh.rooms.insert_many([{"tenant_id": "t", "room_id": "r", "name": "n", "epoch": "e", "schema_version": 1} for _ in range(2)])
    with pytest.raises(MigrationRefused, match=r"create index rooms .* with the same tenant_id, room_id: keep one of each") as refused:
        migrate(fresh)
    assert "create collection accounts" in refused.value.done
    fresh.rooms.delete_one({})
    done = migrate(fresh)
    assert "create index rooms (tenant_id, room_id unique)" in done
    assert not set(done) & set(refused.value.done)


def test_a_changed_validator_is_put_in_place(fresh: Any) -> None:
    migrate(fresh)
    fresh.command("collMod", "rooms", validator={"name": {"$type": "string"}})
    assert migrate(fresh) == ["change validator of rooms"]


def test_a_validator_that_stored_documents_break_is_not_set(fresh: Any) -> None:
    fresh.media.insert_one({"_id": "m1", "tenant_id": "t", "media_id": "m", "schema_version": 1})
    with pytest.raises(MigrationRefused, match=r"media holds documents that its new validator refuses, one with _id 'm1': mend or remove"):
        migrate(fresh)
    assert fresh.media.options() == {}
    fresh.media.delete_one({})
    assert "change validator of media" in migrate(fresh)


def test_a_validator_that_the_server_does_not_take_is_one_sentence(fresh: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Collection({"tenant_id": {"bsonType": "no such type"}}, ("tenant_id",), "", (("tenant_id",),))
    monkeypatch.setitem(COLLECTIONS, "rooms", broken)
    with pytest.raises(MigrationRefused, match=r"It stopped at: create collection rooms; MongoDB answered .+ mend that and run migrate again"):
        migrate(fresh)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoWithLogin]:
    with mongo_with_login(tmp_path_factory.mktemp("guarded")) as running:
        yield running


def test_a_wrong_password_is_told_from_a_missing_right(guarded: MongoWithLogin) -> None:
    uri = guarded.add_user("migrator", "one", "heliograph")
    assert migrations_mongo.run(uri, "heliograph", within_s=20)
    assert outcome(guarded.uri("migrator", "two"), "heliograph").startswith("MongoDB refuses the user or the password")
    assert "give it the roles readWrite and dbAdmin" in outcome(uri, "another")


def test_nobody_there_and_nobody_answering_are_refused_long_before_the_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations_mongo, "REACHED_S", 1.0)
    assert "did not answer in time" in outcome("mongodb://127.0.0.1:1/", "heliograph")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "did not answer in time" in outcome(f"mongodb://127.0.0.1:{silent.getsockname()[1]}/", "heliograph")


@pytest.mark.parametrize("uri", ["", "postgres://host/", "mongodb://user:hunter2:x@host/", "mongodb://user:hunter2@host:port/"])
def test_a_uri_that_is_none_is_refused_without_repeating_it(uri: str) -> None:
    sentence = outcome(uri, "heliograph")
    assert "put the right one into the secret" in sentence
    assert "hunter2" not in sentence


# --- the command


def test_the_command_says_what_it_did_as_one_line(stores: Stores, name: str) -> None:
    def run(*argv: str) -> Any:
        process = command(*argv, uri=stores.mongodb_uri, name=name)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return json.loads(out)

    missing, first, second = run("--dry-run"), run(), run()
    assert missing["missing"] == first["done"]
    assert second == {"database": name, "done": []}


def test_the_command_ends_with_the_sentence_and_what_it_had_done(stores: Stores, name: str, fresh: Any) -> None:
    fresh.sessions.create_index("expires_at", expireAfterSeconds=60)
    process = command(uri=stores.mongodb_uri, name=name)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)) == (1, {"database": name, "done": []})
    assert err.startswith("The index expires_at_1 of sessions")
    assert "Traceback" not in err


def test_mongodb_removes_what_has_expired(database: Any) -> None:
    """Only that the index is of the form which MongoDB's TTL monitor reads; it looks once a minute, which nobody waits for here."""
    for each in (each for each, collection in COLLECTIONS.items() if collection.is_expiring):
        (index,) = [index for index in database[each].list_indexes() if "expireAfterSeconds" in index]
        assert (dict(index["key"]), index["expireAfterSeconds"]) == ({"expires_at": 1}, 0)
