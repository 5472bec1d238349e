"""The event source mapping between SQS queues and functions: polls, invokes with a batch, deletes what succeeded.

What failed stays in the queue and comes back after the visibility timeout; SQS itself dead-letters it.
Source: AWS Lambda developer guide, "Using Lambda with Amazon SQS" and "Implementing partial batch responses"; SQS speaks its AWS JSON 1.0 protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from adapters import sigv4
from functions.routes import Function, Queue
from local.lambdas import FunctionError

_log = logging.getLogger(__name__)
_BACKOFF_S: Final = (0.1, 5.0)
Invoke = Callable[[str, object], Awaitable[object]]


class BadAnswer(Exception):
    """The function's answer is not a batch response: the whole batch failed."""


class _SqsError(Exception):
    """SQS refused a call."""


def sqs_event(messages: Sequence[Mapping[str, Any]], arn: str, region: str) -> dict[str, Any]:
    """The event of one batch, from messages as ReceiveMessage gives them."""
    return {"Records": [_record(message, arn, region) for message in messages]}


def _record(message: Mapping[str, Any], arn: str, region: str) -> dict[str, Any]:
    record = {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message.get("Attributes", {}),
        "messageAttributes": {name: _attribute(value) for name, value in message.get("MessageAttributes", {}).items()},
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": arn,
        "awsRegion": region,
    }
    if "MD5OfMessageAttributes" in message:
        record["md5OfMessageAttributes"] = message["MD5OfMessageAttributes"]
    return record


def _attribute(value: Mapping[str, Any]) -> dict[str, Any]:
    found = {"stringValue": value.get("StringValue"), "binaryValue": value.get("BinaryValue")}
    return {name: text for name, text in found.items() if text is not None} | {"stringListValues": [], "binaryListValues": [], "dataType": value["DataType"]}


def parse_batch_response(answer: object, message_ids: Sequence[str]) -> set[str]:
    """The ids that failed. Nothing, an empty object or an empty list is complete success; an unknown id or another form raises BadAnswer."""
    if answer is None:
        return set()
    if not isinstance(answer, dict):
        raise BadAnswer(f"a batch response is an object, not {type(answer).__name__}")
    failures = answer.get("batchItemFailures") or []
    if not isinstance(failures, list):
        raise BadAnswer("batchItemFailures must be a list")
    failed = [item.get("itemIdentifier") if isinstance(item, dict) else None for item in failures]
    if unknown := [name for name in failed if name not in message_ids]:
        raise BadAnswer(f"no such message in the batch: {unknown}")
    return {str(name) for name in failed}


def arn_of(queue_url: str, region: str) -> str:
    """A queue's ARN, from its URL `…/{account}/{name}`."""
    account, name = urlsplit(queue_url).path.rstrip("/").split("/")[-2:]
    return f"arn:aws:sqs:{region}:{account}:{name}"


class QueuePoller:
    """Polls every Queue route of the table; `queue_urls` maps the route's queue name to its URL."""

    def __init__(
        self,
        functions: Sequence[Function],
        invoke: Invoke,
        *,
        endpoint_url: str,
        queue_urls: Mapping[str, str],
        region: str,
        credentials: sigv4.Credentials,
        wait_s: int = 10,
        pollers: int = 2,
    ) -> None:
        self._invoke, self._endpoint_url, self._region, self._credentials = invoke, endpoint_url.rstrip("/") + "/", region, credentials
        self._wait_s, self._pollers = wait_s, pollers
        self._sources = [(f.name, route, queue_urls[route.name]) for f in functions for route in f.routes if isinstance(route, Queue)]
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin polling; SQS need not be there yet."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._wait_s + 10))
        for source in self._sources:
            self._tasks += [asyncio.create_task(self._poll(*source)) for _ in range(self._pollers)]

    async def close(self) -> None:
        """Stop; messages in hand come back to the queue when they become visible."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._session is not None:
            await self._session.close()

    async def _poll(self, name: str, route: Queue, queue_url: str) -> None:
        backoff_s = _BACKOFF_S[0]
        while True:
            try:
                await self._take_batch(name, route, queue_url)
                backoff_s = _BACKOFF_S[0]
            except Exception as error:  # the edge of this task: whatever happened, polling goes on
                _log.warning("queue %s: %s: %s; trying again in %.1f s", route.name, type(error).__name__, error, backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, _BACKOFF_S[1])

    async def _take_batch(self, name: str, route: Queue, queue_url: str) -> None:
        wanted = {"MaxNumberOfMessages": min(route.batch_size, 10), "WaitTimeSeconds": self._wait_s}
        everything = {"AttributeNames": ["All"], "MessageSystemAttributeNames": ["All"], "MessageAttributeNames": ["All"]}
        answer = await self._ask("ReceiveMessage", {"QueueUrl": queue_url, **wanted, **everything})
        messages = answer.get("Messages") or []
        if not messages:
            return
        failed = await self._handle(name, route, queue_url, messages)
        done = [message for message in messages if message["MessageId"] not in failed]
        if done:
            entries = [{"Id": str(i), "ReceiptHandle": message["ReceiptHandle"]} for i, message in enumerate(done)]
            await self._ask("DeleteMessageBatch", {"QueueUrl": queue_url, "Entries": entries})

    async def _handle(self, name: str, route: Queue, queue_url: str, messages: Sequence[Mapping[str, Any]]) -> set[str]:
        ids = [message["MessageId"] for message in messages]
        try:
            answer = await self._invoke(name, sqs_event(messages, arn_of(queue_url, self._region), self._region))
            return parse_batch_response(answer, ids)
        except (FunctionError, BadAnswer) as error:
            _log.warning("queue %s: the batch of %d failed: %s", route.name, len(ids), error)
            return set(ids)

    async def _ask(self, action: str, body: Mapping[str, object]) -> dict[str, Any]:
        assert self._session is not None
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": f"AmazonSQS.{action}"}
        now_s = time.time_ns() / 1e9
        headers = sigv4.sign("POST", self._endpoint_url, headers, data, credentials=self._credentials, region=self._region, service="sqs", now=now_s)
        async with self._session.post(self._endpoint_url, data=data, headers=headers) as response:
            text = await response.text()
            if response.status != 200:
                raise _SqsError(f"{action}: {response.status} {text[:200]}")
            found: dict[str, Any] = json.loads(text) if text else {}
            return found
