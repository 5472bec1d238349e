"""`make deploy-rehearsal` as CI runs it: the CDK's own command line, two stand-ins for AWS, real requests to what was deployed."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN_S = 900  # a tenth of that on an idle machine
pytestmark = [
    pytest.mark.timeout(RUN_S + 60),
    pytest.mark.skipif(find_spec("aws_cdk") is None, reason="`make e2e` installs the CDK; here it is not installed"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the rehearsal wrote; its tools stay in build/ for the next time."""
    out = tmp_path_factory.mktemp("rehearsal") / "rehearsal.json"
    ended = subprocess.run(
        [sys.executable, "-m", "infra.rehearsal", "--out", str(out)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_S,
    )
    print(ended.stdout)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_both_stand_ins_held(report: dict[str, Any]) -> None:
    assert report["ok"]
    assert report["failures"] == []
    for name in ("moto", "ministack"):
        steps = [step["name"] for step in report[name]["steps"]]
        assert [step for step in ("cdk bootstrap", "cdk synth", "cdk deploy", "cdk deploy again: no change", "cdk destroy") if step not in steps] == []


def test_what_moto_skips_is_listed_and_not_claimed(report: dict[str, Any]) -> None:
    """moto answers CREATE_COMPLETE for APIs and secrets and makes none."""
    moto = report["moto"]
    assert {"AWS::ApiGatewayV2::Api", "AWS::SecretsManager::Secret"} <= set(moto["not_created"])
    rows = moto["resources"]
    assert rows["AWS::Lambda::Function"]["made"] == rows["AWS::Lambda::Function"]["in_templates"]
    assert rows["AWS::SQS::Queue"]["made"] == rows["AWS::SQS::Queue"]["in_templates"]


def test_on_ministack_everything_exists_and_answers(report: dict[str, Any]) -> None:
    ministack = report["ministack"]
    assert ministack["not_created"] == []
    assert ministack["routes"]["drift"] == []
    assert ministack["routes"]["deployed"] == ministack["routes"]["in_table"]
    steps = [step["name"] for step in ministack["steps"] if step["ok"]]
    for asked in ("POST /v1/tokens", "POST /v1/tickets", "$connect", "hello", "offer", "message", "POST /v1/media,", "POST /v1/media/{media_id}/links"):
        assert any(step.startswith(asked) for step in steps), asked
    contract = ministack["contract"]
    assert contract["passed"] > 20
    assert all(row["aws_documents"] for row in contract["table"])


def test_only_what_the_templates_keep_stays(report: dict[str, Any]) -> None:
    ministack = report["ministack"]
    assert ministack["stays_otherwise"] == {}
    assert ministack["stays_after_destroy"]["AWS::SecretsManager::Secret"] >= 4
