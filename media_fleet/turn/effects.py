"""What the server asks of its shell, and the two forms in which it does: effects for requests, a bare tuple for relayed datagrams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from media_fleet.stun import Address
from media_fleet.turn.allocation import FiveTuple, Relayed, RelayId, Usage

LISTENER: RelayId = 0  # the first part of a Forward to a client
SIBLING: RelayId = -1  # the first part of a Forward to a relayed address of another worker of this node
Forward = tuple[RelayId, bytes, Any]
"""(relay to send from, datagram, peer), (LISTENER, datagram, five-tuple of the client) or (SIBLING, datagram, (relay that it is for, relayed address
that it comes from)): a tuple, because it is made per packet."""


@dataclass(frozen=True, slots=True)
class SendToClient:
    """Send this from the listener of the five-tuple."""

    data: bytes
    five_tuple: FiveTuple


@dataclass(frozen=True, slots=True)
class SendToPeer:
    """Send this from the relay socket; `dont_fragment` asks for the DF bit (RFC 8656 s14)."""

    relay_id: RelayId
    data: bytes
    peer: Address
    dont_fragment: bool = False


@dataclass(frozen=True, slots=True)
class SendToSibling:
    """Hand this to the worker of this node that has the relay, as coming from the relayed address `sender`."""

    relay_id: RelayId
    data: bytes
    sender: Address


@dataclass(frozen=True, slots=True)
class OpenRelays:
    """Bind the sockets of the first choice that can be bound as a whole, then call `relays_opened`."""

    five_tuple: FiveTuple
    choices: tuple[tuple[RelayId, ...], ...]


@dataclass(frozen=True, slots=True)
class CloseRelay:
    """Close this relay socket."""

    relay_id: RelayId


@dataclass(frozen=True, slots=True)
class Ended:
    """The allocation is over; CloseRelay for each of its relays came before."""

    five_tuple: FiveTuple
    usage: Usage


@dataclass(frozen=True, slots=True)
class Install:
    """A relay is in use from now on. This effect and the three below tell a data path outside Python what it has to know to forward by itself."""

    relayed: Relayed
    five_tuple: FiveTuple
    account_id: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class Extend:
    """The allocation of this relay lives until then."""

    relay_id: RelayId
    expires_at: float


@dataclass(frozen=True, slots=True)
class Permit:
    """Datagrams from this IP address may pass to the client until then."""

    relay_id: RelayId
    host: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class Bind:
    """The channel stands for this peer until then.

    `is_own`: the peer is at a relayed address of this server, so it is reached inside. Where no allocation has that port, the datagram may leave by the
    socket only if `may_leave`: the operator allows that host as a peer, whoever has the port, and the port is not another worker's.
    """

    relay_id: RelayId
    number: int
    peer: Address
    is_own: bool
    may_leave: bool
    expires_at: float


Effect = SendToClient | SendToPeer | SendToSibling | OpenRelays | CloseRelay | Ended | Install | Extend | Permit | Bind
