"""The operator's command, as a process, on the running product."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from adapters.ledger_mongo import Ledger
from tests.conftest import Stores
from tests.running import ROOT, RunningStack


def admin(*argv: str, environment: dict[str, str], stdin: str = "") -> tuple[int, str, str]:
    ended = subprocess.run([sys.executable, "-m", "admin", *argv], cwd=ROOT, env=os.environ | environment, input=stdin, capture_output=True, text=True)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture
def mongo(stores: Stores) -> dict[str, str]:
    return {"HELIOGRAPH_MONGODB_URI": stores.mongodb_uri}


def test_migrating_says_what_there_is_and_may_be_repeated(mongo: dict[str, str]) -> None:
    first, second = (admin("migrate", environment=mongo) for _ in range(2))
    assert first == second
    assert "room_events" in json.loads(first[1])["migrated"]


def test_a_broken_chain_is_an_exit_code_and_a_whole_one_is_not(mongo: dict[str, str], database: Any, tenant_id: str) -> None:
    for number in range(3):
        Ledger(database).record(tenant_id, number, "test", "me", "it", {"n": number})
    code, out, _ = admin("verify", "--tenant", tenant_id, environment=mongo)
    assert (code, json.loads(out)["entries"], json.loads(out)["first_broken"]) == (0, 3, None)
    database.ledger.update_one({"tenant_id": tenant_id, "seq": 2}, {"$set": {"actor": "somebody else"}})
    code, out, _ = admin("verify", "--tenant", tenant_id, environment=mongo)
    assert (code, json.loads(out)["first_broken"]) == (1, 2)


def test_an_account_is_made_once_and_with_a_password_worth_the_name(mongo: dict[str, str], tenant_id: str) -> None:
    argv = ("add-account", "--tenant", tenant_id, "--login", "ana", "--role", "admin")
    code, _, err = admin(*argv, environment=mongo, stdin="short\n")
    assert (code, err) == (1, "A password has at least 12 characters.\n")
    code, out, _ = admin(*argv, environment=mongo, stdin="long enough for us\n")
    assert (code, json.loads(out)["role"]) == (0, "admin")
    assert admin(*argv, environment=mongo, stdin="long enough for us\n")[0] == 1


def test_without_a_place_to_find_mongodb_it_says_what_to_name() -> None:
    code, _, err = admin("migrate", environment={"HELIOGRAPH_MONGODB_URI": ""})
    assert code == 1
    assert "--mongodb-secret" in err


def test_dead_letters_go_back_to_their_queue(stack: RunningStack) -> None:
    from adapters import aws_json

    endpoints = stack.endpoints()
    environment = {
        "AWS_REGION": endpoints["aws"]["region"],
        "AWS_ACCESS_KEY_ID": endpoints["aws"]["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": endpoints["aws"]["secret_access_key"],
        "AWS_ENDPOINT_URL_SQS": endpoints["sqs_url"],
    }
    dead = endpoints["dead_letter_queue_url"]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        for number in range(3):
            aws_json.call("sqs", "AmazonSQS.SendMessage", {"QueueUrl": dead, "MessageBody": json.dumps({"number": number})})
        other = dead.replace("notifications-dead", "timers-dead")
        code, out, err = admin("redrive", "--dead-letter-queue-url", dead, "--queue-url", other, environment=environment)
        assert (code, json.loads(out or "{}")) == (0, {"moved": 3}), err
        assert aws_json.call("sqs", "AmazonSQS.ReceiveMessage", {"QueueUrl": other, "MaxNumberOfMessages": 10})["Messages"]
        assert not aws_json.call("sqs", "AmazonSQS.ReceiveMessage", {"QueueUrl": dead}).get("Messages")
