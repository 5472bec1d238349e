"""The fleet's meters as CloudWatch's embedded metric format: a JSON line on stdout, of which CloudWatch Logs makes metrics without a call or a right.

The stage is the only dimension. So a metric's Average is one node's share, its Sum the fleet's, its SampleCount the nodes that spoke; and eight
metrics cost the same for one node as for twelve. Source: CloudWatch user guide, "Embedded metric format specification".
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from media_fleet.readings import NETWORK, RelayReading, UsageReading

NAMESPACE: Final = "Heliograph/Fleet"
DIMENSION: Final = "stage"


@dataclass(frozen=True, slots=True)
class Metric:
    """`is_counter`: the reading counts up since the start, and a line tells what came since the line before."""

    unit: Literal["Count", "Bytes"]
    is_counter: bool
    doc: str


METRICS: Final = {
    "Allocations": Metric("Count", False, "Living allocations of the relay."),
    "RelayedBytes": Metric("Bytes", True, "Payload that the relay carried, both ways."),
    "DroppedDatagrams": Metric("Count", True, "Datagrams that the machine's network did not take."),
    "HubHasLease": Metric("Count", False, "1 while the hub's lease holds, else 0: then the functions post by themselves."),
    "HubBacklog": Metric("Count", False, "Posts that wait in the hub."),
    "HubDelivered": Metric("Count", True, "Posts that the gateway took."),
    "HubFailed": Metric("Count", True, "Posts that did not arrive: no answer, an error, or a backlog that overflowed."),
    "UsageLogged": Metric("Count", True, "Usage records that the ledger did not take: they stand in the log only."),
}

Reading = Mapping[str, float]


def of_relay(reading: RelayReading) -> Reading:
    """What CloudWatch is told of a relay."""
    carried = reading.from_client_bytes + reading.to_client_bytes
    return {"Allocations": reading.allocations, "RelayedBytes": carried, "DroppedDatagrams": reading.dropped.get(NETWORK, 0)}


def of_usage(reading: UsageReading) -> Reading:
    """What CloudWatch is told of usage on its way to the ledger."""
    return {"UsageLogged": reading.logged}


class Meter:
    """Turns readings into lines. `node` is a field of the line and no dimension: Logs Insights finds one node by it."""

    def __init__(self, stage: str, node: str) -> None:
        self._stage, self._node = stage, node
        self._before: dict[str, float] = {}

    def line(self, reading: Reading, now_ms: int) -> str:
        """One JSON line; KeyError for a reading that METRICS does not name."""
        values = {name: value - self._before.get(name, 0) if METRICS[name].is_counter else value for name, value in reading.items()}
        self._before = dict(reading)
        told = [{"Name": name, "Unit": METRICS[name].unit} for name in values]
        directive = {"Namespace": NAMESPACE, "Dimensions": [[DIMENSION]], "Metrics": told}
        head = {"_aws": {"Timestamp": now_ms, "CloudWatchMetrics": [directive]}, DIMENSION: self._stage, "node": self._node}
        return json.dumps(head | values)


def tell(meter: Meter, reading: Reading) -> bool:
    """Prints a line; False when nobody reads stdout any more, which never stops the node."""
    try:
        print(meter.line(reading, time.time_ns() // 1_000_000), flush=True)
    except (OSError, ValueError):
        return False
    return True


async def publish(meter: Meter, read: Callable[[], Reading], every_s: float) -> None:
    """Prints a line at once and then every `every_s` seconds, until it is cancelled."""
    while True:
        if not tell(meter, read()):
            return
        await asyncio.sleep(every_s)
