"""What the ledger still has to be told of allocations: the newest snapshot of each living one, and the final record of each that ended. No I/O.

Rule 1: a later record of an allocation takes the place of an earlier one; counters only grow. Rule 2: an allocation that carried nothing since its last
stored record is not told again. Rule 3: over `most` records the oldest snapshots go; without one to give up, the oldest final record is handed back, for
the log. Rule 4: after a failure nothing is taken for a while that doubles with each one, up to MAX_PAUSE_S. Times are seconds of any steady clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from media_fleet.readings import AllocationUsage

MOST: Final = 50_000  # about 25 MB; at 1,000 allocations that end a minute, 50 minutes
FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 60.0
_Key = tuple[str, int]


class UsageBuffer:
    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._finals: dict[_Key, AllocationUsage] = {}  # both in the order they came
        self._snapshots: dict[_Key, AllocationUsage] = {}
        self._told: dict[_Key, int] = {}  # of living allocations: the packets in the last stored record
        self._failures = 0
        self._due_s = float("-inf")
        self.given_up = 0

    def __len__(self) -> int:
        return len(self._finals) + len(self._snapshots)

    def snapshot(self, usage: AllocationUsage) -> None:
        """How a living allocation stands."""
        if usage.packets > self._told.setdefault(usage.key, 0):
            self._snapshots.pop(usage.key, None)
            self._snapshots[usage.key] = usage
            if len(self) > self._most:
                self._give_up_snapshot()

    def end(self, usage: AllocationUsage) -> list[AllocationUsage]:
        """The final record of an allocation; returns those that found no room."""
        self._told.pop(usage.key, None)
        self._snapshots.pop(usage.key, None)
        self._finals[usage.key] = usage
        return self._within_bound()

    def take(self, limit: int, now_s: float) -> list[AllocationUsage]:
        """The next records to write, final ones first; each batch is given back by one of the three methods below. None during a pause."""
        if now_s < self._due_s:
            return []
        taken: list[AllocationUsage] = []
        for waiting in (self._finals, self._snapshots):
            while waiting and len(taken) < limit:
                taken.append(waiting.pop(next(iter(waiting))))
        return taken

    def stored(self, batch: Iterable[AllocationUsage]) -> None:
        """These records are in the ledger."""
        self._failures = 0
        for usage in batch:
            if usage.ended_at_ms is None and usage.key in self._told:
                self._told[usage.key] = max(usage.packets, self._told[usage.key])

    def failed(self, batch: Sequence[AllocationUsage], now_s: float) -> list[AllocationUsage]:
        """These records could not be written: they wait first in line, and nothing is taken for a while. Returns those that found no room."""
        self._due_s = now_s + min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._finals = {usage.key: usage for usage in batch if usage.ended_at_ms is not None} | self._finals
        older = {usage.key: usage for usage in batch if usage.ended_at_ms is None and usage.key in self._told}
        self._snapshots = older | self._snapshots  # of two of one allocation, the newer
        return self._within_bound()

    def put_off(self, batch: Iterable[AllocationUsage]) -> list[AllocationUsage]:
        """These final records cannot be written yet for a reason of their own: they wait last in line. Returns those that found no room."""
        self._finals |= {usage.key: usage for usage in batch}
        return self._within_bound()

    def hurry(self) -> None:
        """Ends the pause."""
        self._due_s = float("-inf")

    def drain(self) -> list[AllocationUsage]:
        """Everything that waits, final records first; afterwards nothing does."""
        left = [*self._finals.values(), *self._snapshots.values()]
        self._finals, self._snapshots = {}, {}
        return left

    def _within_bound(self) -> list[AllocationUsage]:
        over = []
        while len(self) > self._most:
            if self._snapshots:
                self._give_up_snapshot()
            else:
                over.append(self._finals.pop(next(iter(self._finals))))
        return over

    def _give_up_snapshot(self) -> None:
        del self._snapshots[next(iter(self._snapshots))]
        self.given_up += 1
