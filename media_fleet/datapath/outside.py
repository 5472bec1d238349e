"""The compiled data path behind the interface of paths.py: effects become its calls, its upcalls become the core's verbs.

What it hands up is judged, counted and charged by the core, so the account's bandwidth is one limit in C and one in Python: at most twice as much passes.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable

from media_fleet.datapath.compiled import CompiledPath, Library, icmp_of
from media_fleet.datapath.python import UDP, icmp_from
from media_fleet.stun import Address, Icmp
from media_fleet.turn import Bind, Extend, FiveTuple, Forward, Install, Permit, RelayId, TurnServer, is_ipv6

_DROPPED = "dropped_"


class OutsidePath:
    """`offset_s`: Unix time less the machine's clock, by which C compares."""

    name = "compiled"

    def __init__(
        self,
        library: Library,
        server: TurnServer,
        offset_s: float,
        now: Callable[[], float],
        send: Callable[[Forward], None],
        on_request: Callable[[bytes, FiveTuple], None],
        on_icmp: Callable[[Icmp, RelayId, Address], None],
    ) -> None:
        self._path = CompiledPath(library)
        self._server, self._offset_s, self._now = server, offset_s, now
        self._send, self._on_request, self._on_icmp = send, on_request, on_icmp
        self._listeners: dict[Address, int] = {}
        self._addresses: dict[int, Address] = {}
        self._accounts: dict[RelayId, str] = {}
        self._relays_of: Counter[str] = Counter()
        asyncio.get_running_loop().add_reader(self._path.fileno(), self._drain)

    def listen(self, listener: socket.socket, address: Address) -> None:
        listener_id = len(self._listeners)
        self._path.listen(listener_id, listener.fileno())
        self._listeners[address], self._addresses[listener_id] = listener_id, address

    def unlisten(self, address: Address) -> None:
        self._path.unlisten(self._listeners[address])

    def open(self, relay: socket.socket, install: Install) -> None:
        relayed, account_id = install.relayed, install.account_id
        settings = self._server.settings
        bucket = account_id if settings.account_bytes_per_s else None
        if bucket is not None and not self._relays_of[account_id]:
            self._path.bucket(bucket, settings.account_bytes_per_s, settings.account_bytes_per_s * settings.account_burst_s)
        client, here, _ = install.five_tuple
        until = install.expires_at - self._offset_s
        relayed.counters = self._path.open(relayed.relay_id, relay.fileno(), self._listeners[here], client, relayed.address, until, bucket)
        self._relays_of[account_id] += 1
        self._accounts[relayed.relay_id] = account_id

    def close(self, relay_id: RelayId) -> None:
        self._path.close(relay_id)
        account_id = self._accounts.pop(relay_id)
        self._relays_of[account_id] -= 1
        if not self._relays_of[account_id]:
            del self._relays_of[account_id]
            if self._server.settings.account_bytes_per_s:
                self._path.drop_bucket(account_id)

    def extend(self, effect: Extend) -> None:
        self._path.extend(effect.relay_id, effect.expires_at - self._offset_s)

    def permit(self, effect: Permit) -> None:
        self._path.permit(effect.relay_id, effect.host, effect.expires_at - self._offset_s)

    def bind(self, effect: Bind) -> None:
        self._path.bind(effect.relay_id, effect.number, effect.peer, effect.is_own, effect.expires_at - self._offset_s, effect.may_leave)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self._path.fileno())
        self._path.stop()

    def dropped(self) -> dict[str, int]:
        return {name.removeprefix(_DROPPED): count for name, count in self._path.stats().items() if name.startswith(_DROPPED)}

    def _drain(self) -> None:
        for upcall in self._path.drain():
            if upcall.kind == "client":
                self._on_request(upcall.data, (upcall.source, self._addresses[upcall.owner_id], UDP))
            elif upcall.kind == "icmp":
                type_, code, info = icmp_of(upcall.data)
                self._on_icmp(icmp_from(type_, code, info, is_ipv6(upcall.owner_id)), upcall.owner_id, upcall.source)
            else:
                forward = self._server.forward_from_peer(upcall.data, upcall.owner_id, upcall.source, self._now())
                if forward is not None:
                    self._send(forward)
