"""`make synth`: the templates of every preset, looked at by cdk-nag and cfn-lint. Exit code 1 where either finds something.

The presets are made side by side, each by the app in a process of its own, as the CDK's command line would run it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "build/cdk.out"
PRESETS: Final = {
    "dev": {},
    "prod": {"region": "eu-west-1", "alarm_email": "ops@example.com"},
    "prod-multi-az": {"region": "eu-west-1", "alarm_email": "ops@example.com"},
}
# what cfn-lint says and we leave as it is, each with its reason
PASSED_OVER: Final = {"W3005": "the CDK writes a DependsOn beside the reference that already implies it"}
_LIMIT_S: Final = 300


@dataclass(frozen=True, slots=True)
class Made:
    """What became of one preset."""

    preset: str
    stacks: int
    resources: int
    seconds: float
    found: str  # what cdk-nag, cfn-lint or the app itself said; empty when all is well


def main() -> int:
    """Prints a line a preset, then what was found."""
    began_s = time.monotonic()
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        made = list(pool.map(_make, PRESETS))
    print(f"{'preset':15} {'stacks':>6} {'resources':>9} {'seconds':>7}  cdk-nag and cfn-lint")
    for each in made:
        print(f"{each.preset:15} {each.stacks:6} {each.resources:9} {each.seconds:7.0f}  {'see below' if each.found else '0 findings'}")
    for each in made:
        if each.found:
            print(f"\n{each.preset}:\n{each.found}")
    print(f"{time.monotonic() - began_s:.0f} s; templates in build/cdk.out/<preset>; docs/operations.md says how to deploy them")
    return 1 if any(each.found for each in made) else 0


def _make(preset: str) -> Made:
    began_s, folder = time.monotonic(), FOLDER / preset
    chosen = {"stage": preset.partition("-")[0], "preset": preset} | PRESETS[preset]
    context = [part for name, value in chosen.items() for part in ("-c", f"heliograph:{name}={value}")]
    found = _run([sys.executable, "infra/cdk/app.py", "--check", *context], CDK_OUTDIR=str(folder))
    templates = sorted(folder.glob("*.template.json"))
    if not found:
        cfn_lint = str(Path(sys.executable).parent / "cfn-lint")
        region = chosen.get("region", "eu-west-1")
        ignored = [part for name in PASSED_OVER for part in ("--ignore-checks", name)]
        found = _run([cfn_lint, "--regions", region, *ignored, "--", *map(str, templates)])
    resources = sum(len(json.loads(template.read_text())["Resources"]) for template in templates)
    return Made(preset, len(templates), resources, time.monotonic() - began_s, found)


def _run(command: list[str], **environment: str) -> str:
    """What it said when it failed, else nothing."""
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=_LIMIT_S)  # noqa: S603 - our own commands
    return "" if ended.returncode == 0 else (ended.stdout + ended.stderr).strip() or f"exit code {ended.returncode}"


if __name__ == "__main__":
    sys.exit(main())
