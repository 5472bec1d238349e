"""The SQS side of the gate: which message a receipt handle means, over the death of the moto that gave the handle out.

Knows calls and their answers as JSON objects, and the journal; no sockets. A message keeps the id its sender was told, whatever the next moto calls it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from local.aws_gate_journal import MessageJournal, StoredMessage
from local.aws_gate_signature import Incoming, Refused

Forward = Callable[[bytes], Awaitable[tuple[int, dict[str, str], bytes]]]


class QueueSide:
    """SQS: knows which message a receipt handle means, over the death of the moto that gave it out."""

    def __init__(self, journal: MessageJournal, call: Callable[[str, Mapping[str, Any]], Awaitable[bytes]]) -> None:
        self._journal, self._call = journal, call
        self._ids: dict[str, str] = {}  # moto's message id -> the id the sender was told
        self._handles: dict[str, str] = {}  # receipt handle -> the id the sender was told
        self._stale: set[str] = set()  # handles of a moto that is no more
        self._gone: set[str] = set()  # deleted by a stale handle; the living moto still holds them

    def forget_handles(self) -> None:
        """A new moto knows none of the old handles and ids."""
        self._stale.update(self._handles)
        self._ids.clear()
        self._gone.clear()

    def restored(self, new_id: str, told_id: str) -> None:
        """A message was sent to the new moto, which calls it otherwise."""
        self._ids[new_id] = told_id

    async def serve(self, incoming: Incoming, body: bytes, forward: Forward) -> web.Response:
        """Forward one call and keep what its answer means."""
        action = (incoming.header("x-amz-target") or "").removeprefix("AmazonSQS.")
        if not action:
            raise Refused(400, "InvalidAction", "This stand-in speaks the AWS JSON protocol of SQS only.")
        fields = _fields(body)
        queue = str(fields.get("QueueUrl", "")).rpartition("/")[2]
        if action in ("DeleteMessage", "ChangeMessageVisibility") and fields.get("ReceiptHandle") in self._stale:
            if action == "DeleteMessage":
                self._delete(fields["ReceiptHandle"])
            return _json({})
        stale = [each for each in fields.get("Entries", ()) if each.get("ReceiptHandle") in self._stale]
        if stale:
            fields["Entries"] = [each for each in fields["Entries"] if each not in stale]
        if stale and not fields["Entries"]:
            status, headers, answer = 200, {"Content-Type": "application/x-amz-json-1.0"}, b'{"Successful":[],"Failed":[]}'
        else:
            status, headers, answer = await forward(json.dumps(fields).encode() if stale else body)
        if status >= 300:
            return web.Response(status=status, headers=headers, body=answer)
        result: dict[str, Any] = json.loads(answer or b"{}")
        for each in stale:
            if action == "DeleteMessageBatch":
                self._delete(each["ReceiptHandle"])
            result.setdefault("Successful", []).append({"Id": each["Id"]})
        await self._keep(action, queue, fields, result)
        return web.Response(status=status, headers=headers, body=json.dumps(result).encode())

    async def _keep(self, action: str, queue: str, fields: dict[str, Any], result: dict[str, Any]) -> None:
        match action:
            case "SendMessage":
                self._sent(result["MessageId"], queue, fields)
            case "SendMessageBatch":
                by_id = {each["Id"]: each for each in fields["Entries"]}
                for each in result.get("Successful", ()):
                    self._sent(each["MessageId"], queue, by_id[each["Id"]])
            case "ReceiveMessage":
                for message in list(result.get("Messages", ())):
                    await self._received(message, queue, fields, result)
            case "DeleteMessage":
                self._delete(fields["ReceiptHandle"])
            case "DeleteMessageBatch":
                by_id = {each["Id"]: each for each in fields["Entries"]}
                for each in result.get("Successful", ()):
                    if each["Id"] in by_id:
                        self._delete(by_id[each["Id"]]["ReceiptHandle"])
            case "PurgeQueue" | "DeleteQueue":
                self._journal.purged(queue)

    def _sent(self, message_id: str, queue: str, fields: Mapping[str, Any]) -> None:
        request = {name: value for name, value in fields.items() if name not in ("QueueUrl", "Id", "DelaySeconds")}
        due_at_ms = round(datetime.now(UTC).timestamp() * 1000) + 1000 * int(fields.get("DelaySeconds") or 0)
        self._journal.sent(StoredMessage(message_id, queue, request, due_at_ms))

    async def _received(self, message: dict[str, Any], queue: str, fields: Mapping[str, Any], result: dict[str, Any]) -> None:
        told_id = self._ids.get(message["MessageId"], message["MessageId"])
        message["MessageId"] = told_id
        if told_id in self._gone:  # deleted while its moto was dead
            result["Messages"].remove(message)
            await self._call("DeleteMessage", {"QueueUrl": fields["QueueUrl"], "ReceiptHandle": message["ReceiptHandle"]})
            self._gone.discard(told_id)
            return
        self._handles[message["ReceiptHandle"]] = told_id
        known = self._journal.messages.get(told_id)
        if known is not None and known.queue != queue:
            self._journal.moved(told_id, queue)

    def _delete(self, handle: str) -> None:
        message_id = self._handles.get(handle)
        if message_id is None:
            return
        if handle in self._stale:
            self._gone.add(message_id)
        for each in [known for known, told_id in self._handles.items() if told_id == message_id]:
            self._handles.pop(each)
            self._stale.discard(each)
        self._journal.deleted(message_id)


def _fields(body: bytes) -> dict[str, Any]:
    """The JSON object of a call."""
    try:
        fields = json.loads(body or b"{}")
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise Refused(400, "SerializationException", "The request body is not a JSON object.")
    return fields


def _json(data: Mapping[str, Any]) -> web.Response:
    return web.Response(body=json.dumps(data).encode(), headers={"Content-Type": "application/x-amz-json-1.0"})
