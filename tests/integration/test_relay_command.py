"""`python -m media_fleet` as a process: what it refuses, what it says, how it ends."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from heliograph.ice import turn_key, turn_password, turn_username
from media_fleet.stun import Address, Class, Message, Method, attributes, parse
from tests.certificates import make_certificates

RELAY = ["relay", "--listen", "127.0.0.1:0", "--realm", "R", "--user", "ann:pass"]
CONTAINERS = {
    "ECS_CONTAINER_METADATA_URI": "http://169.254.170.2/v3",
    "ECS_CONTAINER_METADATA_URI_V4": "http://169.254.170.2/v4",
    "AWS_EXECUTION_ENV": "AWS_ECS_FARGATE",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
}


def environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in CONTAINERS and not name.startswith(("HELIOGRAPH_", "AWS_"))}
    return {**clean, **more}


def refusal(*arguments: str, **env: str) -> str:
    """The one sentence with which the command refuses to start."""
    done = subprocess.run([sys.executable, "-m", "media_fleet", *arguments], env=environment(**env), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@contextmanager
def started(*arguments: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "media_fleet", *arguments], env=environment(**env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("relay listening on udp "), line + (process.communicate()[1] if not line else "")
        host, _, port = line.split()[4].rstrip(",").rpartition(":")
        yield process, (host, int(port))
    finally:
        process.kill()
        process.communicate()


def ask(client: socket.socket, request: bytes) -> Message:
    client.settimeout(5)
    client.send(request)
    return parse(client.recv(1500))


def allocate(server: Address, username: str, password: str, realm: str) -> int | None:
    """The error code, or None for success."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect(server)
        challenge = ask(client, Message(Method.ALLOCATE, Class.REQUEST, os.urandom(12)).serialize())
        assert challenge.get(attributes.REALM) == realm
        fields = (
            (attributes.REQUESTED_TRANSPORT, 17),
            (attributes.USERNAME, username),
            (attributes.REALM, realm),
            (attributes.NONCE, challenge.get(attributes.NONCE)),
        )
        answer = ask(client, Message(Method.ALLOCATE, Class.REQUEST, os.urandom(12), fields).serialize(turn_key(username, realm, password)))
    error = answer.get(attributes.ERROR_CODE)
    return None if error is None else error.code


def test_it_listens_outlives_garbage_and_ends_on_sigterm_with_0() -> None:
    with started(*RELAY) as (process, server):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
            for length in range(300):
                noise.sendto(os.urandom(length), server)
        assert allocate(server, "ann", "pass", "R") is None
        assert allocate(server, "ann", "guess", "R") == 401
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0, errors
        events = [json.loads(line) for line in errors.splitlines()]
        assert [event["event"] for event in events] == ["allocation_ended"]
        assert events[0]["username"] == "ann"


@pytest.mark.parametrize("name", CONTAINERS)
def test_fixed_users_are_refused_where_container_metadata_is_set(name: str) -> None:
    assert refusal(*RELAY, **{name: CONTAINERS[name]}).startswith(f"{name} is set, so this is a deployment")


def test_fixed_users_pass_where_the_execution_environment_is_another() -> None:
    with started(*RELAY, AWS_EXECUTION_ENV="CloudShell") as (_, server):
        assert allocate(server, "ann", "pass", "R") is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--listen", "localhost:1"], "--listen must be an IP address and a port"),
        (["--listen", "127.0.0.1:99999"], "--listen must be an IP address and a port"),
        (["--listen", "0.0.0.0:0"], "needs --relay-address"),
        (["--relay-address", "127.0.0.1", "--relay-address", "127.0.0.2"], "one relay address of each family"),
        (["--listen-tls", "127.0.0.1:0"], "needs --certificate and --private-key"),
        (["--listen-tls", "127.0.0.1:0", "--certificate", "none.pem", "--private-key", "none.pem"], "none.pem cannot be read"),
        (["--user", "ann"], "--user must be NAME:PASSWORD"),
        (["--allow-peer", "127.0.0.1/8"], "--allow-peer must be a CIDR"),
        (["--relay-address", "me"], "--relay-address must be an IP address"),
        (["--workers", "0"], "--workers must be a number of processes from 1 to 64, or auto"),
        (["--workers", "two"], "--workers must be a number of processes from 1 to 64, or auto"),
        (["--workers", "2", "--listen", "203.0.113.1:3478", "--relay-address", "127.0.0.1"], "cannot listen on udp 203.0.113.1:3478"),
        (["--workers", "2", "--listen-tls", "127.0.0.1:0", "--certificate", "none.pem", "--private-key", "none.pem"], "none.pem cannot be read"),
        (["--drain", "long"], "--drain must be a number of seconds"),
        (["--stats", "9"], "--stats must be an IP address and a port"),
        (["--listen", "203.0.113.1:3478", "--relay-address", "127.0.0.1"], "cannot listen on udp 203.0.113.1:3478"),
    ],
)
def test_a_wrong_argument_is_refused_with_one_sentence(arguments: list[str], sentence: str) -> None:
    assert sentence in refusal(*RELAY, *arguments)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"HELIOGRAPH_TURN_SECRET_ID": ""}, "HELIOGRAPH_TURN_SECRET_ID is not set"),
        ({"HELIOGRAPH_RELAY_ADDRESS": ""}, "HELIOGRAPH_RELAY_ADDRESS is not set"),
        ({"HELIOGRAPH_TURN_WORKERS": "many"}, "HELIOGRAPH_TURN_WORKERS must be a number of processes"),
        ({"HELIOGRAPH_TURN_USER": "ann:pass"}, "HELIOGRAPH_TURN_USER is not a setting of a media node"),
        ({"HELIOGRAPH_MONGODB_SECRET_ID": "mongodb"}, "HELIOGRAPH_MONGODB_SECRET_ID needs HELIOGRAPH_REDIS_URL"),
    ],
)
def test_a_node_with_a_missing_or_unknown_setting_is_refused_with_one_sentence(changes: dict[str, str], sentence: str) -> None:
    settings = {"HELIOGRAPH_TURN_SECRET_ID": "turn", "HELIOGRAPH_RELAY_ADDRESS": "127.0.0.1", **changes}
    assert sentence in refusal("node", **settings)


