"""The main job through the whole local stack, and its record against docs/call-json.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TYPES: dict[str, tuple[type, ...]] = {"whole": (int,), "number": (int, float), "text": (str,), "flag": (bool,), "list": (list,), "object": (dict,)}


def documented() -> Iterator[tuple[str, str]]:
    """(path, type) of each row of the table."""
    for line in (ROOT / "docs" / "call-json.md").read_text().splitlines():
        row = re.match(r"\| `([^`]+)` \| (\w+) \|", line)
        if row:
            yield row[1], row[2]


def values(result: Any, path: str) -> Iterator[Any]:
    """Every value a path like `calls[].path` names; KeyError when one is missing."""
    head, _, rest = path.partition(".")
    found = result[head.removesuffix("[]")]
    for item in found if head.endswith("[]") else [found]:
        if rest:
            yield from values(item, rest)
        else:
            yield item


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Documented-style paths of everything in the result."""
    if isinstance(value, dict) and path not in ("rung_change.reason.inputs", "push.data"):
        for name, item in value.items():
            yield from leaves(item, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list) and value and isinstance(value[0], dict) and path != "rung_change.stats":
        for item in value:
            yield from leaves(item, f"{path}[]")
    else:
        yield path


@pytest.mark.timeout(180)
def test_the_main_job_holds_every_requirement_and_its_record_is_as_documented(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "local", "--once", "--data", str(tmp_path / "data")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    result = json.loads((tmp_path / "build" / "call.json").read_text())
    assert result["ok"] is True
    assert result["failures"] == []
    assert result["duration_s"] < 60
    assert [call["path"] for call in result["calls"]] == ["relay", "p2p"]
    assert all(call["pesq_wb"] >= 4.0 and call["speech_s"] >= 5 for call in result["calls"])
    for path, kind in documented():
        for value in values(result, path):
            assert isinstance(value, TYPES[kind]), f"{path} should be {kind}, is {value!r}"
            assert kind == "flag" or not isinstance(value, bool), f"{path} should be {kind}, is {value!r}"
    likewise = {"ben_saw_ana": "ana_saw_ben", "encoder_after": "encoder_before", "ben_to_ana": "ana_to_ben"}
    known = {path for path, _ in documented()}
    for path in set(leaves(result)):
        said = ".".join(likewise.get(part, part) for part in path.split("."))
        assert said in known, f"docs/call-json.md does not say what {path} is"
