"""One synth of each deployment that a test asks for, by the app itself and offline. The tests read the templates it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from infra.cdk import app

ROOT: Final = Path(__file__).resolve().parents[2]
CONTEXT: Final = {
    "heliograph:stage": "test",
    "heliograph:redis_url": "rediss://redis.example.com:6379",
    "heliograph:turn_urls": "turn:turn.example.com:3478?transport=udp",
    "heliograph:allow_origins": "https://app.example.com, https://console.example.com",
}
_OF_SOMEBODY: Final = ("AWS_", "CDK_", "HELIOGRAPH_")  # variables of whoever runs the tests
Resource = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Synthesised:
    """The templates by the last word of their stack's name (`heliograph-test-network`), and where they and the assets stand."""

    folder: Path
    templates: dict[str, dict[str, Any]]

    @property
    def state(self) -> dict[str, Any]:
        return self.templates["state"]

    @property
    def api(self) -> dict[str, Any]:
        return self.templates["api"]

    def of_type(self, kind: str, *stacks: str) -> dict[str, Resource]:
        """The properties of every resource of this type in these stacks, by logical id; in state and api where none is named."""
        found = [item for stack in stacks or ("state", "api") for item in self.templates[stack]["Resources"].items()]
        return {name: resource.get("Properties", {}) for name, resource in found if resource["Type"] == kind}


Synthesise = Callable[..., Synthesised]


def synthesise(folder: Path, given: Mapping[str, str] = CONTEXT) -> Synthesised:
    """In this process: most of a synth is the start of Python, Node and the CDK."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_OF_SOMEBODY)]:
            patch.delenv(name)
        app.synthesise(given, folder)
    return read(folder)


def read(folder: Path) -> Synthesised:
    """What the app wrote."""
    stem, tail = "heliograph-test-", ".template.json"
    found = {path.name.removeprefix(stem).removesuffix(tail): json.loads(path.read_text()) for path in sorted(folder.glob(f"{stem}*{tail}"))}
    return Synthesised(folder, found)


def run_app(folder: Path, given: Mapping[str, str] = CONTEXT, *options: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """In a process of its own, as the CDK's command line does it."""
    parts = [part for name, value in given.items() for part in ("-c", f"{name}={value}")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OF_SOMEBODY)}
    environment |= {"CDK_OUTDIR": str(folder), "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, str(ROOT / "infra/cdk/app.py"), *parts, *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=110)


@pytest.fixture(scope="session")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Synthesised:
    return synthesise(tmp_path_factory.mktemp("cdk"))


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Synthesise:
    """`deployed("prod", egress="nat-instance")`: a preset with other choices, in a Region, synthesised once in the run."""
    made: dict[tuple[str, ...], Synthesised] = {}

    def of(preset: str, **chosen: str) -> Synthesised:
        key = (preset, *(f"{name}={value}" for name, value in sorted(chosen.items())))
        if key not in made:
            given = {"stage": "test", "preset": preset, "region": "us-east-1"} | chosen
            made[key] = synthesise(tmp_path_factory.mktemp("cdk"), {f"heliograph:{name}": value for name, value in given.items()})
        return made[key]

    return of
