"""Every key in Redis: its name, its owner and its TTL. One hash tag each, so that no command spans two slots."""

from __future__ import annotations

CONNECTION_S = 2 * 3600 + 5 * 60  # a socket lives two hours at most
ROOM_LIVE_S = CONNECTION_S
LAST_SEEN_S = 30 * 86_400
BOARD_S = 300
HEAD_S = 86_400
TICKET_MARK_S = 60


def connections(tenant_id: str, account_id: str) -> str:
    """Hash: connection_id -> device, generation, status, seen_at_ms. Owner: presence."""
    return f"hg:{{{tenant_id}/{account_id}}}:connections"


def last_seen(tenant_id: str, account_id: str) -> str:
    """Text: milliseconds. Owner: presence."""
    return f"hg:{{{tenant_id}/{account_id}}}:last_seen"


def board(tenant_id: str, account_id: str, device_id: str, call_id: str) -> str:
    """JSON: the decision board's state of one sender in one call. Owner: bitrate."""
    return f"hg:{{{tenant_id}/{account_id}}}:board:{device_id}:{call_id}"


def ticket(tenant_id: str, account_id: str, jti: str) -> str:
    """Mark: a ticket was used. Owner: auth."""
    return f"hg:{{{tenant_id}/{account_id}}}:ticket:{jti}"


def room_live(tenant_id: str, room_id: str) -> str:
    """Hash: connection_id -> account, device. Owner: rooms."""
    return f"hg:{{{tenant_id}/{room_id}}}:live"


def room_head(tenant_id: str, room_id: str, epoch: str) -> str:
    """Text: the stream's head as a hint; MongoDB has the truth. Owner: streams."""
    return f"hg:{{{tenant_id}/{room_id}}}:head:{epoch}"
