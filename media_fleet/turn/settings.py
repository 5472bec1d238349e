"""What one server allows."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from media_fleet.stun.attributes import IPV4, IPV6
from media_fleet.turn.allocation import RelayId, port_of

UnaskedFamily = Literal["ipv4", "client"]


@dataclass(frozen=True, kw_only=True)
class TurnSettings:
    """Permissions and channels last 300 s and 600 s: the RFC leaves no choice.

    `worker` of `workers` on one node has a share of the relayed ports, so that each knows whose a port is. Quota and bandwidth are counted per worker.
    """

    realm: str
    relay_hosts: tuple[str, ...]  # the IPs of relayed addresses, as clients are told: an IPv4 one, an IPv6 one, or both
    software: str = "heliograph"
    unasked_family: UnaskedFamily = "ipv4"  # for a client that names no family: RFC 8656 s7.2 (7) says IPv4; `client` is the family that it came by
    default_lifetime_s: int = 600
    max_lifetime_s: int = 3600  # RFC 8656 s7.2: at most an hour recommended
    nonce_lifetime_s: int = 3600  # RFC 8656 s5: expire at least hourly
    reservation_s: int = 30  # RFC 8656 s7.2: at least 30 seconds
    credential_grace_s: int = 86_400  # how long after its start an allocation outlives its credentials
    min_port: int = 49_152
    max_port: int = 65_535
    worker: int = 0
    workers: int = 1
    allocations_per_account: int = 64
    max_allocations: int = 8_000
    max_permissions: int = 128  # per allocation
    max_channels: int = 128  # per allocation
    account_bytes_per_s: int = 4_000_000  # payload of all allocations of an account, both ways; more is dropped (s5); 0: unlimited
    account_burst_s: float = 2.0  # how many seconds' worth may come at once
    unauthenticated_per_s: float = 100.0  # answers to unauthenticated requests of one source (an IPv4 address, an IPv6 /64); more get silence; 0: unlimited
    unauthenticated_burst: int = 500
    ended_kept: int = 1_000  # usage of ended allocations that is remembered

    @cached_property
    def hosts(self) -> dict[int, str]:
        """The relay's IP by address family."""
        return {IPV4 if ipaddress.ip_address(host).version == 4 else IPV6: host for host in self.relay_hosts}

    def worker_of(self, relay_id: RelayId) -> int:
        """Whose share a port is in: ports belong together in pairs, even and odd (EVEN-PORT)."""
        return (port_of(relay_id) >> 1) % self.workers

    def is_mine(self, relay_id: RelayId) -> bool:
        """Whether a port is of this worker's share."""
        return self.min_port <= port_of(relay_id) <= self.max_port and self.worker_of(relay_id) == self.worker

    def is_a_siblings(self, relay_id: RelayId) -> bool:
        """Whether a port is of another worker's share."""
        return self.workers > 1 and self.min_port <= port_of(relay_id) <= self.max_port and not self.is_mine(relay_id)
