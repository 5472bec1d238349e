"""Upload tickets for known files, their completion, and expiring download links."""

from __future__ import annotations

from dataclasses import replace

from functions import edge, wiring
from functions.edge import Request
from functions.live_rooms import post_to_room
from heliograph.access import authorise
from heliograph.errors import NotFound, UploadMissing
from heliograph.links import DEFAULT_LINK_S, UPLOAD_S, Media, announced
from heliograph.messages import Event
from heliograph.rooms import Room, entered
from heliograph.shapes import JsonObject


def upload_ticket(request: Request) -> JsonObject:
    who, body = request.identity, request.body
    room = entered(wiring.rooms().get(who.tenant_id, body["room_id"]), who, request.action)
    fields = {name: body[name] for name in ("file_name", "content_type", "length_bytes", "sha256")}
    media = announced(Media(who.tenant_id, body["media_id"], room.room_id, who.account_id, **fields))
    wiring.media().create(media, request.now_ms)
    url, headers = wiring.links().upload(media, UPLOAD_S)
    return {"media_id": media.media_id, "upload": {"method": "PUT", "url": url, "headers": headers, "expires_at_ms": request.now_ms + UPLOAD_S * 1000}}


def complete(request: Request) -> JsonObject:
    who = request.identity
    media, room = _media(request)
    authorise(who, request.action, room.as_resource(media.account_id))
    wiring.links().must_hold(media)
    body = {"media_id": media.media_id, "from": who.as_sender()}
    body |= {name: getattr(media, name) for name in ("file_name", "content_type", "length_bytes")}
    event = Event("media", request.now_ms, request.trace_id, body, room.room_id)
    ready, _ = wiring.media().make_ready(media, request.now_ms)
    offset, _ = wiring.streams().append(room, who.device_id, media.media_id, event)
    post_to_room(who.tenant_id, room.room_id, replace(event, epoch=room.epoch, offset=offset))
    return ready.as_json()


def link(request: Request) -> JsonObject:
    who, expires_s = request.identity, request.body.get("expires_s", DEFAULT_LINK_S)
    media, _ = _media(request)
    if media.state != "ready":
        raise UploadMissing
    wiring.ledger().record(who.tenant_id, request.now_ms, "link_issued", who.account_id, media.media_id, {"expires_s": expires_s})
    return {"url": wiring.links().download(media, expires_s), "expires_at_ms": request.now_ms + expires_s * 1000}


def _media(request: Request) -> tuple[Media, Room]:
    """The file and its room; NotFound unless the caller is a member. For an unknown file a room is read all the same: both take equally long."""
    who = request.identity
    media = wiring.media().get(who.tenant_id, request.path["media_id"])
    room = entered(wiring.rooms().get(who.tenant_id, media.room_id if media else ""), who, request.action)
    if media is None:
        raise NotFound  # nobody enters a room without an id
    return media, room


handler = edge.rest({"POST /v1/media": upload_ticket, "POST /v1/media/{media_id}/complete": complete, "POST /v1/media/{media_id}/links": link})
