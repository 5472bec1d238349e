"""Sends the pushes of the notifications queue: one per device of the account, each settled once; what failed is reported, and the queue tries again."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

from adapters.settings import now_ms
from functions import wiring
from heliograph.effects import Notify
from heliograph.push import Target, parse_queue_message


class NotSettled(Exception):
    """At least one device still waits; the queue delivers the message again."""


def record_handler(record: SQSRecord) -> None:
    notify = parse_queue_message(record.json_body)
    log: dict[str, Any] = {"trace_id": notify.trace_id, "tenant_id": notify.tenant_id, "notification_id": notify.notification_id}
    if now_ms() >= notify.expires_at_ms:
        wiring.logger().warning("push expired", **log)
        return
    waiting = [detail for target in wiring.accounts().push_targets(notify.tenant_id, notify.account_id) if (detail := _send(notify, target))]
    if waiting:
        raise NotSettled("; ".join(waiting))
    wiring.logger().info("pushed", **log)


def _send(notify: Notify, target: Target) -> str | None:
    """Sends to one device; the reason when it has to be tried again."""
    owner = (notify.tenant_id, notify.notification_id, target.device_id)
    if wiring.pushes().is_settled(*owner):
        return None
    outcome = wiring.fcm().send(notify, target, now_ms())
    if outcome.what == "target_dead":
        wiring.accounts().drop_push_target(notify.tenant_id, notify.account_id, target)
    if outcome.what in ("delivered", "target_dead"):
        wiring.pushes().settle(*owner, outcome.what, outcome.detail, now_ms())
        return None
    return f"{target.device_id}: {outcome.what} ({outcome.detail})"


_processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)


def handler(event: dict[str, Any], context: Any) -> PartialItemFailureResponse:
    return process_partial_response(event=event, record_handler=record_handler, processor=_processor, context=context)
