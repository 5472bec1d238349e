"""Templates as the tests of the fleet and of its watch read them: one stack, its roles, properties as text."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from media_fleet.relay import RelayConfig
from tests.infra.conftest import Synthesise

ROOT: Final = Path(__file__).resolve().parents[2]
NAMED_IMAGE: Final = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/media/fleet:7.1"
CHOICES: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "dev": ("dev", {}),
    "prod": ("prod", {"alarm_email": "ops@example.com", "architecture": "x86_64", "relay_instance": "c7i.large"}),
    "fargate": ("dev", {"media": "fargate", "relay_entry": "load-balancer", "relay_max": "4", "image_uri": NAMED_IMAGE}),
}
Properties = dict[str, Any]


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


class Presets:
    """`presets["dev"]["media"]`: the templates of an entry of CHOICES, by the last word of their stack's name."""

    def __init__(self, deployed: Synthesise) -> None:
        self._deployed = deployed

    def __getitem__(self, name: str) -> dict[str, Template]:
        preset, chosen = CHOICES[name]
        return {stack: Template(template["Resources"]) for stack, template in self._deployed(preset, **chosen).templates.items()}


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def text(value: Any) -> str:
    """A property as text: literals as they are, references as ${name}."""
    if isinstance(value, str):
        return value
    if "Fn::Join" in value:
        separator, parts = value["Fn::Join"]
        return str(separator).join(text(part) for part in parts)
    if "Fn::Select" in value:
        return text(value["Fn::Select"][1]["Fn::Split"][1])
    ((kind, target),) = value.items()
    return text(target) if kind == "Fn::Base64" else f"${{{'.'.join(target) if kind == 'Fn::GetAtt' else target}}}"


def most_allocations() -> int:
    return next(int(str(item.default)) for item in fields(RelayConfig) if item.name == "max_allocations")
