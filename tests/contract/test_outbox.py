"""The sender against a stub that answers byte by byte what the test says; against the gateway it is tested in test_gateway_sender."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from adapters import outbox_apigateway as outbox
from adapters import sigv4

LOCAL = sigv4.Credentials("local", "secret", "session")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def _answer(status: str, body: bytes = b"", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Stub:
    """Answers requests with bytes; counts connections and what is in flight."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = self.in_flight = self.most_in_flight = 0
        self.answer: Callable[[str, bytes, int], Awaitable[bytes | None] | bytes | None] = lambda path, body, nth: OK
        self.port = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
                body = await reader.readexactly(int(headers["content-length"]))
                path = head[0].split(" ")[1]
                self.requests.append((head[0], headers, body))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                answer = self.answer(path, body, len(self.requests))
                data = await answer if isinstance(answer, Awaitable) else answer
                self.in_flight -= 1
                if data is None:
                    break
                writer.write(data)
                if b"connection: close" in data.lower() or data.startswith(b"HTTP/1.0"):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    stub = Stub()
    server = await asyncio.start_server(stub, "127.0.0.1", 0)
    stub.port = server.sockets[0].getsockname()[1]
    yield stub
    server.close()


@pytest.fixture
async def sender(stub: Stub) -> AsyncIterator[outbox.Outbox]:
    sender = _sender(stub)
    yield sender
    await sender.aclose()


def _sender(stub: Stub, **more: Any) -> outbox.Outbox:
    settings = {"read_timeout_s": 10, "connect_timeout_s": 10, "retry_budget_s": 30, "deadline_s": 60} | more  # a machine that stops for a second is no failure
    return outbox.Outbox(f"http://127.0.0.1:{stub.port}/live", region="eu-central-1", credentials=lambda: LOCAL, **settings)


async def test_a_post_is_signed_and_its_id_is_percent_encoded(stub: Stub, sender: outbox.Outbox) -> None:
    """Service model: ids end in `=`; the request is what AWS would verify."""
    assert await sender.post("abc=", b"hi") == outbox.Outcome("abc=", "delivered", 200)
    line, headers, body = stub.requests[0]
    assert (line, body) == ("POST /live/@connections/abc%3D HTTP/1.1", b"hi")
    arguments: dict[str, Any] = {"credentials": (LOCAL,), "region": "eu-central-1", "service": "execute-api", "now": time.time_ns() / 1e9}
    assert sigv4.verify_header("POST", "/live/@connections/abc%3D", headers, body, **arguments) == LOCAL
    assert (await sender.delete("abc=")).kind == "delivered"
    assert stub.requests[1][0].startswith("DELETE ")


@pytest.mark.parametrize(
    ("status", "kind"),
    [("410 Gone", "gone"), ("413 Content Too Large", "too_large"), ("403 Forbidden", "forbidden"), ("400 Bad Request", "failed")],
)
async def test_a_final_status_is_an_outcome_and_not_tried_again(stub: Stub, sender: outbox.Outbox, status: str, kind: str) -> None:
    """By status alone: the error-type header may be missing."""
    stub.answer = lambda *_: _answer(status, b'{"message":"x"}')
    outcome = await sender.post("a=", b"hi")
    assert (outcome.kind, outcome.status, len(stub.requests)) == (kind, int(status[:3]), 1)


@pytest.mark.parametrize(("status", "kind"), [("429 Too Many Requests", "throttled"), ("500 Internal Server Error", "failed")])
async def test_throttling_and_server_errors_are_tried_again_within_a_budget(stub: Stub, sender: outbox.Outbox, status: str, kind: str) -> None:
    """429 LimitExceededException and 500: three attempts at most, then an outcome."""
    stub.answer = lambda path, body, nth: _answer(status) if nth == 1 else OK
    assert (await sender.post("a=", b"hi")).kind == "delivered"
    stub.answer = lambda *_: _answer(status)
    assert (await sender.post("a=", b"hi")).kind == kind
    assert len(stub.requests) == 2 + 3


