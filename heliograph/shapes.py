"""The shapes of bodies, declared once: they refuse bad input and describe themselves as JSON Schema for the OpenAPI and AsyncAPI documents.

A shape is a mapping of field name to a type; unknown fields are refused, so that a misspelt optional field is not silently dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from heliograph.errors import Malformed, TooLarge
from heliograph.ids import TENANT_PATTERN

JsonObject = dict[str, Any]

MAX_DEPTH = 16
_NOT_ALLOWED = re.compile("[\0\ud800-\udfff]")
_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TRACE_ID = re.compile(r"[A-Za-z0-9-]{16,64}")


@dataclass(frozen=True, slots=True)
class Text:
    """A string; `pattern` must match all of it. NUL and lone surrogates are always refused."""

    max: int = 256
    min: int = 1
    pattern: str | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: object, name: str) -> str:
        if not isinstance(value, str):
            raise Malformed(f"{name} must be a string.")
        if not self.min <= len(value) <= self.max:
            raise Malformed(f"{name} must have {self.min} to {self.max} characters.")
        if self.choices and value not in self.choices:
            raise Malformed(f"{name} must be one of {', '.join(self.choices)}.")
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise Malformed(f"{name} is not of the form {self.pattern}.")
        if _NOT_ALLOWED.search(value):
            raise Malformed(f"{name} holds a character that is not allowed.")
        return value

    def schema(self) -> JsonObject:
        answer: JsonObject = {"type": "string", "minLength": self.min, "maxLength": self.max}
        if self.choices:
            answer["enum"] = list(self.choices)
        if self.pattern:
            answer["pattern"] = f"^{self.pattern}$"
        return answer


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer between two bounds."""

    min: int = 0
    max: int = 2**53 - 1

    def check(self, value: object, name: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Malformed(f"{name} must be a whole number.")
        if not self.min <= value <= self.max:
            raise Malformed(f"{name} must be between {self.min} and {self.max}.")
        return value

    def schema(self) -> JsonObject:
        return {"type": "integer", "minimum": self.min, "maximum": self.max}


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number between two bounds."""

    min: float = 0.0
    max: float = 1e12

    def check(self, value: object, name: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Malformed(f"{name} must be a number.")
        if not self.min <= value <= self.max:  # NaN fails both comparisons
            raise Malformed(f"{name} must be between {self.min:g} and {self.max:g}.")
        return float(value)

    def schema(self) -> JsonObject:
        return {"type": "number", "minimum": self.min, "maximum": self.max}


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def check(self, value: object, name: str) -> bool:
        if not isinstance(value, bool):
            raise Malformed(f"{name} must be true or false.")
        return value

    def schema(self) -> JsonObject:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list with at most `max` items of one type."""

    item: Type
    max: int = 100
    min: int = 0

    def check(self, value: object, name: str) -> list[Any]:
        if not isinstance(value, list):
            raise Malformed(f"{name} must be a list.")
        if not self.min <= len(value) <= self.max:
            raise Malformed(f"{name} must have {self.min} to {self.max} items.")
        return [self.item.check(item, f"{name}[{index}]") for index, item in enumerate(value)]

    def schema(self) -> JsonObject:
        return {"type": "array", "items": self.item.schema(), "minItems": self.min, "maxItems": self.max}


@dataclass(frozen=True, slots=True)
class Shape:
    """An object with required and optional fields. `is_open` shapes describe answers, which may grow."""

    required: Mapping[str, Type] = field(default_factory=dict)
    optional: Mapping[str, Type] = field(default_factory=dict)
    is_open: bool = False

    def check(self, value: object, name: str) -> JsonObject:
        if not isinstance(value, dict):
            raise Malformed(f"{name} must be an object.")
        missing = self.required.keys() - value.keys()
        if missing:
            raise Malformed(f"{name} lacks {', '.join(sorted(missing))}.")
        if not self.is_open:
            unknown = value.keys() - self.required.keys() - self.optional.keys()
            if unknown:
                raise Malformed(f"{name} has unknown fields; known are {', '.join(sorted({*self.required, *self.optional})) or 'none'}.")
        return {key: (self.required.get(key) or self.optional[key]).check(item, f"{name}.{key}") for key, item in value.items() if key in self}

    def __contains__(self, key: object) -> bool:
        return key in self.required or key in self.optional

    def schema(self) -> JsonObject:
        fields = {**self.required, **self.optional}
        return {
            "type": "object",
            "required": sorted(self.required),
            "properties": {key: item.schema() for key, item in fields.items()},
            "additionalProperties": self.is_open,
        }


Type = Text | Whole | Number | Flag | ListOf | Shape


def id_of(prefix: str) -> Text:
    """The type of an id."""
    return Text(max=len(prefix) + 33, pattern=f"{prefix}_[0-9a-f]{{32}}")


_MS = Whole()
_TENANT = Text(max=32, pattern=TENANT_PATTERN)
_ACCOUNT, _DEVICE, _ROOM, _CALL, _MEDIA, _SESSION = (id_of(prefix) for prefix in ("acc", "dev", "room", "call", "med", "ses"))
_SDP = Text(max=24_000)
_TO = Shape({"account_id": _ACCOUNT}, {"device_id": _DEVICE})
_NEGOTIATION = Text(max=64, pattern=r"[A-Za-z0-9_-]{1,64}")
_FILE_NAME = Text(max=200, pattern=r"[^/\\\x00-\x1f\x7f]+")
_SHA256 = Text(max=64, pattern=r"[0-9a-f]{64}")
_CONTENT_TYPE = Text(max=100, pattern=r"[a-z0-9.+-]+/[a-z0-9.+-]+")
_STATUS = Text(max=16, choices=("online", "away", "busy", "on_a_call", "offline"))
_MEMBER = Shape({"account_id": _ACCOUNT, "role": Text(max=16)}, is_open=True)
_ROOM_ANSWER = Shape({"room_id": _ROOM, "name": Text(max=100), "members": ListOf(_MEMBER, max=1000), "epoch": Text(max=64), "head": Whole()}, is_open=True)
_OPAQUE = Text(max=8192)
_REFRESH_TOKEN = Text(max=256)
_SIGNED_IN: dict[str, Type] = {
    "token_type": Text(max=10),
    "expires_at_ms": _MS,
    "tenant_id": _TENANT,
    "account_id": _ACCOUNT,
    "device_id": _DEVICE,
}
_TEXT = Text(max=4000)
TRACE_ID = Text(min=16, max=64, pattern=_TRACE_ID.pattern)
_EPOCH = Text(max=64)
_FROM = Shape({"account_id": _ACCOUNT, "device_id": _DEVICE}, is_open=True)
_FRAME_ID = id_of("msg")
_PRESENCE = Shape({"account_id": _ACCOUNT, "status": _STATUS, "devices": Whole(), "last_seen_at_ms": Whole()}, is_open=True)
_ROSTER_POSITION: dict[str, Type] = {"roster_epoch": _EPOCH, "roster_version": Whole()}
_STORED_EVENT = Shape(
    {"event": Text(max=32), "at_ms": _MS, "trace_id": TRACE_ID, "room_id": _ROOM, "epoch": _EPOCH, "offset": Whole(min=1), "body": Shape(is_open=True)},
    is_open=True,
)
_AUDIO = Shape(
    {"bitrate_bps": Whole(), "channels": Whole(min=1, max=2), "ptime_ms": Whole(min=1), "fec": Flag(), "loss_percent": Whole(max=100), "dtx": Flag()},
    is_open=True,
)
_VIDEO = Shape({"is_on": Flag(), "max_height": Whole(), "max_fps": Whole(), "max_bps": Whole()}, is_open=True)

SHAPES: dict[str, Shape] = {
    # bodies of frames
    "Hello": Shape({}, {"client": Text(max=100)}),
    "Join": Shape({}, {"epoch": Text(max=64), "offset": Whole()}),
    "Watch": Shape({"account_ids": ListOf(_ACCOUNT, max=500)}),
    "Leave": Shape(),
    "Text": Shape({"text": _TEXT}),
    "Description": Shape({"call_id": _CALL, "to": _TO, "negotiation_id": _NEGOTIATION, "sdp": _SDP}),
    "Candidate": Shape(
        {"call_id": _CALL, "to": _TO, "negotiation_id": _NEGOTIATION, "candidate": Text(min=0, max=1000)},
        {"sdp_mid": Text(min=0, max=64), "sdp_m_line_index": Whole(max=255)},
    ),
    "Bye": Shape({"call_id": _CALL, "to": _TO, "reason": Text(max=16, choices=("hangup", "declined", "busy", "failed"))}),
    "Stats": Shape(
        {"call_id": _CALL},
        {
            "available_bps": Number(max=1e11),
            "sent_bps": Number(max=1e11),
            "rtt_ms": Number(max=600_000),
            "loss": Number(max=1),
            "jitter_ms": Number(max=600_000),
            "queue_ms": Number(max=600_000),
            "has_video": Flag(),
        },
    ),
    "Ping": Shape({}, {"rooms": ListOf(Shape({"room_id": _ROOM}, {"epoch": Text(max=64), "offset": Whole()}), max=50)}),
    "Reauth": Shape({"access_token": Text(max=4096)}),
    "PresenceStatus": Shape({"status": Text(max=16, choices=("online", "away", "busy", "on_a_call"))}),
    # bodies and queries of REST
    "SignIn": Shape({"tenant_id": _TENANT, "login": Text(max=200), "password": Text(max=200), "device_id": _DEVICE}),
    "IdentitySignIn": Shape({"tenant_id": _TENANT, "id_token": Text(max=8192), "device_id": _DEVICE}),
    "ServiceSignIn": Shape({"assertion": Text(max=4096), "device_id": _DEVICE}),
    "Refresh": Shape({"refresh_token": _REFRESH_TOKEN}),
    "OneDevice": Shape({}, {"device_id": _DEVICE}),
    "NewRole": Shape({"role": Text(max=16, choices=("member", "moderator", "admin"))}),
    "AuditPosition": Shape({}, {"after": Text(max=16, pattern="[0-9]{1,15}"), "limit": Text(max=4, pattern="[0-9]{1,4}")}),
    "NewRoom": Shape({"room_id": _ROOM, "name": Text(max=100), "member_ids": ListOf(_ACCOUNT, max=200)}),
    "Page": Shape({}, {"limit": Text(max=4, pattern="[0-9]{1,4}"), "cursor": Text(max=200)}),
    "Position": Shape({}, {"epoch": Text(max=64), "after": Text(max=16, pattern="[0-9]{1,15}"), "limit": Text(max=4, pattern="[0-9]{1,4}")}),
    "PushTarget": Shape({"target_kind": Text(max=5, choices=("token", "fid")), "target": Text(max=4096)}),
    "NewMedia": Shape(
        {
            "media_id": _MEDIA,
            "room_id": _ROOM,
            "file_name": _FILE_NAME,
            "content_type": _CONTENT_TYPE,
            "length_bytes": Whole(min=1, max=5_000_000_000),
            "sha256": _SHA256,
        }
    ),
    "NewLink": Shape({}, {"expires_s": Whole(min=1, max=900)}),
    # answers
    "TokenPair": Shape(
        {
            "access_token": _OPAQUE,
            "refresh_token": _REFRESH_TOKEN,
            **_SIGNED_IN,
        },
        is_open=True,
    ),
    "AccessToken": Shape({"access_token": _OPAQUE, **_SIGNED_IN}, is_open=True),
    "SessionList": Shape(
        {
            "sessions": ListOf(
                Shape({"sid": _SESSION, "device_id": _DEVICE, "signed_in_at_ms": _MS, "refreshed_at_ms": _MS, "is_current": Flag()}, is_open=True), max=1000
            )
        },
        is_open=True,
    ),
    "SessionsEnded": Shape({"ended": Whole()}, is_open=True),
    "AccountRole": Shape({"account_id": _ACCOUNT, "role": Text(max=16)}, is_open=True),
    "AuditPage": Shape(
        {
            "entries": ListOf(
                Shape(
                    {
                        "seq": Whole(min=1),
                        "at_ms": _MS,
                        "kind": Text(max=64),
                        "actor": Text(max=256),
                        "subject": Text(max=256),
                        "detail": Shape(is_open=True),
                        "hash": Text(max=64),
                    },
                    is_open=True,
                ),
                max=1000,
            ),
            "head": Whole(),
        },
        is_open=True,
    ),
    "Ticket": Shape({"ticket": _OPAQUE, "expires_at_ms": _MS}, is_open=True),
    "KeySet": Shape({"keys": ListOf(Shape({}, is_open=True))}, is_open=True),
    "Presence": _PRESENCE,
    "PresenceList": Shape({"presence": ListOf(Shape({"account_id": _ACCOUNT, "status": _STATUS}, is_open=True), max=10_000)}, is_open=True),
    "Room": _ROOM_ANSWER,
    "RoomList": Shape({"rooms": ListOf(_ROOM_ANSWER, max=1000)}, {"next_cursor": Text()}, is_open=True),
    "EventList": Shape({"epoch": Text(), "head": Whole(), "recovered": Flag(), "events": ListOf(_STORED_EVENT, max=1000)}, is_open=True),
    "PushTargetStored": Shape({"device_id": _DEVICE, "stored_at_ms": _MS}, is_open=True),
    "IceServers": Shape({"ice_servers": ListOf(Shape({}, is_open=True)), "ttl_s": Whole(), "expires_at_ms": _MS}, is_open=True),
    "UploadTicket": Shape({"media_id": _MEDIA, "upload": Shape({"url": _OPAQUE, "method": Text(max=4)}, is_open=True)}, is_open=True),
    "Media": Shape({"media_id": _MEDIA, "room_id": _ROOM, "file_name": _FILE_NAME, "state": Text(max=16)}, is_open=True),
    "Link": Shape({"url": _OPAQUE, "expires_at_ms": _MS}, is_open=True),
    "Document": Shape(is_open=True),
    # bodies of events; that of `presence` is Presence
    "Welcome": Shape(
        {
            "connection_id": Text(max=128),
            "tenant_id": _TENANT,
            "account_id": _ACCOUNT,
            "device_id": _DEVICE,
            "generation": Whole(),
            "heartbeat_s": Whole(min=1),
            "heartbeat_call_s": Whole(min=1),
            "reconnect_by_ms": _MS,
            "auth_expires_at_ms": _MS,
            "presence": ListOf(_PRESENCE, max=10_000),
        },
        is_open=True,
    ),
    "Closed": Shape({"reason": Text(max=32)}, is_open=True),
    "RoomSnapshot": Shape(
        {
            "room_id": _ROOM,
            "name": Text(max=100),
            "members": ListOf(_MEMBER, max=1000),
            "participants": ListOf(_FROM, max=10_000),
            **_ROSTER_POSITION,
            "recovered": Flag(),
            "events": ListOf(_STORED_EVENT, max=1000),
            "more": Flag(),
        },
        is_open=True,
    ),
    "RosterChange": Shape({"account_id": _ACCOUNT, "device_id": _DEVICE, **_ROSTER_POSITION}, is_open=True),
    "TextPosted": Shape({"text": _TEXT, "id": _FRAME_ID, "from": _FROM}, is_open=True),
    "MediaPosted": Shape(
        {"media_id": _MEDIA, "file_name": _FILE_NAME, "content_type": _CONTENT_TYPE, "length_bytes": Whole(min=1), "from": _FROM},
        is_open=True,
    ),
    "DescriptionRelayed": Shape(
        {"call_id": _CALL, "negotiation_id": _NEGOTIATION, "sdp": _SDP, "polite": Flag(), "id": _FRAME_ID, "from": _FROM},
        is_open=True,
    ),
    "CandidateRelayed": Shape(
        {"call_id": _CALL, "negotiation_id": _NEGOTIATION, "candidate": Text(min=0, max=1000), "id": _FRAME_ID, "from": _FROM},
        {"sdp_mid": Text(min=0, max=64), "sdp_m_line_index": Whole(max=255)},
        is_open=True,
    ),
    "CallOver": Shape({"call_id": _CALL, "reason": Text(max=32)}, {"id": _FRAME_ID, "from": _FROM}, is_open=True),
    "CalleeAbsent": Shape({"call_id": _CALL, "account_id": _ACCOUNT}, is_open=True),
    "MissedCall": Shape({"call_id": _CALL, "account_id": _ACCOUNT, "from": _FROM}, is_open=True),
    "Rung": Shape(
        {
            "call_id": _CALL,
            "rung": Whole(min=1),
            "name": Text(max=32),
            "audio": _AUDIO,
            "video": _VIDEO,
            "action": Text(max=64),
            "reason": Shape({"rule": Text(), "inputs": Shape(is_open=True), "to_step_up": Text(min=0)}, is_open=True),
        },
        is_open=True,
    ),
    "Behind": Shape(is_open=True),
    "RelayDraining": Shape({"relay_hosts": ListOf(Text(max=253), max=64), "ends_at_ms": _MS}, is_open=True),
}


@dataclass(frozen=True, slots=True)
class EventKind:
    """What every event of one name carries. `has_position`: `epoch` and `offset`, of the event itself or (`room`, `behind`) of the stream's head."""

    body: str  # the name of a shape
    summary: str
    has_room: bool = True
    has_position: bool = False


EVENTS: dict[str, EventKind] = {
    "welcome": EventKind("Welcome", "Follows hello: who this socket is, how often to ping, who is there.", has_room=False),
    "closed": EventKind("Closed", "The server is about to close this socket for good.", has_room=False),
    "presence": EventKind("Presence", "How somebody who shares a room is.", has_room=False),
    "room": EventKind("RoomSnapshot", "Follows join: members, live roster, missed events.", has_position=True),
    "participant_joined": EventKind("RosterChange", "A socket entered the room live."),
    "participant_left": EventKind("RosterChange", "A socket left the room."),
    "message": EventKind("TextPosted", "A text in the room's stream.", has_position=True),
    "media": EventKind("MediaPosted", "A completed upload in the room's stream.", has_position=True),
    "offer": EventKind("DescriptionRelayed", "An SDP offer for this device."),
    "answer": EventKind("DescriptionRelayed", "An SDP answer for this device."),
    "candidate": EventKind("CandidateRelayed", "An ICE candidate for this device."),
    "bye": EventKind("CallOver", "The call is over; without `from` it is the server that says so."),
    "callee_absent": EventKind("CalleeAbsent", "No socket of the callee is there; a push was sent."),
    "missed_call": EventKind("MissedCall", "A call that nobody answered, in the room's stream.", has_position=True),
    "rung": EventKind("Rung", "What to send on this network, and why."),
    "behind": EventKind("Behind", "A post was lost: recover by join with your position.", has_position=True),
    "relay_draining": EventKind("RelayDraining", "These relays go away: restart ICE where a call has an allocation at one of them.", has_room=False),
}


def parse_json(text: str | bytes, max_bytes: int) -> JsonObject:
    """One JSON object from untrusted bytes, which are UTF-8 (RFC 8259, 8.1).

    Refuses more than `max_bytes`, deep nesting (before Python's recursion ends it), duplicate keys, NaN and numbers of more than 20 digits.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > max_bytes:
        raise TooLarge(f"The request has more than {max_bytes} bytes.")
    if _depth(data) > MAX_DEPTH:
        raise Malformed(f"The JSON is nested deeper than {MAX_DEPTH}.")
    try:
        text = data.decode("utf-8", "surrogatepass")  # json.loads would guess UTF-16 from bytes, whose nesting nobody has counted
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_short_int)
    except Malformed:
        raise
    except (ValueError, RecursionError):
        raise Malformed("The request is not valid JSON.") from None
    if not isinstance(value, dict):
        raise Malformed("The request must be a JSON object.")
    return value


def check_idempotency_key(value: object) -> str:
    """The Idempotency-Key header, or Malformed."""
    if not isinstance(value, str) or not _IDEMPOTENCY_KEY.fullmatch(value):
        raise Malformed("Send an Idempotency-Key header of 1 to 64 characters A-Z a-z 0-9 - _.")
    return value


def is_trace_id(value: object) -> bool:
    """Whether a client's trace_id may be taken over into the logs."""
    return isinstance(value, str) and _TRACE_ID.fullmatch(value) is not None


def _depth(data: bytes) -> int:
    if data.count(b"{") + data.count(b"[") <= MAX_DEPTH:  # the common case, without a loop in Python
        return 0
    deepest = depth = 0
    is_quoted = is_escaped = False
    for byte in data:
        if is_quoted:
            if is_escaped:
                is_escaped = False
            elif byte == 0x5C:
                is_escaped = True
            elif byte == 0x22:
                is_quoted = False
        elif byte == 0x22:
            is_quoted = True
        elif byte in b"{[":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"}]":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Malformed("The JSON names a field twice.")
    return value


def _no_constant(name: str) -> Any:
    raise Malformed(f"{name} is not a JSON number.")


def _short_int(digits: str) -> int:
    if len(digits) > 20:
        raise Malformed("The JSON holds a number that is too long.")
    return int(digits)
