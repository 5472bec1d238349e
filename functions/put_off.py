"""Puts things off: the timers queue brings them back to functions/timers."""

from __future__ import annotations

import secrets
from typing import Any

from adapters.settings import now_ms, settings
from functions import wiring
from heliograph.auth import Identity
from heliograph.negotiation import RING_S
from heliograph.presence import ON_A_CALL
from heliograph.rooms import Participant, Room

MARGIN_S = 1
COALESCE_S = 1
AGAIN_S = 1


def look_after(who: Identity, connection_id: str, trace_id: str) -> None:
    """Begins the dead man's switch of a socket."""
    owner = {"tenant_id": who.tenant_id, "account_id": who.account_id, "device_id": who.device_id, "connection_id": connection_id}
    timer = {"kind": "look_after", **owner, "trace_id": trace_id, "is_lost": False, "expires_at_ms": who.expires_at_ms}
    look_again(timer, min(wiring.heartbeat().stale_after_ms(ON_A_CALL), who.expires_at_ms + settings().reauth_grace_s * 1000 - now_ms()))


def look_again(timer: dict[str, Any], in_ms: int) -> None:
    wiring.timers().send(timer, delay_s=-(-max(in_ms, 0) // 1000) + MARGIN_S)


def enter_again(tenant_id: str, room_id: str, own: Participant, trace_id: str) -> None:
    """A socket that came while Redis was away enters the room once more, a second later."""
    who = {"connection_id": own.connection_id, "account_id": own.account_id, "device_id": own.device_id}
    wiring.timers().send({"kind": "enter_again", "tenant_id": tenant_id, "room_id": room_id, **who, "trace_id": trace_id}, delay_s=AGAIN_S)


def audit_refusal(who: Identity, route_key: str, code: str, trace_id: str) -> None:
    """A refusal of somebody known, for the ledger. At least once: a repeat bears the same trace_id."""
    owner = {"tenant_id": who.tenant_id, "account_id": who.account_id, "device_id": who.device_id}
    wiring.timers().send({"kind": "audit_refusal", **owner, "route": route_key, "code": code, "trace_id": trace_id, "at_ms": now_ms()}, delay_s=0)


def end_sessions(ending: dict[str, Any]) -> None:
    """Has sessions ended a second from now, whatever happens to the function that is about to do it at once."""
    wiring.timers().send({"kind": "end_sessions", **ending}, delay_s=AGAIN_S)


def end_ringing(room: Room, call_id: str, trace_id: str) -> None:
    """Begins the ring time of an offer; a call that was answered meanwhile is left alone."""
    timer = {"kind": "end_ringing", "tenant_id": room.tenant_id, "room_id": room.room_id, "call_id": call_id, "trace_id": trace_id}
    wiring.timers().send(timer, delay_s=RING_S + MARGIN_S)


def tell_presence(tenant_id: str, account_id: str, trace_id: str) -> None:
    """The account's presence, told once more a second or two later."""
    timer = {"kind": "tell_presence", "tenant_id": tenant_id, "account_id": account_id, "trace_id": trace_id}
    wiring.timers().send(timer, delay_s=COALESCE_S + secrets.randbelow(2))  # jittered: what changed together is not told together
