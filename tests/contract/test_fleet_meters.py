"""The fleet's metric lines are what CloudWatch's embedded metric format asks for, and add up.

Source: CloudWatch user guide, "Specification: Embedded metric format" (schema, limits: 100 metrics, 30 dimensions, a timestamp in milliseconds).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from media_fleet.meters import DIMENSION, METRICS, NAMESPACE, Meter, of_relay, publish
from media_fleet.relay import Relay, RelayConfig
from media_fleet.turn import static_users

NOW_MS = 1_900_000_000_000
UNITS = {"Seconds", "Microseconds", "Milliseconds", "Bytes", "Kilobytes", "Megabytes", "Percent", "Count", "Bytes/Second", "Count/Second", "None"}


def told(line: str) -> dict[str, Any]:
    """The metrics CloudWatch makes of a line, after the checks it makes itself."""
    document = json.loads(line)
    meta = document["_aws"]
    assert set(meta) == {"Timestamp", "CloudWatchMetrics"}
    assert isinstance(meta["Timestamp"], int)
    (directive,) = meta["CloudWatchMetrics"]
    assert 1 <= len(directive["Namespace"]) <= 255
    assert len(directive["Metrics"]) <= 100
    for dimension in (name for dimensions in directive["Dimensions"] for name in dimensions):
        assert isinstance(document[dimension], str)  # the value of a dimension is a text at the root
    values = {}
    for metric in directive["Metrics"]:
        assert metric["Unit"] in UNITS
        assert isinstance(document[metric["Name"]], int | float)
        values[metric["Name"]] = document[metric["Name"]]
    assert "\n" not in line  # a log event each
    return values


def test_a_line_names_namespace_stage_and_every_metric_once() -> None:
    line = Meter("prod", "node-1").line(dict.fromkeys(METRICS, 1), NOW_MS)
    assert set(told(line)) == set(METRICS)
    document = json.loads(line)
    (directive,) = document["_aws"]["CloudWatchMetrics"]
    assert (directive["Namespace"], directive["Dimensions"]) == (NAMESPACE, [[DIMENSION]])
    assert (document[DIMENSION], document["node"], document["_aws"]["Timestamp"]) == ("prod", "node-1", NOW_MS)


def test_counters_tell_what_came_since_the_line_before_and_the_others_what_is() -> None:
    meter = Meter("prod", "n")
    lines = [told(meter.line({"Allocations": living, "RelayedBytes": carried}, NOW_MS)) for living, carried in ((3, 100), (2, 250), (2, 250))]
    assert lines == [{"Allocations": 3, "RelayedBytes": 100}, {"Allocations": 2, "RelayedBytes": 150}, {"Allocations": 2, "RelayedBytes": 0}]


def test_a_reading_that_no_metric_names_is_refused() -> None:
    with pytest.raises(KeyError):
        Meter("prod", "n").line({"Guesses": 1}, NOW_MS)


async def test_lines_come_at_once_and_then_in_steps(capsys: pytest.CaptureFixture[str]) -> None:
    count = iter(range(1, 100))
    publishing = asyncio.create_task(publish(Meter("dev", "n"), lambda: {"HubDelivered": next(count)}, 0.01))
    lines: list[str] = []
    async with asyncio.timeout(30):
        while len(lines) < 3:
            await asyncio.sleep(0.01)
            lines += capsys.readouterr().out.splitlines()
    publishing.cancel()
    assert [told(line) for line in lines[:3]] == [{"HubDelivered": 1}] * 3


async def test_a_relay_without_calls_reads_as_zero() -> None:
    async with Relay(RelayConfig(realm="r", credentials=static_users({"ann": "pass"}, "r"), listen=(("127.0.0.1", 0),))) as relay:
        assert told(Meter("dev", "n").line(of_relay(relay.reading()), NOW_MS)) == {"Allocations": 0, "RelayedBytes": 0, "DroppedDatagrams": 0}
