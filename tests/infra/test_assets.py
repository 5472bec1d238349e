"""What is uploaded: our three packages, and of their dependencies to each function what it imports; the same bytes each time, for the processor chosen."""

from __future__ import annotations

import json
import os
import platform
import re
import struct
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

import pytest

from adapters.settings import PREFIX, Settings
from functions import snapshots
from functions.routes import FUNCTIONS
from infra.cdk import assets
from infra.cdk.imports import reached_by
from tests.infra.conftest import CONTEXT, ROOT, Synthesised, synthesise

pytestmark = pytest.mark.timeout(400)  # the first run fetches what the layers are made of
E_MACHINE: Final = {"arm64": 183, "x86_64": 62}  # EM_AARCH64, EM_X86_64 of the System V ABI
GLIBC_MINOR: Final = 34  # Amazon Linux 2023, the system of the runtime python3.13
LIBRARIES: Final = [(layer, architecture) for layer in assets.LAYERS for architecture in assets.MACHINES]
_MADE: Final = assets.compiler()
_HERE: Final = {machine: name for name, machine in assets.MACHINES.items()}.get(platform.machine())
LIKE_LAMBDA: Final = (_MADE[0], _HERE) if _MADE is not None and _HERE is not None and sys.platform == "linux" else None
_TRY: Final = """
import json, sys
given = json.loads(sys.stdin.read())
sys.path += given["path"]
missing = []
for statement in given["statements"]:
    try:
        exec(statement)
    except ModuleNotFoundError as error:
        missing.append(error.name)
import os, signal
loaded = [file for file in (getattr(module, "__file__", None) for module in list(sys.modules.values())) if file]
print(json.dumps({"missing": missing, "loaded": loaded, "sigint": int(signal.SIGINT), "path": sys.path}), flush=True)
os._exit(0)
"""


def written(root: Path, **sources: str) -> Path:
    """Modules below a folder; `__` in a name is the dot."""
    for name, source in sources.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return root


# The code


def test_staging_twice_gives_the_same_hash(tmp_path: Path) -> None:
    one, two = assets.stage_code(tmp_path / "one"), assets.stage_code(tmp_path / "two")
    for path in two.rglob("*"):
        os.utime(path, (0, 0))
    assert assets.digest(one) == assets.digest(two)
    assert assets.zipped(one) == assets.zipped(two)


def test_another_byte_or_another_name_gives_another_hash(tmp_path: Path) -> None:
    before = assets.digest(assets.stage_code(tmp_path / "code"))
    changed = tmp_path / "code/heliograph/errors.py"
    changed.write_bytes(changed.read_bytes() + b"\n")
    after = assets.digest(tmp_path / "code")
    changed.rename(changed.with_name("faults.py"))
    assert len({before, after, assets.digest(tmp_path / "code")}) == 3


def test_the_code_is_our_packages_with_every_handler(synthesised: Synthesised) -> None:
    (asset,) = [path for path in synthesised.folder.iterdir() if path.name.startswith("asset.") and (path / "functions").is_dir()]
    assert {path.name for path in asset.iterdir()} == {"heliograph", "adapters", "functions"}
    assert {path.suffix for path in asset.rglob("*") if path.is_file()} == {".py"}
    assert {function.name: function.handler for function in FUNCTIONS}.items() <= assets.handlers().items()
    for handler in assets.handlers().values():
        assert (asset / f"{handler.rpartition('.')[0].replace('.', '/')}.py").is_file()


def test_every_module_of_the_code_is_one_that_some_handler_can_reach(tmp_path: Path) -> None:
    staged = assets.stage_code(tmp_path)
    modules = {path.relative_to(staged).with_suffix("").as_posix().replace("/", ".") for path in staged.rglob("*.py") if path.name != "__init__.py"}
    assert not modules.difference(*(reached_by(handler).modules for handler in assets.handlers().values()))


