"""Floors of the fan-out, as ratios of what the answer time alone would allow; bench/fanout.py has the figures."""

from __future__ import annotations

import statistics
import time
from typing import Any

import pytest

from adapters import keys
from media_fleet.hub import Hub
from tests.conftest import Stores
from tests.contract.hub_stub import Server, StubGateway, config, fresh, gateway, hand_over, job, leased, until

__all__ = ["gateway"]  # a fixture
ANSWER_S, SOCKETS, CONCURRENCY = 0.008, 1_000, 64
FLOOR = 16.0  # one after another would be 64; a quiet machine shows 2, with the stub in the same interpreter


@pytest.fixture
def server(stores: Stores, redis_server: Any) -> Server:
    redis_server.delete(keys.HUB_LEASES)
    return Server(stores.redis_url, redis_server)


async def test_a_thousand_sockets_are_reached_within_a_few_times_the_answer_time(
    server: Server, gateway: StubGateway, tenant_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.delay_s = ANSWER_S
    ids = tuple(f"c{number:04}=" for number in range(SOCKETS))
    took_s = []
    async with Hub(config(server, gateway, concurrency=CONCURRENCY)) as hub:
        await leased(hub)
        hubs = fresh(server)
        for number in range(6):
            goal, began_s = len(gateway.posted) + SOCKETS, time.perf_counter()
            assert await hand_over(hubs, job(tenant_id, str(number), ids))
            await until("1,000 deliveries", lambda goal=goal: len(gateway.posted) >= goal)  # type: ignore[misc]
            took_s.append(time.perf_counter() - began_s)
    ratio = statistics.median(took_s[1:]) / (SOCKETS / CONCURRENCY * ANSWER_S)
    with capsys.disabled():
        print(f"\n1,000 sockets: {ratio:.1f} / {FLOOR:g} times what {CONCURRENCY} connections need for the answers alone")
    assert ratio < FLOOR


def test_the_leases_are_read_once_a_second_however_many_wide_events_there_are(server: Server) -> None:
    def reads() -> int:
        found = server.client.info("commandstats").get("cmdstat_eval", {"calls": 0})
        return int(found["calls"])

    hubs, before, began_s = fresh(server), reads(), time.monotonic()
    for _ in range(200):
        hubs.live()
    assert reads() - before <= 1 + (time.monotonic() - began_s)
