"""The fleet's relays as the registry knows them, and which of them a client is told.

Pure: what Redis holds is text of other processes, perhaps of another version, and draws are an argument.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Final, Literal

from heliograph.messages import dump

TOLD: Final = 2  # relays a client gets: a browser allocates on every one, and one may die
MAX_URLS: Final = 16
MAX_ALLOCATIONS: Final = 10**9
State = Literal["up", "draining"]


@dataclass(frozen=True, slots=True)
class RelayNode:
    """What one relay says of itself. `capacity` is the most allocations it takes; `at_ms` is its own clock, for people."""

    node_id: str
    urls: tuple[str, ...]
    state: State
    allocations: int
    capacity: int
    at_ms: int

    @property
    def free(self) -> int:
        """How many allocations it takes now; none while it drains."""
        return max(0, self.capacity - self.allocations) if self.state == "up" else 0

    def serialize(self) -> str:
        """The registry's entry."""
        return dump(asdict(self)).decode()


def parse_node(text: str) -> RelayNode | None:
    """The node of an entry, None for what is none: one bad entry must not hide the others."""
    try:
        found = json.loads(text)
        urls = tuple(found["urls"])
        node = RelayNode(found["node_id"], urls, found["state"], found["allocations"], found["capacity"], found["at_ms"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in (node.allocations, node.capacity, node.at_ms))
    is_whole = is_whole and node.capacity <= MAX_ALLOCATIONS
    is_known = isinstance(node.node_id, str) and node.node_id != "" and node.state in ("up", "draining")
    return node if is_whole and is_known and 0 < len(urls) <= MAX_URLS and all(map(_is_turn_url, urls)) else None


def choose(nodes: Iterable[RelayNode], draw: bytes, most: int = TOLD) -> list[RelayNode]:
    """At most `most` relays that take new allocations, at random in proportion to what they have free; none when all are full or draining.

    Not the least loaded: between two beats everybody would be sent to the same one. `draw` is the chance of this one choice; a relay's score is
    u ** (1 / free) with u from the draw and its id (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).
    """
    return sorted((node for node in nodes if node.free), key=lambda node: _score(node, draw), reverse=True)[:most]


def _score(node: RelayNode, draw: bytes) -> float:
    """log(u) / free, which has the order of u ** (1 / free)."""
    number = int.from_bytes(blake2b(node.node_id.encode(), key=draw[:64], digest_size=8).digest(), "big")
    return math.log((number + 1) / (2**64 + 1)) / node.free


def turn_urls(host: str, *, udp: int | None = None, tcp: int | None = None, tls: int | None = None, tls_host: str = "") -> tuple[str, ...]:
    """The URLs of a relay's listeners (RFC 7065). `tls_host` is the name in its certificate, without which no client takes turns:."""
    plain = f"[{host}]" if ":" in host else host
    made = [f"turn:{plain}:{port}?transport={transport}" for transport, port in (("udp", udp), ("tcp", tcp)) if port]
    return (*made, *([f"turns:{tls_host}:{tls}?transport=tcp"] if tls and tls_host else []))


def told_urls(nodes: Sequence[RelayNode], configured: str) -> list[list[str]]:
    """The URLs of each server that a client is told: those of the chosen relays, else the configured ones, comma-separated."""
    return [list(node.urls) for node in nodes] or [configured.split(",")]


def _is_turn_url(url: object) -> bool:
    return isinstance(url, str) and url.startswith(("turn:", "turns:")) and len(url) <= 300 and url.isascii() and url.isprintable() and " " not in url