def test_nothing_at_the_root_of_the_code_hides_a_module_of_python_or_of_a_layer(tmp_path: Path) -> None:
    ours = {path.name for path in assets.stage_code(tmp_path).iterdir()}
    theirs = {path.stem for layer in assets.LAYERS for path in (assets.bundle_layer(layer, "arm64") / "python").iterdir()}
    assert not ours & (sys.stdlib_module_names | theirs)
    assert "signal" in {path.name for path in (tmp_path / "functions").iterdir()}, "else nothing is tried here: this folder must not be on the path"


# What a handler imports


def test_an_import_inside_a_function_counts_and_one_for_types_alone_does_not(tmp_path: Path) -> None:
    handler = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\nelse:\n    import six\ndef handler(event, context):\n    import redis.retry\n"
    )
    root = written(tmp_path, functions__one__handler=handler)
    assert reached_by("functions.one.handler.handler", root).packages == {"redis", "six"}


def test_of_the_wiring_counts_what_is_asked_for_and_what_that_asks_for(tmp_path: Path) -> None:
    boards = "def boards():\n    from adapters.board import Board\n    return Board(redis())\n"
    wiring = f"def redis():\n    import redis\n{boards}def fcm():\n    import firebase_admin\n"
    root = written(
        tmp_path,
        functions__wiring=wiring,
        adapters__board="class Board: ...\n",
        functions__one__handler="from functions import wiring\ndef handler(event, context):\n    wiring.boards()\n",
        functions__two__handler="from functions import wiring\ndef handler(event, context):\n    wiring.absent()\n",
    )
    found = reached_by("functions.one.handler.handler", root)
    assert found.statements == {"import redis"}
    assert found.modules == {"functions.one.handler", "functions.wiring", "adapters.board"}
    with pytest.raises(ValueError, match=r"functions\.wiring has no function absent"):
        reached_by("functions.two.handler.handler", root)


def test_an_import_that_no_layer_has_is_refused_with_where_to_add_it(tmp_path: Path) -> None:
    root = written(tmp_path, functions__one__handler="import redis, json, boto3\n", functions__two__handler="import numpy\n")
    assert assets.layers_of("functions.one.handler.handler", root) == ("core",)
    with pytest.raises(assets.AssetError, match=r"imports numpy, which is in no layer: add it to LAYERS in infra/cdk/assets\.py"):
        assets.layers_of("functions.two.handler.handler", root)


def test_only_those_who_sign_in_or_push_carry_what_that_takes() -> None:
    of = {name: set(assets.layers_of(handler)) for name, handler in assets.handlers().items()}
    assert {name for name, layers in of.items() if "passwords" in layers} == {"tokens"}
    assert {name for name, layers in of.items() if "firebase" in layers} == {"tokens", "push_dispatch"}
    assert "keys" in of["authorizer"]
    assert of["signal"] == {"core"}, "the path of a frame"


# The lock file


