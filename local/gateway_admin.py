"""The tests' hand inside the local gateway: faults and broken sockets. On loopback only; nothing like it exists in AWS.

`GET /sockets` counts, `POST /sockets/close` breaks, `GET | POST | DELETE /faults` reads, sets and ends faults.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from local.gateway_faults import BadFaults, Faults, FaultSettings, parse
from local.gateway_sockets import SocketApi

_HOST: Final = "127.0.0.1"


class AdminApi:
    """Answers the admin endpoint."""

    def __init__(self, sockets: SocketApi, faults: Faults) -> None:
        self._sockets, self._faults = sockets, faults
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> str:
        """Listen; answers the URL."""
        app = web.Application(middlewares=[_no_browsers])
        app.router.add_get("/sockets", self._count)
        app.router.add_post("/sockets/close", self._close)
        app.router.add_get("/faults", self._read)
        app.router.add_post("/faults", self._set)
        app.router.add_delete("/faults", self._end)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, _HOST, port).start()
        return f"http://{_HOST}:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _count(self, _: web.Request) -> web.Response:
        return web.json_response({"open": len(self._sockets.connections), "handshaking": self._sockets.handshaking})

    async def _close(self, request: web.Request) -> web.Response:
        wish = await _json(request)
        count = wish.get("count") if isinstance(wish, dict) else wish
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
            raise _refused("count must be a whole number that is not negative; without it all sockets are closed.")
        return web.json_response({"closed": self._sockets.cut(count)})

    async def _read(self, _: web.Request) -> web.Response:
        return self._state()

    async def _set(self, request: web.Request) -> web.Response:
        try:
            self._faults.set(parse(await _json(request)))
        except BadFaults as reason:
            raise _refused(str(reason)) from None
        return self._state()

    async def _end(self, _: web.Request) -> web.Response:
        self._faults.set(FaultSettings())
        return self._state()

    def _state(self) -> web.Response:
        return web.json_response({**asdict(self._faults.settings), "dealt": dict(self._faults.dealt)})


@web.middleware
async def _no_browsers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A page somebody opens must not reach in: neither across origins nor under another host name."""
    if "origin" in request.headers or request.host.rpartition(":")[0] not in (_HOST, "localhost"):
        raise web.HTTPForbidden
    return await handler(request)


async def _json(request: web.Request) -> object:
    text = await request.text()
    try:
        return json.loads(text) if text else {}
    except ValueError:
        raise _refused("The body is not JSON.") from None


def _refused(text: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=json.dumps({"message": text}), content_type="application/json")
