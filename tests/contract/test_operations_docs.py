"""Every command in docs/operations.md exists, with its options: ours by their parsers, AWS's by the service models of botocore, the CDK's by its own help."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final

import botocore.session
import pytest
from botocore import xform_name
from botocore.exceptions import DataNotFoundError, UnknownServiceError

from admin.__main__ import command_line
from infra.cdk import context
from tests.running import ROOT

PAGE: Final = (ROOT / "docs/operations.md").read_text()
PROGRAMS: Final = ("heliograph-admin", "make", "cdk", "aws", "python -m", "pip", "npm", "git", "cd")
STACKS: Final = {name for path in (ROOT / "infra/cdk").glob("*.py") for name in re.findall(r"f\"heliograph-\{(?:\w+\.)?_?stage\}-(\w+)\"", path.read_text())}
PLACEHOLDER: Final = "PLACEHOLDER"
# `cdk <command> --help` of aws-cdk 2.1148.1: options with a value, and those without
CDK: Final = {
    "bootstrap": ({"--context", "-c", "--profile"}, {"--trust", "--force"}),
    "deploy": ({"--context", "-c", "--profile", "--outputs-file", "--require-approval"}, {"--all", "--exclusively"}),
    "destroy": ({"--context", "-c", "--profile"}, {"--all", "--exclusively", "--force"}),
    "diff": ({"--context", "-c", "--profile"}, {"--exclusively"}),
}
# what the AWS command line has beside the services' operations (its own reference, "Global options", `logs tail`, `s3 rb`)
GLOBAL: Final = {"--query", "--region", "--profile", "--output"}
CUSTOM: Final = {("logs", "tail"): {"--since", "--follow", "--filter-pattern", "--format"}, ("s3", "rb"): {"--force"}}


class NoSuchThing(Exception):
    """A command that does not exist; the text says which part."""


def commands(page: str) -> list[str]:
    """The lines of the page's shell blocks, and what stands in the text as a whole command of one of our programs."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    known = ("heliograph-admin ", "make ", "cdk ", "aws ", "python -m ")
    return lines + [inline for inline in re.findall(r"`([^`\n]+)`", text) if inline.startswith(known)]


def check(command: str) -> None:
    """NoSuchThing for a command that is not there, or not so."""
    words = shlex.split(re.sub(r"<[^>]+>", PLACEHOLDER, command))
    program = "python -m" if words[:2] == ["python", "-m"] else words[0]
    if program not in CHECKS:
        raise NoSuchThing(f"{program} is none of {', '.join(PROGRAMS)}")
    CHECKS[program](words[len(program.split()) :])


