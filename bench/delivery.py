"""From socket to socket: client, gateway, worker, MongoDB, /@connections, gateway, clients. 100 messages/s in, 1,000 deliveries/s out.

The clients share the machine with everything else. Times are taken in this process alone.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from heliograph_client import make_id
from local.stack import Stack

ROOMS, PER_ROOM = 10, 11
RATES = (50, 100, 150)
ROUNDS, ROUND_S = 5, 4.0


@dataclass(slots=True)
class Meter:
    """Delivery times of one round."""

    started: dict[str, float] = field(default_factory=dict)
    delivered_ms: list[float] = field(default_factory=list)
    acknowledged: int = 0
    refused: int = 0


@dataclass(slots=True)
class Socket:
    room_id: str
    ws: aiohttp.ClientWebSocketResponse
    sent: int = 1

    async def send(self, action: str, body: dict[str, Any], room_id: str | None = None) -> str:
        self.sent += 1
        frame = {"action": action, "id": make_id("msg"), "client_seq": self.sent, "trace_id": secrets.token_hex(8), "body": body}
        await self.ws.send_str(json.dumps(frame | ({"room_id": room_id} if room_id else {})))
        return str(frame["id"])


async def open_socket(http: aiohttp.ClientSession, endpoints: dict[str, Any], room_id: str, limit: asyncio.Semaphore) -> Socket:
    user = next(user for user in endpoints["users"] if user["login"] == "ana")
    base, key = endpoints["rest_url"], {"Idempotency-Key": secrets.token_hex(8)}
    async with limit:
        body = {"tenant_id": user["tenant_id"], "login": user["login"], "password": user["password"], "device_id": make_id("dev")}
        async with http.post(f"{base}/v1/tokens", json=body, headers=key) as answer:
            auth = {"Authorization": f"Bearer {(await answer.json())['access_token']}", **key}
        async with http.post(f"{base}/v1/rooms", json={"room_id": room_id, "name": "bench", "member_ids": []}, headers=auth) as answer:
            await answer.read()  # the first of the room makes it, the others are told that it is there
        async with http.post(f"{base}/v1/tickets", headers=auth) as answer:
            ticket = (await answer.json())["ticket"]
        socket = Socket(room_id, await http.ws_connect(endpoints["socket_url"], protocols=["heliograph.v1", f"ticket.{ticket}"]))
        join_id = await socket.send("join", {}, room_id)
        while (await socket.ws.receive_json()).get("re") != join_id:
            pass
    return socket


async def listen(socket: Socket, meter: list[Meter]) -> None:
    async for message in socket.ws:
        frame = json.loads(message.data)
        if frame.get("event") == "message":
            started = meter[0].started.get(frame["body"]["id"])
            if started is not None:
                meter[0].delivered_ms.append((time.perf_counter() - started) * 1000)
        elif "offset" in frame and "re" in frame:
            meter[0].acknowledged += 1
        elif "code" in frame:
            meter[0].refused += 1


async def round_at(rate: int, sockets: list[Socket], meter: list[Meter]) -> Meter:
    meter[0] = Meter()
    senders = sockets[::PER_ROOM]
    began = time.perf_counter()
    for number in range(int(rate * ROUND_S)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        socket = senders[number % len(senders)]
        started = time.perf_counter()
        meter[0].started[await socket.send("message", {"text": "x" * 100}, socket.room_id)] = started
    expected = int(rate * ROUND_S) * (PER_ROOM - 1)
    for _ in range(100):
        if len(meter[0].delivered_ms) >= expected:
            break
        await asyncio.sleep(0.1)
    return meter[0]


async def main() -> None:
    table = Table("in /s", "out /s", "acknowledged", "delivered", "p50 ms", "p95 ms", "p99 ms")
    with tempfile.TemporaryDirectory() as folder:
        async with Stack(Path(folder)) as stack, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            rooms, limit = [make_id("room") for _ in range(ROOMS)], asyncio.Semaphore(2)
            sockets = await asyncio.gather(*(open_socket(http, stack.endpoints, room_id, limit) for room_id in rooms for _ in range(PER_ROOM)))
            meter = [Meter()]
            listeners = [asyncio.create_task(listen(socket, meter)) for socket in sockets]
            await round_at(50, sockets, meter)  # warm
            for rate in RATES:
                rounds = [await round_at(rate, sockets, meter) for _ in range(ROUNDS)]
                sent, out = sum(len(r.started) for r in rounds), sum(len(r.delivered_ms) for r in rounds)
                cuts = [statistics.quantiles(r.delivered_ms, n=100) for r in rounds if len(r.delivered_ms) > 1]
                middle = [statistics.median(cut[at] for cut in cuts) for at in (49, 94, 98)]
                table.add_row(
                    str(rate),
                    str(rate * (PER_ROOM - 1)),
                    f"{sum(r.acknowledged for r in rounds)} of {sent}",
                    f"{out} of {sent * (PER_ROOM - 1)}",
                    *(f"{value:.1f}" for value in middle),
                )
            for listener in listeners:
                listener.cancel()
    Console().print(
        f"medians of {ROUNDS} rounds of {ROUND_S:g} s, {ROOMS} rooms of {PER_ROOM} sockets; real handlers, MongoDB and Redis; clients on the same cores"
    )
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