def test_the_lock_file_has_the_versions_of_the_constraints_and_everything_that_the_functions_require() -> None:
    pinned = dict(line.lower().replace("_", "-").split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    assert {name: entry.version for name, entry in assets.locked().items()} == {name: pinned[name] for name in assets.locked()}, "run `make lock`"
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["functions"]
    wanted = {re.split(r"[\[>]", line)[0].lower() for line in listed}
    assert wanted == {name for name, entry in assets.locked().items() if any(by.startswith("heliograph") for by in entry.via)}, "run `make lock`"
    assert wanted <= {name for names in (*assets.LAYERS.values(), assets.IN_THE_RUNTIME) for name in names.values()}


def test_every_distribution_lies_in_one_layer_or_comes_with_lambda() -> None:
    shipped = [name for layer in assets.LAYERS for name in assets.distributions(layer)]
    assert len(shipped) == len(set(shipped))
    assert {*shipped, *assets.distributions(assets.RUNTIME)} == set(assets.locked())
    assert not {"boto3", "botocore"} & set(shipped)


@pytest.mark.parametrize("line", ["six==1.17.0\n    # via redis\n", f"six>=1 \\\n    --hash=sha256:{'0' * 64}\n    # via redis\n"])
def test_a_lock_file_with_a_line_without_version_or_hash_is_refused(tmp_path: Path, line: str) -> None:
    whole = assets.LOCK.read_text()
    (tmp_path / "whole.lock").write_text(whole)
    (tmp_path / "loose.lock").write_text(whole + line)
    assert assets.locked(tmp_path / "whole.lock") == assets.locked()
    with pytest.raises(assets.AssetError, match="write it with `make lock`"):
        assets.locked(tmp_path / "loose.lock")


# The layers


@pytest.mark.parametrize("layer", assets.LAYERS)
def test_a_layer_made_again_elsewhere_under_another_umask_is_the_same(tmp_path: Path, layer: str) -> None:
    before = os.umask(0o077)
    try:
        again = assets.bundle_layer(layer, "arm64", tmp_path / "elsewhere")
    finally:
        os.umask(before)
    assert assets.digest(again) == assets.digest(assets.bundle_layer(layer, "arm64"))
    assert {path.stat().st_mode & 0o777 for path in again.rglob("*")} == {0o755, 0o644}
    assert not [path for path in again.rglob("*") if path.name in ("RECORD", "INSTALLER", "bin")]


def test_a_layer_that_is_there_is_taken_without_asking_pip() -> None:
    made = assets.bundle_layer("passwords", "arm64")
    before = made.stat().st_mtime_ns
    assert assets.bundle_layer("passwords", "arm64") == made
    assert made.stat().st_mtime_ns == before


@pytest.mark.parametrize(("layer", "architecture"), LIBRARIES)
def test_a_layer_has_what_the_lock_file_says_and_nothing_of_another_layer(layer: str, architecture: str) -> None:
    folder = assets.bundle_layer(layer, architecture)
    installed = {path.name.removesuffix(".dist-info").lower().replace("_", "-") for path in (folder / "python").glob("*.dist-info")}
    assert installed == {f"{name}-{assets.locked()[name].version}" for name in assets.distributions(layer)}
    mine = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    for other in set(assets.LAYERS) - {layer}:
        there = assets.bundle_layer(other, architecture)
        assert not mine & {path.relative_to(there) for path in there.rglob("*") if path.is_file()}


@pytest.mark.parametrize("architecture", assets.MACHINES)
def test_a_function_stays_below_what_lambda_takes(architecture: str, tmp_path: Path) -> None:
    code = assets.unzipped_bytes(assets.stage_code(tmp_path))
    for handler in assets.handlers().values():
        layers = assets.layers_of(handler)
        assert len(layers) <= assets.MOST_LAYERS
        assert code + sum(assets.unzipped_bytes(assets.bundle_layer(layer, architecture)) for layer in layers) <= assets.MOST_BYTES


@pytest.mark.skipif(assets.compiler() is None, reason=f"no Python {assets.PYTHON} here to compile with")
@pytest.mark.parametrize("uploaded", ["code", *assets.LAYERS])
def test_what_is_uploaded_has_bytecode_that_lambdas_python_takes_without_asking_the_source(uploaded: str, tmp_path: Path) -> None:
    is_code = uploaded == "code"
    folder = assets.stage_code(tmp_path, is_compiled=True) if is_code else assets.bundle_layer(uploaded, "arm64")
    compiled = list(folder.rglob("*.pyc"))
    assert len(compiled) == len(list(folder.rglob("*.py"))) > 0
    for path in compiled:
        source = path.parent.parent / path.name.replace(".cpython-313.pyc", ".py")
        assert source.is_file()
        content = path.read_bytes()
        magic, flags = struct.unpack_from("<H2xI", content)
        assert (magic, flags) == (3571, 0b01), "of Python 3.13 (its magic number), unchecked hash (PEP 552)"
        assert f"{'/var/task' if is_code else '/opt'}/{source.relative_to(folder).as_posix()}".encode() in content


def unfit(folder: Path, architecture: str) -> Iterator[str]:
    """What Lambda's python3.13 on this processor could not load: libraries for another machine, Python or glibc."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        is_library = path.name.endswith(".so") or ".so." in path.name
        if content[:4] != b"\x7fELF":
            if is_library:
                yield f"{path.name} is no ELF file"
            continue
        bits, order, machine = content[4], content[5], struct.unpack_from("<H", content, 18)[0]
        if (bits, order, machine) != (2, 1, E_MACHINE[architecture]):
            yield f"{path.name} is for machine {machine}"
        tag = re.search(r"\.(cpython-\d+|abi3)[^/]*\.so$|\.(abi3)\.so$", path.name)
        if tag is not None and (tag[1] or tag[2]) not in ("cpython-313", "abi3"):
            yield f"{path.name} is for {tag[1]}"
        newest = max((int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)(?:\.\d+)?(?=\0)", content)), default=0)
        if newest > GLIBC_MINOR:
            yield f"{path.name} needs glibc 2.{newest}"
    for wheel in folder.glob("python/*.dist-info/WHEEL"):
        if not any(_is_fit(tag, assets.MACHINES[architecture]) for tag in re.findall(r"^Tag: (\S+)$", wheel.read_text(), re.MULTILINE)):
            yield f"{wheel.parent.name} is a wheel for another Python or system"


def _is_fit(tag: str, machine: str) -> bool:
    """Of a wheel's tag (PEP 425, PEP 600), whether the runtime takes it."""
    python, abi, system = tag.split("-")
    for_python = (python, abi) == ("cp313", "cp313") or python == "py3" or (abi == "abi3" and int(python.removeprefix("cp3")) <= 13)
    glibc = re.fullmatch(rf"manylinux(?:_2_(\d+)|(2014))_{machine}", system)
    return for_python and (system == "any" or (glibc is not None and (glibc[2] is not None or int(glibc[1]) <= GLIBC_MINOR)))


@pytest.mark.parametrize(("layer", "architecture"), LIBRARIES)
def test_every_library_of_a_layer_is_for_lambdas_processor_python_and_glibc(layer: str, architecture: str) -> None:
    folder = assets.bundle_layer(layer, architecture)
    assert list(unfit(folder, architecture)) == []
    libraries = [path for path in folder.rglob("*.so*") if path.is_file()]
    assert libraries, f"{layer} has no library: this test would say nothing"
    (other,) = set(assets.MACHINES) - {architecture}
    found_out = " ".join(unfit(folder, other))
    assert all(f"{path.name} is for machine {E_MACHINE[architecture]}" in found_out for path in libraries)


def test_a_library_of_another_python_or_a_newer_glibc_is_found_out(tmp_path: Path) -> None:
    elf = b"\x7fELF\2\1" + bytes(12) + struct.pack("<H", 183)
    (tmp_path / "good.cpython-313-aarch64-linux-gnu.so").write_bytes(elf + b"\0GLIBC_2.34\0")
    assert list(unfit(tmp_path, "arm64")) == []
    (tmp_path / "old.cpython-311-aarch64-linux-gnu.so").write_bytes(elf)
    (tmp_path / "new.abi3.so").write_bytes(elf + b"\0GLIBC_2.17\0GLIBC_2.38\0")
    (tmp_path / "text.so").write_text("INPUT(libc.so.6)")
    assert sorted(unfit(tmp_path, "arm64")) == [
        "new.abi3.so needs glibc 2.38",
        "old.cpython-311-aarch64-linux-gnu.so is for cpython-311",
        "text.so is no ELF file",
    ]


# The same lock file on this machine


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assets.stage_code(tmp_path_factory.mktemp("code"))


def tried(handler: str, code: Path, layers: tuple[str, ...], architecture: str = assets.HERE, python: str = sys.executable) -> dict[str, Any]:
    """What a bare interpreter says that has the code, these layers and what Lambda brings, and imports all that the handler can reach."""
    path = [str(code), *(str(assets.bundle_layer(layer, architecture) / "python") for layer in (*layers, assets.RUNTIME))]
    reached = reached_by(handler)
    module, _, name = handler.rpartition(".")
    primed = {name for function in FUNCTIONS if function.handler == handler for name in snapshots.needed(function)}  # before a snapshot
    imported = [f"from {module} import {name}", *(f"import {each}" for each in reached.modules | primed), *reached.statements]
    given = {"path": path, "statements": imported}
    environment = {PREFIX + item.name.upper(): "x" for item in fields(Settings) if item.default is MISSING} | {"AWS_REGION": "eu-west-1"}
    bytecode = ["-X", f"pycache_prefix={code.parent / 'compiled'}"] if architecture == assets.HERE else ["-B"]  # the layers stay as they are
    command = [python, "-I", "-S", *bytecode, "-c", _TRY]
    ended = subprocess.run(command, input=json.dumps(given), env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("handler", assets.handlers().values())
def test_a_handler_imports_all_it_can_reach_with_its_own_layers_alone(handler: str, code: Path) -> None:
    found = tried(handler, code, assets.layers_of(handler))
    assert (found["missing"], found["sigint"]) == ([], 2)
    assert not [path for path in found["path"] if path.rstrip("/").endswith("functions")]
    assert not [file for file in found["loaded"] if "site-packages" in file]


@pytest.mark.skipif(LIKE_LAMBDA is None, reason=f"no Python {assets.PYTHON} on Linux for a processor of Lambda here")
def test_the_shipped_layers_themselves_run_where_this_machine_is_like_lambda(code: Path) -> None:
    assert LIKE_LAMBDA is not None
    python, architecture = LIKE_LAMBDA
    for handler in assets.handlers().values():
        found = tried(handler, code, assets.layers_of(handler), architecture, python)
        assert (found["missing"], found["sigint"]) == ([], 2), handler


def test_nobody_carries_a_layer_that_it_could_do_without(code: Path) -> None:
    for layers, handler in {assets.layers_of(handler): handler for handler in assets.handlers().values()}.items():
        for layer in layers:
            others = tuple(other for other in layers if other != layer)
            assert tried(handler, code, others)["missing"], f"{handler} imports all it can reach without {layer}"


# The templates


def test_the_template_gives_each_function_its_layers_for_the_processor_chosen(tmp_path: Path) -> None:
    architecture = "x86_64"  # the other one is what every other test of the templates sees
    chosen = CONTEXT | {"heliograph:bundle": "true", "heliograph:architecture": architecture, "heliograph:relay_instance": "t3.micro"}
    resources = synthesise(tmp_path, chosen).api["Resources"]
    made = {name: item["Properties"] for name, item in resources.items() if item["Type"] == "AWS::Lambda::LayerVersion"}
    assert {properties["Description"] for properties in made.values()} == {", ".join(names.values()) for names in assets.LAYERS.values()}
    assert all(properties["CompatibleArchitectures"] == [architecture] for properties in made.values())
    lambdas = {item["Properties"]["Handler"]: item["Properties"] for item in resources.values() if item["Type"] == "AWS::Lambda::Function"}
    for function in FUNCTIONS:
        carried = [made[layer["Ref"]]["Description"] for layer in lambdas[function.handler]["Layers"]]
        assert carried == [", ".join(assets.LAYERS[layer].values()) for layer in assets.layers_of(function.handler)]
        assert lambdas[function.handler]["Architectures"] == [architecture]


def test_a_synth_for_reading_has_no_layer(synthesised: Synthesised) -> None:
    assert not synthesised.of_type("AWS::Lambda::LayerVersion")


def test_the_command_prints_every_layer_and_function() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "infra.cdk.assets", "--architecture", "arm64"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    first_words = {line.split()[0] for line in ended.stdout.splitlines() if line}
    assert {*assets.LAYERS, *assets.handlers()} <= first_words
