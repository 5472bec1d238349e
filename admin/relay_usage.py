"""What accounts sent through the relays, summed; and records that the relays could only log, put back into the ledger."""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from adapters.settings import now_ms
from adapters.usage_mongo import RelayUsage
from heliograph.shapes import JsonObject

AT_ONCE: Final = 200
_OF_THE_LOG: Final = {"at_ms", "event", "why"}


def register(commands: Any) -> None:
    """Adds `relay-usage` and `restore-relay-usage` to the command line."""
    summing = commands.add_parser("relay-usage", help="what each account of a tenant sent through the relays, the largest first")
    summing.add_argument("--tenant", required=True)
    summing.add_argument("--account", help="this account alone")
    summing.add_argument("--since", required=True, type=_day, metavar="YYYY-MM-DD", help="allocations that began on this day (UTC) or later")
    summing.add_argument("--until", type=_day, metavar="YYYY-MM-DD", help="and before this day; default: until now")
    restoring = commands.add_parser("restore-relay-usage", help="put usage that relays could only log into the ledger; twice changes nothing")
    restoring.add_argument("--lines", type=Path, required=True, metavar="FILE", help="lines of the relays' log")


def run(options: argparse.Namespace, database: Any) -> JsonObject:
    """Does one of the two; ValueError for records that no relay wrote, OSError for a file that cannot be read."""
    if options.command == "relay-usage":
        until_ms = now_ms() if options.until is None else options.until
        return {"tenant_id": options.tenant, "accounts": RelayUsage(database).totals(options.tenant, options.since, until_ms, options.account)}
    with options.lines.open(encoding="utf-8") as lines:
        return {"restored": restore(RelayUsage(database), lines)}


def restore(usage: RelayUsage, lines: Iterable[str]) -> int:
    """Writes the records in lines `usage_not_stored`, whatever stands before their JSON; other lines are passed over. How many: twice changes nothing."""
    restored, records = 0, _records(lines)
    while some := list(itertools.islice(records, AT_ONCE)):
        try:
            refused = usage.put(some)
        except KeyError as missing:
            raise ValueError(f"One of these records has no {missing.args[0]}.") from None
        if refused:
            raise ValueError(f"The ledger refuses {len(refused)} of these records; the first one: {json.dumps(refused[0])}")
        restored += len(some)
    return restored


def _records(lines: Iterable[str]) -> Iterator[JsonObject]:
    for line in lines:
        if '"usage_not_stored"' in line:
            found, _ = json.JSONDecoder().raw_decode(line, line.index("{"))
            yield {name: value for name, value in found.items() if name not in _OF_THE_LOG}


def _day(text: str) -> int:
    """Milliseconds of its first moment."""
    return int(dt.datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=dt.UTC).timestamp() * 1000)
