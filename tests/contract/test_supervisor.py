"""Children stay alive: real processes, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from local.services import HOST, choose_ports, exchange
from local.supervisor import Child, ChildFailed, NotReady, Supervisor, command_line, end_stale

ECHO = """
import signal, socket, sys, time
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    client, _ = server.accept()
    client.sendall(client.recv(100)); client.close()
"""


def echo(port: int, *words: str, name: str = "echo", stop_timeout_s: float = 8.0) -> Child:
    async def probe() -> None:
        if await exchange(port, b"hello", 5) != b"hello":
            raise NotReady("no echo yet")

    return Child(name, (sys.executable, "-c", ECHO, str(port), *words), probe, stop_timeout_s=stop_timeout_s)


async def another_pid(supervisor: Supervisor, pid: int) -> None:
    for _ in range(600):
        if supervisor.pids().get("echo") not in (pid, None):
            return
        await asyncio.sleep(0.005)
    raise AssertionError("no new process after 3 s")


@pytest.fixture
def port() -> int:
    return choose_ports(("echo",), {})["echo"]


@pytest.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "logs", tmp_path / "pids.json")
    yield supervisor
    await supervisor.stop()


async def test_a_killed_child_answers_again_on_the_same_port_within_3_s(supervisor: Supervisor, port: int) -> None:
    await supervisor.start(echo(port))
    first = supervisor.pids()["echo"]
    os.kill(first, signal.SIGKILL)
    await another_pid(supervisor, first)
    await supervisor.wait_until_ready("echo", 3)
    assert await exchange(port, b"again", 5) == b"again"
    assert supervisor.restarts["echo"] == 1


async def test_the_delay_grows_while_a_child_keeps_dying_young(tmp_path: Path, port: int) -> None:
    """The announced delays, and that the last was kept: how long a start takes beyond them is the machine's."""
    told: list[str] = []
    supervisor = Supervisor(tmp_path / "logs", tmp_path / "pids.json", report=lambda name, state: told.append(state))
    await supervisor.start(echo(port))
    try:
        for _ in range(3):
            pid, killed_s = supervisor.pids()["echo"], time.monotonic()
            os.kill(pid, signal.SIGKILL)
            await another_pid(supervisor, pid)
            took_s = time.monotonic() - killed_s
            await supervisor.wait_until_ready("echo", 3)
    finally:
        await supervisor.stop()
    assert [state for state in told if state.startswith("died")] == [f"died with status -9, starting again in {delay:g} s" for delay in (0.1, 0.2, 0.4)]
    assert took_s >= 0.4


async def test_a_child_that_ends_while_starting_is_named_with_its_last_words(supervisor: Supervisor, port: int) -> None:
    async def never() -> None:
        raise NotReady("nothing listens")

    with pytest.raises(ChildFailed, match=r"broken ended with status 1 while starting: ValueError: no disk"):
        await supervisor.start(Child("broken", (sys.executable, "-c", "raise ValueError('no disk')"), never))
    assert supervisor.pids() == {}


async def test_a_child_that_never_answers_is_ended_and_says_what_was_missing(supervisor: Supervisor) -> None:
    async def never() -> None:
        raise NotReady("it does not say PONG")

    with pytest.raises(ChildFailed, match=r"mute is not ready after 0 s: it does not say PONG"):
        await supervisor.start(Child("mute", (sys.executable, "-c", "import time; time.sleep(60)"), never, start_timeout_s=0.3))
    assert supervisor.pids() == {}


async def test_stop_returns_when_every_child_is_gone_even_a_stubborn_one(tmp_path: Path) -> None:
    ports = choose_ports(("one", "two"), {})
    supervisor = Supervisor(tmp_path / "logs", tmp_path / "pids.json")
    await supervisor.start(echo(ports["one"], name="one"))
    await supervisor.start(echo(ports["two"], "stubborn", name="two", stop_timeout_s=0.3))
    pids = list(supervisor.pids().values())
    await asyncio.wait_for(supervisor.stop(), 8)
    assert [command_line(pid) for pid in pids] == [[], []]
    assert not (tmp_path / "pids.json").exists()


def test_what_a_killed_run_left_behind_is_ended_and_a_stranger_with_its_pid_is_not(tmp_path: Path, port: int) -> None:
    left = subprocess.Popen((sys.executable, "-c", ECHO, str(port)), start_new_session=True)
    stranger = subprocess.Popen((sys.executable, "-c", "import time; time.sleep(60)"), start_new_session=True)
    pid_file = tmp_path / "pids.json"
    try:
        while not command_line(left.pid) or command_line(left.pid)[-1] != str(port):
            time.sleep(0.01)
        entries = {"redis": {"pid": left.pid, "argv": command_line(left.pid)}, "mongo": {"pid": stranger.pid, "argv": ["secantusd-py", "--port", "1"]}}
        pid_file.write_text(json.dumps(entries))
        assert end_stale(pid_file) == ["redis"]
        assert left.wait(3) == -signal.SIGTERM
        assert stranger.poll() is None
        assert not pid_file.exists()
    finally:
        for each in (left, stranger):
            each.kill()
            each.wait()


def test_a_port_is_taken_again_when_it_is_free_and_left_alone_when_it_is_not(port: int) -> None:
    import socket

    assert choose_ports(("echo", "other"), {"echo": port})["echo"] == port
    with socket.create_server((HOST, port)):
        ports = choose_ports(("echo", "other"), {"echo": port})
    assert port not in ports.values()
    assert len(set(ports.values())) == 2
