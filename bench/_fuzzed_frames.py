"""Frames as bad clients write them: valid ones of every action of the route table, bent by one to three mutations. The same seed makes the same frames.

Knows the route table and the shapes, so that a new action or field is fuzzed without a line here; knows no store and sends nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from bench._signal_world import LINE, SDP
from functions.routes import socket_routes
from heliograph.messages import MAX_FRAME_BYTES, ROOM_ACTIONS
from heliograph.shapes import SHAPES, Flag, ListOf, Number, Shape, Text, Type, Whole

ACTIONS: Final = {route.key: route.body for _, route in socket_routes() if not route.key.startswith("$")}
ID: Final = re.compile(r"([a-z]{3,4})_\[0-9a-f\]\{32\}")
FILLERS: Final = ("n1", "online", "2026", "acme", "a" * 16, "0" * 64, "text/plain", "e1", "a.b.c")
HOSTILE: Final = (
    "\u202e\u2066evil\u2069",  # bidi overrides and isolates
    "\u200b\ufeff\u00ad",  # what nobody sees
    "e\u0301" * 40,
    "👩‍👩‍👧‍👦" * 20,
    "'; DROP TABLE rooms; --",
    "$where",
    "{{7*7}}${jndi:ldap://x}",
    "../../etc/passwd",
    "%s%n%00",
    "<script>alert(1)</script>",
    "\r\nSet-Cookie: a=b",
    "*",
    "hg:{x}:*",
    "\x1b[2J\x07",
    "\uffff\U0010ffff",
    "",
)
STRANGE: Final[tuple[Any, ...]] = (None, True, False, 0, -1, 1.5, "", "x", [], {}, [[]], [None], {"$gt": ""}, {"a": {"b": []}}, "0", "true", "null")
NUMBERS: Final[tuple[Any, ...]] = (
    *(2**53 - 1, 2**53, 2**63 - 1, 2**63, 2**64, 10**19, 10**20, 10**400, -1, -(2**63), 0, -0.0, 0.1, 1e308, 5e-324, 1e15),
    *(float("nan"), float("inf"), float("-inf")),
)


@dataclass(slots=True)
class Cast:
    """What frames may name: ids by prefix, those of the sender's own world first and foreign ones behind; rooms and peers of each sender's account."""

    rooms: dict[str, list[str]]  # account_id -> rooms it is in
    others: dict[str, list[str]]  # account_id -> rooms it is not in, foreign and unknown ones
    peers: dict[str, list[tuple[str, str]]]  # account_id -> (account_id, device_id) of those it may call
    calls: dict[str, list[tuple[str, str, str, str]]]  # account_id -> (call_id, room_id, and whom: account_id, device_id), so that two sides meet in one call
    ids: dict[str, list[str]] = field(default_factory=dict)  # prefix -> ids that exist somewhere
    texts: dict[str, Callable[[str], str]] = field(default_factory=dict)  # field name -> a good value for an account, of what only the world can make


class Frames:
    """Makes frames for the people of one cast."""

    def __init__(self, seed: int, cast: Cast) -> None:
        self.random, self.cast = Random(seed), cast

    def id(self, prefix: str) -> str:
        """An id that nobody has."""
        return f"{prefix}_{self.random.getrandbits(128):032x}"

    def valid(self, account_id: str, client_seq: int) -> dict[str, Any]:
        """A frame of the documented form, of any action."""
        action = self.random.choice(list(ACTIONS))
        shape = ACTIONS[action]
        body: dict[str, Any] = self._example(SHAPES[shape], "body", account_id) if shape else {}
        frame = {"action": action, "id": self.id("msg"), "client_seq": client_seq, "trace_id": f"{self.random.getrandbits(128):032x}", "body": body}
        if action in ROOM_ACTIONS or self.random.random() < 0.1:
            frame["room_id"] = self.random.choice(self.cast.rooms[account_id])
        if action == "answer":
            body["sdp"] = SDP.replace("actpass", "active")
        if {"call_id", "to"} <= body.keys() and self.random.random() < 0.7 and self.cast.calls[account_id]:
            call_id, frame["room_id"], account, device = self.random.choice(self.cast.calls[account_id])
            body |= {"call_id": call_id, "to": {"account_id": account, "device_id": device}}
        return frame

    def bent(self, frame: dict[str, Any], account_id: str) -> tuple[str, tuple[str, ...]]:
        """The frame's text after some mutations, and their names."""
        names = self.random.choices(list(_WEIGHTS), list(_WEIGHTS.values()), k=self.random.choices((1, 2, 3), (7, 2, 1))[0])
        for name in names:
            if name in IN_FRAME and frame:
                IN_FRAME[name](self, frame, account_id)
        text = json.dumps(frame, ensure_ascii=self.random.random() < 0.5, separators=(",", ":"))
        for name in names:
            if name in IN_TEXT:
                text = IN_TEXT[name](self, text)
        return text, tuple(names)

    def spot(self, frame: dict[str, Any], *kinds: type) -> tuple[Any, Any]:
        """A container within the frame and a key of it, at any depth; with `kinds`, one that holds such a value if there is one."""
        found = list(_spots(frame))
        wanted = [(box, key) for box, key in found if isinstance(box[key], kinds)] if kinds else found
        return self.random.choice(wanted or found)

    def _example(self, kind: Type, name: str, account_id: str) -> Any:
        pick = self.random
        if name == "to" and self.cast.peers.get(account_id):
            account, device = pick.choice(self.cast.peers[account_id])
            return {"account_id": account} | ({"device_id": device} if pick.random() < 0.6 else {})
        if isinstance(kind, Shape):
            chosen = {**kind.required, **{key: item for key, item in kind.optional.items() if pick.random() < 0.5}}
            return {key: self._example(item, key, account_id) for key, item in chosen.items()}
        if isinstance(kind, ListOf):
            return [self._example(kind.item, name, account_id) for _ in range(pick.randint(kind.min, max(kind.min, min(3, kind.max))))]
        if isinstance(kind, Flag):
            return pick.random() < 0.5
        if isinstance(kind, Whole):
            return pick.choice((kind.min, min(kind.max, kind.min + pick.randint(1, 5)), kind.max))
        if isinstance(kind, Number):
            return pick.uniform(kind.min, min(kind.max, kind.min + 1000))
        return self._text(kind, name, account_id)

    def _text(self, kind: Text, name: str, account_id: str) -> str:
        pick = self.random
        if kind.choices:
            return pick.choice(kind.choices)
        if name in self.cast.texts:
            return self.cast.texts[name](account_id)
        if kind.pattern and (prefix := ID.fullmatch(kind.pattern)):
            return self._known(prefix[1], account_id)
        known = {"sdp": SDP, "candidate": LINE, "negotiation_id": pick.choice(("n1", "n2", "n3")), "epoch": "e1"}.get(name)
        for text in (known, pick.choice(FILLERS), *FILLERS):
            if text is not None and kind.min <= len(text) <= kind.max and (kind.pattern is None or re.fullmatch(kind.pattern, text)):
                return text
        raise ValueError(f"no example of {name}: {kind.pattern}; add one to FILLERS")

    def _known(self, prefix: str, account_id: str) -> str:
        if prefix == "room":
            return self.random.choice(self.cast.rooms[account_id])
        if prefix == "call" and self.cast.calls[account_id] and self.random.random() < 0.5:
            return self.random.choice(self.cast.calls[account_id])[0]
        return self.random.choice(self.cast.ids.get(prefix) or [self.id(prefix)])


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _spots(value[key])


