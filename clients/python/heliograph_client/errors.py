"""Errors of the client: one tree, built from the server's one error shape.

HeliographError
├── ConnectionLostError    the socket closed or the server cannot be reached
├── TimedOutError          no acknowledgement in time
└── RefusedError           the server answered with a code
    ├── InvalidRequestError    our frame or body is wrong
    ├── SignedOutError         the token, ticket or session is no longer good: sign in again
    ├── ForbiddenError         known, but not allowed
    ├── NotFoundError          unknown, or somebody else's
    ├── ConflictError          the id is taken or the state does not allow it
    ├── RateLimitedError       too many; retry_after_s says when
    └── ServerError            theirs
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

AUTH_EXPIRED: Final = "token_expired"
"""A fresh token is to be had, and then the same request passes."""
AUTH_OVER: Final = "token_invalid"
"""The session is over; signing in is all that helps."""


class HeliographError(Exception):
    """Anything this client raises on purpose."""

    code = "client_error"
    retryable = False


class ConnectionLostError(HeliographError):
    """The socket closed, or the server cannot be reached."""

    code = "connection_lost"
    retryable = True


class TimedOutError(HeliographError):
    """No acknowledgement in time; the frame may or may not have acted, sending it again with the same id is safe."""

    code = "timed_out"
    retryable = True


class RefusedError(HeliographError):
    """The server answered with a code."""

    def __init__(
        self, code: str, message: str, *, retryable: bool = False, retry_after_s: float | None = None, trace_id: str | None = None, status: int | None = None
    ) -> None:
        """Keep what the server said."""
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.trace_id = trace_id
        self.status = status


class InvalidRequestError(RefusedError):
    """Our frame or body is wrong."""


class SignedOutError(RefusedError):
    """The token, ticket or session is no longer good."""


class ForbiddenError(RefusedError):
    """Known, but not allowed."""


class NotFoundError(RefusedError):
    """Unknown, or somebody else's: the server does not say which."""


class ConflictError(RefusedError):
    """The id is taken, or the state does not allow it."""


class RateLimitedError(RefusedError):
    """Too many requests."""


class ServerError(RefusedError):
    """The server's fault."""


_BY_STATUS: dict[int, type[RefusedError]] = {
    400: InvalidRequestError,
    401: SignedOutError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    413: InvalidRequestError,
    422: InvalidRequestError,
    429: RateLimitedError,
}
_BY_CODE: dict[str, type[RefusedError]] = {
    "malformed": InvalidRequestError,
    "unknown_action": InvalidRequestError,
    "too_large": InvalidRequestError,
    "unauthenticated": SignedOutError,
    "token_expired": SignedOutError,
    "token_invalid": SignedOutError,
    "credentials_invalid": SignedOutError,
    "identity_refused": SignedOutError,
    "forbidden": ForbiddenError,
    "origin_refused": ForbiddenError,
    "not_found": NotFoundError,
    "conflict": ConflictError,
    "id_taken": ConflictError,
    "upload_missing": ConflictError,
    "checksum_mismatch": ConflictError,
    "in_progress": ConflictError,
    "out_of_order": ConflictError,
    "connected_elsewhere": ConflictError,
    "glare": ConflictError,
    "negotiation_stale": ConflictError,
    "call_answered": ConflictError,
    "call_ended": ConflictError,
    "rate_limited": RateLimitedError,
    "unavailable": ServerError,
    "internal": ServerError,
}


def parse_error(body: Mapping[str, Any], status: int | None = None) -> RefusedError:
    """Build the error for the server's error shape; a body without a code (API Gateway's own) goes by the status alone."""
    code = body.get("code")
    kind = _BY_CODE.get(str(code)) or _BY_STATUS.get(status or 0) or (ServerError if (status or 0) >= 500 else InvalidRequestError if code else RefusedError)
    retry_after_ms = body.get("retry_after_ms")
    return kind(
        str(code or f"http_{status}"),
        str(body.get("message", "")),
        retryable=bool(body.get("retryable", (status or 0) in (429, 502, 503, 504))),
        retry_after_s=retry_after_ms / 1_000 if isinstance(retry_after_ms, int | float) else None,
        trace_id=body.get("trace_id"),
        status=status,
    )
