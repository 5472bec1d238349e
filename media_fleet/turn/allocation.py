"""One allocation (RFC 8656 s3.2): its relayed address, permissions, channels, lifetime and counters. Expiry is a comparison with `now`."""

from __future__ import annotations

from dataclasses import dataclass, field

from media_fleet.stun import Address

FiveTuple = tuple[Address, Address, str]  # client, server, transport
PERMISSION_S = 300  # RFC 8656 s9: MUST be 300 seconds
CHANNEL_S = 600  # RFC 8656 s12: 10 minutes


@dataclass(frozen=True, slots=True)
class Usage:
    """What an allocation carried: payload bytes and datagrams that were relayed. `ended_at_ms` is None while it lives."""

    username: str
    account_id: str
    relayed_address: str
    client_address: str
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
    is_own: bool  # the peer is a relayed address of this server


@dataclass(slots=True)
class Allocation:
    """The state of one five-tuple. Mutable on purpose: the per-packet path counts here."""

    five_tuple: FiveTuple
    relayed: Address
    family: int
    username: str
    account_id: str
    key: bytes
    transaction_id: bytes
    reply: bytes  # the success response, sent again to a retransmission
    started_at: float
    expires_at: float
    permissions: dict[str, float] = field(default_factory=dict)  # peer IP -> expires at
    channels: dict[int, Channel] = field(default_factory=dict)
    channels_by_peer: dict[Address, Channel] = field(default_factory=dict)
    from_client_bytes: int = 0
    to_client_bytes: int = 0
    from_client_packets: int = 0
    to_client_packets: int = 0

    def is_permitted(self, host: str, now: float) -> bool:
        """Permissions are by IP address only (RFC 8656 s9)."""
        return self.permissions.get(host, 0.0) > now

    def permit(self, host: str, now: float) -> None:
        self.permissions[host] = now + PERMISSION_S

    def bind(self, number: int, peer: Address, is_own: bool, now: float) -> None:
        """Installs or refreshes the binding, and the permission with it (RFC 8656 s12.2)."""
        channel = Channel(number, peer, now + CHANNEL_S, is_own)
        self.channels[number] = self.channels_by_peer[peer] = channel
        self.permit(peer[0], now)

    def may_bind(self, number: int, peer: Address) -> bool:
        """One channel per peer and one peer per channel (RFC 8656 s12.2); call `forget_expired` first."""
        by_number, by_peer = self.channels.get(number), self.channels_by_peer.get(peer)
        return by_number is by_peer if by_number and by_peer else by_number is None and by_peer is None

    def forget_expired(self, now: float) -> None:
        """Drops permissions and channels that are over, so that a long-lived allocation does not grow."""
        self.permissions = {host: expires_at for host, expires_at in self.permissions.items() if expires_at > now}
        for channel in [channel for channel in self.channels.values() if channel.expires_at <= now]:
            del self.channels[channel.number], self.channels_by_peer[channel.peer]

    def usage(self, ended_at: float | None = None) -> Usage:
        return Usage(
            self.username,
            self.account_id,
            _text(self.relayed),
            _text(self.five_tuple[0]),
            self.from_client_bytes,
            self.to_client_bytes,
            self.from_client_packets,
            self.to_client_packets,
            int(self.started_at * 1000),
            None if ended_at is None else int(ended_at * 1000),
        )


def _text(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
