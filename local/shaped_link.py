"""A UDP link with a rate, a queue, a delay and loss, in user space: a proxy in front of one port on the loopback.

Each direction serialises datagrams at `rate_bps` behind a drop-tail queue of `queue_ms`; everything is changeable live. A relay-only call whose `turn:` URL
names the proxy has this one socket as its whole link. UDP only; headers of IP and UDP count, as they would on a wire.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

Address = tuple[str, int]
HEADER_BYTES = 28  # IPv4 and UDP


@dataclass(slots=True)
class Shape:
    """How the link behaves in both directions; change a field and the next datagram feels it."""

    rate_bps: float | None = None  # None = unlimited
    queue_ms: float = 300.0
    delay_ms: float = 0.0
    loss: float = 0.0  # 0 to 1


@dataclass(slots=True)
class Counters:
    """What one direction carried; bytes are payload and 28 bytes of header each."""

    datagrams: int = 0
    length_bytes: int = 0
    dropped: int = 0


@dataclass(slots=True)
class Direction:
    """One way of the link: when a datagram that comes now arrives, or None when it is lost."""

    shape: Shape
    chance: random.Random
    free_at_s: float = 0.0
    counters: Counters = field(default_factory=Counters)

    def admit(self, length_bytes: int, now_s: float) -> float | None:
        """The time of arrival for a datagram of this payload size; None when the queue is full or chance drops it."""
        size = length_bytes + HEADER_BYTES
        wait_s = max(0.0, self.free_at_s - now_s)
        if wait_s * 1_000 > self.shape.queue_ms or self.chance.random() < self.shape.loss:
            self.counters.dropped += 1
            return None
        serialised_s = size * 8 / self.shape.rate_bps if self.shape.rate_bps else 0.0
        self.free_at_s = now_s + (wait_s if self.shape.rate_bps else 0.0) + serialised_s
        self.counters.datagrams += 1
        self.counters.length_bytes += size
        return self.free_at_s + self.shape.delay_ms / 1_000


class ShapedLink:
    """The proxy: clients talk to `address`, the service sits at `target`; one upstream socket per client keeps five-tuples apart."""

    def __init__(self, target: Address, shape: Shape | None = None, *, seed: int = 1) -> None:
        """A link to `target`, unimpaired unless `shape` says otherwise."""
        chance = random.Random(seed)  # noqa: S311 - repeatable loss, not a secret
        self.target = target
        self.shape = shape or Shape()
        self.up = Direction(self.shape, chance)
        self.down = Direction(self.shape, chance)
        self.address: Address = ("", 0)
        self._front: asyncio.DatagramTransport | None = None
        self._upstreams: dict[Address, asyncio.DatagramTransport] = {}
        self._opening: dict[Address, list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ShapedLink:
        """Listen on a free loopback port."""
        loop = asyncio.get_running_loop()
        self._front, _ = await loop.create_datagram_endpoint(lambda: _Front(self), local_addr=("127.0.0.1", 0))
        self.address = self._front.get_extra_info("sockname")[:2]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close every socket."""
        for transport in (self._front, *self._upstreams.values()):
            if transport is not None:
                transport.close()

    def received_from_client(self, data: bytes, client: Address) -> None:
        """A datagram of a client: shape it, then send it on; the first one of a client opens its upstream socket."""
        upstream = self._upstreams.get(client)
        if upstream is not None:
            self._carry(self.up, data, upstream, None)
        elif client in self._opening:
            self._opening[client].append(data)
        else:
            self._opening[client] = [data]
            task = asyncio.get_running_loop().create_task(self._open(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _open(self, client: Address) -> None:
        upstream, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: _Upstream(self, client), remote_addr=self.target)
        self._upstreams[client] = upstream
        for data in self._opening.pop(client):
            self._carry(self.up, data, upstream, None)

    def received_from_service(self, data: bytes, client: Address) -> None:
        """A datagram of the service for this client."""
        if self._front is not None:
            self._carry(self.down, data, self._front, client)

    def _carry(self, direction: Direction, data: bytes, transport: asyncio.DatagramTransport, address: Address | None) -> None:
        loop = asyncio.get_running_loop()
        arrives_at_s = direction.admit(len(data), loop.time())
        if arrives_at_s is not None:
            loop.call_at(arrives_at_s, _send, transport, data, address)


def _send(transport: asyncio.DatagramTransport, data: bytes, address: Address | None) -> None:
    if not transport.is_closing():
        transport.sendto(data, address)


class _Front(asyncio.DatagramProtocol):
    def __init__(self, link: ShapedLink) -> None:
        self._link = link

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._link.received_from_client(data, (addr[0], addr[1]))


class _Upstream(asyncio.DatagramProtocol):
    def __init__(self, link: ShapedLink, client: Address) -> None:
        self._link, self._client = link, client

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._link.received_from_service(data, self._client)
