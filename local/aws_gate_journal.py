"""What survives a killed moto: S3 objects with their headers, settings of buckets, and SQS messages, in plain files.

moto's own recorder (`/moto-api/recorder`) cannot carry this: it writes requests down before they were answered, refusals and reads included, and replays old
upload ids and receipt handles against new ones. So the gate writes here what moto acknowledged, before the acknowledgement goes out. A file that was written
survives the death of any process of ours; a power cut is out of scope. Knows files only, no HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

_COMPACT_AFTER_LINES = 5_000


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One S3 object: its key, the headers that make it what it is, and where its bytes lie."""

    bucket: str
    key: str
    headers: Mapping[str, str]
    body: Path
    length_bytes: int


@dataclass(frozen=True, slots=True)
class StoredSetting:
    """One setting of a bucket or, with a key, of an object (`?tagging`, `?cors` …) as the request that made it."""

    bucket: str
    key: str
    query: str
    headers: Mapping[str, str]
    body: bytes


class Spool:
    """A body on its way in: hashed while it is written, then kept as an object's bytes or thrown away."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.length_bytes = 0
        self._file: IO[bytes] = path.open("wb", buffering=1 << 18)
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def write(self, data: bytes) -> None:
        """Add a chunk."""
        self._sha256.update(data)
        self._md5.update(data)
        self.length_bytes += len(data)
        self._file.write(data)

    def close(self) -> None:
        """No more chunks: the bytes are the kernel's now."""
        self._file.close()

    def sha256(self) -> bytes:
        """Of everything written."""
        return self._sha256.digest()

    def md5(self) -> bytes:
        """Of everything written."""
        return self._md5.digest()

    def discard(self) -> None:
        """Close and remove; harmless when the bytes were kept under another name."""
        self._file.close()
        self.path.unlink(missing_ok=True)


class ObjectJournal:
    """S3: per object one small JSON file naming one file of bytes. An overwrite is one atomic rename."""

    def __init__(self, folder: Path) -> None:
        self._objects, self._settings, self._spool = folder / "objects", folder / "settings", folder / "spool"
        for each in (self._objects, self._settings, self._spool):
            each.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def spool(self) -> Spool:
        """A place for a body whose fate is not decided."""
        return Spool(self._spool / uuid.uuid4().hex)

    def put(self, bucket: str, key: str, headers: Mapping[str, str], spool: Spool) -> None:
        """Keep an object; on return it is there, before it was the old one."""
        spool.close()
        body = self._objects / f"{uuid.uuid4().hex}.body"
        spool.path.rename(body)
        record = self._record(bucket, key)
        old = self._body_of(record)
        _replace(record, {"bucket": bucket, "key": key, "headers": dict(headers), "body": body.name})
        if old is not None:
            old.unlink(missing_ok=True)

    def delete(self, bucket: str, key: str) -> None:
        """Forget an object; nothing happens when there is none."""
        record = self._record(bucket, key)
        old = self._body_of(record)
        record.unlink(missing_ok=True)
        if old is not None:
            old.unlink(missing_ok=True)
        for setting in self.settings():
            if (setting.bucket, setting.key) == (bucket, key):
                self.unset(bucket, key, setting.query)

    def objects(self) -> Iterator[StoredObject]:
        """Everything kept."""
        for record in sorted(self._objects.glob("*.json")):
            data = json.loads(record.read_text())
            body = self._objects / data["body"]
            yield StoredObject(data["bucket"], data["key"], data["headers"], body, body.stat().st_size)

    def set(self, setting: StoredSetting) -> None:
        """Keep a setting; the newest of its kind wins."""
        data = {"bucket": setting.bucket, "key": setting.key, "query": setting.query, "headers": dict(setting.headers), "body": setting.body.hex()}
        _replace(self._setting(setting.bucket, setting.key, setting.query), data)

    def unset(self, bucket: str, key: str, query: str) -> None:
        """Forget a setting."""
        self._setting(bucket, key, query).unlink(missing_ok=True)

    def settings(self) -> Iterator[StoredSetting]:
        """Every setting kept: a bucket's own before those of what stands in it."""
        data = [json.loads(each.read_text()) for each in self._settings.glob("*.json")]
        for each in sorted(data, key=lambda one: (bool(one["key"]), bool(one["query"]), one["bucket"], one["key"], one["query"])):
            yield StoredSetting(each["bucket"], each["key"], each["query"], each["headers"], bytes.fromhex(each["body"]))

    def _record(self, bucket: str, key: str) -> Path:
        return self._objects / f"{hashlib.sha256(f'{bucket}/{key}'.encode()).hexdigest()}.json"

    def _setting(self, bucket: str, key: str, query: str) -> Path:
        return self._settings / f"{hashlib.sha256(f'{bucket}/{key}?{query}'.encode()).hexdigest()}.json"

    def _body_of(self, record: Path) -> Path | None:
        try:
            return self._objects / str(json.loads(record.read_text())["body"])
        except FileNotFoundError:
            return None

    def _sweep(self) -> None:
        """Remove what a crash left half done: spooled bodies, bytes that no record names."""
        named = {each.body for each in self.objects()}
        for path in (*self._spool.iterdir(), *self._objects.glob("*.tmp"), *self._settings.glob("*.tmp"), *self._objects.glob("*.body")):
            if path not in named:
                path.unlink(missing_ok=True)


