"""A node learns its public address: on EC2 from the instance metadata, in a Fargate task from EC2. The stand-ins speak as AWS documents.

EC2 user guide, "Use IMDSv2": a token by PUT, then GET with it; without a valid token 401; a category that does not apply, 404.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from moto.server import ThreadedMotoServer

from media_fleet import public_address
from media_fleet.public_address import NotYet, Unknown, learn

ROOT = Path(__file__).resolve().parents[2]
TASK = "/v4/0123456789abcdef-1"


class Metadata(ThreadingHTTPServer):
    """The instance metadata (version 2 only) and the task metadata of one machine."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.public: str | None = "198.51.100.7"
        self.absent_for = 0  # that many questions find no address yet
        self.task: dict[str, Any] = {}
        self.tokens: set[str] = set()
        self.is_off = False


class Answer(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        ttl = self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        if self.server.is_off:
            self._answer(403, "")
        elif self.path != "/latest/api/token" or not (ttl and 1 <= int(ttl) <= 21_600):
            self._answer(400, "")
        else:
            token = os.urandom(8).hex()
            self.server.tokens.add(token)
            self._answer(200, token)

    def do_GET(self) -> None:
        if self.path == TASK:
            self._answer(200, json.dumps(self.server.task))
        elif self.headers["X-aws-ec2-metadata-token"] not in self.server.tokens:
            self._answer(401, "")
        elif self.path != "/latest/meta-data/public-ipv4" or self.server.public is None or self.server.absent_for > 0:
            self.server.absent_for -= 1
            self._answer(404, "")
        else:
            self._answer(200, self.server.public)

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def on_ec2(metadata: Metadata) -> dict[str, str]:
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url, "AWS_EXECUTION_ENV": "AWS_ECS_EC2"}


def test_on_ec2_the_address_comes_from_the_metadata_with_a_session_token(metadata: Metadata) -> None:
    assert learn(on_ec2(metadata), wait_s=0) == "198.51.100.7"
    assert len(metadata.tokens) == 1


def test_an_address_that_is_still_being_associated_is_waited_for(metadata: Metadata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_address, "RETRY_S", 0.01)
    metadata.absent_for = 3
    assert learn(on_ec2(metadata), wait_s=10) == "198.51.100.7"


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"public": None}, NotYet, "this machine has no public IPv4 address"),
        ({"public": "<html>"}, Unknown, "no IPv4 address"),
        ({"public": "2001:db8::1"}, Unknown, "no IPv4 address"),
        ({"is_off": True}, Unknown, "answered 403"),
    ],
)
def test_a_machine_whose_metadata_name_no_address_is_told_why(metadata: Metadata, changes: dict[str, Any], kind: type[Unknown], sentence: str) -> None:
    for name, value in changes.items():
        setattr(metadata, name, value)
    with pytest.raises(Unknown, match=sentence) as refused:
        learn(on_ec2(metadata), wait_s=0)
    assert refused.type is kind


def test_a_machine_that_is_not_in_ec2_is_refused_at_once() -> None:
    with pytest.raises(Unknown, match=r"instance metadata at http://127\.0\.0\.1:9 cannot be reached"):
        learn({"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"})


def test_the_stand_in_refuses_a_question_without_a_token_as_ec2_does(metadata: Metadata) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", metadata.server_port, timeout=5)
    connection.request("GET", "/latest/meta-data/public-ipv4")
    assert connection.getresponse().status == 401
    connection.close()


