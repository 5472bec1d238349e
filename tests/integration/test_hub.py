"""The event hub on the servers it must work with: sharded channels (7.0), plain ones (6.2), and clusters of three nodes of both."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from adapters import hub_redis, redis_client
from heliograph.fanout import Job, hub_of
from local import service_redis
from local.services import choose_ports
from local.supervisor import Supervisor
from media_fleet.hub import Hub
from tests.contract.hub_stub import Server, StubGateway, config, fresh, gateway, hand_over, job, leased, until
from tests.integration.test_hub_on_one_server import (  # collected here
    test_a_lease_needs_a_message_that_came_back,
    test_a_socket_of_presence_that_is_gone_leaves_its_account,
    test_nonsense_on_the_channel_is_counted_and_changes_nothing,
    test_one_fan_out_meets_every_misfortune_and_the_others_have_their_event,
    test_sockets_of_a_room_get_their_events_in_order_and_one_at_a_time,
    test_those_who_are_left_are_told_that_a_socket_of_the_room_is_gone,
    test_without_a_lease_and_without_redis_the_function_posts_itself,
)

__all__ = [
    "gateway",  # a fixture
    "test_a_lease_needs_a_message_that_came_back",
    "test_a_socket_of_presence_that_is_gone_leaves_its_account",
    "test_nonsense_on_the_channel_is_counted_and_changes_nothing",
    "test_one_fan_out_meets_every_misfortune_and_the_others_have_their_event",
    "test_sockets_of_a_room_get_their_events_in_order_and_one_at_a_time",
    "test_those_who_are_left_are_told_that_a_socket_of_the_room_is_gone",
    "test_without_a_lease_and_without_redis_the_function_posts_itself",
]
BINARIES = {"sharded": shutil.which("valkey-server") or shutil.which("redis-server"), "plain": service_redis.bundled_binary()}


@asynccontextmanager
async def one_node(binary: str, folder: Path, supervisor: Supervisor) -> AsyncIterator[Server]:
    port = choose_ports(("redis",), {})["redis"]
    await supervisor.start(service_redis.child(binary, port, folder))
    with closing(redis_client.connect(service_redis.url(port), "single")) as client:
        yield Server(service_redis.url(port), client)


@asynccontextmanager
async def three_nodes(binary: str, folder: Path, supervisor: Supervisor) -> AsyncIterator[Server]:
    cluster = service_redis.Cluster(binary, tuple(service_redis.choose_cluster_ports({}).values()), folder)
    await asyncio.gather(*(supervisor.start(child) for child in cluster.children()))
    await cluster.form()
    with closing(await asyncio.to_thread(redis_client.connect, cluster.url, "cluster")) as client:
        yield Server(cluster.url, client, "cluster")


KINDS = ["sharded", "plain", "sharded cluster"]  # an old cluster runs fewer tests: it takes seconds to form
ON_EVERY_KIND = pytest.mark.parametrize("server", [*KINDS, "plain cluster"], indirect=True)


@pytest.fixture(params=KINDS)
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    kind, _, is_cluster = request.param.partition(" ")
    binary = BINARIES[kind]
    if binary is None:
        pytest.skip("no Redis server of this kind on this machine")
    supervisor = Supervisor(tmp_path / "logs", tmp_path / "pids.json")
    try:
        async with (three_nodes if is_cluster else one_node)(binary, tmp_path / "redis", supervisor) as found:
            found.supervisor, found.kind = supervisor, hub_redis.SHARDED if kind == "sharded" else hub_redis.PLAIN
            yield found
    finally:
        await supervisor.stop()


@ON_EVERY_KIND
async def test_the_channel_is_of_the_kind_the_server_has(server: Server, gateway: StubGateway) -> None:
    async with Hub(config(server, gateway)) as hub:
        await leased(hub)
        assert hub.name.startswith(server.kind)


@ON_EVERY_KIND
async def test_the_hub_comes_back_after_redis_was_killed(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    """Every node dies (-9) and comes back empty; within seconds the hub has a lease again and hears its channel."""
    async with Hub(config(server, gateway)) as hub:
        await leased(hub)
        assert server.supervisor is not None
        nodes = server.supervisor.pids()
        for pid in nodes.values():
            os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.05)
        for name in nodes:
            await server.supervisor.wait_until_ready(name, 20)
        back_s = asyncio.get_running_loop().time()
        await until("a function that finds the hub", lambda: fresh(server).live() == (hub.name,), 10)
        print(f"\nRedis back: the hub has its lease {asyncio.get_running_loop().time() - back_s:.2f} s later / 10 s")
        assert await hand_over(fresh(server), job(tenant_id, "after", ("c=",)))
        await until("a delivery", lambda: gateway.posted)


async def test_a_redis_that_hangs_costs_the_lease_and_the_hub_comes_back_with_it(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    """A stopped server is worse than a dead one: connections stay open and nothing answers."""
    async with Hub(config(server, gateway)) as hub:
        await leased(hub)
        assert server.supervisor is not None
        pids = server.supervisor.pids().values()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            await until("the end of the lease", lambda: not hub.has_lease, 5)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        await leased(hub, 10)
        await until("a function that finds the hub", lambda: fresh(server).live() == (hub.name,), 5)
        assert await hand_over(fresh(server), job(tenant_id, "after", ("c=",)))
        await until("a delivery", lambda: gateway.posted)


async def test_more_hanging_sockets_than_lanes_hold_nobody_for_two_seconds(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    hanging, well = tuple(f"h{number}=" for number in range(40)), tuple(f"c{number}=" for number in range(100))
    gateway.statuses = {each: [0] for each in hanging}
    async with Hub(config(server, gateway, concurrency=16)) as hub:
        await leased(hub)
        hubs = fresh(server)
        began_s = asyncio.get_running_loop().time()
        assert await hand_over(hubs, job(tenant_id, "1", hanging, "room_2"))
        assert await hand_over(hubs, job(tenant_id, "1", well))
        await until("deliveries", lambda: len(gateway.posted) == 100)
    assert max(at_s for at_s, _, _ in gateway.posted) - began_s < 15


async def test_a_hub_that_does_not_reach_the_gateway_lets_its_lease_go(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    """A wrong route or a missing right must not swallow what the functions could post themselves."""
    gateway.url = "http://127.0.0.1:1/live"
    async with Hub(config(server, gateway, lease_s=0.6)) as hub:
        await leased(hub)
        hub.add(job(tenant_id, "x", tuple(f"c{number}=" for number in range(120))))
        await until("the end of the lease", lambda: not fresh(server).live(), 8)


async def test_presence_is_told_once_a_second_and_the_newest_wins(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    async with Hub(config(server, gateway)) as hub:
        await leased(hub)
        hubs = fresh(server)
        for number in range(20):
            assert await hand_over(hubs, Job(tenant_id, "presence", str(number).encode(), ("a=", "b="), account_id="acc_9", owners=("acc_1", "acc_2")))
            await asyncio.sleep(0.02)
        await until("the newest", lambda: {body for _, _, body in gateway.posted} >= {b"19"}, 3)
    assert [body for _, connection_id, body in gateway.posted if connection_id == "a="] == [b"0", b"19"]
    assert hub.stats()["coalesced"] >= 36


async def test_a_hub_that_cannot_keep_up_lets_its_lease_go_and_takes_it_again(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    ids = tuple(f"c{number}=" for number in range(200))
    gateway.delay_s = 0.05
    async with Hub(config(server, gateway, lease_s=0.6, shed_over=10, concurrency=4)) as hub:
        await leased(hub)
        hub.add(job(tenant_id, "1", ids))
        await until("the end of the lease", lambda: not fresh(server).live(), 3)
        await until("a new lease", lambda: fresh(server).live(), 10)
    assert hub.outcomes["delivered"] >= 20


@ON_EVERY_KIND
async def test_rooms_are_spread_over_the_hubs_and_a_closed_one_hands_its_rooms_over(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    async with Hub(config(server, gateway)) as first, Hub(config(server, gateway)) as second:
        await leased(first)
        await leased(second)
        hubs = fresh(server)
        assert set(hubs.live()) == {first.name, second.name}
        jobs = [job(tenant_id, f"{number}", ("c=",), f"room_{number}") for number in range(40)]
        assert all([await hand_over(hubs, each) for each in jobs])
        await until("40 deliveries", lambda: len(gateway.posted) == 40)
        shares = {hub.name: hub.stats()["jobs"] for hub in (first, second)}
        assert shares == {hub.name: sum(hub_of(each.place, hubs.live()) == hub.name for each in jobs) for hub in (first, second)}
        assert min(shares.values()) > 0
        await first.drain()
        assert fresh(server).live() == (second.name,)
        assert await hand_over(fresh(server), jobs[0])
        assert all([await hand_over(fresh(server), each) for each in jobs])
        await until("the moved rooms", lambda: second.stats()["jobs"] == shares[second.name] + 41)


async def test_a_draining_hub_posts_what_it_has_and_what_still_comes(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    gateway.delay_s = 0.05
    async with Hub(config(server, gateway, concurrency=4)) as hub:
        await leased(hub)
        believer = fresh(server)
        ids = tuple(f"c{number}=" for number in range(60))
        assert await hand_over(believer, job(tenant_id, "1", ids))
        draining = asyncio.create_task(hub.drain())
        await asyncio.sleep(0.3)
        assert fresh(server).live() == ()
        assert await hand_over(believer, job(tenant_id, "2", ids)), "a function that read the lease a moment ago is still heard"
        await draining
        assert [hub.stats()[name] for name in ("delivered", "backlog", "in_flight")] == [120, 0, 0]
