"""Room configurations."""

from __future__ import annotations

from typing import Any

from adapters.mongo_client import translated
from heliograph.errors import IdTaken
from heliograph.rooms import Member, Room


class Rooms:
    def __init__(self, database: Any) -> None:
        self._rooms = database.rooms

    def create(self, room: Room, now_ms: int) -> None:
        """Stores a new room; IdTaken when the tenant has one of that id."""
        from pymongo.errors import DuplicateKeyError

        document = {
            "tenant_id": room.tenant_id,
            "room_id": room.room_id,
            "name": room.name,
            "epoch": room.epoch,
            "members": room.members_json(),
            "created_at_ms": now_ms,
            "schema_version": 1,
        }
        try:
            with translated():
                self._rooms.insert_one(document)
        except DuplicateKeyError:
            raise IdTaken from None

    def get(self, tenant_id: str, room_id: str) -> Room | None:
        with translated():
            found = self._rooms.find_one({"tenant_id": tenant_id, "room_id": room_id})
        return _room(found) if found else None

    def of_account(self, tenant_id: str, account_id: str, *, after: str = "", limit: int = 100) -> list[Room]:
        """The account's rooms in the order of their ids, from after the cursor."""
        query = {"tenant_id": tenant_id, "members.account_id": account_id, "room_id": {"$gt": after}}
        with translated():
            return [_room(found) for found in self._rooms.find(query).sort("room_id", 1).limit(limit)]

    def acquaintances(self, tenant_id: str, account_id: str) -> set[str]:
        """Everybody who shares a room with the account, itself excluded."""
        with translated():
            found = self._rooms.find({"tenant_id": tenant_id, "members.account_id": account_id}, {"members.account_id": 1})
            return {member["account_id"] for room in found for member in room["members"]} - {account_id}


def _room(found: dict[str, Any]) -> Room:
    members = tuple(Member(member["account_id"], member["role"]) for member in found["members"])
    return Room(found["tenant_id"], found["room_id"], found["name"], found["epoch"], members)
