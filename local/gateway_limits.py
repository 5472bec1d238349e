"""The quotas of API Gateway that the local one keeps, how it counts requests, and the names both of its APIs bear.

Sources: API Gateway developer guide, "Quotas for configuring and running a WebSocket API", "Quotas for configuring and running an HTTP API", "API Gateway
account-level quotas per Region" (10,000 requests a second and a bucket of 5,000, shared by HTTP, WebSocket and callback APIs), "Protecting your WebSocket API".
The HTTP APIs' page bounds the "total combined size of request line and header values" (10,240 bytes); that of WebSocket APIs names no such quota.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

Invoke = Callable[[str, object], Awaitable[object]]

ACCOUNT_ID: Final = "000000000000"
HTTP_API_ID: Final = "localhttp0"
SOCKET_API_ID: Final = "localsock0"
THROTTLED: Final = "Too Many Requests"


@dataclass(frozen=True, slots=True)
class Rate:
    """What a token bucket gives: `per_s` tokens a second, at most `burst` at once."""

    per_s: float
    burst: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Defaults are AWS's; tests of a limit make it smaller.

    `time_scale` 60 lets one minute of a socket's life pass in a second: idle time and connection life, which nobody wants to wait for. Integration
    timeouts and rates stay as they are, because functions and clients live on the real clock.
    """

    http_head_bytes: int = 10_240  # request line and header values; names are not counted
    http_body_bytes: int = 10 * 1024 * 1024
    http_timeout_s: float = 30
    socket_timeout_s: float = 29
    authorizer_timeout_s: float = 10
    message_bytes: int = 128 * 1024
    frame_bytes: int = 32 * 1024
    client_buffer_bytes: int = 1024 * 1024  # what may wait for a slow client before posts to it are answered 429; AWS publishes no figure
    idle_s: float = 10 * 60
    connection_s: float = 2 * 3600
    time_scale: float = 1
    requests: Rate = Rate(10_000, 5_000)
    new_connections: Rate = Rate(500, 500)  # AWS publishes the rate, the burst is assumed to be one second of it
    routes: Mapping[str, Rate] = field(default_factory=dict)  # a route's own throttle, by route key; without one the account's alone counts

    @property
    def real_idle_s(self) -> float:
        """Seconds of the real clock without a message until a socket is closed."""
        return self.idle_s / self.time_scale

    @property
    def real_connection_s(self) -> float:
        """Seconds of the real clock that a socket lives."""
        return self.connection_s / self.time_scale


class TokenBucket:
    """Full at first; a request takes one token, and `per_s` come back each second."""

    __slots__ = ("_at_s", "_rate", "_tokens")

    def __init__(self, rate: Rate) -> None:
        self._rate, self._tokens, self._at_s = rate, rate.burst, 0.0

    def take(self, now_s: float) -> bool:
        """One token, if there is one."""
        if now_s > self._at_s:
            self._tokens = min(self._rate.burst, self._tokens + (now_s - self._at_s) * self._rate.per_s)
            self._at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Throttle:
    """The buckets of one account: every API of the gateway takes from the same one, routes with a rate of their own from theirs first."""

    def __init__(self, limits: Limits) -> None:
        self._account, self._connections = TokenBucket(limits.requests), TokenBucket(limits.new_connections)
        self._routes = {key: TokenBucket(rate) for key, rate in limits.routes.items()}

    def admits(self, route_key: str, now_s: float) -> bool:
        """Whether a request of this route may pass; "" for a callback, which has no route."""
        route = self._routes.get(route_key)
        return (route is None or route.take(now_s)) and self._account.take(now_s)

    def admits_connection(self, now_s: float) -> bool:
        """Whether one more socket may be opened; it is also a request of `$connect`."""
        return self._connections.take(now_s) and self.admits("$connect", now_s)
