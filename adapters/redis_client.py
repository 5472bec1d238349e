"""The Redis client, and its errors in our words. Short time-outs: a hung server must not hold a Lambda."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from heliograph.errors import Unavailable

CONNECT_TIMEOUT_S, SOCKET_TIMEOUT_S = 0.3, 0.5


def connect(url: str, mode: str) -> Any:
    """A client in `single` or `cluster` mode; connects at the first command, tries a broken connection again once."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "decode_responses": True,
        "retry": Retry(NoBackoff(), 1),
    }
    if mode == "cluster":
        return redis.RedisCluster.from_url(url, **options)
    return redis.Redis.from_url(url, **options)


@contextmanager
def translated() -> Iterator[None]:
    """Redis' exceptions as ours: anything but a programming mistake is Unavailable."""
    import redis

    try:
        yield
    except redis.exceptions.DataError:
        raise
    except (redis.exceptions.RedisError, OSError):
        raise Unavailable("The session store is out of reach for a moment; try again.") from None
