"""Tells the clients of a draining relay to move: one event to every socket of each account that has an allocation here, by the node's own hub.

Paced, because whoever is told begins anew on another relay at once. A client that is not told notices when its path is gone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from adapters.settings import now_ms
from heliograph.errors import Unavailable
from heliograph.fanout import Batch, Job, Scope, job_of
from heliograph.messages import Event
from media_fleet.log import log
from media_fleet.session_store import SessionStore, Tenants

TOLD_PER_S: Final = 1_600  # accounts: a full relay is told of in five seconds
STEP_S: Final = 0.1


def draining_event(hosts: Sequence[str], ends_at_ms: int) -> Event:
    """`hosts` are the addresses that relayed addresses of this node have; at `ends_at_ms` the allocations that are left end."""
    return Event("relay_draining", now_ms(), os.urandom(16).hex(), {"relay_hosts": list(hosts), "ends_at_ms": ends_at_ms})


async def tell(
    account_ids: Iterable[str],
    event: Event,
    store: SessionStore,
    tenants: Tenants,
    post: Callable[[Job], None],
    *,
    within_s: float,
    per_s: float = TOLD_PER_S,
) -> int:
    """Gives `post` the jobs, `per_s` accounts a second; returns how many accounts were told. Ends after `within_s`, whoever is left."""
    waiting, told, loop = list(dict.fromkeys(account_ids)), 0, asyncio.get_running_loop()
    accounts, begun_s, step = len(waiting), loop.time(), max(1, int(per_s * STEP_S))
    while waiting and loop.time() - begun_s < within_s:
        step_ends_s = loop.time() + STEP_S
        try:
            for job in await _jobs(waiting[:step], event, store, tenants):
                post(job)
                told += 1
            del waiting[:step]
        except Unavailable:
            step_ends_s += 5 * STEP_S
        await asyncio.sleep(max(0.0, step_ends_s - loop.time()) if waiting else 0)
    log("relay_draining_told", accounts=accounts, told=told, left=len(waiting), trace_id=event.trace_id)
    return told


async def _jobs(account_ids: Sequence[str], event: Event, store: SessionStore, tenants: Tenants) -> list[Job]:
    """A job for each of these accounts whose tenant is known and that has a socket. Raises Unavailable."""
    by_tenant: dict[str, list[str]] = {}
    for account_id, tenant_id in (await tenants.of(account_ids)).items():
        by_tenant.setdefault(tenant_id, []).append(account_id)
    jobs = []
    for tenant_id, theirs in by_tenant.items():
        found = await store.ask(lambda adapters, tenant_id=tenant_id, theirs=theirs: adapters.connections.of_accounts(tenant_id, theirs))  # type: ignore[misc]
        for account_id, (connections, _) in found.items():
            if connections:
                batch = Batch(event, tuple(connection.connection_id for connection in connections))
                jobs.append(job_of(Scope(tenant_id, account_id=account_id), batch))
    return jobs
