"""`python -m bench [name …]`: every measurement, or those named. Each prints a table of ratios measured side by side in one run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main(names: list[str]) -> int:
    """Runs each in a process of its own; the exit code is that of the worst."""
    known = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"No measurement {unknown[0]}; there are {', '.join(known)}.", file=sys.stderr)
        return 2
    status = 0
    for name in names or known:
        print(f"\n== {name}", flush=True)
        status = max(status, subprocess.run([sys.executable, "-m", f"bench.{name}"], cwd=FOLDER.parent, check=False).returncode)
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
