"""What a frame costs a warm signaling function in CPU, beside the usual way of writing one; and what a cold start imports.

Both run the same frames through their own Lambda handler, in a process of their own, with real Redis and MongoDB and a stub of AWS in other processes.
CPU is time.process_time of the handler's process: what Lambda bills beyond it is waiting. `--profile ACTION` says where ours goes.
"""

from __future__ import annotations

import cProfile
import io
import json
import os
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench._signal_world import ROOT, World, new_id, stores, world
from bench.imports import FIRST_CALL, cost

RUNS, FRAMES, WARM = 5, 300, 30
CONTEXT: Final = SimpleNamespace(function_name="signal", aws_request_id="00000000-0000-0000-0000-000000000000", function_version="1", memory_limit_in_mb=512)
TRACE: Final = {"LAMBDA_TASK_ROOT": "/var/task", "_X_AMZN_TRACE_ID": "Root=1-5f84c7a1-0123456789abcdef01234567;Parent=0123456789abcdef;Sampled=1"}
_OURS, _NAIVE = "functions.signal.handler", "bench._naive_signal"
_SDKS: Final = [FIRST_CALL[resource] for resource in ("redis", "mongo", "connections", "timers")]
_LOGGER: Final = "from aws_lambda_powertools import Logger; Logger(service='x')"


def makers(made: World) -> dict[str, Callable[[], dict[str, Any]]]:
    """The measured frames."""
    return {
        "ping": lambda: made.ana.frame("ping", {}),
        "ping, 1 room": made.ping,
        "message": made.message,
        "candidate": lambda: made.candidate(new_id("call")),
        "offer": lambda: made.offer(new_id("call")),
    }


def measure(module: str, made: World, profile: str | None) -> dict[str, float]:
    """CPU ms per frame of each action, in this process."""
    import importlib

    handler = importlib.import_module(module).handler
    _greet(module, handler, made)
    found = {}
    for action, frame in makers(made).items():
        for _ in range(WARM):
            _must_be_taken(handler(frame(), CONTEXT))
        events = [frame() for _ in range(FRAMES)]
        profiler = cProfile.Profile() if action == profile else None
        started = time.process_time()
        if profiler is not None:
            profiler.enable()
        answers = [handler(event, CONTEXT) for event in events]
        if profiler is not None:
            profiler.disable()
            text = io.StringIO()
            pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(45)
            print(text.getvalue(), file=sys.stderr)
        found[action] = (time.process_time() - started) * 1000 / FRAMES
        for answer in answers:
            _must_be_taken(answer)
    return found


def _greet(module: str, handler: Callable[..., Any], made: World) -> None:
    """Both sockets are there and in the room."""
    if module == _OURS:
        for person in (made.ana, made.ben):
            _must_be_taken(handler(person.frame("hello", {}), CONTEXT))
            _must_be_taken(handler(person.frame("join", {}, made.room_id), CONTEXT))
    else:
        for person in (made.ana, made.ben):
            _must_be_taken(handler(person.frame("ping", {"rooms": [{"room_id": made.room_id}]}), CONTEXT))


def _must_be_taken(answer: dict[str, Any]) -> None:
    if "re" not in json.loads(answer["body"]) or "code" in json.loads(answer["body"]):
        raise AssertionError(answer["body"])


def child(module: str, redis_url: str, mongodb_uri: str, profile: str | None = None) -> dict[str, float]:
    """The same in a fresh process, in a world of its own."""
    with world(redis_url, mongodb_uri) as made:
        environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT)} | made.environment() | (TRACE if module == _NAIVE else {})
        people = json.dumps([made.room_id, *((p.account_id, p.device_id, p.connection_id) for p in (made.ana, made.ben))])
        command = [sys.executable, "-m", "bench.signal_cpu", "--child", module, made.redis_url, made.mongodb_uri, made.aws_url, people, profile or ""]
        ended = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=None if profile else subprocess.PIPE, check=False)
        if ended.returncode:
            raise RuntimeError((ended.stderr or b"").decode()[-3000:])
        found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
        return found


def _as_child(module: str, redis_url: str, mongodb_uri: str, aws_url: str, people: str, profile: str) -> None:
    room_id, ana, ben = json.loads(people)
    made = World(redis_url, mongodb_uri, aws_url, room_id)
    for person, (account_id, device_id, connection_id) in ((made.ana, ana), (made.ben, ben)):
        person.account_id, person.device_id, person.connection_id = account_id, device_id, connection_id
    said, log = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)  # log lines are written, as in Lambda, but not read
    found = measure(module, made, profile or None)
    os.write(said, json.dumps(found).encode() + b"\n")
    os._exit(0)  # drivers' background threads are not waited for


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder, stores(Path(folder)) as (redis_url, mongodb_uri):
        if sys.argv[1:2] == ["--profile"]:
            child(_OURS, redis_url, mongodb_uri, sys.argv[2])
            return
        rounds = [{module: child(module, redis_url, mongodb_uri) for module in (_OURS, _NAIVE)} for _ in range(RUNS)]
        table = Table("CPU ms", "ours", "naive", "naive / ours")
        for action in rounds[0][_OURS]:
            ours, naive = (statistics.median(each[module][action] for each in rounds) for module in (_OURS, _NAIVE))
            table.add_row(action, f"{ours:.2f}", f"{naive:.2f}", f"{naive / ours:.1f}x")
        cold_ours_ms, cold_naive_ms = cost([f"import {_OURS}", _LOGGER, *_SDKS]).ms, _cold_naive_ms(redis_url, mongodb_uri)
        table.add_section()
        table.add_row("cold: imports and clients", f"{cold_ours_ms:.0f}", f"{cold_naive_ms:.0f}", f"{cold_naive_ms / cold_ours_ms:.1f}x")
    console = Console()
    console.print(table)
    console.print(f"Per frame: median of {RUNS} processes, {FRAMES} frames each after {WARM}. ping: a bare one, and one that keeps up with a room.")
    console.print(
        "message, candidate, offer: one socket to post to; offer: a timer queued too. Ours also checks SDP and candidates and decides by the call's record."
    )
    console.print("Nothing here is TLS; both sides keep their connections.")
    console.print("naive: boto3 clients, pydantic, redis, pymongo, Powertools Logger and Tracer; same records, same posts.")


def _cold_naive_ms(redis_url: str, mongodb_uri: str) -> float:
    with world(redis_url, mongodb_uri) as made:
        environ = [f"import os; os.environ.update({made.environment() | TRACE!r})"]
        return cost([*environ, f"import {_NAIVE}"]).ms


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _as_child(*sys.argv[2:])
    else:
        main()
