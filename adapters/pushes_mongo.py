"""One document per notification and device: a queue message delivered twice is a push sent once."""

from __future__ import annotations

from typing import Any

from adapters.mongo_client import translated


class Pushes:
    def __init__(self, database: Any) -> None:
        self._pushes = database.pushes

    def is_settled(self, tenant_id: str, notification_id: str, device_id: str) -> bool:
        """Whether an earlier attempt ended for good."""
        with translated():
            return self._pushes.find_one(_owner(tenant_id, notification_id, device_id), {"_id": 1}) is not None

    def settle(self, tenant_id: str, notification_id: str, device_id: str, state: str, detail: str, now_ms: int) -> None:
        owner = _owner(tenant_id, notification_id, device_id)
        with translated():
            self._pushes.update_one(owner, {"$set": {"state": state, "detail": detail, "at_ms": now_ms, "schema_version": 1}}, upsert=True)


def _owner(tenant_id: str, notification_id: str, device_id: str) -> dict[str, str]:
    return {"tenant_id": tenant_id, "notification_id": notification_id, "device_id": device_id}
