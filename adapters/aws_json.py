"""Calls to AWS services that speak JSON (Secrets Manager, SQS), signed by our own codec.

boto3 does the same for 300 ms of cold start; these are two calls on the path of a sign-in and of a missed call.
"""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from adapters import settings, sigv4
from heliograph.errors import Unavailable

TIMEOUT_S = 3.0
ATTEMPTS = 3
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
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=TIMEOUT_S)
    try:
        connection.request("POST", parts.path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _refusal(answer: bytes, status: int) -> AwsRefusal:
    try:
        fields = json.loads(answer)
    except ValueError:
        return AwsRefusal(str(status), "")
    return AwsRefusal(str(fields.get("__type", status)).rpartition("#")[2], str(fields.get("message") or fields.get("Message") or ""))
