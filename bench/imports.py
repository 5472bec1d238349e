"""What a cold start pays for imports: each function beside the usual way, which loads every SDK at the top of one module.

Per function: importing the handler, and that with the SDKs that its first call loads (its rights say which). Each as CPU milliseconds of a fresh interpreter,
median of five, and as the number of modules that it loads. The last column adds what it costs to compile those that are not Python's own: a function without
bytecode pays it at every cold start. No network. Run as `python -m bench.imports`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from functions.routes import FUNCTIONS, Function, Http

ROOT: Final = Path(__file__).resolve().parent.parent
RUNS: Final = 5
ENVIRONMENT: Final = {
    "PATH": os.environ.get("PATH", ""),
    "PYTHONPATH": str(ROOT),
    "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_EC2_METADATA_DISABLED": "true",
    "LAMBDA_TASK_ROOT": "/var/task",  # as in Lambda: elsewhere the Tracer of the naive module loads nothing
}
_PROGRAM: Final = """
import os, sys, time
before, started = set(sys.modules), time.process_time_ns()
%s
spent_ns, loaded = time.process_time_ns() - started, set(sys.modules) - before
names = [name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names]
files = [file for file in (getattr(sys.modules[name], "__file__", None) for name in names) if file and file.endswith(".py")]
started = time.process_time_ns()
for file in files:
    with open(file, "rb") as source:
        compile(source.read(), file, "exec")
print(spent_ns, len(loaded), time.process_time_ns() - started, flush=True)
os._exit(0)  # drivers' background threads are not waited for
"""
_REDIS: Final = "import redis; redis.Redis()"
_MONGO: Final = "import pymongo; pymongo.MongoClient(connect=False)"
_LOGGER: Final = "from aws_lambda_powertools import Logger; Logger(service='x')"
FIRST_CALL: Final = {  # resource of a right -> what its adapter loads when it is first used
    "redis": "from adapters import redis_client; redis_client.connect('redis://127.0.0.1:1', 'single')",
    "mongo": _MONGO,
    "connections": "import adapters.outbox_apigateway",
    "notifications": "import adapters.queues_sqs",
    "timers": "import adapters.queues_sqs",
    "token_keys": "import adapters.tokens_jwt",
    "media": "from adapters.links_s3 import Links; Links('bucket', 'key', 'eu-west-1')",
    "fcm_credentials": "from firebase_admin import credentials, messaging",
}
_NAIVE: Final = (
    "import boto3; [boto3.client(name) for name in ('apigatewaymanagementapi', 's3', 'sqs', 'secretsmanager')]",
    _REDIS,
    _MONGO,
    "import jwt; from cryptography.hazmat.primitives.asymmetric import ec",
    "from firebase_admin import credentials, messaging",
    "from aws_lambda_powertools import Logger, Metrics, Tracer; Logger(service='x'), Metrics(namespace='x', service='x'), Tracer(service='x')",
)


def first_call(function: Function) -> list[str]:
    """The statements that load what the function's first call loads."""
    resources = dict.fromkeys(right.resource for right in function.rights)
    keeps_answers = any(isinstance(route, Http) and route.replay == "stored" for route in function.routes)
    loads = [FIRST_CALL[resource] for resource in resources if resource in FIRST_CALL]
    return [_LOGGER, *loads, *(["import adapters.idempotency_mongo"] if keeps_answers else [])]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of statements in a fresh interpreter, its own start left out: CPU milliseconds, loaded modules, CPU milliseconds to compile the foreign ones and ours."""

    ms: float
    modules: int
    compile_ms: float


def cost(statements: list[str]) -> Cost:
    """Medians, after one run that warms the caches."""
    command = [sys.executable, "-P", "-c", _PROGRAM % "\n".join(statements)]
    runs = [subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, check=True, capture_output=True).stdout.split() for _ in range(RUNS + 1)]
    ns, modules, compile_ns = (statistics.median(int(run[column]) for run in runs[1:]) for column in range(3))
    return Cost(ns / 1e6, int(modules), compile_ns / 1e6)


def main() -> None:
    """Prints the table."""
    naive = cost(list(_NAIVE))
    print(f"Imports of a cold start, CPU ms (fresh interpreter, median of {RUNS}) and modules; in brackets: how many times the naive module costs\n")
    print(f"{'':16}{'import':>8}{'':8}{'modules':>9}{'with first call':>19}{'':8}{'modules':>9}{'compiled too':>14}")
    for function in FUNCTIONS:
        handler = f"import {function.handler.rpartition('.')[0]}"
        alone, used = cost([handler]), cost([handler, *first_call(function)])
        print(f"{function.name:16}{_columns(naive, alone)}{'':11}{_columns(naive, used)}{used.ms + used.compile_ms:14.0f}", flush=True)
    print(f"{'naive':16}{_columns(naive, naive)}{'':11}{_columns(naive, naive)}{naive.ms + naive.compile_ms:14.0f}")
    print("\nnaive: boto3 (4 clients), redis, pymongo, PyJWT, firebase-admin, Powertools Logger, Metrics and Tracer, all at the top of the module.")


def _columns(naive: Cost, found: Cost) -> str:
    return f"{found.ms:8.0f}{f'({naive.ms / found.ms:.1f}x)':>8}{found.modules:9}"


if __name__ == "__main__":
    main()
