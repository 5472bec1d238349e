"""The rehearsal on MiniStack: the deployed APIs and functions answer real requests, with a real Redis and a server that speaks MongoDB's protocol."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from functions.routes import FUNCTIONS
from infra.rehearsal import assembly, conversation, differences, drift, inventory, stand_ins, steps, tools
from infra.rehearsal.record import Record, RehearsalError
from local import service_aws, service_mongo, service_redis
from local.services import choose_ports
from local.supervisor import Supervisor

METRIC_MATH: Final = "AWS::CloudWatch::Alarm with Metrics"  # a type, or a type with a property
# What its CloudFormation does not know; nothing refers to it. A template with an unknown type is refused as a whole.
REFUSED: Final = {
    "AWS::ApiGatewayV2::RouteResponse": "MiniStack answers with the function's body whether a route has a route response or not.",
    "AWS::Budgets::Budget": "MiniStack has no budgets.",
    METRIC_MATH: "MiniStack has alarms on one metric only.",
}
TENANT: Final = "acme"
PREFIX: Final = f"heliograph/{tools.STAGE}"
CONNECTIONS: Final = "HELIOGRAPH_CONNECTIONS_URL"
APIS: Final = (f"heliograph-{tools.STAGE}-http", f"heliograph-{tools.STAGE}-socket")
STATE: Final = f"heliograph-{tools.STAGE}-state"
_PORTS: Final = ("ministack", "redis", "mongo", "probe")


async def rehearse(record: Record, supervisor: Supervisor, folder: Path, environ: dict[str, str]) -> dict[str, str]:
    """Everything in order; answers the versions that ran."""
    own, ports = folder / "ministack", choose_ports(_PORTS, {})
    endpoint_url = stand_ins.ministack_url(ports["ministack"])
    with record.step("install the CDK's command line and MiniStack"):
        cdk = await asyncio.to_thread(steps.cdk_for, folder, "ministack", endpoint_url, stand_ins.MINISTACK_ACCOUNT)
        programs = await asyncio.to_thread(tools.install_ministack, folder / "tools")
    with record.step("start MiniStack, Redis and SecantusDB, all on loopback"):
        binary = service_redis.resolve({name: value for name, value in environ.items() if name == "HELIOGRAPH_REDIS_SERVER"}).binary
        assert binary is not None
        await asyncio.to_thread(shutil.rmtree, own / "mongo", ignore_errors=True)  # an earlier rehearsal's ledger
        await asyncio.gather(
            supervisor.start(stand_ins.ministack(programs, ports["ministack"], own)),
            supervisor.start(service_redis.child(binary, ports["redis"], own / "redis")),
            supervisor.start(service_mongo.child(ports["mongo"], own / "mongo")),
        )
        stand_ins.must_be_on_loopback(ports["ministack"])
    settings = _settings(ports)
    asker = stand_ins.Asker(endpoint_url)
    mongodb_uri = service_mongo.uri(ports["mongo"])
    deployment = steps.Deployment(record, cdk, asker, settings, lambda assembled: _adapt(assembled, mongodb_uri))
    await deployment.bootstrap()
    await deployment.deploy()
    for kind in record.findings["not_created"]:
        record.require(False, f"{kind} was answered CREATE_COMPLETE and does not exist.")
    _compare_routes(record, asker)
    with record.step("secrets put, ledger migrated, accounts added: as an operator does") as step:
        people = await asyncio.to_thread(_prepare, record, cdk, asker, mongodb_uri)
        step["note"] = f"{len(people)} accounts"
    with record.step("the callback API's address given to the functions") as step:
        rest_url, socket_url = await asyncio.to_thread(_point, record, asker, endpoint_url)
        step["note"] = "MiniStack has no DNS name for it"
    await conversation.hold(record, rest_url, socket_url, *people)
    await _conform(record, own, endpoint_url, ports["probe"])
    await deployment.deploy_again(new_synth=True)
    await _refuse_to_destroy(record, cdk, asker, deployment.assembly)
    await deployment.destroy()
    for kind, found in record.findings.get("stays_otherwise", {}).items():
        record.require(False, f"after cdk destroy there are {found['stays']} {kind}, and the templates keep {found['templates_keep']}.")
    return steps.versions(cdk) | {"ministack": _locked("ministack")}


def _settings(ports: Mapping[str, int]) -> dict[str, str]:
    return {
        "stage": tools.STAGE,
        "bundle": "false",  # a layer is for Lambda's arm64 and Python 3.13; MiniStack runs a Lambda under its own interpreter, which has the dependencies
        "vpc": "false",
        "media": "none",
        "edge": "none",
        "redis_url": f"redis://127.0.0.1:{ports['redis']}",
        "turn_urls": "turn:127.0.0.1:3478?transport=udp",
    }


def _adapt(folder: Path, mongodb_uri: str) -> dict[str, Any]:
    """A secret without a value holds an empty text there, unlike AWS. So the ledger's has its value from the start, and the migration really runs."""
    gone = {refused: assembly.take_out(folder, *refused.split(" with ")) for refused in REFUSED}
    put = assembly.put_secret(folder, f"{PREFIX}/mongodb", json.dumps({"uri": mongodb_uri}))
    return {refused: {"why": REFUSED[refused], "resources": names} for refused, names in gone.items() if names} | {"mongodb_uri_put": put}


def _locked(name: str) -> str:
    found = re.search(rf"^{name}==(\S+)$", tools.MINISTACK_LOCK.read_text(), re.MULTILINE)
    return found[1] if found else ""


