"""One WebSocket, from its opening to its end. Knows frames and client_seq; must not know what frames mean or what comes after the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from .errors import ConnectionLostError
from .frames import SUBPROTOCOL, TICKET_PREFIX, Ack, Event, GatewayMessage, Refusal, build_frame, parse_frame

Frame = Ack | Refusal | Event | GatewayMessage
CLOSE_S = 1.0  # for the closing handshake; a dead network never answers it


async def open_connection(http: aiohttp.ClientSession, url: str, ticket: str, token: str) -> Connection:
    """Open a socket with a fresh ticket that was bought with the access token `token`; raises ConnectionLostError."""
    timeout = aiohttp.ClientWSTimeout(ws_close=CLOSE_S)
    try:
        socket = await http.ws_connect(url, protocols=(SUBPROTOCOL, TICKET_PREFIX + ticket), max_msg_size=256 * 1024, timeout=timeout)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ConnectionLostError(f"The socket did not open: {error}") from error
    return Connection(socket, token)


class Connection:
    """A socket that is open until `ended` is set."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, token: str) -> None:
        """Made by `open_connection`; `start` reads it."""
        self._socket = socket
        self.token = token  # the access token by which the server knows whose socket it is
        self.proving = asyncio.Lock()  # held while a fresh one takes its place
        self.prove_at_s = float("inf")  # when the next one is due, by the loop's clock
        self._client_seq = 0
        self._reader: asyncio.Task[None] | None = None
        self._on_end: Callable[[Connection], None] = lambda _: None
        self.ended = asyncio.Event()
        self.is_superseded = False  # we are opening, or have opened, the next socket: the server may close this one
        self.is_replaced = False  # another socket of this device took the place, and it was not ours
        self.welcome: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

    def start(self, receive: Callable[[Connection, Frame], None], on_end: Callable[[Connection], None]) -> None:
        """Hand out what comes; `on_end` is called once, in the same step in which `ended` is set."""
        self._on_end = on_end
        self._reader = asyncio.create_task(self._read(receive), name="heliograph socket")

    async def send(self, action: str, frame_id: str, trace_id: str, room_id: str | None, body: Mapping[str, Any]) -> None:
        """Transmit a frame under the next client_seq; raises ConnectionLostError, and ValueError for a frame that is too large."""
        text = build_frame(action, frame_id, self._client_seq + 1, trace_id, room_id, body)
        if self.ended.is_set():
            raise ConnectionLostError(f"{action}: the socket is closed.")
        self._client_seq += 1  # no await since it was read, and aiohttp writes before it waits: frames leave in this order
        try:
            await self._socket.send_str(text)
        except (ConnectionError, aiohttp.ClientError) as error:
            raise ConnectionLostError(f"{action}: {error}") from error

    async def close(self) -> None:
        """Say goodbye and end; what waits for this socket is told first."""
        self._end()
        await self._socket.close()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self, receive: Callable[[Connection, Frame], None]) -> None:
        try:
            async for message in self._socket:
                frame = parse_frame(message.data) if message.type is aiohttp.WSMsgType.TEXT else None
                if frame is not None:
                    receive(self, frame)
        finally:
            self._end()

    def _end(self) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        if not self.welcome.done():
            self.welcome.set_exception(self.lost())
            self.welcome.exception()  # retrieved: nobody may be waiting for it
        self._on_end(self)

    def lost(self) -> ConnectionLostError:
        """Why what was sent here has no answer."""
        return ConnectionLostError(f"The socket closed with code {self._socket.close_code}.")
