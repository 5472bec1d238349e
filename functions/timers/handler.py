"""What was put off comes back here, from a queue that keeps it when Redis is lost.

`look_after`: the dead man's switch. `hello` queues a look at the socket for when it would be stale, pings push that back, and a socket that went silent
leaves its rooms and presence: nothing rests on `$disconnect`. `tell_presence`: a change that came within a second of the one told before.
`end_ringing`: a call that nobody may have answered. `enter_again`: a socket that came while Redis was away. `end_sessions`: sessions that are to end whatever
happens to the function that began it. `audit_refusal`: a refusal for the ledger. A socket that is not authenticated any more is closed by the look at it.
"""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord

from adapters.settings import now_ms, settings
from functions import wiring
from functions.calling import end_ringing
from functions.live_rooms import come_back, leave_all
from functions.presence_fanout import tell_now
from functions.put_off import look_again
from functions.signing_out import close_sockets
from functions.signing_out import end as end_sessions
from heliograph.presence import ON_A_CALL, Connection
from heliograph.rooms import Participant


def look_after(timer: dict[str, Any]) -> None:
    found = wiring.connections().of_account(timer["tenant_id"], timer["account_id"])
    connection = next((c for c in found if c.connection_id == timer["connection_id"]), None)
    stale_in_ms = -1 if connection is None else connection.seen_at_ms + wiring.heartbeat().stale_after_ms(connection.status) - now_ms()
    if connection is None and not timer["is_lost"] and _is_unknown(timer):
        # Redis lost it, or never had it: a living socket is back with its next ping, and an idle one takes its time
        look_again(timer | {"is_lost": True}, wiring.heartbeat().stale_after_ms("online"))
    elif connection is not None and stale_in_ms >= 0:
        _keep(timer, connection, stale_in_ms)
    else:
        wiring.logger().info("swept", trace_id=timer["trace_id"], tenant_id=timer["tenant_id"], connection_id=timer["connection_id"])
        wiring.outbox().delete(timer["connection_id"])
        leave_all(timer["tenant_id"], timer["account_id"], timer["device_id"], timer["connection_id"], timer["trace_id"], now_ms())


def _keep(timer: dict[str, Any], connection: Connection, stale_in_ms: int) -> None:
    """Looks again when the socket would be stale or its authentication over, and as often as the strictest heartbeat asks: one that is on a call by then is
    missed within a minute. A socket that proved nothing for `reauth_grace_s` after its authentication expired is closed."""
    proved = wiring.admissions().proved(timer["tenant_id"], timer["account_id"], timer["connection_id"]) or timer
    open_for_ms = int(proved["expires_at_ms"]) + settings().reauth_grace_s * 1000 - now_ms()
    if open_for_ms > 0:
        look_again(timer | {"is_lost": False}, min(stale_in_ms, open_for_ms, wiring.heartbeat().stale_after_ms(ON_A_CALL)))
        return
    wiring.logger().info("authentication over", trace_id=timer["trace_id"], tenant_id=timer["tenant_id"], connection_id=timer["connection_id"])
    close_sockets(timer["tenant_id"], timer["account_id"], [connection], "token_expired", timer["trace_id"])
    leave_all(timer["tenant_id"], timer["account_id"], timer["device_id"], timer["connection_id"], timer["trace_id"], now_ms())


def audit_refusal(timer: dict[str, Any]) -> None:
    detail = {name: timer[name] for name in ("route", "code", "trace_id")}
    wiring.ledger().record(timer["tenant_id"], timer["at_ms"], "access_refused", timer["account_id"], timer["device_id"], detail)


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


KINDS = {
    "look_after": look_after,
    "tell_presence": tell_presence,
    "enter_again": enter_again,
    "end_ringing": end_ringing,
    "end_sessions": end_sessions,
    "audit_refusal": audit_refusal,
}
_processor = BatchProcessor(event_type=EventType.SQS, raise_on_entire_batch_failure=False)


def handler(event: dict[str, Any], context: Any) -> PartialItemFailureResponse:
    return process_partial_response(event=event, record_handler=record_handler, processor=_processor, context=context)