def node(**env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HELIOGRAPH_", "AWS_"))}
    settings = {"HELIOGRAPH_TURN_SECRET_ID": "turn", "AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    command = [sys.executable, "-m", "media_fleet", "node"]
    return subprocess.run(command, env={**clean, **settings, **env}, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)


def test_a_node_that_cannot_learn_its_address_is_refused_with_one_sentence(secrets_manager: str) -> None:
    aws = {"AWS_ENDPOINT_URL": secrets_manager, "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}
    done = node(HELIOGRAPH_RELAY_ADDRESS="auto", **aws)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("HELIOGRAPH_RELAY_ADDRESS is auto, but the instance metadata at http://127.0.0.1:9 cannot be reached")
    other = node(HELIOGRAPH_RELAY_ADDRESS="automatic", **aws)
    assert (other.returncode, other.stderr.strip()) == (1, "HELIOGRAPH_RELAY_ADDRESS must be an IP address.")


# A Fargate task; moto answers for EC2


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in {"AWS_ENDPOINT_URL": moto_url, "AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(name, value)
    return moto_url


@pytest.fixture
def secrets_manager(aws: str) -> str:
    import boto3

    client = boto3.client("secretsmanager", region_name="eu-west-1", endpoint_url=aws)
    if not any(secret["Name"] == "turn" for secret in client.list_secrets()["SecretList"]):
        client.create_secret(Name="turn", SecretString=json.dumps({"current": "s" * 48, "previous": None}))
    return aws


def interface(url: str, *, is_public: bool) -> tuple[dict[str, Any], str | None]:
    """A network interface as Fargate makes it: the task metadata that name it, and its public address."""
    import boto3

    ec2 = boto3.client("ec2", region_name="eu-west-1", endpoint_url=url)
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    made = ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]
    public = None
    if is_public:
        address = ec2.allocate_address(Domain="vpc")
        ec2.associate_address(AllocationId=address["AllocationId"], NetworkInterfaceId=made["NetworkInterfaceId"])
        public = address["PublicIp"]
    network = {"NetworkMode": "awsvpc", "IPv4Addresses": [made["PrivateIpAddress"]], "MACAddress": made["MacAddress"], "AttachmentIndex": 0}
    return {"DockerId": "0123456789abcdef-1", "Networks": [network]}, public


def on_fargate(metadata: Metadata) -> dict[str, str]:
    return {"AWS_EXECUTION_ENV": "AWS_ECS_FARGATE", "ECS_CONTAINER_METADATA_URI_V4": metadata.url + TASK}


def test_in_a_fargate_task_ec2_is_asked_for_the_address_of_its_interface(metadata: Metadata, aws: str) -> None:
    interface(aws, is_public=True)  # somebody else's
    metadata.task, public = interface(aws, is_public=True)
    assert learn(on_fargate(metadata), wait_s=0) == public


def test_a_task_without_a_public_address_is_told_what_to_set(metadata: Metadata, aws: str) -> None:
    metadata.task, _ = interface(aws, is_public=False)
    with pytest.raises(NotYet, match="assignPublicIp must be ENABLED"):
        learn(on_fargate(metadata), wait_s=0)


@pytest.mark.parametrize("task", [{}, {"Networks": []}, {"Networks": [{"NetworkMode": "awsvpc"}]}])
def test_task_metadata_without_an_interface_are_refused(metadata: Metadata, task: dict[str, Any]) -> None:
    metadata.task = task
    with pytest.raises(Unknown, match="the task metadata name no network interface"):
        learn(on_fargate(metadata))


def test_an_old_platform_version_is_refused() -> None:
    with pytest.raises(Unknown, match="platform version"):
        learn({"AWS_EXECUTION_ENV": "AWS_ECS_FARGATE"})


def test_ec2_is_asked_in_the_words_of_botocore() -> None:
    import boto3

    client = boto3.client("ec2", region_name="eu-west-1", aws_access_key_id="k", aws_secret_access_key="s", endpoint_url="http://127.0.0.1:9")
    sent: list[dict[str, Any]] = []

    def end(request: Any, **_: Any) -> None:
        sent.append(dict(parse_qsl(request.data if isinstance(request.data, str) else urlencode(request.data))))
        raise InterruptedError

    client.meta.events.register("request-created.ec2.DescribeNetworkInterfaces", end)
    wanted = {"mac-address": ["0e:9e:32:c7:48:85"], "addresses.private-ip-address": ["10.0.2.106"]}
    with pytest.raises(InterruptedError):
        client.describe_network_interfaces(Filters=[{"Name": name, "Values": values} for name, values in wanted.items()])
    assert dict(parse_qsl(public_address.question("0e:9e:32:c7:48:85", "10.0.2.106").decode())) == sent[0]
