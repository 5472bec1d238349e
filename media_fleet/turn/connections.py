"""The table of client connections (TCP, TLS): who may connect, and until when each may go on as it is. It knows no socket and no clock.

A connection stands in one slot of a wheel of quarter seconds. A deadline that moves away leaves it there, and is found out when the slot comes up: a
message costs an assignment, not a timer.
"""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from media_fleet.turn.allocation import FiveTuple
from media_fleet.turn.framing import LARGEST_MESSAGE

SLOT_S = 0.25


class Closed(StrEnum):
    """Why a connection ended."""

    CLIENT = "client"  # it said goodbye
    NETWORK = "network"  # it was reset, or did not answer
    SERVER = "server"  # we are closing
    HANDSHAKE = "handshake"  # no TLS within `handshake_s`
    FIRST_MESSAGE = "first_message"  # no message within `first_message_s`
    PARTIAL = "partial"  # an incomplete message for `partial_s`
    IDLE = "idle"  # no allocation and no message for `idle_s`
    STALLED = "stalled"  # it reads nothing for `stalled_s`
    MALFORMED = "malformed"  # neither STUN nor ChannelData, or too large
    TLS = "tls"  # the handshake failed, or a record does not verify
    REPLACED = "replaced"  # the same five-tuple connected again
    INTERNAL = "internal"  # our own mistake


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """What client connections may take. All of it is per process; the counts are over all listeners together."""

    max_connections: int = 8_000
    max_connections_per_source: int = 64  # a source is an IPv4 address or an IPv6 /64
    max_write_buffer_bytes: int = 262_144  # waiting for a client that reads too slowly; datagrams beyond it are dropped, as UDP would
    kernel_buffer_bytes: int = 262_144  # each way; it bounds what one client can give us to do at a time, and its rate (20 Mbit/s at 100 ms)
    largest_message_bytes: int = LARGEST_MESSAGE  # with an allocation: all that fits a UDP datagram, so that no transport carries less than another
    largest_unproven_message_bytes: int = 4_096  # before: a request with the longest user name, realm and nonce has under 3,000
    handshake_s: float = 10.0
    first_message_s: float = 10.0
    partial_s: float = 10.0
    idle_s: float = 60.0
    stalled_s: float = 30.0


@dataclass(slots=True, eq=False)
class Connection:
    """What the table knows of a connection. Mutable on purpose: every message counts here."""

    five_tuple: FiveTuple
    source: str
    opened_at: float  # accepted, or TLS established
    is_open: bool  # False while TLS is not established
    is_greeted: bool = False  # its first message came
    is_kept: bool = False  # it has an allocation
    heard_at: float = 0.0
    partial_at: float | None = None  # since when its message is incomplete
    full_at: float | None = None  # since when its write buffer takes nothing
    slot: int | None = None  # where it stands in the wheel


