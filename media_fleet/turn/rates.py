"""Limits per second: the bandwidth of an account, and the answers that a source gets before it has authenticated."""

from __future__ import annotations

import hmac
import ipaddress


class TokenBucket:
    """So many units a second, and at most `burst` at once. Time is an argument in seconds."""

    __slots__ = ("_at", "_burst", "_per_s", "_tokens")

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._tokens, self._at = burst, now

    def takes(self, units: float, now: float) -> bool:
        """Takes this many, or none when there are fewer."""
        tokens = self._tokens
        if now > self._at:
            tokens = min(self._burst, tokens + (now - self._at) * self._per_s)
            self._at = now
        if tokens < units:
            self._tokens = tokens
            return False
        self._tokens = tokens - units
        return True


class SourceLimit:
    """A token bucket per source address in a table of a fixed size, so that a flood of spoofed sources takes no memory.

    A source is an IPv4 address or an IPv6 /64. Sources that share a slot share its bucket; a keyed hash keeps an attacker from choosing whose.
    """

    def __init__(self, key: bytes, per_s: float, burst: float, slots: int = 4096) -> None:
        self._key, self._per_s, self._burst, self._slots = key, per_s, burst, slots
        self._buckets: dict[int, TokenBucket] = {}

    def takes(self, host: str, now: float) -> bool:
        """Whether this source may have one more answer. Always, when `per_s` is 0."""
        if not self._per_s:
            return True
        slot = self._slot(host)
        bucket = self._buckets.get(slot)
        if bucket is None:
            bucket = self._buckets[slot] = TokenBucket(self._per_s, self._burst, now)
        return bucket.takes(1, now)

    def _slot(self, host: str) -> int:
        packed = ipaddress.ip_address(host).packed
        return int.from_bytes(hmac.digest(self._key, packed[:8], "md5")[:4], "big") % self._slots
