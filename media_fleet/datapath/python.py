"""The data path in Python, on the event loop: each readable socket is read in batches, the core judges each datagram, no object is made per packet.

It needs no effects: the core's own tables are what it forwards by. A turn of the loop for each datagram costs as much as its forwarding: where datagrams come
so fast that a pause will collect several, the loop takes it after a turn. At a low rate nobody waits; at a high one there is no time for it, and turns are full
by themselves.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable

from media_fleet.stun import Address, Icmp
from media_fleet.turn import Bind, Extend, FiveTuple, Forward, Install, Permit, RelayId, TurnServer, is_ipv6

UDP = "udp"
LARGEST = 65_535
PAUSE_S = 0.0005
_WORTH, _TOO_MANY = 4, 12  # datagrams that a pause collects
_BATCH = 64  # datagrams read from one socket before others get their turn
# linux/errqueue.h, linux/in.h and linux/in6.h, which Python's socket does not name
RECVERR, RECVERR6, _ERRQUEUE = 11, 25, 0x2000
_EXTENDED_ERROR = struct.Struct("=IBBBxII")  # errno, origin, type, code, info, data
_ICMP_ORIGINS = (2, 3)


class PythonPath:
    """`on_request` gets what clients send besides ChannelData, `on_icmp` what answers a datagram that went to a peer; `send` performs a Forward."""

    name = "python"

    def __init__(
        self,
        server: TurnServer,
        now: Callable[[], float],
        send: Callable[[Forward], None],
        on_request: Callable[[bytes, FiveTuple], None],
        on_icmp: Callable[[Icmp, RelayId, Address], None],
    ) -> None:
        self._server, self._now, self._send, self._on_request, self._on_icmp = server, now, send, on_request, on_icmp
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[Address, socket.socket] = {}
        self._relays: dict[RelayId, socket.socket] = {}
        self._received = 0  # in this turn of the loop
        self._turn_at = time.monotonic()  # when the turn before it ended
        self._most = 1  # datagrams read from a listener at a time: to ask one that is empty costs as much as to be told when it is not

    def listen(self, listener: socket.socket, address: Address) -> None:
        self._listeners[address] = listener
        self._loop.add_reader(listener.fileno(), self._read_clients, listener, address, listener.family == socket.AF_INET6)

    def unlisten(self, address: Address) -> None:
        self._loop.remove_reader(self._listeners.pop(address).fileno())

    def open(self, relay: socket.socket, install: Install) -> None:
        relay_id = install.relayed.relay_id
        self._relays[relay_id] = relay
        self._watch(relay_id, relay)

    def _watch(self, relay_id: RelayId, relay: socket.socket) -> None:
        self._loop.add_reader(relay.fileno(), self._read_peers, relay_id, relay, is_ipv6(relay_id))

    def close(self, relay_id: RelayId) -> None:
        self._loop.remove_reader(self._relays.pop(relay_id).fileno())

    def extend(self, effect: Extend) -> None: ...

    def permit(self, effect: Permit) -> None: ...

    def bind(self, effect: Bind) -> None: ...

    def stop(self) -> None: ...

    def dropped(self) -> dict[str, int]:
        return {"over_rate": self._server.counts.over_rate}

    # These run for each relayed datagram, and for each turn.

    def _read_clients(self, listener: socket.socket, here: Address, is_v6: bool) -> None:
        receive, forward, send, now, most = listener.recvfrom, self._server.forward, self._send, self._now(), self._most
        if not self._received:
            self._loop.call_soon(self._end_turn)
        for number in range(most):
            try:
                data, client = receive(LARGEST)
            except OSError:  # nothing more to read
                self._received += number or 1
                self._most = number or 1
                return
            if is_v6:
                client = client[:2]
            if data and 0x40 <= data[0] <= 0x7F:
                forwarded = forward(data, (client, here, UDP), now)
                if forwarded is not None:
                    send(forwarded)
            else:
                self._on_request(data, (client, here, UDP))
        self._received += most
        self._most = min(2 * most, _BATCH)

    def _read_peers(self, relay_id: RelayId, relay: socket.socket, is_v6: bool) -> None:
        if not self._received:
            self._loop.call_soon(self._end_turn)
        self._received += 1
        try:
            data, peer = relay.recvfrom(LARGEST)
        except OSError:  # nothing to read, so it is the queue of errors that made the socket readable
            self.read_errors(relay_id)
            return
        forwarded = self._server.forward_from_peer(data, relay_id, peer[:2] if is_v6 else peer, self._now())
        if forwarded is not None:
            self._send(forwarded)

    def _end_turn(self) -> None:
        """Waits for more where it is worth it."""
        now = time.monotonic()
        elapsed_s, collects_s = now - self._turn_at, self._received * PAUSE_S
        self._received, self._turn_at = 0, now
        if _WORTH * elapsed_s <= collects_s <= _TOO_MANY * elapsed_s:
            time.sleep(PAUSE_S)

    def read_errors(self, relay_id: RelayId) -> None:
        """ICMP that came back (RFC 8656 s11.5): the queue of errors of the socket, ip(7) IP_RECVERR. To be called too when a send fails, which may be all
        that tells of it. libuv reads no more from a socket that had an error, so the socket is watched anew."""
        relay = self._relays.get(relay_id)
        if relay is None:
            return
        self._loop.remove_reader(relay.fileno())
        self._watch(relay_id, relay)
        for _ in range(_BATCH):
            try:
                _, ancillary, _, peer = relay.recvmsg(0, 256, _ERRQUEUE)
            except OSError:
                return
            for _, kind, value in ancillary:
                if kind in (RECVERR, RECVERR6) and len(value) >= _EXTENDED_ERROR.size:
                    _, origin, type_, code, info, _ = _EXTENDED_ERROR.unpack_from(value)
                    if origin in _ICMP_ORIGINS and peer:
                        self._on_icmp(icmp_from(type_, code, info, is_ipv6(relay_id)), relay_id, peer[:2])


def icmp_from(type_: int, code: int, info: int, is_v6: bool) -> Icmp:
    """RFC 8656 s18.13: the data are an MTU where something was too big, else zero."""
    is_mtu = type_ == 2 if is_v6 else (type_, code) == (3, 4)
    return Icmp(type_, code, info if is_mtu else 0)
