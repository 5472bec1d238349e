"""Usage documents in a real MongoDB: they only grow, whatever is written twice, late or in another order."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.usage_mongo import RelayUsage

BEGUN_MS = 1_900_000_000_000


def record(tenant_id: str, allocation: str, sent: int, *, account_id: str = "acc_1", at_ms: int = BEGUN_MS + 60_000, **more: Any) -> dict[str, Any]:
    fields = {
        "tenant_id": tenant_id,
        "account_id": account_id,
        "device_id": "dev_1",
        "allocation_id": allocation,
        "node_id": "n1",
        "relayed_address": "203.0.113.1:50000",
        "from_client_bytes": 160 * sent,
        "to_client_bytes": 80 * sent,
        "from_client_packets": sent,
        "to_client_packets": sent,
        "started_at_ms": BEGUN_MS,
        "updated_at_ms": at_ms,
        "schema_version": 1,
    }
    return fields | more


def stored(database: Any, tenant_id: str) -> list[dict[str, Any]]:
    return list(database.relay_usage.find({"tenant_id": tenant_id}, {"_id": 0}).sort("allocation_id", 1))


def test_a_later_record_replaces_an_earlier_one_and_an_earlier_one_changes_nothing(database: Any, tenant_id: str) -> None:
    usage, late = RelayUsage(database), record(tenant_id, "a", 1)
    final = record(tenant_id, "a", 5, at_ms=BEGUN_MS + 90_000, ended_at_ms=BEGUN_MS + 90_000)
    for each in (record(tenant_id, "a", 3), final, late, final):
        assert usage.put([each]) == []
    assert stored(database, tenant_id) == [final]


def test_of_a_relay_that_was_killed_the_last_snapshot_stays_without_an_end(database: Any, tenant_id: str) -> None:
    snapshot = record(tenant_id, "a", 3)
    RelayUsage(database).put([snapshot])
    assert stored(database, tenant_id) == [snapshot]
    assert "ended_at_ms" not in snapshot


def test_a_record_that_the_validator_refuses_comes_back_and_the_others_are_stored(database: Any, tenant_id: str) -> None:
    bad = record(tenant_id, "b", 1, node_id=7)
    assert RelayUsage(database).put([record(tenant_id, "a", 1), bad, record(tenant_id, "c", 1)]) == [bad]
    assert [each["allocation_id"] for each in stored(database, tenant_id)] == ["a", "c"]


def test_one_allocation_has_one_document(database: Any, tenant_id: str) -> None:
    from pymongo.errors import DuplicateKeyError

    RelayUsage(database).put([record(tenant_id, "a", 1)])
    with pytest.raises(DuplicateKeyError):
        database.relay_usage.insert_one(record(tenant_id, "a", 2))


def test_totals_are_of_one_tenant_by_account_and_by_when_allocations_began(database: Any, tenant_id: str) -> None:
    usage = RelayUsage(database)
    usage.put([record(tenant_id, "a", 1), record(tenant_id, "b", 2), record(tenant_id, "c", 10, account_id="acc_2")])
    usage.put([record(tenant_id, "d", 99, started_at_ms=BEGUN_MS + 10), record(f"{tenant_id}-other", "e", 99)])
    one, two = (
        {"account_id": name, "allocations": number, "from_client_bytes": 160 * sent, "to_client_bytes": 80 * sent}
        | {"from_client_packets": sent, "to_client_packets": sent}
        for name, number, sent in (("acc_1", 2, 3), ("acc_2", 1, 10))
    )
    assert usage.totals(tenant_id, BEGUN_MS, BEGUN_MS + 10) == [two, one]
    assert usage.totals(tenant_id, BEGUN_MS, BEGUN_MS + 10, "acc_1") == [one]
    assert usage.totals(tenant_id, BEGUN_MS + 11, BEGUN_MS + 20) == []
