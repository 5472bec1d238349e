"""The compiled data path is optional: what happens with and without a compiler, a library, cffi."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from media_fleet.datapath.build import COMPILERS, NotBuilt, build
from media_fleet.datapath.compiled import load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("built") / "fast.so"
    build(made, ["-O0"])
    return made


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False)


def reason(capsys: pytest.CaptureFixture[str]) -> str:
    """What the one log line says."""
    [line] = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert told["event"] == "compiled_path_unavailable"
    return str(told["reason"])


def test_the_source_compiles_without_a_warning(tmp_path: Path) -> None:
    build(tmp_path / "fast.so", ["-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"])


def test_the_command_builds_the_library_or_says_why_not(tmp_path: Path) -> None:
    made = tmp_path / "fast.so"
    built = run("-m", "media_fleet.datapath.build", "--into", str(made))
    assert (built.returncode, built.stdout, made.exists()) == (0, f"built {made}\n", True)
    made.unlink()
    for flags, code in ((), 0), (("--required",), 1):
        refused = run("-m", "media_fleet.datapath.build", "--into", str(made), *flags, PATH=str(tmp_path))
        assert (refused.returncode, made.exists(), refused.stderr) == (code, False, "")
        assert refused.stdout == "There is no C compiler (apt-get install gcc libc6-dev); the relay forwards in Python.\n"


def test_what_does_not_compile_leaves_the_library_as_it_was(tmp_path: Path) -> None:
    made = tmp_path / "fast.so"
    made.write_text("before")
    with pytest.raises(NotBuilt, match="did not compile"):
        build(made, ["-include", "no-such-header.h"])
    assert [path.name for path in tmp_path.iterdir()] == ["fast.so"]
    assert made.read_text() == "before"


def test_a_library_that_fits_is_loaded(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(library) is not None
    assert capsys.readouterr().err == ""


def test_no_library_is_none_with_the_reason_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(tmp_path / "fast.so") is None
    assert "No such file" in reason(capsys)


def test_a_file_that_is_no_library_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fast.so").write_bytes(b"\x7fELF" + bytes(60))
    assert load(tmp_path / "fast.so") is None
    assert "fast.so" in reason(capsys)


@pytest.mark.parametrize(("source", "says"), [("int fast_abi(void) { return 0; }", "version 0"), ("int other(void) { return 1; }", "fast_abi")])
def test_a_library_of_another_version_is_refused(source: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiler = next(found for name in COMPILERS if (found := shutil.which(name)))
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-o", str(tmp_path / "older.so"), "-"], input=source, text=True, check=True)
    assert load(tmp_path / "older.so") is None
    assert says in reason(capsys)


def test_without_cffi_there_is_no_compiled_path(library: Path) -> None:
    script = "import sys, pathlib; sys.modules['cffi'] = None; from media_fleet.datapath.compiled import load; print(load(pathlib.Path(sys.argv[1])))"
    done = run("-c", script, str(library))
    assert done.stdout == "None\n"
    assert "cffi" in json.loads(done.stderr)["reason"]
