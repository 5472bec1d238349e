"""What Prometheus reads at /metrics: names, labels and values, and the same readings that CloudWatch gets."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from prometheus_client.parser import text_string_to_metric_families

from media_fleet.meters import METRICS, of_relay, of_usage
from media_fleet.prometheus import Readings, metrics
from media_fleet.readings import NETWORK, RelayReading, UsageReading
from media_fleet.stats import Text, serve_stats

RELAY = RelayReading(
    allocations=3,
    capacity=8_000,
    from_client_bytes=160,
    to_client_bytes=320,
    from_client_packets=1,
    to_client_packets=2,
    refusals={401: 7, 486: 1},
    auth_failures=2,
    dropped={NETWORK: 5, "permission": 11},
    cpu_s=1.5,
)
USAGE = UsageReading(waiting=4, stored=20, given_up=1, logged=2)
HUB = {"HubHasLease": 1.0, "HubBacklog": 9.0, "HubDelivered": 100.0, "HubFailed": 3.0}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(readings: Readings) -> Samples:
    """Every sample of ours, as Prometheus' own parser reads it."""
    status, body = metrics(readings)
    assert status == HTTPStatus.OK
    assert isinstance(body, Text)
    assert body.content_type.startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(body.data.decode()))
    assert all(family.documentation for family in families)
    assert {family.type for family in families} <= {"counter", "gauge"}
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def test_a_relay_is_told_with_the_labels_of_the_conventions() -> None:
    found = samples(Readings(RELAY))
    assert {name: value for name, value in found.items() if name[0].startswith("heliograph_")} == {
        ("heliograph_relay_allocations", ()): 3,
        ("heliograph_relay_allocations_max", ()): 8_000,
        ("heliograph_relay_draining", ()): 0,
        ("heliograph_relay_bytes_total", (("direction", "from_client"),)): 160,
        ("heliograph_relay_bytes_total", (("direction", "to_client"),)): 320,
        ("heliograph_relay_packets_total", (("direction", "from_client"),)): 1,
        ("heliograph_relay_packets_total", (("direction", "to_client"),)): 2,
        ("heliograph_relay_refusals_total", (("code", "401"),)): 7,
        ("heliograph_relay_refusals_total", (("code", "486"),)): 1,
        ("heliograph_relay_auth_failures_total", ()): 2,
        ("heliograph_relay_dropped_total", (("reason", "network"),)): 5,
        ("heliograph_relay_dropped_total", (("reason", "permission"),)): 11,
        ("heliograph_relay_cpu_seconds_total", ()): 1.5,
    }


def test_the_process_tells_its_cpu_and_memory_as_every_exporter_does() -> None:
    found = samples(Readings(RELAY))
    assert found["process_cpu_seconds_total", ()] > 0
    assert found["process_resident_memory_bytes", ()] > 0


def test_a_hub_and_usage_are_told_where_the_node_has_them() -> None:
    found = samples(Readings(RELAY, HUB, USAGE))
    assert {name: value for name, value in found.items() if name[0].startswith(("heliograph_hub", "heliograph_relay_usage"))} == {
        ("heliograph_hub_lease", ()): 1,
        ("heliograph_hub_backlog", ()): 9,
        ("heliograph_hub_posts_total", (("outcome", "delivered"),)): 100,
        ("heliograph_hub_posts_total", (("outcome", "failed"),)): 3,
        ("heliograph_relay_usage_waiting", ()): 4,
        ("heliograph_relay_usage_records_total", (("outcome", "stored"),)): 20,
        ("heliograph_relay_usage_records_total", (("outcome", "given_up"),)): 1,
        ("heliograph_relay_usage_records_total", (("outcome", "logged"),)): 2,
    }


def test_cloudwatch_is_told_the_same_readings() -> None:
    told = {**of_relay(RELAY), **of_usage(USAGE)}
    assert told == {"Allocations": 3, "RelayedBytes": 480, "DroppedDatagrams": 5, "UsageLogged": 2}
    assert set(told) | set(HUB) == set(METRICS)


async def test_an_endpoint_serves_text_as_it_is_beside_json() -> None:
    routes = {"/metrics": lambda: metrics(Readings(RELAY)), "/healthz": lambda: (HTTPStatus.OK, {"status": "ok"})}
    server = await serve_stats("127.0.0.1", 0, routes)
    async with server:
        answers = {}
        for path in routes:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
            answers[path] = (await reader.read()).decode()
            writer.close()
    assert "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in answers["/metrics"]
    assert "\nheliograph_relay_allocations 3.0\n" in answers["/metrics"]
    assert "Content-Type: application/json\r\n" in answers["/healthz"]
    assert answers["/healthz"].endswith('{"status": "ok"}')
