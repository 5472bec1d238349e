"""What allocations carried reaches the ledger: as they end, once a minute while they live, over an outage of MongoDB, and after kill -9 of the relay."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters import keys, migrations_mongo, mongo_client, redis_client
from adapters.relays_redis import Relays
from adapters.settings import now_ms
from adapters.usage_mongo import COUNTED, RelayUsage
from bench._signal_world import Person
from heliograph.ice import turn_username
from local import service_mongo, service_redis
from local.services import choose_ports
from local.supervisor import Supervisor
from media_fleet import usage as usage_module
from media_fleet.readings import AllocationUsage
from media_fleet.session_store import SessionStore, Tenants
from media_fleet.usage import UNKNOWN, Usage, UsageLedger
from media_fleet.usage_buffer import UsageBuffer
from tests.conftest import Stores
from tests.contract.hub_stub import KEYS, REGION, StubGateway, gateway, until
from tests.integration.fleet_world import MONGODB_SECRET, allocate, function, ice_servers, node, secrets_manager, talk

__all__ = ["gateway"]  # a fixture
BEGUN_MS = 1_900_000_000_000


def stored(database: Any, tenant_id: str) -> list[dict[str, Any]]:
    return list(database.relay_usage.find({"tenant_id": tenant_id}, {"_id": 0}).sort("started_at_ms", 1))


def sent(database: Any, who: Person) -> int:
    return int(database.relay_usage.find_one({"tenant_id": who.tenant_id, "account_id": who.account_id})["from_client_packets"])


def record(who: Person, number: int, packets: int = 1, *, is_over: bool = True) -> AllocationUsage:
    living = AllocationUsage(
        turn_username(9, who.account_id, who.device_id), f"203.0.113.1:{50_000 + number}", 160 * packets, 0, packets, 0, BEGUN_MS + number, BEGUN_MS + 60_000
    )
    return replace(living, ended_at_ms=living.read_at_ms) if is_over else living


@asynccontextmanager
async def usage_of(uri: str, redis_url: str, buffer: UsageBuffer | None = None, *, is_running: bool = True) -> AsyncIterator[Usage]:
    """The writer of a node `n1`; at the end it is only cancelled."""
    store = SessionStore(redis_url, "single", credentials=lambda: KEYS, region=REGION)
    ledger = UsageLedger(lambda: uri, "heliograph")
    made = Usage("n1", ledger, Tenants(store), buffer)
    running = [asyncio.create_task(made.run())] if is_running else []
    try:
        yield made
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await asyncio.to_thread(ledger.close)
        await store.close()


# A node


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_an_allocation_carried_is_in_the_ledger_when_it_has_ended_and_at_the_end_of_the_node(
    database: Any, redis_server: Any, stores: Stores, gateway: StubGateway, tenant_id: str, workers: str
) -> None:
    ana, ben = Person(tenant_id), Person(tenant_id)
    with secrets_manager(stores.mongodb_uri) as aws, function(aws, stores.redis_url):
        async with node(aws, stores.redis_url, gateway.url, mongodb_secret_id=MONGODB_SECRET, turn_workers=workers, relay_drain_s="0") as running:
            one, other = [await allocate(ice_servers(who)[0]) for who in (ana, ben)]
            await talk(one, other, 20)
            one[0].close()
            (found,) = await until("the document of the allocation that ended", lambda: stored(database, tenant_id), 15)
            assert (found["account_id"], found["device_id"]) == (ana.account_id, ana.device_id)
            assert found["relayed_address"].startswith("127.0.0.1:")
            assert found["from_client_packets"] >= 20
            assert found["from_client_bytes"] > 10 * 20
            assert found["started_at_ms"] < found["ended_at_ms"] == found["updated_at_ms"]
            running.terminate()
            assert await running.ended() == 0
            status, text = running.ask("/metrics")
            assert (status, text) == (0, "")
    both = {each["account_id"]: each for each in stored(database, tenant_id)}
    assert set(both) == {ana.account_id, ben.account_id}
    assert both[ben.account_id]["to_client_packets"] >= 20
    assert "ended_at_ms" in both[ben.account_id]
    assert {each["node_id"] for each in both.values()} == {running.said("relay_registered")[0]["node_id"]}
    assert not running.said("usage_not_stored")


async def test_of_a_node_that_is_killed_the_ledger_has_the_last_snapshot(
    database: Any, redis_server: Any, stores: Stores, gateway: StubGateway, tenant_id: str
) -> None:
    ana, ben = Person(tenant_id), Person(tenant_id)
    with secrets_manager(stores.mongodb_uri) as aws, function(aws, stores.redis_url):
        async with node(aws, stores.redis_url, gateway.url, mongodb_secret_id=MONGODB_SECRET, usage_s="0.5") as running:
            one, other = [await allocate(ice_servers(who)[0]) for who in (ana, ben)]
            await talk(one, other, 10)
            await until("snapshots of both", lambda: sum(each["from_client_packets"] >= 1 for each in stored(database, tenant_id)) == 2, 15)
            before = sent(database, ana)
            await talk(one, other, len(other[1].received) + 20)
            await until("a later snapshot", lambda: sent(database, ana) >= before + 20, 15)
            running.kill()
            await running.ended()
            for transport, _ in (one, other):
                transport.close()
    found = stored(database, tenant_id)
    assert len(found) == 2
    assert not any("ended_at_ms" in each for each in found)
    redis_server.delete(keys.RELAY_LEASES, keys.RELAY_NODES)


async def test_a_node_whose_secret_is_empty_relays_and_keeps_its_usage(redis_server: Any, stores: Stores, gateway: StubGateway, tenant_id: str) -> None:
    """As after a first deployment: the operator has not put MongoDB's URI there yet."""
    with secrets_manager() as aws, function(aws, stores.redis_url):
        async with node(aws, stores.redis_url, gateway.url, mongodb_secret_id=MONGODB_SECRET) as running:
            transport, _ = await allocate(ice_servers(Person(tenant_id))[0])
            transport.close()
            await until("that the writer noticed", lambda: running.said("usage_waits"), 15)
            assert running.ask("/readyz")[0] == 200
            assert "\nheliograph_relay_usage_waiting 1.0\n" in running.ask("/metrics")[1]
    redis_server.delete(keys.RELAY_LEASES, keys.RELAY_NODES)


