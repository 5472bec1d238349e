"""The fleet's image: what is uploaded is what the Dockerfile copies, pinned; who builds it may little; an image that is named is taken."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from packaging.requirements import Requirement

from infra.cdk.assets import digest
from infra.cdk.image import BUILD_TIMEOUT, BUILDER, DOCKERFILE, stage_context
from tests.infra.conftest import Synthesise
from tests.infra.presets import NAMED_IMAGE, ROOT, Presets, Template, text

LINES = [line for line in (ROOT / DOCKERFILE).read_text().replace("\\\n", " ").splitlines() if line and not line.startswith("#")]


def words(instruction: str) -> list[list[str]]:
    return [line.split()[1:] for line in LINES if line.split()[0] == instruction]


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", requirement).lower()


@pytest.fixture(scope="module")
def presets(deployed: Synthesise) -> Presets:
    return Presets(deployed)


def arns(template: Template, kind: str) -> set[str]:
    return {f"${{{logical}.Arn}}" for logical in template.of_type(kind)}


# What is built


def test_what_is_uploaded_is_what_the_dockerfile_copies_and_nothing_else(tmp_path: Path) -> None:
    copied = [source.rstrip("/") for line in words("COPY") if not line[0].startswith("--from") for source in line[:-1]]
    assert len(set(copied)) == len(copied)
    staged = [path.relative_to(tmp_path).as_posix() for path in stage_context(tmp_path).rglob("*") if path.is_file()]
    assert sorted({next((source for source in copied if name == source or name.startswith(f"{source}/")), name) for name in staged}) == sorted(
        {*copied}  # the Dockerfile itself is below media_fleet
    )
    assert DOCKERFILE in staged
    allowed = (ROOT / f"{DOCKERFILE}.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in allowed if line.startswith("!")} == set(copied)


def test_the_same_sources_are_the_same_upload(tmp_path: Path) -> None:
    assert digest(stage_context(tmp_path / "one")) == digest(stage_context(tmp_path / "two"))


def test_what_is_uploaded_runs_a_node(tmp_path: Path) -> None:
    """Nothing of ours is missing: every module that the image runs is imported from the upload alone."""
    stage_context(tmp_path)
    code = (
        "import media_fleet.__main__, media_fleet.node, media_fleet.public_address, adapters.secrets_aws, "
        "adapters.aws_credentials as last; print(last.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)


def test_what_is_uploaded_has_the_compiled_data_path_in_source_and_the_image_compiles_it(tmp_path: Path) -> None:
    stage_context(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "media_fleet.datapath.build", "--required"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "media_fleet/datapath/fast.so").is_file()
    assert any("media_fleet.datapath.build --required" in " ".join(line) for line in words("RUN"))


def test_every_library_of_the_image_is_pinned() -> None:
    pins = {name_of(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["fleet"]
    waiting, found = [Requirement(line) for line in wanted], set()
    while waiting:
        requirement = waiting.pop()
        if name_of(requirement.name) in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name_of(requirement.name))
        waiting += [Requirement(line) for line in distribution(requirement.name).requires or []]
    assert {"uvloop", "redis", "aiohttp", "yarl", "pymongo", "prometheus-client"} <= found
    assert found <= pins
    (install,) = [line for line in LINES if "install --only-binary" in line]
    assert "--constraint constraints.txt" in install


def test_the_image_is_two_stages_runs_as_nobody_and_needs_no_docker_hub() -> None:
    assert [line[0] for line in words("FROM")] == ["${BASE}", "${BASE}"]
    assert words("ARG")[0][0].startswith("BASE=public.ecr.aws/")
    assert words("USER") == [["10001:10001"]]
    assert LINES.index("USER 10001:10001") > LINES.index(next(line for line in LINES if line.startswith("COPY --from=build /app")))
    assert LINES[-1] == 'CMD ["python", "-m", "media_fleet", "node"]'
    assert not words("ADD")


# Who builds it


@pytest.mark.parametrize(("name", "kind", "tag"), [("dev", "ARM_CONTAINER", "arm64"), ("prod", "LINUX_CONTAINER", "x86_64")])
def test_codebuild_makes_it_on_the_relays_processor_under_a_tag_that_is_its_content(presets: Presets, name: str, kind: str, tag: str) -> None:
    media = presets[name]["media"]
    project, built = media.one("AWS::CodeBuild::Project"), media.one("Custom::HeliographFleetImage")
    assert (project["Environment"]["Type"], project["Environment"]["PrivilegedMode"]) == (kind, True)
    assert project["TimeoutInMinutes"] == BUILD_TIMEOUT.to_minutes()
    source = re.search(r"([0-9a-f]{64})\.zip$", text(project["Source"]["Location"]))
    assert source is not None
    assert built["Tag"] == f"{source[1][:32]}-{tag}"
    (container,) = media.one("AWS::ECS::TaskDefinition")["ContainerDefinitions"]
    assert text(container["Image"]).endswith(f":{built['Tag']}")
    (service,) = [resource for resource in media.resources.values() if resource["Type"] == "AWS::ECS::Service"]
    assert any(media.resources[name]["Type"] == "Custom::HeliographFleetImage" for name in service["DependsOn"])


def test_the_function_waits_longer_than_a_build_may_take_and_cloudformation_longer_still(presets: Presets) -> None:
    media = presets["dev"]["media"]
    function, built = media.one("AWS::Lambda::Function"), media.one("Custom::HeliographFleetImage")
    assert BUILD_TIMEOUT.to_seconds() < function["Timeout"] < built["ServiceTimeout"]
    assert media.one("AWS::Lambda::EventInvokeConfig")["MaximumRetryAttempts"] == 0
    assert function["Code"]["ZipFile"] == BUILDER.read_text()
    assert len(BUILDER.read_bytes()) <= 4096  # CloudFormation's most


def test_images_are_scanned_never_overwritten_and_old_ones_go(presets: Presets) -> None:
    repository = presets["dev"]["media"].one("AWS::ECR::Repository")
    assert repository["ImageScanningConfiguration"] == {"ScanOnPush": True}
    assert repository["ImageTagMutability"] == "IMMUTABLE"
    (rule,) = json.loads(repository["LifecyclePolicy"]["LifecyclePolicyText"])["rules"]
    assert (rule["selection"]["countType"], rule["action"]) == ("imageCountMoreThan", {"type": "expire"})


def test_the_build_may_read_its_source_and_push_to_its_repository(presets: Presets) -> None:
    rights = presets["dev"]["media"].role("ImageBuildRole")
    assert {resource for resource, _ in rights["ecr:GetAuthorizationToken"]} == {"*"}  # knows no resource
    pushed_to = {resource for action, found in rights.items() if action.startswith("ecr:") and action != "ecr:GetAuthorizationToken" for resource, _ in found}
    assert pushed_to == arns(presets["dev"]["media"], "AWS::ECR::Repository")
    assert all(re.search(r"/[0-9a-f]{64}\.zip$", resource) for action in ("s3:GetObject", "s3:GetObjectVersion") for resource, _ in rights[action])
    assert {action.partition(":")[0] for action in rights} == {"ecr", "s3", "logs"}
    starting = presets["dev"]["media"].role("ImageBuilderRole")
    started = {resource for action, found in starting.items() if action.startswith("codebuild:") for resource, _ in found}
    assert started == arns(presets["dev"]["media"], "AWS::CodeBuild::Project")
    assert {action.partition(":")[0] for action in starting} == {"codebuild", "logs"}


def test_an_image_that_is_named_is_taken_and_nothing_is_built(presets: Presets) -> None:
    media = presets["fargate"]["media"]
    for kind in ("AWS::CodeBuild::Project", "AWS::ECR::Repository", "AWS::Lambda::Function", "Custom::HeliographFleetImage"):
        assert not media.of_type(kind)
    (container,) = media.one("AWS::ECS::TaskDefinition")["ContainerDefinitions"]
    assert text(container["Image"]).replace("${AWS::URLSuffix}", "amazonaws.com") == NAMED_IMAGE
    pulls = media.role("ExecutionRole")["ecr:BatchGetImage"]
    assert [resource for resource, _ in pulls] == ["arn:${AWS::Partition}:ecr:eu-west-1:123456789012:repository/media/fleet"]


# The function that starts the build


class CloudFormation(ThreadingHTTPServer):
    """Takes the answer of a custom resource; its `url` is what a signed S3 URL is in AWS."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Take)
        self.url = f"http://127.0.0.1:{self.server_port}/signed?X-Amz-Signature=1"
        self.answers: list[dict[str, Any]] = []
        self.types: list[str | None] = []


