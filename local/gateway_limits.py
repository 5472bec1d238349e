"""The quotas of API Gateway that the local one keeps, and the names both of its APIs bear.

Source: API Gateway developer guide, "Quotas for configuring and running a WebSocket API" and "Quotas for configuring and running an HTTP API".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

Invoke = Callable[[str, object], Awaitable[object]]

ACCOUNT_ID: Final = "000000000000"
HTTP_API_ID: Final = "localhttp0"
SOCKET_API_ID: Final = "localsock0"


@dataclass(frozen=True, slots=True)
class Limits:
    """Defaults are AWS's; tests of a limit make it smaller."""

    http_body_bytes: int = 10 * 1024 * 1024
    http_timeout_s: float = 30
    socket_timeout_s: float = 29
    authorizer_timeout_s: float = 10
    message_bytes: int = 128 * 1024
    frame_bytes: int = 32 * 1024
    client_buffer_bytes: int = 1024 * 1024  # what may wait for a slow client before posts to it are answered 429; AWS publishes no figure
