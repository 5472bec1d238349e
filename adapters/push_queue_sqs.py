"""The queue of notifications to send."""

from __future__ import annotations

import json

from adapters.aws_json import call
from heliograph.effects import Notify
from heliograph.push import queue_message


class PushQueue:
    def __init__(self, queue_url: str) -> None:
        self._url = queue_url

    def send(self, notify: Notify) -> None:
        """Returns when SQS has stored the message; Unavailable otherwise."""
        call("sqs", "AmazonSQS.SendMessage", {"QueueUrl": self._url, "MessageBody": json.dumps(queue_message(notify))})
