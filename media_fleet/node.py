"""A node of the fleet: a relay, and around it the hub, the registry, usage, health and meters; and the order in which all of it ends.

On SIGTERM: no new allocations, the registry says draining, clients are told to move, the hub posts its backlog, living allocations end by themselves or
at the limit, what they carried is written, and the entry in the registry goes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol

from adapters.settings import now_ms
from heliograph.errors import Unavailable
from heliograph.ice import parse_turn_username
from media_fleet import hub as hubs
from media_fleet import moving
from media_fleet.hub import Hub, HubConfig
from media_fleet.log import log
from media_fleet.meters import Meter, Reading, of_relay, of_usage, publish, tell
from media_fleet.prometheus import Readings, metrics
from media_fleet.readings import AllocationUsage, RelayReading
from media_fleet.registry import BEAT_S, Registry
from media_fleet.session_store import SessionStore, Tenants
from media_fleet.stats import Answer, serve_stats
from media_fleet.stun import Address
from media_fleet.usage import Usage

TELL_S: Final = 10.0  # how long clients are told to move, however many there are
FINISH_S: Final = 8.0  # how long the last usage may take
_CHUNK: Final = 50  # allocations that are read before packets get their turn: under a millisecond


class Relayed(Protocol):
    """What a node asks of its relay, which calls back with an AllocationUsage as each allocation ends."""

    hosts: tuple[str, ...]  # the addresses that its relayed addresses have

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients reach it."""

    def reading(self) -> RelayReading: ...

    async def look(self) -> None:
        """Brings what `reading`, `living` and `allocations` tell up to now, where that is not so anyway."""

    def living(self) -> Iterable[AllocationUsage]:
        """Each living allocation. Read over several turns of the loop: it goes over a copy, makes a record when it is asked for one, and skips what ended."""

    def allocations(self) -> list[dict[str, Any]]:
        """For a person, as JSON."""

    async def drain(self) -> None:
        """Refuses new allocations from its first step on; returns when the living ones have ended, or at the limit."""

    async def close(self) -> None:
        """Ends the allocations that are left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Everything a node is told beside its relay's and its hub's own settings."""

    node_id: str
    stage: str = ""
    stats_listen: Address | None = None  # HTTP endpoint: /healthz, /readyz, /metrics, /allocations
    meters_s: float = 0.0  # 0 for never
    usage_s: float = 60.0
    drain_s: float = 0.0  # the relay's own limit, as clients are told it
    beat_s: float = BEAT_S


