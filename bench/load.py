"""How much one machine carries: many sockets in rooms of ten, messages in, deliveries out; nothing lost, twice or out of order, or the run fails.

The floor is 500 sockets, 100 messages a second in, about 900 deliveries out; then the rate doubles until something gives, and what gave is named by the CPU
of each part. `--full`: the floor for two minutes, then up to 2,000 sockets. The devices run in a process of their own on the same cores; they sign their own
tokens, because sign-ins would measure argon2. Delivered means: handed out by the client library's stream.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from bench._running import Cpu, Issuer, Running, resident_mb, running
from bench._swarm import Swarm, Verdict
from local.services import raise_file_limit

PER_ROOM = 10
FLOOR_SOCKETS, FLOOR_RATE = 500, 100
GOAL = "2,000 sockets, 500 in/s, 4,500 out/s"
SETTLE_S = 40.0
GIVES_BELOW, GIVES_ABOVE_MS = 0.95, 1_000.0
COLUMNS = (
    *("sockets", "in /s", "acked /s", "out /s", "acked", "delivered", "p50 ms", "p95 ms", "p99 ms"),
    *("sent again", "raw disorder", "settled s", "cores", "memory"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One rate at one number of sockets."""

    row: tuple[str, ...]
    is_held: bool
    cores: dict[str, float]
    refusals: dict[str, int]
    p95_ms: float
    rate: float


async def step(stack: Running, swarm: Swarm, rate: float, seconds: float) -> Step:
    """Sends at this rate for a while, waits for the rest."""
    cpu = Cpu(stack)
    sent_per_s = await swarm.send(rate, seconds)
    cores, meter = cpu.cores(), swarm.meter
    acked_in_time, delivered_in_time = len(meter.acknowledged), len(meter.delivered_ms)
    settled_s = await swarm.settle(SETTLE_S)
    cuts = statistics.quantiles(meter.delivered_ms, n=100) if len(meter.delivered_ms) > 1 else [0.0] * 99
    held = acked_in_time / (rate * seconds) >= GIVES_BELOW and cuts[94] <= GIVES_ABOVE_MS
    due = len(meter.started_s) * (PER_ROOM - 1)
    row = (
        f"{len(swarm.devices):,}", f"{sent_per_s:.0f} of {rate:g}", f"{acked_in_time / seconds:.0f}", f"{delivered_in_time / seconds:,.0f}",
        f"{len(meter.acknowledged):,} of {len(meter.started_s):,}", f"{len(meter.delivered_ms):,} of {due:,}",
        *(f"{cuts[at]:.0f}" for at in (49, 94, 98)), str(meter.sent_again), str(meter.raw_disorder), f"{settled_s:.1f}",
        f"{sum(used for part, used in cores.items() if part != 'everything else'):.2f}", f"{resident_mb(stack.endpoints()['pids']['stack']):.0f} MB",
    )  # fmt: skip
    return Step(row, held, cores, dict(meter.refusals), cuts[94], rate)


def limit_named(gave: Step) -> str:
    """What was busy when it gave."""
    parts = sorted(gave.cores.items(), key=lambda item: -item[1])
    total = sum(gave.cores.values())
    said = ", ".join(f"{part} {used:.2f}" for part, used in parts if used >= 0.005)
    cores = os.cpu_count() or 1
    if total > 0.85 * cores:
        return f"the machine's CPU: {total:.2f} of {cores} cores busy ({said}); most of it {parts[0][0]}"
    return f"not the CPU ({total:.2f} of {cores} cores busy: {said}); then the number of workers: four a function, each waiting for the ledger and for posts"


async def measure(stack: Running, swarm: Swarm, console: Console, *, is_full: bool) -> Verdict:
    """The floor, then more until something gives."""
    table, steps = Table(*COLUMNS), list[Step]()
    opened_s = await swarm.grow(FLOOR_SOCKETS // PER_ROOM, PER_ROOM)
    console.print(f"{FLOOR_SOCKETS} sockets open and in their rooms in {opened_s:.1f} s ({FLOOR_SOCKETS / opened_s:.0f} a second)")
    await step(stack, swarm, FLOOR_RATE / 2, 3)  # warm
    plan = [(FLOOR_RATE, 120.0 if is_full else 20.0), *((FLOOR_RATE * 2**n, 15.0 if is_full else 8.0) for n in (1, 2, 3))]
    for rate, seconds in plan:
        steps.append(await step(stack, swarm, rate, seconds))
        if not steps[-1].is_held:
            break
    for sockets in (1000, 2000) if is_full else (1000,):
        opened_s = await swarm.grow((sockets - len(swarm.devices)) // PER_ROOM, PER_ROOM)
        console.print(f"{sockets} sockets; the last {sockets // 2} opened in {opened_s:.1f} s")
        steps.append(await step(stack, swarm, FLOOR_RATE, 30.0 if is_full else 8.0))
    for each in steps:
        table.add_row(*each.row)
    console.print(table)
    for each in steps:
        said = ", ".join(f"{part} {used:.2f}" for part, used in each.cores.items() if used >= 0.005)
        console.print(f"{each.row[0]} sockets, {each.rate:g}/s: {'held' if each.is_held else 'GAVE'}; cores: {said}; refusals {each.refusals or 'none'}")
    gave = next((each for each in steps if not each.is_held), None)
    console.print(f"The first limit: {limit_named(gave)}." if gave else "Nothing gave.")
    held = [each for each in steps if each.is_held]
    console.print(f"held: {held[-1].row[0] if held else 'no'} sockets, at most {max((each.rate for each in held), default=0):g} in/s / goal: {GOAL}")
    return await asyncio.to_thread(swarm.verdict)


async def run(*, is_full: bool) -> int:
    """The exit code: 1 when something was lost, doubled, out of order or closed."""
    console = Console(width=200)
    raise_file_limit()
    with tempfile.TemporaryDirectory() as folder:
        async with running(Path(folder)) as stack, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            endpoints = stack.endpoints()
            swarm = Swarm(http, endpoints, Issuer.of(Path(folder), endpoints))
            try:
                verdict = await measure(stack, swarm, console, is_full=is_full)
            finally:
                await swarm.close()
    for name in ("lost", "duplicates", "disorder", "unstored", "resets", "closed"):
        console.print(f"{name}: {getattr(verdict, name)} / 0")
    return 0 if verdict.is_clean else 1


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--full", action="store_true", help="the floor for two minutes, then up to 2,000 sockets: about six minutes")
    options = parser.parse_args()
    try:
        import uvloop
    except ImportError:
        return asyncio.run(run(is_full=options.full))
    return int(uvloop.run(run(is_full=options.full)))


if __name__ == "__main__":
    sys.exit(main())
