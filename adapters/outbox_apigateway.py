"""The one sender to sockets held by API Gateway: `POST` and `DELETE /@connections/{id}`, signed, over keep-alive connections.

Codec first (no I/O), then the asyncio shell. What happened to a target is a value; nothing here raises because a client went away.
Sources: service model apigatewaymanagementapi-2018-11-29; RFC 9112 for HTTP/1.1. boto3 costs about 1.4 ms of CPU a message, this about 0.06.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar, cast
from urllib.parse import quote, urlsplit

from adapters import sigv4

Kind = Literal["delivered", "gone", "too_large", "throttled", "forbidden", "failed"]
_T = TypeVar("_T")
_KINDS: Final[dict[int, Kind]] = {200: "delivered", 204: "delivered", 403: "forbidden", 410: "gone", 413: "too_large", 429: "throttled"}
_MAX_ATTEMPTS: Final = 3
_BACKOFF_S: Final = 0.05
_MAX_IDLE_S: Final = 50  # servers hang up after a minute or so; a request sent into that moment would have to go out twice


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one message. `status` is None when there was no answer; then `detail` says why."""

    connection_id: str
    kind: Kind
    status: int | None = None
    detail: str = ""
    may_retry: bool = False


# --- codec


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the callback API is: `https://{api}.execute-api.{region}.amazonaws.com/{stage}`, parsed once."""

    url: str
    region: str
    host: str = field(init=False)
    address: str = field(init=False)
    port: int = field(init=False)
    is_tls: bool = field(init=False)
    path: str = field(init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url.rstrip("/"))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"not an http(s) URL: {self.url!r}")
        fields = {
            "host": sigv4.host_of(self.url),
            "address": parts.hostname,
            "port": parts.port or (443 if parts.scheme == "https" else 80),
            "is_tls": parts.scheme == "https",
            "path": parts.path,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    may_reuse: bool


def serialize_request(
    method: Literal["POST", "DELETE"], connection_id: str, body: bytes, endpoint: Endpoint, credentials: sigv4.Credentials, now: float
) -> bytes:
    """A signed request, ready to be written. Connection ids end in `=`, which must be percent-encoded."""
    target = f"{endpoint.path}/@connections/{quote(connection_id, safe='')}"
    url = f"{'https' if endpoint.is_tls else 'http'}://{endpoint.host}{target}"
    headers = sigv4.sign(method, url, {}, body, credentials=credentials, region=endpoint.region, service="execute-api", now=now)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {target} HTTP/1.1\r\nHost: {endpoint.host}\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body


class ResponseParser:
    """Bytes in, answers out; one answer is in progress at a time. Raises ValueError for what is not HTTP/1.x."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def has_bytes(self) -> bool:
        """Whether an answer has begun."""
        return bool(self._buffer)

    def feed(self, data: bytes, *, is_end: bool = False) -> Response | None:
        """The answer, when it is complete."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            status, version, headers = _parse_head(bytes(self._buffer[:end]))
            if 100 <= status < 200:
                del self._buffer[: end + 4]
                continue
            found = self._body(end + 4, status, headers, is_end=is_end)
            if found is None:
                return None
            body, consumed, is_delimited = found
            del self._buffer[:consumed]
            wish = headers.get("connection", "").lower()
            may_reuse = is_delimited and not self._buffer and wish != "close" and (version == "HTTP/1.1" or wish == "keep-alive")
            return Response(status, headers, body, may_reuse)
        if len(self._buffer) > 65_536:
            raise ValueError("the head of the answer does not end")
        return None

    def _body(self, start: int, status: int, headers: dict[str, str], *, is_end: bool) -> tuple[bytes, int, bool] | None:
        """RFC 9112, 6.3: none, chunked, by length, or until the connection closes."""
        if status in (204, 304):
            return b"", start, True
        if headers.get("transfer-encoding", "").lower().endswith("chunked"):
            return _dechunk(self._buffer, start)
        if "content-length" in headers:
            if not headers["content-length"].isdecimal():
                raise ValueError("Content-Length must be a number")
            end = start + int(headers["content-length"])
            return (bytes(self._buffer[start:end]), end, True) if len(self._buffer) >= end else None
        return (bytes(self._buffer[start:]), len(self._buffer), False) if is_end else None


def _parse_head(head: bytes) -> tuple[int, str, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    version, _, rest = lines[0].partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or not rest[:3].isdecimal():
        raise ValueError(f"not an HTTP status line: {lines[0][:80]!r}")
    return int(rest[:3]), version, {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}


def _dechunk(buffer: bytearray, start: int) -> tuple[bytes, int, bool] | None:
    body, at = bytearray(), start
    while (end := buffer.find(b"\r\n", at)) >= 0:
        size = int(bytes(buffer[at:end]).partition(b";")[0], 16)
        if size < 0:
            raise ValueError("a chunk cannot be shorter than nothing")
        if size == 0:
            return _skip_trailers(buffer, end + 2, bytes(body))
        if len(buffer) < end + 4 + size:
            return None
        body += buffer[end + 2 : end + 2 + size]
        at = end + 4 + size
    return None


def _skip_trailers(buffer: bytearray, at: int, body: bytes) -> tuple[bytes, int, bool] | None:
    while (end := buffer.find(b"\r\n", at)) >= 0:
        if end == at:
            return body, end + 2, True
        at = end + 2
    return None


def outcome_of(connection_id: str, response: Response) -> Outcome:
    """The outcome by status alone: the error-type header may be missing."""
    status = response.status
    detail = "" if status < 400 else (response.headers.get("x-amzn-errortype") or response.body[:200].decode("utf-8", "replace"))
    return Outcome(connection_id, _KINDS.get(status, "failed"), status, detail, may_retry=status == 429 or status >= 500)


# --- shell


class _Closed(Exception):
    """The connection ended before the answer did."""


class _Wire(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Response] | None = None
        self._parser = ResponseParser()
        self.is_reused = False
        self.may_reuse = True
        self.idle_since_s = 0.0

    @property
    def has_answer_begun(self) -> bool:
        return self._parser.has_bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        self._feed(data)

    def eof_received(self) -> None:
        self.may_reuse = False
        self._feed(b"", is_end=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.may_reuse = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(_Closed(f"connection lost: {exc}" if exc else "closed by the server"))

    def _feed(self, data: bytes, *, is_end: bool = False) -> None:
        if self._answer is None or self._answer.done():
            self.may_reuse = False  # bytes nobody asked for: this connection cannot be trusted any more
            return
        try:
            response = self._parser.feed(data, is_end=is_end)
        except ValueError as error:
            self.may_reuse = False
            self._answer.set_exception(_Closed(str(error)))
            return
        if response is not None:
            self.may_reuse &= response.may_reuse
            self._answer.set_result(response)

    async def exchange(self, request: bytes, timeout_s: float) -> Response:
        """Write, read. Raises _Closed, TimeoutError."""
        if self._transport is None or self._transport.is_closing():
            raise _Closed("closed while idle")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Response] = loop.create_future()
        self._answer = answer
        deadline = loop.call_later(timeout_s, _expire, answer)
        self._transport.write(request)
        try:
            return await answer
        finally:
            deadline.cancel()

    def close(self) -> None:
        self.may_reuse = False
        if self._transport is not None:
            self._transport.abort()


def _expire(answer: asyncio.Future[Response]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError("no answer in time"))


@dataclass(slots=True, eq=False)
class _Group:
    """What is for one connection, in order; a message waits for the one before it."""

    connection_id: str
    items: deque[tuple[int, bytes]]


class Outbox:
    """Posts to many connections at once, at most `concurrency` requests in flight; messages for one connection keep their order."""

    def __init__(
        self,
        url: str,
        *,
        region: str,
        credentials: Callable[[], sigv4.Credentials],
        clock: Callable[[], float] | None = None,
        concurrency: int = 16,
        connect_timeout_s: float = 1,
        read_timeout_s: float = 2,
        retry_budget_s: float = 1,
        deadline_s: float = 8,
    ) -> None:
        self._endpoint = Endpoint(url, region)
        self._credentials = credentials
        self._now_s = clock or (lambda: time.time_ns() / 1e9)
        self._concurrency = concurrency
        self._connect_timeout_s, self._read_timeout_s, self._retry_budget_s = connect_timeout_s, read_timeout_s, retry_budget_s
        self._deadline_s = deadline_s
        self._unreachable_until_s = 0.0
        self._idle: list[_Wire] = []
        self._in_flight = asyncio.Semaphore(concurrency)
        self._tls: Any = None

    async def post(self, connection_id: str, data: bytes) -> Outcome:
        """Send one message."""
        return (await self.post_many([(connection_id, data)]))[0]

    async def post_many(self, messages: Sequence[tuple[str, bytes]]) -> list[Outcome]:
        """Send them all; the outcomes stand in the order of the messages. Throttled and failed ones are tried again while the budget lasts;
        what has not begun when `deadline_s` is over has failed."""
        outcomes = [Outcome(connection_id, "failed", detail="not tried") for connection_id, _ in messages]
        groups: dict[str, _Group] = {}
        for index, (connection_id, data) in enumerate(messages):
            groups.setdefault(connection_id, _Group(connection_id, deque())).items.append((index, data))
        pending, loop = list(groups.values()), asyncio.get_running_loop()
        give_up_at, end_s = loop.time() + self._retry_budget_s, loop.time() + self._deadline_s
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            is_last = attempt == _MAX_ATTEMPTS
            pending = await self._pass(pending, outcomes, end_s, is_last=is_last)
            delay_s = _BACKOFF_S * 2**attempt * (0.5 + random.random())  # noqa: S311 - jitter
            if not pending:
                break
            if loop.time() + delay_s > give_up_at:
                self._pass_on_failure(pending, outcomes)
                break
            await asyncio.sleep(delay_s)
        return outcomes

    async def delete(self, connection_id: str) -> Outcome:
        """Close a connection; `delivered` means it was closed."""
        async with self._in_flight:
            return await self._request("DELETE", connection_id, b"")

    async def aclose(self) -> None:
        """Drop the idle connections."""
        while self._idle:
            self._idle.pop().close()
        await asyncio.sleep(0)  # let the transports close

    async def _pass(self, groups: Sequence[_Group], outcomes: list[Outcome], end_s: float, *, is_last: bool) -> list[_Group]:
        """One attempt at every group; those that may be tried again come back."""
        left = iter(groups)

        async def lane() -> list[_Group]:
            return [group for group in left if not await self._drain(group, outcomes, end_s, is_last=is_last)]

        if len(groups) == 1:
            return await lane()
        lanes = await asyncio.gather(*(lane() for _ in range(min(self._concurrency, len(groups)))))
        return [group for unfinished in lanes for group in unfinished]

    async def _drain(self, group: _Group, outcomes: list[Outcome], end_s: float, *, is_last: bool) -> bool:
        """Send a group in order; False when its first message must be tried again."""
        while group.items and asyncio.get_running_loop().time() < end_s:
            index, data = group.items[0]
            async with self._in_flight:
                outcome = await self._request("POST", group.connection_id, data)
            outcomes[index] = outcome
            if outcome.may_retry and not is_last:
                return False
            group.items.popleft()
            if outcome.kind == "gone":
                for later, _ in group.items:
                    outcomes[later] = outcome
                group.items.clear()
        return True

    @staticmethod
    def _pass_on_failure(groups: Sequence[_Group], outcomes: list[Outcome]) -> None:
        """Out of budget: what waited behind a failed message shares its outcome, so that nothing overtakes."""
        for group in groups:
            first = outcomes[group.items[0][0]]
            for index, _ in group.items:
                outcomes[index] = first

    async def _request(self, method: Literal["POST", "DELETE"], connection_id: str, body: bytes) -> Outcome:
        try:
            request = serialize_request(method, connection_id, body, self._endpoint, self._credentials(), self._now_s())
            return outcome_of(connection_id, await self._exchange(request))
        except TimeoutError as error:
            return Outcome(connection_id, "failed", detail=str(error) or "no connection in time")
        except (_Closed, OSError) as error:
            return Outcome(connection_id, "failed", detail=f"{type(error).__name__}: {error}", may_retry=isinstance(error, OSError))

    async def _exchange(self, request: bytes) -> Response:
        """On a kept connection that turns out stale before any byte of an answer, once more on a new one."""
        wire = self._kept() or await self._connect()
        try:
            response = await self._on(wire, request)
        except _Closed:
            if not wire.is_reused or wire.has_answer_begun:
                raise
            wire = await self._connect()
            response = await self._on(wire, request)
        return response

    async def _on(self, wire: _Wire, request: bytes) -> Response:
        try:
            response = await wire.exchange(request, self._read_timeout_s)
        except BaseException:
            wire.close()
            raise
        if wire.may_reuse:
            wire.is_reused, wire.idle_since_s = True, asyncio.get_running_loop().time()
            self._idle.append(wire)
        else:
            wire.close()
        return response

    def _kept(self) -> _Wire | None:
        oldest_s = asyncio.get_running_loop().time() - _MAX_IDLE_S
        while self._idle:
            wire = self._idle.pop()
            if wire.may_reuse and wire.idle_since_s > oldest_s:
                return wire
            wire.close()
        return None

    async def _connect(self) -> _Wire:
        loop, endpoint = asyncio.get_running_loop(), self._endpoint
        if endpoint.is_tls and self._tls is None:
            import ssl

            self._tls = ssl.create_default_context()
        if loop.time() < self._unreachable_until_s:
            raise TimeoutError("no connection in time a moment ago")
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, wire = await loop.create_connection(_Wire, endpoint.address, endpoint.port, ssl=self._tls)
        except TimeoutError:
            self._unreachable_until_s = loop.time() + self._connect_timeout_s  # a thousand targets must not wait one after another
            raise
        return wire


class SyncOutbox:
    """The same for a Lambda: one warm event loop for the life of the environment. Threads take turns."""

    def __init__(self, url: str, *, region: str, credentials: Callable[[], sigv4.Credentials], concurrency: int = 16) -> None:
        self._runner, self._turn = asyncio.Runner(), threading.Lock()
        self._outbox = Outbox(url, region=region, credentials=credentials, concurrency=concurrency)

    def post(self, connection_id: str, data: bytes) -> Outcome:
        """Send one message."""
        return self._run(self._outbox.post(connection_id, data))

    def post_many(self, messages: Sequence[tuple[str, bytes]]) -> list[Outcome]:
        """Send them all; see Outbox.post_many."""
        return self._run(self._outbox.post_many(messages))

    def delete(self, connection_id: str) -> Outcome:
        """Close a connection."""
        return self._run(self._outbox.delete(connection_id))

    def close(self) -> None:
        """Drop the connections and the loop."""
        self._run(self._outbox.aclose())
        self._runner.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        with self._turn:
            return self._runner.run(work)
