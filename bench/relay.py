"""Our relay's data paths and coturn side by side: CPU per relayed packet, loss, lateness and memory under the same loads, medians of interleaved runs.

    python -m bench.relay [--runs 5] [--seconds 1.5]

Needs the load generator `turnload` beside this repository (../shared/turnload), a C compiler and coturn; says so and ends with 0 where one is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT.parent / "shared" / "turnload" / "turnload.c"
BINARY = ROOT / "build" / "turnload"
START_S, QUIET_S = 10.0, 0.3
PYTHON, COMPILED, COTURN = "python", "compiled", "coturn"
CPU_BARS = {PYTHON: 1.25, COMPILED: 0.8}  # times coturn's CPU
MEMORY_BAR_KB = 6.0
IDLE, FIRST = 1_000, 20  # allocations whose memory is measured, after so many that warm the server
Report = dict[str, Any]


@dataclass(frozen=True)
class Load:
    """What the generator offers: flows of 160-byte packets, as calls are."""

    name: str
    allocations: int
    packets_per_s: int  # in all
    direction: str
    is_lossless: bool = False  # the Python path has to carry it without loss


LOADS = (
    Load("1 x 50,000/s, up", 1, 50_000, "up"),
    Load("200 x 50/s, up", 200, 10_000, "up"),
    Load("1000 x 50/s, up", 1000, 50_000, "up", is_lossless=True),
    Load("1000 x 50/s, down", 1000, 50_000, "down", is_lossless=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs per server and load (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="of one run (%(default)s)")
    asked = parser.parse_args()
    if missing := _missing():
        print(missing)
        return
    build()
    servers, absent = _servers()
    print(f"160-byte packets on loopback; server CPU us per relayed packet; medians of {asked.runs} runs of {asked.seconds:g} s, the servers in turns;")
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors; another load loses packets that the servers would not lose")
    for line in absent:
        print(line)
    print(f"{'load':20} {'server':9} {'CPU us':>7} {'x coturn':>9} {'bar':>7} {'lost %':>7} {'bar':>5} {'p50 ms':>7} {'p99 ms':>7} {'cores':>6}")
    for load in LOADS:
        print("\n".join(_lines(load, measure(load, servers, asked.runs, asked.seconds))), flush=True)
    print(f"memory of {IDLE} idle allocations with a permission and a channel each, RSS")
    for name, kb in memory(servers).items():
        bar = "" if name == COTURN else f"   bar <= {MEMORY_BAR_KB:g}: {_held(kb <= MEMORY_BAR_KB)}"
        print(f"{'':20} {name:9} {kb:7.2f} kB each{bar}")


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


Server = Callable[[], AbstractContextManager[tuple[int, int]]]


def _servers() -> tuple[dict[str, Server], list[str]]:
    """What can be started here: name -> a context of (pid, port); and why what is left out cannot."""
    servers: dict[str, Server] = {PYTHON: lambda: our_relay(PYTHON), COMPILED: lambda: our_relay(COMPILED), COTURN: coturn}
    absent = []
    if not has_data_paths():
        del servers[COMPILED]
        absent.append("the compiled path is not measured: `media_fleet relay` has no --data-path yet")
    else:
        try:
            with servers[COMPILED]():
                pass
        except ServerDied as died:
            del servers[COMPILED]
            absent.append(f"the compiled path is not measured: {died}")
    return servers, absent


def measure(load: Load, servers: dict[str, Server], runs: int, seconds: float) -> dict[str, list[Report]]:
    """The generator's reports on each server. The servers take turns, so that a busy machine is busy for all."""
    reports: dict[str, list[Report]] = {name: [] for name in servers}
    with ExitStack() as stack:
        running = {name: stack.enter_context(start()) for name, start in servers.items()}
        for number in range(runs):
            order = [*running.items()]
            for name, (pid, port) in order if number % 2 else reversed(order):
                reports[name].append(offer(load, pid, port, seconds))
                time.sleep(QUIET_S)
    return reports


