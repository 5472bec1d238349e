"""Keys of a task's role from the container's endpoint, against a stub on loopback, beside botocore's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from adapters import aws_credentials
from adapters.aws_credentials import ContainerCredentials, CredentialsUnavailable, of_container
from adapters.sigv4 import Credentials

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


class Endpoint(ThreadingHTTPServer):
    """Answers with numbered keys that are good for an hour, as the ECS agent does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}/v2/credentials/abc"
        self.asked: list[tuple[str, str | None]] = []
        self.is_broken = False
        self.ends = NOW + timedelta(hours=1)


class Answer(BaseHTTPRequestHandler):
    server: Endpoint

    def do_GET(self) -> None:
        endpoint = self.server
        endpoint.asked.append((self.path, self.headers["Authorization"]))
        number = len(endpoint.asked)
        keys = {"RoleArn": "arn:aws:iam::1:role/r", "AccessKeyId": f"AKIA{number}", "SecretAccessKey": f"s{number}", "Token": f"t{number}"}
        body = json.dumps(keys | {"Expiration": endpoint.ends.strftime("%Y-%m-%dT%H:%M:%SZ")}).encode()
        self.send_response(500 if endpoint.is_broken else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Clock:
    def __init__(self) -> None:
        self.now_s = NOW.timestamp()

    def __call__(self) -> float:
        return self.now_s


def test_keys_are_kept_and_read_again_before_they_end(endpoint: Endpoint) -> None:
    clock = Clock()
    keys = ContainerCredentials(endpoint.url, clock=clock)
    assert [keys.get() for _ in range(3)] == [Credentials("AKIA1", "s1", "t1")] * 3
    clock.now_s += 3600 - aws_credentials.REFRESH_BEFORE_S - 1
    assert keys.get().access_key_id == "AKIA1"
    clock.now_s += 1
    endpoint.ends += timedelta(hours=1)
    assert keys.get() == Credentials("AKIA2", "s2", "t2")
    assert len(endpoint.asked) == 2


def test_a_failing_endpoint_changes_nothing_while_the_keys_are_good_and_is_said_afterwards(endpoint: Endpoint) -> None:
    clock = Clock()
    keys = ContainerCredentials(endpoint.url, clock=clock)
    keys.get()
    endpoint.is_broken = True
    clock.now_s += 3300
    assert [keys.get().access_key_id for _ in range(5)] == ["AKIA1"] * 5
    assert len(endpoint.asked) == 2, "a failure is not repeated at every post"
    clock.now_s += 300
    with pytest.raises(CredentialsUnavailable):
        keys.get()
    endpoint.is_broken, endpoint.ends = False, endpoint.ends + timedelta(hours=2)
    assert keys.get().access_key_id.startswith("AKIA")


def test_the_token_is_sent_and_its_file_is_read_each_time(endpoint: Endpoint, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    endpoint.ends = NOW  # long over: each call asks
    by_file = of_container({aws_credentials.FULL: endpoint.url, aws_credentials.TOKEN_FILE: str(file)})
    by_value = of_container({aws_credentials.FULL: endpoint.url, aws_credentials.TOKEN: "value"})
    assert by_file is not None
    assert by_value is not None
    by_value.get()
    by_file.get()
    file.write_text("second")
    by_file._read()
    assert [token for _, token in endpoint.asked] == ["value", "first", "second"]


def test_keys_are_asked_for_only_at_the_containers_own_host() -> None:
    """SDK reference guide: http is for loopback and the two link-local hosts; anything else must be https."""
    for url in ("http://10.0.0.1/x", "http://169.254.169.254/x", "http://example.com/x", "ftp://127.0.0.1/x"):
        with pytest.raises(ValueError, match="must be https"):
            of_container({aws_credentials.FULL: url})
    assert of_container({}) is None
    relative = of_container({aws_credentials.RELATIVE: "/v2/credentials/abc", aws_credentials.FULL: "http://example.com"})
    assert relative is not None
    assert relative._url == "http://169.254.170.2/v2/credentials/abc"


def test_botocore_reads_the_same_keys_from_the_same_endpoint(endpoint: Endpoint) -> None:
    from botocore.credentials import ContainerProvider

    endpoint.ends = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    theirs = ContainerProvider(environ={aws_credentials.FULL: endpoint.url, aws_credentials.TOKEN: "value"}).load().get_frozen_credentials()
    ours = of_container({aws_credentials.FULL: endpoint.url, aws_credentials.TOKEN: "value"})
    assert ours is not None
    assert (theirs.access_key, theirs.secret_key, theirs.token) == ("AKIA1", "s1", "t1")
    assert ours.get() == Credentials("AKIA2", "s2", "t2")
    assert endpoint.asked[0] == endpoint.asked[1]


def test_a_process_takes_the_roles_keys_from_the_endpoint_unless_the_environment_has_some(endpoint: Endpoint) -> None:
    endpoint.ends = datetime.now(UTC) + timedelta(hours=1)
    code = "from adapters.settings import aws_credentials as c; print(c().access_key_id, c().access_key_id)"
    base = {"PYTHONPATH": str(ROOT), aws_credentials.FULL: endpoint.url}
    for more, expected in (({}, "AKIA1 AKIA1"), ({"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": "s"}, "mine mine")):
        done = subprocess.run([sys.executable, "-c", code], env=base | more, capture_output=True, text=True, check=True, timeout=20)
        assert done.stdout.strip() == expected
