"""The hub inside the product: a room that is too wide for one function, real handlers, real sockets, and a killed hub."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from contextlib import AsyncExitStack
from typing import Any

import pytest

from heliograph_client import Client, Subscription, make_id
from tests.running import RunningStack

SOCKETS, SAID, WITHIN_S = 40, 30, 20.0


def hub_stats(stack: RunningStack) -> dict[str, Any]:
    with urllib.request.urlopen(stack.endpoints()["hub_stats_url"], timeout=2) as answer:  # noqa: S310 - our own address
        found: dict[str, Any] = json.load(answer)
    return found


async def texts(heard: Subscription, until: str) -> list[tuple[int, str]]:
    """(offset, text) of the messages up to that one, as they came."""
    found: list[tuple[int, str]] = []
    async with asyncio.timeout(WITHIN_S):
        async for event in heard:
            found.append((event.offset or 0, event.body["text"]))
            if event.body["text"] == until:
                return found
    raise AssertionError(f"{until} never came; there were {found}")


@pytest.mark.timeout(180)
async def test_forty_sockets_hear_every_message_once_and_in_order_by_the_hub_and_without_it(stack: RunningStack, capsys: pytest.CaptureFixture[str]) -> None:
    endpoints, user, room_id = stack.endpoints(), stack.user("ana"), make_id("room")
    opening = asyncio.Semaphore(4)
    async with AsyncExitStack() as opened:

        async def one() -> tuple[Client, Subscription]:
            async with opening:
                client = await opened.enter_async_context(Client(endpoints["rest_url"], endpoints["socket_url"]))
                await client.sign_in(user["tenant_id"], user["login"], user["password"], make_id("dev"))
                await client.connect()
                if not rooms:
                    rooms.append(await client.create_room("Depot", [], room_id))
                heard = opened.enter_context(client.subscribe("message"))
                await client.join(room_id)
                return client, heard

        rooms: list[Any] = []
        people = [await one(), *await asyncio.gather(*(one() for _ in range(SOCKETS - 1)))]
        speaker = people[0][0]
        jobs = hub_stats(stack)["jobs"]
        for number in range(SAID):
            await speaker.send_text(room_id, f"{number}")
        got = await asyncio.gather(*(texts(heard, f"{SAID - 1}") for _, heard in people[1:]))
        assert all([text for _, text in each] == [f"{number}" for number in range(SAID)] for each in got)
        assert len({tuple(each) for each in got}) == 1, "the same offsets for everybody"
        assert hub_stats(stack)["jobs"] >= jobs + SAID

        stack.kill(stack.endpoints()["pids"]["hub"])
        killed_s = time.monotonic()
        for number in range(SAID):
            await speaker.send_text(room_id, f"after {number}")
        got = await asyncio.gather(*(texts(heard, f"after {SAID - 1}") for _, heard in people[1:]))
        with capsys.disabled():
            print(f"\nhub killed: {SAID} more messages at {SOCKETS - 1} sockets after {time.monotonic() - killed_s:.1f} s / {WITHIN_S:g} s")
        assert all([text for _, text in each] == [f"after {number}" for number in range(SAID)] for each in got)