class Connections:
    """`admit` and `remove` count; between them each event is told with its time, and `tick` says who is late."""

    def __init__(self, limits: StreamLimits) -> None:
        self.limits = limits
        self.accepted = 0
        self.refused: Counter[str] = Counter()  # by reason: `connections` or `source`
        self.closed: Counter[str] = Counter()  # by Closed
        self._live = 0
        self._per_source: Counter[str] = Counter()
        self._wheel: dict[int, set[Connection]] = {}
        self._next: int | None = None  # no slot before this one is taken

    def __len__(self) -> int:
        return self._live

    def admit(self, five_tuple: FiveTuple, now: float, *, is_open: bool) -> Connection | None:
        """The new connection, or None when there are too many, of all or of its source; of a refused one nothing is kept but the count."""
        source = source_of(five_tuple[0][0])
        if self._live >= self.limits.max_connections:
            self.refused["connections"] += 1
            return None
        if self._per_source[source] >= self.limits.max_connections_per_source:
            self.refused["source"] += 1
            return None
        self.accepted += 1
        self._live += 1
        self._per_source[source] += 1
        connection = Connection(five_tuple, source, now, is_open)
        self._file(connection)
        return connection

    def remove(self, connection: Connection, reason: Closed) -> None:
        """It is gone."""
        self._take_out(connection)
        self._live -= 1
        self._per_source[connection.source] -= 1
        if not self._per_source[connection.source]:
            del self._per_source[connection.source]
        self.closed[reason.value] += 1

    def opened(self, connection: Connection, now: float) -> None:
        """TLS is established."""
        connection.is_open, connection.opened_at = True, now
        self._file(connection)

    def received(self, connection: Connection, now: float, *, has_message: bool, has_partial: bool) -> None:
        """Bytes came: whether they completed a message, and whether they left one incomplete."""
        is_sooner = has_message and not connection.is_greeted  # where `idle_s` is shorter than `first_message_s`
        if has_message:
            connection.is_greeted = True
            connection.heard_at = now
            connection.partial_at = None
        if has_partial and connection.partial_at is None:
            connection.partial_at = now
            is_sooner = True
        if is_sooner:
            self._file(connection)

    def keep(self, connection: Connection, is_kept: bool, now: float) -> None:
        """Whether it has an allocation; without one it may be idle for `idle_s` from now."""
        connection.is_kept, connection.heard_at = is_kept, now
        connection.is_greeted = True
        self._file(connection)

    def filled(self, connection: Connection, now: float) -> None:
        """A datagram was dropped because its write buffer is full."""
        if connection.full_at is None:
            connection.full_at = now
            self._file(connection)

    def drained(self, connection: Connection) -> None:
        """It reads again."""
        connection.full_at = None

    def tick(self, now: float) -> list[tuple[Connection, Closed]]:
        """Those whose time is over; the caller removes each."""
        due = []
        for slot in [slot for slot in self._wheel if slot * SLOT_S <= now]:
            for connection in self._wheel.pop(slot):
                connection.slot = None
                at, reason = min(self._deadlines(connection), default=(math.inf, Closed.IDLE))
                if at <= now:
                    due.append((connection, reason))
                else:
                    self._file(connection)
        self._next = min(self._wheel, default=None)
        return due

    def next_deadline(self) -> float | None:
        """When `tick` may have something to do, or None: at most a quarter of a second after a deadline. Sometimes it finds that there was none."""
        return None if self._next is None else self._next * SLOT_S

    def _deadlines(self, connection: Connection) -> Iterator[tuple[float, Closed]]:
        limits = self.limits
        if not connection.is_open:
            yield connection.opened_at + limits.handshake_s, Closed.HANDSHAKE
        elif not connection.is_greeted:
            yield connection.opened_at + limits.first_message_s, Closed.FIRST_MESSAGE
        elif not connection.is_kept:
            yield connection.heard_at + limits.idle_s, Closed.IDLE
        if connection.partial_at is not None:
            yield connection.partial_at + limits.partial_s, Closed.PARTIAL
        if connection.full_at is not None:
            yield connection.full_at + limits.stalled_s, Closed.STALLED

    def _file(self, connection: Connection) -> None:
        """Puts it where its next deadline is, unless it is looked at before that anyway."""
        at = min((at for at, _ in self._deadlines(connection)), default=math.inf)
        if at == math.inf or (connection.slot is not None and connection.slot * SLOT_S <= at):
            return
        self._take_out(connection)
        connection.slot = math.ceil(at / SLOT_S)
        self._wheel.setdefault(connection.slot, set()).add(connection)
        self._next = connection.slot if self._next is None else min(self._next, connection.slot)

    def _take_out(self, connection: Connection) -> None:
        if connection.slot is None:
            return
        standing = self._wheel[connection.slot]
        standing.remove(connection)
        if not standing:
            del self._wheel[connection.slot]
        connection.slot = None


def source_of(host: str) -> str:
    """Whom a limit per source counts: an IPv4 address, or the /64 that one IPv6 customer has."""
    ip = ipaddress.ip_address(host)
    return host if ip.version == 4 else f"{ip.exploded[:19]}::/64"
