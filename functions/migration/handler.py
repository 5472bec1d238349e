"""CloudFormation's custom resource that migrates the ledger before the functions change. No route leads here, and it reads no settings: the event says all.

It always answers within its time, or CloudFormation would wait for an hour: the work is done beside the watch.
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any

from adapters import custom_resource, migrations_mongo, secrets_aws
from adapters.aws_json import AwsRefusal
from adapters.custom_resource import Answer, NotAnswered
from adapters.migrations_mongo import MigrationRefused
from heliograph.errors import Unavailable

ANSWER_S = 30.0
"""Kept for the answer, of the time that the function has."""
SKIPPED = "The secret has no value yet: put the URI and run heliograph-admin migrate."
LATE = "The migration was not finished in time; MongoDB may still build an index: run heliograph-admin migrate, which waits an hour, then deploy again."


def handler(event: dict[str, Any], context: Any) -> None:
    end_s = time.monotonic() + context.get_remaining_time_in_millis() / 1000
    kept_s = min(ANSWER_S, (end_s - time.monotonic()) / 3)
    answer = _watched(event, end_s - kept_s - time.monotonic())
    _log(event, "refused" if answer.refusal else "answered", refusal=answer.refusal, **answer.data)
    try:
        custom_resource.put(event, answer, end_s - time.monotonic() - kept_s / 3)
    except NotAnswered as unheard:
        _log(event, "not answered", refusal=str(unheard))


def _watched(event: Mapping[str, Any], within_s: float) -> Answer:
    """What became of the request, after `within_s` seconds at the latest: a server that hangs must not take the answer's time."""
    found: list[Answer] = []
    worker = threading.Thread(target=lambda: found.append(_answer(event, within_s * 0.9)), daemon=True)
    worker.start()
    worker.join(within_s)
    return found[0] if found else Answer(refusal=LATE)


def _answer(event: Mapping[str, Any], within_s: float) -> Answer:
    try:
        if event["RequestType"] == "Delete":
            return Answer()  # what a ledger holds is not a stack's to delete
        asked = event["ResourceProperties"]
        uri = _uri(asked["SecretId"])
        if uri is None:
            return Answer({"Skipped": SKIPPED})
        done = migrations_mongo.run(uri, asked["Database"], within_s=within_s)
        return Answer({"Done": "; ".join(done) or "nothing was missing"})
    except (MigrationRefused, Unavailable) as refused:
        return Answer(refusal=str(refused))
    except Exception as error:
        _log(event, "internal error", refusal=type(error).__name__, at="".join(traceback.format_tb(error.__traceback__)))  # its text may hold the URI
        return Answer(refusal=f"The migration failed with {type(error).__name__}; its log has the request {event.get('RequestId')}.")


def _uri(secret_id: str) -> str | None:
    """The ledger's URI; None when the secret is there and has no value: the first deployment makes it empty."""
    try:
        return str(secrets_aws.read_secret_now(secret_id)["uri"])
    except AwsRefusal as refusal:
        if refusal.code == "ResourceNotFoundException" and "value" in refusal.message:
            return None
        raise MigrationRefused(f"The secret of MongoDB's URI cannot be read: {refusal}.") from None
    except (KeyError, TypeError, ValueError):
        raise MigrationRefused('The secret of MongoDB\'s URI must be the JSON object {"uri": "mongodb+srv://…"}: put it, then deploy again.') from None


def _log(event: Mapping[str, Any], message: str, **fields: str | None) -> None:
    level = "ERROR" if fields.get("refusal") else "INFO"
    print(json.dumps({"level": level, "message": message, "service": "heliograph", "trace_id": event.get("RequestId"), **fields}), flush=True)