# --- mutations of the frame


def _set(*values: Any) -> Callable[[Frames, dict[str, Any], str], None]:
    def mutate(frames: Frames, frame: dict[str, Any], account_id: str) -> None:
        box, key = frames.spot(frame)
        box[key] = deepcopy(frames.random.choice(values))

    return mutate


def _drop(frames: Frames, frame: dict[str, Any], account_id: str) -> None:
    box, key = frames.spot(frame)
    del box[key]


def _add(frames: Frames, frame: dict[str, Any], account_id: str) -> None:
    box, key = frames.spot(frame, dict)
    inside = box[key] if isinstance(box[key], dict) else frame
    inside[frames.random.choice(("admin", "tenant_id", "__proto__", "$where", "", "a.b", "device_id", "from", "é", "x" * 300, "\ud800", "\0"))] = 1


def _action(frames: Frames, frame: dict[str, Any], account_id: str) -> None:
    strange = ("explode", "$default", "$connect", "$disconnect", "MESSAGE", " message", "message\n", "мessage", "x" * 33, "", 5, None, ["message"], {"a": 1})
    frame["action"] = frames.random.choice((*strange, *ACTIONS))


def _ids(frames: Frames, frame: dict[str, Any], account_id: str) -> None:
    """An id of somebody else, of nobody, of another kind, or almost one."""
    found = [(box, key) for box, key in _spots(frame) if isinstance(box[key], str) and re.fullmatch(r"[a-z]{3,4}_[0-9a-f]{32}", box[key])]
    if not found:
        return
    box, key = frames.random.choice(found)
    prefix, _, digits = box[key].partition("_")
    everybody = [known for ids in frames.cast.ids.values() for known in ids]
    near = (box[key].upper(), box[key] + "\n", box[key][:-1], box[key] + "0", f"{prefix}-{digits}", digits, f" {box[key]}", f"{prefix}_{'g' * 32}")
    box[key] = frames.random.choice((frames.id(prefix), frames.random.choice(everybody), f"{frames.random.choice(list(frames.cast.ids))}_{digits}", *near))


