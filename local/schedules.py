"""EventBridge's scheduled rules: invokes every function with a Schedule route each `every_s` seconds.

An event is sent whether the last one was done or not, and whether it failed or not, as EventBridge does; the first one after one period.
Source: Amazon EventBridge user guide, "Creating a rule that runs on a schedule". EventBridge itself counts in whole minutes and Lambda repeats a failed
asynchronous invocation twice; here seconds are allowed and a failed one is logged.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from functions.routes import Function, Schedule
from local.gateway_limits import ACCOUNT_ID, Invoke

_log = logging.getLogger(__name__)


def scheduled_event(rule: str, region: str, at: datetime) -> dict[str, Any]:
    """The event of one rule at one time, to the second."""
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": ACCOUNT_ID,
        "time": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "region": region,
        "resources": [f"arn:aws:events:{region}:{ACCOUNT_ID}:rule/{rule}"],
        "detail": {},
    }


class Schedules:
    """Runs the Schedule routes of a table from `start` to `close`. Tests make a schedule's second shorter."""

    def __init__(self, functions: Sequence[Function], invoke: Invoke, *, region: str, second_s: float = 1) -> None:
        self._invoke, self._region, self._second_s = invoke, region, second_s
        self._rules = [(function.name, route) for function in functions for route in function.routes if isinstance(route, Schedule)]
        self._clocks: list[asyncio.Task[None]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to count."""
        self._clocks = [asyncio.create_task(self._tick(name, route), name=f"schedule {route.name}") for name, route in self._rules]

    async def close(self) -> None:
        """Stop; what runs is left to itself."""
        tasks = [*self._clocks, *self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tick(self, name: str, route: Schedule) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        while True:
            due_s = max(due_s + route.every_s * self._second_s, loop.time())  # a laptop that slept does not make up for what it missed
            await asyncio.sleep(due_s - loop.time())
            task = loop.create_task(self._fire(name, route))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _fire(self, name: str, route: Schedule) -> None:
        try:
            await self._invoke(name, scheduled_event(route.name, self._region, datetime.now(UTC)))
        except Exception as error:  # the edge of this task: whatever happened, the next one comes
            _log.warning("schedule %s: %s: %s", route.name, type(error).__name__, error)
