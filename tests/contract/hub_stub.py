"""A stub of /@connections in raw asyncio that answers as a test says, and what tests of the hub share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pytest

from adapters import keys, sigv4
from adapters.connections_redis import Connections
from adapters.hub_redis import Hubs
from heliograph.fanout import Job
from heliograph.presence import Connection
from heliograph.rooms import Participant
from local.supervisor import Supervisor
from media_fleet.hub import Hub, HubConfig

ROOM = "room_1"
KEYS = sigv4.Credentials("local", "secret")
REGION = "eu-central-1"
HANG_S = 30.0


@dataclass
class Server:
    """A Redis, or a cluster of them. `kind` is how the names of its hubs begin."""

    url: str
    client: Any
    mode: str = "single"
    kind: str = ""
    supervisor: Supervisor | None = None


def answer_of(status: int) -> bytes:
    return f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()


@dataclass
class StubGateway:
    """`statuses` has what each socket answers, one after another, then 200; 0 means no answer for HANG_S."""

    statuses: dict[str, list[int]] = field(default_factory=dict)
    delay_s: float = 0.0
    posted: list[tuple[float, str, bytes]] = field(default_factory=list)  # those answered with 200
    asked: int = 0
    in_flight: dict[str, int] = field(default_factory=dict)
    overlapped: set[str] = field(default_factory=set)
    url: str = ""

    async def __aenter__(self) -> StubGateway:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/live"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().partition("content-length: ")[2].partition("\r\n")[0])
                connection_id = unquote(head.split(" ")[1].rpartition("/")[2])
                writer.write(await self._answer(connection_id, await reader.readexactly(length)))
        writer.close()
        self._tasks.discard(task)

    async def _answer(self, connection_id: str, body: bytes) -> bytes:
        self.asked += 1
        if self.in_flight.get(connection_id):
            self.overlapped.add(connection_id)
        self.in_flight[connection_id] = self.in_flight.get(connection_id, 0) + 1
        try:
            left = self.statuses.get(connection_id)
            status = (left.pop(0) if len(left) > 1 else left[0]) if left else 200
            if status == 0 or self.delay_s:
                await asyncio.sleep(self.delay_s if status else HANG_S)
        finally:
            self.in_flight[connection_id] -= 1
        if status == 200:
            self.posted.append((asyncio.get_running_loop().time(), connection_id, body))
        return answer_of(status)


@pytest.fixture
async def gateway() -> AsyncIterator[StubGateway]:
    async with StubGateway() as stub:
        yield stub


def config(server: Server, gateway: StubGateway, **more: Any) -> HubConfig:
    return HubConfig(redis_url=server.url, redis_mode=server.mode, connections_url=gateway.url, region=REGION, credentials=lambda: KEYS, **more)


def job(tenant_id: str, data: str, connection_ids: tuple[str, ...], room_id: str = ROOM) -> Job:
    return Job(tenant_id, "message", data.encode(), connection_ids, room_id=room_id)


async def hand_over(hubs: Hubs, what: Job) -> bool:
    return await asyncio.to_thread(hubs.hand_over, what)


def fill_room(client: Any, tenant_id: str, room_id: str, connection_ids: Sequence[str], per_account: int = 5) -> None:
    """Sockets in a room, a few to an account. A large room is written at once, as the adapter writes its entries: entering one by one reads it each time."""
    connections, entries = Connections(client), {}
    for number, connection_id in enumerate(connection_ids):
        account_id = f"acc_{number // per_account}"
        connections.put(tenant_id, account_id, Connection(connection_id, f"dev_{number}", 1, "online", 1))
        entries[connection_id] = json.dumps([account_id, f"dev_{number}"])
        if len(connection_ids) <= 100:
            connections.enter_room(tenant_id, room_id, Participant(connection_id, account_id, f"dev_{number}"))
    client.hset(keys.room_live(tenant_id, room_id), mapping=entries)


async def until(what: str, holds: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """The first true value; fails with a sentence that says what is still missing."""
    end_s = asyncio.get_running_loop().time() + timeout_s
    while not (value := holds()):
        if asyncio.get_running_loop().time() > end_s:
            raise AssertionError(f"still missing after {timeout_s:g} s: {what}")
        await asyncio.sleep(0.02)
    return value


async def leased(hub: Hub, timeout_s: float = 30.0) -> Hub:
    await until("the hub's lease", lambda: hub.has_lease, timeout_s)
    return hub


async def quiet(hub: Hub, timeout_s: float = 60.0) -> None:
    await until("a quiet hub", lambda: hub.stats()["jobs"] and hub.stats()["backlog"] == hub.stats()["in_flight"] == 0, timeout_s)


def fresh(server: Server) -> Hubs:
    """The way of a function that has read nothing yet."""
    return Hubs(server.client, is_cluster=server.mode == "cluster")
