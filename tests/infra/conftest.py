"""One synth for the whole run, as `make synth` does it: offline, in a process of its own. The tests read the templates it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.infra.presets import Synthesis, synthesise_all

ROOT: Final = Path(__file__).resolve().parents[2]
CONTEXT: Final = {
    "heliograph:stage": "test",
    "heliograph:redis_url": "rediss://redis.example.com:6379",
    "heliograph:turn_urls": "turn:turn.example.com:3478?transport=udp",
    "heliograph:allow_origins": "https://app.example.com, https://console.example.com",
}
Resource = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Synthesised:
    """The two templates, and where they and the assets stand."""

    folder: Path
    state: dict[str, Any]
    api: dict[str, Any]

    def of_type(self, kind: str) -> dict[str, Resource]:
        """The properties of every resource of this type in both stacks, by logical id (a queue and a function may share one)."""
        both = [*self.state["Resources"].items(), *self.api["Resources"].items()]
        return {name: resource.get("Properties", {}) for name, resource in both if resource["Type"] == kind}


def synthesise(folder: Path, *, hash_seed: str = "0") -> Synthesised:
    """Runs the app; both stacks must come out."""
    given = [part for name, value in CONTEXT.items() for part in ("-c", f"{name}={value}")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_", "HELIOGRAPH_"))}
    environment |= {"CDK_OUTDIR": str(folder), "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, str(ROOT / "infra/cdk/app.py"), *given]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=110)
    assert ended.returncode == 0, ended.stderr
    state, api = (json.loads((folder / f"heliograph-test-{name}.template.json").read_text()) for name in ("state", "api"))
    return Synthesised(folder, state, api)


@pytest.fixture(scope="session")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Synthesised:
    return synthesise(tmp_path_factory.mktemp("cdk"))


@pytest.fixture(scope="session")
def presets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Synthesis]:
    return synthesise_all(tmp_path_factory.mktemp("presets"))
