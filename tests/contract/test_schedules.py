"""Scheduled invocations against what EventBridge sends."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from functions.routes import Function, Schedule
from local.lambdas import FunctionError
from local.schedules import Schedules, scheduled_event

FUNCTIONS = (
    Function("sweeper", "Sweeps.", (Schedule("sweep", every_s=1),), ()),
    Function("idler", "Rarely.", (Schedule("yearly", every_s=31_536_000),), ()),
    Function("other", "Has no schedule.", (), ()),
)


class World:
    """What was invoked, and what the function does."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.fails: Exception | None = None
        self.hangs = False
        self.schedules = Schedules(FUNCTIONS, self.invoke, region="eu-central-1", second_s=0.4)

    async def invoke(self, name: str, event: object) -> object:
        self.events.append((name, event))
        if self.fails is not None:
            raise self.fails
        if self.hangs:
            await asyncio.Event().wait()
        return None

    async def run(self, seconds: float) -> list[str]:
        await self.schedules.start()
        await asyncio.sleep(seconds)
        await self.schedules.close()
        return [name for name, _ in self.events]


def test_the_event_has_eventbridges_shape() -> None:
    """EventBridge user guide, "Scheduled Event": these fields, time in whole seconds UTC, an empty detail."""
    at = datetime(2026, 3, 1, 13, 0, 0, 999_999, timezone(timedelta(hours=1)))
    event = scheduled_event("sweep", "eu-central-1", at)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", event.pop("id"))
    assert event == {
        "version": "0",
        "detail-type": "Scheduled Event",
        "source": "aws.events",
        "account": "000000000000",
        "time": "2026-03-01T12:00:00Z",
        "region": "eu-central-1",
        "resources": ["arn:aws:events:eu-central-1:000000000000:rule/sweep"],
        "detail": {},
    }
    assert scheduled_event("sweep", "eu-central-1", at)["id"] != scheduled_event("sweep", "eu-central-1", at)["id"]


async def test_a_function_is_invoked_each_period_and_first_after_one() -> None:
    """Schedule expressions: the countdown begins when the rule is made."""
    world = World()
    assert await world.run(0.2) == []
    assert await world.run(1.0) == ["sweeper", "sweeper"]
    at = datetime.strptime(world.events[0][1]["time"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - at) < timedelta(seconds=5)


async def test_a_failing_invoke_is_followed_by_the_next() -> None:
    """EventBridge does not stop a rule whose target fails, however it fails."""
    function, anything = World(), World()
    function.fails, anything.fails = FunctionError("ValueError", "boom"), KeyError("sweeper")
    assert tuple(await asyncio.gather(function.run(1.0), anything.run(1.0))) == (["sweeper", "sweeper"],) * 2


async def test_a_slow_invoke_does_not_hold_up_the_next_and_not_the_end() -> None:
    """EventBridge invokes asynchronously: it waits for nobody."""
    world = World()
    world.hangs = True
    assert await asyncio.wait_for(world.run(1.0), 2) == ["sweeper", "sweeper"]
