"""The migration stands between what is kept and what answers, may read one secret, and runs when the table of collections changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters import migrations_mongo
from tests.infra.conftest import CONTEXT, ROOT, Synthesised, synthesise


@pytest.fixture(scope="session")
def resources(synthesised: Synthesised) -> dict[str, Any]:
    return resources_in(synthesised.folder)


def resources_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "heliograph-test-migration.template.json").read_text())["Resources"]
    return found


def one(resources: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = [resource for resource in resources.values() if resource["Type"] == kind]
    properties: dict[str, Any] = found["Properties"]
    return properties


def test_it_runs_again_when_the_table_changed_and_only_then(resources: dict[str, Any]) -> None:
    asked = one(resources, "Custom::HeliographMigration")
    assert asked["Table"] == migrations_mongo.fingerprint()
    assert asked["Database"] == "heliograph"
    assert "mongodb" in json.dumps(asked["SecretId"])
    assert set(asked) == {"ServiceToken", "ServiceTimeout", "SecretId", "Database", "Table"}


def test_its_name_is_the_one_that_the_operations_page_skips(resources: dict[str, Any]) -> None:
    assert resources["Ledger"]["Type"] == "Custom::HeliographMigration"
    assert "--stack-name heliograph-prod-migration --resources-to-skip Ledger" in (ROOT / "docs/operations.md").read_text()


def test_cloudformation_waits_longer_than_the_function_may_take(resources: dict[str, Any]) -> None:
    function, asked = one(resources, "AWS::Lambda::Function"), one(resources, "Custom::HeliographMigration")
    assert function["Timeout"] == 900
    assert int(asked["ServiceTimeout"]) > function["Timeout"]
    assert function["Handler"] == "functions.migration.handler.handler"
    assert "Environment" not in function, "the event says all: no setting of the functions reaches it"


def test_functions_change_only_after_it(synthesised: Synthesised) -> None:
    artifacts = json.loads((synthesised.folder / "manifest.json").read_text())["artifacts"]
    assert "heliograph-test-migration" in artifacts["heliograph-test-api"]["dependencies"]
    assert {"heliograph-test-state", "heliograph-test-network"} <= set(artifacts["heliograph-test-migration"]["dependencies"])


def test_its_role_reads_one_secret_and_writes_its_log(resources: dict[str, Any]) -> None:
    (policy,) = one(resources, "AWS::IAM::Role")["Policies"]
    allowed = [item for item in policy["PolicyDocument"]["Statement"] if item["Effect"] == "Allow"]
    named = {action: item["Resource"] for item in allowed for action in ([item["Action"]] if isinstance(item["Action"], str) else item["Action"])}
    assert {action for action, resource in named.items() if resource != "*"} == {"secretsmanager:GetSecretValue", "logs:CreateLogStream", "logs:PutLogEvents"}
    assert {action.partition(":")[0] for action, resource in named.items() if resource == "*"} == {"xray", "ec2"}
    assert not [resource for resource in resources.values() if resource["Type"] in ("AWS::IAM::Policy", "AWS::IAM::ManagedPolicy")]


def test_it_stands_where_the_functions_stand(resources: dict[str, Any], tmp_path: Path) -> None:
    assert one(resources, "AWS::Lambda::Function")["VpcConfig"]["Ipv6AllowedForDualStack"] is True
    synthesise(tmp_path, CONTEXT | {"heliograph:vpc": "false"})
    outside = resources_in(tmp_path)
    assert "VpcConfig" not in one(outside, "AWS::Lambda::Function")
    assert "ec2:" not in json.dumps(outside)
