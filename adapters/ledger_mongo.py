"""The transaction log in MongoDB: one hash chain per tenant, one insert at the next number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adapters.mongo_client import append_dense, translated
from heliograph.ledger import GENESIS, entry
from heliograph.shapes import JsonObject


class Ledger:
    def __init__(self, database: Any) -> None:
        self._ledger = database.ledger

    def record(self, tenant_id: str, at_ms: int, kind: str, actor: str, subject: str, detail: JsonObject) -> int:
        """Appends an entry; returns its number."""
        from pymongo.errors import DuplicateKeyError

        last: dict[str, Any] = {}

        def read_head(_at_least: int) -> int:
            with translated():
                found = self._ledger.find_one({"tenant_id": tenant_id}, sort=[("seq", -1)])
            last.update(found or {"seq": 0, "hash": GENESIS})
            return int(last["seq"])

        def insert(seq: int) -> bool:
            try:
                with translated():
                    self._ledger.insert_one(dict(entry(tenant_id, seq, last["hash"], at_ms, kind, actor, subject, detail)))
            except DuplicateKeyError:
                return False
            return True

        return append_dense(read_head(0), read_head, insert)

    def page(self, tenant_id: str, after: int, limit: int) -> tuple[list[JsonObject], int]:
        """At most `limit` entries after that number, and the number of the last one there is."""
        with translated():
            found = list(self._ledger.find({"tenant_id": tenant_id, "seq": {"$gt": after}}, {"_id": 0}).sort("seq", 1).limit(limit))
            last = self._ledger.find_one({"tenant_id": tenant_id}, {"seq": 1}, sort=[("seq", -1)])
        return found, int(last["seq"]) if last else 0

    def entries(self, tenant_id: str) -> Iterator[JsonObject]:
        """The whole chain in order."""
        with translated():
            yield from self._ledger.find({"tenant_id": tenant_id}, {"_id": 0}).sort("seq", 1)
