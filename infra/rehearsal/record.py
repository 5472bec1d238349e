"""What the rehearsal did, step by step: progress lines for the person who waits, and the JSON that is kept."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1


class RehearsalError(Exception):
    """The rehearsal cannot go on; the text is one sentence that says what failed and where to look."""


@dataclass(slots=True)
class Record:
    """Steps and findings of one stand-in, and sentences for what did not hold."""

    stand_in: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    findings: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def require(self, holds: bool, failure: str) -> None:
        """Note a requirement that does not hold; the rehearsal goes on."""
        if not holds:
            self.failures.append(f"{self.stand_in}: {failure}")
            print(f"   {self.stand_in:9} FAILED   {failure}", flush=True)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Time one step; what is worth showing goes into the yielded dict's `note`."""
        step: dict[str, Any] = {"name": name, "seconds": 0.0, "ok": False, "note": ""}
        self.steps.append(step)
        started_s, failures = time.monotonic(), len(self.failures)
        try:
            yield step
            step["ok"] = len(self.failures) == failures
        finally:
            step["seconds"] = round(time.monotonic() - started_s, 1)
            print(f"{'ok' if step['ok'] else '!!'} {self.stand_in:9} {step['seconds']:6.1f} s  {name}{': ' if step['note'] else ''}{step['note']}", flush=True)

    def as_json(self) -> dict[str, Any]:
        return {"ok": not self.failures, "failures": self.failures, "steps": self.steps, **self.findings}


def write(path: Path, result: dict[str, Any]) -> None:
    """All at once, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".tmp")
    new.write_text(json.dumps(result, indent=2) + "\n")
    new.replace(path)
