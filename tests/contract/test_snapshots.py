"""SnapStart: what is loaded before the snapshot, what is dropped after it. Lambda's runtime is stood for by a module that keeps the hooks.

What the real one does with them: Lambda developer guide, "Lambda SnapStart runtime hooks for Python".
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

import pytest

from adapters import aws_json, redis_client, secrets_aws
from adapters.settings import PREFIX, Settings
from functions import snapshots, wiring
from functions.routes import FUNCTIONS, Authorizer, Function, Http, Socket
from heliograph.errors import Unavailable
from infra.cdk.imports import reached_by

ROOT: Final = Path(__file__).resolve().parents[2]
WAITED_FOR: Final = [function for function in FUNCTIONS if any(isinstance(route, Http | Socket | Authorizer) for route in function.routes)]
RUNTIME: Final = """
before, after = [], []
def register_before_snapshot(hook, *args, **kwargs): before.append(lambda: hook(*args, **kwargs))
def register_after_restore(hook, *args, **kwargs): after.append(lambda: hook(*args, **kwargs))
"""
NAMES: Final = {  # resource of a right -> the names in its modules, ours and others'
    "redis": ("redis",),
    "mongo": ("mongo", "pymongo"),
    "connections": ("apigateway",),
    "timers": ("sqs",),
    "token_keys": ("jwt", "cryptography"),
    "media": ("s3", "boto3", "botocore"),
    "fcm_credentials": ("fcm",),
}
LIFE: Final = """
import json, random, sys
touched = []
sys.addaudithook(lambda name, args: touched.append(name) if name in ("socket.connect", "socket.getaddrinfo") else None)
import {module}
import snapshot_restore_py as runtime
for hook in reversed(runtime.before): hook()
loaded = sorted(sys.modules)
from functions import wiring
built = [name for name, made in vars(wiring).items() if hasattr(made, "cache_info") and made.cache_info().currsize]
random.seed(7)
expected = random.random()
random.seed(7)
for hook in runtime.after: hook()
hooks = [len(runtime.before), len(runtime.after)]
print(json.dumps({{"loaded": loaded, "touched": touched, "built": built, "same": random.random() == expected, "hooks": hooks}}))
import os; sys.stdout.flush(); os._exit(0)
"""


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    (folder / f"{snapshots.RUNTIME}.py").write_text(RUNTIME)
    return folder


def lived(function: Function, runtime: Path) -> dict[str, Any]:
    """A fresh process of this function through both hooks."""
    environment = {PREFIX + item.name.upper(): "x" for item in fields(Settings) if item.default is MISSING}
    environment |= {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": f"{ROOT}:{runtime}", "AWS_REGION": "eu-west-1", "_HANDLER": function.handler}
    program = LIFE.format(module=function.handler.rpartition(".")[0])
    ended = subprocess.run([sys.executable, "-P", "-c", program], env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("function", WAITED_FOR, ids=lambda function: function.name)
def test_before_the_snapshot_a_function_loads_what_it_will_need_and_touches_nothing(function: Function, runtime: Path) -> None:
    found = lived(function, runtime)
    assert found["hooks"] == [1, 1]
    assert (found["touched"], found["built"]) == ([], []), "no connection, and no adapter that could hold one"
    missing = {module for module in used(function) if module not in found["loaded"]}
    assert not missing, f"functions/{function.name} would load {', '.join(sorted(missing))} at its first call: name it in functions/snapshots.py"
    assert not found["same"], "Python's generator has another seed in every copy"


def used(function: Function) -> set[str]:
    """What the function's source reaches, without the stores and services that it has no right to: the edge can do more than each function may."""
    reached, held = reached_by(function.handler), {right.resource for right in function.rights}
    keeps_answers = any(isinstance(route, Http) and route.replay == "stored" for route in function.routes)
    may = {name for resource, names in NAMES.items() if resource in held for name in names}
    may_not = {name for names in NAMES.values() for name in names} - may | (set() if keeps_answers else {"idempotency"})
    modules = {module for module in reached.modules if module.startswith("adapters.")} | {statement.split()[1] for statement in reached.statements}
    return {module for module in modules if not may_not & set(re.split(r"[._]", module))}


def test_without_lambdas_runtime_nothing_is_registered() -> None:
    with pytest.raises(ImportError):
        __import__(snapshots.RUNTIME)
    snapshots.register(wiring.forget)


def test_after_a_restore_everything_that_held_a_socket_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {item.name: "redis://127.0.0.1:1" for item in fields(Settings) if item.default is MISSING}.items():
        monkeypatch.setenv(PREFIX + name.upper(), value)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    wiring.forget()
    redis, log = wiring.redis(), wiring.logger()
    with pytest.raises(Unavailable):
        secrets_aws.read_secret_now("any")
    assert aws_json._kept.__dict__
    with pytest.raises(Unavailable), redis_client.translated():
        redis.ping()
    before = random.getstate()
    snapshots.wake(wiring.forget)
    try:
        assert wiring.redis() is not redis
        assert wiring.logger() is log
        assert not aws_json._kept.__dict__
        assert random.getstate() != before
        with redis_client.translated():
            pass  # Redis may be tried at once: it was another machine that could not reach it
    finally:
        wiring.forget()
