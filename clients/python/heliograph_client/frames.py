"""Frames of `heliograph.v1`: building the client's, reading the server's. Pure.

Golden frames in clients/protocol/ test it against the server and the other clients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import RefusedError, parse_error

SUBPROTOCOL = "heliograph.v1"
TICKET_PREFIX = "ticket."
MAX_FRAME_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Ack:
    """The server accepted a frame; with an offset it is durable and stands in the room's stream."""

    re: str
    epoch: str | None = None
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The server refused a frame; `re` is None when it could not read the frame's id."""

    re: str | None
    error: RefusedError


@dataclass(frozen=True, slots=True)
class GatewayMessage:
    """API Gateway's own frame: it failed to pass a frame on, and does not say which."""

    message: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened; with `epoch` and `offset` it stands in the room's stream."""

    event: str
    body: dict[str, Any] = field(default_factory=dict)
    room_id: str | None = None
    epoch: str | None = None
    offset: int | None = None
    at_ms: int | None = None
    trace_id: str | None = None


def build_frame(action: str, frame_id: str, client_seq: int, trace_id: str, room_id: str | None = None, body: Mapping[str, Any] | None = None) -> str:
    """A client's frame as JSON text; ValueError when it is larger than the server takes."""
    frame: dict[str, Any] = {"action": action, "id": frame_id, "client_seq": client_seq, "trace_id": trace_id}
    if room_id is not None:
        frame["room_id"] = room_id
    frame["body"] = dict(body or {})
    text = json.dumps(frame, separators=(",", ":"), ensure_ascii=False)
    if len(text.encode()) > MAX_FRAME_BYTES:
        raise ValueError(f"the {action} frame has more than {MAX_FRAME_BYTES} bytes")
    return text


def parse_frame(text: str) -> Ack | Refusal | Event | GatewayMessage | None:
    """What the server or API Gateway said; None for anything this version does not know."""
    try:
        frame = json.loads(text)
    except ValueError:
        return None
    if not isinstance(frame, dict):
        return None
    if isinstance(frame.get("code"), str):
        return Refusal(_text(frame.get("re")), parse_error(frame))
    if isinstance(frame.get("re"), str):
        return Ack(frame["re"], _text(frame.get("epoch")), _whole(frame.get("offset")))
    if isinstance(frame.get("message"), str) and "requestId" in frame:
        return GatewayMessage(frame["message"])
    return parse_event(frame)


def parse_event(frame: Mapping[str, Any]) -> Event | None:
    """An event from its JSON object; None when it is not one."""
    name, body = frame.get("event"), frame.get("body", {})
    if not isinstance(name, str) or not isinstance(body, dict):
        return None
    room_id, epoch, trace_id = (_text(frame.get(key)) for key in ("room_id", "epoch", "trace_id"))
    return Event(name, body, room_id, epoch, _whole(frame.get("offset")), _whole(frame.get("at_ms")), trace_id)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
