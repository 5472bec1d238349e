"""Secrets Manager: JSON secrets. `read_secret` reads once per process: a rotated one is picked up by the next process or after `forget()`.

What is rotated while processes live, as `{current, previous}`, is kept by `Rotated`: a request never waits for Secrets Manager, but for the first one.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Generic, TypeVar

from adapters.aws_json import call
from heliograph.errors import Unavailable
from heliograph.origin import is_one_of

FRESH_S = 300
ASKED_AGAIN_S = 5
"""How often a value that nobody knows may make a process read the secret: anybody can send one."""
T = TypeVar("T")


@cache
def read_secret(secret_id: str) -> dict[str, Any]:
    """The secret's JSON object, as it was when this process first asked."""
    return read_secret_now(secret_id)


def read_secret_now(secret_id: str) -> dict[str, Any]:
    """The secret's JSON object as it is now."""
    return dict(json.loads(call("secretsmanager", "secretsmanager.GetSecretValue", {"SecretId": secret_id})["SecretString"]))


def write_secret(secret_id: str, value: dict[str, Any]) -> str:
    """Stores a new version of the secret; its version id."""
    version_id = str(uuid.uuid4())
    call("secretsmanager", "secretsmanager.PutSecretValue", {"SecretId": secret_id, "SecretString": json.dumps(value), "ClientRequestToken": version_id})
    return version_id


def forget() -> None:
    """Reads every secret anew next time."""
    read_secret.cache_clear()


class Rotated(Generic[T]):
    """What `read` gives, read again when it is older than FRESH_S; `clock` gives milliseconds. The first read is made at once and may raise Unavailable."""

    def __init__(self, read: Callable[[], T], clock: Callable[[], int]) -> None:
        self._read, self._clock = read, clock
        self._read_at_ms = clock()
        self._value = read()

    def get(self, oldest_s: int = FRESH_S) -> T:
        """The value, at most that old; while it cannot be read the one at hand goes on."""
        if self._clock() - self._read_at_ms > oldest_s * 1000:
            self._read_at_ms = self._clock()
            with suppress(Unavailable):
                self._value = self._read()
        return self._value


class SharedSecret:
    """A text `{current, previous}` that two sides know: one side sends the current one, the other takes both."""

    def __init__(self, read: Callable[[], dict[str, Any]], clock: Callable[[], int]) -> None:
        """`read` gives the secret as it is now, `clock` milliseconds."""
        self._texts = Rotated(lambda: _texts(read()), clock)

    @property
    def current(self) -> str:
        return self._texts.get()[0]

    def accepts(self, given: str) -> bool:
        """Whether this is the current or the previous text. An unknown one makes the process read the secret, at most every ASKED_AGAIN_S."""
        return bool(given) and (is_one_of(given, self._texts.get()) or is_one_of(given, self._texts.get(ASKED_AGAIN_S)))


def _texts(secret: dict[str, Any]) -> tuple[str, ...]:
    """The current one first."""
    return (str(secret["current"]), *([str(secret["previous"])] if secret.get("previous") else []))
