"""The relay's end under 200 allocations with traffic: killed (-9) it leaves nothing relaying, drained it loses no packet of a live allocation."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from media_fleet.datapath import build
from media_fleet.stun import Address
from tests.running import ROOT, wait_until
from tests.turn_client import CHANNEL, PATIENCE_S, Refused, TurnClient

ALLOCATIONS, WITHIN_S = 200, 15.0
ELSEWHERE = "127.0.0.2"  # where peers are: a relay's own address is its workers'
PATHS = [pytest.param(path, workers, id=f"{path}-{workers}") for path in ("python", "compiled") for workers in (1, 2)]


@dataclass(frozen=True, slots=True)
class Running:
    """A relay with the address of its UDP listener and, in the order of their starts, the pids of its processes."""

    process: subprocess.Popen[str]
    address: Address
    pids: list[int]
    log: Path

    def sockets(self, ports: Sequence[int]) -> set[int]:
        """The numbers of its UDP and TCP sockets, which have at least these ports."""
        numbers: set[int] = set()

        def found() -> bool:
            names = {os.readlink(file) for pid in self.pids for file in Path(f"/proc/{pid}/fd").iterdir()}
            now = {number: port for number, port in bound().items() if f"socket:[{number}]" in names}
            numbers.update(now)
            return now.keys() >= numbers and set(ports) <= set(now.values())

        wait_until("its sockets in the kernel's tables", found, WITHIN_S)
        return numbers


@contextmanager
def relay(folder: Path, path: str, workers: int, drain_s: float = 0) -> Iterator[Running]:
    if path == "compiled" and not build.LIBRARY.exists():
        build.build()
    command = [sys.executable, "-m", "media_fleet", "relay", "--listen", "127.0.0.1:0", "--listen-tcp", "127.0.0.1:0", "--user", "ann:pass"]
    command += ["--allow-peer", "127.0.0.0/8", "--data-path", path, "--workers", str(workers), "--drain", str(drain_s)]
    log = folder / "relay.log"
    pids: list[int] = []
    with log.open("wb") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    pids.append(process.pid)
    try:
        assert process.stdout is not None
        words = process.stdout.readline().replace(",", "").split()
        assert words, log.read_text()
        pids += children_of(process.pid)
        yield Running(process, ("127.0.0.1", int(words[4].rpartition(":")[2])), pids, log)
    finally:
        process.kill()
        for pid in filter(is_running, pids):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


def children_of(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]


class Calls:
    """Clients with a channel to the same peer. What passes is counted by rounds: a numbered datagram each way for each client."""

    def __init__(self, clients: Sequence[TurnClient], peer: socket.socket) -> None:
        self.clients, self.peer = list(clients), peer
        self.round = 0

    def offer(self) -> None:
        """Sends one each way and waits for nothing."""
        self.round += 1
        for number, client in enumerate(self.clients):
            with suppress(ConnectionRefusedError):  # the port is closed; told of an earlier datagram
                client.send(b"up %d %d" % (self.round, number))
            self.peer.sendto(b"down %d %d" % (self.round, number), client.relayed)

    def passed(self) -> tuple[int, int]:
        """How many arrived of the last round, up and down; waits for all of them."""
        up = {b"up %d %d" % (self.round, number) for number in range(len(self.clients))}
        deadline = time.monotonic() + PATIENCE_S
        while up and select.select([self.peer], [], [], max(0.0, deadline - time.monotonic()))[0]:
            up.discard(self.peer.recv(2_000))
        down = 0
        for number, client in enumerate(self.clients):
            with suppress(TimeoutError):
                down += client.receive() == (b"down %d %d" % (self.round, number), CHANNEL)
        return len(self.clients) - len(up), down

    def lose_none(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.offer()
            assert self.passed() == (len(self.clients),) * 2

    def forget(self) -> int:
        """How many datagrams wait at any of the sockets."""
        found = 0
        for one in (self.peer, *(client.socket for client in self.clients)):
            one.setblocking(False)
            while True:
                try:
                    one.recv(2_000)
                except ConnectionRefusedError:
                    continue
                except BlockingIOError:
                    break
                found += 1
        return found

    def leave(self, count: int) -> None:
        """So many clients give their allocations back."""
        leaving, self.clients = self.clients[:count], self.clients[count:]
        for client in leaving:
            client.refresh(0)


@contextmanager
def calls(server: Address, count: int = ALLOCATIONS) -> Iterator[Calls]:
    with ExitStack() as open_ones:
        peer = open_ones.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_048_576)
        peer.bind((ELSEWHERE, 0))
        clients = [open_ones.enter_context(closing(TurnClient(server))) for _ in range(count)]
        for client in clients:
            client.allocate()
            client.bind(peer.getsockname())
        yield Calls(clients, peer)


def is_running(pid: int) -> bool:
    """Whether it is more than a remainder that waits for its parent."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def are_closed(numbers: set[int]) -> bool:
    """Whether none of these sockets is left. Its port may be another program's by now."""
    return not any(numbers & bound().keys() for _ in range(3))


