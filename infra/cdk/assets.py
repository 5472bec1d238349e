"""What is uploaded for the functions: one folder of our code, and layers of their dependencies, made by pip without Docker.

A function gets the layers of what its handler imports sooner or later (`imports.py`). Every file of a layer comes from `functions.lock`, by version and hash.
Standard library only. All is reproducible: the same sources give the same bytes, so an unchanged function is not deployed again.
Where this machine has Lambda's Python the bytecode goes along: a function cannot write its own, and would compile everything at every cold start.
`python -m infra.cdk.assets` makes the layers of both processors and prints what they weigh.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from infra.cdk.imports import OURS, reached_by

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / "build/layers"
LOCK: Final = Path(__file__).with_name("functions.lock")  # versions from constraints.txt, hashes from the registry: `make lock` writes it
PYTHON: Final = "3.13"
MACHINES: Final = {"arm64": "aarch64", "x86_64": "x86_64"}  # as AWS calls it -> as wheels do
GLIBC: Final = ("manylinux2014", "manylinux_2_28")  # Amazon Linux 2023 has 2.34
HERE: Final = "here"  # beside the architectures: for the interpreter that runs this, so that what ships can be tried
LAYERS: Final[dict[str, dict[str, str]]] = {  # layer -> import name: distribution. What a distribution requires lies in the first layer that requires it
    "core": {"aws_lambda_powertools": "aws-lambda-powertools", "pymongo": "pymongo", "redis": "redis"},
    "keys": {"cryptography": "cryptography", "jwt": "pyjwt"},
    "passwords": {"argon2": "argon2-cffi"},
    "firebase": {"firebase_admin": "firebase-admin", "google": "google-auth", "requests": "requests"},
}
RUNTIME: Final = "runtime"  # what Lambda brings: never uploaded, made only to try the others beside it
IN_THE_RUNTIME: Final = {"boto3": "boto3", "botocore": "botocore"}
MOST_LAYERS: Final = 5  # of one function; AWS Lambda quotas
MOST_BYTES: Final = 250 * 2**20  # of code and layers of one function, unzipped; likewise
_LONG_AGO: Final = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can tell
_ENTRY: Final = re.compile(r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+) (?P<hashes>(?:\\\n +--hash=sha256:[0-9a-f]{64} ?)+)\n +# via (?P<via>.*)$", re.MULTILINE)


class AssetError(Exception):
    """A dependency has no layer or no hash; the message says where to write what."""


@dataclass(frozen=True, slots=True)
class Locked:
    """One distribution of the lock file: its line for pip, and who requires it."""

    version: str
    requirement: str
    via: frozenset[str]


NO_FUNCTIONS: Final = {ROOT / "adapters/usage_mongo.py"}  # what relays and operators alone import


@cache
def compiler() -> tuple[str, str] | None:
    """Path and version of a Python on this machine that makes Lambda's bytecode: this one, python3.13 on PATH, or pyenv's newest; None where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for found in (sys.executable, shutil.which(f"python{PYTHON}"), *sorted(map(str, pyenv.glob(f"versions/{PYTHON}.*/bin/python")), reverse=True)):
        if found is not None:
            asked = subprocess.run([found, "-IS", "-c", "import platform; print(platform.python_version())"], capture_output=True, text=True, check=False)  # noqa: S603
            if asked.stdout.startswith(f"{PYTHON}."):
                return found, asked.stdout.strip()
    return None


def stage_code(target: Path, *, is_compiled: bool = False) -> Path:
    """Copies our packages below `target` and returns it: the asset root, which is all that stands on the functions' sys.path.

    Sources only, or with their bytecode where this machine can make it.
    """
    for package in OURS:
        for source in sorted(set((ROOT / package).rglob("*.py")) - NO_FUNCTIONS):
            copy = target / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    if is_compiled:
        _compile(target, "/var/task")
    _make_readable(target)
    return target


def handlers() -> dict[str, str]:
    """Folder below `functions/` -> handler string: those of the route table, and those that no route leads to."""
    return {path.parent.name: f"functions.{path.parent.name}.handler.handler" for path in sorted((ROOT / "functions").glob("*/handler.py"))}


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of every file below the folder."""
    found = hashlib.sha256()
    for path in _files(folder):
        content = path.read_bytes()
        found.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


def unzipped_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def zipped(folder: Path) -> bytes:
    """The folder as a zip that depends on names and bytes only: neither on times nor on modes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in _files(folder):
            archive.writestr(zipfile.ZipInfo(path.relative_to(folder).as_posix(), _LONG_AGO), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return made.getvalue()


@cache
def locked(lock: Path = LOCK) -> dict[str, Locked]:
    """The lock file: distribution -> what it says. AssetError where a line has no hash or nobody who requires it."""
    text = lock.read_text()
    found = {
        entry["name"]: Locked(entry["version"], f"{entry['name']}=={entry['version']} {entry['hashes']}\n", frozenset(entry["via"].split(", ")))
        for entry in _ENTRY.finditer(text)
    }
    if len(found) != len(re.findall(r"^[a-z0-9]", text, re.MULTILINE)):
        raise AssetError(f"{lock.name} has a line that is not `name==version` with hashes and the packages that require it: write it with `make lock`.")
    return found


@cache
def distributions(layer: str) -> tuple[str, ...]:
    """What lies in a layer: what it is named for and what that requires, without what lies in a layer before it."""
    if layer == RUNTIME:
        return _closure(IN_THE_RUNTIME.values())
    names = list(LAYERS)
    before = {name for other in names[: names.index(layer)] for name in distributions(other)}
    return tuple(name for name in _closure(LAYERS[layer].values()) if name not in before)


def layers_of(handler: str, root: Path = ROOT) -> tuple[str, ...]:
    """The layers that this handler string needs, with those that these need. AssetError where it imports what no layer has."""
    needed: set[str] = set()
    for package in reached_by(handler, root).packages - IN_THE_RUNTIME.keys():
        roots = [names[package] for names in LAYERS.values() if package in names]
        if not roots:
            raise AssetError(f"{handler} imports {package}, which is in no layer: add it to LAYERS in infra/cdk/{Path(__file__).name}.")
        needed.update(_closure(roots))
    return tuple(layer for layer in LAYERS if needed & set(distributions(layer)))


def bundle_layer(name: str, architecture: str, cache_folder: Path = CACHE) -> Path:
    """The folder of a layer (`python/` below it) for arm64, x86_64 or HERE; pip runs only when the lock file or this file changed since."""
    bundle = cache_folder / f"{name}-{architecture}-{_key(name, architecture)}"
    if bundle.exists():
        return bundle
    cache_folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder) as unfinished:
        folder = Path(unfinished) / "layer"
        _pip_install(name, architecture, folder / "python")
        _keep_what_is_imported(folder / "python")
        if architecture != HERE:
            _compile(folder, "/opt")
        _make_readable(folder)
        try:
            folder.rename(bundle)
        except OSError:  # another process was faster
            if not bundle.exists():
                raise
    return bundle


