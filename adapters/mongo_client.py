"""The MongoDB client, its errors in our words, and the one way to append to a dense sequence."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from heliograph.errors import Unavailable

APPEND_ATTEMPTS = 30
REFUSES_US: Final = frozenset({13, 18, 8000})
"""Unauthorized: the user is gone, or a right is missing. AuthenticationFailed: another password; Atlas says AtlasError."""
COUNTED_AGAIN_S = 5.0


def connect(uri: str, database: str) -> Any:
    """The database. Acknowledged writes are journalled by a majority: a weaker default in the URI cannot win."""
    from pymongo import MongoClient

    client: Any = MongoClient(
        uri,
        w="majority",
        journal=True,
        maxPoolSize=5,
        maxIdleTimeMS=60_000,
        connectTimeoutMS=2_000,
        serverSelectionTimeoutMS=2_000,
        timeoutMS=4_000,
        appname="heliograph",
    )
    return client[database]


@contextmanager
def translated() -> Iterator[None]:
    """PyMongo's exceptions as ours. A duplicate key is a result the caller asked for and passes through."""
    from pymongo.errors import DuplicateKeyError, PyMongoError

    try:
        yield
    except DuplicateKeyError:
        raise
    except PyMongoError as error:
        if getattr(error, "code", None) in REFUSES_US:
            _refused.is_new = True
        raise Unavailable("The ledger is out of reach for a moment; try again.") from None


class _Refused:
    """How often MongoDB refused this process's user, counted at most once in COUNTED_AGAIN_S."""

    def __init__(self) -> None:
        self._lock, self._last_s, self._times, self.is_new = threading.Lock(), float("-inf"), 0, False

    def counted(self) -> int:
        with self._lock:
            if self.is_new and time.monotonic() - self._last_s >= COUNTED_AGAIN_S:
                self._last_s, self._times, self.is_new = time.monotonic(), self._times + 1, False
            return self._times


_refused = _Refused()


def refusals() -> int:
    """Grows after MongoDB refused the user or the password: whoever keeps a connection then reads the secret again and makes another one.

    Not for every refusal: a secret that is still the old one must not cost a read at every request.
    """
    return _refused.counted()


def append_dense(head: int, read_head: Callable[[int], int], insert: Callable[[int], bool]) -> int:
    """Inserts at head+1 and moves on when another writer was there first; returns the number that was written.

    `insert(n)` answers False when n is taken; `read_head(n)` re-reads the head, which is at least n. Unavailable after APPEND_ATTEMPTS.
    """
    for _ in range(APPEND_ATTEMPTS):
        if insert(head + 1):
            return head + 1
        head = read_head(head + 1)
    raise Unavailable("Too many writers at once; try again.", retry_after_ms=200)
