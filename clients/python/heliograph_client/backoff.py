"""When to try again, and when to replace a socket or its token before its time is over. Pure: the clock and the dice are arguments (`fraction` is 0 to 1)."""

from __future__ import annotations

from dataclasses import dataclass

BASE_S, CAP_S, STABLE_S = 0.5, 20.0, 60.0
MOST_PATIENCE = 4
SHORTEST_PROOF_S = 1.0


def full_jitter_s(attempt: int, fraction: float, base_s: float = BASE_S, cap_s: float = CAP_S) -> float:
    """Anything between nothing and the exponential bound, so that a crowd does not come back at once."""
    return fraction * min(cap_s, base_s * 2.0 ** min(attempt, 32))


@dataclass(slots=True)
class Backoff:
    """The pauses between attempts to come back; a socket that stayed for `STABLE_S` starts them anew.

    `patience` multiplies how long an answer is waited for. A server that answers too late is busy: a crowd that gives up and starts over keeps it busy with
    work that nobody waits for any more, for ever. So whoever was too impatient waits longer the next time.
    """

    attempt: int = 0
    patience: int = 1
    _opened_at_s: float | None = None

    def opened(self, now_s: float) -> None:
        """A socket is open."""
        self._opened_at_s = now_s

    def pause_s(self, now_s: float, fraction: float) -> float:
        """How long to wait before the next attempt."""
        if self._opened_at_s is not None and now_s - self._opened_at_s >= STABLE_S:
            self.collapse()
        self._opened_at_s = None
        pause_s = full_jitter_s(self.attempt, fraction)
        self.attempt += 1
        return pause_s

    def too_late(self) -> None:
        """The server is there, and its answer did not come in time."""
        self.patience = min(MOST_PATIENCE, 2 * self.patience)

    def collapse(self) -> None:
        """The network is said to be back: begin with short pauses."""
        self.attempt, self.patience = 0, 1


def replace_after_s(at_ms: int, reconnect_by_ms: int, fraction: float) -> float:
    """How long after a welcome of `at_ms` the next socket is opened: 90 to 98 % of the time, by the server's clock alone."""
    return max(0.0, (reconnect_by_ms - at_ms) / 1_000 * (0.9 + 0.08 * fraction))


def prove_after_s(life_s: float, fraction: float) -> float:
    """How long after a token of this life its socket is given the next one: 60 to 90 s before the end, of a short life at 70 to 80 %.

    Never at once: a socket is good for half a minute longer than its token, and a life that seems over already is a mistake of somebody's clock.
    """
    return max(SHORTEST_PROOF_S, life_s - min(60 + 30 * fraction, life_s * (0.2 + 0.1 * fraction)))
