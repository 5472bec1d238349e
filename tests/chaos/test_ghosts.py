"""Goodbyes are lost, doubled and late: nobody who left stays in presence or in a roster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bench._running import Issuer
from local.stack import Stack
from tests.chaos.crowd import Crowd, Person, crowd

GHOST_S = 60.0


class BriskStack(Stack):
    """The stack with the shortest heartbeats that the settings allow."""

    def _build_environment(self) -> dict[str, str]:
        return super()._build_environment() | {"HELIOGRAPH_HEARTBEAT_S": "20", "HELIOGRAPH_HEARTBEAT_CALL_S": "5"}


async def until(holds: Callable[[], Awaitable[Any]], timeout_s: float) -> float:
    """Seconds until it holds; infinite when it does not in time."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    while loop.time() - began_s < timeout_s:
        if await holds():
            return loop.time() - began_s
        await asyncio.sleep(0.5)
    return float("inf")


async def without_ghosts(everybody: Crowd, gone: Sequence[Person]) -> tuple[float, float]:
    """Seconds until nobody who stayed sees anybody who is gone: (in presence, in rosters)."""
    accounts, devices = {person.who.account_id for person in gone}, {person.who.device_id for person in gone}
    staying = [person for person in everybody.people if person not in gone]

    async def in_presence() -> bool:
        rows = [row for person in staying for row in await person.client.presence()]
        return not [row for row in rows if row["account_id"] in accounts and row["status"] != "offline"]

    async def in_rosters() -> bool:
        return not [each for person in staying for each in person.client.participants(person.room_id) if each["device_id"] in devices]

    return await asyncio.gather(until(in_presence, GHOST_S + 10), until(in_rosters, GHOST_S + 10))


async def leave(admin_url: str, gone: Sequence[Person], faults: dict[str, float]) -> dict[str, int]:
    """They go, their goodbyes break; answers how many did, and how."""
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{admin_url}/faults", json=faults) as answer:
            answer.raise_for_status()
        await asyncio.gather(*(person.client.close() for person in gone))
        await asyncio.sleep(0.5)
        async with http.get(f"{admin_url}/faults") as answer:
            dealt: dict[str, int] = (await answer.json())["dealt"]
    return dealt


@pytest.mark.timeout(240)
async def test_nobody_is_a_ghost_when_goodbyes_are_lost_doubled_or_late(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """30 of 40 leave, and where one goodbye comes, its post finds those without one. In rooms of two nobody says anything: only silence tells."""
    async with BriskStack(tmp_path) as stack:
        issuer, admin_url = Issuer.of(tmp_path, stack.endpoints), stack.endpoints["admin_url"]
        async with crowd(stack.endpoints, issuer, rooms=5, per_room=2) as pairs, crowd(stack.endpoints, issuer, rooms=4, per_room=10) as many:
            silent, leaving = pairs.people[::2], [person for number, person in enumerate(many.people) if number % 10 < 7][:30]
            mute = await leave(admin_url, silent, {"disconnect_lost": 1})
            broken = {"disconnect_lost": 0.3, "disconnect_duplicated": 0.05, "disconnect_late": 0.05, "disconnect_late_s": 5, "seed": 5}
            dealt = await leave(admin_url, leaving, broken)
            found = await asyncio.gather(without_ghosts(many, leaving), without_ghosts(pairs, silent))
            with capsys.disabled():
                for who, gone, faults, (presence_s, roster_s) in ((many, leaving, dealt, found[0]), (pairs, silent, mute, found[1])):
                    print(f"\n{len(gone)} of {len(who.people)} left, goodbyes broken: {faults} (heartbeat 20 s)")
                    print(f"  no ghost in presence after {presence_s:.1f} s / {GHOST_S:g} s, in rosters after {roster_s:.1f} s / {GHOST_S:g} s")
            assert dealt["disconnect_lost"] > 0
            assert mute["disconnect_lost"] == len(silent)
            assert max(max(times) for times in found) < float("inf"), "a ghost stayed"
