"""Calls to AWS by our own signer: connections are kept, a stale one is replaced, what stays away is unavailable."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from adapters import aws_json
from heliograph.errors import Unavailable


class Stub(http.server.ThreadingHTTPServer):
    """Answers JSON; `ends_after` closes a connection after that many answers, `status` is what it says."""

    def __init__(self) -> None:
        self.connections, self.status, self.ends_after = 0, 200, 1000
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Stub

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1
        self.answers = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.answers += 1
        body = json.dumps({"__type": "com.amazon#Refused", "message": "no"} if self.server.status >= 400 else {"ok": self.headers["x-amz-target"]}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.answers >= self.server.ends_after  # without saying so: the client finds out

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in (("AWS_REGION", "eu-west-1"), ("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_many_calls_use_one_connection(stub: Stub) -> None:
    assert [aws_json.call("sqs", "AmazonSQS.SendMessage", {}) for _ in range(5)] == [{"ok": "AmazonSQS.SendMessage"}] * 5
    assert stub.connections == 1


def test_a_connection_that_the_service_ended_is_replaced_unnoticed(stub: Stub) -> None:
    stub.ends_after = 1
    assert all(aws_json.call("sqs", "AmazonSQS.SendMessage", {}) for _ in range(3))
    assert stub.connections == 3


def test_a_refusal_is_told_by_name_and_a_failing_service_is_unavailable(stub: Stub) -> None:
    stub.status = 400
    with pytest.raises(aws_json.AwsRefusal) as refusal:
        aws_json.call("sqs", "AmazonSQS.SendMessage", {})
    assert refusal.value.code == "Refused"
    stub.status = 500
    with pytest.raises(Unavailable):
        aws_json.call("sqs", "AmazonSQS.SendMessage", {})
    stub.status = 200
    assert aws_json.call("sqs", "AmazonSQS.SendMessage", {})
