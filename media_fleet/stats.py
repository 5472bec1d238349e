"""The relay's HTTP endpoint for health checks and meters: `GET /healthz`, `GET /allocations`. For the inside only: bind it to a private address."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus

READ_S = 5.0

Answer = tuple[HTTPStatus, object]


async def serve_stats(host: str, port: int, routes: dict[str, Callable[[], Answer]]) -> asyncio.Server:
    """Serves JSON for each path of `routes`; anything else is 404 or 405."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), READ_S)
            writer.write(_response(*_answer(head, routes)))
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(connected, host, port, limit=8192)


def _answer(head: bytes, routes: dict[str, Callable[[], Answer]]) -> Answer:
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3:
        return HTTPStatus.BAD_REQUEST, {"message": "This is not HTTP."}
    if words[0] != "GET":
        return HTTPStatus.METHOD_NOT_ALLOWED, {"message": "Only GET is answered here."}
    route = routes.get(words[1].partition("?")[0])
    return route() if route else (HTTPStatus.NOT_FOUND, {"message": f"Here are {', '.join(routes)}."})


def _response(status: HTTPStatus, body: object) -> bytes:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return head.encode() + data