class Node:
    """`hub` and `store` come together, `usage` needs both."""

    def __init__(
        self,
        config: NodeConfig,
        relay: Relayed,
        *,
        hub: HubConfig | None = None,
        store: SessionStore | None = None,
        tenants: Tenants | None = None,
        usage: Usage | None = None,
    ) -> None:
        self.config, self.stats_address = config, None if config.stats_listen is None else config.stats_listen
        self._relay, self._hub_config, self._store, self._tenants, self._usage = relay, hub, store, tenants, usage
        self._registry = Registry(store, config.node_id, relay.urls, relay.reading, beat_s=config.beat_s) if store else None
        self._meter = Meter(config.stage, config.node_id) if config.meters_s else None
        self._hub: Hub | None = None
        self._stats: asyncio.Server | None = None

    async def run(self, stopped: asyncio.Event) -> None:
        """Until the event is set, and the drain after it."""
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._serve()
            tasks += [asyncio.create_task(work) for work in self._background()]
            if self._hub_config is None:
                await stopped.wait()
                await self._drain()
            else:
                await self._with_hub(self._hub_config, stopped)
        finally:
            await _ended(*tasks)
            await self._end()

    def _background(self) -> Iterable[Any]:
        if self._registry:
            yield self._registry.run()
        if self._usage:
            yield self._usage.run()
        if self._meter:
            yield publish(self._meter, self._reading, self.config.meters_s)
        yield self._sweep()

    async def _with_hub(self, config: HubConfig, stopped: asyncio.Event) -> None:
        """The hub goes on until clients were told to move: it posts that."""
        hub_stopped = asyncio.Event()
        hubbing = asyncio.create_task(hubs.until(config, hub_stopped, self._hub_begun))
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait([hubbing, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stopped.is_set():
            await self._drain(hub_stopped)
        await hubbing

    def _hub_begun(self, hub: Hub) -> None:
        self._hub = hub

    # The end

    async def _drain(self, told: asyncio.Event | None = None) -> None:
        """`told` is set when clients were told to move."""
        ends_at_ms = now_ms() + int(self.config.drain_s * 1000)
        draining = asyncio.create_task(self._relay.drain())
        await asyncio.sleep(0)  # from here on it refuses new allocations
        try:
            if self._registry:
                await self._registry.drain()
            await self._tell_to_move(ends_at_ms)
        except Exception as error:  # the process edge: calls that live must not end with what failed here
            log("relay_draining_not_told", error=repr(error))
        finally:
            if told:
                told.set()
        await draining

    async def _tell_to_move(self, ends_at_ms: int) -> None:
        accounts = await self._look_at_allocations()
        if self._hub and self._store and self._tenants and accounts and self.config.drain_s:
            event = moving.draining_event(self._relay.hosts, ends_at_ms)
            await moving.tell(accounts, event, self._store, self._tenants, self._hub.add, within_s=min(TELL_S, self.config.drain_s))

    async def _end(self) -> None:
        await self._relay.close()
        if self._registry:
            await self._registry.leave()
        if self._usage:
            await self._usage.finish(FINISH_S)
            if self._meter:
                tell(self._meter, of_usage(self._usage.reading()))  # what was only logged must ring
        if self._store:
            await self._store.close()
        if self._stats:
            self._stats.close()
            await self._stats.wait_closed()

    # Allocations

    async def _sweep(self) -> None:
        """Snapshots for the ledger, and the tenants of new accounts while the session store remembers them."""
        while True:
            await asyncio.sleep(self.config.usage_s)
            try:
                accounts = await self._look_at_allocations()
                if self._tenants:
                    await self._tenants.of(accounts)
            except Unavailable:
                pass  # the next look may find it back
            except Exception as error:  # the process edge: the next look may go better
                log("allocations_not_read", error=repr(error))

    async def _look_at_allocations(self) -> set[str]:
        """Notes what each carried; returns their accounts."""
        accounts: set[str] = set()
        await self._relay.look()
        for number, usage in enumerate(self._relay.living(), 1):
            if self._usage:
                self._usage.snapshot(usage)
            with suppress(ValueError):
                accounts.add(parse_turn_username(usage.username).account_id)
            if number % _CHUNK == 0:
                await asyncio.sleep(0)
        return accounts

    # Health and meters

    async def _serve(self) -> None:
        """OSError when the address is taken."""
        if self.config.stats_listen is None:
            return
        routes: dict[str, Callable[[], Answer]] = {
            "/healthz": self._health,
            "/readyz": self._readiness,
            "/metrics": self._metrics,
            "/allocations": lambda: (HTTPStatus.OK, self._relay.allocations()),
        }
        try:
            self._stats = await serve_stats(*self.config.stats_listen, routes)
        except OSError as error:
            host, port = self.config.stats_listen
            raise SystemExit(f"The node cannot listen on tcp {host}:{port}: {error.strerror or error}.") from None
        self.stats_address = self._stats.sockets[0].getsockname()[:2]

    def _health(self) -> Answer:
        """200 while it drains too: whoever replaced it then would cut the calls that it lets end."""
        reading = self._relay.reading()
        return HTTPStatus.OK, {"status": "draining" if reading.is_draining else "ok", "allocations": reading.allocations}

    def _readiness(self) -> Answer:
        """Whether it takes new allocations."""
        reading = self._relay.reading()
        status = "draining" if reading.is_draining else "full" if reading.is_full else "ready"
        return (HTTPStatus.OK if status == "ready" else HTTPStatus.SERVICE_UNAVAILABLE), {"status": status, "allocations": reading.allocations}

    def _metrics(self) -> Answer:
        return metrics(Readings(self._relay.reading(), self._hub.reading() if self._hub else None, self._usage.reading() if self._usage else None))

    def _reading(self) -> Reading:
        """What CloudWatch is told."""
        reading = dict(of_relay(self._relay.reading()))
        if self._usage:
            reading |= of_usage(self._usage.reading())
        return reading | (self._hub.reading() if self._hub else {})


async def _ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