def _compare_routes(record: Record, asker: stand_ins.Asker) -> None:
    with record.step("deployed routes against functions/routes.py, both directions") as step:
        wanted, found = drift.expected(FUNCTIONS), drift.deployed(asker, APIS)
        sentences = drift.drift(wanted, found)
        for sentence in sentences:
            record.require(False, sentence)
        record.findings["routes"] = {"in_table": len(wanted), "deployed": len(found), "drift": sentences}
        step["note"] = f"{len(found)} routes"


def _prepare(record: Record, cdk: tools.Cdk, asker: stand_ins.Asker, mongodb_uri: str) -> list[conversation.Person]:
    """The three secrets that AWS cannot invent, then `python -m admin`, all with the words of the documentation."""
    values = service_aws.load_secrets(cdk.folder / "secrets.json", mongodb_uri=mongodb_uri, push_stub_url="http://127.0.0.1:9")
    for secret, name in (("token-keys", "token_keys"), ("mongodb", "mongodb"), ("fcm", "fcm")):
        asker.client("secretsmanager").put_secret_value(SecretId=f"{PREFIX}/{secret}", SecretString=json.dumps(values[name]))
    admin = [sys.executable, "-m", "admin", "--mongodb-secret", f"{PREFIX}/mongodb"]
    said = tools.must_run("python -m admin migrate", [*admin, "migrate"], cdk.folder / "admin-migrate.log", timeout_s=60, environment=cdk.environment)
    record.require('"done": []' in said, f"the deployment's own migration left something to do: {tools.last_line(said)}")
    people = [conversation.Person(TENANT, login, secrets.token_urlsafe(16)) for login in ("ana", "ben")]
    for person in people:
        command = [*admin, "add-account", "--tenant", person.tenant_id, "--login", person.login]
        log = cdk.folder / f"admin-{person.login}.log"
        tools.must_run("python -m admin add-account", command, log, timeout_s=60, environment=cdk.environment, given=person.password + "\n")
    return people


def _point(record: Record, asker: stand_ins.Asker, endpoint_url: str) -> tuple[str, str]:
    """URLs of both APIs here. On AWS the callback API has a name in DNS, which the stack composes; here every function is told its address instead."""
    ids = {api["Name"]: api["ApiId"] for api in inventory.items(asker, "apigatewayv2", "get_apis", "Items")}
    rest, socket = (f"{endpoint_url}/_aws/execute-api/{ids[name]}/{stage}" for name, stage in zip(APIS, ("$default", tools.STAGE), strict=True))
    functions, changed = asker.client("lambda"), []
    for function in inventory.items(asker, "lambda", "list_functions", "Functions"):
        variables = function.get("Environment", {}).get("Variables", {})
        if CONNECTIONS not in variables:
            continue
        name = function["FunctionName"]
        functions.update_function_configuration(FunctionName=name, Environment={"Variables": variables | {CONNECTIONS: socket}})
        for alias in inventory.items(asker, "lambda", "list_aliases", "Aliases", FunctionName=name):
            version = functions.publish_version(FunctionName=name)["Version"]
            functions.update_alias(FunctionName=name, Name=alias["Name"], FunctionVersion=version)
        changed.append(name)
    if not changed:
        raise RehearsalError(f"No deployed function has the setting {CONNECTIONS}.")
    record.findings["changed_after_deploy"] = {CONNECTIONS: f"{len(changed)} functions: MiniStack has no DNS name for the callback API."}
    return rest, socket.replace("http://", "ws://")


async def _conform(record: Record, folder: Path, endpoint_url: str, port: int) -> None:
    """The contract tests of the local gateway, on both gateways."""
    with record.step("the local gateway's contract tests, on the local gateway"):
        local = await asyncio.to_thread(differences.ask, folder, "contract-local", differences.SUITES, None, 0)
        record.require(
            bool(local) and all(row["passed"] for row in local), f"the contract tests fail on the local gateway (log: {folder / 'contract-local.log'})."
        )
    with record.step("the same contract tests, on MiniStack's gateway") as step:
        rows = await asyncio.to_thread(differences.ask, folder, "contract-ministack", differences.SUITES, endpoint_url, port)
        record.require(len(rows) == len(local), f"{len(rows)} of {len(local)} contract tests ran (log: {folder / 'contract-ministack.log'}).")
        if surprising := differences.unknown(rows):  # once more, alone: a busy machine is no difference
            again = await asyncio.to_thread(differences.ask, folder, "contract-again", surprising, endpoint_url, port)
            rows = [row for row in rows if row["test"] not in surprising] + again
        for test in differences.unknown(rows):
            record.require(False, f"{test} fails on MiniStack and infra/rehearsal/differences.py does not name it.")
        differing = {differences.name_of(row["test"]) for row in rows if not row["passed"]}
        record.findings["contract"] = {
            "passed": sum(row["passed"] for row in rows),
            "differ": sum(not row["passed"] for row in rows),
            "differences": [{"test": name, "ministack": differences.DIFFERENCES.get(name, "")} for name in sorted(differing)],
            "no_longer_seen": differences.vanished(rows),
            "not_asked": differences.NOT_ASKED,
            "table": differences.table(local, rows),
        }
        step["note"] = f"{sum(row['passed'] for row in rows)} as AWS documents, {sum(not row['passed'] for row in rows)} otherwise, all of them known"


async def _refuse_to_destroy(record: Record, cdk: tools.Cdk, asker: stand_ins.Asker, folder: Path) -> None:
    """The protected stack refuses; then the operator switches the protection off, as docs/operations says."""
    with record.step("cdk destroy is refused while the state is protected; protection switched off") as step:
        status, output = await asyncio.to_thread(cdk.destroy, "destroy-refused", folder)
        record.require(status != 0 and STATE in steps.stacks(asker), f"cdk destroy deleted {STATE} although it is protected.")
        step["note"] = tools.last_line(output)
        asker.client("cloudformation").update_termination_protection(StackName=STATE, EnableTerminationProtection=False)
