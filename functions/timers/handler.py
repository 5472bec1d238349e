"""What was put off comes back here, from a queue that keeps it when Redis is lost.

`look_after`: the dead man's switch. `hello` queues a look at the socket for when it would be stale, pings push that back, and a socket that went silent
leaves its rooms and presence: nothing rests on `$disconnect`. `tell_presence`: a change that came within a second of the one told before.
`end_ringing`: a call that nobody may have answered.
"""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

from adapters.settings import now_ms
from functions import wiring
from functions.calling import end_ringing
from functions.live_rooms import leave_all
from functions.presence_fanout import tell_now
from functions.put_off import look_again
from heliograph.presence import Connection


def look_after(timer: dict[str, Any]) -> None:
    found = wiring.connections().of_account(timer["tenant_id"], timer["account_id"])
    connection = next((c for c in found if c.connection_id == timer["connection_id"]), None)
    if connection is None and not timer["is_lost"]:
        look_again(timer | {"is_lost": True})  # gone, or Redis lost it: a living socket is back with its next ping
    elif connection is not None and _is_alive(connection):
        look_again(timer | {"is_lost": False})
    else:
        wiring.logger().info("swept", trace_id=timer["trace_id"], tenant_id=timer["tenant_id"], connection_id=timer["connection_id"])
        wiring.outbox().delete(timer["connection_id"])
        leave_all(timer["tenant_id"], timer["account_id"], timer["device_id"], timer["connection_id"], timer["trace_id"], now_ms())


def tell_presence(timer: dict[str, Any]) -> None:
    owner = (timer["tenant_id"], timer["account_id"])
    wiring.connections().presence_is_due(*owner)
    tell_now(*owner, wiring.connections().of_account(*owner), timer["trace_id"], now_ms())


def record_handler(record: SQSRecord) -> None:
    timer = record.json_body
    KINDS[timer["kind"]](timer)


def _is_alive(connection: Connection) -> bool:
    return now_ms() - connection.seen_at_ms <= wiring.heartbeat().stale_after_ms(connection.status)


KINDS = {"look_after": look_after, "tell_presence": tell_presence, "end_ringing": end_ringing}
_processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)


def handler(event: dict[str, Any], context: Any) -> PartialItemFailureResponse:
    return process_partial_response(event=event, record_handler=record_handler, processor=_processor, context=context)
