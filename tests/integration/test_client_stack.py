"""The client against the whole product: both write while sockets are replaced and cut; both have the room's stream, each event once."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from heliograph_client import Client, Event, Position, make_id
from tests.running import RunningStack


@contextlib.asynccontextmanager
async def online(stack: RunningStack, login: str, **options: Any) -> AsyncIterator[Client]:
    endpoints, user = stack.endpoints(), stack.user(login)
    async with Client(endpoints["rest_url"], endpoints["socket_url"], **options) as client:
        await client.sign_in(user["tenant_id"], user["login"], user["password"])
        await client.connect()
        yield client


class Reader:
    """What an application has of a room."""

    def __init__(self, client: Client, room_id: str) -> None:
        self.client, self.room_id = client, room_id
        self.known: list[tuple[int, str]] = []
        self.delays_s: list[float] = []
        self.resets: list[Event] = []
        client.on("message", self._receive)
        client.on("stream_reset", self.resets.append)

    def _receive(self, event: Event) -> None:
        assert event.offset is not None
        self.known.append((event.offset, event.body["text"]))
        self.delays_s.append(now_s() - float(event.body["text"].split()[1]))

    async def write(self, name: str, count: int, every_s: float) -> None:
        for _ in range(count):
            text = f"{name} {now_s()}"
            ack = await self.client.send_text(self.room_id, text, timeout_s=20)
            assert ack.offset is not None
            self.known.append((ack.offset, text))
            await asyncio.sleep(every_s)


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def until(holds: Callable[[], bool], missing: str, timeout_s: float = 15.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - what is awaited lives in another process
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"after {timeout_s:g} s still missing: {missing}")


async def stream_of(client: Client, room_id: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    while page := (await client.rest.call("GET", f"/v1/rooms/{room_id}/events", query={"after": str(len(found))}))["events"]:
        found += [(event["offset"], event["body"]["text"]) for event in page]
    return found


async def test_a_planned_replacement_loses_and_doubles_nothing(stack: RunningStack, capsys: pytest.CaptureFixture[str]) -> None:
    async with online(stack, "ana", reconnect_every_s=1.1) as ana, online(stack, "ben", reconnect_every_s=0.9) as ben:
        room_id = make_id("room")
        await ana.create_room("Swap", [ben.session.account_id], room_id)
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        readers = Reader(ana, room_id), Reader(ben, room_id)
        await asyncio.gather(readers[0].write("ana", 120, 0.04), readers[1].write("ben", 120, 0.04))
        truth = await stream_of(ana, room_id)
        await until(lambda: all(len(reader.known) >= len(truth) for reader in readers), "texts")
    delays_s = sorted(delay_s for reader in readers for delay_s in reader.delays_s)
    with capsys.disabled():
        print(f"\nswap on the stack: {len(delays_s)} events, median {delays_s[len(delays_s) // 2] * 1000:.0f} ms, slowest {delays_s[-1] * 1000:.0f} ms")
    for reader in readers:
        assert sorted(reader.known) == truth
        assert reader.resets == []
    assert len(truth) == 240


async def test_cut_sockets_lose_and_double_nothing(stack: RunningStack) -> None:
    async with online(stack, "ana") as ana, online(stack, "ben") as ben:
        room_id = make_id("room")
        await ana.create_room("Cuts", [ben.session.account_id], room_id)
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        readers = Reader(ana, room_id), Reader(ben, room_id)

        async def cut() -> None:
            for _ in range(8):
                await asyncio.sleep(random.uniform(0.1, 0.5))
                client = random.choice((ana, ben))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await (await client._current())._socket.close()
                client.network_available()

        await asyncio.gather(readers[0].write("ana", 60, 0.02), readers[1].write("ben", 60, 0.02), cut())
        truth = await stream_of(ana, room_id)
        await until(lambda: all(len(reader.known) >= len(truth) for reader in readers), "texts")
        await until(lambda: len(ana.participants(room_id)) == 2, "both in ana's roster")
    for reader in readers:
        assert sorted(reader.known) == truth
        assert reader.resets == []


async def test_a_long_absence_is_read_in_order_by_pages(stack: RunningStack) -> None:
    async with online(stack, "ana") as ana, online(stack, "ben") as ben:
        room_id = make_id("room")
        room = await ana.create_room("Absence", [ben.session.account_id], room_id)
        await ana.join(room_id)
        await Reader(ana, room_id).write("ana", 230, 0)
        reader = Reader(ben, room_id)
        await ben.join(room_id, after=Position(room["epoch"], 0))
        await until(lambda: len(reader.known) >= 230, "texts")
        assert reader.known == await stream_of(ben, room_id)


async def test_the_hint_brings_the_socket_back_within_a_second(stack: RunningStack, capsys: pytest.CaptureFixture[str]) -> None:
    async with online(stack, "ana") as ana:
        url = ana._link._url
        ana._link._url = "ws://127.0.0.1:9"  # the network is gone
        await (await ana._current())._socket.close()
        await asyncio.sleep(3)
        assert not ana.is_online
        ana._link._url = url
        before_s = now_s()
        ana.network_available()
        await until(lambda: ana.is_online, "the socket")
        elapsed_s = now_s() - before_s
    with capsys.disabled():
        print(f"\nonline on the stack {elapsed_s * 1000:.0f} ms after the hint")
    assert elapsed_s < 1