class _Strict(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise NoSuchThing(message)


def ours(words: list[str]) -> None:
    parser = command_line()
    pending = [parser]
    while pending:  # argparse ends the process; here it must only complain
        current = pending.pop()
        current.__class__ = _Strict
        pending += [below for action in current._actions if isinstance(action, argparse._SubParsersAction) for below in action.choices.values()]
    parser.parse_args([word.replace("…", "x") for word in words])


def target(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    if missing := {word for word in words if "=" not in word} - targets:
        raise NoSuchThing(f"make has no {missing}")


def module(words: list[str]) -> None:
    if importlib.util.find_spec(words[0]) is None:
        raise NoSuchThing(f"there is no module {words[0]}")
    ended = subprocess.run([sys.executable, "-m", words[0], *words[1:2], "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise NoSuchThing(f"python -m {' '.join(words[:2])}: {ended.stderr}")


def cdk(words: list[str]) -> None:
    if words[0] not in CDK:
        raise NoSuchThing(f"cdk {words[0]}")
    valued, plain = CDK[words[0]]
    rest, given = iter(words[1:]), dict[str, str]()
    for word in rest:
        if word in ("-c", "--context"):
            given |= context.arguments([next(rest, "")])
        elif word in valued:
            next(rest)
        elif word.startswith("-") and word not in plain:
            raise NoSuchThing(f"cdk {words[0]} {word}")
        elif not word.startswith("-") and words[0] != "bootstrap" and word.rpartition("-")[2] not in STACKS:
            raise NoSuchThing(f"there is no stack {word}")
    if unknown := [name for name in given if name.removeprefix(context.PREFIX) not in {"preset", *context.asked(), *context.OWN}]:
        raise NoSuchThing(f"context settings {unknown}")
    if given:
        try:
            context.read(given)
        except SystemExit as refused:
            raise NoSuchThing(str(refused)) from None


@cache
def _session() -> botocore.session.Session:
    return botocore.session.Session()


def aws(words: list[str]) -> None:
    service, operation, *rest = words
    for name in (name for option, name in itertools.pairwise(rest) if option == "--stack-name" and name.startswith("heliograph")):
        if name.rpartition("-")[2] not in STACKS:
            raise NoSuchThing(f"there is no stack {name}")
    options = {word for word in rest if word.startswith("--")} - GLOBAL
    if (service, operation) in CUSTOM:
        allowed, required = CUSTOM[service, operation], set[str]()
    else:
        allowed, required = _options_of(service, operation)
        if positional := [word for word, before in zip(rest, ["", *rest], strict=False) if not word.startswith("--") and not before.startswith("--")]:
            raise NoSuchThing(f"aws {service} {operation} takes no {positional}")
    if unknown := options - allowed:
        raise NoSuchThing(f"aws {service} {operation} has no {sorted(unknown)}")
    if missing := {name for name in required if not {name, name.replace("--", "--no-", 1)} & options}:
        raise NoSuchThing(f"aws {service} {operation} needs {sorted(missing)}")


def _options_of(service: str, operation: str) -> tuple[set[str], set[str]]:
    """(allowed, required) options of an operation, as the AWS command line derives them from the service's model."""
    try:
        model = _session().get_service_model(service)
    except (UnknownServiceError, DataNotFoundError):
        raise NoSuchThing(f"aws has no service {service}") from None
    names = {xform_name(name, "-"): name for name in model.operation_names}
    if operation not in names:
        raise NoSuchThing(f"aws {service} has no operation {operation}")
    shape = model.operation_model(names[operation]).input_shape
    members = shape.members if shape is not None else {}
    allowed = {option for name, member in members.items() for option in _spellings(name, member.type_name)}
    return allowed, {f"--{xform_name(name, '-')}" for name in (shape.required_members if shape is not None else ())}


def _spellings(name: str, kind: str) -> Iterator[str]:
    yield f"--{xform_name(name, '-')}"
    if kind == "boolean":
        yield f"--no-{xform_name(name, '-')}"


def pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = re.fullmatch(r"\.\[([\w,]+)\]", words[-1])
    if words[:-1] != ["install", "-e"] or found is None or not set(found[1].split(",")) <= set(extras):
        raise NoSuchThing(f"pip {' '.join(words)}")


def npm(words: list[str]) -> None:
    if words[:2] != ["install", "--global"] or not all(re.fullmatch(r"aws-cdk@\d+\.\d+\.\d+", word) for word in words[2:]):
        raise NoSuchThing(f"npm {' '.join(words)}")


def git(words: list[str]) -> None:
    if words[0] != "checkout":
        raise NoSuchThing(f"git {words[0]}")


def cd(words: list[str]) -> None:
    if not (ROOT / words[0]).is_dir():
        raise NoSuchThing(f"there is no folder {words[0]}")


CHECKS: Final[dict[str, Callable[[list[str]], None]]] = dict(zip(PROGRAMS, (ours, target, cdk, aws, module, pip, npm, git, cd), strict=True))


@pytest.mark.parametrize("command", dict.fromkeys(commands(PAGE)))
def test_every_command_of_the_operations_page_exists(command: str) -> None:
    check(command)


@pytest.mark.parametrize(
    "command",
    [
        "heliograph-admin migrat",
        "heliograph-admin migrate --force",
        "heliograph-admin rotate-keys",
        "make coffee",
        "cdk deploy --everything",
        "cdk deploy heliograph-prod-coffee",
        "cdk deploy --all -c heliograph:stage=prod -c heliograph:colour=red",
        "cdk diff -c heliograph:stage=prod -c heliograph:preset=huge",
        "aws coffee brew",
        "aws lambda brew",
        "aws lambda update-alias --function-name f --name live --brew",
        "aws lambda update-alias --function-name f",
        "aws cloudformation describe-stacks --stack-name heliograph-prod-coffee",
        "aws lambda get-account-settings f",
        "python -m no_such_module",
        "pip install -e '.[coffee]'",
        "kubectl get pods",
    ],
)
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    with pytest.raises(NoSuchThing):
        check(command)


def test_what_an_operator_must_know_has_a_section() -> None:
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert [name for name in ("First deployment", "Upgrade", "Rollback", "Scale", "Rotate", "Teardown") if name not in headings] == []


def test_every_command_of_heliograph_admin_stands_on_the_page() -> None:
    (below,) = (action for action in command_line()._actions if isinstance(action, argparse._SubParsersAction))
    assert [name for name in below.choices if f"`heliograph-admin {name}" not in PAGE] == []


def test_the_console_script_is_our_main() -> None:
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["heliograph-admin"]
    name, function = script.split(":")
    code = f"import sys; from {name} import {function}; sys.argv = ['x', '--help']; {function}()"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == 0
    assert ended.stdout.startswith(b"usage: heliograph-admin ")
