"""The callback API `/{stage}/@connections/{id}`: post to, describe and close a socket; every request is signed.

Source: API Gateway developer guide, "Use @connections commands in your backend service"; the service model apigatewaymanagementapi-2018-11-29.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime
from typing import Final
from urllib.parse import unquote

from aiohttp import web
from websockets.exceptions import ConnectionClosed

from adapters import sigv4
from local import gateway_events as events
from local.gateway_faults import Faults
from local.gateway_limits import THROTTLED, Limits, Throttle
from local.gateway_sockets import Connection, SocketApi

_CONNECTION_ID: Final = re.compile(r"[A-Za-z0-9_-]{15}=")


class ConnectionsApi:
    """Answers the requests under `/{stage}/@connections/`."""

    def __init__(
        self, sockets: SocketApi, limits: Limits, *, stage: str, region: str, credentials: sigv4.Credentials, throttle: Throttle, faults: Faults
    ) -> None:
        self._sockets, self._limits, self._region, self._credentials, self._throttle, self._faults = sockets, limits, region, credentials, throttle, faults
        self.prefix = f"/{stage}/@connections/"

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request. The order of the checks is AWS's: signature, form of the id, size, existence; that the rate comes after the signature is assumed."""
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            sigv4.verify_header(
                request.method, request.raw_path, headers, body, credentials=(self._credentials,), region=self._region, service="execute-api", now=_now_s()
            )
        except sigv4.SignatureRefused as refused:
            return _refusal(403, "ForbiddenException", refused.message)
        if not self._throttle.admits("", asyncio.get_running_loop().time()):
            return _refusal(429, "LimitExceededException", THROTTLED)
        connection_id = unquote(request.raw_path.partition("?")[0][len(self.prefix) :])
        if not _CONNECTION_ID.fullmatch(connection_id):
            return _refusal(400, "BadRequestException", f"Invalid connectionId: {connection_id}")
        if len(body) > self._limits.message_bytes:
            return _refusal(413, "PayloadTooLargeException", "Payload Too Large")
        connection = self._sockets.connections.get(connection_id)
        if connection is None:
            return _refusal(410, "GoneException")
        match request.method:
            case "POST":
                return await self._post(connection, body)
            case "GET":
                return _describe(connection)
            case "DELETE":
                self._sockets.drop(connection)
                return web.Response(status=204)
        return _refusal(403, "ForbiddenException", "Missing Authentication Token")

    async def _post(self, connection: Connection, body: bytes) -> web.Response:
        match self._faults.post(connection.handshake.connection_id):
            case "post_410":
                return _refusal(410, "GoneException")
            case "post_429":
                return _refusal(429, "LimitExceededException", THROTTLED)
            case "post_500":
                return _refusal(500, "InternalServerErrorException", "Internal server error")
            case "post_hang":
                await asyncio.sleep(self._faults.settings.hang_s)
                return _refusal(504, "GatewayTimeoutException", "Endpoint request timed out")
        if connection.waiting_bytes > self._limits.client_buffer_bytes:
            return _refusal(429, "LimitExceededException", THROTTLED)
        try:
            await connection.send(body)
        except ConnectionClosed:
            return _refusal(410, "GoneException")
        return web.Response(status=200)


def _describe(connection: Connection) -> web.Response:
    description = {
        "connectedAt": _iso(connection.handshake.connected_at_ms),
        "identity": events.identity_of(connection.handshake),
        "lastActiveAt": _iso(connection.last_active_at_ms),
    }
    return web.Response(body=json.dumps(description).encode(), content_type="application/json")


def _refusal(status: int, error_type: str, text: str | None = None) -> web.Response:
    body = events.message(text) if text else None
    return web.Response(status=status, headers={"x-amzn-ErrorType": error_type}, body=body, content_type="application/json")


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _now_s() -> float:
    return time.time_ns() / 1e9
