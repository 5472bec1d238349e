"""The readings of a node as Prometheus takes them, at `GET /metrics`. Names and labels: prometheus.io/docs/practices/naming.

The same readings go to CloudWatch by `media_fleet.meters`. `process_*` are of the process that answers; the CPU of every process that relays is a
metric of the relay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from media_fleet.meters import Reading
from media_fleet.readings import RelayReading, UsageReading
from media_fleet.stats import Answer, Text


@dataclass(frozen=True, slots=True, eq=False)  # a registry wants to hash it
class Readings(Collector):
    """What is told at one moment; `hub` by the names of `media_fleet.meters`."""

    relay: RelayReading
    hub: Reading | None = None
    usage: UsageReading | None = None

    def collect(self) -> Iterator[Metric]:
        yield from _of_relay(self.relay)
        if self.hub is not None:
            yield from _of_hub(self.hub)
        if self.usage is not None:
            yield from _of_usage(self.usage)


def metrics(readings: Readings) -> Answer:
    """The answer of `/metrics`, in the text format that every Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(readings)
    ProcessCollector(registry=registry)
    return HTTPStatus.OK, Text(generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4)


def _of_relay(reading: RelayReading) -> Iterator[Metric]:
    yield GaugeMetricFamily("heliograph_relay_allocations", "Living allocations.", reading.allocations)
    yield GaugeMetricFamily("heliograph_relay_allocations_max", "Allocations that the relay takes.", reading.capacity)
    yield GaugeMetricFamily("heliograph_relay_draining", "1 while the relay takes no new allocations because it ends.", int(reading.is_draining))
    carried = CounterMetricFamily("heliograph_relay_bytes", "Payload relayed.", labels=("direction",))
    packets = CounterMetricFamily("heliograph_relay_packets", "Datagrams relayed.", labels=("direction",))
    for direction, some_bytes, some_packets in (
        ("from_client", reading.from_client_bytes, reading.from_client_packets),
        ("to_client", reading.to_client_bytes, reading.to_client_packets),
    ):
        carried.add_metric((direction,), some_bytes)
        packets.add_metric((direction,), some_packets)
    yield carried
    yield packets
    refusals = CounterMetricFamily("heliograph_relay_refusals", "Error responses, by STUN error code; a 401 asks for credentials first.", labels=("code",))
    for code, times in sorted(reading.refusals.items()):
        refusals.add_metric((str(code),), times)
    yield refusals
    yield CounterMetricFamily("heliograph_relay_auth_failures", "Requests with wrong, unknown or expired credentials.", reading.auth_failures)
    dropped = CounterMetricFamily("heliograph_relay_dropped", "Datagrams received and not relayed.", labels=("reason",))
    for reason, times in sorted(reading.dropped.items()):
        dropped.add_metric((reason,), times)
    yield dropped
    yield CounterMetricFamily("heliograph_relay_cpu_seconds", "CPU time of every process that relays.", reading.cpu_s)


def _of_hub(reading: Reading) -> Iterator[Metric]:
    yield GaugeMetricFamily("heliograph_hub_lease", "1 while the hub's lease holds.", reading["HubHasLease"])
    yield GaugeMetricFamily("heliograph_hub_backlog", "Posts that wait.", reading["HubBacklog"])
    posts = CounterMetricFamily("heliograph_hub_posts", "Posts to sockets.", labels=("outcome",))
    posts.add_metric(("delivered",), reading["HubDelivered"])
    posts.add_metric(("failed",), reading["HubFailed"])
    yield posts


def _of_usage(reading: UsageReading) -> Iterator[Metric]:
    yield GaugeMetricFamily("heliograph_relay_usage_waiting", "Usage records that the ledger does not have yet.", reading.waiting)
    records = CounterMetricFamily("heliograph_relay_usage_records", "Usage records by what became of them; logged: only in the log.", labels=("outcome",))
    for outcome, times in (("stored", reading.stored), ("given_up", reading.given_up), ("logged", reading.logged)):
        records.add_metric((outcome,), times)
    yield records
