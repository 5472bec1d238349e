"""The relay of the laptop takes the product's credentials and stays on loopback."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import aiohttp
import aioice
import pytest

from heliograph.ice import turn_password, turn_username
from local.relay import config_of
from local.services import HOST, choose_ports, ping_stun
from local.supervisor import Child, Supervisor

ROOT = Path(__file__).resolve().parents[2]


def test_it_refuses_to_listen_where_others_could_reach_it() -> None:
    with pytest.raises(SystemExit, match="listens on loopback only"):
        config_of(["--listen", "0.0.0.0:3478", "--stats", "127.0.0.1:0"], "s")
    with pytest.raises(SystemExit, match="listens on loopback only"):
        config_of(["--listen", "127.0.0.1:3478", "--stats", "192.0.2.1:80"], "s")


def test_it_refuses_to_run_without_a_secret() -> None:
    with pytest.raises(SystemExit, match="MINE is not set"):
        config_of(["--stats", "127.0.0.1:0", "--secret-env", "MINE"], None)


async def test_a_client_with_time_limited_credentials_gets_an_allocation_and_the_secret_is_no_argument(tmp_path: Path) -> None:
    ports = choose_ports(("relay", "stats"), {})
    relay, stats = f"{HOST}:{ports['relay']}", f"{HOST}:{ports['stats']}"
    argv = (sys.executable, "-m", "local.relay", "--listen", relay, "--stats", stats, "--secret-env", "SECRET")
    supervisor = Supervisor(tmp_path / "logs", tmp_path / "pids.json")
    child = Child("relay", argv, lambda: ping_stun(ports["relay"]), environment={"SECRET": "on the hill", "PYTHONPATH": str(ROOT)})
    await supervisor.start(child)
    try:
        username = turn_username(time.time_ns() // 10**9 + 600, "acc_a", "dev_a")
        connection = aioice.Connection(
            ice_controlling=True,
            turn_server=(HOST, ports["relay"]),
            turn_username=username,
            turn_password=turn_password("on the hill", username),
            transport_policy=aioice.TransportPolicy.RELAY,
        )
        await connection.gather_candidates()
        assert [candidate.type for candidate in connection.local_candidates] == ["relay"]
        async with aiohttp.ClientSession() as session, session.get(f"http://{stats}/allocations") as answer:
            assert username in {each["username"] for each in await answer.json()}
        await connection.close()
    finally:
        await supervisor.stop()
