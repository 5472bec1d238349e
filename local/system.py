"""Programs that pip cannot bring: installed by apt where that is possible (root on Debian), otherwise named with the command to run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = {"chromium": "chromium", "turnserver": "coturn", "redis-server": "redis-server"}


def missing(programs: list[str]) -> list[str]:
    """The Debian packages of the programs that are not on PATH."""
    return [PACKAGES[program] for program in programs if shutil.which(program) is None]


def main(programs: list[str]) -> int:
    packages = missing(programs)
    if not packages:
        return 0
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"Please install {', '.join(packages)}, for example: sudo {' '.join(command)}", file=sys.stderr)
        return 1
    print(f"== installing {', '.join(packages)} with apt-get", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update", "-q"], command):
        done = subprocess.run(step, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{' '.join(step)} failed:\n{done.stderr}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
