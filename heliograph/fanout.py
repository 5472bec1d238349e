"""Fan-out: which posts a function makes itself, what a hub gets as one job, which hub has which room, how often presence may be told.

Decides over plain data; knows nothing of Redis or sockets. Order: everything for one socket of one call goes the same way, in its order.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from heliograph.effects import Post
from heliograph.errors import Malformed
from heliograph.messages import Event, dump
from heliograph.rooms import Participant

DIRECT_RECIPIENTS = 32  # two rounds of the sender's sixteen connections: about 20 ms at API Gateway's usual answer time
PRESENCE = "presence"  # the one event that may be shed: the next one, or the client's next `hello`, replaces it
PRESENCE_WINDOW_S = 1.0


def to_room(event: Event, participants: Sequence[Participant], *, except_connection_id: str | None = None) -> list[Post]:
    """One post per live socket of the room."""
    return [Post(p.connection_id, event) for p in participants if p.connection_id != except_connection_id]


@dataclass(frozen=True, slots=True)
class Scope:
    """Whom posts are for: a room, or an account. `owners` (connection_id -> account_id) where the sockets belong to several accounts and to no room."""

    tenant_id: str
    room_id: str | None = None
    account_id: str | None = None
    owners: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """One event for several sockets."""

    event: Event
    connection_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to post here, and what to hand to a hub; no socket stands in both."""

    direct: tuple[Post, ...]
    wide: tuple[Batch, ...]


def plan(posts: Sequence[Post], direct_recipients: int = DIRECT_RECIPIENTS) -> Plan:
    """An event for more than `direct_recipients` sockets is wide; so is whatever else the same call has for one of those sockets."""
    runs: list[tuple[Event, list[str]]] = []
    for post in posts:
        if not runs or runs[-1][0] is not post.event:
            runs.append((post.event, []))
        runs[-1][1].append(post.connection_id)
    far = {connection_id for _, ids in runs if len(set(ids)) > direct_recipients for connection_id in ids}
    if not far:
        return Plan(tuple(posts), ())
    split = ((event, tuple(each for each in ids if each in far)) for event, ids in runs)
    return Plan(tuple(post for post in posts if post.connection_id not in far), tuple(Batch(event, ids) for event, ids in split if ids))


@dataclass(frozen=True, slots=True)
class Job:
    """One event for many sockets, as it goes to a hub. `account_id` beside `owners` is the account the event tells about."""

    tenant_id: str
    event: str
    data: bytes
    connection_ids: tuple[str, ...]
    room_id: str | None = None
    account_id: str | None = None
    owners: tuple[str, ...] = ()  # the account of each socket

    @property
    def place(self) -> str:
        """The room or account whose jobs one hub handles in order."""
        return f"{self.tenant_id}/{self.room_id or self.account_id}"

    @property
    def may_be_shed(self) -> bool:
        return self.event == PRESENCE

    def serialize(self) -> bytes:
        """The message on the hub's channel."""
        fields = {"tenant_id": self.tenant_id, "event": self.event, "data": self.data.decode(), "connection_ids": self.connection_ids}
        more = {"room_id": self.room_id, "account_id": self.account_id, "owners": self.owners}
        return dump(fields | {name: value for name, value in more.items() if value})


def job_of(scope: Scope, batch: Batch) -> Job:
    """The job for a batch."""
    owners = tuple(scope.owners[each] for each in batch.connection_ids) if scope.owners else ()
    return Job(scope.tenant_id, batch.event.event, batch.event.serialize(), batch.connection_ids, scope.room_id, scope.account_id, owners)


def parse_job(data: bytes) -> Job:
    """The job in a message; Malformed for anything else."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise Malformed("A job must be a JSON object.") from None
    if not isinstance(found, dict):
        raise Malformed("A job must be a JSON object.")
    room_id, account_id = found.get("room_id"), found.get("account_id")
    connection_ids, owners = _texts(found, "connection_ids"), _texts(found, "owners")
    if not all(each is None or (isinstance(each, str) and each) for each in (room_id, account_id)) or (room_id or account_id) is None:
        raise Malformed("A job needs a room_id or an account_id.")
    if owners and len(owners) != len(connection_ids):
        raise Malformed("owners must name the account of each connection.")
    try:
        event_bytes = _text(found, "data").encode()
    except UnicodeEncodeError:
        raise Malformed("data must be text.") from None
    return Job(_text(found, "tenant_id"), _text(found, "event"), event_bytes, connection_ids, room_id, account_id, owners)


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if not (isinstance(value, str) and value):
        raise Malformed(f"{name} must be a text.")
    return value


def _texts(found: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = found.get(name, [])
    if not (isinstance(value, list) and all(isinstance(each, str) and each for each in value)):
        raise Malformed(f"{name} must be a list of texts.")
    return tuple(value)


def hub_of(place: str, hubs: Iterable[str]) -> str | None:
    """The hub that handles a place, None without hubs. Rendezvous hashing: when a hub goes, only its own places move."""
    return max(hubs, key=lambda hub: blake2b(f"{hub} {place}".encode(), digest_size=8).digest(), default=None)


class PresenceWindow:
    """At most one presence event per (recipient, account) in `window_s`; who waits sends the newest. Times are seconds of any steady clock."""

    def __init__(self, window_s: float = PRESENCE_WINDOW_S) -> None:
        self._window_s = window_s
        self._sent: dict[tuple[str, str], float] = {}
        self._order: deque[tuple[float, tuple[str, str]]] = deque()

    def due_s(self, recipient: str, account_id: str, now_s: float) -> float:
        """When this recipient may be told about this account; `now_s` when at once."""
        self._prune(now_s)
        return max(now_s, self._sent.get((recipient, account_id), now_s - self._window_s) + self._window_s)

    def sent(self, recipient: str, account_id: str, now_s: float) -> None:
        """Remembers that the recipient was told."""
        self._sent[recipient, account_id] = now_s
        self._order.append((now_s, (recipient, account_id)))

    def _prune(self, now_s: float) -> None:
        while self._order and self._order[0][0] <= now_s - self._window_s:
            at_s, pair = self._order.popleft()
            if self._sent.get(pair) == at_s:
                del self._sent[pair]
