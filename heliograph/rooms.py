"""Rooms: who is a member, and what a member sees. A room of another tenant, or one without the caller, is an unknown room."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from heliograph.access import Resource, authorise
from heliograph.auth import Identity
from heliograph.errors import NotFound
from heliograph.shapes import JsonObject

MAX_MEMBERS = 200


@dataclass(frozen=True, slots=True)
class Member:
    account_id: str
    role: str  # owner | member


@dataclass(frozen=True, slots=True)
class Room:
    """A room as stored; `epoch` names the life of its stream."""

    tenant_id: str
    room_id: str
    name: str
    epoch: str
    members: tuple[Member, ...]

    def has(self, account_id: str) -> bool:
        return any(member.account_id == account_id for member in self.members)

    def as_resource(self, account_id: str | None = None) -> Resource:
        """The room, or something in it that belongs to this account, as a decision about access sees it."""
        return Resource(self.tenant_id, frozenset(member.account_id for member in self.members), account_id)

    def as_json(self, head: int) -> JsonObject:
        """The answer of the REST API."""
        return {"room_id": self.room_id, "name": self.name, "epoch": self.epoch, "head": head, "members": self.members_json()}

    def members_json(self) -> list[JsonObject]:
        return [{"account_id": member.account_id, "role": member.role} for member in self.members]


@dataclass(frozen=True, slots=True)
class Participant:
    """A live socket in a room."""

    connection_id: str
    account_id: str
    device_id: str


@dataclass(frozen=True, slots=True)
class Roster:
    """Who is live in a room. Every change raises `version`; another `epoch` means that the versions began anew."""

    epoch: str
    version: int
    participants: tuple[Participant, ...]

    def as_json(self) -> JsonObject:
        people = [{"account_id": p.account_id, "device_id": p.device_id} for p in self.participants]
        return {"participants": people, **self.position()}

    def position(self) -> JsonObject:
        return {"roster_epoch": self.epoch, "roster_version": self.version}


def entered(room: Room | None, who: Identity, action: str) -> Room:
    """The room, if the caller may do this in it; NotFound otherwise, the same for unknown and foreign rooms."""
    authorise(who, action, room.as_resource() if room else None)
    if room is None:
        raise NotFound  # authorise did already
    return room


def member_named(room: Room, account_id: str) -> str:
    """The account, if it is a member of the room; NotFound otherwise."""
    if not room.has(account_id):
        raise NotFound
    return account_id


def new_room(tenant_id: str, room_id: str, name: str, epoch: str, owner_id: str, member_ids: Iterable[str]) -> Room:
    """A room with its owner first and every other member once."""
    others = dict.fromkeys(account_id for account_id in member_ids if account_id != owner_id)
    return Room(tenant_id, room_id, name, epoch, (Member(owner_id, "owner"), *(Member(account_id, "member") for account_id in others)))
