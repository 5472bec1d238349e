"""What a cold start pays for imports: each function beside the usual way, which loads every SDK at the top of one module.

Per function: importing the handler, and that with the SDKs that its first call loads (its rights say which). Each as CPU milliseconds of a fresh interpreter,
median of five, and as the number of modules that it loads. No network. Run as `python -m bench.imports`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
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


def cost(statements: list[str]) -> tuple[float, int]:
    """CPU milliseconds and loaded modules of these statements in a fresh interpreter, its own start left out: medians, after one run that warms the caches."""
    start = ("import sys, time", "before = len(sys.modules)", "started = time.process_time_ns()")
    end = ("print(time.process_time_ns() - started, len(sys.modules) - before, flush=True)", "import os", "os._exit(0)")  # no waiting for drivers' threads
    command = [sys.executable, "-P", "-c", "\n".join([*start, *statements, *end])]
    runs = [subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, check=True, capture_output=True).stdout.split() for _ in range(RUNS + 1)]
    return statistics.median(int(ns) for ns, _ in runs[1:]) / 1e6, int(statistics.median_low(int(modules) for _, modules in runs[1:]))


def main() -> None:
    """Prints the table."""
    naive_ms, naive_modules = cost(list(_NAIVE))
    print(f"Imports of a cold start, CPU ms (fresh interpreter, median of {RUNS}) and modules; in brackets: how many times the naive module costs\n")
    print(f"{'':16}{'import':>8}{'':8}{'modules':>9}{'with first call':>19}{'':8}{'modules':>9}")
    for function in FUNCTIONS:
        handler = f"import {function.handler.rpartition('.')[0]}"
        alone, used = _columns(naive_ms, *cost([handler])), _columns(naive_ms, *cost([handler, *first_call(function)]))
        print(f"{function.name:16}{alone}{'':11}{used}", flush=True)
    print(f"{'naive':16}{_columns(naive_ms, naive_ms, naive_modules)}{'':11}{_columns(naive_ms, naive_ms, naive_modules)}")
    print("\nnaive: boto3 (4 clients), redis, pymongo, PyJWT, firebase-admin, Powertools Logger, Metrics and Tracer, all at the top of the module.")


def _columns(naive_ms: float, ms: float, modules: int) -> str:
    return f"{ms:8.0f}{f'({naive_ms / ms:.1f}x)':>8}{modules:9}"


if __name__ == "__main__":
    main()
