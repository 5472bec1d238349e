"""What the deployment rehearsal decides by itself; `make deploy-rehearsal` runs it."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from functions.routes import FUNCTIONS, Function, Http
from infra.rehearsal import assembly, differences, drift, inventory, stand_ins, tools
from infra.rehearsal.drift import Deployed
from infra.rehearsal.record import RehearsalError
from tests.infra.conftest import ROOT, Synthesised

ROUTE = "GET /v1/rooms"


@pytest.fixture
def copy(synthesised: Synthesised, tmp_path: Path) -> Path:
    """A cloud assembly that may be changed."""
    return Path(shutil.copytree(synthesised.folder, tmp_path / "cdk.out"))


# --- the route table against what is deployed


def test_routes_that_are_deployed_as_the_table_says_are_no_drift() -> None:
    wanted = drift.expected(FUNCTIONS)
    assert wanted[ROUTE] == Deployed("functions.rooms.handler.handler", True)
    assert wanted["$connect"] == Deployed("functions.ws_connect.handler.handler", True)
    assert wanted["hello"].is_guarded is False
    assert drift.drift(wanted, dict(wanted)) == []


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (None, f"{ROUTE} stands in functions/routes.py and is not deployed."),
        (
            Deployed("functions.tokens.handler.handler", True),
            f"{ROUTE} is answered by functions.tokens.handler.handler instead of functions.rooms.handler.handler.",
        ),
        (Deployed("", True), f"{ROUTE} is answered by no function of ours instead of functions.rooms.handler.handler."),
        (Deployed("functions.rooms.handler.handler", False), f"{ROUTE} has no authorizer."),
    ],
)
def test_a_route_that_is_missing_or_other_is_drift(found: Deployed | None, sentence: str) -> None:
    wanted = drift.expected(FUNCTIONS)
    others = {key: route for key, route in wanted.items() if key != ROUTE}
    assert drift.drift(wanted, others if found is None else others | {ROUTE: found}) == [sentence]


def test_a_route_that_the_table_does_not_have_is_drift_too() -> None:
    wanted = drift.expected(FUNCTIONS)
    surplus = (*FUNCTIONS, Function("extra", "Surplus.", (Http("GET", "/v1/extra", "Surplus.", None),), ()))
    assert drift.drift(wanted, drift.expected(surplus)) == ["GET /v1/extra is deployed and does not stand in functions/routes.py."]


# --- what a stand-in refuses


def test_what_is_taken_out_is_told_and_the_rest_stays(copy: Path) -> None:
    before = assembly.types(copy)
    kind = "AWS::ApiGatewayV2::RouteResponse"
    assert assembly.take_out(copy, kind, "NoSuchProperty") == []
    gone = assembly.take_out(copy, kind, "RouteResponseKey")
    after = assembly.types(copy)
    assert len(gone) == before[kind] > 0
    assert after == before - Counter({kind: before[kind]})
    assert assembly.take_out(copy, kind) == []


def test_a_changed_template_is_published_under_the_hash_of_what_it_holds(copy: Path) -> None:
    """The CLI skips an asset whose name it finds in the bucket."""
    import hashlib

    assembly.take_out(copy, "AWS::ApiGatewayV2::RouteResponse")
    for stack in assembly.templates(copy):
        name = f"{stack}.template.json"
        keys = [key for key, asset in json.loads((copy / f"{stack}.assets.json").read_text())["files"].items() if asset["source"]["path"] == name]
        if stack.endswith("-api"):
            assert keys == [hashlib.sha256((copy / name).read_bytes()).hexdigest()]
        assert f"/{keys[0]}.json" in (copy / "manifest.json").read_text()


def test_a_secret_gets_its_value_in_the_template(copy: Path) -> None:
    (where,) = assembly.put_secret(copy, "heliograph/test/mongodb", "a text")
    stack, _, logical_id = where.partition("/")
    assert assembly.templates(copy)[stack]["Resources"][logical_id]["Properties"]["SecretString"] == "a text"
    assert assembly.put_secret(copy, "heliograph/test/nobody", "a text") == []


def test_functions_are_named_instead_of_their_aliases(copy: Path) -> None:
    assert assembly.name_functions(copy) > len(FUNCTIONS)
    assert assembly.name_functions(copy) == 0


def test_references_to_what_will_not_exist_are_written_out(copy: Path) -> None:
    assert assembly.write_out_references(copy, lambda kind, attribute: True) == {}
    written = assembly.write_out_references(
        copy, lambda kind, attribute: kind != "AWS::SecretsManager::Secret" and (kind, attribute) != ("AWS::KMS::Key", "Arn")
    )
    assert set(written) == {"AWS::SecretsManager::Secret", "AWS::KMS::Key"}
    outputs = json.dumps([template.get("Outputs") for template in assembly.templates(copy).values()])
    assert '"Value": "heliograph/test/mongodb"' in outputs


def test_termination_protection_is_dropped_where_it_was(copy: Path) -> None:
    had = assembly.drop_termination_protection(copy)
    assert had
    assert all(name.endswith("-state") for name in had)
    assert assembly.drop_termination_protection(copy) == []


def test_what_was_answered_complete_and_does_not_exist_is_listed() -> None:
    wanted = Counter({"AWS::S3::Bucket": 2, "AWS::SQS::Queue": 4, "AWS::CDK::Metadata": 1, "AWS::New::Thing": 1})
    rows = inventory.compare(wanted, {"AWS::S3::Bucket": 1, "AWS::SQS::Queue": 0}, {"AWS::S3::Bucket": 3, "AWS::SQS::Queue": 3})
    assert inventory.not_made(rows) == ["AWS::SQS::Queue"]
    assert inventory.not_asked(rows) == ["AWS::New::Thing"]


# --- the machinery


@pytest.fixture
def everywhere() -> Iterator[int]:
    """A port that listens on every interface."""
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen(1)
        yield listening.getsockname()[1]


def test_a_stand_in_that_answers_the_network_is_refused(everywhere: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
    with pytest.raises(RehearsalError, match="must be on loopback only"):
        stand_ins.must_be_on_loopback(everywhere)


def test_a_stand_in_on_loopback_is_taken() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(1)
        stand_ins.must_be_on_loopback(listening.getsockname()[1])


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(RehearsalError, match="did not end within 1 s"):
        tools.run(["/bin/sh", "-c", "echo begun; sleep 60 & wait"], log, timeout_s=1)
    assert log.read_text() == "begun\n"


def test_no_command_sees_a_real_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    monkeypatch.setenv("HELIOGRAPH_REDIS_URL", "redis://production")
    cdk = tools.Cdk(Path("cdk"), tmp_path / "x", "http://127.0.0.1:1", "000000000000", "eu-west-1")
    seen = cdk.environment
    assert "AWS_PROFILE" not in seen
    assert "HELIOGRAPH_REDIS_URL" not in seen
    assert (seen["AWS_ENDPOINT_URL"], seen["AWS_ACCESS_KEY_ID"], seen["AWS_SHARED_CREDENTIALS_FILE"]) == ("http://127.0.0.1:1", "test", "/dev/null")
    assert Path(seen["CDK_HOME"]).is_relative_to(tmp_path)


def _pins(path: Path) -> dict[str, str]:
    """Package -> version."""
    lines = (line.partition("==") for line in path.read_text().split() if "==" in line)
    return {name.lower().replace("_", "-"): version for name, _, version in lines}


def test_ministacks_lambdas_import_the_versions_that_the_layer_has() -> None:
    """All but what MiniStack pins for itself; boto3 and botocore are Lambda's own anyway."""
    theirs, ours = _pins(tools.MINISTACK_LOCK), _pins(ROOT / "constraints.txt")
    own = {"boto3", "botocore", "s3transfer", "graphql-core"}
    assert {"pymongo", "redis", "pyjwt", "argon2-cffi", "aws-lambda-powertools", "firebase-admin"} <= theirs.keys() & ours.keys()
    both = theirs.keys() & ours.keys() - own
    assert {name: theirs[name] for name in both} == {name: ours[name] for name in both}


