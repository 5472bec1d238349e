"""The transaction log: one hash chain per tenant. Changing or dropping an entry breaks every later hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from heliograph.shapes import JsonObject

GENESIS = "0" * 64
_HASHED = ("tenant_id", "seq", "at_ms", "kind", "actor", "subject", "detail", "prev_hash")


def entry(tenant_id: str, seq: int, prev_hash: str, at_ms: int, kind: str, actor: str, subject: str, detail: JsonObject) -> JsonObject:
    """The next entry of a tenant's chain."""
    fields: JsonObject = {
        "tenant_id": tenant_id,
        "seq": seq,
        "at_ms": at_ms,
        "kind": kind,
        "actor": actor,
        "subject": subject,
        "detail": detail,
        "prev_hash": prev_hash,
        "schema_version": 1,
    }
    return fields | {"hash": digest(fields)}


def digest(fields: JsonObject) -> str:
    """SHA-256 over the entry's fields as canonical JSON."""
    hashed = {name: fields[name] for name in _HASHED}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def first_broken(entries: Iterable[JsonObject]) -> int | None:
    """The seq of the first entry that does not follow from the one before, or None when the chain holds."""
    seq, prev_hash = 0, GENESIS
    for item in entries:
        if item["seq"] != seq + 1 or item["prev_hash"] != prev_hash or item["hash"] != digest(item):
            return int(item["seq"])
        seq, prev_hash = item["seq"], item["hash"]
    return None