class Take(BaseHTTPRequestHandler):
    server: CloudFormation

    def do_PUT(self) -> None:
        self.server.types.append(self.headers["Content-Type"])
        self.server.answers.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


class CodeBuild(ThreadingHTTPServer):
    """CodeBuild's JSON protocol: one build that runs for `steps` questions and then ends as `outcome` says."""

    def __init__(self, outcome: str, steps: int) -> None:
        super().__init__(("127.0.0.1", 0), Work)
        self.outcome, self.steps = outcome, steps
        self.calls: list[tuple[str, dict[str, Any]]] = []


class Work(BaseHTTPRequestHandler):
    server: CodeBuild

    def do_POST(self) -> None:
        operation = self.headers["X-Amz-Target"].partition(".")[2]
        self.server.calls.append((operation, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        asked = sum(name == "BatchGetBuilds" for name, _ in self.server.calls)
        status = self.server.outcome if asked >= self.server.steps else "IN_PROGRESS"
        contexts = [] if status != "FAILED" else [{"statusCode": "COMMAND_EXECUTION_ERROR", "message": "docker build: exit status 1"}]
        build = {"id": "fleet:1", "buildStatus": status, "phases": [{"contexts": contexts}], "logs": {"deepLink": "https://console/log"}}
        body = json.dumps({"builds": [build]} if operation == "BatchGetBuilds" else {"build": build}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


def running(server: ThreadingHTTPServer) -> ThreadingHTTPServer:
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


class Context:
    """Lambda's, with so many milliseconds left."""

    def __init__(self, left_ms: int = 900_000) -> None:
        self.left_ms = left_ms

    def get_remaining_time_in_millis(self) -> int:
        return self.left_ms


@pytest.fixture
def cloudformation() -> Iterator[CloudFormation]:
    server = CloudFormation()
    running(server)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as Lambda loads it: under another name, without a package."""
    for name, value in {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("index", BUILDER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "POLL_S", 0.01)
    return module


def event(cloudformation: CloudFormation, kind: str = "Create", **more: str) -> dict[str, Any]:
    asked = {"ServiceToken": "arn", "Project": "fleet", "Tag": "abc-arm64"}
    return {
        "RequestType": kind,
        "ResponseURL": cloudformation.url,
        "StackId": "s",
        "RequestId": "r",
        "LogicalResourceId": "ImageBuilt",
        "ResourceProperties": asked,
        **more,
    }


@pytest.fixture
def codebuild(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[CodeBuild]:
    server = CodeBuild(*request.param)
    running(server)
    monkeypatch.setenv("AWS_ENDPOINT_URL_CODEBUILD", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("codebuild", [("SUCCEEDED", 3)], indirect=True)
def test_it_starts_the_build_with_the_tag_waits_and_says_that_it_is_done(builder: ModuleType, cloudformation: CloudFormation, codebuild: CodeBuild) -> None:
    builder.handler(event(cloudformation), Context())
    start, *questions = codebuild.calls
    assert start == ("StartBuild", {"projectName": "fleet", "environmentVariablesOverride": [{"name": "TAG", "value": "abc-arm64", "type": "PLAINTEXT"}]})
    assert questions == [("BatchGetBuilds", {"ids": ["fleet:1"]})] * 3
    assert cloudformation.answers == [
        {
            "Status": "SUCCESS",
            "Reason": "done",
            "PhysicalResourceId": "heliograph-fleet-image",
            "StackId": "s",
            "RequestId": "r",
            "LogicalResourceId": "ImageBuilt",
        }
    ]
    assert cloudformation.types == [""]  # the URL is signed for no type


@pytest.mark.parametrize("codebuild", [("FAILED", 1)], indirect=True)
def test_a_build_that_fails_fails_the_deployment_and_names_its_log(builder: ModuleType, cloudformation: CloudFormation, codebuild: CodeBuild) -> None:
    builder.handler(event(cloudformation, "Update", PhysicalResourceId="heliograph-fleet-image"), Context())
    (answer,) = cloudformation.answers
    assert (answer["Status"], answer["PhysicalResourceId"]) == ("FAILED", "heliograph-fleet-image")
    assert answer["Reason"] == "the build ended with FAILED: docker build: exit status 1 Its log: https://console/log"


@pytest.mark.parametrize("codebuild", [("SUCCEEDED", 1_000_000)], indirect=True)
def test_a_build_that_does_not_end_is_stopped_before_our_own_time_is_over(builder: ModuleType, cloudformation: CloudFormation, codebuild: CodeBuild) -> None:
    builder.handler(event(cloudformation), Context(left_ms=10_000))
    assert [name for name, _ in codebuild.calls] == ["StartBuild", "StopBuild"]
    assert cloudformation.answers[0]["Status"] == "FAILED"
    assert "took too long" in cloudformation.answers[0]["Reason"]


def test_an_aws_that_refuses_is_told_to_cloudformation(builder: ModuleType, cloudformation: CloudFormation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer the deployment would hang until CloudFormation's own time-out. Here moto refuses: there is no such project."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_CODEBUILD", f"http://{host}:{port}")
    builder.handler(event(cloudformation), Context())
    server.stop()
    assert cloudformation.answers[0]["Status"] == "FAILED"
    assert "ResourceNotFoundException" in cloudformation.answers[0]["Reason"]


def test_a_deletion_builds_nothing_and_succeeds(builder: ModuleType, cloudformation: CloudFormation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_CODEBUILD", "http://127.0.0.1:9")
    builder.handler(event(cloudformation, "Delete", PhysicalResourceId="heliograph-fleet-image"), Context())
    assert cloudformation.answers[0]["Status"] == "SUCCESS"
