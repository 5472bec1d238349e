"""A node's entry in the registry of relays: a beat every two seconds, draining told at once, removed at a clean end.

A node that is killed is gone after three beats. A registry that is out of reach costs nothing: clients are told the configured relays meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from adapters.settings import now_ms
from heliograph.errors import Unavailable
from heliograph.relays import RelayNode
from media_fleet.log import log
from media_fleet.readings import RelayReading
from media_fleet.session_store import SessionStore

BEAT_S: Final = 2.0
LEASE_BEATS: Final = 3


class Registry:
    def __init__(self, store: SessionStore, node_id: str, urls: tuple[str, ...], read: Callable[[], RelayReading], *, beat_s: float = BEAT_S) -> None:
        self._store, self._node_id, self._urls, self._read, self._beat_s = store, node_id, urls, read, beat_s
        self._is_draining = self._is_listed = False

    async def run(self) -> None:
        """Beats until it is cancelled."""
        while True:
            await self._beat()
            await asyncio.sleep(self._beat_s)

    async def drain(self) -> None:
        """From now on no client is told of this node; says so at once, where the registry is in reach."""
        self._is_draining = True
        await self._beat()

    async def leave(self) -> None:
        """The node is gone; call it after `run` was cancelled. Without the registry its lease ends by itself."""
        with suppress(Unavailable):
            await self._store.ask(lambda adapters: adapters.relays.remove(self._node_id))

    async def _beat(self) -> None:
        lease_ms = int(LEASE_BEATS * self._beat_s * 1000)
        try:
            node = self._entry()
            await self._store.ask(lambda adapters: adapters.relays.beat(node, lease_ms))
        except Exception as error:  # the process edge: whatever Redis answers, the next beat may go better
            if self._is_listed:
                log("relay_not_registered", node_id=self._node_id, error=repr(error))
            self._is_listed = False
            return
        if not self._is_listed:
            log("relay_registered", node_id=self._node_id, urls=self._urls)
        self._is_listed = True

    def _entry(self) -> RelayNode:
        reading = self._read()
        is_draining = self._is_draining or reading.is_draining
        return RelayNode(self._node_id, self._urls, "draining" if is_draining else "up", reading.allocations, reading.capacity, now_ms())
