"""The event hub on a real Redis, behind a gateway that misbehaves. On older servers, a cluster and in processes: tests/integration/test_hub*.py."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import closing
from typing import Any

import pytest

from adapters import keys, redis_client
from adapters.connections_redis import Connections
from adapters.hub_redis import Hubs
from heliograph.fanout import Job
from media_fleet.hub import Hub
from tests.conftest import Stores
from tests.contract.hub_stub import ROOM, Server, StubGateway, config, fill_room, fresh, gateway, hand_over, job, leased, quiet, until

__all__ = ["gateway"]  # a fixture


@pytest.fixture
def server(stores: Stores, redis_server: Any) -> Server:
    redis_server.delete(keys.HUB_LEASES)  # a hub that was closed without draining
    return Server(stores.redis_url, redis_server)


def hellos(gateway: StubGateway) -> list[tuple[float, str]]:
    return [(at_s, connection_id) for at_s, connection_id, body in gateway.posted if body == b"hello"]


async def test_one_fan_out_meets_every_misfortune_and_the_others_have_their_event(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    """20 % gone, 10 % throttled, 5 % broken, 1 % hang for 30 s, of 1,000 sockets: nobody waits 2 s for another one, and those who are gone leave Redis."""
    ids = tuple(f"c{number:04}=" for number in range(1000))
    for number, connection_id in enumerate(ids):
        place = number % 100
        status = 410 if place < 20 else 429 if place < 30 else 500 if place < 35 else 0 if place == 35 else 200
        gateway.statuses[connection_id] = [status] if status in (410, 0, 200) else [status, 200]
    await asyncio.to_thread(fill_room, server.client, tenant_id, ROOM, ids)
    async with Hub(config(server, gateway)) as hub:
        await leased(hub)
        began_s = asyncio.get_running_loop().time()
        assert await hand_over(fresh(server), job(tenant_id, "hello", ids))
        await until("the hello of 790", lambda: len(hellos(gateway)) == 790)
        await until("forgotten sockets", lambda: len(Connections(server.client).in_room(tenant_id, ROOM)) == 800)
        await quiet(hub)
        assert hub.stats()["gone"] >= 200
        assert (hub.stats()["throttled"], hub.stats()["shed"]) == (0, 0)
    took_s = [at_s - began_s for at_s, _ in hellos(gateway)]
    assert sorted(each for _, each in hellos(gateway)) == sorted(each for number, each in enumerate(ids) if number % 100 >= 20 and number % 100 != 35)
    assert max(took_s) < 15, "somebody waited for a socket that hangs 30 s"
    print(f"\nlast of 790 after {max(took_s):.2f} s, median {statistics.median(took_s):.2f} s / 2 s")
    left = {c.connection_id for number in range(200) for c in Connections(server.client).of_account(tenant_id, f"acc_{number}")}
    assert left == {each for number, each in enumerate(ids) if number % 100 >= 20}


async def test_those_who_are_left_are_told_that_a_socket_of_the_room_is_gone(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    await asyncio.to_thread(fill_room, server.client, tenant_id, ROOM, ("a=", "b=", "c="), 1)
    gateway.statuses = {"b=": [410]}
    async with Hub(config(server, gateway)) as hub:
        await leased(hub)
        assert await hand_over(fresh(server), job(tenant_id, json.dumps({"trace_id": "t" * 16}), ("a=", "b=", "c=")))
        await until("four deliveries", lambda: len(gateway.posted) == 4)
    told = [json.loads(body) for _, _, body in gateway.posted[2:]]
    assert {each for _, each, _ in gateway.posted[2:]} == {"a=", "c="}
    assert {(each["event"], each["room_id"], each["trace_id"], each["body"]["account_id"]) for each in told} == {("participant_left", ROOM, "t" * 16, "acc_1")}
    assert {each["body"]["roster_version"] for each in told} == {4}


async def test_sockets_of_a_room_get_their_events_in_order_and_one_at_a_time(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    """Throttling, retries and a slow neighbour change no order."""
    ids = tuple(f"c{number}=" for number in range(40))
    gateway.delay_s = 0.002
    gateway.statuses = {ids[0]: [429, 200, 500, 200], ids[1]: [200, 429, 429, 200]}
    async with Hub(config(server, gateway)) as hub:
        await leased(hub)
        hubs = fresh(server)
        for number in range(30):
            assert await hand_over(hubs, job(tenant_id, str(number), ids))
        await until("1,200 deliveries", lambda: len(gateway.posted) == 1200, 10)
    for each in ids:
        assert [int(body) for _, connection_id, body in gateway.posted if connection_id == each] == list(range(30))
    assert not gateway.overlapped


async def test_a_socket_of_presence_that_is_gone_leaves_its_account(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    await asyncio.to_thread(fill_room, server.client, tenant_id, ROOM, ("a=", "b="), 1)
    gateway.statuses = {"b=": [410]}
    async with Hub(config(server, gateway)) as hub:
        await leased(hub)
        assert await hand_over(fresh(server), Job(tenant_id, "presence", b"x", ("a=", "b="), account_id="acc_9", owners=("acc_0", "acc_1")))
        await until("a forgotten socket", lambda: not Connections(server.client).of_account(tenant_id, "acc_1"))
    assert [c.connection_id for c in Connections(server.client).of_account(tenant_id, "acc_0")] == ["a="]


async def test_a_lease_needs_a_message_that_came_back(server: Server, gateway: StubGateway) -> None:
    """A subscriber that hears nothing loses its lease, however well Redis answers PING."""
    async with Hub(config(server, gateway, lease_s=1.0)) as hub:
        await leased(hub)
        assert fresh(server).live() == (hub.name,)
        assert hub.name.startswith(server.kind)
        hub._receive = lambda data: None  # type: ignore[method-assign]
        await until("the end of the lease", lambda: not fresh(server).live(), 4)
        del hub._receive
        await until("a new lease", lambda: fresh(server).live() == (hub.name,), 4)


async def test_without_a_lease_and_without_redis_the_function_posts_itself(server: Server, tenant_id: str) -> None:
    assert not await hand_over(fresh(server), job(tenant_id, "x", ("c=",)))
    server.client.eval(keys.RENEW_LEASE, 1, keys.HUB_LEASES, server.kind + "dead", 60_000)
    hubs = fresh(server)
    assert hubs.live() == (server.kind + "dead",)
    assert await hand_over(hubs, job(tenant_id, "x", ("c=",))) == (server.mode == "cluster"), "on a single server nobody is nobody; in a cluster the lease ends"
    with closing(redis_client.connect("redis://127.0.0.1:1", "single")) as nowhere:
        began_s = time.monotonic()
        away = Hubs(nowhere, is_cluster=False)
        assert not any([await hand_over(away, job(tenant_id, "x", ("c=",))) for _ in range(50)])
        assert time.monotonic() - began_s < 5, "a Redis that is away is asked once a second"
    await asyncio.sleep(1.1)  # the process leaves a lost Redis alone for a second


async def test_nonsense_on_the_channel_is_counted_and_changes_nothing(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    async with Hub(config(server, gateway)) as hub:
        await leased(hub)
        hubs = fresh(server)
        for data in (b"", b"{}", b"\xff", b"[" * 50_000, json.dumps({"tenant_id": 1}).encode(), b"probe:somebody else's"):
            hubs.publish(hub.name, data)
        assert await hand_over(hubs, job(tenant_id, "x", ("c=",)))
        await until("the good job", lambda: len(gateway.posted) == 1)
        assert (hub.stats()["malformed"], hub.stats()["jobs"]) == (5, 1)


def test_a_lease_ends_by_the_servers_clock_and_leaves_nothing_behind(redis_server: Any) -> None:
    hubs = Hubs(redis_server, is_cluster=False)
    hubs.renew("s-test", 100)
    assert "s-test" in Hubs(redis_server, is_cluster=False).live()
    assert 0 < redis_server.pttl(keys.HUB_LEASES) < 60_000
    time.sleep(0.15)
    assert "s-test" not in Hubs(redis_server, is_cluster=False).live()
    hubs.renew("s-test", 60_000)
    hubs.give_up("s-test")
    assert "s-test" not in Hubs(redis_server, is_cluster=False).live()