def _closure(roots: Iterable[str]) -> tuple[str, ...]:
    found = set(roots)
    while more := {name for name, entry in locked().items() if entry.via & found} - found:
        found |= more
    return tuple(sorted(found))


def _requirements(name: str) -> str:
    return "".join(locked()[distribution].requirement for distribution in distributions(name))


def _key(name: str, architecture: str) -> str:
    made = compiler()
    interpreter = f"{sys.implementation.cache_tag} {sysconfig.get_platform()}" if architecture == HERE else f"{PYTHON} {made and made[1]}"
    return hashlib.sha256(f"{_requirements(name)}{interpreter}{Path(__file__).read_text()}".encode()).hexdigest()[:16]


def _pip_install(name: str, architecture: str, target: Path) -> None:
    """Exactly the locked files: the list is complete, so pip resolves nothing."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--target", str(target)]
    if architecture != HERE:
        platforms = [part for glibc in GLIBC for part in ("--platform", f"{glibc}_{MACHINES[architecture]}")]
        command += [*platforms, "--implementation", "cp", "--python-version", PYTHON]
    listed = target.parent.with_suffix(".txt")
    listed.write_text(_requirements(name))
    subprocess.run([*command, "--requirement", str(listed)], check=True)  # noqa: S603  # the words are ours


def _keep_what_is_imported(folder: Path) -> None:
    """Scripts name this machine's interpreter, and pip's own records name them; nothing in a Lambda reads either."""
    records = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
    for path in [*folder.glob("bin/*"), *(found for record in records for found in folder.glob(f"*.dist-info/{record}"))]:
        path.unlink()
    if (folder / "bin").exists():
        (folder / "bin").rmdir()


def _compile(folder: Path, in_lambda: str) -> None:
    """Bytecode beside each source: it asks neither the time nor the bytes of the source (PEP 552), and names the place that this has in Lambda."""
    found = compiler()
    if found is None:
        return
    command = [found[0], "-PS", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(folder), "-p", in_lambda, str(folder)]
    subprocess.run(command, env={"PYTHONHASHSEED": "0"}, check=True)  # noqa: S603  # the order of a set is part of the bytecode


def _make_readable(folder: Path) -> None:
    """Whatever this machine's umask: functions run as another user than the one who owns the files."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Prints each layer and each function."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", action="append", choices=MACHINES, help="this processor alone")
    chosen, mb = parser.parse_args().architecture or list(MACHINES), 2**20
    made = compiler()
    print(f"Layers, MiB, {f'with the bytecode of Python {made[1]}' if made else f'sources only: this machine has no Python {PYTHON} to compile them'}\n")
    print(f"{'':12}{'packages':>10}" + "".join(f"{name:>10}{'zipped':>9}" for name in chosen))
    unzipped: dict[tuple[str, str], int] = {}
    for layer in LAYERS:
        line = f"{layer:12}{len(distributions(layer)):10}"
        for architecture in chosen:
            folder = bundle_layer(layer, architecture)
            unzipped[layer, architecture] = unzipped_bytes(folder)
            line += f"{unzipped[layer, architecture] / mb:10.1f}{len(zipped(folder)) / mb:9.1f}"
        print(line, flush=True)
    with tempfile.TemporaryDirectory() as folder_name:
        code = stage_code(Path(folder_name), is_compiled=True)
        code_bytes = unzipped_bytes(code)
        print(f"{'our code':12}{'':10}{code_bytes / mb:10.1f}{len(zipped(code)) / mb:9.1f}")
    print(f"\nFunctions, MiB with our code; at most {MOST_LAYERS} layers and {MOST_BYTES // mb} MiB; what a handler imports sooner or later (its budget)\n")
    for name, handler in handlers().items():
        layers = layers_of(handler)
        most = max(sum(unzipped[layer, architecture] for layer in layers) for architecture in chosen) + code_bytes
        print(f"{name:16}{most / mb:6.1f}  {', '.join(layers):34}{', '.join(sorted(reached_by(handler).packages))}")


if __name__ == "__main__":
    main()
