"""Structured log lines of the fleet: one JSON object a line on stderr."""

from __future__ import annotations

import json
import sys
import time


def log(event: str, **fields: object) -> None:
    """Writes `{at_ms, event, ...}`; a closed stderr never stops the relay."""
    line = json.dumps({"at_ms": time.time_ns() // 1_000_000, "event": event, **fields}, default=str)
    try:
        print(line + "\n", end="", file=sys.stderr, flush=True)  # by one write: several processes may share stderr
    except (OSError, ValueError):
        return