def _room(frames: Frames, frame: dict[str, Any], account_id: str) -> None:
    frame["room_id"] = frames.random.choice((*frames.cast.others[account_id], frames.id("room"), None, frames.id("call"), "room_"))


def _hostile(frames: Frames, frame: dict[str, Any], account_id: str) -> None:
    box, key = frames.spot(frame, str)
    text = frames.random.choice(HOSTILE)
    box[key] = frames.random.choice((text, f"{box[key]}{text}", text * 50))


def _forbidden_character(frames: Frames, frame: dict[str, Any], account_id: str) -> None:
    box, key = frames.spot(frame, str)
    text, at = str(box[key]), frames.random.randint(0, 20)
    box[key] = text[:at] + frames.random.choice(("\0", "\ud800", "\udfff", "\udc00\ud800", "\ud83d", "\x7f")) + text[at:]


def _long(frames: Frames, frame: dict[str, Any], account_id: str) -> None:
    box, key = frames.spot(frame, str)
    box[key] = frames.random.choice(("x", "é", "\u202e", " ")) * frames.random.choice((33, 65, 257, 1001, 4000, 4001, 9000, 24_001))


def _many(frames: Frames, frame: dict[str, Any], account_id: str) -> None:
    box, key = frames.spot(frame, list)
    item = box[key][0] if isinstance(box[key], list) and box[key] else frames.id("acc")
    box[key] = [item] * frames.random.choice((51, 101, 501, 2000))


def _renumbered(frames: Frames, line: str) -> str:
    number = frames.random.choice(("99999999999999999999", "-1", "0", "65536", "4294967296", "1e9", ""))
    return re.sub(r"\d+", number, line)


def _instead(frames: Frames, line: str) -> str:
    lines = ("a=candidate:" + LINE[10:], "a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x", "m=video 9 RTP/AVP 96", "b=AS:-1", "c=IN IP6 ::1%eth0", "\u2028")
    return frames.random.choice(lines) + "\r\n"


def _address(frames: Frames, line: str) -> str:
    return frames.random.choice(("169.254.169.254 ", "::1 ", "x.local ", "10.0.0.1%eth0 ", "0x7f.1 ", "typ relay ", "raddr 10.0.0.1 "))