def test_who_starts_a_worker_by_hand_is_told_so() -> None:
    assert refusal("worker", "0").startswith("`worker` is started by a relay of several processes")


@pytest.mark.parametrize("argument", ["--user=ann:pass", "--allow-peer=127.0.0.0/8"])
def test_a_node_has_neither_fixed_users_nor_open_peers(argument: str) -> None:
    done = subprocess.run([sys.executable, "-m", "media_fleet", "node", argument], env=environment(), capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "unrecognized arguments" in done.stderr


class SecretsManager(http.server.BaseHTTPRequestHandler):
    """Answers GetSecretValue as AWS does, whoever asks."""

    stored: ClassVar[dict[str, dict[str, str]]] = {"turn": {"current": "new", "previous": "old"}}

    def do_POST(self) -> None:
        secret = self.stored.get(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["SecretId"])
        answer = {"SecretString": json.dumps(secret)} if secret else {"__type": "ResourceNotFoundException", "Message": "no value for the staging label"}
        body = json.dumps(answer).encode()
        self.send_response(200 if secret else 400)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


@pytest.fixture
def node() -> Iterator[dict[str, str]]:
    """The environment of a node whose secret is there."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SecretsManager) as stand_in:
        threading.Thread(target=stand_in.serve_forever, daemon=True).start()
        yield {
            "HELIOGRAPH_TURN_SECRET_ID": "turn",
            "HELIOGRAPH_TURN_LISTEN": "127.0.0.1:0",
            "HELIOGRAPH_TURN_REALM": "north",
            "HELIOGRAPH_RELAY_ADDRESS": "127.0.0.1",
            "HELIOGRAPH_RELAY_DRAIN_S": "0",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{stand_in.server_port}",
            "AWS_REGION": "eu-west-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        stand_in.shutdown()


def sign_in(server: Address, secret: str = "new") -> int | None:  # noqa: S107
    """Allocates with time-limited credentials made of this secret."""
    name = turn_username(time.time_ns() // 10**9 + 60, "acc_1", "dev_1")
    return allocate(server, name, turn_password(secret, name), "north")


@pytest.mark.parametrize("workers", ["1", "2", "auto"])
def test_a_node_takes_its_secrets_from_secrets_manager_and_accepts_the_current_and_the_previous_one(node: dict[str, str], workers: str) -> None:
    with started("node", HELIOGRAPH_TURN_WORKERS=workers, **node) as (process, server):
        assert {secret: sign_in(server, secret) for secret in ("new", "old", "older")} == {"new": None, "old": None, "older": 401}
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_node_speaks_tls_with_the_certificate_of_its_secret(node: dict[str, str], workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_certificates(tmp_path)
    monkeypatch.setitem(SecretsManager.stored, "tls", {"certificate": made.chain.read_text(), "key": made.key.read_text()})
    speaks = {"HELIOGRAPH_TURN_LISTEN_TLS": f"127.0.0.1:{(port := free_port())}", "HELIOGRAPH_TURN_TLS_SECRET_ID": "tls"}
    context = ssl.create_default_context(cafile=str(made.authority))
    with (
        started("node", HELIOGRAPH_TURN_WORKERS=workers, **node, **speaks),
        context.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname="localhost") as client,
    ):
        assert ask(client, Message(Method.BINDING, Class.REQUEST, os.urandom(12)).serialize()).message_class is Class.SUCCESS


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_node_whose_certificate_is_not_there_yet_serves_without_tls(node: dict[str, str], workers: str) -> None:
    speaks = {"HELIOGRAPH_TURN_LISTEN_TLS": f"127.0.0.1:{(port := free_port())}", "HELIOGRAPH_TURN_TLS_SECRET_ID": "not-there"}
    with started("node", HELIOGRAPH_TURN_WORKERS=workers, **node, **speaks) as (_, server):
        assert sign_in(server) is None
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def health(**env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "media_fleet", "health"], env=environment(**env), capture_output=True, text=True, timeout=30, check=False)


def asked(port: int, path: str) -> int:
    """The status that the node's HTTP endpoint answers with."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def test_a_node_that_drains_is_well_but_not_ready_and_one_that_is_gone_is_neither(node: dict[str, str]) -> None:
    """Whoever takes a draining node for a sick one ends the calls that it lets go on."""
    port = free_port()
    mine = {**node, "HELIOGRAPH_STATS_LISTEN": f"127.0.0.1:{port}", "HELIOGRAPH_RELAY_DRAIN_S": "30"}
    assert health(**mine).returncode == 1
    with started("node", **mine) as (process, server):
        assert health(**mine).returncode == 0
        assert health(**{**mine, "HELIOGRAPH_STATS_LISTEN": f"0.0.0.0:{port}"}).returncode == 0  # every address: asked on loopback
        assert sign_in(server) is None
        assert (asked(port, "/healthz"), asked(port, "/readyz"), asked(port, "/metrics"), asked(port, "/allocations")) == (200, 200, 200, 200)
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 10
        while asked(port, "/readyz") == 200:
            assert time.monotonic() < deadline, "the node does not say that it drains"
        assert (asked(port, "/readyz"), health(**mine).returncode) == (503, 0)
        assert process.poll() is None
    assert health(**mine).returncode == 1


def test_two_nodes_cannot_share_a_statistics_port_and_the_second_says_so(node: dict[str, str]) -> None:
    mine = {**node, "HELIOGRAPH_STATS_LISTEN": f"127.0.0.1:{free_port()}"}
    with started("node", **mine):
        done = subprocess.run([sys.executable, "-m", "media_fleet", "node"], env=environment(**mine), capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert done.stderr.splitlines()[-1].startswith(f"The node cannot listen on tcp {mine['HELIOGRAPH_STATS_LISTEN']}: ")


def test_a_health_check_without_a_port_to_ask_says_so(node: dict[str, str]) -> None:
    done = health(**node)
    assert (done.returncode, done.stderr) == (1, "HELIOGRAPH_STATS_LISTEN is not set, so there is nothing to ask.\n")


def test_a_node_tells_its_meters_on_stdout_and_only_when_asked(node: dict[str, str]) -> None:
    with started("node", HELIOGRAPH_STAGE="prod", HELIOGRAPH_METERS_S="0.2", **node) as (process, server):
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert (first["stage"], first["Allocations"]) == ("prod", 0)
        assert sign_in(server) is None
        deadline = time.monotonic() + 10
        while json.loads(process.stdout.readline())["Allocations"] != 1:
            assert time.monotonic() < deadline, "the allocation is not told"
    with started("node", HELIOGRAPH_STAGE="prod", **node) as (process, server):
        assert sign_in(server) is None
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=10)[0] == ""


class InstanceMetadata(http.server.BaseHTTPRequestHandler):
    """IMDSv2 of a machine with an Elastic IP; tests/contract/test_public_address.py holds it against what EC2 documents."""

    def do_PUT(self) -> None:
        self._answer("token")

    def do_GET(self) -> None:
        self._answer("198.51.100.7" if self.headers["X-aws-ec2-metadata-token"] == "token" else "")

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


def test_behind_an_elastic_ip_a_node_listens_on_every_address_and_tells_the_public_one(node: dict[str, str]) -> None:
    """The machine itself never has the public address: the sockets are bound to 0.0.0.0, and clients are told what peers reach."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), InstanceMetadata) as machine:
        threading.Thread(target=machine.serve_forever, daemon=True).start()
        mine = {**node, "HELIOGRAPH_TURN_LISTEN": "0.0.0.0:0", "HELIOGRAPH_RELAY_ADDRESS": "auto"}
        with started("node", AWS_EC2_METADATA_SERVICE_ENDPOINT=f"http://127.0.0.1:{machine.server_port}", **mine) as (process, server):
            assert server[0] == "0.0.0.0"
            assert sign_in(("127.0.0.1", server[1])) is None
            process.send_signal(signal.SIGTERM)
            events = [json.loads(line) for line in process.communicate(timeout=10)[1].splitlines()]
        machine.shutdown()
    learned, ended = events
    assert (learned["event"], learned["relay_address"]) == ("relay_address_learned", "198.51.100.7")
    assert ended["relayed_address"].startswith("198.51.100.7:")
