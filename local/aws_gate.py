"""The door in front of moto: checks what AWS checks and moto does not, and keeps what moto would forget.

One port for S3, SQS, Secrets Manager and KMS, told apart by the credential scope. A refused request never reaches moto; an acknowledged S3 or SQS change is
in the journal before its answer leaves (aws_gate_journal). Secrets and keys are seeded anew by local.service_aws after a restart. Not kept: older versions of
versioned objects, parts of uploads that were never completed, receive counts, visibility timeouts. Not spoken: presigned POST forms, aws-chunked bodies.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import logging
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import aiohttp
import yarl
from aiohttp import web

from local.aws_gate_journal import MessageJournal, ObjectJournal, Spool, StoredMessage, StoredObject, StoredSetting
from local.aws_gate_queues import QueueSide
from local.aws_gate_signature import UNSIGNED_PAYLOAD, Incoming, Refused, Signed, check

_log = logging.getLogger(__name__)
_CHUNK: Final = 1 << 18
_MAX_SMALL_BODY: Final = 8 << 20
_HOP_HEADERS: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "proxy-authorization", "expect"})
_ANSWER_DROPS: Final = _HOP_HEADERS | {
    "content-length",
    "date",
    "server",
    "access-control-allow-origin",
    "access-control-allow-methods",
    "x-amz-sdk-checksum-algorithm",
}
_OBJECT_HEADERS: Final = ("cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "content-md5", "expires")
_NOT_OF_THE_OBJECT: Final = ("x-amz-date", "x-amz-content-sha256", "x-amz-security-token", "x-amz-user-agent", "x-amz-copy-source")
_SIGNING_PARAMETERS: Final = ("X-Amz-", "x-id", "response-")
_CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, PUT, HEAD, POST, DELETE",
    "Access-Control-Expose-Headers": "ETag, Content-Length, Content-Range, x-amz-checksum-sha256, x-amz-version-id",
    "Access-Control-Max-Age": "3000",
}


class AwsGate:
    """An HTTP server on loopback; moto stands behind it at `upstream`. While moto is down `upstream_is_up` is clear: requests wait a little, then get a 503."""

    def __init__(
        self,
        data_dir: Path,
        secrets: Mapping[str, str],
        *,
        region: str,
        upstream: str,
        now_s: Callable[[], float] = lambda: datetime.now(UTC).timestamp(),
        wait_s: float = 2.5,
    ) -> None:
        self._secrets, self._region, self._upstream, self._now_s, self._wait_s = secrets, region, upstream, now_s, wait_s
        self.objects = ObjectJournal(data_dir / "s3")
        self.messages = MessageJournal(data_dir / "sqs.jsonl")
        self.upstream_is_up = asyncio.Event()
        self.url = ""
        self._queue = QueueSide(self.messages, self._call_queue)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; `url` is known afterwards."""
        timeout = aiohttp.ClientTimeout(total=None, connect=5)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout, auto_decompress=False)
        app = web.Application(client_max_size=1 << 40)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Stop listening and give every file and socket back."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()
        self.messages.close()

    async def restore(self) -> None:
        """Give a new moto everything that was acknowledged. Buckets and queues must be there; opens the door at the end."""
        settings = list(self.objects.settings())
        for setting in settings:
            if not setting.key:
                await self._restore_setting(setting)
        limit = asyncio.Semaphore(4)
        async with asyncio.TaskGroup() as group:
            for each in self.objects.objects():
                group.create_task(self._restore_object(limit, each))
        for setting in settings:
            if setting.key:
                await self._restore_setting(setting)
        self._queue.forget_handles()
        for message in list(self.messages.messages.values()):
            await self._restore_message(message)
        self.upstream_is_up.set()

    async def _restore_object(self, limit: asyncio.Semaphore, each: StoredObject) -> None:
        headers = {**each.headers, "Content-Length": str(each.length_bytes)}
        async with limit:
            await self.call_upstream("s3", "PUT", yarl.URL.build(path=f"/{each.bucket}/{each.key}").raw_path, headers, _chunks(each.body))

    async def _restore_setting(self, setting: StoredSetting) -> None:
        target = yarl.URL.build(path=f"/{setting.bucket}/{setting.key}".removesuffix("/")).raw_path
        await self.call_upstream("s3", "PUT", f"{target}?{setting.query}".removesuffix("?"), setting.headers, setting.body)

    async def _restore_message(self, message: StoredMessage) -> None:
        delay_s = max(0, min(900, -(-(message.due_at_ms - round(self._now_s() * 1000)) // 1000)))
        fields = {**message.request, "QueueUrl": f"{self._upstream}/123456789012/{message.queue}", "DelaySeconds": delay_s}
        answer = await self._call_queue("SendMessage", fields)
        self._queue.restored(json.loads(answer)["MessageId"], message.message_id)

    async def _call_queue(self, action: str, fields: Mapping[str, Any]) -> bytes:
        headers = {"X-Amz-Target": f"AmazonSQS.{action}", "Content-Type": "application/x-amz-json-1.0"}
        return await self.call_upstream("sqs", "POST", "/", headers, json.dumps(fields).encode())

    async def call_upstream(self, service: str, method: str, target: str, headers: Mapping[str, str], body: bytes | AsyncIterator[bytes]) -> bytes:
        """One request to moto on our own account; moto reads the service out of the Authorization header and checks nothing else in it."""
        scope = f"AWS4-HMAC-SHA256 Credential=LOCAL/20260101/{self._region}/{service}/aws4_request, SignedHeaders=host, Signature=0"
        async with self._client().request(
            method, yarl.URL(self._upstream + target, encoded=True), headers={**headers, "Authorization": scope}, data=body
        ) as answer:
            data = await answer.read()
            if answer.status >= 300 and not (answer.status == 409 and b"BucketAlreadyOwnedByYou" in data):
                raise RuntimeError(f"moto refused {method} {target} ({headers.get('X-Amz-Target', service)}): {answer.status} {data[:300]!r}")
            return data

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the gate was not started")
        return self._session

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        incoming = Incoming(request.method, path, query, list(request.headers.items()))
        if request.method == "OPTIONS" and "Origin" in request.headers:
            return web.Response(headers={**_CORS, "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "*")})
        try:
            body_sha256 = hashlib.sha256(await _small_body(request)).hexdigest() if "X-Amz-Target" in request.headers else None
            signed = check(incoming, self._secrets, region=self._region, now_s=self._now_s(), body_sha256=body_sha256)
            try:
                await asyncio.wait_for(self.upstream_is_up.wait(), self._wait_s)
                return await self._dispatch(request, incoming, signed)
            except (TimeoutError, aiohttp.ClientError):
                raise Refused(503, "ServiceUnavailable", "Please reduce your request rate.") from None
        except Refused as refused:
            return _refusal(request, refused)
        except ConnectionError:
            raise  # the client went away
        except Exception:
            _log.exception("the gate failed on %s %s", request.method, path)
            return _refusal(request, Refused(500, "InternalError", "We encountered an internal error. Please try again."))

    async def _dispatch(self, request: web.Request, incoming: Incoming, signed: Signed) -> web.StreamResponse:
        if signed.service == "s3":
            return await self._object(request, incoming, signed)
        body = await _small_body(request)
        if signed.service == "sqs":
            return await self._queue.serve(incoming, body, lambda changed: self._pass_json(request, changed))
        status, headers, answer = await self._pass_json(request, body)
        return web.Response(status=status, headers=headers, body=answer)

    async def _pass_json(self, request: web.Request, body: bytes) -> tuple[int, dict[str, str], bytes]:
        async with self._forward(request, body, {"Content-Length": str(len(body))}) as answer:
            return answer.status, _kept(answer.headers), await answer.read()

    def _forward(self, request: web.Request, body: bytes | AsyncIterator[bytes] | None, extra: Mapping[str, str]) -> Any:
        """The request as it came (Host included: moto builds queue URLs from it) with another body."""
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS | {"content-length"}}
        url = yarl.URL(self._upstream + request.raw_path, encoded=True)
        skip = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
        return self._client().request(request.method, url, headers={**headers, **extra}, data=body, allow_redirects=False, skip_auto_headers=skip)

    async def _object(self, request: web.Request, incoming: Incoming, signed: Signed) -> web.StreamResponse:
        if request.method in ("GET", "HEAD"):
            return await self._read(request)
        bucket, _, key = unquote(incoming.path).lstrip("/").partition("/")
        if len(request.headers.getall("Content-Length", [])) == 0 and request.body_exists:
            raise Refused(411, "MissingContentLength", "You must provide the Content-Length HTTP header.")
        if (signed.payload_hash or "").startswith("STREAMING-"):
            raise Refused(501, "NotImplemented", "This stand-in does not take aws-chunked bodies; send the body whole.")
        spool = self.objects.spool()
        try:
            async for chunk in request.content.iter_chunked(_CHUNK):
                spool.write(chunk)
            spool.close()
            _check_body(incoming, signed, spool)
            async with self._locks[f"{bucket}/{key}"]:
                return await self._change(request, incoming, bucket, key, spool)
        finally:
            spool.discard()
            if not self._locks[f"{bucket}/{key}"].locked():
                self._locks.pop(f"{bucket}/{key}", None)

    async def _read(self, request: web.Request) -> web.StreamResponse:
        async with self._forward(request, None, {}) as answer:
            headers = {**_kept(answer.headers), **_CORS}
            if "Content-Length" in answer.headers:
                headers["Content-Length"] = answer.headers["Content-Length"]
            response = web.StreamResponse(status=answer.status, headers=headers)
            await response.prepare(request)
            try:
                if request.method == "GET":
                    async for chunk in answer.content.iter_chunked(_CHUNK):
                        await response.write(chunk)
                await response.write_eof()
            except (aiohttp.ClientError, TimeoutError):  # moto died in the middle: a cut connection, never a wrong end
                if request.transport is not None:
                    request.transport.abort()
            return response

    async def _change(self, request: web.Request, incoming: Incoming, bucket: str, key: str, spool: Spool) -> web.StreamResponse:
        """Forward, and before the answer goes out keep what it means."""
        extra = {"Content-Length": str(spool.length_bytes)} | _checksum_note(incoming)
        async with self._forward(request, _chunks(spool.path) if spool.length_bytes else None, extra) as answer:
            body = await answer.read()
            response = web.Response(status=answer.status, headers={**_kept(answer.headers), **_CORS}, body=body)
        if response.status < 300:
            await self._keep(incoming, bucket, key, spool, body)
        return response

    async def _keep(self, incoming: Incoming, bucket: str, key: str, spool: Spool, answer: bytes) -> None:
        names = {name for name, _ in incoming.pairs() if not name.startswith(_SIGNING_PARAMETERS)}
        match incoming.method, bool(key), names:
            case "PUT", True, _ if not names and incoming.header("x-amz-copy-source") is None:
                self.objects.put(bucket, key, _object_headers(incoming) | _checksum_note(incoming), spool)
            case "PUT", True, _ if not names:
                await self._snapshot(bucket, key)
            case "POST", True, _ if "uploadId" in names and b"<Error>" not in answer:
                await self._snapshot(bucket, key)
            case "DELETE", True, _ if names <= {"versionId"}:
                self.objects.delete(bucket, key)
            case "POST", False, _ if "delete" in names:
                for deleted in ElementTree.fromstring(answer).iter():  # noqa: S314 - moto's own answer
                    if deleted.tag.endswith("}Key") or deleted.tag == "Key":
                        self.objects.delete(bucket, deleted.text or "")
            case "PUT", _, _ if "uploadId" not in names:
                self.objects.set(StoredSetting(bucket, key, _setting_query(incoming), _object_headers(incoming), spool.path.read_bytes()))
            case "DELETE", _, _ if "uploadId" not in names:
                self.objects.unset(bucket, key, _setting_query(incoming))

    async def _snapshot(self, bucket: str, key: str) -> None:
        """Keep an object that moto put together (a copy, a completed upload) by reading it back."""
        spool = self.objects.spool()
        url = yarl.URL(self._upstream).with_path(f"/{bucket}/{key}")
        scope = f"AWS4-HMAC-SHA256 Credential=LOCAL/20260101/{self._region}/s3/aws4_request, SignedHeaders=host, Signature=0"
        try:
            async with self._client().get(url, headers={"Authorization": scope}) as answer:
                answer.raise_for_status()
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    spool.write(chunk)
                kept = {name.lower(): value for name, value in answer.headers.items()}
            headers = {
                name: value for name, value in kept.items() if name in _OBJECT_HEADERS or name.startswith(("x-amz-meta-", "x-amz-server-side-encryption"))
            }
            self.objects.put(bucket, key, headers, spool)
        finally:
            spool.discard()


async def _small_body(request: web.Request) -> bytes:
    if (request.content_length or 0) > _MAX_SMALL_BODY:
        raise Refused(413, "RequestEntityTooLarge", "The request is too large.")
    return await request.read()


def _check_payload_hash(signed: Signed, sha256_hex: str) -> None:
    """The signature covers a hash that the sender named; here it meets the bytes."""
    if signed.payload_hash not in (UNSIGNED_PAYLOAD, sha256_hex) and signed.payload_hash:
        raise Refused(400, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed.")


def _check_body(incoming: Incoming, signed: Signed, spool: Spool) -> None:
    """S3's checks of the bytes: the payload hash, then the checksums the sender gave."""
    _check_payload_hash(signed, spool.sha256().hex())
    for name, actual, title in (("x-amz-checksum-sha256", spool.sha256(), "SHA256"), ("content-md5", spool.md5(), "Content-MD5")):
        given = incoming.header(name)
        if given is None:
            continue
        try:
            expected = base64.b64decode(given, validate=True)
        except ValueError:
            expected = b""
        if len(expected) != len(actual):
            raise Refused(400, "InvalidDigest" if title == "Content-MD5" else "InvalidRequest", f"Value for {name} header is invalid.")
        if expected != actual:
            raise Refused(400, "BadDigest", f"The {title} you specified did not match the calculated checksum.")


def _object_headers(incoming: Incoming) -> dict[str, str]:
    """The headers that are part of the object: what it is, how it is kept; not who sent it."""
    headers = {name.lower(): value for name, value in incoming.headers}
    return {name: value for name, value in headers.items() if name in _OBJECT_HEADERS or (name.startswith("x-amz-") and name not in _NOT_OF_THE_OBJECT)}


def _checksum_note(incoming: Incoming) -> dict[str, str]:
    """S3 keeps a given checksum and shows it in HEAD; moto only when the SDK's note stands beside it, which a presigned PUT does not carry."""
    return {"x-amz-sdk-checksum-algorithm": "SHA256"} if incoming.header("x-amz-checksum-sha256") else {}


def _setting_query(incoming: Incoming) -> str:
    return "&".join(part for part in incoming.query.split("&") if part and not part.startswith(_SIGNING_PARAMETERS))


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in _ANSWER_DROPS}


def _refusal(request: web.Request, refused: Refused) -> web.Response:
    """S3 speaks XML, the others JSON with the code in `__type`."""
    if "X-Amz-Target" in request.headers:
        data = {"__type": refused.code, "message": refused.message}
        return web.Response(status=refused.status, body=json.dumps(data).encode(), headers={"Content-Type": "application/x-amz-json-1.0"})
    request_id = uuid.uuid4().hex[:16].upper()
    details = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in refused.details.items())
    text = f"<Error><Code>{refused.code}</Code><Message>{escape(refused.message)}</Message>{details}<RequestId>{request_id}</RequestId></Error>"
    body = None if request.method == "HEAD" else f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode("utf-8", "replace")
    headers = {"Content-Type": "application/xml", "x-amz-request-id": request_id, **_CORS}
    with contextlib.suppress(AttributeError):
        request.protocol.keep_alive(request.method in ("GET", "HEAD"))
    return web.Response(status=refused.status, body=body, headers=headers)