async def test_one_failure_does_not_stop_the_others(stub: Stub, sender: outbox.Outbox) -> None:
    """Fan-out: an outcome per target, in the order asked."""
    answers = {b"gone": _answer("410 Gone"), b"big": _answer("413 X"), b"cut": None, b"noise": b"what?\r\n\r\n", b"wait": _answer("429 X")}
    stub.answer = lambda path, body, nth: answers.get(body, OK)
    bodies = [b"ok", b"gone", b"cut", b"ok", b"big", b"noise", b"wait", b"ok"] * 10
    outcomes = await sender.post_many([(f"c{i}=", body) for i, body in enumerate(bodies)])
    kinds = {b"gone": "gone", b"big": "too_large", b"cut": "failed", b"noise": "failed", b"wait": "throttled"}
    assert [(o.connection_id, o.kind) for o in outcomes] == [(f"c{i}=", kinds.get(body, "delivered")) for i, body in enumerate(bodies)]


async def test_messages_for_one_connection_keep_their_order(stub: Stub, sender: outbox.Outbox) -> None:
    """A retry does not let a later message overtake; after a 410 the rest is not sent."""
    stub.answer = lambda path, body, nth: _answer("429 X") if nth == 2 else OK
    outcomes = await sender.post_many([("a=", b"1"), ("b=", b"x"), ("a=", b"2"), ("a=", b"3")])
    assert {outcome.kind for outcome in outcomes} == {"delivered"}
    sent = [body for line, _, body in stub.requests if "/a%3D" in line]
    assert [body for i, body in enumerate(sent) if body not in sent[:i]] == [b"1", b"2", b"3"]
    stub.requests.clear()
    stub.answer = lambda *_: _answer("410 Gone")
    assert [o.kind for o in await sender.post_many([("a=", b"1"), ("a=", b"2")])] == ["gone", "gone"]
    assert len(stub.requests) == 1


async def test_connections_are_kept_and_their_number_is_bounded(stub: Stub) -> None:
    """At most `concurrency` requests in flight, over as many connections."""

    async def slowly(*_: object) -> bytes:
        await asyncio.sleep(0.005)
        return OK

    stub.answer = slowly
    sender = _sender(stub, concurrency=4)
    for _ in range(2):
        assert all(o.kind == "delivered" for o in await sender.post_many([(f"c{i}=", b"x") for i in range(40)]))
    assert (stub.most_in_flight, stub.connections) == (4, 4)
    await sender.aclose()


async def test_a_stale_connection_is_replaced_once(stub: Stub, sender: outbox.Outbox) -> None:
    """RFC 9112, 9.5: a server may close an idle connection at any time; before any byte of an answer the request goes out again."""
    await sender.post("a=", b"1")
    stub.answer = lambda path, body, nth: None if nth == 2 else OK
    assert (await sender.post("a=", b"2")).kind == "delivered"
    assert (stub.connections, len(stub.requests)) == (2, 3)
    stub.answer = lambda *_: None
    assert (await sender.post("a=", b"3")).kind == "failed"
    assert len(stub.requests) == 5
    stub.answer = lambda *_: b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nab"
    assert (await sender.post("a=", b"4")).kind == "failed"
    assert len(stub.requests) == 6


async def test_a_server_that_does_not_answer_is_a_failure_in_time(stub: Stub) -> None:
    """Read timeout; not tried again, because the message may have arrived."""

    ended = asyncio.Event()

    async def never(*_: object) -> None:
        await ended.wait()

    stub.answer = never
    sender = _sender(stub, read_timeout_s=0.3)
    started = time.perf_counter()
    outcome = await sender.post("a=", b"1")
    ended.set()
    await sender.aclose()
    assert (outcome.kind, outcome.status, len(stub.requests)) == ("failed", None, 1)
    assert time.perf_counter() - started < 15


async def test_nobody_listening_is_a_failure_for_each(stub: Stub) -> None:
    """An outcome, not an exception."""
    sender = outbox.Outbox("http://127.0.0.1:9/live", region="eu-central-1", credentials=lambda: LOCAL, retry_budget_s=0.2)
    outcomes = await sender.post_many([(f"c{i}=", b"x") for i in range(50)])
    assert {(outcome.kind, outcome.status) for outcome in outcomes} == {("failed", None)}


