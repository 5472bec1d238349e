"""Ids: a prefix and a UUIDv7 (RFC 9562 5.7) in 32 hex digits, so that ids sort by creation time."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime


def now_ms() -> int:
    """Wall clock in milliseconds UTC."""
    return int(datetime.now(UTC).timestamp() * 1_000)


def uuid7_hex(at_ms: int, random_bits: int) -> str:
    """48 bits of time, version 7, 12 random bits, variant 10, 62 random bits (74 of `random_bits` are used)."""
    value = (at_ms & (1 << 48) - 1) << 80 | 7 << 76 | (random_bits >> 62 & 0xFFF) << 64 | 0b10 << 62 | random_bits & (1 << 62) - 1
    return f"{value:032x}"


def make_id(prefix: str) -> str:
    """A new id, e.g. `msg_018f…`."""
    return f"{prefix}_{uuid7_hex(now_ms(), secrets.randbits(74))}"
