"""What a test may break on purpose: `$disconnect` lost, told twice or late, and posts that are refused or hang. Nothing is broken unless it is asked for.

Each decision is drawn from one seeded generator, so a run with the same seed and the same order of events breaks the same things.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

POST_FAULTS: Final = ("post_410", "post_429", "post_500", "post_hang")


class BadFaults(Exception):
    """The wish cannot be read; the text is one sentence."""


@dataclass(frozen=True, slots=True)
class FaultSettings:
    """Probabilities from 0 to 1. `targets` holds posts' probabilities of single connections by id, which then count instead of the general ones."""

    disconnect_lost: float = 0
    disconnect_duplicated: float = 0
    disconnect_late: float = 0
    disconnect_late_s: float = 3
    post_410: float = 0
    post_429: float = 0
    post_500: float = 0
    post_hang: float = 0
    hang_s: float = 30
    seed: int = 0
    targets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def parse(wish: object) -> FaultSettings:
    """Settings from JSON; what is not named is off. Raises BadFaults."""
    if not isinstance(wish, dict):
        raise BadFaults("Faults are a JSON object.")
    targets = wish.get("targets", {})
    if not isinstance(targets, dict):
        raise BadFaults("targets is an object: connection id -> posts' probabilities.")
    general = {name: _number(name, value) for name, value in wish.items() if name != "targets"}
    known = {item.name for item in fields(FaultSettings)}
    if unknown := sorted(general.keys() - known):
        raise BadFaults(f"{unknown[0]} is no fault; there are {', '.join(sorted(known))}.")
    return FaultSettings(**general, targets={str(target): _target(chances) for target, chances in targets.items()})


def _target(chances: object) -> Mapping[str, float]:
    if not isinstance(chances, dict) or not chances.keys() <= set(POST_FAULTS):
        raise BadFaults(f"A target has probabilities of {', '.join(POST_FAULTS)}.")
    return {name: _number(name, value) for name, value in chances.items()}


def _number(name: str, value: object) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise BadFaults(f"{name} must be a number that is not negative.")
    if value > 1 and name != "seed" and not name.endswith("_s"):
        raise BadFaults(f"{name} is a probability: 0 to 1.")
    return value


class Faults:
    """The settings in force, and how often each fault was dealt."""

    def __init__(self) -> None:
        self.dealt: Counter[str] = Counter()
        self.set(FaultSettings())

    def set(self, settings: FaultSettings) -> None:
        """Replaces what was in force and begins the random sequence anew."""
        self.settings = settings
        self._random = random.Random(settings.seed)  # noqa: S311, no secret hangs on it
        self.dealt.clear()

    def disconnects(self) -> tuple[float, ...]:
        """When to tell `$disconnect`, in seconds from now: normally once and at once."""
        chosen, delay_s = self.settings, 0.0
        if self._happens("disconnect_lost", chosen.disconnect_lost):
            return ()
        if self._happens("disconnect_late", chosen.disconnect_late):
            delay_s = chosen.disconnect_late_s
        return (delay_s, 0.0) if self._happens("disconnect_duplicated", chosen.disconnect_duplicated) else (delay_s,)

    def post(self, connection_id: str) -> str | None:
        """The fault that this post meets, or None: one draw, the probabilities side by side."""
        chances = self.settings.targets.get(connection_id)
        drawn, below = self._random.random(), 0.0
        for name in POST_FAULTS:
            below += getattr(self.settings, name) if chances is None else chances.get(name, 0)
            if drawn < below:
                self.dealt[name] += 1
                return name
        return None

    def _happens(self, name: str, probability: float) -> bool:
        if self._random.random() >= probability:
            return False
        self.dealt[name] += 1
        return True