# The writer, and a MongoDB that dies


@pytest.fixture
async def mongo(tmp_path: Path) -> AsyncIterator[tuple[str, Supervisor]]:
    """A MongoDB of this test's own, migrated: its URI, and who starts it again."""
    port, supervisor = choose_ports(("mongo",), {})["mongo"], Supervisor(tmp_path / "logs", tmp_path / "pids.json")
    await supervisor.start(service_mongo.child(port, tmp_path / "mongo"))
    uri = service_mongo.uri(port)
    await asyncio.to_thread(migrations_mongo.run, uri, "heliograph", within_s=60)
    yield uri, supervisor
    await supervisor.stop()


async def test_over_an_outage_of_mongodb_nothing_is_lost_and_nothing_is_doubled(
    mongo: tuple[str, Supervisor], redis_server: Any, stores: Stores, tenant_id: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (uri, supervisor), who = mongo, Person(tenant_id)
    Relays(redis_server).tell_tenant(who.account_id, tenant_id, 60)
    async with usage_of(uri, stores.redis_url) as usage:
        usage.ended(record(who, 0))
        usage.snapshot(record(who, 1, 5, is_over=False))
        await until("the first records", lambda: usage.reading().stored == 2, 15)
        os.kill(supervisor.pids()["mongo"], signal.SIGSTOP)  # it takes what it is sent and does not answer
        for number in range(2, 300):
            usage.ended(record(who, number))
        usage.snapshot(record(who, 1, 9, is_over=False))
        await until("that the writer noticed", lambda: '"usage_waits"' in capfd.readouterr().err, 20)
        assert usage.reading().waiting == 299
        os.kill(supervisor.pids()["mongo"], signal.SIGKILL)  # it is started again
        await until("everything in the ledger", lambda: usage.reading().waiting == 0, 40)
        usage.ended(record(who, 1, 9))
        await until("the end of the one that lived", lambda: usage.reading().waiting == 0, 15)
        await until("the writer's counters", lambda: usage.reading().stored >= 302, 5)
        assert usage.reading().logged == usage.reading().given_up == 0
    with mongo_client.connect(uri, "heliograph").client as client:
        found = stored(client.heliograph, tenant_id)
        (total,) = RelayUsage(client.heliograph).totals(tenant_id, 0, BEGUN_MS * 2)
    assert [each["started_at_ms"] - BEGUN_MS for each in found] == list(range(300))
    assert all(each["ended_at_ms"] == BEGUN_MS + 60_000 for each in found)
    assert (total["allocations"], total["from_client_packets"], total["from_client_bytes"]) == (300, 299 + 9, 160 * (299 + 9))
    assert set(COUNTED) < set(total)


async def test_what_finds_no_room_stands_in_the_log_complete_and_is_counted(stores: Stores, tenant_id: str, capfd: pytest.CaptureFixture[str]) -> None:
    who = Person(tenant_id)
    async with usage_of("mongodb://127.0.0.1:1/", stores.redis_url, UsageBuffer(most=3), is_running=False) as usage:
        usage.snapshot(record(who, 0, is_over=False))
        for number in (1, 2, 3, 4, 5):
            usage.ended(record(who, number))
        assert (usage.reading().given_up, usage.reading().logged, usage.reading().waiting) == (1, 2, 3)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"usage_not_stored"' in line]
    assert [line["started_at_ms"] - BEGUN_MS for line in lines] == [1, 2]
    assert all((line["account_id"], line["from_client_bytes"], line["why"]) == (who.account_id, 160, "no room") for line in lines)


async def test_a_line_of_the_log_can_be_put_into_the_ledger_as_it_is(
    database: Any, redis_server: Any, stores: Stores, tenant_id: str, capfd: pytest.CaptureFixture[str]
) -> None:
    who = Person(tenant_id)
    Relays(redis_server).tell_tenant(who.account_id, tenant_id, 60)
    async with usage_of("mongodb://127.0.0.1:1/", stores.redis_url) as usage:
        usage.ended(record(who, 7))
        await usage.finish(0.5)
    (line,) = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"usage_not_stored"' in line]
    document = {name: value for name, value in line.items() if name not in ("at_ms", "event", "why")}
    assert RelayUsage(database).put([document]) == []
    assert stored(database, document["tenant_id"])[-1] == document


async def test_a_final_record_waits_for_its_tenant_and_is_written_as_unknown_when_nobody_can_know_it(
    database: Any, redis_server: Any, stores: Stores, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late, never, other = Person(tenant_id), Person(tenant_id), Person(tenant_id)
    Relays(redis_server).tell_tenant(other.account_id, tenant_id, 60)
    monkeypatch.setattr(usage_module, "TENANT_WAIT_MS", 2_000)
    async with usage_of(stores.mongodb_uri, stores.redis_url) as usage:
        for number, who in enumerate((late, never, other)):
            usage.ended(replace(record(who, number), read_at_ms=now_ms(), ended_at_ms=now_ms()))
        await until("the one whose tenant is known", lambda: [each["account_id"] for each in stored(database, tenant_id)] == [other.account_id], 10)
        Relays(redis_server).tell_tenant(late.account_id, tenant_id, 60)
        await until("the one whose tenant came late", lambda: len(stored(database, tenant_id)) == 2, 10)
        await until("the one that nobody knows", lambda: database.relay_usage.find_one({"tenant_id": UNKNOWN, "account_id": never.account_id}), 15)
        assert usage.reading().waiting == 0


async def test_while_redis_is_away_an_account_that_is_remembered_has_its_records_written_and_another_one_waits(
    database: Any, stores: Stores, tenant_id: str, tmp_path: Path
) -> None:
    known, unknown = Person(tenant_id), Person(tenant_id)
    port, binary = choose_ports(("redis",), {})["redis"], service_redis.resolve({}).binary
    supervisor = Supervisor(tmp_path / "logs", tmp_path / "pids.json")
    assert binary is not None
    await supervisor.start(service_redis.child(binary, port, tmp_path / "redis"))
    with closing(redis_client.connect(service_redis.url(port), "single")) as client:
        Relays(client).tell_tenant(known.account_id, tenant_id, 60)
    async with usage_of(stores.mongodb_uri, service_redis.url(port)) as usage:
        usage.ended(record(known, 0))
        await until("the first record", lambda: len(stored(database, tenant_id)) == 1, 10)
        await supervisor.stop()
        for number, who in ((1, known), (2, unknown)):
            usage.ended(replace(record(who, number), read_at_ms=now_ms(), ended_at_ms=now_ms()))
        await until("the one that is remembered", lambda: len(stored(database, tenant_id)) == 2, 10)
        await until("the other one back in line", lambda: usage.reading().waiting == 1, 10)
    redis_client.forget_failure()
