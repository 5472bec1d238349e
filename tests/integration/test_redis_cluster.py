"""The adapters of the session store on a cluster of three nodes: the tests of one node again, and what only a cluster can get wrong.

Imported tests take this file's `redis_server`, which is a cluster client.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from adapters import keys, redis_client
from adapters.connections_redis import Connections
from heliograph.errors import Unavailable
from heliograph.presence import Connection
from local import service_redis
from local.services import HOST
from local.supervisor import Supervisor
from tests.contract.test_relays_redis import (  # noqa: F401, collected here
    relays,  # a fixture
    test_a_node_that_beats_no_more_is_gone_when_its_lease_ends,
    test_the_registry_has_the_newest_beat_of_each_node,
    test_the_registry_lives_no_longer_than_its_last_lease,
    test_the_tenant_of_relay_credentials_is_known_for_longer_than_they_live,
)
from tests.contract.test_stores import (  # noqa: F401, collected here
    test_a_message_sent_again_has_its_first_offset_and_is_not_stored_twice,
    test_a_roster_that_redis_lost_begins_a_new_epoch,
    test_a_socket_that_was_replaced_by_a_newer_one_of_its_device_is_told_so,
    test_a_stream_goes_on_where_it_was_after_redis_lost_everything,
    test_a_ticket_is_taken_once,
    test_connections_come_and_go_per_account_and_every_key_has_a_ttl,
    test_eight_writers_leave_dense_offsets_and_no_message_twice,
    test_presence_is_told_once_a_second_and_the_last_change_is_queued_once,
    test_the_boards_memory_survives_the_store,
    test_the_handled_sequence_number_of_a_socket_only_rises,
)


@dataclass
class Nodes:
    """A cluster and the supervisor that keeps it alive, on a loop of its own."""

    cluster: service_redis.Cluster
    supervisor: Supervisor
    loop: asyncio.AbstractEventLoop

    def kill(self, name: str) -> None:
        """Kill -9; returns when the node is back and sees the whole cluster."""
        os.kill(self.supervisor.pids()[name], signal.SIGKILL)
        time.sleep(0.05)
        asyncio.run_coroutine_threadsafe(self.supervisor.wait_until_ready(name, 20), self.loop).result(25)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    binary = service_redis.bundled_binary() or service_redis.resolve({}).binary  # the bundled one is the oldest we support
    assert binary is not None
    folder = tmp_path_factory.mktemp("cluster")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    supervisor = Supervisor(folder / "logs", folder / "pids.json")
    cluster = service_redis.Cluster(binary, list(service_redis.choose_cluster_ports({}).values()), folder / "redis")

    async def start() -> None:
        await asyncio.gather(*(supervisor.start(node) for node in cluster.children()))
        await cluster.form()

    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(40)
        yield Nodes(cluster, supervisor, loop)
    finally:
        asyncio.run_coroutine_threadsafe(supervisor.stop(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.fixture
def redis_server(nodes: Nodes) -> Iterator[Any]:
    client = redis_client.connect(nodes.cluster.url, "cluster")
    yield client
    client.close()


def test_accounts_lie_on_all_nodes_and_one_question_finds_them_all(nodes: Nodes, redis_server: Any, tenant_id: str) -> None:
    """Cluster specification: a key's hash tag decides over its slot; the keys of one account stay together, accounts spread."""
    connections, accounts = Connections(redis_server), [f"acc_{number}" for number in range(60)]
    for number, account_id in enumerate(accounts):
        connections.put(tenant_id, account_id, Connection(f"c{number}=", "dev_1", 1, "online", number + 1))
    owners = {redis_server.get_node_from_key(keys.connections(tenant_id, account_id)).port for account_id in accounts}
    assert owners == set(nodes.cluster.ports)
    found = connections.of_accounts(tenant_id, accounts)
    assert [(found[account_id][0][0].connection_id, found[account_id][1]) for account_id in accounts] == [(f"c{n}=", n + 1) for n in range(60)]


def test_a_node_that_died_comes_back_to_its_slots_without_its_data(nodes: Nodes, redis_server: Any, tenant_id: str) -> None:
    """Ours: the stack starts it again on its port with its nodes.conf; the adapters refuse meanwhile with an error that may be tried again."""
    name, port = service_redis.CLUSTER_NODES[1], nodes.cluster.ports[1]
    connections = Connections(redis_server)
    account_id = next(
        a for a in (f"acc_{secrets.token_hex(4)}" for _ in range(1000)) if redis_server.get_node_from_key(keys.connections(tenant_id, a)).port == port
    )
    connections.put(tenant_id, account_id, Connection("c1=", "dev_1", 1, "online", 5))
    os.kill(nodes.supervisor.pids()[name], signal.SIGSTOP)
    with pytest.raises(Unavailable):
        connections.of_account(tenant_id, account_id)
    nodes.kill(name)
    assert _eventually(lambda: connections.of_account(tenant_id, account_id)) == []
    assert connections.put(tenant_id, account_id, Connection("c2=", "dev_1", 2, "online", 6))
    assert {node.port for node in redis_server.get_primaries()} == set(nodes.cluster.ports)


def _eventually(ask: Any, within_s: float = 5.0) -> Any:
    end_s = time.monotonic() + within_s
    while True:
        try:
            return ask()
        except Unavailable:
            if time.monotonic() > end_s:
                raise
            time.sleep(0.1)


def test_ports_of_the_last_run_are_taken_again_and_leave_room_for_the_bus() -> None:
    first = service_redis.choose_cluster_ports({})
    assert service_redis.choose_cluster_ports(first) == first
    assert max(first.values()) + 10_000 < 65_536
    moved = service_redis.choose_cluster_ports({**first, "redis-2": 60_000})
    assert moved["redis-1"] == first["redis-1"]
    assert moved["redis-2"] != 60_000


def test_the_cluster_is_on_loopback(nodes: Nodes) -> None:
    assert nodes.cluster.url == f"redis://{HOST}:{nodes.cluster.ports[0]}"
