"""The custom resource as CloudFormation meets it: a real Lambda process, a real MongoDB, and an answer by PUT in time, whatever happens."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import secrets
import signal
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from adapters import custom_resource
from adapters.custom_resource import Answer, NotAnswered
from functions.routes import FUNCTIONS, Function
from local.lambdas import FunctionError, Lambdas
from tests.certificates import make_certificates
from tests.conftest import Stores
from tests.contract.secrets_stub import Secrets, secrets_stub
from tests.performance.test_import_budgets import OURS, loaded_by
from tests.running import wait_until

TIMEOUT_S = 12
MIGRATION = Function("migration", "Migrates the ledger.", (), (), timeout_s=TIMEOUT_S)


class CloudFormation(http.server.ThreadingHTTPServer):
    """Where answers go: takes a PUT with the next of `statuses`, or hangs at 0, and keeps what it took."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Put)
        self.statuses: list[int] = []
        self.asked, self.taken, self.types = 0, list[dict[str, Any]](), list[str | None]()

    def event(self, kind: str = "Create", **properties: str) -> dict[str, Any]:
        about = {"StackId": "arn:aws:cloudformation:eu-west-1:1:stack/s/1", "RequestId": secrets.token_hex(8), "LogicalResourceId": "Migration"}
        known = {"PhysicalResourceId": "Migration"} if kind != "Create" else {}
        url = f"http://127.0.0.1:{self.server_port}/answer?X-Amz-Signature=abc%2F1"
        return {"RequestType": kind, "ResponseURL": url, "ResourceType": "Custom::HeliographMigration", "ResourceProperties": properties, **about, **known}


class _Put(http.server.BaseHTTPRequestHandler):
    server: CloudFormation

    def do_PUT(self) -> None:
        self.server.asked += 1
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        body = self.rfile.read(int(self.headers["content-length"]))
        if status == 0:
            time.sleep(30)
            return
        if status == 200:
            assert self.path == "/answer?X-Amz-Signature=abc%2F1"
            assert len(body) <= 4_096
            self.server.taken.append(json.loads(body))
            self.server.types.append(self.headers["content-type"])
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def cloud() -> Iterator[CloudFormation]:
    server = CloudFormation()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def secret(stores: Stores) -> Iterator[Secrets]:
    with secrets_stub() as server:
        server.uri = stores.mongodb_uri
        yield server


@pytest.fixture
async def lambdas(cloud: CloudFormation, secret: Secrets, tmp_path: Path) -> AsyncIterator[Lambdas]:
    environment = {
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "AKIA",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": secret.url,
        "AWS_ENDPOINT_URL_CLOUDFORMATION": f"http://127.0.0.1:{cloud.server_port}",
    }
    service = Lambdas([MIGRATION], environment=environment, log_dir=tmp_path)
    await service.start()
    yield service
    await service.close()


@pytest.fixture
def name(stores: Stores) -> Iterator[str]:
    made = "custom-" + secrets.token_hex(6)
    yield made
    client: Any = MongoClient(stores.mongodb_uri)
    with client:
        client.drop_database(made)


async def said(lambdas: Lambdas, cloud: CloudFormation, kind: str = "Create", **properties: str) -> dict[str, Any]:
    """The one answer to an event; the function itself answers nothing and does not fail."""
    before = len(cloud.taken)
    assert await lambdas.invoke("migration", cloud.event(kind, **properties)) is None
    (answer,) = cloud.taken[before:]
    return answer


async def test_it_migrates_at_create_and_at_update_and_leaves_everything_at_delete(lambdas: Lambdas, cloud: CloudFormation, name: str, stores: Stores) -> None:
    about = {"SecretId": "mongodb", "Database": name, "Table": "1"}
    created = await said(lambdas, cloud, **about)
    assert (created["Status"], created["PhysicalResourceId"]) == ("SUCCESS", "Migration")
    assert created["Data"]["Done"].startswith("create collection accounts; ")
    updated = await said(lambdas, cloud, "Update", **about)
    assert (updated["Status"], updated["PhysicalResourceId"], updated["Data"]) == ("SUCCESS", "Migration", {"Done": "nothing was missing"})
    deleted = await said(lambdas, cloud, "Delete", SecretId="missing", Database=name)
    assert (deleted["Status"], deleted["PhysicalResourceId"], deleted["Data"]) == ("SUCCESS", "Migration", {})
    client: Any = MongoClient(stores.mongodb_uri)
    with client:
        assert "ledger" in client[name].list_collection_names()
    assert cloud.types == ["", "", ""], "S3 checks the signature over an empty type"


async def test_a_secret_without_a_value_is_left_to_a_person(lambdas: Lambdas, cloud: CloudFormation, secret: Secrets, name: str) -> None:
    secret.uri = ""
    answer = await said(lambdas, cloud, SecretId="mongodb", Database=name)
    assert (answer["Status"], answer["Data"]) == ("SUCCESS", {"Skipped": "The secret has no value yet: put the URI and run heliograph-admin migrate."})


async def test_a_secret_that_is_not_there_or_of_another_form_is_refused(lambdas: Lambdas, cloud: CloudFormation, secret: Secrets, name: str) -> None:
    answer = await said(lambdas, cloud, SecretId="missing", Database=name)
    assert answer["Status"] == "FAILED"
    assert answer["Reason"].startswith("The secret of MongoDB's URI cannot be read: ResourceNotFoundException")
    secret.text = "mongodb://user:hunter2@host/"
    answer = await said(lambdas, cloud, SecretId="mongodb", Database=name)
    assert answer["Status"] == "FAILED"
    assert 'must be the JSON object {"uri"' in answer["Reason"]
    assert "hunter2" not in json.dumps(answer)


