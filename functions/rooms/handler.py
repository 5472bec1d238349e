"""Rooms and their streams over REST."""

from __future__ import annotations

import uuid

from functions import edge, wiring
from functions.edge import Request
from heliograph.errors import NotFound
from heliograph.rooms import Room, entered, new_room
from heliograph.shapes import JsonObject
from heliograph.streams import Position, recover

DEFAULT_PAGE, MAX_PAGE = 100, 200


def create(request: Request) -> JsonObject:
    who, body = request.identity, request.body
    room = new_room(who.tenant_id, body["room_id"], body["name"], uuid.uuid4().hex[:16], who.account_id, body["member_ids"])
    asked = [member.account_id for member in room.members]
    if wiring.accounts().known(who.tenant_id, asked) != set(asked):
        raise NotFound("One of the members does not exist.")
    wiring.rooms().create(room, request.now_ms)
    wiring.ledger().record(who.tenant_id, request.now_ms, "room_created", who.account_id, room.room_id, {"members": asked})
    return room.as_json(0)


def list_own(request: Request) -> JsonObject:
    who, limit = request.identity, _limit(request)
    found = wiring.rooms().of_account(who.tenant_id, who.account_id, after=request.query.get("cursor", ""), limit=limit + 1)
    answer: JsonObject = {"rooms": [room.as_json(wiring.streams().head(room)) for room in found[:limit]]}
    if len(found) > limit:
        answer["next_cursor"] = found[limit - 1].room_id
    return answer


def read(request: Request) -> JsonObject:
    room = _room(request)
    return room.as_json(wiring.streams().head(room))


def events(request: Request) -> JsonObject:
    room, query = _room(request), request.query
    head = wiring.streams().head(room)
    limit, had = _limit(request), Position(query.get("epoch", room.epoch), int(query.get("after", "0")))
    recovery = recover(had, room.epoch, head, lambda after, most: wiring.streams().page(room, after, most), limit)
    found = recovery.events if recovery.recovered else wiring.streams().page(room, max(0, head - limit), limit)  # to begin anew: the newest
    return {"epoch": room.epoch, "head": head, "recovered": recovery.recovered, "events": [event.as_json() for event in found]}


def _room(request: Request) -> Room:
    return entered(wiring.rooms().get(request.identity.tenant_id, request.path["room_id"]), request.identity, request.action)


def _limit(request: Request) -> int:
    return min(max(int(request.query.get("limit", DEFAULT_PAGE)), 1), MAX_PAGE)


handler = edge.rest({"POST /v1/rooms": create, "GET /v1/rooms": list_own, "GET /v1/rooms/{room_id}": read, "GET /v1/rooms/{room_id}/events": events})
