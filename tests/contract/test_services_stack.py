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

from local.services import write_private_json
from local.supervisor import command_line

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 20


class Run:
    """One `python -m local` over a data folder."""

    def __init__(self, data: Path) -> None:
        self.data = data
        (data / "endpoints.json").unlink(missing_ok=True)
        self.process = start(data)
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

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


def start(data: Path) -> subprocess.Popen[str]:
    argv = (sys.executable, "-m", "local", "--no-scenario", "--quiet", "--data", str(data))
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
