"""Who is live in a room, a second time: read while Redis is away, and to fill it again after it lost the room.

A hint, not the truth: whoever is gone is found by the first post, and MongoDB removes what is older than a socket's life.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any

from adapters import keys
from adapters.mongo_client import translated
from heliograph.rooms import Participant


class SpareLive:
    def __init__(self, database: Any) -> None:
        from pymongo import WriteConcern

        self._live = database.get_collection("room_live", write_concern=WriteConcern(w=1))

    def enter(self, tenant_id: str, room_id: str, participant: Participant, now_ms: int) -> None:
        expires_at = dt.datetime.fromtimestamp(now_ms / 1000 + keys.ROOM_LIVE_S, dt.UTC)
        fields = {"account_id": participant.account_id, "device_id": participant.device_id, "expires_at": expires_at, "schema_version": 1}
        with translated():
            self._live.update_one({"tenant_id": tenant_id, "room_id": room_id, "connection_id": participant.connection_id}, {"$set": fields}, upsert=True)

    def leave(self, tenant_id: str, room_id: str, connection_ids: Iterable[str]) -> None:
        with translated():
            self._live.delete_many({"tenant_id": tenant_id, "room_id": room_id, "connection_id": {"$in": list(connection_ids)}})

    def in_room(self, tenant_id: str, room_id: str) -> list[Participant]:
        with translated():
            found = list(self._live.find({"tenant_id": tenant_id, "room_id": room_id}))
        return [Participant(each["connection_id"], each["account_id"], each["device_id"]) for each in found]
