"""A draining relay tells the clients that are on it to move: each account once, every socket of it, by the hub, a few at a time."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from adapters import redis_client
from adapters.connections_redis import Connections
from adapters.relays_redis import Relays
from bench._signal_world import Person
from heliograph.fanout import Job
from heliograph.presence import Connection
from media_fleet.moving import draining_event, tell
from media_fleet.session_store import SessionStore, Tenants
from tests.conftest import Stores
from tests.contract.hub_stub import KEYS, REGION, StubGateway, gateway, until
from tests.integration.fleet_world import allocate, function, ice_servers, node, secrets_manager

__all__ = ["gateway"]  # a fixture


def connect(redis_server: Any, who: Person, sockets: int) -> set[str]:
    """Live sockets of somebody."""
    ids = {f"{who.account_id}-{number}=" for number in range(sockets)}
    for number, connection_id in enumerate(sorted(ids)):
        Connections(redis_server).put(who.tenant_id, who.account_id, Connection(connection_id, f"dev_{number}", 1, "online", 1))
    return ids


@asynccontextmanager
async def session_store(url: str) -> AsyncIterator[SessionStore]:
    store = SessionStore(url, "single", credentials=lambda: KEYS, region=REGION)
    yield store
    await store.close()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_every_socket_of_an_account_on_a_draining_relay_is_told_where_and_until_when_and_nobody_else(
    redis_server: Any, stores: Stores, gateway: StubGateway, tenant_id: str, workers: str
) -> None:
    ana, ben, idle = Person(tenant_id), Person(f"{tenant_id}-other"), Person(tenant_id)
    sockets = {who.account_id: connect(redis_server, who, count) for who, count in ((ana, 3), (ben, 1), (idle, 1))}
    with secrets_manager() as aws, function(aws, stores.redis_url):
        async with node(aws, stores.redis_url, gateway.url, relay_drain_s="30", turn_workers=workers) as running:
            # ana has two allocations, as a browser with two servers has
            allocations = [await allocate(ice_servers(who)[0]) for who in (ana, ana, ben)]
            begun_ms = time.time_ns() // 1_000_000
            running.terminate()
            await until("a post to each socket", lambda: len(gateway.posted) >= 4, 15)
            assert running.process.poll() is None  # they have time
            for transport, _ in allocations:
                transport.close()
            assert await running.ended() == 0
            assert [(line["accounts"], line["told"], line["left"]) for line in running.said("relay_draining_told")] == [(2, 2, 0)]
    assert sorted(connection_id for _, connection_id, _ in gateway.posted) == sorted(sockets[ana.account_id] | sockets[ben.account_id])
    for _, _, data in gateway.posted:
        frame = json.loads(data)
        assert set(frame) == {"event", "at_ms", "trace_id", "body"}
        assert (frame["event"], frame["body"]["relay_hosts"]) == ("relay_draining", ["127.0.0.1"])
        assert begun_ms + 29_000 < frame["body"]["ends_at_ms"] < begun_ms + 60_000


async def test_a_relay_without_allocations_ends_at_once_and_tells_nobody(stores: Stores, gateway: StubGateway) -> None:
    with secrets_manager() as aws:
        async with node(aws, stores.redis_url, gateway.url, relay_drain_s="30") as running:
            running.terminate()
            assert await running.ended(10) == 0
            assert not running.said("relay_draining_told")
    assert gateway.posted == []


async def test_many_accounts_are_told_one_after_another_and_each_once(redis_server: Any, stores: Stores, tenant_id: str) -> None:
    people = [Person(f"{tenant_id}-{number % 3}") for number in range(300)]
    for who in people:
        connect(redis_server, who, 1)
        Relays(redis_server).tell_tenant(who.account_id, who.tenant_id, 60)
    jobs: list[tuple[float, Job]] = []
    async with session_store(stores.redis_url) as store:
        event = draining_event(["203.0.113.7"], 1)
        ids = [who.account_id for who in people]
        told = await tell([*ids, *ids], event, store, Tenants(store), lambda job: jobs.append((time.monotonic(), job)), within_s=60, per_s=300)
    assert told == 300
    assert Counter(job.account_id for _, job in jobs) == Counter(who.account_id for who in people)
    assert {(job.tenant_id, job.account_id) for _, job in jobs} == {(who.tenant_id, who.account_id) for who in people}
    assert not any(job.may_be_shed for _, job in jobs)
    assert jobs[-1][0] - jobs[0][0] >= 0.8  # ten steps of a tenth of a second


async def test_an_account_whose_tenant_nobody_knows_or_that_has_no_socket_is_passed_over(redis_server: Any, stores: Stores, tenant_id: str) -> None:
    known, unknown, absent = (Person(tenant_id) for _ in range(3))
    for who in (known, unknown):
        connect(redis_server, who, 1)
    for who in (known, absent):
        Relays(redis_server).tell_tenant(who.account_id, who.tenant_id, 60)
    jobs: list[Job] = []
    async with session_store(stores.redis_url) as store:
        ids = [who.account_id for who in (unknown, absent, known)]
        assert await tell(ids, draining_event([], 1), store, Tenants(store), jobs.append, within_s=5) == 1
    assert [job.account_id for job in jobs] == [known.account_id]


async def test_without_redis_telling_goes_on_for_its_time_and_no_longer() -> None:
    begun_s = time.monotonic()
    async with session_store("redis://127.0.0.1:1/0") as store, asyncio.timeout(20):
        assert await tell(["acc_1"], draining_event([], 1), store, Tenants(store), lambda job: None, within_s=1) == 0
    assert time.monotonic() - begun_s >= 1
    redis_client.forget_failure()
