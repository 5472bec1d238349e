"""Socket, gateway, worker process, sender, socket: the whole way of a frame, with a toy function."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from adapters import sigv4
from functions.routes import Socket
from local.gateway import Gateway
from local.lambdas import Lambdas
from tests.contract.toys import Toy

LOCAL = sigv4.Credentials("local", "secret", "session")
_ROUTES = tuple(Socket(key, "Toy.") for key in ("who", "repeat", "close"))
FUNCTIONS = (Toy("repeater", "Repeats a frame to others.", _ROUTES, ()),)


@dataclass
class Cloud:
    """A gateway with two workers behind it, and the way in."""

    url: str
    stack: AsyncExitStack

    async def open(self) -> tuple[ClientConnection, str]:
        socket = await self.stack.enter_async_context(connect(self.url, compression=None))
        await socket.send('{"action":"who"}')
        return socket, str(await socket.recv())


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    environment = {"AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "session"}
    lambdas: Lambdas | None = None

    async def invoke(name: str, event: object) -> object:
        assert lambdas is not None
        return await lambdas.invoke(name, event)

    gateway = Gateway(FUNCTIONS, invoke, region="eu-central-1", credentials=LOCAL)
    await gateway.start()
    lambdas = Lambdas(FUNCTIONS, environment=environment | {"CONNECTIONS_URL": gateway.connections_url}, log_dir=tmp_path, max_environments=2)
    await lambdas.start()
    async with AsyncExitStack() as stack:
        yield Cloud(gateway.socket_url, stack)
    await gateway.close()
    await lambdas.close()


def _frame(action: str, to: list[str], text: str = "") -> str:
    return json.dumps({"action": action, "to": to, "text": text})


async def test_a_frame_reaches_every_socket_it_names_and_nobody_else(cloud: Cloud) -> None:
    """The sender's outcomes are those of the real service: 200 delivered, 410 gone, 413 too large."""
    (first, _), (second, second_id), (third, third_id), (fourth, fourth_id) = [await cloud.open() for _ in range(4)]
    await fourth.close()
    await first.send(_frame("repeat", [second_id, fourth_id, third_id], "grüß"))
    assert [await second.recv(), await third.recv()] == ["grüß", "grüß"]
    assert json.loads(await first.recv()) == ["delivered", "gone", "delivered"]
    await first.send(_frame("close", [third_id]))
    assert await first.recv() == "delivered"
    with pytest.raises(ConnectionClosed):
        await third.recv()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(second.recv(), 0.05)


async def test_fan_out_to_many_sockets(cloud: Cloud) -> None:
    """Prints latency and throughput; the floors are loose, for a shared machine."""
    sockets = [await cloud.open() for _ in range(50)]
    sender, listeners = sockets[0][0], sockets[1:]
    ids = [connection_id for _, connection_id in listeners]

    async def listen(socket: ClientConnection, count: int) -> list[float]:
        return [-(float(await socket.recv()) - time.perf_counter_ns() / 1e9) * 1000 for _ in range(count)]

    times_ms = []
    for _ in range(20):
        await sender.send(_frame("repeat", ids[:1], str(time.perf_counter_ns() / 1e9)))
        times_ms += await listen(listeners[0][0], 1)
        await sender.recv()
    print(f"one to one: p50 {statistics.median(times_ms):.2f} ms")
    rounds, started = 20, time.perf_counter()
    listening = asyncio.gather(*(listen(socket, rounds) for socket, _ in listeners))
    for _ in range(rounds):
        await sender.send(_frame("repeat", ids, str(time.perf_counter_ns() / 1e9)))
        assert set(json.loads(await sender.recv())) == {"delivered"}
    late_ms = sorted(ms for found in await listening for ms in found)
    rate = rounds * len(ids) / (time.perf_counter() - started)
    print(f"one to {len(ids)}: {rate:.0f} deliveries/s, p50 {late_ms[len(late_ms) // 2]:.1f} ms, p99 {late_ms[len(late_ms) * 99 // 100]:.1f} ms")
    assert rate > 200
