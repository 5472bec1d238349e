"""A node of the fleet as a process, a function that hands out relay credentials, and clients that use them: all as in a deployment, on loopback."""

from __future__ import annotations

import asyncio
import http.server
import json
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlsplit

from aioice.turn import create_turn_endpoint

from bench._signal_world import Person, World, as_function
from functions.ice_servers.handler import handler
from local.services import choose_ports
from tests.contract.hub_stub import until
from tests.integration.test_hub_process import environment

MONGODB_SECRET: Final = "relay-mongodb"


@contextmanager
def secrets_manager(mongodb_uri: str = "") -> Iterator[str]:
    """Answers GetSecretValue as AWS does, whoever asks; the secret with the ledger's URI has a value only where one is given. Its URL."""

    class SecretsManager(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["SecretId"]
            value = {"current": "new", "previous": "old"} if asked != MONGODB_SECRET else {"uri": mongodb_uri} if mongodb_uri else None
            found = {"__type": "ResourceNotFoundException"} if value is None else {"Name": asked, "SecretString": json.dumps(value)}
            body = json.dumps(found).encode()
            self.send_response(400 if value is None else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SecretsManager) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class NodeProcess:
    """`python -m media_fleet node`; `says` are the lines of its log so far."""

    def __init__(self, aws_url: str, redis_url: str, connections_url: str, **settings: str) -> None:
        self.stats_port = choose_ports(("stats",), {})["stats"]
        mine = environment(
            HELIOGRAPH_REDIS_URL=redis_url,
            HELIOGRAPH_CONNECTIONS_URL=connections_url,
            HELIOGRAPH_TURN_SECRET_ID="turn",
            HELIOGRAPH_TURN_LISTEN="127.0.0.1:0",
            HELIOGRAPH_RELAY_ADDRESS="127.0.0.1",
            HELIOGRAPH_STATS_LISTEN=f"127.0.0.1:{self.stats_port}",
            AWS_ENDPOINT_URL=aws_url,
            **{f"HELIOGRAPH_{name.upper()}": value for name, value in settings.items()},
        )
        command = [sys.executable, "-m", "media_fleet", "node"]
        self.process = subprocess.Popen(command, env=mine, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.says: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.says.append(json.loads(line) if line.startswith("{") else {"event": line})

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.says if line["event"] == event]

    def ask(self, path: str) -> tuple[int, str]:
        """The answer of its HTTP endpoint; status 0 while there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.stats_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()
        except OSError:
            return 0, ""

    async def ended(self, within_s: float = 20) -> int:
        """Its exit code."""
        code = await asyncio.to_thread(self.process.wait, within_s)
        self._reader.join(5)
        return code

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill -9."""
        self.process.kill()


@asynccontextmanager
async def node(aws_url: str, redis_url: str, connections_url: str, **settings: str) -> AsyncIterator[NodeProcess]:
    """A node that is in the registry."""
    running = NodeProcess(aws_url, redis_url, connections_url, **settings)
    try:
        await until("the node in the registry", lambda: running.said("relay_registered") or running.process.poll() is not None, 20)
        assert running.process.poll() is None, running.says
        yield running
    finally:
        running.process.kill()
        await running.ended()


@contextmanager
def function(aws_url: str, redis_url: str) -> Iterator[None]:
    """This process as the function of GET /v1/ice-servers, with `x` as its configured relay."""
    with as_function(World(redis_url, "", aws_url)):
        yield


def ice_servers(who: Person) -> list[dict[str, Any]]:
    """What GET /v1/ice-servers answers to somebody."""
    about = {"authorizer": {"lambda": who.identity().as_context()}, "http": {"sourceIp": "127.0.0.1"}}
    answer = handler({"routeKey": "GET /v1/ice-servers", "headers": {}, "requestContext": about}, SimpleNamespace(function_name="f", aws_request_id="r"))
    assert answer["statusCode"] == 200, answer
    found: list[dict[str, Any]] = json.loads(answer["body"])["ice_servers"]
    return found


class Inbox(asyncio.DatagramProtocol):
    """What reached a client of the relay."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.append(data)


async def allocate(server: dict[str, Any], lifetime_s: int = 600) -> tuple[Any, Inbox]:
    """An allocation on the first URL of this server, by aioice; the transport's `sockname` is its relayed address."""
    url = urlsplit(server["urls"][0].replace("turn:", "turn://"))
    assert url.hostname is not None
    assert url.port is not None
    transport, inbox = await create_turn_endpoint(Inbox, (url.hostname, url.port), server["username"], server["credential"], lifetime_s)
    return transport, inbox


async def talk(one: tuple[Any, Inbox], other: tuple[Any, Inbox], packets: int, payload: bytes = b"0123456789") -> None:
    """Datagrams from one allocation to another of the same relay, which opens its door first."""
    addresses = [transport.get_extra_info("sockname") for transport, _ in (one, other)]
    other[0].sendto(b"door", addresses[0])
    one[0].sendto(b"door", addresses[1])
    await asyncio.sleep(0.05)

    def send() -> bool:
        one[0].sendto(payload, addresses[1])
        return len(other[1].received) >= packets

    await until(f"{packets} datagrams through the relay", send, 10)
