"""Per-account usage to the ledger: final records as allocations end, snapshots of living ones, in batches, over outages (`usage_buffer` has the rules).

A node that is killed loses what was carried since its last snapshot. What MongoDB did not take before there was no room left, or before the node ended,
stands in the log as JSON lines `usage_not_stored`, complete: they can be put into the collection `relay_usage` as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from adapters import mongo_client
from adapters.aws_json import AwsRefusal
from adapters.settings import now_ms
from adapters.usage_mongo import RelayUsage
from heliograph.errors import Unavailable
from heliograph.ice import TurnUser, parse_turn_username
from media_fleet.log import log
from media_fleet.readings import AllocationUsage, UsageReading
from media_fleet.session_store import Tenants
from media_fleet.usage_buffer import UsageBuffer

BATCH: Final = 200
FLUSH_S: Final = 1.0
TENANT_WAIT_MS: Final = 600_000  # how long a final record waits for a session store that is away, or forgot the account's tenant
UNKNOWN: Final = "unknown"  # then its tenant; the account id still is unique over all tenants
Record = dict[str, Any]


class UsageLedger:
    """The collection, reached by the URI in a secret; read again after MongoDB refused the user, as functions do. Every method blocks."""

    def __init__(self, read_uri: Callable[[], str], database: str) -> None:
        self._read_uri, self._database = read_uri, database
        self._refusals = mongo_client.refusals()
        self._connected: Any = None

    def put(self, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """As RelayUsage.put; Unavailable too while the secret has no URI."""
        if self._connected is None or mongo_client.refusals() != self._refusals:
            self._connect()
        return RelayUsage(self._connected).put(records)

    def close(self) -> None:
        if self._connected is not None:
            self._connected.client.close()

    def _connect(self) -> None:
        self.close()
        self._connected, self._refusals = None, mongo_client.refusals()
        try:
            self._connected = mongo_client.connect(self._read_uri(), self._database)
        except (AwsRefusal, KeyError, TypeError, ValueError) as error:  # no value yet, or none of ours
            raise Unavailable(f"The secret with the ledger's URI cannot be used: {error!r}.") from None


class Usage:
    """`ledger` is closed at the end."""

    def __init__(self, node_id: str, ledger: UsageLedger, tenants: Tenants, buffer: UsageBuffer | None = None) -> None:
        self._node_id, self._ledger, self._tenants = node_id, ledger, tenants
        self._buffer = UsageBuffer() if buffer is None else buffer
        self._stored = self._logged = 0
        self._is_failing = False

    def ended(self, usage: AllocationUsage) -> None:
        """The final record of an allocation; `ended_at_ms` is set. Never blocks."""
        self._log(self._buffer.end(usage), "no room")

    def snapshot(self, usage: AllocationUsage) -> None:
        """How a living allocation stands. Never blocks."""
        self._buffer.snapshot(usage)

    def reading(self) -> UsageReading:
        return UsageReading(waiting=len(self._buffer), stored=self._stored, given_up=self._buffer.given_up, logged=self._logged)

    async def run(self) -> None:
        """Writes what waits, once a second, until it is cancelled."""
        while True:
            try:
                await self.flush()
            except Exception as error:  # the process edge: usage must not end a relay
                log("usage_failed", error=repr(error))
            await asyncio.sleep(FLUSH_S)

    async def finish(self, within_s: float) -> None:
        """Writes what waits, tenants known or not, and logs what could not be written in so many seconds."""
        try:
            async with asyncio.timeout(within_s):
                while len(self._buffer):
                    self._buffer.hurry()
                    await self.flush(is_last=True)
                    await asyncio.sleep(FLUSH_S if len(self._buffer) else 0)
        except Exception as error:  # the process edge: what could not be written must reach the log, whatever it was
            log("usage_failed", error=repr(error))
        self._log(self._buffer.drain(), "the node ends")
        await asyncio.to_thread(self._ledger.close)

    async def flush(self, *, is_last: bool = False) -> None:
        """Writes until nothing waits, or the ledger is away."""
        put_off: list[AllocationUsage] = []
        try:
            while batch := self._buffer.take(BATCH, _now_s()):
                put_off += await self._give(batch, is_last=is_last)
        finally:
            self._log(self._buffer.put_off(put_off), "no room")

    async def _give(self, batch: list[AllocationUsage], *, is_last: bool) -> list[AllocationUsage]:
        """Writes a batch, or gives it back to the buffer; returns what should wait for its tenant."""
        try:
            waiting = await self._write(batch, is_last=is_last)
        except BaseException as error:
            self._log(self._buffer.failed(batch, _now_s()), "no room")
            if not isinstance(error, Unavailable):
                raise
            self._say_failing(True, error=str(error))
            return []
        self._say_failing(False)
        return waiting

    async def _write(self, batch: list[AllocationUsage], *, is_last: bool) -> list[AllocationUsage]:
        """Writes those whose tenant is known; returns final ones that should wait for it. A snapshot need not: another one comes. Raises Unavailable."""
        with suppress(Unavailable):  # then those that are remembered
            await self._tenants.of({_user(usage.username).account_id for usage in batch})
        known = {usage.key: self._tenants.known(_user(usage.username).account_id) is not None for usage in batch}
        finals = [usage for usage in batch if usage.ended_at_ms is not None and not known[usage.key]]
        waiting = [] if is_last else [usage for usage in finals if now_ms() - usage.read_at_ms < TENANT_WAIT_MS]
        written = [usage for usage in batch if known[usage.key]] + [usage for usage in finals if usage not in waiting]
        records = [self._record(usage) for usage in written]
        refused = await asyncio.to_thread(self._ledger.put, records) if records else []
        self._buffer.stored(written)
        self._stored += len(records) - len(refused)
        for record in refused:
            self._say_not_stored(record, "the ledger's validator refuses it")
        return waiting

    def _record(self, usage: AllocationUsage) -> Record:
        user = _user(usage.username)
        record: Record = {
            "tenant_id": self._tenants.known(user.account_id) or UNKNOWN,
            "account_id": user.account_id,
            "device_id": user.device_id,
            "allocation_id": f"{self._node_id}/{usage.relayed_address}/{usage.started_at_ms}",
            "node_id": self._node_id,
            "relayed_address": usage.relayed_address,
            "from_client_bytes": usage.from_client_bytes,
            "to_client_bytes": usage.to_client_bytes,
            "from_client_packets": usage.from_client_packets,
            "to_client_packets": usage.to_client_packets,
            "started_at_ms": usage.started_at_ms,
            "updated_at_ms": usage.read_at_ms,
            "schema_version": 1,
        }
        return record if usage.ended_at_ms is None else record | {"ended_at_ms": usage.ended_at_ms}

    def _log(self, usages: Iterable[AllocationUsage], why: str) -> None:
        """The dead letters of usage."""
        for usage in usages:
            self._say_not_stored(self._record(usage), why)

    def _say_not_stored(self, record: Mapping[str, Any], why: str) -> None:
        self._logged += 1
        log("usage_not_stored", why=why, **record)

    def _say_failing(self, is_failing: bool, **more: object) -> None:
        if is_failing != self._is_failing:
            self._is_failing = is_failing
            log("usage_waits" if is_failing else "usage_goes_on", waiting=len(self._buffer), **more)


def _user(username: str) -> TurnUser:
    """A relay with fixed users tells no usage; if one did, its name must not be lost."""
    try:
        return parse_turn_username(username)
    except ValueError:
        return TurnUser(0, username, UNKNOWN)


def _now_s() -> float:
    return asyncio.get_running_loop().time()
