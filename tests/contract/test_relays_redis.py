"""The registry of relays on a real Redis: leases on the server's clock, entries of other versions, tenants of relay credentials."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from adapters import keys, redis_client
from adapters.relays_redis import KEPT_S, Relays
from heliograph.errors import Unavailable
from heliograph.relays import RelayNode
from tests.running import wait_until


def node(name: str, allocations: int = 0) -> RelayNode:
    return RelayNode(name, ("turn:203.0.113.1:3478?transport=udp",), "up", allocations, 100, 1_900_000_000_000)


@pytest.fixture
def relays(redis_server: Any) -> Iterator[Relays]:
    """The one registry there is, empty before and after."""
    redis_server.delete(keys.RELAY_LEASES, keys.RELAY_NODES)
    yield Relays(redis_server)
    redis_server.delete(keys.RELAY_LEASES, keys.RELAY_NODES)


def test_the_registry_has_the_newest_beat_of_each_node(relays: Relays) -> None:
    assert relays.live() == []
    for each in (node("n1"), node("n2"), node("n1", 7)):
        relays.beat(each, 60_000)
    assert sorted(relays.live(), key=lambda each: each.node_id) == [node("n1", 7), node("n2")]


def test_a_node_that_leaves_is_gone_and_the_others_stay(relays: Relays) -> None:
    for each in (node("n1"), node("n2")):
        relays.beat(each, 60_000)
    relays.remove("n1")
    relays.remove("never there")
    assert relays.live() == [node("n2")]


def test_a_node_that_beats_no_more_is_gone_when_its_lease_ends(relays: Relays, redis_server: Any) -> None:
    relays.beat(node("lives"), 60_000)
    relays.beat(node("killed"), 300)
    assert len(relays.live()) == 2
    wait_until("the end of the lease", lambda: relays.live() == [node("lives")], 5)
    relays.beat(node("lives"), 60_000)
    assert redis_server.hkeys(keys.RELAY_NODES) == ["lives"]  # the next beat of anybody clears up


def test_the_registry_lives_no_longer_than_its_last_lease(relays: Relays, redis_server: Any) -> None:
    relays.beat(node("n1"), 60_000)
    relays.beat(node("n2"), 1_000)
    assert all(59_000 < redis_server.pttl(key) <= 61_000 for key in (keys.RELAY_LEASES, keys.RELAY_NODES))


def test_an_entry_that_nobody_understands_hides_no_other(relays: Relays, redis_server: Any) -> None:
    relays.beat(node("n1"), 60_000)
    relays.beat(node("n2"), 60_000)
    redis_server.hset(keys.RELAY_NODES, "n1", "nonsense")
    assert relays.live() == [node("n2")]
    redis_server.hdel(keys.RELAY_NODES, "n1")  # a lease without an entry
    assert relays.live() == [node("n2")]


def test_the_tenant_of_relay_credentials_is_known_for_longer_than_they_live(relays: Relays, redis_server: Any, tenant_id: str) -> None:
    account_id = f"acc_of_{tenant_id}"
    relays.tell_tenant(account_id, tenant_id, 60)
    assert relays.tenants([account_id, "acc_stranger"]) == {account_id: tenant_id}
    assert relays.tenants([]) == {}
    assert 60 < redis_server.ttl(keys.relay_tenant(account_id)) <= 60 + KEPT_S


def test_a_registry_that_is_away_is_unavailable() -> None:
    nobody = Relays(redis_client.connect("redis://127.0.0.1:1/0", "single"))
    begun_s = time.monotonic()
    for ask in (nobody.live, lambda: nobody.beat(node("n1"), 1_000), lambda: nobody.remove("n1"), lambda: nobody.tenants(["acc_1"])):
        with pytest.raises(Unavailable):
            ask()
    assert time.monotonic() - begun_s < 30
    redis_client.forget_failure()
