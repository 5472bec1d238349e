"""STUN and TURN servers of a call, and when it moves onto new ones. Pure: the clock and the dice are arguments (`fraction` is 0 to 1).

Relay credentials have an end, and a relay answers 441 to another user name on a living allocation (RFC 8656 s5): a call gets new ones by an ICE restart onto a
new allocation, in time. `clients/web/src/iceServers.ts` is the same rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .backoff import full_jitter_s

RENEW_AT, RENEW_SPREAD = 0.80, 0.05  # of the credentials' life; what is left is for attempts that fail
SHORTEST_LIFE_S = 1.0
RETRY_BASE_S, RETRY_CAP_S = 2.0, 60.0
LOST_RETRY_BASE_S, LOST_RETRY_CAP_S = 0.5, 4.0
DRAIN_SPREAD_S = 3.0


@dataclass(frozen=True, slots=True)
class IceServers:
    """The answer of `GET /v1/ice-servers`. Without an end, as servers are that an application chose itself, nothing is ever due."""

    servers: tuple[Mapping[str, Any], ...] = ()
    ttl_s: float | None = None
    expires_at_ms: int | None = None  # the server's clock

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> IceServers:
        """Read the answer."""
        return cls(tuple(body["ice_servers"]), body.get("ttl_s"), body.get("expires_at_ms"))

    @property
    def has_relay(self) -> bool:
        """Whether a TURN server is among them."""
        return any(url.startswith(("turn:", "turns:")) for server in self.servers for url in server["urls"])

    def left_s(self, now_ms: int) -> float | None:
        """Until the credentials end; None when they do not."""
        return None if self.expires_at_ms is None or not self.has_relay else (self.expires_at_ms - now_ms) / 1_000

    def renew_after_s(self, now_ms: int, fraction: float) -> float | None:
        """How long from now until new ones are fetched: 80 to 85 % of the life, so that calls that began together do not ask together. None: never.

        Never at once: credentials that seem over when they come are a mistake of somebody's clock, which asking again does not mend.
        """
        left_s = self.left_s(now_ms)
        if left_s is None or self.ttl_s is None:
            return None
        life_s = max(SHORTEST_LIFE_S, self.ttl_s)
        return max(life_s / 5, left_s - life_s * (1 - RENEW_AT - RENEW_SPREAD * fraction))

    def avoiding(self, hosts: Iterable[str], attempt: int = 0) -> IceServers:
        """The same with the URLs of these hosts last, and each attempt beginning with another one: for an ICE agent that uses the first TURN URL alone."""
        avoided = frozenset(hosts)
        single = [{**server, "urls": [url]} for server in self.servers for url in server["urls"]]
        relays = [server for server in single if server["urls"][0].startswith("turn")]
        relays.sort(key=lambda server: host_of(server["urls"][0]) in avoided)
        turn = attempt % len(relays) if relays else 0
        others = [server for server in single if server not in relays]
        return IceServers((*others, *relays[turn:], *relays[:turn]), self.ttl_s, self.expires_at_ms)


def host_of(url: str) -> str:
    """The host of a STUN or TURN URL (RFC 7064, RFC 7065), without the brackets of an IPv6 literal."""
    rest = url.partition(":")[2].partition("?")[0]
    return rest[1:].partition("]")[0] if rest.startswith("[") else rest.partition(":")[0]


def retry_after_s(attempt: int, fraction: float, left_s: float | None) -> float:
    """The pause after an attempt to renew that failed; while the credentials last, at most a quarter of what is left of them."""
    pause_s = full_jitter_s(attempt, fraction, RETRY_BASE_S, RETRY_CAP_S)
    return pause_s if left_s is None or left_s <= 0 else min(pause_s, fraction * left_s / 4)


def retry_lost_after_s(attempt: int, fraction: float) -> float:
    """The pause after an attempt to find another path that failed, while nobody hears anything."""
    return full_jitter_s(attempt, fraction, LOST_RETRY_BASE_S, LOST_RETRY_CAP_S)


@dataclass(frozen=True, slots=True)
class Draining:
    """The event `relay_draining`: these relays go away, and take no new allocations."""

    relay_hosts: frozenset[str]
    ends_at_ms: int

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Draining | None:
        """Read the body; None when it cannot be read."""
        hosts, ends_at_ms = body.get("relay_hosts"), body.get("ends_at_ms")
        if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts) or type(ends_at_ms) is not int:
            return None
        return cls(frozenset(hosts), ends_at_ms)

    def move_after_s(self, now_ms: int, fraction: float) -> float:
        """How long a call on one of them waits, so that not all of them move in the same instant: at most three seconds, or half of what is left."""
        return fraction * min(DRAIN_SPREAD_S, max(0.0, (self.ends_at_ms - now_ms) / 2_000))