@dataclass(slots=True)
class StoredMessage:
    """One message that was accepted and not yet deleted."""

    message_id: str
    queue: str
    request: dict[str, Any]  # SendMessage's fields without the queue
    due_at_ms: int = 0


@dataclass(slots=True)
class MessageJournal:
    """SQS: one append-only file of JSON lines (sent, moved, deleted), rewritten when it holds mostly the past."""

    path: Path
    messages: dict[str, StoredMessage] = field(default_factory=dict)
    _file: int = -1
    _lines: int = 0

    def __post_init__(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            for line in self.path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a torn last line was never acknowledged
                    self._apply(json.loads(line))
        self._compact()

    def sent(self, message: StoredMessage) -> None:
        """Keep an accepted message."""
        self._append({"op": "sent", "id": message.message_id, "queue": message.queue, "request": message.request, "due_at_ms": message.due_at_ms})

    def moved(self, message_id: str, queue: str) -> None:
        """The message stands in another queue now: it was dead-lettered."""
        self._append({"op": "moved", "id": message_id, "queue": queue})

    def deleted(self, message_id: str) -> None:
        """The message is done with."""
        self._append({"op": "deleted", "id": message_id})

    def purged(self, queue: str) -> None:
        """Every message of the queue is done with."""
        for message_id in [each.message_id for each in self.messages.values() if each.queue == queue]:
            self.deleted(message_id)

    def close(self) -> None:
        """Give the file back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, record: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(record).encode() + b"\n")
        self._lines += 1
        self._apply(record)
        if self._lines > _COMPACT_AFTER_LINES and self._lines > 4 * len(self.messages):
            self._compact()

    def _apply(self, record: dict[str, Any]) -> None:
        if record["op"] == "sent":
            self.messages[record["id"]] = StoredMessage(record["id"], record["queue"], record["request"], record["due_at_ms"])
        elif record["op"] == "deleted":
            self.messages.pop(record["id"], None)
        elif record["id"] in self.messages:
            self.messages[record["id"]].queue = record["queue"]

    def _compact(self) -> None:
        lines = [
            json.dumps({"op": "sent", "id": each.message_id, "queue": each.queue, "request": each.request, "due_at_ms": each.due_at_ms})
            for each in self.messages.values()
        ]
        new = self.path.with_suffix(".tmp")
        new.write_text("".join(f"{line}\n" for line in lines))
        self.close()
        new.replace(self.path)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._lines = len(lines)


def _replace(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old one or the new one."""
    new = path.with_suffix(".tmp")
    new.write_text(json.dumps(data))
    new.replace(path)
