"""The operator's command, as a process, on the running product."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from adapters import aws_json
from adapters.ledger_mongo import Ledger
from adapters.secrets_aws import read_secret_now
from adapters.usage_mongo import RelayUsage
from tests.conftest import Stores
from tests.contract.test_usage_mongo import BEGUN_MS, record
from tests.integration.test_sessions_stack import Sessions, closing, own_stack, person_of
from tests.running import ROOT, RunningStack


def admin(*argv: str, environment: dict[str, str], stdin: str = "") -> tuple[int, str, str]:
    ended = subprocess.run([sys.executable, "-m", "admin", *argv], cwd=ROOT, env=os.environ | environment, input=stdin, capture_output=True, text=True)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture
def mongo(stores: Stores) -> dict[str, str]:
    return {"HELIOGRAPH_MONGODB_URI": stores.mongodb_uri}


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


def test_usage_of_relays_is_summed_by_account_and_what_was_only_logged_can_be_put_back(
    mongo: dict[str, str], database: Any, tenant_id: str, tmp_path: Path
) -> None:
    RelayUsage(database).put([record(tenant_id, "a", 3)])
    lost = record(tenant_id, "b", 4, account_id="acc_2", ended_at_ms=BEGUN_MS + 60_000)
    lines = ["2030-03-17T18:46:40 relay/1 " + json.dumps({"at_ms": 1, "event": "usage_not_stored", "why": "no room", **lost}), '{"event": "allocation_ended"}']
    file = tmp_path / "lines.txt"
    file.write_text("\n".join(lines))
    for _ in range(2):
        code, out, err = admin("restore-relay-usage", "--lines", str(file), environment=mongo)
        assert (code, json.loads(out or "{}")) == (0, {"restored": 1}), err
    asked = ("relay-usage", "--tenant", tenant_id, "--since", "2030-03-17")
    code, out, err = admin(*asked, "--until", "2030-03-18", environment=mongo)
    assert (code, err) == (0, "")
    assert [(each["account_id"], each["from_client_packets"]) for each in json.loads(out)["accounts"]] == [("acc_2", 4), ("acc_1", 3)]
    assert json.loads(admin(*asked, "--until", "2030-03-17", environment=mongo)[1])["accounts"] == []
    assert len(json.loads(admin(*asked, "--until", "2030-03-18", "--account", "acc_1", environment=mongo)[1])["accounts"]) == 1


def test_records_that_no_relay_wrote_are_refused_and_a_day_that_is_none(mongo: dict[str, str], tenant_id: str, tmp_path: Path) -> None:
    whole, file = record(tenant_id, "a", 1), tmp_path / "lines.txt"
    lacking = {name: value for name, value in whole.items() if name != "device_id"}
    for broken, sentence in ((whole | {"node_id": 7}, "The ledger refuses 1 of these records"), (lacking, "One of these records has no device_id.")):
        file.write_text(json.dumps({"event": "usage_not_stored", **broken}))
        code, _, err = admin("restore-relay-usage", "--lines", str(file), environment=mongo)
        assert (code, err.startswith(sentence)) == (1, True), err
    assert admin("restore-relay-usage", "--lines", str(tmp_path / "none.txt"), environment=mongo)[0] == 1
    assert admin("relay-usage", "--tenant", tenant_id, "--since", "yesterday", environment=mongo)[0] == 2


def test_without_a_place_to_find_mongodb_it_says_what_to_name() -> None:
    code, _, err = admin("migrate", environment={"HELIOGRAPH_MONGODB_URI": ""})
    assert code == 1
    assert "--mongodb-secret" in err


def test_dead_letters_go_back_to_their_queue(stack: RunningStack) -> None:
    dead = stack.endpoints()["dead_letter_queue_url"]
    with aws_of(stack) as environment:
        for number in range(3):
            aws_json.call("sqs", "AmazonSQS.SendMessage", {"QueueUrl": dead, "MessageBody": json.dumps({"number": number})})
        other = dead.replace("notifications-dead", "timers-dead")
        code, out, err = admin("redrive", "--dead-letter-queue-url", dead, "--queue-url", other, environment=environment)
        assert (code, json.loads(out or "{}")) == (0, {"moved": 3}), err
        assert aws_json.call("sqs", "AmazonSQS.ReceiveMessage", {"QueueUrl": other, "MaxNumberOfMessages": 10})["Messages"]
        assert not aws_json.call("sqs", "AmazonSQS.ReceiveMessage", {"QueueUrl": dead}).get("Messages")


@contextmanager
def aws_of(stack: RunningStack) -> Iterator[dict[str, str]]:
    """The environment in which AWS and MongoDB are the stack's, for the command and for this process."""
    endpoints = stack.endpoints()
    environment = {
        "AWS_REGION": endpoints["aws"]["region"],
        "AWS_ACCESS_KEY_ID": endpoints["aws"]["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": endpoints["aws"]["secret_access_key"],
        "AWS_ENDPOINT_URL_SQS": endpoints["sqs_url"],
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": endpoints["secrets_manager_url"],
        "HELIOGRAPH_MONGODB_URI": endpoints["mongodb_uri"],
    }
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        yield environment


async def test_an_operator_signs_a_device_out_and_its_socket_is_closed(stack: RunningStack) -> None:
    async with aiohttp.ClientSession() as http:
        wire = Sessions(stack, http)
        one, two = person_of(await wire.pair("mallory")), person_of(await wire.pair("mallory"))
        queue_url = stack.endpoints()["notifications_queue_url"].replace("notifications", "timers")
        argv = ("revoke", "--tenant", "globex", "--timers-queue-url", queue_url, "--account", one.account_id, "--device", one.device_id)
        async with wire.greeted(one) as ws:
            with aws_of(stack) as environment:
                code, out, err = await asyncio.to_thread(admin, *argv, environment=environment)
            assert (code, json.loads(out or "{}")) == (0, {"tenant_id": "globex", "queued": 1}), err
            assert await closing(ws) == "signed_out"
        assert (await wire.rest("GET", "/v1/rooms", headers=one.headers))[1]["code"] == "token_invalid"
        assert (await wire.rest("GET", "/v1/rooms", headers=two.headers))[0] == 200


async def test_an_operator_signs_a_whole_tenant_out(tmp_path: Path) -> None:
    async with own_stack(tmp_path) as wire:
        people = [person_of(await wire.pair(login)) for login in ("ana", "ben", "mallory")]
        queue_url = wire.endpoints["notifications_queue_url"].replace("notifications", "timers")
        with aws_of(wire.stack) as environment:
            code, out, err = await asyncio.to_thread(admin, "revoke", "--tenant", "acme", "--timers-queue-url", queue_url, "--all", environment=environment)
        assert (code, json.loads(out or "{}").get("queued")) == (0, 2), err
        async with asyncio.timeout(30):
            while (await wire.rest("GET", "/v1/rooms", headers=people[1].headers))[0] == 200:  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(0.1)
        codes = [(await wire.rest("GET", "/v1/rooms", headers=person.headers))[0] for person in people]
        assert codes == [401, 401, 200], "the other tenant is not touched"


async def test_keys_rotate_without_signing_anybody_out(tmp_path: Path) -> None:
    async with own_stack(tmp_path) as wire:
        ana = person_of(await wire.pair("ana"))
        with aws_of(wire.stack) as environment:
            code, out, err = await asyncio.to_thread(admin, "rotate-keys", "--token-keys-secret", "heliograph/token-keys", environment=environment)
            assert code == 0, err
            keys = read_secret_now("heliograph/token-keys")
        assert json.loads(out) == {"current": keys["current"]["kid"], "previous": keys["previous"]["kid"]}
        assert (await wire.rest("GET", "/v1/rooms", headers=ana.headers))[0] == 200, "signed by the previous key"
        claims = jwt.decode(ana.token, options={"verify_signature": False})
        headers = {"kid": keys["current"]["kid"], "typ": "at+jwt"}
        fresh = jwt.encode(claims, keys["current"]["private_pem"], algorithm="ES256", headers=headers)
        forged = jwt.encode(claims, keys["current"]["private_pem"], algorithm="ES256", headers=headers | {"kid": "k-unknown"})
        async with asyncio.timeout(20):
            while (await wire.rest("GET", "/v1/rooms", headers={"Authorization": f"Bearer {fresh}"}))[0] != 200:  # noqa: ASYNC110 - another process does it
                await asyncio.sleep(0.5)  # a function asks for keys that it does not know at most once in five seconds
        assert (await wire.rest("GET", "/v1/rooms", headers={"Authorization": f"Bearer {forged}"}))[0] == 401


def test_an_empty_secret_gets_its_first_key_and_previous_keys_can_be_forgotten(stack: RunningStack) -> None:
    with aws_of(stack) as environment:
        aws_json.call("secretsmanager", "secretsmanager.CreateSecret", {"Name": "empty", "ClientRequestToken": "0" * 32})
        first, second, third = (
            json.loads(admin("rotate-keys", "--token-keys-secret", "empty", *flag, environment=environment)[1]) for flag in ((), (), ("--forget-previous",))
        )
    assert (first["previous"], second["previous"], third["previous"]) == (None, first["current"], None)


def test_a_shared_secret_is_changed_keeps_its_previous_text_until_that_is_forgotten_and_is_not_said(stack: RunningStack) -> None:
    with aws_of(stack) as environment:
        text = json.dumps({"current": "old", "previous": None})
        aws_json.call("secretsmanager", "secretsmanager.CreateSecret", {"Name": "shared", "SecretString": text, "ClientRequestToken": "1" * 32})
        code, out, err = admin("rotate-secret", "--secret", "shared", environment=environment)
        rotated = read_secret_now("shared")
        assert (code, rotated["previous"], json.loads(out)["previous"]) == (0, "old", "kept"), err
        assert len(rotated["current"]) >= 48
        assert rotated["current"] not in out + err
        version = aws_json.call("secretsmanager", "secretsmanager.GetSecretValue", {"SecretId": "shared", "VersionId": json.loads(out)["version"]})
        assert json.loads(version["SecretString"]) == rotated
        code, out, err = admin("rotate-secret", "--secret", "shared", "--forget-previous", environment=environment)
        assert (code, json.loads(out)["previous"]) == (0, "forgotten"), err
        assert read_secret_now("shared") == {"current": rotated["current"], "previous": None}


def test_a_secret_of_another_form_is_not_touched(stack: RunningStack) -> None:
    with aws_of(stack) as environment:
        before = read_secret_now("heliograph/token-keys")
        code, out, err = admin("rotate-secret", "--secret", "heliograph/token-keys", environment=environment)
        assert (code, out, err) == (1, "", "heliograph/token-keys is not a secret {current, previous} of two texts.\n")
        assert read_secret_now("heliograph/token-keys") == before
