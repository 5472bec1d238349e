"""The durable stream of a room: one insert at head+1, unique on (tenant, room, epoch, offset) and on (tenant, room, device, message id).

MongoDB is the truth; Redis holds the head as a hint, without which eight writers in one room are slow. Pages are read by bounded ranges.
"""

from __future__ import annotations

from typing import Any

from adapters import keys
from adapters.mongo_client import append_dense, translated
from adapters.redis_client import translated as redis_translated
from heliograph.errors import Unavailable
from heliograph.messages import Event
from heliograph.rooms import Room


class Streams:
    def __init__(self, database: Any, redis_client: Any) -> None:
        self._events, self._redis = database.room_events, redis_client

    def append(self, room: Room, device_id: str, message_id: str, event: Event) -> tuple[int, bool]:
        """(offset, is_new). A message id the device sent before answers with its first offset and writes nothing."""
        from pymongo.errors import DuplicateKeyError

        known: list[int] = []

        def insert(offset: int) -> bool:
            document = _owner(room) | {
                "offset": offset,
                "device_id": device_id,
                "message_id": message_id,
                "event": event.event,
                "at_ms": event.at_ms,
                "trace_id": event.trace_id,
                "body": event.body,
                "schema_version": 1,
            }
            try:
                with translated():
                    self._events.insert_one(document)
            except DuplicateKeyError:
                first = self._offset_of(room, device_id, message_id)
                if first is None:
                    return False
                known.append(first)
            return True

        offset = append_dense(self._hinted_head(room), lambda at_least: self._read_head(room, at_least), insert)
        if known:
            return known[0], False
        self._hint(room, offset)
        return offset, True

    def head(self, room: Room) -> int:
        """The offset of the newest event, 0 for an empty stream."""
        return self._read_head(room, self._hinted_head(room))

    def page(self, room: Room, after: int, limit: int) -> list[Event]:
        """Up to `limit` events with after < offset, in order."""
        query = _owner(room) | {"offset": {"$gt": after, "$lte": after + limit}}
        with translated():
            found = list(self._events.find(query).sort("offset", 1))
        return [Event(e["event"], e["at_ms"], e["trace_id"], e["body"], room.room_id, room.epoch, e["offset"]) for e in found]

    def _offset_of(self, room: Room, device_id: str, message_id: str) -> int | None:
        query = {"tenant_id": room.tenant_id, "room_id": room.room_id, "device_id": device_id, "message_id": message_id}
        with translated():
            found = self._events.find_one(query, {"offset": 1})
        return int(found["offset"]) if found else None

    def _read_head(self, room: Room, at_least: int) -> int:
        with translated():
            found = self._events.find_one(_owner(room) | {"offset": {"$gte": at_least}}, {"offset": 1}, sort=[("offset", -1)])
        return int(found["offset"]) if found else at_least

    def _hinted_head(self, room: Room) -> int:
        try:
            with redis_translated():
                hint = self._redis.get(keys.room_head(room.tenant_id, room.room_id, room.epoch))
        except Unavailable:
            hint = None
        return int(hint) if hint else self._read_head(room, 0)

    def _hint(self, room: Room, offset: int) -> None:
        try:
            with redis_translated():
                self._redis.set(keys.room_head(room.tenant_id, room.room_id, room.epoch), offset, ex=keys.HEAD_S)
        except Unavailable:
            return  # a hint only: the next writer reads the head from MongoDB


def _owner(room: Room) -> dict[str, str]:
    return {"tenant_id": room.tenant_id, "room_id": room.room_id, "epoch": room.epoch}
