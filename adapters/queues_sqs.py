"""Our queues: pushes to send, sockets to look after, presence to tell a second later. One JSON object a message."""

from __future__ import annotations

import json
from typing import Any

from adapters.aws_json import call

MAX_DELAY_S = 900  # SQS allows no more


class Queue:
    def __init__(self, queue_url: str) -> None:
        self._url = queue_url

    def send(self, message: dict[str, Any], *, delay_s: int = 0) -> None:
        """Returns when SQS has stored the message; Unavailable otherwise."""
        fields = {"QueueUrl": self._url, "MessageBody": json.dumps(message), "DelaySeconds": min(delay_s, MAX_DELAY_S)}
        call("sqs", "AmazonSQS.SendMessage", fields)
