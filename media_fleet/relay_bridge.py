"""`media_fleet.relay.Relay` as a node asks for it (`media_fleet.node.Relayed`), by the relay's public face alone.

That face tells of ended allocations when it is asked, so this asks every second, or less often where there are many; it has no counters of refusals,
and of each direction only what is in its list. A relay that fills in a RelayReading itself, and calls back as an allocation ends, needs none of this.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from adapters.settings import now_ms
from media_fleet.log import log
from media_fleet.readings import NETWORK, AllocationUsage, RelayReading
from media_fleet.relay import Relay

POLL_S: Final = 1.0
READ_A_S: Final = 200  # allocations: a look at each costs about 15 microseconds of the relay's core
_NAMES: Final = ("username", "relayed_address", "from_client_bytes", "to_client_bytes", "from_client_packets", "to_client_packets", "started_at_ms")
_Sums = tuple[int, int, int, int]


class PolledRelay:
    """A started relay; `close` ends it."""

    def __init__(self, relay: Relay, urls: tuple[str, ...], hosts: tuple[str, ...], ended: Callable[[AllocationUsage], None] = lambda usage: None) -> None:
        self.urls, self.hosts = urls, hosts
        self._relay, self._ended, self._is_draining = relay, ended, False
        self._seen: set[tuple[str, int]] = set()  # ended ones that the relay still lists
        self._ended_sums: _Sums = (0, 0, 0, 0)
        self._sums: _Sums = (0, 0, 0, 0)
        self._polling = asyncio.create_task(self._poll())

    def reading(self) -> RelayReading:
        told, sums = self._relay.reading(), self._sums
        return RelayReading(
            allocations=int(told["Allocations"]),
            capacity=self._relay.config.max_allocations,
            is_draining=self._is_draining,
            from_client_bytes=sums[0],
            to_client_bytes=sums[1],
            from_client_packets=sums[2],
            to_client_packets=sums[3],
            dropped={NETWORK: int(told["DroppedDatagrams"])},
            cpu_s=time.process_time(),
        )

    def living(self) -> Iterator[AllocationUsage]:
        return iter([usage for usage in self._read() if usage.ended_at_ms is None])

    def allocations(self) -> list[dict[str, Any]]:
        return self._relay.allocations()

    async def drain(self) -> None:
        self._is_draining = True
        await self._relay.drain()

    async def close(self) -> None:
        self._polling.cancel()
        at_ms = now_ms()
        for usage in self._look():
            self._ended(replace(usage, read_at_ms=at_ms, ended_at_ms=at_ms))
        await self._relay.close()

    async def _poll(self) -> None:
        living = 0
        while True:
            await asyncio.sleep(max(POLL_S, living / READ_A_S))
            try:
                living = len(self._look())
            except Exception as error:  # the process edge: the next look may go better
                log("allocations_not_read", error=repr(error))

    def _look(self) -> list[AllocationUsage]:
        """Calls back for those that ended since the last look; returns the living ones."""
        found = self._read()
        over = [usage for usage in found if usage.ended_at_ms is not None]
        fresh, living = [usage for usage in over if usage.key not in self._seen], [usage for usage in found if usage.ended_at_ms is None]
        self._seen = {usage.key for usage in over}
        self._ended_sums = _sums(self._ended_sums, fresh)
        self._sums = _sums(self._ended_sums, living)
        for usage in fresh:
            self._ended(usage)
        return living

    def _read(self) -> list[AllocationUsage]:
        at_ms = now_ms()
        return [
            AllocationUsage(**{name: told[name] for name in _NAMES}, read_at_ms=told["ended_at_ms"] or at_ms, ended_at_ms=told["ended_at_ms"])
            for told in self._relay.allocations()
        ]


def _sums(before: _Sums, usages: Iterable[AllocationUsage]) -> _Sums:
    a, b, c, d = before
    for usage in usages:
        a, b, c, d = a + usage.from_client_bytes, b + usage.to_client_bytes, c + usage.from_client_packets, d + usage.to_client_packets
    return a, b, c, d