_LINES: Final[tuple[Callable[[Frames, str], str], ...]] = (
    lambda frames, line: "",
    lambda frames, line: line + line,
    lambda frames, line: line * 200,
    lambda frames, line: line.replace("\r\n", "\n"),
    lambda frames, line: line.replace("\r\n", "\r\n\r\n"),
    lambda frames, line: line.upper(),
    lambda frames, line: line[: len(line) // 2],
    lambda frames, line: line.replace("=", "=\t"),
    lambda frames, line: line.replace("udp", "tcp"),
    _renumbered,
    _instead,
    _address,
)


def _sdp(frames: Frames, frame: dict[str, Any], account_id: str) -> None:
    """A session description or candidate that no browser writes; frames without one get one where it does not belong."""
    body = frame.get("body")
    if not isinstance(body, dict):
        return
    name = next((name for name in ("sdp", "candidate") if isinstance(body.get(name), str)), "sdp")
    text = body.get(name)
    lines = re.split(r"(?<=\r\n)|(?<= )", text if isinstance(text, str) and text else SDP)
    for _ in range(frames.random.randint(1, 4)):
        at = frames.random.randrange(len(lines))
        lines[at] = frames.random.choice(_LINES)(frames, lines[at])
    body[name] = "".join(lines)


IN_FRAME: Final[dict[str, Callable[[Frames, dict[str, Any], str], None]]] = {
    "wrong type": _set(*STRANGE),
    "number": _set(*NUMBERS),
    "field missing": _drop,
    "field unknown": _add,
    "action": _action,
    "id": _ids,
    "room": _room,
    "hostile text": _hostile,
    "NUL or surrogate": _forbidden_character,
    "long text": _long,
    "many items": _many,
    "sdp": _sdp,
}

# --- mutations of the text


def _duplicate(frames: Frames, text: str) -> str:
    names = re.findall(r'"([a-z_]+)":', text) or ["action"]
    return text[:-1] + f',"{frames.random.choice(names)}":{json.dumps(frames.random.choice(STRANGE))}' + text[-1:]


def _deep(frames: Frames, text: str) -> str:
    depth, (opening, closing) = frames.random.choice((15, 16, 17, 200, 995, 10_000)), frames.random.choice((("[", "]"), ('{"a":', "}")))
    nested = opening * depth + (closing * depth if closing == "]" else "1" + closing * depth)
    if frames.random.random() < 0.3:
        return nested
    if frames.random.random() < 0.7:
        return text.replace('"body":', f'"x":{nested},"body":', 1)
    at = frames.random.choice([match.end() for match in re.finditer(":", text)] or [0])
    return text[:at] + nested + "," + text[at:]


def _sized(frames: Frames, text: str) -> str:
    """A frame of 32 KB, or of one byte more or less; the padding is blanks, within the frame's JSON or within its text."""
    missing = MAX_FRAME_BYTES + frames.random.choice((-1, 0, 1, 2, 96_000)) - len(text.encode("utf-8", "surrogatepass"))
    if missing <= 0:
        return text
    at = frames.random.choice((0, len(text), text.find('"text":"') + 8 if '"text":"' in text else len(text)))
    return text[:at] + " " * missing + text[at:]


def _truncated(frames: Frames, text: str) -> str:
    return text[: frames.random.randrange(len(text) + 1)]


def _noise(frames: Frames, text: str) -> str:
    letters = list(text)
    for _ in range(frames.random.randint(1, 8)):
        at = frames.random.randrange(len(letters) + 1)
        letters[at : at + frames.random.randint(0, 3)] = chr(frames.random.choice((frames.random.randrange(128), frames.random.randrange(0x3000))))
    return "".join(letters)


def _encoded(frames: Frames, text: str) -> str:
    """What another reader of JSON may take: marks of encodings, UTF-16 whose bytes became characters, comments, single quotes."""
    return frames.random.choice(
        (
            *("\ufeff" + text, text.encode("utf-16-le", "surrogatepass").decode("latin-1"), text.encode("utf-16-be", "surrogatepass").decode("latin-1")),
            *(text.encode("utf-32-le", "surrogatepass").decode("latin-1"), text.encode("utf-8", "surrogatepass").decode("latin-1"), "\u00a0" + text),
            *(text + "//", "/**/" + text, text.replace('"', "'"), text + text, text + "\n{}", text.replace(":1", ":01"), text.replace(":1", ":+1")),
            *(f"[{text}]", json.dumps(text), text.replace("}", ",}"), ")]}'," + text, text.replace(":1", ":1.0"), text.replace(":1", ":1e0")),
        )
    )


def _garbage(frames: Frames, text: str) -> str:
    kinds = ("", " ", "null", "true", "[]", '""', "{}", "0", "-", "NaN", '{"action"', '{"action":}', "\0", "{" * 100, '"' * 1000, "\\" * 1000)
    noise = bytes(frames.random.randrange(256) for _ in range(frames.random.choice((1, 10, 100, 1000)))).decode("latin-1")
    return frames.random.choice((*kinds, noise))


IN_TEXT: Final[dict[str, Callable[[Frames, str], str]]] = {
    "field twice": _duplicate,
    "nesting": _deep,
    "32 KB": _sized,
    "truncated": _truncated,
    "noise": _noise,
    "encoding": _encoded,
    "garbage": _garbage,
}

_WEIGHTS: Final[dict[str, float]] = dict.fromkeys(IN_FRAME, 1.0) | dict.fromkeys(IN_TEXT, 1.0) | {"nesting": 0.3, "32 KB": 0.5, "sdp": 3, "room": 3, "id": 2}
MUTATIONS: Final = tuple(_WEIGHTS)
