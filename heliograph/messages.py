"""Frames of the WebSocket: the client's frames, acknowledgements, refusals and server events. docs/protocol.md is their prose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from heliograph.errors import Malformed, UnknownAction
from heliograph.ids import is_id
from heliograph.shapes import SHAPES, JsonObject, Text, Whole, is_trace_id, parse_json

SUBPROTOCOL = "heliograph.v1"
TICKET_PREFIX = "ticket."
MAX_FRAME_BYTES = 32 * 1024  # API Gateway's frame limit; a client that keeps it is never closed with 1009
ROOM_ACTIONS = frozenset({"join", "leave", "message", "offer", "answer", "candidate", "bye", "stats"})

_FIELDS = frozenset({"action", "id", "room_id", "client_seq", "trace_id", "body"})
_SEQ = Whole(min=1)
_ACTION = Text(max=32)


@dataclass(frozen=True, slots=True)
class Frame:
    """A client's frame, validated."""

    action: str
    id: str
    client_seq: int
    trace_id: str
    room_id: str | None = None
    body: JsonObject = field(default_factory=dict)

    @property
    def room(self) -> str:
        """The room id of an action that must carry one."""
        if self.room_id is None:
            raise ValueError(f"{self.action} has no room")
        return self.room_id


@dataclass(frozen=True, slots=True)
class Event:
    """A server event; with `epoch` and `offset` it stands in the room's stream."""

    event: str
    at_ms: int
    trace_id: str
    body: JsonObject
    room_id: str | None = None
    epoch: str | None = None
    offset: int | None = None

    def as_json(self) -> JsonObject:
        """The wire form, without absent fields."""
        answer: JsonObject = {"event": self.event, "at_ms": self.at_ms, "trace_id": self.trace_id, "body": self.body}
        for name in ("room_id", "epoch", "offset"):
            value = getattr(self, name)
            if value is not None:
                answer[name] = value
        return answer

    def serialize(self) -> bytes:
        """The bytes posted to a socket."""
        return dump(self.as_json())


def dump(value: Mapping[str, Any]) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def parse_frame(text: str | bytes, body_shapes: Mapping[str, str | None]) -> Frame:
    """The client's frame, or Malformed / UnknownAction / TooLarge. `body_shapes` names the shape of each action's body."""
    data = parse_json(text, MAX_FRAME_BYTES)
    action = _ACTION.check(data.get("action"), "action")
    if action not in body_shapes:
        raise UnknownAction
    unknown = data.keys() - _FIELDS
    if unknown:
        raise Malformed(f"The frame has unknown fields; known are {', '.join(sorted(_FIELDS))}.")
    frame_id, room_id, trace_id = data.get("id"), data.get("room_id"), data.get("trace_id")
    if not (isinstance(frame_id, str) and is_id(frame_id, "msg")):
        raise Malformed("id must be a msg_ id made by the client.")
    if not is_trace_id(trace_id):
        raise Malformed("trace_id must have 16 to 64 characters A-Z a-z 0-9 -.")
    if room_id is not None and not (isinstance(room_id, str) and is_id(room_id, "room")):
        raise Malformed("room_id must be a room_ id.")
    if action in ROOM_ACTIONS and room_id is None:
        raise Malformed(f"{action} needs a room_id.")
    shape = body_shapes[action]
    body = SHAPES[shape].check(data.get("body", {}), "body") if shape else {}
    return Frame(action, frame_id, _SEQ.check(data.get("client_seq"), "client_seq"), str(trace_id), room_id, body)


@dataclass(frozen=True, slots=True)
class Reference:
    """What can be told of a frame that may be malformed, each None unless it is well-formed."""

    id: str | None = None
    trace_id: str | None = None
    client_seq: int | None = None


def reference(text: str | bytes) -> Reference:
    """What a refusal of this frame can name."""
    try:
        data = parse_json(text, MAX_FRAME_BYTES)
    except Malformed:
        return Reference()
    frame_id, trace_id, seq = data.get("id"), data.get("trace_id"), data.get("client_seq")
    return Reference(
        frame_id if isinstance(frame_id, str) and is_id(frame_id, "msg") else None,
        trace_id if is_trace_id(trace_id) else None,
        seq if isinstance(seq, int) and not isinstance(seq, bool) and seq >= 1 else None,
    )


def acknowledgement(re: str, epoch: str | None = None, offset: int | None = None) -> JsonObject:
    """`{re, epoch?, offset?}`: with an offset the frame is durable."""
    answer: JsonObject = {"re": re}
    if epoch is not None and offset is not None:
        answer |= {"epoch": epoch, "offset": offset}
    return answer
