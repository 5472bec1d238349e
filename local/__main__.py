"""`python -m local`: the whole product on this machine, one real call through it, and up until Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import re
import signal
import sys
from collections.abc import Coroutine
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from adapters.settings import PREFIX, Settings
from local.gateway_limits import Limits
from local.services import LocalError, files_note, raise_file_limit
from local.stack import Stack
from local.supervisor import ChildFailed


class Progress:
    """The table of what is starting, one line per service; once all is up, a line for each death and return."""

    def __init__(self, console: Console) -> None:
        self.states: dict[str, str] = {}
        self.is_up = False
        self._console = console

    def report(self, name: str, state: str) -> None:
        """Called by the stack."""
        self.states[name] = state
        if self.is_up and not state.startswith(("starting", "waiting", "restoring")):
            self._console.print(f"{name}: {state}")

    def table(self) -> Table:
        """As it stands now."""
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, state in self.states.items():
            table.add_row(f"[bold]{name}[/]", f"[green]{state}[/]" if state == "ready" else state)
        return table


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m local", description="Run Heliograph on this machine; no AWS account, no Docker.")
    parser.add_argument("--once", action="store_true", help="make one call through everything, then end; the exit code says whether it worked")
    parser.add_argument("--no-scenario", action="store_true", help="start and stay up without making the call")
    parser.add_argument("--in-process", action="store_true", help="run the functions in this process, for a debugger")
    parser.add_argument("--redis", choices=("single", "cluster"), default="single", help="one Redis server, or a cluster of three nodes (%(default)s)")
    parser.add_argument(
        "--time-scale",
        type=_scale,
        default=1.0,
        metavar="N",
        help="how much faster a socket's idle time (10 min) and life (2 h) pass: with 60 one minute of the gateway is a second (%(default)g)",
    )
    parser.add_argument("--data", type=Path, default=Path(".local"), help="folder for data, secrets, logs and endpoints.json (default: .local)")
    parser.add_argument(
        "--set", action="append", default=[], type=_setting, metavar="NAME=VALUE", help="a setting of the functions (docs/settings.md), e.g. ACCESS_TOKEN_S=60"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but failures")
    return parser.parse_args(argv)


def _setting(text: str) -> tuple[str, str]:
    """NAME=VALUE; ValueError unless it is one."""
    name, equals, value = text.partition("=")
    if not equals or PREFIX + name.upper() not in {PREFIX + item.name.upper() for item in fields(Settings)}:
        raise ValueError
    return name.upper(), value


def _scale(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


async def run(options: argparse.Namespace) -> int:
    """Start, make the call, stay up. Returns the exit code."""
    console = Console(quiet=options.quiet, highlight=False)
    progress = Progress(console)
    _end_on_signal()
    if note := files_note(raise_file_limit()):
        console.print(note)
    limits = Limits(time_scale=options.time_scale)
    stack = Stack(options.data, in_process=options.in_process, redis_mode=options.redis, limits=limits, settings=dict(options.set), report=progress.report)
    async with contextlib.AsyncExitStack() as cleanup:
        try:
            with Live(get_renderable=progress.table, console=console, refresh_per_second=8, transient=True):
                await cleanup.enter_async_context(stack)
        except (LocalError, ChildFailed) as reason:
            print(reason, file=sys.stderr)
            return 1
        progress.is_up = True
        console.print(f"Ready in {stack.started_in_s:.1f} s.")
        console.print(endpoints_table(stack.endpoints))
        console.print(f"All of it, with sample passwords and pids: {stack.endpoints_file}")
        status = 0 if options.no_scenario else await make_call(stack.endpoints, console)
        if options.once:
            return status
        if status:
            print("The call through the stack failed; the stack stays up so that you can look.", file=sys.stderr)
        console.print("Up until Ctrl-C.")
        await asyncio.Event().wait()
    return 0


def _end_on_signal() -> None:
    """The first Ctrl-C or SIGTERM cancels this task; later ones must not disturb the clean end."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()

    def end() -> None:
        if task is not None and not task.cancelling():
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)


async def make_call(endpoints: dict[str, Any], console: Console) -> int:
    """The main job, through the endpoints like anybody else."""
    try:
        from local import scenario

        return await scenario.run(endpoints, console=console)
    except Exception as error:
        print(f"The scenario itself failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def endpoints_table(endpoints: dict[str, Any]) -> Table:
    """What a person needs to try things."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    rows = {
        "web demo": endpoints.get("demo_url", "not built: `make e2e` builds it, with Node 20 or newer"),
        "REST": endpoints["rest_url"],
        "WebSocket": endpoints["socket_url"],
        "@connections": endpoints["connections_url"],
        "gateway admin": endpoints["admin_url"],
        "S3, SQS, secrets, KMS": endpoints["s3_url"],
        "relay": endpoints["relay"]["url"],
        "relay statistics": endpoints["relay"]["stats_url"],
        "stub push server": endpoints["push_stub_url"],
        "stub identity provider": endpoints["identity_url"],
        "Redis": endpoints["redis_url"],
        "MongoDB": endpoints["mongodb_uri"],
    }
    for name, where in rows.items():
        table.add_row(f"[bold]{name}[/]", re.sub("//[^/@]*@", "//…@", where))  # a store of somebody's own has a password in its URL
    for user in endpoints["users"]:
        table.add_row(f"[bold]{user['login']}[/] ({user['tenant_id']}, {user['role']})", user["password"])
    return table


def _run_loop(work: Coroutine[Any, Any, int]) -> int:
    """Under uvloop where it is installed: the gateway's sockets are this process's main cost."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return int(uvloop.run(work))


def main() -> int:
    """The exit code: 0 also when a signal ended it."""
    options = parse(sys.argv[1:])
    try:
        return _run_loop(run(options))
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 130 if options.once else 0


if __name__ == "__main__":
    sys.exit(main())
