"""Ends sessions for good: in MongoDB, which knows who is signed in, then for the access tokens that are still about, then on open sockets.

Each step may be done twice. It is done at once, and once more from the timers queue: so it also happens when the function dies in between or a store is away.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from adapters.settings import now_ms
from functions import put_off, wiring
from functions.perform import perform
from heliograph.effects import Close, Effect, Post
from heliograph.errors import Unavailable
from heliograph.messages import Event
from heliograph.presence import Connection
from heliograph.sessions import Session


def end_sessions(ended: Sequence[Session], actor: str, why: str, trace_id: str) -> None:
    """Ends sessions of one account. `why` stands in the ledger: signed_out, revoked, refresh_reused."""
    if not ended:
        return
    ending = {
        "tenant_id": ended[0].tenant_id,
        "account_id": ended[0].account_id,
        "sessions": [[session.sid, session.device_id] for session in ended],
        "actor": actor,
        "why": why,
        "trace_id": trace_id,
        "at_ms": now_ms(),
    }
    with suppress(Unavailable):  # without the queue it is still done now
        put_off.end_sessions(ending)
    end(ending)


def end(ending: dict[str, Any]) -> None:
    """Does it; Unavailable when a store is away, and then it is to be done again."""
    tenant_id, account_id = ending["tenant_id"], ending["account_id"]
    for sid, device_id in ending["sessions"]:
        if wiring.sessions().claim_ending(tenant_id, account_id, sid, ending["trace_id"]):
            detail = {"sid": sid, "why": ending["why"], "trace_id": ending["trace_id"]}
            wiring.ledger().record(tenant_id, ending["at_ms"], "session_ended", ending["actor"], f"{account_id}/{device_id}", detail)
            wiring.sessions().forget(tenant_id, account_id, sid)
    wiring.admissions().end_sessions(tenant_id, account_id, [sid for sid, _ in ending["sessions"]])
    devices = {device_id for _, device_id in ending["sessions"]}
    theirs = [c for c in wiring.connections().of_account(tenant_id, account_id) if c.device_id in devices and c.generation <= ending["at_ms"]]
    close_sockets(tenant_id, account_id, theirs, "signed_out", ending["trace_id"])


def close_sockets(tenant_id: str, account_id: str, connections: Sequence[Connection], reason: Any, trace_id: str) -> None:
    """Tells sockets why, closes them, and forgets them; `$disconnect` takes them out of their rooms."""
    if not connections:
        return
    closed = Event("closed", now_ms(), trace_id, {"reason": reason})
    effects: list[Effect] = [effect for c in connections for effect in (Post(c.connection_id, closed), Close(c.connection_id, reason))]
    perform(effects)
    wiring.connections().remove(tenant_id, account_id, [c.connection_id for c in connections])
