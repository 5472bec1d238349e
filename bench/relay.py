"""Our relay and coturn side by side: CPU per relayed packet under the same load, medians of several short runs.

    python -m bench.relay [--runs 5]

Needs the load generator `turnload` beside this repository (../shared/turnload), a C compiler and coturn; says so and ends with 0 where one is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT.parent / "shared" / "turnload" / "turnload.c"
BINARY = ROOT / "build" / "turnload"
START_S = 10.0


@dataclass(frozen=True)
class Load:
    """What the generator offers: flows of small packets, as calls are."""

    name: str
    allocations: int
    packets_per_s: int  # in all, per direction
    direction: str
    seconds: float = 1.5


LOADS = (
    Load("100 calls, both ways", 100, 5_000, "both"),
    Load("1000 calls, upward", 1000, 25_000, "up"),
    Load("1000 calls, downward", 1000, 25_000, "down"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs per server and load (%(default)s)")
    runs = parser.parse_args().runs
    if missing := _missing():
        print(missing)
        return
    build()
    print("160-byte packets on loopback; CPU us = server CPU microseconds per relayed packet; medians of", runs, "runs")
    print(f"{'load':22} {'ours us':>8} {'coturn us':>10} {'ratio':>6} {'ours p99 ms':>12} {'coturn p99 ms':>14} {'ours lost %':>12} {'coturn lost %':>14}")
    for load in LOADS:
        print(_line(load, *measure(load, runs)), flush=True)


def _missing() -> str | None:
    if not SOURCE.exists():
        return "bench/relay.py: the load generator is not here (../shared/turnload/turnload.c); nothing was measured."
    if not shutil.which("gcc"):
        return "bench/relay.py: no C compiler (apt-get install gcc); nothing was measured."
    if not shutil.which("turnserver"):
        return "bench/relay.py: coturn is not installed (apt-get install coturn); nothing was measured."
    return None


def build() -> None:
    """Compiles the load generator into build/."""
    if not BINARY.exists() or BINARY.stat().st_mtime < SOURCE.stat().st_mtime:
        BINARY.parent.mkdir(exist_ok=True)
        subprocess.run(["gcc", "-O2", "-pthread", "-o", str(BINARY), str(SOURCE)], check=True)


def measure(load: Load, runs: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The generator's reports on both servers. The servers take turns, so that a busy machine is busy for both."""
    ours: list[dict[str, Any]] = []
    coturns: list[dict[str, Any]] = []
    with our_relay() as (our_pid, our_port), coturn() as (coturn_pid, coturn_port):
        for _ in range(runs):
            ours.append(offer(load, our_pid, our_port))
            coturns.append(offer(load, coturn_pid, coturn_port))
    return ours, coturns


def offer(load: Load, pid: int, port: int) -> dict[str, Any]:
    """One run of the generator: its JSON report."""
    command = [str(BINARY), "--json", "--server", f"127.0.0.1:{port}", "--user", "u", "--password", "p", "--pid", str(pid)]
    command += ["--allocs", str(load.allocations), "--rate", str(load.packets_per_s), "--dir", load.direction, "--duration", str(load.seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        sys.exit(f"turnload failed: {done.stderr.strip()}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _line(load: Load, ours: list[dict[str, Any]], coturns: list[dict[str, Any]]) -> str:
    def median(reports: list[dict[str, Any]], field: str) -> float:
        return statistics.median(float(report[field]) for report in reports)

    mine, theirs = median(ours, "server_cpu_s_per_M"), median(coturns, "server_cpu_s_per_M")
    late = (median(ours, "p99_us") / 1000, median(coturns, "p99_us") / 1000)
    lost = (median(ours, "loss_pct"), median(coturns, "loss_pct"))
    return f"{load.name:22} {mine:8.2f} {theirs:10.2f} {mine / theirs:6.2f} {late[0]:12.2f} {late[1]:14.2f} {lost[0]:12.3f} {lost[1]:14.3f}"


@contextmanager
def our_relay() -> Iterator[tuple[int, int]]:
    port = _free_port()
    command = [sys.executable, "-m", "media_fleet", "relay", "--listen", f"127.0.0.1:{port}", "--user", "u:p", "--allow-peer", "127.0.0.0/8"]
    with _running(command) as process:
        _await_answer(port)
        yield process.pid, port


@contextmanager
def coturn() -> Iterator[tuple[int, int]]:
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = ["turnserver", "-n", "--listening-ip", "127.0.0.1", "--relay-ip", "127.0.0.1", "--listening-port", str(port), "--realm", "R"]
        command += ["--lt-cred-mech", "--user", "u:p", "--allow-loopback-peers", "--no-cli", "--no-tls", "--no-dtls", "--no-tcp"]
        command += ["--userdb", f"{folder}/db", "--pidfile", f"{folder}/pid", "--log-file", "stdout"]
        with _running(command) as process:
            _await_answer(port)
            yield process.pid, port


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_answer(port: int) -> None:
    """Waits until a Binding request is answered."""
    request = bytes.fromhex("000100002112a442") + bytes(12)
    deadline = time.monotonic() + START_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.1)
        client.connect(("127.0.0.1", port))
        while time.monotonic() < deadline:
            try:
                client.send(request)
                client.recv(1500)
            except OSError:
                time.sleep(0.05)
            else:
                return
    sys.exit(f"the server on port {port} did not answer within {START_S:.0f} s")


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
