"""Redis killed, hung or emptied under 20 messages a second: writing goes on, and everybody ends up with everything that was acknowledged, in order, once."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bench._running import Issuer, running
from local import service_redis
from local.services import HOST, choose_ports, ping_redis
from local.supervisor import NotReady
from tests.chaos.crowd import Crowd, crowd

RATE = 20.0
AFTER_S, SETTLE_S = 8.0, 70.0  # the idle heartbeat is 60 s: what posts did not bring is found with the next ping
DEGRADED_S, LIVE_S = 5.0, 10.0
CUT = 3


class OwnRedis:
    """A server that the test may kill, hang and start again."""

    def __init__(self, data_dir: Path) -> None:
        data_dir.mkdir()
        binary = service_redis.resolve({}).binary
        assert binary is not None
        self.port = choose_ports(("redis",), {})["redis"]
        self._argv = [binary, "--port", str(self.port), "--bind", HOST, "--save", "", "--appendonly", "no", "--dir", str(data_dir)]
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Up, and empty."""
        self._process = subprocess.Popen(self._argv, stdout=subprocess.DEVNULL)  # noqa: ASYNC220 - returns at once
        async with asyncio.timeout(30):
            while True:
                try:
                    return await ping_redis(self.port)
                except NotReady:
                    await asyncio.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill -9, and gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def break_for(self, how: str, seconds: float) -> None:
        """Away for a while; "flushed" only loses its memory."""
        if how == "flushed":
            reader, writer = await asyncio.open_connection(HOST, self.port)
            writer.write(b"FLUSHALL\r\n")
            assert (await reader.readline()).startswith(b"+OK")
            writer.close()
        elif how == "hung":
            self.signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            self.signal(signal.SIGCONT)
        else:
            await asyncio.to_thread(self.kill)
            await asyncio.sleep(seconds)
            await self.start()


@asynccontextmanager
async def people(tmp_path: Path) -> AsyncIterator[tuple[OwnRedis, Crowd, str]]:
    redis = OwnRedis(tmp_path / "own-redis")
    await redis.start()
    try:
        async with running(tmp_path, environ={"HELIOGRAPH_REDIS_URL": service_redis.url(redis.port)}) as stack:
            endpoints = stack.endpoints()
            async with crowd(endpoints, Issuer.of(tmp_path, endpoints), rooms=2, per_room=5, listeners=2) as everybody:
                yield redis, everybody, endpoints["admin_url"]
    finally:
        redis.signal(signal.SIGCONT)
        redis.kill()


def report(title: str, everybody: Crowd, broken_s: float, back_s: float, settled_s: float) -> list[str]:
    """The lines that are printed."""
    during = [sent for sent in everybody.acknowledged() if broken_s <= sent.at_s < max(back_s, broken_s + 2)]
    waits = [sent.acknowledged_s - sent.at_s for sent in during if sent.acknowledged_s]
    first_s = min((sent.acknowledged_s for sent in during if sent.acknowledged_s), default=float("inf")) - broken_s
    return [
        f"\nRedis {title}: {len(everybody.acknowledged())} of {len(everybody.sent)} texts acknowledged, {len(during)} of them meanwhile",
        f"  first acknowledgement after the fault: {first_s:.2f} s / {DEGRADED_S:g} s",
        f"  waiting for an acknowledgement meanwhile: median {statistics.median(waits):.2f} s, longest {max(waits):.2f} s / {DEGRADED_S:g} s",
        f"  everybody has each text within a second, from Redis' return: {everybody.live_after_s(back_s):.1f} s / {LIVE_S:g} s",
        everybody.summary(settled_s),
    ]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["killed", "hung", "flushed"])
async def test_writing_goes_on_without_redis_and_nothing_acknowledged_is_lost(
    how: str, outage_s: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with people(tmp_path) as (redis, everybody, admin_url):
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        writing = asyncio.create_task(everybody.write(RATE, stop))
        await asyncio.sleep(3)
        broken_s = loop.time()
        breaking = asyncio.create_task(redis.break_for(how, outage_s))
        await asyncio.sleep(1)
        reopened_s = await everybody.dropped(admin_url, CUT)
        await breaking
        back_s = loop.time()
        await asyncio.sleep(AFTER_S)
        stop.set()
        await writing
        settled_s = await everybody.settled(SETTLE_S)
        with capsys.disabled():
            print("\n".join(report(how, everybody, broken_s, back_s, settled_s)))
            print(f"  {CUT} sockets cut a second after the fault were open again: {reopened_s:.1f} s / {DEGRADED_S:g} s")
        assert not everybody.refused
        assert not everybody.surprises()
        assert (everybody.duplicates(), everybody.disorder(), await everybody.unstored()) == (0, 0, 0)