def test_every_known_difference_is_a_test_and_stands_on_the_page() -> None:
    source = "".join((ROOT / suite).read_text() for suite in differences.SUITES)
    tests = set(re.findall(r"def (test_\w+)", source))
    assert differences.DIFFERENCES.keys() | differences.NOT_ASKED.keys() <= tests
    assert not differences.DIFFERENCES.keys() & differences.NOT_ASKED.keys()
    page = (ROOT / "docs/deploy-rehearsal.md").read_text()
    assert [said for said in differences.DIFFERENCES.values() if said not in page] == []


def test_a_failing_test_that_nobody_named_is_a_new_difference() -> None:
    row = {"test": "tests/contract/test_x.py::test_a_frame_above_32_kb_closes_with_1009", "passed": False, "aws": "Quotas.", "said": "no"}
    new = replace_test(row, "test_new[a-b]")
    assert differences.unknown([row, new, new | {"passed": True}]) == [new["test"]]
    table = differences.table([row | {"passed": True}], [row])
    assert table == [
        {
            "test": "test_a_frame_above_32_kb_closes_with_1009",
            "aws_documents": "Quotas.",
            "local": "as AWS",
            "ministack": "A frame of more than 32 KB passes.",
            "said": "no",
        }
    ]


def replace_test(row: dict[str, object], name: str) -> dict[str, object]:
    return row | {"test": f"tests/contract/test_x.py::{name}"}


def test_the_lock_of_the_command_line_pins_what_its_package_names() -> None:
    package, lock = (json.loads((tools.CDK_FOLDER / name).read_text()) for name in ("package.json", "package-lock.json"))
    assert lock["packages"][""]["devDependencies"] == package["devDependencies"]
    assert lock["packages"]["node_modules/aws-cdk"]["version"] == package["devDependencies"]["aws-cdk"]
