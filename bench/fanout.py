"""One event to 1,000 sockets, four ways: boto3 one after another, boto3 with 32 threads, the sender of a function, the event hub.

The stub of /@connections answers after 8 ms, over plain HTTP on loopback. Time runs until the stub has the last post; CPU is the sender's own.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from adapters import redis_client
from adapters.hub_redis import Hubs
from adapters.outbox_apigateway import SyncOutbox
from adapters.sigv4 import Credentials
from heliograph.fanout import Job
from local import service_redis
from local.services import HOST, choose_ports

SOCKETS, ANSWER_S, ROUNDS, START_S = 1_000, 0.008, 5, 15.0
SEQUENTIAL = 200  # posts of the slowest way; its figures are multiplied
IDS = tuple(f"c{number:04}A=" for number in range(SOCKETS))
BODY = b'{"event":"message","body":{"text":"%s"}}' % (b"x" * 160)
KEYS, REGION = Credentials("local", "secret"), "eu-central-1"
ROOT = Path(__file__).resolve().parent.parent


class _Answering(asyncio.Protocol):
    """Requests one after another, each answered ANSWER_S later."""

    def __init__(self, posted: Any) -> None:
        self._posted, self._buffer = posted, b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = int(self._buffer[:end].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._posted.value += 1
            asyncio.get_running_loop().call_later(ANSWER_S, self._transport.write, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def _stub(posted: Any, port: Any) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: _Answering(posted), HOST, 0, backlog=1024)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    import uvloop

    uvloop.run(serve())


def _wait(what: str, holds: Callable[[], Any]) -> None:
    end_s = time.monotonic() + START_S
    while not holds():
        if time.monotonic() > end_s:
            raise SystemExit(f"still missing after {START_S:g} s: {what}")
        time.sleep(0.001)


def _cpu_s(pid: int) -> float:
    """CPU of another process (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _child(*argv: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, env=os.environ | environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


Way = tuple[str, int, Callable[[], object], Callable[[], float]]  # name, posts, one fan-out, CPU clock


def _ways(url: str, stack: ExitStack) -> list[Way]:
    import boto3
    from botocore.config import Config

    keys = {"aws_access_key_id": KEYS.access_key_id, "aws_secret_access_key": KEYS.secret_key, "region_name": REGION}
    config = Config(max_pool_connections=32, retries={"total_max_attempts": 1})
    client = boto3.client("apigatewaymanagementapi", endpoint_url=url, config=config, **keys)  # type: ignore[call-overload]
    pool = stack.enter_context(ThreadPoolExecutor(32))
    outbox = SyncOutbox(url, region=REGION, credentials=lambda: KEYS)
    stack.callback(outbox.close)

    def post(connection_id: str) -> None:
        client.post_to_connection(ConnectionId=connection_id, Data=BODY)

    def sequential() -> None:
        for connection_id in IDS[:SEQUENTIAL]:
            post(connection_id)

    hubs, hub = _hub(url, stack)
    job = Job("t", "message", BODY, IDS, room_id="room_1")

    def hand_over() -> None:
        if not hubs.hand_over(job):
            raise SystemExit("the hub has no lease")

    return [
        ("boto3, one after another", SEQUENTIAL, sequential, time.process_time),
        ("boto3, 32 threads", SOCKETS, lambda: list(pool.map(post, IDS)), time.process_time),
        ("a function's sender", SOCKETS, lambda: outbox.post_many([(each, BODY) for each in IDS]), time.process_time),
        ("the event hub", SOCKETS, hand_over, lambda: _cpu_s(hub.pid)),
    ]


def _hub(url: str, stack: ExitStack) -> tuple[Hubs, subprocess.Popen[bytes]]:
    ports = choose_ports(("redis",), {})
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    binary = service_redis.resolve({}).binary
    if binary is None:
        raise SystemExit(service_redis.INSTALL_HINT)
    stack.enter_context(_child(*service_redis.child(binary, ports["redis"], folder).argv))
    redis_url = service_redis.url(ports["redis"])
    settings = {"HELIOGRAPH_REDIS_URL": redis_url, "HELIOGRAPH_CONNECTIONS_URL": url, "AWS_REGION": REGION}
    keys = {"AWS_ACCESS_KEY_ID": KEYS.access_key_id, "AWS_SECRET_ACCESS_KEY": KEYS.secret_key}
    hub = stack.enter_context(_child(sys.executable, "-m", "media_fleet", "hub", **settings, **keys))
    client = redis_client.connect(redis_url, "single")
    stack.callback(client.close)
    hubs = Hubs(client, is_cluster=False)
    _wait("a hub with a lease", hubs.live)
    return hubs, hub


def main() -> None:
    posted, port = multiprocessing.Value("i", 0), multiprocessing.Value("i", 0)
    stub = multiprocessing.Process(target=_stub, args=(posted, port), daemon=True)
    stub.start()
    _wait("the stub", lambda: port.value)
    took: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        stack.callback(stub.terminate)
        ways = _ways(f"http://{HOST}:{port.value}/live", stack)
        for number in range(ROUNDS + 1):
            for name, posts, fan_out, cpu_s in ways:
                goal, began_s, cpu_began_s = posted.value + posts, time.perf_counter(), cpu_s()
                fan_out()
                _wait(f"all posts of {name}", lambda goal=goal: posted.value >= goal)  # type: ignore[misc]
                elapsed_s = time.perf_counter() - began_s
                time.sleep(0.05)  # the last answers
                if number:  # the first round opens the connections
                    scale = SOCKETS / posts
                    took.setdefault(name, []).append((elapsed_s * scale, (cpu_s() - cpu_began_s) * scale))
    table = Table("to 1,000 sockets", "ms", "posts/s", "CPU ms", "faster", "less CPU")
    middle = {name: [statistics.median(each[at] for each in rounds) for at in (0, 1)] for name, rounds in took.items()}
    first = next(iter(middle.values()))
    for name, (elapsed_s, cpu) in middle.items():
        ratios = (f"{first[0] / elapsed_s:.1f}x", f"{first[1] / cpu:.1f}x")
        table.add_row(name, f"{elapsed_s * 1000:.0f}", f"{SOCKETS / elapsed_s:.0f}", f"{cpu * 1000:.0f}", *ratios)
    Console().print(f"medians of {ROUNDS} rounds; answers after {ANSWER_S * 1000:g} ms; the first row is {SEQUENTIAL} posts times {SOCKETS // SEQUENTIAL}")
    Console().print(table)


if __name__ == "__main__":
    main()
