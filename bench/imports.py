"""What a cold start pays for imports: each function beside the usual way, which loads every SDK at the top of one module.

Two figures per function, in CPU milliseconds of a fresh interpreter, median of five: importing the handler, and that with the SDKs that its first call loads
(its rights say which). No network. Run as `python -m bench.imports`.
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


def cpu_ms(statements: list[str]) -> float:
    """CPU milliseconds of these statements in a fresh interpreter, the interpreter's own start left out: the median, after one run that warms the caches."""
    end = ("import os", "os._exit(0)")  # drivers' background threads are not waited for
    program = "\n".join(["import time", "started = time.process_time_ns()", *statements, "print(time.process_time_ns() - started, flush=True)", *end])
    command = [sys.executable, "-P", "-c", program]
    found = [int(subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, check=True, capture_output=True).stdout) for _ in range(RUNS + 1)]
    return statistics.median(found[1:]) / 1e6


def main() -> None:
    """Prints the table."""
    whole_ms = cpu_ms(list(_NAIVE))
    print("Imports of a cold start, CPU ms (fresh interpreter, median of 5); in brackets: how many times the naive module costs\n")
    print(f"{'':16}{'import':>10}{'':9}{'with first call':>17}")
    for function in FUNCTIONS:
        handler = f"import {function.handler.rpartition('.')[0]}"
        alone_ms, used_ms = cpu_ms([handler]), cpu_ms([handler, *first_call(function)])
        print(f"{function.name:16}{alone_ms:10.0f}{f'({whole_ms / alone_ms:.0f}x)':>9}{used_ms:17.0f}{f'({whole_ms / used_ms:.1f}x)':>9}", flush=True)
    print(f"{'naive':16}{'':19}{whole_ms:17.0f}")
    print("\nnaive: boto3 (4 clients), redis, pymongo, PyJWT, firebase-admin, Powertools Logger, Metrics and Tracer, all at the top of the module.")


if __name__ == "__main__":
    main()
