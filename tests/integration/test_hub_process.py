"""`python -m media_fleet hub` as a process: killed, ended, doubled; and what a function does meanwhile."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import MISSING, fields
from typing import Any

import pytest

from adapters import keys
from adapters.hub_redis import CACHED_S
from adapters.settings import PREFIX, Settings, settings
from functions import perform as performing
from functions import wiring
from heliograph.effects import Post
from heliograph.fanout import Scope
from heliograph.messages import Event
from local.services import choose_ports
from tests.conftest import Stores
from tests.contract.hub_stub import KEYS, REGION, ROOM, Server, StubGateway, fresh, gateway, hand_over, job, until
from tests.integration.test_relay_command import SecretsManager

__all__ = ["gateway"]  # a fixture
LEASE_S = 3.0
WITHIN_S = LEASE_S + CACHED_S + 0.5
IDS = tuple(f"c{number}=" for number in range(50))


@pytest.fixture
def server(stores: Stores, redis_server: Any) -> Server:
    redis_server.delete(keys.HUB_LEASES)
    return Server(stores.redis_url, redis_server)


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HELIOGRAPH_", "AWS_"))}
    return clean | {"AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": KEYS.access_key_id, "AWS_SECRET_ACCESS_KEY": KEYS.secret_key} | more


class Process:
    """A hub in a process of its own."""

    def __init__(self, server: Server, gateway: StubGateway) -> None:
        self.port = choose_ports(("stats",), {})["stats"]
        stats = f"127.0.0.1:{self.port}"
        mine = environment(HELIOGRAPH_REDIS_URL=server.url, HELIOGRAPH_CONNECTIONS_URL=gateway.url, HELIOGRAPH_HUB_STATS_LISTEN=stats)
        self.process = subprocess.Popen([sys.executable, "-m", "media_fleet", "hub"], env=mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def stats(self) -> dict[str, Any]:
        """What its endpoint says; nothing while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/hub", timeout=1) as answer:
                found: dict[str, Any] = json.load(answer)
        except OSError:
            return {}
        return found


@asynccontextmanager
async def processes(server: Server, gateway: StubGateway, count: int = 1) -> AsyncIterator[list[Process]]:
    async with AsyncExitStack() as stack:
        started = []
        for _ in range(count):
            started.append(hub := Process(server, gateway))
            stack.callback(hub.process.communicate)
            stack.callback(hub.process.kill)
        await until("the leases", lambda: len(fresh(server).live()) == count, 15)
        yield started


