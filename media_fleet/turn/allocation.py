"""One allocation (RFC 8656 s6): its relayed addresses, permissions, channels, lifetime and counters. Expiry is a comparison with `now`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from media_fleet.stun import Address
from media_fleet.turn.rates import TokenBucket

FiveTuple = tuple[Address, Address, str]  # client, server, transport: "udp", "tcp" or "tls"
RelayId = int  # the port of an IPv4 relayed address, 65,536 more for an IPv6 one: a number, because it is looked up per packet
PERMISSION_S = 300  # RFC 8656 s9: MUST be 300 seconds
CHANNEL_S = 600  # RFC 8656 s12: 10 minutes
_IPV6 = 1 << 16


def relay_id_of(address: Address) -> RelayId:
    """The id of a relayed address of this server."""
    return address[1] | _IPV6 if ":" in address[0] else address[1]


def port_of(relay_id: RelayId) -> int:
    return relay_id & 0xFFFF


def is_ipv6(relay_id: RelayId) -> bool:
    return relay_id >= _IPV6


class Counters(Protocol):
    """Payload bytes and datagrams that were relayed. A data path outside Python counts in memory of its own."""

    @property
    def from_client_bytes(self) -> int: ...

    @property
    def to_client_bytes(self) -> int: ...

    @property
    def from_client_packets(self) -> int: ...

    @property
    def to_client_packets(self) -> int: ...


@dataclass(slots=True)
class Traffic:
    """Counters of what Python relayed."""

    from_client_bytes: int = 0
    to_client_bytes: int = 0
    from_client_packets: int = 0
    to_client_packets: int = 0

    def add(self, other: Counters) -> None:
        self.from_client_bytes += other.from_client_bytes
        self.to_client_bytes += other.to_client_bytes
        self.from_client_packets += other.from_client_packets
        self.to_client_packets += other.to_client_packets


@dataclass(slots=True)
class Relayed:
    """A relayed address and its time-to-expiry; `counters` are those of the data path that forwards for it besides Python, if there is one."""

    relay_id: RelayId
    address: Address
    expires_at: float
    counters: Counters | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What an allocation carried: payload bytes and datagrams that were relayed. `ended_at_ms` is None while it lives."""

    allocation_id: str
    username: str
    account_id: str
    relayed_address: str  # the first one, if there are two
    client_address: str
    transport: str
    from_client_bytes: int
    to_client_bytes: int
    from_client_packets: int
    to_client_packets: int
    started_at_ms: int
    ended_at_ms: int | None


@dataclass(slots=True)
class Channel:
    """A channel binding (RFC 8656 s12)."""

    number: int
    peer: Address
    expires_at: float
    relayed: Relayed  # the relayed address of the peer's family
    is_own: bool  # the peer is at a relayed address of this server


@dataclass(slots=True)
class Allocation:
    """The state of one five-tuple. Mutable on purpose: the per-packet path counts here."""

    allocation_id: str
    five_tuple: FiveTuple
    relays: tuple[Relayed, ...]  # one, or an IPv4 and an IPv6 one; none when it has ended
    username: str
    account_id: str
    key: bytes
    transaction_id: bytes
    relayed_address: Address  # the first one, remembered
    reply: bytes  # the success response, sent again to a retransmission
    started_at: float
    bucket: TokenBucket | None  # bandwidth of the account; None: unlimited
    traffic: Traffic = field(default_factory=Traffic)
    permissions: dict[str, float] = field(default_factory=dict)  # peer IP -> expires at
    channels: dict[int, Channel] = field(default_factory=dict)
    channels_by_peer: dict[Address, Channel] = field(default_factory=dict)

    def relay_for(self, host: str) -> Relayed | None:
        """The relayed address of this peer's family, if there is one."""
        wanted = ":" in host
        return next((relayed for relayed in self.relays if is_ipv6(relayed.relay_id) == wanted), None)

    def is_permitted(self, host: str, now: float) -> bool:
        """Permissions are by IP address only (RFC 8656 s9)."""
        return self.permissions.get(host, 0.0) > now

    def may_bind(self, number: int, peer: Address) -> bool:
        """One channel per peer and one peer per channel (RFC 8656 s12.2); call `forget_expired` first."""
        by_number, by_peer = self.channels.get(number), self.channels_by_peer.get(peer)
        return by_number is by_peer if by_number and by_peer else by_number is None and by_peer is None

    def forget_expired(self, now: float) -> None:
        """Drops permissions and channels that are over, so that a long-lived allocation does not grow."""
        for host in [host for host, expires_at in self.permissions.items() if expires_at <= now]:
            del self.permissions[host]
        for channel in [channel for channel in self.channels.values() if channel.expires_at <= now]:
            del self.channels[channel.number], self.channels_by_peer[channel.peer]

    def forget_relay(self, gone: Relayed) -> None:
        """Drops a relayed address with its permissions and channels, and leaves those of the other family alone (RFC 8656 s8.1)."""
        self.relays = tuple(relayed for relayed in self.relays if relayed is not gone)
        for host in [host for host in self.permissions if (":" in host) == is_ipv6(gone.relay_id)]:
            del self.permissions[host]
        for channel in [channel for channel in self.channels.values() if channel.relayed is gone]:
            del self.channels[channel.number], self.channels_by_peer[channel.peer]
        if gone.counters is not None:
            self.traffic.add(gone.counters)

    def usage(self, ended_at: float | None = None) -> Usage:
        total = Traffic()
        for counters in (self.traffic, *(relayed.counters for relayed in self.relays)):
            if counters is not None:
                total.add(counters)
        return Usage(
            self.allocation_id,
            self.username,
            self.account_id,
            _text(self.relayed_address),
            _text(self.five_tuple[0]),
            self.five_tuple[2],
            total.from_client_bytes,
            total.to_client_bytes,
            total.from_client_packets,
            total.to_client_packets,
            int(self.started_at * 1000),
            None if ended_at is None else int(ended_at * 1000),
        )


def _text(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
