"""The relay as a process under 100,000 Allocate requests of strangers, each from another address: nothing is kept, and a client goes on meanwhile."""

from __future__ import annotations

import itertools
import json
import os
import random
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench import _turn_world as wire
from heliograph.ice import turn_key

FLOOD, FIRST, BATCH = 100_000, 4_000, 400  # a batch fits into the smallest receive buffer that a kernel gives
FLAT_KB = 1_024  # coturn would have kept 1.8 GB
TRANSPORT = (wire.TRANSPORT, b"\x11\0\0\0")
HEADERS = 28  # IPv4 and UDP

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sends from all of 127.0.0.0/8 by IP_PKTINFO and reads /proc")


@dataclass(frozen=True, slots=True)
class Running:
    """A relay in its own process."""

    pid: int
    address: tuple[str, int]
    stats: str

    def rss_kb(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    def dropped(self) -> int:
        """Datagrams that found the listener's receive buffer full."""
        rows = (row.split() for row in Path("/proc/net/udp").read_text().splitlines()[1:])
        return next(int(row[-1]) for row in rows if row[1] == f"0100007F:{self.address[1]:04X}")

    def living(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.stats}/allocations", timeout=10) as answer:  # noqa: S310
            told = json.load(answer)
        return [usage for usage in told if usage["ended_at_ms"] is None]


@pytest.fixture
def relay() -> Iterator[Running]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        stats = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "media_fleet", "relay", "--listen", "127.0.0.1:0", "--realm", wire.REALM, "--user", "ann:pass", "--stats", stats]
    process = subprocess.Popen([*command, "--allow-peer", "127.0.0.0/8"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().split()[-1].rpartition(":")
        yield Running(process.pid, (host, int(port)), f"http://{stats}")
    finally:
        process.kill()
        process.communicate()


class Client:
    """A client of the relay that sends through a channel to a socket that sends back."""

    def __init__(self, relay: Running, stack: ExitStack) -> None:
        self.socket, self.echo = (stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
        self.echo.bind(("127.0.0.1", 0))
        for each in (self.socket, self.echo):
            each.settimeout(20)
        self.socket.connect(relay.address)
        self.numbers, self.nonce = itertools.count(1), b""
        challenge = self.ask(wire.ALLOCATE)
        self.nonce = challenge.first(wire.NONCE) or b""
        assert self.ask(wire.ALLOCATE, TRANSPORT).error() is None
        assert self.ask(wire.CHANNEL_BIND, (wire.CHANNEL_NUMBER, b"\x40\0\0\0"), (wire.PEER_ADDRESS, wire.xor(self.echo.getsockname(), b""))).error() is None

    def ask(self, method: int, *values: tuple[int, bytes]) -> wire.Read:
        signed = ((wire.USERNAME, b"ann"), (wire.REALM_NAME, wire.REALM.encode()), (wire.NONCE, self.nonce)) if self.nonce else ()
        key = turn_key("ann", wire.REALM, "pass") if self.nonce else None
        transaction_id = os.urandom(12)
        self.socket.send(wire.message(method, wire.REQUEST, transaction_id, (*values, *signed), key))
        answer = wire.read(self.socket.recv(2048))
        assert answer is not None
        assert answer.transaction_id == transaction_id
        return answer

    def round_trip(self) -> None:
        """Through the relay and back: whatever was sent to the relay before has been read by then."""
        sent = b"\x40\0\0\x08" + next(self.numbers).to_bytes(8, "big")
        self.socket.send(sent)
        data, peer = self.echo.recvfrom(2048)
        self.echo.sendto(data, peer)
        assert self.socket.recv(2048) == sent


@contextmanager
def strangers() -> Iterator[list[socket.socket]]:
    """Sockets on 64 ports that may send from any address of 127.0.0.0/8."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(64)]
        for each in sockets:
            each.bind(("0.0.0.0", 0))
        yield sockets


def send_from(stranger: socket.socket, number: int, data: bytes, to: tuple[str, int]) -> None:
    source = (127 << 24) + 256 + number % 0xFFFE00
    stranger.sendmsg([data], [(socket.IPPROTO_IP, 8, struct.pack("=iII", 0, socket.htonl(source), 0))], 0, to)  # 8: IP_PKTINFO


FORGED = ((wire.USERNAME, b"ann"), (wire.REALM_NAME, wire.REALM.encode()), (wire.NONCE, b"0" * 24))
UNSIGNED = wire.message(wire.ALLOCATE, wire.REQUEST, bytes(12), (TRANSPORT,))
SIGNED = wire.message(wire.ALLOCATE, wire.REQUEST, bytes(12), (TRANSPORT, *FORGED), b"guess")


def flood(relay: Running, client: Client, sockets: list[socket.socket], numbers: range) -> None:
    """One Allocate from each of so many addresses; every fourth has a signature, of nobody's. And noise."""
    draw = random.Random(numbers.start)
    for number in numbers:
        stranger, data = sockets[number % len(sockets)], UNSIGNED if number % 4 else SIGNED
        send_from(stranger, number, data[:8] + draw.randbytes(12) + data[20:], relay.address)
        if number % 50 == 0:
            send_from(stranger, number, draw.randbytes(number % 400), relay.address)
        if number % BATCH == 0:
            client.round_trip()


def test_100_000_allocates_of_strangers_leave_the_memory_flat_and_a_client_is_served_meanwhile(relay: Running, capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack, strangers() as sockets:
        client = Client(relay, stack)
        flood(relay, client, sockets, range(FIRST))
        before, dropped = relay.rss_kb(), relay.dropped()
        flood(relay, client, sockets, range(FIRST, FIRST + FLOOD))
        client.round_trip()
        after, dropped = relay.rss_kb(), relay.dropped() - dropped
        assert [usage["username"] for usage in relay.living()] == ["ann"]
        late = Client(relay, stack)
        late.round_trip()
        assert client.ask(4, (wire.LIFETIME, bytes(4))).error() is None
        assert late.ask(4, (wire.LIFETIME, bytes(4))).error() is None
        assert relay.living() == []
    with capsys.disabled():
        print(
            f"\n{FLOOD:,} Allocates of strangers ({dropped:,} not read): RSS {before:,} kB before, {after:,} kB after; {FLOOD // BATCH} round trips meanwhile"
        )
    assert after - before < FLAT_KB
    assert dropped < FLOOD / 2


REQUESTS = {
    "Allocate, bare": wire.message(wire.ALLOCATE, wire.REQUEST, bytes(12), ()),
    "Allocate with REQUESTED-TRANSPORT": UNSIGNED,
    "Allocate with a wrong signature": SIGNED,
    "Refresh": wire.message(wire.REFRESH, wire.REQUEST, bytes(12), ()),
    "Binding": wire.message(wire.BINDING, wire.REQUEST, bytes(12), ()),
    "Send indication": wire.message(wire.SEND, wire.INDICATION, bytes(12), ((wire.PEER_ADDRESS, bytes(8)), (wire.DATA_VALUE, bytes(100)))),
    "ChannelData": b"\x40\0\0\x64" + bytes(100),
    "garbage": bytes(range(200)),
}


def test_an_answer_to_a_stranger_is_a_small_multiple_of_what_asked_for_it(relay: Running, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    for name, data in REQUESTS.items():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.settimeout(10)
            stranger.connect(relay.address)
            stranger.send(data)
            stranger.send(wire.message(wire.BINDING, wire.REQUEST, b"the last one", ()))  # its answer comes last
            answers = list(iter(lambda: _unless_last(stranger.recv(2048)), b""))
        size = sum(map(len, answers))
        wired = (size + HEADERS * len(answers)) / (len(data) + HEADERS)
        lines.append(f"  {name:34} {len(data):4} bytes -> {size:3}: {size / len(data):4.1f} x, with IP and UDP headers {wired:3.1f} x")
        assert len(answers) <= 1
        assert size <= wire.AMPLIFICATION * len(data), name
    with capsys.disabled():
        print("\namplification before authentication:\n" + "\n".join(lines))


def _unless_last(answer: bytes) -> bytes:
    return b"" if answer[8:20] == b"the last one" else answer
