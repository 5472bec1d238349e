"""What is uploaded for the functions: one folder of our code, and one layer of their dependencies, made by pip without Docker.

Standard library only. Both are reproducible: the same sources give the same bytes, so an unchanged function is not deployed again.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PINS: Final = ROOT / "constraints.txt"
PACKAGES: Final = ("heliograph", "adapters", "functions")
IN_THE_RUNTIME: Final = frozenset({"boto3", "botocore"})  # Lambda brings them; they would be 30 MB of the layer
PLATFORMS: Final = ("manylinux2014_aarch64", "manylinux_2_28_aarch64")  # Amazon Linux 2023 has glibc 2.34
PYTHON: Final = "3.13"


def stage_code(target: Path) -> Path:
    """Copies our packages below `target`, sources only, and returns it: the asset root, which is all that stands on the functions' sys.path."""
    for package in PACKAGES:
        for source in sorted((ROOT / package).rglob("*.py")):
            copy = target / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    return target


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of every file below the folder."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


def requirements() -> list[str]:
    """What the functions need beside what Lambda brings: the extra `functions` of pyproject.toml."""
    listed: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["functions"]
    return [line for line in listed if line.split(">")[0].split("[")[0] not in IN_THE_RUNTIME]


def bundle_folder(cache: Path) -> Path:
    """Where the layer of these requirements in their pinned versions belongs."""
    wanted = "\n".join([*requirements(), *PLATFORMS, PYTHON, PINS.read_text() if PINS.exists() else ""])
    return cache / f"layer-{hashlib.sha256(wanted.encode()).hexdigest()[:16]}"


def bundle_dependencies(cache: Path) -> Path:
    """The folder of the layer (`python/` below it); pip runs only when the requirements or their pinned versions changed."""
    bundle = bundle_folder(cache)
    if bundle.exists():
        return bundle
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as unfinished:
        folder = Path(unfinished) / "layer"
        _pip_install(folder / "python")
        _remove_what_differs(folder / "python")
        folder.rename(bundle)
    return bundle


def _pip_install(target: Path) -> None:
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--target", str(target)]
    command += [*platforms, "--implementation", "cp", "--python-version", PYTHON, "--only-binary", ":all:"]
    command += [*(["--constraint", str(PINS)] if PINS.exists() else []), *requirements()]
    subprocess.run(command, check=True)  # noqa: S603  # the words are ours


def _remove_what_differs(folder: Path) -> None:
    """Scripts name this machine's interpreter, and pip's own records name them; nothing in a Lambda reads either."""
    shutil.rmtree(folder / "bin", ignore_errors=True)
    for name in IN_THE_RUNTIME:  # when something else drags them in
        for found in (folder / name, *folder.glob(f"{name}-*.dist-info")):
            shutil.rmtree(found, ignore_errors=True)
    for record in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json"):
        for path in folder.glob(f"*.dist-info/{record}"):
            path.unlink()