@pytest.fixture
def function(server: Server, gateway: StubGateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as a Lambda environment."""
    made = (settings, wiring.redis, wiring.outbox, wiring.logger, wiring.hubs)
    for item in fields(Settings):
        if item.default is MISSING:
            monkeypatch.setenv(PREFIX + item.name.upper(), "x")
    monkeypatch.setenv("HELIOGRAPH_REDIS_URL", server.url)
    monkeypatch.setenv("HELIOGRAPH_CONNECTIONS_URL", gateway.url)
    for name, value in environment().items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    for each in made:
        each.cache_clear()
    yield
    wiring.outbox().close()
    for each in made:
        each.cache_clear()


def say(tenant_id: str, text: str, connection_ids: tuple[str, ...] = IDS) -> set[str]:
    """What a handler does with a message for a room."""
    event = Event("message", 1, "t" * 16, {"text": text}, ROOM, "e1", 1)
    return performing.perform([Post(each, event) for each in connection_ids], Scope(tenant_id, ROOM))


def who_got(gateway: StubGateway, text: str) -> set[str]:
    return {each for _, each, body in gateway.posted if json.loads(body)["body"]["text"] == text}


@pytest.mark.usefixtures("function")
async def test_a_function_posts_to_few_itself_and_leaves_many_to_the_hub(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    gateway.statuses = {"c1=": [410]}
    assert await asyncio.to_thread(say, tenant_id, "no hub yet") == {"c1="}
    await asyncio.sleep(CACHED_S)
    async with processes(server, gateway) as (hub,):
        assert await asyncio.to_thread(say, tenant_id, "few", IDS[:32]) == {"c1="}
        assert hub.stats()["jobs"] == 0
        assert await asyncio.to_thread(say, tenant_id, "many", IDS) == set()
        await until("49 deliveries by the hub", lambda: len(who_got(gateway, "many")) == 49)
        found = await until("the hub's counters", lambda: (now := hub.stats())["gone"] and now, 3)
        assert (found["jobs"], found["delivered"], found["has_lease"]) == (1, 49, True)
        assert 0 < found["p50_ms"] <= found["p99_ms"] < 2000


@pytest.mark.usefixtures("function")
@pytest.mark.parametrize("is_cluster", [False, True], ids=["a single server counts its listeners", "in a cluster only the lease tells"])
async def test_after_kill_9_of_the_hub_the_function_posts_itself_within_the_lease(
    server: Server, gateway: StubGateway, tenant_id: str, is_cluster: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async with processes(server, gateway) as (hub,):
        wiring.hubs()._is_cluster = is_cluster
        await asyncio.to_thread(say, tenant_id, "before")
        await until("the hub's deliveries", lambda: len(who_got(gateway, "before")) == 50)
        hub.process.kill()
        hub.process.wait()
        killed_s, lost = time.monotonic(), 0
        while True:
            text = secrets.token_hex(4)
            await asyncio.to_thread(say, tenant_id, text)
            if len(who_got(gateway, text)) == 50:
                break
            lost += 1
            assert time.monotonic() - killed_s < WITHIN_S
            await asyncio.sleep(0.05)
    with capsys.disabled():
        print(f"\nhub killed: functions post themselves after {time.monotonic() - killed_s:.2f} s / {WITHIN_S:g} s, {lost} fan-outs left to the position check")


async def test_two_hubs_share_the_rooms_and_the_one_that_is_left_takes_over(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    async with processes(server, gateway, 2) as hubs:
        way = fresh(server)
        for number in range(60):
            assert await hand_over(way, job(tenant_id, f"{number}", ("c=",), f"room_{number}"))
        await until("60 deliveries", lambda: len(gateway.posted) == 60)
        shares = [hub.stats()["jobs"] for hub in hubs]
        assert sum(shares) == 60
        assert min(shares) > 10, shares
        hubs[0].process.kill()
        await until("one lease less", lambda: len(fresh(server).live()) == 1, LEASE_S + 1)
        way = fresh(server)
        for number in range(60):
            assert await hand_over(way, job(tenant_id, f"again {number}", ("c=",), f"room_{number}"))
        await until("60 more deliveries by the other hub", lambda: hubs[1].stats().get("jobs") == shares[1] + 60)


async def test_sigterm_gives_up_the_lease_first_posts_the_backlog_and_exits_with_0(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    gateway.delay_s = 0.1
    async with processes(server, gateway) as (hub,):
        ids = tuple(f"c{number}=" for number in range(1500))
        assert await hand_over(fresh(server), job(tenant_id, "1", ids))
        hub.process.send_signal(signal.SIGTERM)
        await until("the end of the lease", lambda: not fresh(server).live(), 1.0)
        assert hub.process.poll() is None
        assert await asyncio.to_thread(hub.process.wait, 20) == 0
        assert len(gateway.posted) == 1500


async def test_a_node_runs_relay_and_hub_in_one_process_and_both_drain(server: Server, gateway: StubGateway, tenant_id: str) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SecretsManager) as secrets_manager:
        threading.Thread(target=secrets_manager.serve_forever, daemon=True).start()
        mine = environment(
            HELIOGRAPH_REDIS_URL=server.url,
            HELIOGRAPH_CONNECTIONS_URL=gateway.url,
            HELIOGRAPH_TURN_SECRET_ID="turn",
            HELIOGRAPH_TURN_LISTEN="127.0.0.1:0",
            HELIOGRAPH_RELAY_ADDRESS="127.0.0.1",
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{secrets_manager.server_port}",
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "media_fleet", "node", env=mine, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            said = [await asyncio.wait_for(process.stdout.readline(), 15) for _ in range(2)]
            assert [line.split(b" ")[0] for line in said] == [b"relay", b"hub"]
            await until("the lease", lambda: fresh(server).live(), 10)
            assert await hand_over(fresh(server), job(tenant_id, "x", IDS))
            await until("50 deliveries", lambda: len(gateway.posted) == 50)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 15) == 0
            assert fresh(server).live() == ()
        finally:
            if process.returncode is None:
                process.kill()
        secrets_manager.shutdown()


def test_a_node_needs_both_settings_of_its_hub_or_none() -> None:
    given = environment(HELIOGRAPH_REDIS_URL="redis://x", HELIOGRAPH_TURN_SECRET_ID="x", HELIOGRAPH_RELAY_ADDRESS="127.0.0.1")
    done = subprocess.run([sys.executable, "-m", "media_fleet", "node"], env=given, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, "belong together" in done.stderr) == (1, True)


def test_a_hub_says_what_it_needs_and_what_it_does_not_know() -> None:
    for given, sentence in (
        ({}, "HELIOGRAPH_CONNECTIONS_URL is not set"),
        ({"HELIOGRAPH_CONNECTIONS_URL": "http://x", "HELIOGRAPH_REDIS_URL": "redis://x", "HELIOGRAPH_HUB_CONCURRENCY": "many"}, "must be a whole number"),
        ({"HELIOGRAPH_CONNECTIONS_URL": "http://x", "HELIOGRAPH_REDIS_URL": "redis://x", "HELIOGRAPH_HUBS": "2"}, "HELIOGRAPH_HUBS is not a setting"),
        ({"HELIOGRAPH_CONNECTIONS_URL": "http://x", "HELIOGRAPH_REDIS_URL": "redis://x", "HELIOGRAPH_REDIS_MODE": "twin"}, "must be single or cluster"),
    ):
        done = subprocess.run([sys.executable, "-m", "media_fleet", "hub"], env=environment(**given), capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert sentence in done.stderr
