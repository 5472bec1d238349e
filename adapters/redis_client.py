"""The Redis client, who it signs in as, and its errors in our words. Short time-outs: a hung server must not hold a Lambda."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from adapters import sigv4
from adapters.settings import now_ms
from heliograph.errors import Unavailable

CONNECT_TIMEOUT_S, SOCKET_TIMEOUT_S = 0.3, 0.5
# What our user of ElastiCache may do: our keys and channels, and nothing that stops, empties or spies on the server. INFO tells the hub the server's version.
ACCESS: Final = "on ~hg:* &hg:* +@all -@admin -@dangerous +info"
TOKEN_S: Final = 900  # the longest ElastiCache takes; it is looked at only when a connection opens, and the connection lives for twelve hours
DOWN_MS = 1_000  # after a failure, how long nobody tries: a hung server must not cost a time-out per command

_down_until_ms = 0


def token(user: str, cache: str, *, credentials: sigv4.Credentials, region: str, now: float) -> str:
    """The password of an IAM user of ElastiCache Serverless: a signed URL without its scheme. `now` is in seconds since the epoch.

    Source: ElastiCache user guide, "Authenticating with IAM"; AWS' own example signs with `http://`.
    """
    url = f"http://{cache}/?Action=connect&User={user}&ResourceType=ServerlessCache"
    return sigv4.presign(url, credentials=credentials, region=region, service="elasticache", expires_s=TOKEN_S, now=now).removeprefix("http://")


def sign_in(user: str, cache: str, *, credentials: Callable[[], sigv4.Credentials], region: str) -> Any:
    """What `connect` takes to sign in by IAM: a token for each connection, from the keys of that moment. None where `user` is empty: the URL says all."""
    if not user:
        return None
    from redis.credentials import CredentialProvider

    class ByIam(CredentialProvider):
        def get_credentials(self) -> tuple[str, str]:
            return user, token(user, cache, credentials=credentials(), region=region, now=now_ms() / 1000)

        async def get_credentials_async(self) -> tuple[str, str]:
            return self.get_credentials()

    return ByIam()


def connect(url: str, mode: str, signed_in: Any = None) -> Any:
    """A client in `single` or `cluster` mode; tries a broken connection again once. `signed_in` is what `sign_in` gave.

    A single server is reached at the first command, a cluster here: Unavailable when no node answers.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    options: dict[str, Any] = {
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "decode_responses": True,
        "credential_provider": signed_in,
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
