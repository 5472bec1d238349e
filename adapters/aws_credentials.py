"""Keys of an ECS task's role: read from the container's credentials endpoint, kept, and read again before they end.

Standard library, because the fleet's image has no AWS SDK; a contract test compares it with botocore's own reader of the same endpoint.
Source: ECS developer guide, "Task IAM role"; SDK reference guide, "Container credential provider".
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from adapters.sigv4 import Credentials

RELATIVE, FULL = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"
TOKEN, TOKEN_FILE = "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"
REFRESH_BEFORE_S: Final = 600  # ECS has new keys at least so long before the old ones end
RETRY_S: Final = 5.0  # after a failure, while the keys are still good
TIMEOUT_S: Final = 2.0
_ECS: Final = "http://169.254.170.2"
_ALLOWED: Final = frozenset({"169.254.170.2", "169.254.170.23", "fd00:ec2::23", "127.0.0.1", "::1", "localhost"})


class CredentialsUnavailable(OSError):
    """The endpoint gave no keys, and there are none that are still good."""


class ContainerCredentials:
    """The keys of one endpoint. `clock` gives seconds since the epoch."""

    def __init__(self, url: str, token: Callable[[], str | None] = lambda: None, clock: Callable[[], float] = lambda: time.time_ns() / 1e9) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in _ALLOWED):
            raise ValueError(f"{FULL} must be https, or http at the container's own host.")
        self._url, self._token, self._clock, self._lock = url, token, clock, threading.Lock()
        self._held: Credentials | None = None
        self._ends_s = self._read_again_s = 0.0

    def get(self) -> Credentials:
        """Keys that are good now. Raises CredentialsUnavailable; a failure while they are good changes nothing."""
        with self._lock:
            now_s = self._clock()
            if self._held is None or now_s >= self._read_again_s:
                try:
                    self._held, self._ends_s = self._read()
                    self._read_again_s = max(now_s + RETRY_S, self._ends_s - REFRESH_BEFORE_S)
                except (OSError, ValueError, KeyError, TypeError) as error:
                    if self._held is None or now_s >= self._ends_s:
                        raise CredentialsUnavailable(f"The container's credentials endpoint gave no keys: {type(error).__name__}.") from None
                    self._read_again_s = now_s + RETRY_S
            return self._held

    def _read(self) -> tuple[Credentials, float]:
        from urllib.request import ProxyHandler, Request, build_opener

        token = self._token()
        if token and ("\r" in token or "\n" in token):
            raise ValueError("the authorization token has a line break")
        request = Request(self._url, headers={"Accept": "application/json"} | ({"Authorization": token} if token else {}))  # noqa: S310 - checked above
        with build_opener(ProxyHandler({})).open(request, timeout=TIMEOUT_S) as answer:
            found = json.loads(answer.read(65_536))
        ends_s = datetime.fromisoformat(found["Expiration"]).timestamp()
        return Credentials(found["AccessKeyId"], found["SecretAccessKey"], found.get("Token")), ends_s


def of_container(environ: Mapping[str, str]) -> ContainerCredentials | None:
    """The endpoint these variables name, or None."""
    relative, full = environ.get(RELATIVE), environ.get(FULL)
    if not (relative or full):
        return None
    path = environ.get(TOKEN_FILE)

    def token() -> str | None:
        return Path(path).read_text().strip() if path else environ.get(TOKEN)  # the file is written anew before its token ends

    return ContainerCredentials(_ECS + relative if relative else str(full), token)
