"""API Gateway on the laptop: an HTTP API, a WebSocket API and its callback API before the functions of a route table.

It knows routes and events, not how functions run: `invoke(name, event)` answers or raises `local.lambdas.FunctionError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from adapters import sigv4
from functions.routes import Function
from local.gateway_admin import AdminApi
from local.gateway_connections import ConnectionsApi
from local.gateway_faults import Faults
from local.gateway_http import PARSER_BYTES, HttpApi
from local.gateway_limits import Invoke, Limits, Throttle
from local.gateway_sockets import SocketApi


class Gateway:
    """Both APIs and a way for tests to disturb them. `http_url`, `socket_url`, `connections_url` and `admin_url` hold once it is started."""

    def __init__(
        self,
        functions: Sequence[Function],
        invoke: Invoke,
        *,
        stage: str = "local",
        region: str,
        credentials: sigv4.Credentials,
        limits: Limits | None = None,
        allow_origins: Sequence[str] = (),
    ) -> None:
        self._limits, self._stage = limits or Limits(), stage
        throttle, faults = Throttle(self._limits), Faults()
        self._http = HttpApi(functions, invoke, self._limits, region, allow_origins, throttle)
        self._sockets = SocketApi(functions, invoke, self._limits, stage, region, throttle=throttle, faults=faults)
        self._connections = ConnectionsApi(self._sockets, self._limits, stage=stage, region=region, credentials=credentials, throttle=throttle, faults=faults)
        self._admin = AdminApi(self._sockets, faults)
        self._runner: web.ServerRunner | None = None
        self.http_url = self.socket_url = self.connections_url = self.admin_url = ""

    async def start(self, host: str = "127.0.0.1", http_port: int = 0, socket_port: int = 0, admin_port: int = 0) -> None:
        """Listen; port 0 takes a free one. The admin endpoint is on loopback whatever the host."""
        server = web.Server(self._handle, request_factory=self._request, max_line_size=PARSER_BYTES, max_field_size=PARSER_BYTES)
        self._runner = web.ServerRunner(server, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, http_port, backlog=1024).start()
        self.http_url = f"http://{host}:{self._runner.addresses[0][1]}"
        self.connections_url = f"{self.http_url}/{self._stage}"
        self.socket_url = f"ws://{host}:{await self._sockets.start(host, socket_port)}/{self._stage}"
        self.admin_url = await self._admin.start(admin_port)

    async def close(self) -> None:
        """Close every socket, then stop listening for HTTP: `$disconnect` may still post."""
        await self._admin.close()
        await self._sockets.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.raw_path.startswith(self._connections.prefix):
            return await self._connections.handle(request)
        return await self._http.handle(request)

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: asyncio.Task[None]) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=self._limits.http_body_bytes)
