"""What is uploaded: our three packages and nothing else, the same bytes each time."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from functions.routes import FUNCTIONS
from infra.cdk import assets
from tests.infra.conftest import Synthesised


def test_staging_twice_gives_the_same_hash(tmp_path: Path) -> None:
    one, two = assets.stage_code(tmp_path / "one"), assets.stage_code(tmp_path / "two")
    for path in two.rglob("*"):
        os.utime(path, (0, 0))
    assert assets.digest(one) == assets.digest(two)


def test_another_byte_or_another_name_gives_another_hash(tmp_path: Path) -> None:
    before = assets.digest(assets.stage_code(tmp_path / "code"))
    changed = tmp_path / "code/heliograph/errors.py"
    changed.write_bytes(changed.read_bytes() + b"\n")
    after = assets.digest(tmp_path / "code")
    changed.rename(changed.with_name("faults.py"))
    assert len({before, after, assets.digest(tmp_path / "code")}) == 3


def test_the_code_is_our_packages_with_every_handler(synthesised: Synthesised) -> None:
    (asset,) = [path for path in synthesised.folder.iterdir() if path.name.startswith("asset.") and path.is_dir()]
    assert {path.name for path in asset.iterdir()} == {"heliograph", "adapters", "functions"}
    assert {path.suffix for path in asset.rglob("*") if path.is_file()} == {".py"}
    for function in FUNCTIONS:
        assert (asset / f"{function.handler.rpartition('.')[0].replace('.', '/')}.py").is_file()


def test_a_synth_for_reading_has_no_layer(synthesised: Synthesised) -> None:
    assert not synthesised.of_type("AWS::Lambda::LayerVersion")


def test_the_layer_is_the_extra_of_the_functions_without_what_lambda_brings() -> None:
    listed = tomllib.loads((assets.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["functions"]
    left_out = set(listed) - set(assets.requirements())
    assert [line.partition(">")[0] for line in left_out] == ["boto3"]


def test_a_bundle_that_is_there_is_taken_without_asking_pip(tmp_path: Path) -> None:
    made = assets.bundle_folder(tmp_path)
    made.mkdir(parents=True)
    assert assets.bundle_dependencies(tmp_path) == made
