"""The registry of relays: who is there, how full, and for which tenant an account's relay credentials were made.

A node's entry lives by a lease on the server's clock, which each beat renews: a node that is killed is gone with it. The tenant stands here because a
relay knows an account by its user name only (`expiry:account_id:device_id`), and should not have to read the ledger's accounts to learn more: account
ids are made by us and unique over all tenants, and whoever hands out credentials knows both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adapters import keys
from adapters.redis_client import translated
from heliograph.relays import RelayNode, parse_node

KEPT_S = 3600  # how long after the credentials' end a relay may still ask for their tenant


class Relays:
    def __init__(self, client: Any) -> None:
        self._redis = client

    def beat(self, node: RelayNode, lease_ms: int) -> None:
        """The node lives for so long from now on, and this is how it is. Raises Unavailable."""
        with translated():
            self._redis.eval(keys.BEAT_RELAY, 2, keys.RELAY_LEASES, keys.RELAY_NODES, node.node_id, node.serialize(), lease_ms)

    def remove(self, node_id: str) -> None:
        """The node is gone. Raises Unavailable."""
        with translated():
            self._redis.eval(keys.REMOVE_RELAY, 2, keys.RELAY_LEASES, keys.RELAY_NODES, node_id)

    def live(self) -> list[RelayNode]:
        """Every node whose lease holds, draining ones too. Raises Unavailable."""
        with translated():
            found = self._redis.eval(keys.LIVE_RELAYS, 2, keys.RELAY_LEASES, keys.RELAY_NODES)
        return [node for text in found if text and (node := parse_node(text)) is not None]

    def tell_tenant(self, account_id: str, tenant_id: str, credential_s: int) -> None:
        """Relay credentials that live so long were made for this account. Raises Unavailable."""
        with translated():
            self._redis.set(keys.relay_tenant(account_id), tenant_id, ex=credential_s + KEPT_S)

    def tenants(self, account_ids: Iterable[str]) -> dict[str, str]:
        """account_id -> tenant_id of those that are known. Raises Unavailable."""
        ids = list(account_ids)
        with translated(), self._redis.pipeline(transaction=False) as pipe:
            for account_id in ids:
                pipe.get(keys.relay_tenant(account_id))
            return {account_id: tenant_id for account_id, tenant_id in zip(ids, pipe.execute(), strict=True) if tenant_id}
