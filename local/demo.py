"""The demo page of the web client over HTTP on loopback, when `clients/web` is built: sign in as a sample user in two tabs, and call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aiohttp import web

WEB: Final = Path(__file__).resolve().parent.parent / "clients" / "web"


def is_built() -> bool:
    """Whether there is a page to serve: `make run` and `make e2e` build it."""
    return (WEB / "dist" / "demo.js").exists()


def application(endpoints: Mapping[str, Any]) -> web.Application:
    """`/demo/` and `/dist/`; the page reads where the stack is, and who may sign in, from `/demo/config.json` (no passwords)."""
    users = [{name: user[name] for name in ("tenant_id", "login", "account_id")} for user in endpoints["users"]]
    config = {"rest_url": endpoints["rest_url"], "socket_url": endpoints["socket_url"], "users": users}

    async def send_config(_: web.Request) -> web.Response:
        return web.json_response(config)

    async def send_page(_: web.Request) -> web.FileResponse:
        return web.FileResponse(WEB / "demo" / "index.html")

    app = web.Application()
    app.router.add_get("/demo/config.json", send_config)
    app.router.add_get("/demo/", send_page)
    app.router.add_static("/demo", WEB / "demo")
    app.router.add_static("/dist", WEB / "dist")
    return app


async def serve(app: web.Application, host: str, port: int = 0) -> web.AppRunner:
    """Serves it; the caller cleans the runner up. Its `addresses` say where."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
