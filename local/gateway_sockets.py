"""The WebSocket API: handshake with authorizer and `$connect`, route selection, frames and limits, `$disconnect`.

Messages of one connection are invoked concurrently, as AWS does: nothing orders them across invocations.
Source: API Gateway developer guide, "WebSocket APIs"; the shapes of events and answers stand in gateway_events.
Documented are the quotas; assumed is how a throttled client hears of it: 429 at the handshake, the gateway's own frame on an open socket. Observed of AWS, not
documented: 1001 "Going away" when a socket idled or lived too long. Only messages count as activity; whether a protocol ping does is documented nowhere.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import logging
import secrets
import time
from collections.abc import Coroutine, Sequence
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from functions.routes import Authorizer, Function, Socket
from local import gateway_events as events
from local.gateway_faults import Faults
from local.gateway_limits import THROTTLED, Invoke, Limits, Throttle
from local.lambdas import FunctionError

_log = logging.getLogger(__name__)
_BAD_GATEWAY = 502
_GOING_AWAY = (1001, "Going away")
_BACKLOG = 4096  # a reconnect storm waits in the kernel, as it would at AWS's edge; the kernel caps it (net.core.somaxconn)


@dataclasses.dataclass(slots=True, eq=False)
class Connection:
    """One live socket."""

    handshake: events.Handshake
    socket: ServerConnection
    subprotocol: str | None
    last_active_at_ms: int
    opened_s: float  # the loop's clock
    active_s: float

    def touch(self) -> None:
        """A message went one way or the other."""
        self.last_active_at_ms, self.active_s = _now_ms(), asyncio.get_running_loop().time()

    @property
    def waiting_bytes(self) -> int:
        """What the client has been sent and has not read."""
        return self.socket.transport.get_write_buffer_size()

    async def send(self, data: str | bytes) -> None:
        """One text message to the client; raises ConnectionClosed."""
        self.touch()
        await self.socket.send(data, text=True)


class _Refused(Exception):
    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status, self.text = status, text


class SocketApi:
    """Carries the sockets; `connections` holds those that are open, by connection id."""

    def __init__(self, functions: Sequence[Function], invoke: Invoke, limits: Limits, stage: str, region: str, *, throttle: Throttle, faults: Faults) -> None:
        self._invoke, self._limits, self._stage, self._region, self._throttle, self._faults = invoke, limits, stage, region, throttle, faults
        self._routes = {route.key: (function.name, route) for function in functions for route in function.routes if isinstance(route, Socket)}
        identities = {route.identity_header: function.name for function in functions for route in function.routes if isinstance(route, Authorizer)}
        self._authorizer = identities.get("sec-websocket-protocol")
        self.connections: dict[str, Connection] = {}
        self._opening: dict[ServerConnection, Connection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._expiry: asyncio.Task[None] | None = None
        self._server: Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; answers the port."""
        self._server = await serve(
            self._receive,
            host,
            port,
            backlog=_BACKLOG,
            process_request=self._open,
            select_subprotocol=self._select_subprotocol,
            compression=None,
            server_header=None,
            open_timeout=2 * self._limits.socket_timeout_s,
            ping_interval=None,
            close_timeout=2,
            max_size=(self._limits.message_bytes, self._limits.frame_bytes),
            write_limit=self._limits.client_buffer_bytes + 2 * self._limits.message_bytes,  # refused with 429 before a send has to wait
        )
        self._expiry = asyncio.get_running_loop().create_task(self._expire())
        port_found: int = next(iter(self._server.sockets)).getsockname()[1]
        return port_found

    async def close(self) -> None:
        """Close every socket with 1001, tell `$disconnect`, end."""
        self._closing.set()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._server is not None:
            self._server.close(code=_GOING_AWAY[0], reason=_GOING_AWAY[1])
            await self._server.wait_closed()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=5)
            for task in late:
                task.cancel()

    @property
    def handshaking(self) -> int:
        """Sockets that `$connect` has admitted and that are not open yet."""
        return len(self._opening)

    def drop(self, connection: Connection, code: int = 1000, reason: str = "") -> None:
        """Close one socket from our side; it is gone at once, the closing handshake follows."""
        self.connections.pop(connection.handshake.connection_id, None)
        self._spawn(connection.socket.close(code, reason))

    def cut(self, count: int | None = None) -> int:
        """Break the oldest `count` sockets, or all of them, without a close frame; answers how many."""
        chosen = list(self.connections.values())[:count]
        for connection in chosen:
            connection.socket.transport.abort()
        return len(chosen)

    async def _expire(self) -> None:
        """Close what has idled or lived too long: one timer for all of them."""
        idle_s, life_s, loop = self._limits.real_idle_s, self._limits.real_connection_s, asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(1.0, idle_s / 20, life_s / 20))
            now_s = loop.time()
            for connection in [c for c in self.connections.values() if now_s - c.active_s >= idle_s or now_s - c.opened_s >= life_s]:
                self.drop(connection, *_GOING_AWAY)

    # --- handshake

    async def _open(self, socket: ServerConnection, request: Request) -> Response | None:
        """Authorizer, then `$connect`; the connection exists only afterwards."""
        path, _, query = request.path.partition("?")
        connection_id, request_id = new_connection_id(), _new_request_id()
        try:
            if path.rstrip("/") != f"/{self._stage}":
                raise _Refused(403, "Forbidden")
            if not self._throttle.admits_connection(asyncio.get_running_loop().time()):
                raise _Refused(429, THROTTLED)
            remote = socket.remote_address
            handshake = events.Handshake(connection_id, self._stage, list(request.headers.raw_items()), query, remote[0] if remote else "127.0.0.1", _now_ms())
            handshake = await self._authorize(handshake, request_id)
            subprotocol = await self._connect(handshake, request_id)
        except _Refused as refused:
            body = events.error_frame(refused.text, connection_id, request_id) if refused.text else ""
            return _response(refused.status, body)
        now_s = asyncio.get_running_loop().time()
        connection = Connection(handshake, socket, subprotocol, _now_ms(), now_s, now_s)
        self._opening[socket] = connection
        self._spawn(self._until_closed(connection))
        return None

    async def _authorize(self, handshake: events.Handshake, request_id: str) -> events.Handshake:
        if "$connect" not in self._routes or self._authorizer is None:
            return handshake
        if not handshake.header("sec-websocket-protocol"):
            raise _Refused(401, "Unauthorized")
        event = events.socket_authorizer_event(handshake, request_id, self._region)
        try:
            answer = await asyncio.wait_for(self._invoke(self._authorizer, event), self._limits.authorizer_timeout_s)
            is_allowed, context = events.parse_policy(answer, events.method_arn(self._stage, self._region))
        except (FunctionError, events.MalformedAnswer, TimeoutError) as error:
            _log.warning("authorizer of $connect: %s", error)
            raise _Refused(500, "Internal server error") from error
        if not is_allowed:
            raise _Refused(403, "Forbidden")
        return dataclasses.replace(handshake, authorizer=context)

    async def _connect(self, handshake: events.Handshake, request_id: str) -> str | None:
        """Invoke `$connect`; the subprotocol it chose."""
        if "$connect" not in self._routes:
            return None
        function, _ = self._routes["$connect"]
        try:
            raw = await asyncio.wait_for(self._invoke(function, events.connect_event(handshake, request_id)), self._limits.socket_timeout_s)
            answer = events.parse_socket_answer(raw)
        except TimeoutError as error:
            raise _Refused(504, "Endpoint request timed out") from error
        except (FunctionError, events.MalformedAnswer) as error:
            _log.warning("$connect: %s", error)
            raise _Refused(_BAD_GATEWAY, "Internal server error") from error
        if not 200 <= answer.status < 300:
            raise _Refused(answer.status)
        return answer.headers.get("sec-websocket-protocol")

    def _select_subprotocol(self, socket: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
        """Exactly one of the offered ones, or none; then a browser drops the connection."""
        connection = self._opening.get(socket)
        return next((one for one in offered if connection is not None and one == connection.subprotocol), None)

    # --- the open socket

    async def _receive(self, socket: ServerConnection) -> None:
        connection = self._opening.pop(socket)
        self.connections[connection.handshake.connection_id] = connection
        try:
            async for data in socket:
                if isinstance(data, bytes):
                    await socket.close(1003, "Binary is not supported")
                    return
                connection.touch()
                self._spawn(self._message(connection, data))
        except ConnectionClosed:
            pass

    async def _message(self, connection: Connection, body: str) -> None:
        handshake, request_id = connection.handshake, _new_request_id()
        key = events.select_route(body, self._routes)
        if key is None:
            await self._send(connection, events.error_frame("Forbidden", handshake.connection_id, request_id))
            return
        if not self._throttle.admits(key, asyncio.get_running_loop().time()):
            await self._send(connection, events.error_frame(THROTTLED, handshake.connection_id, request_id))
            return
        function, route = self._routes[key]
        event = events.message_event(handshake, key, request_id, _new_request_id(), body, _now_ms())
        try:
            answer = events.parse_socket_answer(await asyncio.wait_for(self._invoke(function, event), self._limits.socket_timeout_s))
        except TimeoutError:
            await self._send(connection, events.error_frame("Endpoint request timed out", handshake.connection_id, request_id))
        except (FunctionError, events.MalformedAnswer) as error:
            _log.warning("%s %s: %s", function, key, error)
            await self._send(connection, events.error_frame("Internal server error", handshake.connection_id, request_id))
        else:
            if route.answers and answer.body:
                await self._send(connection, answer.body)

    async def _send(self, connection: Connection, data: str | bytes) -> None:
        try:
            await connection.send(data)
        except ConnectionClosed:
            _log.debug("the answer to %s came after its socket closed", connection.handshake.connection_id)

    async def _until_closed(self, connection: Connection) -> None:
        socket, handshake = connection.socket, connection.handshake
        await socket.wait_closed()
        self._opening.pop(socket, None)
        self.connections.pop(handshake.connection_id, None)
        if "$disconnect" not in self._routes:
            return
        event = events.disconnect_event(handshake, _new_request_id(), *_how_closed(socket), _now_ms())
        for delay_s in self._faults.disconnects():
            if delay_s:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), delay_s)
            await self._disconnect(event)

    async def _disconnect(self, event: events.Event) -> None:
        try:
            await asyncio.wait_for(self._invoke(self._routes["$disconnect"][0], event), self._limits.socket_timeout_s)
        except (FunctionError, TimeoutError) as error:
            _log.warning("$disconnect: %s", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _how_closed(socket: ServerConnection) -> tuple[int, str]:
    """Code and reason of whoever closed first; 1006 when nobody said anything."""
    protocol = socket.protocol
    frame = protocol.close_rcvd if protocol.close_rcvd_then_sent else protocol.close_sent or protocol.close_rcvd
    return (int(frame.code), frame.reason) if frame else (1006, "")


def new_connection_id() -> str:
    """As AWS makes them: 15 characters and an equals sign."""
    return base64.urlsafe_b64encode(secrets.token_bytes(11)).decode()


def _new_request_id() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(11)).decode()


def _response(status: int, body: str) -> Response:
    data = body.encode()
    headers = Headers([("Content-Type", "application/json"), ("Content-Length", str(len(data))), ("Connection", "close")])
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    return Response(status, phrase, headers, data)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
