"""The app's templates with other choices than those of conftest: each is made once in a run, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
NAMED_IMAGE: Final = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/media/fleet:7.1"
CHOICES: Final[dict[str, dict[str, str]]] = {
    "dev": {"preset": "dev"},
    "prod": {"preset": "prod", "region": "eu-west-1", "alarm_email": "ops@example.com", "architecture": "x86_64", "relay_instance": "c7i.large"},
    "fargate": {"media": "fargate", "relay_entry": "load-balancer", "relay_max": "4", "image_uri": NAMED_IMAGE},
}
Properties = dict[str, Any]
TIMEOUT_S: Final = 300


@dataclass(frozen=True, slots=True)
class Template:
    """One stack's template."""

    resources: dict[str, dict[str, Any]]

    def of_type(self, kind: str) -> dict[str, Properties]:
        return {name: resource.get("Properties", {}) for name, resource in self.resources.items() if resource["Type"] == kind}

    def one(self, kind: str) -> Properties:
        (found,) = self.of_type(kind).values()
        return found

    def role(self, name: str) -> dict[str, list[tuple[str, Properties]]]:
        """Action -> (resource as text, condition) of the role whose logical id starts with `name`, from its own policies and those attached to it."""
        ((logical, role),) = [(logical, item) for logical, item in self.of_type("AWS::IAM::Role").items() if logical.startswith(name)]
        attached = [item for item in self.of_type("AWS::IAM::Policy").values() if {"Ref": logical} in item["Roles"]]
        rights: dict[str, list[tuple[str, Properties]]] = {}
        for policy in (*role.get("Policies", []), *attached):
            for statement in policy["PolicyDocument"]["Statement"]:
                assert statement["Effect"] == "Allow"
                for action in listed(statement["Action"]):
                    rights.setdefault(action, []).extend((text(item), statement.get("Condition", {})) for item in listed(statement["Resource"]))
        assert "ManagedPolicyArns" not in role
        return rights


@dataclass(frozen=True, slots=True)
class Synthesis:
    """All stacks of one deployment, and where they stand."""

    folder: Path
    stage: str

    def __getitem__(self, stack: str) -> Template:
        return Template(json.loads((self.folder / f"heliograph-{self.stage}-{stack}.template.json").read_text())["Resources"])


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def text(value: Any) -> str:
    """A property as text: literals as they are, references as ${name}."""
    if isinstance(value, str):
        return value
    if "Fn::Join" in value:
        separator, parts = value["Fn::Join"]
        return str(separator).join(text(part) for part in parts)
    ((kind, target),) = value.items()
    return text(target) if kind == "Fn::Base64" else f"${{{'.'.join(target) if kind == 'Fn::GetAtt' else target}}}"


_ALL: Final = """
import os, runpy, sys
app, folder, *named = sys.argv[1:]
main = runpy.run_path(app)["main"]
for text in named:
    name, _, given = text.partition(" ")
    os.environ["CDK_OUTDIR"] = os.path.join(folder, name)
    sys.argv = [app, *given.split(" ")]
    main()
"""


def synthesise_all(folder: Path) -> dict[str, Synthesis]:
    """Every entry of CHOICES, one after the other in one process: starting the CDK's Node costs more than a synthesis."""
    named = [
        " ".join([name, *(f"-c heliograph:{setting}={value}" for setting, value in {"stage": "test", **choices}.items())]) for name, choices in CHOICES.items()
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_", "HELIOGRAPH_"))}
    command = [sys.executable, "-c", _ALL, str(ROOT / "infra/cdk/app.py"), str(folder), *named]
    ended = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert ended.returncode == 0, ended.stderr
    return {name: Synthesis(folder / name, "test") for name in CHOICES}
