"""The fleet's HTTP endpoint for health checks and meters: JSON, or text where a route says so. For the inside only: bind it to a private address."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

READ_S = 5.0


@dataclass(frozen=True, slots=True)
class Text:
    """A body that is not JSON."""

    data: bytes
    content_type: str


Answer = tuple[HTTPStatus, object]
Routes = Mapping[str, Callable[[], Answer]]


async def serve_stats(host: str, port: int, routes: Routes) -> asyncio.Server:
    """Serves each path of `routes`, a Text as it is and anything else as JSON; other paths are 404 or 405."""

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


def _answer(head: bytes, routes: Routes) -> Answer:
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3:
        return HTTPStatus.BAD_REQUEST, {"message": "This is not HTTP."}
    if words[0] != "GET":
        return HTTPStatus.METHOD_NOT_ALLOWED, {"message": "Only GET is answered here."}
    route = routes.get(words[1].partition("?")[0])
    return route() if route else (HTTPStatus.NOT_FOUND, {"message": f"Here are {', '.join(routes)}."})


def _response(status: HTTPStatus, body: object) -> bytes:
    text = body if isinstance(body, Text) else Text(json.dumps(body).encode(), "application/json")
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {text.content_type}\r\nContent-Length: {len(text.data)}\r\nConnection: close\r\n\r\n"
    return head.encode() + text.data
