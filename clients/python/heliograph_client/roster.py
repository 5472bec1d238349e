"""Who is live in a room, by versions. Pure: time is an argument, what is to be done comes back as effects.

A snapshot replaces everything: whoever is not in it is gone. A change counts only right after the version it follows; with a gap, or under another
roster_epoch, the room is joined again, whose snapshot is the truth. A device counts as long as one of its sockets is in the room: for a moment it has
two, when a new socket replaces the old one. A server without versions is believed as it speaks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .frames import Event
from .stream import AGAIN_CAP_S, AGAIN_S, GAP_WAIT_S, Deliver, Effect, Join

MAX_HELD = 64
Participant = tuple[str, str]  # account_id, device_id


class Roster:
    """The participants of one room."""

    def __init__(self) -> None:
        """Empty until the first snapshot."""
        self.participants: Counter[Participant] = Counter()  # sockets of each, in the order they came
        self.version: tuple[str, int] | None = None  # roster_epoch, roster_version
        self._past: set[str] = set()
        self._held: dict[int, Event] = {}
        self._is_asked = False  # a join was sent, its snapshot has not come
        self._attempts = 0
        self._deadline_s: float | None = None

    def as_json(self) -> list[dict[str, str]]:
        """`[{account_id, device_id}]`, in the order they came."""
        return [{"account_id": account_id, "device_id": device_id} for account_id, device_id in self.participants]

    def asked(self, now_s: float) -> None:
        """A `join` is sent now: its snapshot must come, or the room is joined again."""
        self._is_asked = True
        self._ask_again_later(now_s)

    def snapshot(self, body: Mapping[str, Any], now_s: float) -> list[Effect]:
        """The body of a `room` event."""
        version = _version(body)
        if version is not None and (version[0] in self._past or (self.version is not None and self.version[0] == version[0] and self.version > version)):
            return []  # older than what is known
        if version is not None and self.version is not None and version[0] != self.version[0]:
            self._past.add(self.version[0])
            self._held.clear()
        self.version, self._is_asked = version, False
        self.participants = Counter((item["account_id"], item["device_id"]) for item in body.get("participants", ()))
        self._deadline_s, self._attempts = None, 0
        return self._advance(now_s)

    def change(self, event: Event, now_s: float) -> list[Effect]:
        """`participant_joined` or `participant_left`."""
        version = _version(event.body)
        if version is None:
            self._apply(event)
            return [Deliver(event)]
        if version[0] in self._past:
            return []
        if self.version is not None and version[0] != self.version[0]:
            self._deadline_s = now_s if self._deadline_s is None else self._deadline_s
            return self.tick(now_s)
        if (self.version is None or version[1] > self.version[1]) and len(self._held) < MAX_HELD:
            self._held[version[1]] = event
        return self._advance(now_s)

    def tick(self, now_s: float) -> list[Effect]:
        """Ask for a snapshot when it is time to."""
        if self._deadline_s is None or now_s < self._deadline_s:
            return []
        self._ask_again_later(now_s)
        return [Join()]

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self._deadline_s

    def _ask_again_later(self, now_s: float) -> None:
        self._deadline_s = now_s + min(AGAIN_CAP_S, AGAIN_S * 2.0**self._attempts)
        self._attempts = min(self._attempts + 1, 10)

    def _advance(self, now_s: float) -> list[Effect]:
        ready: list[Effect] = []
        while self.version is not None and self._held:
            epoch, number = self.version
            self._held = {held: event for held, event in self._held.items() if held > number}
            event = self._held.pop(number + 1, None)
            if event is None:
                break
            self.version = (epoch, number + 1)
            self._apply(event)
            ready.append(Deliver(event))
        if not self._held and not self._is_asked:
            self._deadline_s, self._attempts = None, 0
        elif self.version is not None and self._deadline_s is None:
            self._deadline_s = now_s + GAP_WAIT_S
        return ready

    def _apply(self, event: Event) -> None:
        participant = (str(event.body.get("account_id")), str(event.body.get("device_id")))
        sockets = self.participants[participant] if _version(event.body) is not None else 0
        if event.event == "participant_joined":
            self.participants[participant] = sockets + 1
        elif sockets > 1:
            self.participants[participant] = sockets - 1
        else:
            self.participants.pop(participant, None)


def _version(body: Mapping[str, Any]) -> tuple[str, int] | None:
    epoch, number = body.get("roster_epoch"), body.get("roster_version")
    return (epoch, number) if isinstance(epoch, str) and isinstance(number, int) else None
