"""The judges of these tests find what they look for: a lost, a doubled and a late text."""

from __future__ import annotations

from typing import Any, cast

import pytest

from bench._running import Issuer, new_identity
from bench._swarm import Device, Swarm
from tests.chaos.crowd import Crowd, Person, Sent


class Shelf:
    """What MongoDB would answer."""

    def __init__(self, events: list[tuple[int, str]]) -> None:
        self._events = events

    def stored(self, room_ids: list[str]) -> dict[str, list[tuple[int, str]]]:
        return dict.fromkeys(room_ids, self._events)


STORED = [(1, "m1"), (2, "m2")]


def two_people(shown: list[int], stored: list[tuple[int, str]]) -> Crowd:
    writer, reader = (Person(new_identity(), "room", cast(Any, None)) for _ in range(2))
    reader.shown = [(offset, 0.0) for offset in shown]
    crowd = Crowd([writer, reader], cast(Issuer, Shelf(stored)))
    crowd.sent = [Sent("room", writer.who.device_id, 0.0, 1.0, offset) for offset in (1, 2)]
    return crowd


@pytest.mark.parametrize(
    ("shown", "stored", "verdict"),
    [
        ([1, 2], STORED, (0, 0, 0, 0)),
        ([1], STORED, (1, 0, 0, 0)),
        ([1, 2, 2], STORED, (0, 1, 0, 0)),
        ([2, 1], STORED, (0, 0, 1, 0)),
        ([1, 2], STORED[:1], (0, 0, 0, 1)),
        ([1, 2], [*STORED, (3, "m2")], (0, 0, 0, 1)),
    ],
)
async def test_the_crowds_judge(shown: list[int], stored: list[tuple[int, str]], verdict: tuple[int, ...]) -> None:
    crowd = two_people(shown, stored)
    assert (len(crowd.missing()), crowd.duplicates(), crowd.disorder(), await crowd.unstored()) == verdict


@pytest.mark.parametrize(
    ("delivered", "stored", "verdict"),
    [
        (STORED, STORED, (0, 0, 0, 0)),
        (STORED[:1], STORED, (1, 0, 0, 0)),
        ([*STORED, (3, "m2")], STORED, (0, 1, 0, 0)),
        ([(2, "m2"), (1, "m1")], STORED, (0, 0, 1, 0)),
        (STORED, STORED[:1], (0, 0, 0, 1)),
    ],
)
async def test_the_swarms_judge(delivered: list[tuple[int, str]], stored: list[tuple[int, str]], verdict: tuple[int, ...]) -> None:
    swarm = Swarm(cast(Any, None), {}, cast(Issuer, Shelf(stored)))
    writer, reader = (Device(swarm, new_identity(), "room") for _ in range(2))
    writer.own, reader.delivered, swarm.devices = dict(STORED), delivered, [writer, reader]
    found = swarm.verdict()
    await swarm.close()
    assert (found.lost, found.duplicates, found.disorder, found.unstored) == verdict
