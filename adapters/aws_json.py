"""Calls to AWS services that speak JSON (Secrets Manager, SQS), signed by our own codec.

boto3 does the same for 300 ms of cold start; these are two calls on the path of a sign-in and of a missed call.
"""

from __future__ import annotations

import http.client
import json
import threading
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from adapters import settings, sigv4
from heliograph.errors import Unavailable

if TYPE_CHECKING:
    import ssl

TIMEOUT_S = 3.0
ATTEMPTS = 3
_kept = threading.local()
_VERSIONS = {"secretsmanager": "1.1", "sqs": "1.0"}


class AwsRefusal(Exception):
    """AWS answered with an error that trying again does not mend; `code` is its name for it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


def call(service: str, target: str, payload: dict[str, Any]) -> dict[str, Any]:
    """The answer of one operation, e.g. `call("sqs", "AmazonSQS.SendMessage", {…})`.

    Raises Unavailable after three attempts at an unreachable or failing service, AwsRefusal otherwise.
    """
    region = settings.aws_region()
    url = (settings.aws_endpoint("secrets_manager" if service == "secretsmanager" else service) or f"https://{service}.{region}.amazonaws.com").rstrip(
        "/"
    ) + "/"
    body = json.dumps(payload, separators=(",", ":")).encode()
    headers = {"Content-Type": f"application/x-amz-json-{_VERSIONS[service]}", "X-Amz-Target": target}
    for attempt in range(1, ATTEMPTS + 1):
        signed = sigv4.sign("POST", url, headers, body, credentials=settings.aws_credentials(), region=region, service=service, now=settings.now_ms() / 1000)
        try:
            status, answer = _post(url, signed, body)
        except (OSError, http.client.HTTPException):
            status, answer = 503, b""
        if status < 300:
            return dict(json.loads(answer or b"{}"))
        if status < 500 and status != 429:
            raise _refusal(answer, status)
        if attempt == ATTEMPTS:
            break
    raise Unavailable(f"{service} is out of reach for a moment; try again.")


def _post(url: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    """One exchange over the thread's kept connection to that host; one that turned out stale is dropped, and the next attempt opens another."""
    parts = urlsplit(url)
    kept: dict[str, http.client.HTTPConnection] = _kept.__dict__
    connection = kept.setdefault(parts.netloc, _connection(parts.scheme, parts.netloc))
    try:
        connection.request("POST", parts.path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        raise


def hang_up() -> None:
    """Drops the thread's kept connections: the next call opens its own."""
    kept: dict[str, http.client.HTTPConnection] = _kept.__dict__
    for connection in kept.values():
        connection.close()
    kept.clear()


def _connection(scheme: str, netloc: str) -> http.client.HTTPConnection:
    """Connects at its first request, and anew after `close`."""
    if scheme == "https":
        return http.client.HTTPSConnection(netloc, timeout=TIMEOUT_S, context=_tls())
    return http.client.HTTPConnection(netloc, timeout=TIMEOUT_S)


@cache
def _tls() -> ssl.SSLContext:
    """Made once: reading the root certificates costs 20 ms of CPU."""
    import ssl

    return ssl.create_default_context()


def _refusal(answer: bytes, status: int) -> AwsRefusal:
    try:
        fields = json.loads(answer)
    except ValueError:
        return AwsRefusal(str(status), "")
    return AwsRefusal(str(fields.get("__type", status)).rpartition("#")[2], str(fields.get("message") or fields.get("Message") or ""))
