"""The generated pages say what the code says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from adapters.settings import Settings
from heliograph import errors
from media_fleet.settings import NodeSettings

ROOT = Path(__file__).resolve().parents[2]


def test_generated_pages_are_not_stale() -> None:
    ended = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr.strip()


def test_every_setting_and_every_code_has_a_line() -> None:
    settings, codes = (ROOT / "docs/settings.md").read_text(), (ROOT / "docs/errors.md").read_text()
    assert not [item.name for item in (*fields(Settings), *fields(NodeSettings)) if f"| `HELIOGRAPH_{item.name.upper()}` |" not in settings]
    assert not [error.code for error in errors.catalogue() if f"| `{error.code}` |" not in codes]
