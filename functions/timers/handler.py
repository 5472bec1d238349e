"""What was put off comes back here, from a queue that keeps it when Redis is lost.

`look_after`: the dead man's switch. `hello` queues a look at the socket for when it would be stale, pings push that back, and a socket that went silent
leaves its rooms and presence: nothing rests on `$disconnect`. `tell_presence`: a change that came within a second of the one told before.
`end_ringing`: a call that nobody may have answered. `enter_again`: a socket that came while Redis was away.
"""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

from adapters.settings import now_ms
from functions import wiring
from functions.calling import end_ringing
from functions.live_rooms import come_back, leave_all
from functions.presence_fanout import tell_now
from functions.put_off import look_again
from heliograph.presence import ON_A_CALL
from heliograph.rooms import Participant


def look_after(timer: dict[str, Any]) -> None:
    found = wiring.connections().of_account(timer["tenant_id"], timer["account_id"])
    connection = next((c for c in found if c.connection_id == timer["connection_id"]), None)
    stale_in_ms = -1 if connection is None else connection.seen_at_ms + wiring.heartbeat().stale_after_ms(connection.status) - now_ms()
    if connection is None and not timer["is_lost"] and _is_unknown(timer):
        # Redis lost it, or never had it: a living socket is back with its next ping, and an idle one takes its time
        look_again(timer | {"is_lost": True}, wiring.heartbeat().stale_after_ms("online"))
    elif stale_in_ms >= 0:
        # when it would be stale, and as often as the strictest heartbeat asks: a socket that is on a call by then is missed within a minute
        look_again(timer | {"is_lost": False}, min(stale_in_ms, wiring.heartbeat().stale_after_ms(ON_A_CALL)))
    else:
        wiring.logger().info("swept", trace_id=timer["trace_id"], tenant_id=timer["tenant_id"], connection_id=timer["connection_id"])
        wiring.outbox().delete(timer["connection_id"])
        leave_all(timer["tenant_id"], timer["account_id"], timer["device_id"], timer["connection_id"], timer["trace_id"], now_ms())


def _is_unknown(timer: dict[str, Any]) -> bool:
    """A connection that was taken out has its count of frames still."""
    return wiring.connections().last_seq(timer["tenant_id"], timer["account_id"], timer["connection_id"]) is None


def tell_presence(timer: dict[str, Any]) -> None:
    owner = (timer["tenant_id"], timer["account_id"])
    wiring.connections().presence_is_due(*owner)
    tell_now(*owner, wiring.connections().of_account(*owner), timer["trace_id"], now_ms())


def enter_again(timer: dict[str, Any]) -> None:
    own = Participant(timer["connection_id"], timer["account_id"], timer["device_id"])
    if own in wiring.spare_live().in_room(timer["tenant_id"], timer["room_id"]):  # it has not left meanwhile
        come_back(timer["tenant_id"], timer["room_id"], own, timer["trace_id"], now_ms())


def record_handler(record: SQSRecord) -> None:
    timer = record.json_body
    KINDS[timer["kind"]](timer)


KINDS = {"look_after": look_after, "tell_presence": tell_presence, "enter_again": enter_again, "end_ringing": end_ringing}
_processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)


def handler(event: dict[str, Any], context: Any) -> PartialItemFailureResponse:
    return process_partial_response(event=event, record_handler=record_handler, processor=_processor, context=context)
