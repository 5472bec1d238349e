"""Compiles the data path: `python -m media_fleet.datapath.build [--into FILE] [--required]`.

It is optional: where there is no compiler this says so and ends well, unless it is `--required`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SOURCE = Path(__file__).with_name("fast.c")
LIBRARY = Path(__file__).with_name("fast.so")
COMPILERS = ("gcc", "cc", "clang")
_HARDENED = ("-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2", "-Wl,-z,relro,-z,now")
_STRICT = ("-Wall", "-Wextra", "-Werror=implicit-function-declaration", "-Werror=incompatible-pointer-types", "-Werror=int-conversion", "-Werror=return-type")
FLAGS = ("-std=c11", "-O2", "-shared", "-fPIC", "-pthread", *_HARDENED, *_STRICT)


class NotBuilt(Exception):
    """Why there is no library, in one sentence."""


def build(into: Path = LIBRARY, flags: Sequence[str] = ()) -> None:
    """Writes the library to `into`, all of it or nothing: a relay that has the old one loaded keeps it. `NotBuilt` says why not."""
    if not sys.platform.startswith("linux"):
        raise NotBuilt("The compiled data path is for Linux only; the relay forwards in Python here.")
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise NotBuilt("There is no C compiler (apt-get install gcc libc6-dev); the relay forwards in Python.")
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".build-") as folder:
        made = Path(folder) / into.name
        done = subprocess.run([compiler, *FLAGS, *flags, "-o", str(made), str(SOURCE)], capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            raise NotBuilt(f"{compiler} did not compile {SOURCE.name}; the relay forwards in Python. It said: {done.stderr.strip()}")
        os.replace(made, into)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--into", type=Path, default=LIBRARY, metavar="FILE", help="the library (%(default)s)")
    parser.add_argument("--required", action="store_true", help="end with 1 where it cannot be built")
    arguments = parser.parse_args()
    try:
        build(arguments.into)
    except NotBuilt as why:
        print(why)
        sys.exit(1 if arguments.required else 0)
    print(f"built {arguments.into}")


if __name__ == "__main__":
    main()