async def test_what_a_person_must_decide_is_the_reason_in_one_sentence(lambdas: Lambdas, cloud: CloudFormation, name: str, stores: Stores) -> None:
    client: Any = MongoClient(stores.mongodb_uri)
    with client:
        client[name].sessions.create_index("expires_at", expireAfterSeconds=60)
    answer = await said(lambdas, cloud, "Update", SecretId="mongodb", Database=name)
    assert answer["Status"] == "FAILED"
    assert answer["Reason"].startswith("The index expires_at_1 of sessions has other keys or options")
    assert "\n" not in answer["Reason"]


async def test_a_mongodb_that_hangs_is_answered_within_the_functions_time(lambdas: Lambdas, cloud: CloudFormation, secret: Secrets, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        secret.uri = f"mongodb://user:hunter2@127.0.0.1:{silent.getsockname()[1]}/"
        answer = await said(lambdas, cloud, SecretId="mongodb", Database=name)
    assert answer["Status"] == "FAILED"
    assert "in time" in answer["Reason"]
    assert "hunter2" not in answer["Reason"]


async def test_a_secrets_manager_that_hangs_does_not_take_the_time_of_the_answer(lambdas: Lambdas, cloud: CloudFormation, secret: Secrets, name: str) -> None:
    secret.hangs_s = 20
    answer = await said(lambdas, cloud, SecretId="mongodb", Database=name)
    assert answer["Status"] == "FAILED"
    assert answer["Reason"].startswith("The migration was not finished in time")


async def test_an_answer_is_sent_again_while_the_other_side_is_away_and_no_longer_when_it_refuses(lambdas: Lambdas, cloud: CloudFormation, name: str) -> None:
    cloud.statuses = [503, 429]
    assert (await said(lambdas, cloud, "Delete"))["Status"] == "SUCCESS"
    assert cloud.asked == 3
    cloud.statuses = [403]
    assert await lambdas.invoke("migration", cloud.event("Delete")) is None
    assert (cloud.asked, len(cloud.taken)) == (4, 1)


async def test_an_answer_that_nobody_takes_ends_in_time(lambdas: Lambdas, cloud: CloudFormation) -> None:
    cloud.statuses = [0] * 50
    assert await lambdas.invoke("migration", cloud.event("Delete")) is None, "it was not killed for being late"
    assert cloud.asked >= 1


async def test_killed_in_the_middle_it_is_completed_by_the_next_try(lambdas: Lambdas, cloud: CloudFormation, name: str, stores: Stores) -> None:
    await lambdas.warm(["migration"])
    (pid,) = lambdas.pids()["migration"]
    client: Any = MongoClient(stores.mongodb_uri)
    with client:
        running = asyncio.create_task(lambdas.invoke("migration", cloud.event(SecretId="mongodb", Database=name)))
        await asyncio.to_thread(wait_until, "a first collection", client[name].list_collection_names, 20, 0.001)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(FunctionError):
            await running
        assert cloud.taken == []
        answer = await said(lambdas, cloud, SecretId="mongodb", Database=name)  # Lambda tries an asynchronous event twice more
        assert answer["Status"] == "SUCCESS"
        assert "create collection accounts" not in answer["Data"]["Done"]
        assert (await said(lambdas, cloud, "Update", SecretId="mongodb", Database=name))["Data"] == {"Done": "nothing was missing"}


# --- the answer by itself


def test_a_long_answer_is_cut_to_what_cloudformation_takes(cloud: CloudFormation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDFORMATION", "http://127.0.0.1")
    custom_resource.put(cloud.event(), Answer({"Done": "x" * 10_000, "More": "y" * 10_000}), 5)
    custom_resource.put(cloud.event(), Answer(refusal="z" * 10_000), 5)
    assert [each["Status"] for each in cloud.taken] == ["SUCCESS", "FAILED"]


@pytest.mark.parametrize("url", ["", None, "ftp://host/x", "https:///x", "file:///etc/passwd"])
def test_only_https_is_answered(cloud: CloudFormation, url: str | None) -> None:
    with pytest.raises(NotAnswered, match="not an https"):
        custom_resource.put(cloud.event() | {"ResponseURL": url}, Answer(), 5)
    with pytest.raises(NotAnswered, match="not an https"):
        custom_resource.put(cloud.event(), Answer(), 5)
    assert cloud.asked == 0


def test_over_tls_the_certificate_counts(cloud: CloudFormation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.chain, made.key)
    cloud.socket = context.wrap_socket(cloud.socket, server_side=True)
    event = cloud.event()
    event["ResponseURL"] = event["ResponseURL"].replace("http:", "https:")
    with pytest.raises(NotAnswered, match="SSLCertVerificationError"):
        custom_resource.put(event, Answer(), 1)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
    custom_resource.put(event, Answer(), 10)
    assert cloud.taken[0]["Status"] == "SUCCESS"


# --- what it is not


def test_no_route_leads_to_it_and_a_cold_start_loads_nothing_heavy() -> None:
    assert MIGRATION.name not in {function.name for function in FUNCTIONS}
    loaded = {module.partition(".")[0] for module in loaded_by("import functions.migration.handler")["modules"]}
    assert not {"pymongo", "bson", "boto3", "botocore", "redis", "aws_lambda_powertools", "jwt", "cryptography"} & loaded
    assert loaded & {"heliograph", "adapters", "functions"} <= OURS