async def test_an_unreachable_host_costs_the_connect_timeout_once() -> None:
    """A thousand targets must not wait one after another."""
    sender = outbox.Outbox("http://10.255.255.1/live", region="eu-central-1", credentials=lambda: LOCAL, connect_timeout_s=0.2)
    started = time.perf_counter()
    outcomes = await sender.post_many([(f"c{i}=", b"x") for i in range(1000)])
    assert {outcome.kind for outcome in outcomes} == {"failed"}
    assert time.perf_counter() - started < 50


async def test_chunked_and_closing_answers_are_understood(stub: Stub, sender: outbox.Outbox) -> None:
    """RFC 9112, 6.3 and 7.1."""
    answers = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\nTrailer: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    ]
    stub.answer = lambda path, body, nth: answers[nth - 1]
    for expected in (1, 1, 1, 1, 2):
        assert (await sender.post("a=", b"x")).kind == "delivered"
        assert stub.connections == expected


def test_the_parser_does_not_care_where_the_bytes_are_cut() -> None:
    """Every cut of an answer in three gives the same answer."""
    whole = b"HTTP/1.1 410 Gone\r\nx-amzn-ErrorType: GoneException\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    for first in range(1, len(whole) - 1):
        for second in range(first + 1, len(whole), 7):
            parser = outbox.ResponseParser()
            found = [parser.feed(part) for part in (whole[:first], whole[first:second], whole[second:])]
            response = found[2]
            assert found[:2] == [None, None]
            assert response is not None
            assert (response.status, response.body, response.headers["x-amzn-errortype"], response.may_reuse) == (410, b"abc", "GoneException", True)


def test_the_parser_survives_noise() -> None:
    """Fuzz: an answer, nothing yet, or ValueError; never anything else."""
    pieces = [b"HTTP/1.1 ", b"200 OK", b"\r\n", b"\r\n\r\n", b"Content-Length: ", b"-1", b"7", b"Transfer-Encoding: chunked", b"ffff", b"0", b"\xff\x00", b":"]
    noise = random.Random(7)
    for _ in range(5_000):
        parser = outbox.ResponseParser()
        try:
            parser.feed(b"".join(noise.choices(pieces, k=noise.randint(1, 12))), is_end=noise.random() < 0.3)
        except ValueError:
            continue


def test_it_runs_on_uvloop_too() -> None:
    """The fleet and the laptop's cloud run on uvloop; its transports are of another family."""
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> list[outbox.Outcome]:
        stub = Stub()
        server = await asyncio.start_server(stub, "127.0.0.1", 0)
        stub.port = server.sockets[0].getsockname()[1]
        stub.answer = lambda path, body, nth: None if nth == 2 else OK
        sender = _sender(stub)
        outcomes = [await sender.post("a=", b"1"), await sender.post("a=", b"2")]
        await sender.aclose()
        server.close()
        return outcomes

    assert [outcome.kind for outcome in uvloop.run(scenario())] == ["delivered", "delivered"]


def test_the_sync_sender_keeps_one_loop_and_its_connections_warm() -> None:
    """For Lambdas: the loop stands still between invocations, and connections that died meanwhile are replaced."""
    import threading

    loop, stub, servers = asyncio.new_event_loop(), Stub(), []

    async def listen() -> None:
        servers.append(await asyncio.start_server(stub, "127.0.0.1", 0))
        stub.port = servers[0].sockets[0].getsockname()[1]

    loop.run_until_complete(listen())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    sender = outbox.SyncOutbox(f"http://127.0.0.1:{stub.port}/live", region="eu-central-1", credentials=lambda: LOCAL)
    assert sender.post("a=", b"1").kind == "delivered"
    assert [o.kind for o in sender.post_many([("a=", b"2"), ("b=", b"3")])] == ["delivered"] * 2
    assert sender.delete("a=").kind == "delivered"
    assert stub.connections <= 2
    sender.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
