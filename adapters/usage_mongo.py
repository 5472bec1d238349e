"""What relays carried, in MongoDB: one document for each allocation, which only grows, so that writing a record twice or late changes nothing.

A document without `ended_at_ms` is of an allocation that lives, or whose relay was killed: then `updated_at_ms` says until when it is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from adapters.mongo_client import translated
from heliograph.errors import Unavailable
from heliograph.shapes import JsonObject

COUNTED: Final = ("from_client_bytes", "to_client_bytes", "from_client_packets", "to_client_packets")
_GROWING: Final = (*COUNTED, "updated_at_ms", "ended_at_ms")
_NAMED: Final = ("tenant_id", "account_id", "allocation_id")
_FIXED: Final = ("device_id", "node_id", "relayed_address", "started_at_ms", "schema_version")
_REFUSED: Final = 121  # the collection's validator says no, and always will


class RelayUsage:
    def __init__(self, database: Any) -> None:
        self._usage = database.relay_usage

    def put(self, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Writes these records, each where it says more than what is stored; returns those that the validator refuses. Unavailable: write all of them again."""
        from pymongo import UpdateOne
        from pymongo.errors import BulkWriteError

        updates = [
            UpdateOne(
                {name: record[name] for name in _NAMED},
                {"$max": {name: record[name] for name in _GROWING if name in record}, "$setOnInsert": {name: record[name] for name in _FIXED}},
                upsert=True,
            )
            for record in records
        ]
        failed: list[dict[str, Any]] = []
        with translated():
            try:
                self._usage.bulk_write(updates, ordered=False)
            except BulkWriteError as error:
                failed = error.details["writeErrors"]
                if error.details["writeConcernErrors"]:
                    raise
        if any(each["code"] != _REFUSED for each in failed):  # such as two first writes of one allocation at the same moment
            raise Unavailable("The ledger did not take every record; write them again.")
        return [records[each["index"]] for each in failed]

    def totals(self, tenant_id: str, since_ms: int, until_ms: int, account_id: str | None = None) -> list[JsonObject]:
        """What each account's allocations carried that began in [since, until), the largest first."""
        match: JsonObject = {"tenant_id": tenant_id, "started_at_ms": {"$gte": since_ms, "$lt": until_ms}} | ({"account_id": account_id} if account_id else {})
        sums: JsonObject = {name: {"$sum": f"${name}"} for name in COUNTED}
        with translated():
            found = list(self._usage.aggregate([{"$match": match}, {"$group": {"_id": "$account_id", "allocations": {"$sum": 1}, **sums}}]))
        listed = [{"account_id": each.pop("_id"), **each} for each in found]
        return sorted(listed, key=lambda each: (-each["from_client_bytes"] - each["to_client_bytes"], each["account_id"]))