def bound() -> dict[int, int]:
    """The ports of this machine's sockets, UDP and TCP, by the sockets' own numbers. While others come and go, the kernel may leave one out."""
    ports = {}
    for name in ("udp", "tcp"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            ports[int(words[9])] = int(words[1].rpartition(":")[2], 16)
    return ports


# Killed


@pytest.mark.parametrize(("path", "workers"), PATHS)
def test_a_killed_relay_leaves_nothing_relaying(tmp_path: Path, path: str, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    with relay(tmp_path, path, workers) as running, calls(running.address) as living:
        living.lose_none(rounds=2)
        assert len(running.pids) == (workers + 1 if workers > 1 else 1)
        sockets = running.sockets((running.address[1], *(client.relayed[1] for client in living.clients)))
        living.offer()  # in its hands
        os.kill(running.process.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        wait_until("the end of all its processes", lambda: not any(map(is_running, running.pids)), WITHIN_S, every_s=0.001)
        took_ms = (time.monotonic() - killed_at) * 1000
        living.forget()
        living.offer()
        time.sleep(0.1)  # longer than a datagram ever takes on this machine's own network
        assert living.forget() == 0
        assert are_closed(sockets)
    with capsys.disabled():
        print(f" [{path}, workers {workers}: all gone {took_ms:.0f} ms after the kill]", end="")


def test_a_worker_that_hangs_ends_with_its_parent_too(tmp_path: Path) -> None:
    with relay(tmp_path, "compiled", 2) as running:
        os.kill(running.pids[1], signal.SIGSTOP)
        os.kill(running.process.pid, signal.SIGKILL)
        wait_until("the end of all its processes", lambda: not any(map(is_running, running.pids)), WITHIN_S)


# Drained


def all_are_refused(server: Address) -> bool:
    """Whether each of some clients got 508; who did not gives the allocation back."""
    codes = []
    for _ in range(10):
        with closing(TurnClient(server)) as late:
            try:
                late.allocate()
            except Refused as refused:
                codes.append(refused.code)
            else:
                late.refresh(0)
    return codes == [508] * 10


@pytest.mark.parametrize(("path", "workers"), PATHS)
def test_a_drained_relay_loses_no_packet_of_a_live_allocation_and_ends_when_the_last_is_given_back(tmp_path: Path, path: str, workers: int) -> None:
    with relay(tmp_path, path, workers, drain_s=300) as running, calls(running.address) as living:
        sockets = running.sockets([client.relayed[1] for client in living.clients])
        living.lose_none()
        living.offer()
        running.process.send_signal(signal.SIGTERM)  # with a round under way
        assert living.passed() == (ALLOCATIONS, ALLOCATIONS)
        wait_until("508 to whoever comes now", lambda: all_are_refused(running.address), WITHIN_S)
        living.lose_none(rounds=3)
        living.leave(ALLOCATIONS // 2)
        living.lose_none(rounds=3)
        assert running.process.poll() is None
        living.leave(ALLOCATIONS)
        assert running.process.wait(WITHIN_S) == 0, running.log.read_text()
        assert not any(map(is_running, running.pids))
        assert are_closed(sockets)
        assert running.log.read_text().count('"allocation_ended"') >= ALLOCATIONS


@pytest.mark.parametrize("workers", [1, 2])
def test_a_drained_relay_ends_at_the_limit_whoever_is_left(tmp_path: Path, workers: int) -> None:
    with relay(tmp_path, "python", workers, drain_s=1) as running, calls(running.address, 20) as living:
        sockets, started_at = running.sockets([client.relayed[1] for client in living.clients]), time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        while time.monotonic() < started_at + 0.5:
            living.lose_none()
        assert running.process.wait(WITHIN_S) == 0, running.log.read_text()
        assert time.monotonic() - started_at >= 1
        assert not any(map(is_running, running.pids))
        assert are_closed(sockets)
