"""Repeats a frame to the connections it names, through the product's own sender."""

from __future__ import annotations

import json
import os
from typing import Any

from adapters.outbox_apigateway import SyncOutbox
from adapters.sigv4 import Credentials


def _credentials() -> Credentials:
    return Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_SESSION_TOKEN"])


_outbox = SyncOutbox(os.environ["CONNECTIONS_URL"], region=os.environ["AWS_REGION"], credentials=_credentials)


def handler(event: Any, context: Any) -> object:
    frame = json.loads(event["body"])
    if frame["action"] == "who":
        return {"statusCode": 200, "body": event["requestContext"]["connectionId"]}
    if frame["action"] == "close":
        return {"statusCode": 200, "body": _outbox.delete(frame["to"][0]).kind}
    data = frame["text"].encode()
    outcomes = _outbox.post_many([(connection_id, data) for connection_id in frame["to"]])
    return {"statusCode": 200, "body": json.dumps([outcome.kind for outcome in outcomes])}
