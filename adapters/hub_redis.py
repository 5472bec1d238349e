"""The way to the event hub: leases, and one Pub/Sub channel per hub.

A lease says that a hub proved, end to end, that it hears its own channel; it ends by the server's clock. PUBLISH's count is per node in a cluster
and says nothing there; on a single server, nobody is nobody. Pub/Sub loses what is published while a hub dies: durable events stay
recoverable by the position that clients send with `ping`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from adapters import keys
from adapters.redis_client import translated
from heliograph.errors import Unavailable
from heliograph.fanout import Job, hub_of

CACHED_S = 1.0  # how long a process believes what it read of the leases
SHARDED, PLAIN = "s-", "p-"  # a hub's name begins with the kind of its channel


class Hubs:
    def __init__(self, client: Any, *, is_cluster: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis, self._is_cluster, self._clock = client, is_cluster, clock
        self._live: tuple[str, ...] = ()
        self._read_again_s = float("-inf")

    def live(self) -> tuple[str, ...]:
        """The hubs that hold a lease, read at most once in CACHED_S; none while Redis is out of reach."""
        if self._clock() >= self._read_again_s:
            try:
                with translated():
                    self._live = tuple(self._redis.eval(keys.LIVE_HUBS, 1, keys.HUB_LEASES))
            except Unavailable:
                self._live = ()
            self._read_again_s = self._clock() + CACHED_S
        return self._live

    def hand_over(self, job: Job) -> bool:
        """Gives the job to the hub of its place; False when none took it. False after a time-out may deliver twice; clients drop the repeat."""
        hub = hub_of(job.place, self.live())
        if hub is None:
            return False
        try:
            if self.publish(hub, job.serialize()):
                return True
            self._live = tuple(each for each in self._live if each != hub)
        except Unavailable:
            self._live = ()
        return False

    def publish(self, hub: str, message: bytes) -> bool:
        """Puts a message on the hub's channel; False when certainly nobody heard it. Raises Unavailable."""
        with translated():
            send = self._redis.spublish if hub.startswith(SHARDED) else self._redis.publish
            return bool(send(keys.hub_jobs(hub), message)) or self._is_cluster

    def renew(self, hub: str, lease_ms: int) -> None:
        """The hub lives for so long from now on. Raises Unavailable."""
        with translated():
            self._redis.eval(keys.RENEW_LEASE, 1, keys.HUB_LEASES, hub, lease_ms)

    def give_up(self, hub: str) -> None:
        """The hub takes no new jobs. Raises Unavailable."""
        with translated():
            self._redis.zrem(keys.HUB_LEASES, hub)
