"""Everybody's socket breaks at once, sockets come to the end of their two hours: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

import pytest

from bench._running import Issuer, running
from tests.chaos.crowd import Crowd, crowd

BACK_S = 30.0


def nothing_is_lost(everybody: Crowd, unstored: int) -> None:
    assert not everybody.refused
    assert not everybody.surprises()
    assert (everybody.duplicates(), everybody.disorder(), unstored) == (0, 0, 0)


@pytest.mark.timeout(420)
async def test_two_hundred_sockets_that_break_at_once_are_back_and_have_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path) as stack:
        endpoints = stack.endpoints()
        async with crowd(endpoints, Issuer.of(tmp_path, endpoints), rooms=20, per_room=10) as everybody:
            stop = asyncio.Event()
            writing = asyncio.create_task(everybody.write(20, stop))
            await asyncio.sleep(2)
            back_s = await everybody.dropped(endpoints["admin_url"])
            await asyncio.sleep(2)
            stop.set()
            await writing
            settled_s = await everybody.settled(90)
            unstored = await everybody.unstored()
            waits = sorted(sent.acknowledged_s - sent.at_s for sent in everybody.sent if sent.acknowledged_s)
            with capsys.disabled():
                print(f"\nall {len(everybody.people)} sockets broken at once: everybody back after {back_s:.1f} s / {BACK_S:g} s")
                print(f"  {len(everybody.acknowledged())} of {len(everybody.sent)} texts acknowledged, the longest wait {waits[-1]:.1f} s")
                print(everybody.summary(settled_s))
            nothing_is_lost(everybody, unstored)


@pytest.mark.timeout(240)
async def test_fifty_rotations_under_way_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two hours pass in eight seconds: clients replace their sockets before that, and one in three is late on purpose and is thrown out by the gateway."""
    async with running(tmp_path, "--time-scale", "900") as stack:
        endpoints, issuer = stack.endpoints(), Issuer.of(tmp_path, stack.endpoints())
        async with crowd(endpoints, issuer, rooms=3, per_room=3, reconnect_every_s=4.0, late=3) as everybody:
            stop, began_s = asyncio.Event(), asyncio.get_running_loop().time()
            writing = asyncio.create_task(everybody.write(20, stop))
            while everybody.rotations() < 50:
                assert asyncio.get_running_loop().time() - began_s < 90, f"only {everybody.rotations()} rotations"
                await asyncio.sleep(0.2)
            stop.set()
            await writing
            settled_s = await everybody.settled(60)
            unstored = await everybody.unstored()
            forced = sum(person.rotations for person in everybody.people if person.is_late)
            waits = [sent.acknowledged_s - sent.at_s for sent in everybody.sent if sent.acknowledged_s]
            with capsys.disabled():
                print(
                    f"\n{everybody.rotations()} rotations / 50 in {asyncio.get_running_loop().time() - began_s:.0f} s, {forced} of them forced by the gateway"
                )
                print(f"  {len(everybody.acknowledged())} of {len(everybody.sent)} texts acknowledged")
                print(f"  waiting for an acknowledgement: median {statistics.median(waits) * 1000:.0f} ms, longest {max(waits):.2f} s")
                print(everybody.summary(settled_s))
            assert forced > 0
            nothing_is_lost(everybody, unstored)
