"""A synthesised cloud assembly, without what a stand-in refuses. Everything that is taken out is told, because it is then not rehearsed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

Has = Callable[[str, str | None], bool]  # (type, attribute; None for what Ref answers) -> whether the stand-in has a value for it


def templates(assembly: Path) -> dict[str, dict[str, Any]]:
    """The template of every stack, by stack name."""
    manifest = json.loads((assembly / "manifest.json").read_text())
    stacks = {name: artifact for name, artifact in manifest["artifacts"].items() if artifact["type"] == "aws:cloudformation:stack"}
    return {name: json.loads((assembly / artifact["properties"]["templateFile"]).read_text()) for name, artifact in sorted(stacks.items())}


def types(assembly: Path) -> Counter[str]:
    """How many resources of each type the templates hold."""
    return Counter(resource["Type"] for template in templates(assembly).values() for resource in template["Resources"].values())


def retained(assembly: Path) -> Counter[str]:
    """How many resources of each type stay when the stacks are deleted."""
    resources = [resource for template in templates(assembly).values() for resource in template["Resources"].values()]
    return Counter(resource["Type"] for resource in resources if resource.get("DeletionPolicy") in ("Retain", "RetainExceptOnCreate"))


def take_out(assembly: Path, kind: str, having: str | None = None) -> list[str]:
    """Removes every resource of this type (only those with that property, where one is named); answers which, as `stack/logical id`.

    What else refers to them must not be there; who only waits for them no longer does.
    """
    gone: list[str] = []
    for stack, template in templates(assembly).items():
        fitting = [name for name, resource in template["Resources"].items() if resource["Type"] == kind]
        leaving = [name for name in fitting if having is None or having in template["Resources"][name].get("Properties", {})]
        if not leaving:
            continue
        for name in leaving:
            del template["Resources"][name]
            gone.append(f"{stack}/{name}")
        for resource in template["Resources"].values():
            before = resource.pop("DependsOn", [])
            if after := [name for name in ([before] if isinstance(before, str) else before) if name not in leaving]:
                resource["DependsOn"] = after
        _replace_template(assembly, stack, template)
    return gone


def put_secret(assembly: Path, name: str, text: str) -> list[str]:
    """Gives the secret of this name its value in the template; answers where that was, as `stack/logical id`."""
    found: list[str] = []
    for stack, template in templates(assembly).items():
        for logical_id, resource in template["Resources"].items():
            if resource["Type"] == "AWS::SecretsManager::Secret" and resource["Properties"].get("Name") == name:
                resource["Properties"]["SecretString"] = text
                found.append(f"{stack}/{logical_id}")
                _replace_template(assembly, stack, template)
    return found


def drop_termination_protection(assembly: Path) -> list[str]:
    """For a stand-in that cannot switch it on; answers the stacks that had it."""
    path = assembly / "manifest.json"
    manifest = json.loads(path.read_text())
    had = [name for name, artifact in manifest["artifacts"].items() if artifact.get("properties", {}).pop("terminationProtection", False)]
    path.write_text(json.dumps(manifest))
    return had


def name_functions(assembly: Path) -> int:
    """Names the function where a resource names its alias as the function it belongs to; answers how often."""
    count = 0
    for stack, template in templates(assembly).items():
        resources = template["Resources"]
        aliases = {name: resource["Properties"]["FunctionName"] for name, resource in resources.items() if resource["Type"] == "AWS::Lambda::Alias"}
        for properties in (resource.get("Properties", {}) for resource in resources.values()):
            said = json.dumps(properties.get("FunctionName"))
            for name, function in aliases.items():
                if json.dumps({"Ref": name}) in said:
                    properties["FunctionName"] = function
                    count += 1
        if aliases:
            _replace_template(assembly, stack, template)
    return count


def write_out_references(assembly: Path, has: Has) -> dict[str, int]:
    """Puts a text where a template refers to what will have no value there. Answers how many, by type.

    The text is the resource's own name where the template has one: then it is what AWS would answer.
    """
    written: Counter[str] = Counter()
    for stack, template in templates(assembly).items():
        resources = template["Resources"]
        for part in ("Resources", "Outputs"):
            template[part] = _written_out(template.get(part, {}), resources, has, written)
        _replace_template(assembly, stack, template)
    return dict(written)


def _written_out(value: Any, resources: dict[str, Any], has: Has, written: Counter[str]) -> Any:
    if isinstance(value, list):
        return [_written_out(each, resources, has, written) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        parts = value.get("Fn::GetAtt")
        target, attribute = parts if isinstance(parts, list) else (value.get("Ref"), None)
        if target in resources and not has(resources[target]["Type"], attribute):
            written[resources[target]["Type"]] += 1
            return resources[target].get("Properties", {}).get("Name", f"not-created-{target}")
    return {name: _written_out(each, resources, has, written) for name, each in value.items()}


def _replace_template(assembly: Path, stack: str, template: dict[str, Any]) -> None:
    """A template is an asset under the hash of its bytes: another content needs another name, or the CLI finds the old one uploaded already."""
    manifest_path, assets_path = assembly / "manifest.json", assembly / f"{stack}.assets.json"
    file = json.loads(manifest_path.read_text())["artifacts"][stack]["properties"]["templateFile"]
    content = json.dumps(template, indent=1)
    old = next(name for name, asset in json.loads(assets_path.read_text())["files"].items() if asset["source"]["path"] == file)
    new = hashlib.sha256(content.encode()).hexdigest()
    (assembly / file).write_text(content)
    for path in (manifest_path, assets_path):
        path.write_text(path.read_text().replace(old, new))
