"""The product as a process: `python -m local` on a folder of its own, as `make run` starts it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local.system import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
START_S, STOP_S = 60.0, 20.0


def wait_until(what: str, holds: Callable[[], Any], timeout_s: float, every_s: float = 0.05) -> Any:
    """The first true value of `holds`; fails with a sentence that says what is still missing."""
    end_s = time.monotonic() + timeout_s
    while not (value := holds()):
        if time.monotonic() > end_s:
            raise AssertionError(f"still missing after {timeout_s:g} s: {what}")
        time.sleep(every_s)
    return value


def program(name: str) -> str:
    """The path of a program beside Python; fails with the command that installs it."""
    found = shutil.which(name)
    assert found, f"{name} is not installed: apt-get install {PACKAGES[name]} (make test does it)"
    return found


class RunningStack:
    """A stack that is up; `endpoints()` is what its file says now."""

    def __init__(self, data_dir: Path, process: subprocess.Popen[bytes]) -> None:
        self.data_dir, self.process = data_dir, process

    def endpoints(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found if found.get("pids", {}).get("stack") == self.process.pid else {}

    def user(self, login: str) -> dict[str, str]:
        """A sample user by login."""
        return next(user for user in self.endpoints()["users"] if user["login"] == login)

    def kill(self, pid: int) -> None:
        """Kill -9, by pid."""
        os.kill(pid, signal.SIGKILL)


@contextmanager
def running_stack(data_dir: Path, *flags: str) -> Iterator[RunningStack]:
    """Starts the product without the scenario; ends it with SIGTERM and expects a clean exit."""
    log = (data_dir / "stack.log").open("wb")
    command = [sys.executable, "-m", "local", "--no-scenario", "--quiet", "--data", str(data_dir), *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    stack = RunningStack(data_dir, process)
    try:
        wait_until(f"endpoints.json of the stack (log: {log.name})", lambda: process.poll() is not None or stack.endpoints(), START_S)
        assert process.poll() is None, (data_dir / "stack.log").read_text()
        yield stack
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()
