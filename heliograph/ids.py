"""Prefixed UUIDv7 ids (RFC 9562, 5.7): `msg_` and 32 hex digits. Time and randomness are arguments."""

from __future__ import annotations

import re

PREFIXES = ("acc", "dev", "room", "msg", "med", "call", "ses", "evt", "ntf")
ID_PATTERN = r"(?:{})_[0-9a-f]{{32}}"
TENANT_PATTERN = r"[a-z][a-z0-9-]{0,31}"

_ID = re.compile(r"([a-z]{3,4})_[0-9a-f]{32}")


def new_id(prefix: str, now_ms: int, random: bytes) -> str:
    """An id of this kind at this time; `random` gives 10 bytes."""
    if prefix not in PREFIXES:
        raise ValueError(f"unknown id prefix {prefix!r}")
    if len(random) != 10:
        raise ValueError("a UUIDv7 needs 10 random bytes")
    value = (now_ms & 0xFFFFFFFFFFFF) << 80 | int.from_bytes(random, "big")
    value = value & ~(0xF << 76) | 0x7 << 76  # version 7
    value = value & ~(0x3 << 62) | 0x2 << 62  # variant 10
    return f"{prefix}_{value:032x}"


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` has the form of an id of this kind."""
    match = _ID.fullmatch(text)
    return match is not None and match[1] == prefix
