"""An Idempotency-Key is honoured by Powertools over MongoDB: it survives the loss of Redis."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

from aws_lambda_powertools.utilities.idempotency import BasePersistenceLayer, IdempotencyConfig, idempotent_function
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyItemAlreadyExistsError,
    IdempotencyItemNotFoundError,
    IdempotencyPersistenceLayerError,
    IdempotencyValidationError,
)
from aws_lambda_powertools.utilities.idempotency.persistence.datarecord import DataRecord

from adapters.mongo_client import translated
from heliograph.errors import Conflict, HeliographError, InProgress, Unavailable

KEPT_S = 86_400


class MongoPersistence(BasePersistenceLayer):
    """One document per key of a tenant; a TTL index removes it."""

    def __init__(self, collection: Any, tenant_id: str) -> None:
        self._records, self._tenant_id = collection, tenant_id
        super().__init__()  # type: ignore[no-untyped-call]

    def _owner(self, idempotency_key: str) -> dict[str, Any]:
        return {"tenant_id": self._tenant_id, "_id": idempotency_key}

    def _get_record(self, idempotency_key: str) -> DataRecord:
        with translated():
            found = self._records.find_one(self._owner(idempotency_key))
        if found is None:
            raise IdempotencyItemNotFoundError
        return _record(found)

    def _put_record(self, data_record: DataRecord) -> None:
        from pymongo.errors import DuplicateKeyError

        now = dt.datetime.now(dt.UTC)
        free = [{"expiry": {"$lt": int(now.timestamp())}}, {"status": "INPROGRESS", "in_progress_expiry": {"$lt": int(now.timestamp() * 1000)}}]
        fields = _fields(data_record) | {"in_progress_expiry": data_record.in_progress_expiry_timestamp}
        try:
            with translated():  # an expired record is taken over; a live one makes the upsert collide
                self._records.update_one(self._owner(data_record.idempotency_key) | {"$or": free}, {"$set": fields}, upsert=True)
        except DuplicateKeyError:
            raise IdempotencyItemAlreadyExistsError from None  # without the old record: Powertools then reads it and compares the bodies

    def _update_record(self, data_record: DataRecord) -> None:
        with translated():
            self._records.update_one(self._owner(data_record.idempotency_key), {"$set": _fields(data_record)})

    def _delete_record(self, data_record: DataRecord) -> None:
        with translated():
            self._records.delete_one(self._owner(data_record.idempotency_key))


def once(collection: Any, tenant_id: str, key: str, body: Any, context: Any, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer of `act`, made once per key of the tenant within KEPT_S. Conflict when the key was used with another body, InProgress while it runs."""
    config = IdempotencyConfig(
        event_key_jmespath="key", payload_validation_jmespath="body", expires_after_seconds=KEPT_S, hash_function="sha256", lambda_context=context
    )

    @idempotent_function(data_keyword_argument="request", persistence_store=MongoPersistence(collection, tenant_id), config=config, key_prefix="heliograph")  # type: ignore[untyped-decorator, unused-ignore]
    def run(request: dict[str, Any]) -> dict[str, Any]:
        return act()

    try:
        return dict(run(request={"key": f"{tenant_id}/{key}", "body": body}))
    except IdempotencyAlreadyInProgressError:
        raise InProgress(retry_after_ms=500) from None
    except IdempotencyValidationError:
        raise Conflict("This Idempotency-Key was used for another request.") from None
    except IdempotencyPersistenceLayerError as error:
        if isinstance(error.__cause__, HeliographError):
            raise error.__cause__ from None
        raise Unavailable from None


def _fields(record: DataRecord) -> dict[str, Any]:
    return {
        "status": record.status,
        "expiry": record.expiry_timestamp,
        "expires_at": dt.datetime.fromtimestamp(record.expiry_timestamp or 0, dt.UTC),
        "response": record.response_data,
        "payload_hash": record.payload_hash,
        "schema_version": 2,
    }


def _record(found: dict[str, Any]) -> DataRecord:
    return DataRecord(found["_id"], found["status"], found["expiry"], found.get("in_progress_expiry"), found["response"], found["payload_hash"])
