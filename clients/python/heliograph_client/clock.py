"""The server's time, by which tokens and sockets end: the wall clock's until the server tells it, then counted on from there."""

from __future__ import annotations

import time

from .ids import now_ms


class Clock:
    """A wall clock that is wrong, or is set while we run, changes nothing once the server has told its time."""

    def __init__(self) -> None:
        """Starts with the wall clock."""
        self.told(now_ms())

    def told(self, at_ms: int) -> None:
        """It is `at_ms` on the server."""
        self._at_ms, self._at_s = at_ms, time.monotonic()

    def now_ms(self) -> int:
        """The server's time in milliseconds UTC."""
        return self._at_ms + int((time.monotonic() - self._at_s) * 1_000)
