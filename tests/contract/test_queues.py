"""The event source mapping against moto's SQS. What the real one does: Lambda developer guide, "Using Lambda with Amazon SQS"."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from adapters import sigv4
from functions.routes import Function, Queue
from local.lambdas import FunctionError
from local.queues import BadAnswer, QueuePoller, parse_batch_response

FUNCTIONS = (Function("dispatch", "Takes batches.", (Queue("notes", batch_size=5),), ()),)
LOCAL = sigv4.Credentials("local", "secret")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def _sqs(endpoint: str) -> Any:
    return boto3.client("sqs", endpoint_url=endpoint, region_name="eu-central-1", aws_access_key_id="local", aws_secret_access_key="secret")


class World:
    """A queue, the poller, and what the function was given and answers."""

    def __init__(self, endpoint: str) -> None:
        self.sqs = _sqs(endpoint)
        self.queue_url = ""
        self.events: list[Any] = []
        self.answer: Callable[[list[Any]], object] = lambda records: {"batchItemFailures": []}
        self.endpoint = endpoint

    def poller(self, **more: Any) -> QueuePoller:
        settings: dict[str, Any] = {"endpoint_url": self.endpoint, "queue_urls": {"notes": self.queue_url}, "wait_s": 1} | more
        return QueuePoller(FUNCTIONS, self.invoke, region="eu-central-1", credentials=LOCAL, **settings)

    async def invoke(self, name: str, event: Any) -> object:
        assert name == "dispatch"
        self.events.append(event)
        return self.answer(event["Records"])

    async def send(self, *bodies: str) -> None:
        for body in bodies:
            await asyncio.to_thread(self.sqs.send_message, QueueUrl=self.queue_url, MessageBody=body)

    def left(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=names)["Attributes"]
        return sum(int(found[name]) for name in names)

    def bodies(self) -> list[str]:
        return [record["body"] for event in self.events for record in event["Records"]]

    async def until(self, what: str, holds: Callable[[], bool]) -> None:
        for _ in range(1500):
            if await asyncio.to_thread(holds):
                return
            await asyncio.sleep(0.02)
        pytest.fail(f"{what}; handled so far: {self.bodies()}, left: {self.left()}")


@pytest.fixture
async def world(endpoint: str, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    world = World(endpoint)
    name = "q" + hashlib.sha256(request.node.name.encode()).hexdigest()[:16]
    world.queue_url = world.sqs.create_queue(QueueName=name, Attributes={"VisibilityTimeout": "1"})["QueueUrl"]
    poller = world.poller()
    await poller.start()
    yield world
    await poller.close()


async def test_the_event_is_lambdas_and_a_success_is_deleted(world: World) -> None:
    """Using Lambda with Amazon SQS: example standard queue message event."""
    attributes = {"kind": {"DataType": "String", "StringValue": "ring"}}
    await asyncio.to_thread(world.sqs.send_message, QueueUrl=world.queue_url, MessageBody="grüß", MessageAttributes=attributes)
    await world.until("the message is not deleted", lambda: bool(world.events) and world.left() == 0)
    (record,) = world.events[0]["Records"]
    assert record["body"] == "grüß"
    assert record["md5OfBody"] == hashlib.md5("grüß".encode(), usedforsecurity=False).hexdigest()
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert {"SentTimestamp", "ApproximateFirstReceiveTimestamp", "SenderId"} <= record["attributes"].keys()
    assert record["messageAttributes"]["kind"] == {"stringValue": "ring", "stringListValues": [], "binaryListValues": [], "dataType": "String"}
    assert (record["eventSource"], record["awsRegion"]) == ("aws:sqs", "eu-central-1")
    assert record["eventSourceARN"] == f"arn:aws:sqs:eu-central-1:123456789012:{world.queue_url.rpartition('/')[2]}"
    assert record["messageId"]
    assert record["receiptHandle"]


async def test_only_the_reported_failures_come_back(world: World) -> None:
    """Implementing partial batch responses: batchItemFailures."""

    def fail_b_once(records: list[Any]) -> object:
        failed = [r["messageId"] for r in records if r["body"] == "b" and r["attributes"]["ApproximateReceiveCount"] == "1"]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}

    world.answer = fail_b_once
    await world.send("a", "b", "c")
    await world.until("b did not come back", lambda: world.bodies().count("b") == 2 and world.left() == 0)
    assert sorted(world.bodies()) == ["a", "b", "b", "c"]


@pytest.mark.parametrize("way", ["error", "unknown id"])
async def test_an_error_or_a_bad_answer_fails_the_whole_batch(world: World, way: str) -> None:
    """Implementing partial batch responses: an exception, a bad key or an unknown id is a complete failure."""

    def fail_once(records: list[Any]) -> object:
        if records[0]["attributes"]["ApproximateReceiveCount"] != "1":
            return None
        if way == "error":
            raise FunctionError("ValueError", "no")
        return {"batchItemFailures": [{"itemIdentifier": "nobody"}]}

    world.answer = fail_once
    await world.send("a")
    await world.until("the message did not come back", lambda: world.bodies() == ["a", "a"] and world.left() == 0)


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        (None, set()),
        ({}, set()),
        ({"batchItemFailures": None}, set()),
        ({"batchItemFailures": []}, set()),
        ({"batchItemFailures": [{"itemIdentifier": "1"}]}, {"1"}),
    ],
)
def test_what_counts_as_success(answer: object, failed: set[str]) -> None:
    """Implementing partial batch responses: success and failure conditions."""
    assert parse_batch_response(answer, ["1", "2"]) == failed


@pytest.mark.parametrize("answer", ["ok", {"batchItemFailures": [{"itemIdentifier": ""}]}, {"batchItemFailures": [{"id": "1"}]}, {"batchItemFailures": "1"}])
def test_what_counts_as_a_complete_failure(answer: object) -> None:
    """Implementing partial batch responses: success and failure conditions."""
    with pytest.raises(BadAnswer):
        parse_batch_response(answer, ["1", "2"])


async def test_polling_goes_on_after_sqs_was_away(endpoint: str) -> None:
    """The mapping outlives its queue's service: it keeps trying and then takes what is there."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    world = World(f"http://127.0.0.1:{port}")
    world.queue_url = f"http://127.0.0.1:{port}/123456789012/late"
    poller = world.poller(pollers=1)
    await poller.start()
    await asyncio.sleep(0.3)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    await asyncio.to_thread(server.start)
    try:
        await asyncio.to_thread(world.sqs.create_queue, QueueName="late")
        await world.send(json.dumps({"n": 1}))
        await world.until("nothing was handled", lambda: world.bodies() == ['{"n": 1}'])
    finally:
        await poller.close()
        await asyncio.to_thread(server.stop)
