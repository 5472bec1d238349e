"""The Redis client, and its errors in our words. Short time-outs: a hung server must not hold a Lambda."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adapters.settings import now_ms
from heliograph.errors import Unavailable

CONNECT_TIMEOUT_S, SOCKET_TIMEOUT_S = 0.3, 0.5
DOWN_MS = 1_000  # after a failure, how long nobody tries: a hung server must not cost a time-out per command

_down_until_ms = 0


def connect(url: str, mode: str) -> Any:
    """A client in `single` or `cluster` mode; tries a broken connection again once.

    A single server is reached at the first command, a cluster here: Unavailable when no node answers.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "decode_responses": True,
        "retry": Retry(NoBackoff(), 1, supported_errors=(redis.exceptions.ConnectionError,)),
    }
    if mode == "cluster":
        with translated():
            return redis.RedisCluster.from_url(url, **options)
    return redis.Redis.from_url(url, **options)


def forget_failure() -> None:
    """Lets this process try Redis again at once."""
    global _down_until_ms
    _down_until_ms = 0


@contextmanager
def translated() -> Iterator[None]:
    """Redis' exceptions as ours: anything but a programming mistake is Unavailable.

    A server that could not be reached is left alone for DOWN_MS by the whole process.
    """
    global _down_until_ms
    import redis

    if now_ms() < _down_until_ms:
        raise Unavailable("The session store is out of reach for a moment; try again.")
    try:
        yield
    except redis.exceptions.DataError:
        raise
    except (redis.exceptions.RedisError, OSError) as error:
        if str(error).startswith(("WRONGTYPE", "ERR ")):
            raise  # a command that is wrong is our mistake; everything else says that the server cannot do it now
        _down_until_ms = now_ms() + DOWN_MS
        raise Unavailable("The session store is out of reach for a moment; try again.") from None
