"""`python -m local` as a process: it comes back after kill -9, keeps its ports and data, refuses a second run, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from heliograph.ids import new_id
from local.services import write_private_json
from local.supervisor import command_line

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 20


class Run:
    """One `python -m local` over a data folder."""

    def __init__(self, data: Path, *flags: str) -> None:
        self.data = data
        (data / "endpoints.json").unlink(missing_ok=True)
        self.process = start(data, *flags)
        self.sockets = contextlib.ExitStack()
        self.endpoints = self._wait()

    def _wait(self) -> dict[str, Any]:
        deadline = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()[1]
            with contextlib.suppress(FileNotFoundError):
                endpoints: dict[str, Any] = json.loads((self.data / "endpoints.json").read_text())
                return endpoints
            time.sleep(0.05)
        raise AssertionError(f"no endpoints.json after {READY_WITHIN_S} s")

    def pids(self) -> list[int]:
        """Every process of ours that it names, itself not."""
        pids = dict(self.endpoints["pids"])
        workers = [pid for pids_of_one in pids.pop("functions").values() for pid in pids_of_one]
        pids.pop("stack")
        return [*pids.values(), *workers]

    def sign_in(self, login: str = "ana", password: str | None = None) -> tuple[int, dict[str, Any]]:
        user = next(each for each in self.endpoints["users"] if each["login"] == login)
        body = {"tenant_id": user["tenant_id"], "login": login, "password": password or user["password"], "device_id": "dev_" + user["account_id"][4:]}
        answer = requests.post(f"{self.endpoints['rest_url']}/v1/tokens", json=body, headers={"Idempotency-Key": os.urandom(8).hex()}, timeout=10)
        return answer.status_code, answer.json()

    def open_socket(self, login: str = "ana") -> ClientConnection:
        """A socket of the user, which the hello has woken."""
        token, keys = self.sign_in(login)[1]["access_token"], {"Idempotency-Key": os.urandom(8).hex()}
        answer = requests.post(f"{self.endpoints['rest_url']}/v1/tickets", json={}, headers={"Authorization": f"Bearer {token}", **keys}, timeout=10)
        offered = [Subprotocol("heliograph.v1"), Subprotocol(f"ticket.{answer.json()['ticket']}")]
        socket = self.sockets.enter_context(connect(self.endpoints["socket_url"], subprotocols=offered, compression=None))
        frame_id = new_id("msg", time.time_ns() // 1_000_000, os.urandom(10))
        socket.send(json.dumps({"action": "hello", "id": frame_id, "client_seq": 1, "trace_id": os.urandom(16).hex(), "body": {}}))
        assert frame_id in {frame.get("re") for frame in (json.loads(socket.recv(10)), json.loads(socket.recv(10)))}
        return socket

    def admin(self, method: str, path: str, body: object = None) -> Any:
        return requests.request(method, self.endpoints["admin_url"] + path, json=body, timeout=10).json()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


def start(data: Path, *flags: str) -> subprocess.Popen[str]:
    argv = (sys.executable, "-m", "local", "--no-scenario", "--quiet", "--data", str(data), *flags)
    return subprocess.Popen(argv, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    yield folder
    with contextlib.suppress(FileNotFoundError):
        from local.supervisor import end_stale

        end_stale(folder / "pids.json")


def gone(pids: list[int], within_s: float = 5.0) -> list[int]:
    """Those that are still there in the end."""
    deadline = time.monotonic() + within_s
    while (left := [pid for pid in pids if command_line(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_a_killed_stack_comes_back_with_its_ports_and_data_and_leaves_nothing(data: Path) -> None:
    first = Run(data)
    assert first.sign_in()[0] == 201
    assert first.sign_in(password="wrong")[0] == 401
    second = start(data)
    assert (second.wait(10), second.communicate()[1]) == (1, f"Heliograph already runs in {data}; end it, or choose another folder with --data.\n")
    assert (data / "endpoints.json").stat().st_mode & 0o777 == 0o600

    first.end(signal.SIGKILL)
    if sys.platform == "linux":
        assert not gone(first.pids()), "children outlived the killed stack"
    again = Run(data)
    assert not gone(first.pids()), "children of the killed run are still there"
    fixed = ("rest_url", "socket_url", "s3_url", "redis_url", "mongodb_uri", "relay", "aws", "users")
    assert {name: again.endpoints[name] for name in fixed} == {name: first.endpoints[name] for name in fixed}
    assert again.sign_in("mallory")[0] == 201

    assert again.end(signal.SIGTERM) == 0
    assert not gone(again.pids(), 0.5)
    assert not (data / "pids.json").exists()
    assert not (data / "endpoints.json").exists()


def test_a_service_that_cannot_start_is_one_sentence_and_leaves_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOGRAPH_REDIS_SERVER", "/bin/false")
    data.mkdir()
    write_private_json(data / "ports.json", {})
    process = start(data)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said.startswith("redis ended with status 1 while starting: it said nothing (log: ")
    assert said.count("\n") == 1
    assert not (data / "pids.json").exists()


def test_on_a_redis_cluster_with_a_quick_clock_sockets_live_idle_break_and_end_quietly(data: Path) -> None:
    """--redis cluster, --time-scale, the admin endpoint; the end of the stack tells every socket's $disconnect and complains of nothing."""
    run = Run(data, "--redis", "cluster", "--time-scale", "150")
    assert run.endpoints["redis_mode"] == "cluster"
    assert {"redis-1", "redis-2", "redis-3"} <= run.endpoints["pids"].keys()
    idle = run.open_socket()
    with pytest.raises(ConnectionClosed):
        idle.recv(10)
    assert (idle.close_code, idle.close_reason) == (1001, "Going away")
    cut = run.open_socket()
    assert run.admin("GET", "/sockets")["open"] == 1
    assert run.admin("POST", "/sockets/close") == {"closed": 1}
    with pytest.raises(ConnectionClosed):
        cut.recv(10)
    assert cut.close_code == 1006
    assert run.admin("POST", "/faults", {"disconnect_late": 1, "disconnect_late_s": 60})["disconnect_late"] == 1
    sockets = [run.open_socket(login) for login in ("ana", "ben", "olga")]
    assert run.end(signal.SIGTERM) == 0
    assert run.process.stderr is not None
    assert run.process.stderr.read() == ""
    run.sockets.close()
    assert {socket.close_code for socket in sockets} == {1001}
    told = (data / "logs" / "functions" / "ws_disconnect.log").read_text().count('"disconnected"')
    assert told == 5
