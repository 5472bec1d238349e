"""What a relay tells of itself: one reading for CloudWatch, for Prometheus, for the registry and for readiness, and what each allocation carried.

Plain data, standard library only: the protocol core may fill it in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

NETWORK: Final = "network"  # the reason of a drop: the machine's network did not take the datagram, or its buffer was full


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayReading:
    """A relay at one moment. Counters count up since the start and never fall, ended allocations included. Cheap to make: it is asked for every second."""

    allocations: int  # living now
    capacity: int  # the most that may live at a time
    is_draining: bool = False  # no new allocations any more
    from_client_bytes: int = 0  # counter: payload relayed from clients to peers, without the headers of TURN, UDP and IP
    to_client_bytes: int = 0  # counter: payload relayed from peers to clients
    from_client_packets: int = 0  # counter: datagrams relayed from clients to peers
    to_client_packets: int = 0  # counter: datagrams relayed from peers to clients
    refusals: Mapping[int, int] = field(default_factory=dict)  # counters: error responses by STUN error code, the 401 that asks for credentials included
    auth_failures: int = 0  # counter: requests that bore credentials which were wrong, unknown or expired; one without any is none
    dropped: Mapping[str, int] = field(default_factory=dict)  # counters: datagrams received and not relayed, by reason in snake_case: NETWORK, "permission" …
    cpu_s: float = 0.0  # counter: CPU seconds, user and system, of all processes that relay

    @property
    def is_full(self) -> bool:
        return self.allocations >= self.capacity


@dataclass(frozen=True, slots=True)
class AllocationUsage:
    """What one allocation carried until now, or until it ended. `relayed_address` and `started_at_ms` together name it on its node."""

    username: str  # as it authenticated: expiry:account_id:device_id
    relayed_address: str  # IP:PORT, or [IP]:PORT
    from_client_bytes: int
    to_client_bytes: int
    from_client_packets: int
    to_client_packets: int
    started_at_ms: int
    read_at_ms: int  # when this was read; of an ended one, its end
    ended_at_ms: int | None = None  # None while it lives

    @property
    def key(self) -> tuple[str, int]:
        return self.relayed_address, self.started_at_ms

    @property
    def packets(self) -> int:
        return self.from_client_packets + self.to_client_packets


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReading:
    """The way of usage to the ledger. Counters but for `waiting`."""

    waiting: int  # records that MongoDB does not have yet
    stored: int  # records written
    given_up: int  # snapshots let go because too much waited: a later record of the same allocation says more
    logged: int  # final records that stand in the log only, as JSON lines `usage_not_stored`
