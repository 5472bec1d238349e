"""Child processes kept alive: started in their own group, waited for until they really answer, started again when they die, ended by pid.

Knows processes and nothing of what they serve: readiness is a function of the child. A pid file lets the next run end what a killed run left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_RESTART_DELAY_S: Final = 0.1
_MAX_RESTART_DELAY_S: Final = 5.0
_STEADY_AFTER_S: Final = 10.0
_PROBE_EVERY_S: Final = 0.05


_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG: Final = 1


class NotReady(Exception):
    """The child does not answer yet; the text says what is missing."""


class ChildFailed(Exception):
    """A child did not come up; the text says which, why, and where its log lies."""


@dataclass(frozen=True, slots=True)
class Child:
    """One process to keep alive. `probe` raises NotReady until the service answers its own protocol; then `restored` runs, and the child is ready."""

    name: str
    argv: tuple[str, ...]
    probe: Callable[[], Awaitable[None]]
    environment: Mapping[str, str] = field(default_factory=dict)
    restored: Callable[[], Awaitable[None]] | None = None
    died: Callable[[], None] | None = None
    start_timeout_s: float = 30.0
    stop_timeout_s: float = 8.0


class Supervisor:
    """Runs children until `stop`. Logs go to `log_dir/<name>.log`, pids to `pid_file`."""

    def __init__(self, log_dir: Path, pid_file: Path, *, report: Callable[[str, str], None] = lambda name, state: None) -> None:
        self._log_dir, self._pid_file, self._report = log_dir, pid_file, report
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stop_timeout_s: dict[str, float] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._is_ready: dict[str, asyncio.Event] = {}
        self.restarts: dict[str, int] = {}
        log_dir.mkdir(parents=True, exist_ok=True)

    def pids(self) -> dict[str, int]:
        """The pids of the living children by name."""
        return {name: process.pid for name, process in self._processes.items() if process.returncode is None}

    async def start(self, child: Child) -> None:
        """Start a child and return when it is ready. Raises ChildFailed."""
        self._is_ready[child.name] = asyncio.Event()
        self._stop_timeout_s[child.name] = child.stop_timeout_s
        self.restarts[child.name] = 0
        process = await self._spawn(child)
        try:
            await self._wait_until_ready(child, process)
        except BaseException:
            await self._end(process, child.stop_timeout_s)
            raise
        self._watchers[child.name] = asyncio.create_task(self._watch(child, process), name=f"watch {child.name}")

    async def wait_until_ready(self, name: str, timeout_s: float) -> None:
        """Return when the child is ready (again). Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            await self._is_ready[name].wait()

    async def stop(self) -> None:
        """End every child, all at once, and return when they are gone."""
        for watcher in self._watchers.values():
            watcher.cancel()
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)
        self._watchers.clear()
        await asyncio.gather(*(self._end(process, self._stop_timeout_s[name]) for name, process in self._processes.items()))
        self._processes.clear()
        self._pid_file.unlink(missing_ok=True)

    async def _spawn(self, child: Child) -> asyncio.subprocess.Process:
        self._report(child.name, "starting")
        with (self._log_dir / f"{child.name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *child.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **child.environment},
                start_new_session=True,
                preexec_fn=_end_with_parent if _LIBC is not None else None,
            )
        self._processes[child.name] = process
        self._write_pids()
        return process

    async def _wait_until_ready(self, child: Child, process: asyncio.subprocess.Process) -> None:
        missing, deadline = "no answer yet", time.monotonic() + child.start_timeout_s
        while True:
            try:
                await child.probe()
                break
            except NotReady as reason:
                missing = str(reason)
                self._report(child.name, f"waiting: {missing}")
            log = self._log_dir / f"{child.name}.log"
            if process.returncode is not None:
                raise ChildFailed(f"{child.name} ended with status {process.returncode} while starting: {_tail(log)} (log: {log})")
            if time.monotonic() > deadline:
                raise ChildFailed(f"{child.name} is not ready after {child.start_timeout_s:.0f} s: {missing} (log: {log})")
            await asyncio.sleep(_PROBE_EVERY_S)
        if child.restored is not None:
            self._report(child.name, "restoring")
            await child.restored()
        self._is_ready[child.name].set()
        self._write_pids()
        self._report(child.name, "ready")

    async def _watch(self, child: Child, process: asyncio.subprocess.Process) -> None:
        """Start the child again whenever it dies; the delay doubles while it keeps dying young."""
        delay_s, started = _RESTART_DELAY_S, time.monotonic()
        while True:
            await process.wait()
            self._is_ready[child.name].clear()
            delay_s = _RESTART_DELAY_S if time.monotonic() - started > _STEADY_AFTER_S else min(_MAX_RESTART_DELAY_S, delay_s)
            self._report(child.name, f"died with status {process.returncode}, starting again in {delay_s:g} s")
            if child.died is not None:
                child.died()
            await asyncio.sleep(delay_s)
            started, delay_s = time.monotonic(), delay_s * 2
            self.restarts[child.name] += 1
            process = await self._spawn(child)
            try:
                await self._wait_until_ready(child, process)
            except Exception as reason:
                self._report(child.name, str(reason))
                await self._end(process, child.stop_timeout_s)

    async def _end(self, process: asyncio.subprocess.Process, timeout_s: float) -> None:
        """SIGTERM, then SIGKILL to the group; return when the process is gone and its locks are free."""
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), timeout_s)
        if process.returncode is None:
            _signal_group(process.pid, signal.SIGKILL)
        await process.wait()

    def _write_pids(self) -> None:
        data = {name: {"pid": pid, "argv": command_line(pid)} for name, pid in self.pids().items()}
        new = self._pid_file.with_suffix(".tmp")
        new.write_text(json.dumps(data))
        new.replace(self._pid_file)


def end_stale(pid_file: Path, timeout_s: float = 8.0) -> list[str]:
    """End the children that a killed run left behind, by pid, and only where the command line is still theirs. Returns their names."""
    try:
        left: dict[str, dict[str, object]] = json.loads(pid_file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return []
    stale = {name: int(str(entry["pid"])) for name, entry in left.items() if entry["argv"] and command_line(int(str(entry["pid"]))) == entry["argv"]}
    for pid in stale.values():
        _signal_group(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while any(command_line(pid) for pid in stale.values()) and time.monotonic() < deadline:
        time.sleep(0.05)
    for name, pid in stale.items():
        if command_line(pid) == left[name]["argv"]:
            _signal_group(pid, signal.SIGKILL)
    pid_file.unlink(missing_ok=True)
    return list(stale)


def command_line(pid: int) -> list[str]:
    """The arguments of a living process as the system shows them; empty when there is none."""
    try:
        words = [word.decode(errors="replace") for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if word]
        return words if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" else []
    except FileNotFoundError:
        pass
    if Path("/proc/self").exists():
        return []
    answer = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.split()


def _end_with_parent() -> None:
    """prctl(2): on Linux the kernel ends the child when we are killed; elsewhere the next run's `end_stale` does."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it said nothing"
    return "it said nothing"
