"""What a hub still has to post: a queue per socket with one post in flight, presence coalesced and shed first. No I/O; time is an argument.

Rule 1: a socket gets its events in the order they came, one at a time. Rule 2: at most one presence event per (recipient, account) a second, the
newest wins. Rule 3: over `shed_over` posts, presence goes; durable events never do. Rule 4: a socket that let a post run into its time-out
waits in a line of its own, so that many of them cannot take every lane.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

from heliograph.fanout import Job, PresenceWindow

_MAX_SLOW_KEPT = 10_000


@dataclass(slots=True, eq=False)
class Item:
    """One event for one socket. `at_s` is when it became ready to go."""

    job: Job
    at_s: float
    owner: str | None = None
    is_shed: bool = False


@dataclass(slots=True)
class Counts:
    """What did not reach the sender."""

    jobs: int = 0
    shed: int = 0
    coalesced: int = 0
    overflown: int = 0


class Backlog:
    def __init__(self, *, shed_over: int = 10_000, per_socket: int = 256, slow_lanes: int = 16, window: PresenceWindow | None = None) -> None:
        self._shed_over, self._per_socket, self._slow_lanes = shed_over, per_socket, slow_lanes
        self._window = window or PresenceWindow()
        self._queues: dict[str, deque[Item]] = {}
        self._ready: deque[str] = deque()
        self._ready_slow: deque[str] = deque()
        self._busy: set[str] = set()
        self._slow: set[str] = set()
        self._slow_busy: set[str] = set()
        self._presence: dict[tuple[str, str], Item] = {}  # waiting presence by (recipient, account)
        self._held: list[tuple[float, int, str, Item]] = []  # a heap: until its second is over
        self.size = 0  # posts that wait; those in flight do not count
        self.counts = Counts()

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing is in flight."""
        return not self.size and not self._busy

    def add(self, job: Job, now_s: float) -> None:
        """Takes up a job."""
        self.counts.jobs += 1
        for index, connection_id in enumerate(job.connection_ids):
            item = Item(job, now_s, job.owners[index] if job.owners else None)
            if job.may_be_shed:
                self._add_presence(connection_id, item, now_s)
            else:
                self._add_durable(connection_id, item)

    def take(self, now_s: float) -> tuple[str, Item] | None:
        """The next post, whose socket is busy until `done`."""
        while self._ready or (self._ready_slow and len(self._slow_busy) < self._slow_lanes):
            connection_id = (self._ready or self._ready_slow).popleft()
            if connection_id in self._busy or (item := self._pop(connection_id)) is None:
                continue  # `done` puts it into line again, or it was dropped meanwhile
            self._busy.add(connection_id)
            if connection_id in self._slow:
                self._slow_busy.add(connection_id)
            if item.job.may_be_shed:
                pair = (connection_id, item.job.account_id or "")
                self._presence.pop(pair, None)
                self._window.sent(*pair, now_s)
            return connection_id, item
        return None

    def done(self, connection_id: str, *, is_slow: bool = False) -> None:
        """The post of this socket has its outcome; the next one may go."""
        self._busy.discard(connection_id)
        self._slow_busy.discard(connection_id)
        if not is_slow:
            self._slow.discard(connection_id)
        elif len(self._slow) < _MAX_SLOW_KEPT:
            self._slow.add(connection_id)
        if self._queues.get(connection_id):
            self._line(connection_id).append(connection_id)
        else:
            self._queues.pop(connection_id, None)

    def forget(self, connection_id: str) -> int:
        """Drops what waits for a socket that is gone; returns how many posts that were."""
        return self._clear(connection_id)

    def tick(self, now_s: float) -> None:
        """Lets presence go whose second is over."""
        while self._held and (self._held[0][0] <= now_s or self._held[0][3].is_shed):
            *_, connection_id, item = heapq.heappop(self._held)
            if not item.is_shed:
                item.at_s = now_s
                self._append(connection_id, item)

    def next_deadline(self) -> float | None:
        """When `tick` has something to do."""
        return self._held[0][0] if self._held else None

    def _add_presence(self, connection_id: str, item: Item, now_s: float) -> None:
        pair = (connection_id, item.job.account_id or "")
        if waiting := self._presence.get(pair):
            waiting.job = item.job
            self.counts.coalesced += 1
            return
        if self.size >= self._shed_over:
            self.counts.shed += 1
            return
        self.size += 1
        self._presence[pair] = item
        due_s = self._window.due_s(*pair, now_s)
        if due_s > now_s:
            heapq.heappush(self._held, (due_s, id(item), connection_id, item))
        else:
            self._append(connection_id, item)

    def _add_durable(self, connection_id: str, item: Item) -> None:
        if self.size >= self._shed_over:
            self._shed_presence()
        if len(self._queues.get(connection_id, ())) >= self._per_socket:
            self.counts.overflown += self._clear(connection_id)  # it takes nothing any more: its client recovers by position
        self.size += 1
        self._append(connection_id, item)

    def _shed_presence(self) -> None:
        for item in self._presence.values():
            item.is_shed = True
        self.counts.shed += len(self._presence)
        self.size -= len(self._presence)
        self._presence.clear()

    def _append(self, connection_id: str, item: Item) -> None:
        queue = self._queues.setdefault(connection_id, deque())
        queue.append(item)
        if len(queue) == 1 and connection_id not in self._busy:
            self._line(connection_id).append(connection_id)

    def _line(self, connection_id: str) -> deque[str]:
        return self._ready_slow if connection_id in self._slow else self._ready

    def _pop(self, connection_id: str) -> Item | None:
        """The first item that was not shed; without one the queue goes."""
        queue = self._queues.get(connection_id)
        while queue:
            item = queue.popleft()
            if not item.is_shed:
                self.size -= 1
                return item
        self._queues.pop(connection_id, None)
        return None

    def _clear(self, connection_id: str) -> int:
        """Empties a socket's queue; its place in the line stays and finds nothing."""
        dropped = 0
        while item := self._pop(connection_id):
            dropped += 1
            if item.job.may_be_shed:
                self._presence.pop((connection_id, item.job.account_id or ""), None)
        return dropped
