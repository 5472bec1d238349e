"""Programs beside Python: what is missing is named, and Node comes in a wheel."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from local import system


def test_a_machine_without_node_gets_node_and_npm_from_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    system.link_node(tmp_path)
    environment = {"PATH": f"{tmp_path}:/bin", "HOME": str(tmp_path)}
    for name in ("node", "npm"):
        answer = subprocess.run([name, "--version"], env=environment, capture_output=True, text=True, check=True)
        assert int(answer.stdout.lstrip("v").split(".")[0]) >= 10, name


def test_a_machine_with_npm_keeps_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "npm").write_text("#!/bin/sh\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    system.link_node(tmp_path / "bin")
    assert not (tmp_path / "bin").exists()


def test_missing_programs_are_named_by_their_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert system.missing(["turnserver", "certutil", "chromium"]) == ["coturn", "libnss3-tools", "chromium"]


def test_programs_that_are_there_are_not_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in system.PACKAGES:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert system.missing(list(system.PACKAGES)) == []
