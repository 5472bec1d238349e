"""The answer that CloudFormation waits for: a PUT to the signed URL of its event. Without one a stack waits until its time is over.

Source: AWS CloudFormation user guide, "Custom resource request objects" and "Custom resource response objects".
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from adapters import settings

TIMEOUT_S: Final = 5.0
PAUSE_S: Final = 0.5
MOST_TEXT: Final = 2_500
"""Characters of a reason or of all values: the whole answer may have 4,096 bytes."""


class NotAnswered(Exception):
    """The URL did not take the answer in time, or is not one to answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of the request; `refusal` is one sentence, None for success. `data` is what templates can read with Fn::GetAtt."""

    data: Mapping[str, str] = field(default_factory=dict)
    refusal: str | None = None


def put(event: Mapping[str, Any], answer: Answer, within_s: float) -> None:
    """Sends the answer, again and again while the other side is away. NotAnswered after `within_s` seconds, or at once when it is refused."""
    url, body = _checked(event.get("ResponseURL")), _body(event, answer)
    end_s, why = time.monotonic() + within_s, "there was no time left"
    while (left_s := end_s - time.monotonic()) > 0:
        try:
            status = _put(url, body, min(TIMEOUT_S, left_s))
        except (OSError, http.client.HTTPException) as error:
            why = f"{url.hostname} is out of reach ({type(error).__name__})"
        else:
            if status < 300:
                return
            why = f"{url.hostname} answered {status}"
            if status < 500 and status != 429:
                break
        time.sleep(min(PAUSE_S, max(0.0, end_s - time.monotonic())))
    raise NotAnswered(f"The answer to CloudFormation was not taken: {why}.")


def _checked(url: Any) -> Any:
    """The URL is a key: it goes over TLS, but to a stand-in of AWS on somebody's own machine."""
    parts = urlsplit(url) if isinstance(url, str) else None
    allowed = ("https", "http") if settings.aws_endpoint("cloudformation") else ("https",)
    if parts is None or parts.scheme not in allowed or not parts.hostname:
        raise NotAnswered("The ResponseURL is not an https:// URL.")
    return parts


def _body(event: Mapping[str, Any], answer: Answer) -> bytes:
    said = {name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")}
    physical_id = event.get("PhysicalResourceId") or event["LogicalResourceId"]  # the same for ever: another one would have the old one deleted
    outcome = {"Status": "SUCCESS"} if answer.refusal is None else {"Status": "FAILED", "Reason": answer.refusal[:MOST_TEXT]}
    share = MOST_TEXT // max(1, len(answer.data))
    return json.dumps({**said, **outcome, "PhysicalResourceId": physical_id, "Data": {name: text[:share] for name, text in answer.data.items()}}).encode()


def _put(url: Any, body: bytes, timeout_s: float) -> int:
    if url.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(url.netloc, timeout=timeout_s, context=ssl.create_default_context())
    else:
        connection = http.client.HTTPConnection(url.netloc, timeout=timeout_s)
    try:
        connection.request("PUT", f"{url.path}?{url.query}" if url.query else url.path, body, {"Content-Type": ""})  # the signature is over an empty type
        return connection.getresponse().status
    finally:
        connection.close()
