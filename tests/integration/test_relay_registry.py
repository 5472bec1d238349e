"""From a node to a client: it registers, GET /v1/ice-servers lists it, it drains and is listed no more; it is killed and is gone after three beats."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from adapters import keys, redis_client
from adapters.relays_redis import Relays
from bench._signal_world import Person
from heliograph.relays import RelayNode
from local import service_redis
from local.services import choose_ports
from local.supervisor import Supervisor
from media_fleet.registry import BEAT_S, LEASE_BEATS
from tests.conftest import Stores
from tests.contract.hub_stub import StubGateway, gateway, until
from tests.integration.fleet_world import allocate, function, ice_servers, node, secrets_manager

__all__ = ["gateway"]  # a fixture
CONFIGURED = ["x"]


@pytest.fixture
def registry(redis_server: Any) -> Iterator[Relays]:
    """The one there is, empty before and after."""
    redis_server.delete(keys.RELAY_LEASES, keys.RELAY_NODES)
    yield Relays(redis_server)
    redis_server.delete(keys.RELAY_LEASES, keys.RELAY_NODES)


@pytest.fixture
def aws(stores: Stores) -> Iterator[str]:
    with secrets_manager() as url, function(url, stores.redis_url):
        yield url


def urls(who: Person) -> list[list[str]]:
    return [server["urls"] for server in ice_servers(who)]


async def test_a_node_registers_clients_are_told_of_it_it_drains_and_they_are_told_of_it_no_more(
    registry: Relays, aws: str, stores: Stores, gateway: StubGateway, tenant_id: str
) -> None:
    who = Person(tenant_id)
    assert urls(who) == [CONFIGURED]
    async with node(aws, stores.redis_url, gateway.url, relay_drain_s="30") as running:
        (entry,) = registry.live()
        (server,) = ice_servers(who)
        assert server["urls"] == list(entry.urls)
        assert [re.sub(r":\d+\?", ":PORT?", url) for url in entry.urls] == ["turn:127.0.0.1:PORT?transport=udp", "turn:127.0.0.1:PORT?transport=tcp"]
        assert registry.tenants([who.account_id]) == {who.account_id: tenant_id}
        transport, _ = await allocate(server)
        await until("the allocation in the registry", lambda: [each.allocations for each in registry.live()] == [1])
        assert (running.ask("/healthz")[0], running.ask("/readyz")[0]) == (200, 200)
        running.terminate()
        await until("draining in the registry", lambda: [each.state for each in registry.live()] == ["draining"])
        assert urls(who) == [CONFIGURED]
        assert (running.ask("/healthz")[0], json.loads(running.ask("/healthz")[1])["status"]) == (200, "draining")
        assert running.ask("/readyz")[0] == 503
        with pytest.raises(Exception, match="508"):
            await allocate(server)
        transport.close()
        assert await running.ended() == 0
        assert registry.live() == []


async def test_of_a_node_that_is_killed_nobody_is_told_after_three_beats(
    registry: Relays, aws: str, stores: Stores, gateway: StubGateway, tenant_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with node(aws, stores.redis_url, gateway.url) as running:
        assert urls(Person(tenant_id)) != [CONFIGURED]
        running.kill()
        killed_s = time.monotonic()
        await until("the end of its lease", lambda: urls(Person(tenant_id)) == [CONFIGURED], BEAT_S * LEASE_BEATS + 5)
    with capsys.disabled():
        print(f"\nrelay killed: nobody is told of it after {time.monotonic() - killed_s:.1f} s / {BEAT_S * LEASE_BEATS:g} s")


async def test_of_several_nodes_two_are_told_each_with_all_its_urls(registry: Relays, aws: str, tenant_id: str) -> None:
    made = {f"n{number}": (f"turn:203.0.113.{number}:3478?transport=udp", f"turns:r{number}.example.com:443?transport=tcp") for number in range(4)}
    for name, theirs in made.items():
        registry.beat(RelayNode(name, theirs, "draining" if name == "n3" else "up", 0, 100, 1), 60_000)
    told = [urls(Person(tenant_id)) for _ in range(20)]
    assert all(len(servers) == 2 for servers in told)
    assert {tuple(each) for servers in told for each in servers} == {theirs for name, theirs in made.items() if name != "n3"}
    (first, second) = ice_servers(who := Person(tenant_id))
    assert (first["username"], first["credential"]) == (second["username"], second["credential"])
    assert first["username"].endswith(f":{who.account_id}:{who.device_id}")


async def test_a_node_goes_on_while_redis_hangs_and_is_listed_again_when_it_is_back_or_has_lost_everything(
    aws: str, gateway: StubGateway, tmp_path: Path
) -> None:
    port, supervisor = choose_ports(("redis",), {})["redis"], Supervisor(tmp_path / "logs", tmp_path / "pids.json")
    binary = service_redis.resolve({}).binary
    assert binary is not None
    await supervisor.start(service_redis.child(binary, port, tmp_path / "redis"))
    try:
        with closing(redis_client.connect(service_redis.url(port), "single")) as client:
            async with node(aws, service_redis.url(port), gateway.url) as running:
                client.flushall()
                await until("the node in the registry, whose memory was lost", lambda: Relays(client).live(), 10)
                os.kill(supervisor.pids()["redis"], signal.SIGSTOP)
                await until("that the node noticed", lambda: running.said("relay_not_registered"), 15)
                assert running.ask("/readyz")[0] == 200
                os.kill(supervisor.pids()["redis"], signal.SIGCONT)
                await until("the node in the registry again", lambda: len(running.said("relay_registered")) == 2, 15)
    finally:
        await supervisor.stop()


def test_credentials_are_handed_out_while_the_registry_hangs(aws: str, tenant_id: str, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis let the request in and hangs from then on: the answer comes with the configured relays, after one time-out."""
    from functions import wiring

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def serve() -> list[dict[str, Any]]:
        server = await asyncio.start_server(silence, "127.0.0.1", 0)
        async with server:
            hung = redis_client.connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", "single")
            monkeypatch.setattr(wiring, "relays", lambda: Relays(hung))
            return await asyncio.to_thread(ice_servers, Person(tenant_id))

    begun_s = time.monotonic()
    (configured,) = asyncio.run(serve())
    redis_client.forget_failure()
    assert (configured["urls"], set(configured)) == (CONFIGURED, {"urls", "username", "credential"})
    assert time.monotonic() - begun_s < 10