def offer(load: Load, pid: int, port: int, seconds: float) -> Report:
    """One run of the generator: its JSON report."""
    return _turnload(pid, port, "--allocs", load.allocations, "--rate", load.packets_per_s, "--dir", load.direction, "--duration", seconds)


def memory(servers: dict[str, Server]) -> dict[str, float]:
    """kB of resident memory that an idle allocation costs each server."""
    found = {}
    for name, start in servers.items():
        with start() as (pid, port):
            _turnload(pid, port, "--hold", "--allocs", FIRST)
            found[name] = float(_turnload(pid, port, "--hold", "--allocs", IDLE)["rss_kb_per_alloc"])
    return found


def _turnload(pid: int, port: int, *options: object) -> Report:
    command = [str(BINARY), "--json", "--server", f"127.0.0.1:{port}", "--user", "u", "--password", "p", *map(str, options)]
    for each in (pid, *_children(pid)):
        command += ["--pid", str(each)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        sys.exit(f"turnload failed: {done.stderr.strip()}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _children(pid: int) -> list[int]:
    """Workers of a server."""
    found = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return [each for child in found for each in (child, *_children(child))]


def _lines(load: Load, reports: dict[str, list[Report]]) -> Iterator[str]:
    def median(name: str, field: str) -> float:
        return statistics.median(float(report[field]) for report in reports[name])

    for name in reports:
        cpu, lost = median(name, "server_cpu_s_per_M"), median(name, "loss_pct")
        ratio, bar = cpu / median(COTURN, "server_cpu_s_per_M"), CPU_BARS.get(name)
        cells = f"{cpu:7.2f} {ratio:9.2f} {'' if bar is None else _held(ratio <= bar, f'<={bar:g}'):>7} {lost:7.3f}"
        cells += f" {_held(lost == 0, '0') if load.is_lossless and name == PYTHON else '':>5}"
        late = f"{median(name, 'p50_us') / 1000:7.2f} {median(name, 'p99_us') / 1000:7.2f} {median(name, 'server_cores'):6.2f}"
        yield f"{load.name if name == next(iter(reports)) else '':20} {name:9} {cells} {late}"


def _held(holds: bool, bar: str = "") -> str:
    return f"{bar} {'yes' if holds else 'NO'}".strip()


def has_data_paths() -> bool:
    """Whether the relay's command lets one choose the data path."""
    said = subprocess.run([sys.executable, "-m", "media_fleet", "relay", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return "--data-path" in said


@contextmanager
def our_relay(path: str = PYTHON) -> Iterator[tuple[int, int]]:
    port = _free_port()
    command = [sys.executable, "-m", "media_fleet", "relay", "--listen", f"127.0.0.1:{port}", "--user", "u:p", "--allow-peer", "127.0.0.0/8"]
    with _running([*command, *(["--data-path", path] if has_data_paths() else [])]) as process:
        _await_answer(process, port)
        yield process.pid, port


@contextmanager
def coturn() -> Iterator[tuple[int, int]]:
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = ["turnserver", "-n", "--listening-ip", "127.0.0.1", "--relay-ip", "127.0.0.1", "--listening-port", str(port), "--realm", "R"]
        command += ["--lt-cred-mech", "--user", "u:p", "--allow-loopback-peers", "--no-cli", "--no-tls", "--no-dtls", "--no-tcp"]
        command += ["--userdb", f"{folder}/db", "--pidfile", f"{folder}/pid", "--log-file", "stdout"]
        with _running(command) as process:
            _await_answer(process, port)
            yield process.pid, port


class ServerDied(Exception):
    """A server ended before it answered; its last words."""


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            yield process
        except ServerDied:
            errors.seek(0)
            raise ServerDied((errors.read().decode(errors="replace").strip().splitlines() or ["without a word"])[-1]) from None
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_answer(process: subprocess.Popen[bytes], port: int) -> None:
    """Waits until a Binding request is answered."""
    request = bytes.fromhex("000100002112a442") + bytes(12)
    deadline = time.monotonic() + START_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(0.1)
        client.connect(("127.0.0.1", port))
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ServerDied
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
