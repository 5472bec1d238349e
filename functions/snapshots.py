"""Lambda SnapStart: what a function loads before its snapshot is taken, and what it must not keep when it wakes up from one.

Before: only imports. Nothing connects, reads a secret or draws a random number, because all that would be the same in every copy of the snapshot.
After: whatever holds a socket or somebody's state is made anew, and Python's own generator gets another seed; ids and secrets come from the system's.
Source: Lambda developer guide, "Lambda SnapStart runtime hooks for Python", "Handling uniqueness with Lambda SnapStart".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Final

from adapters import aws_json, redis_client, secrets_aws
from adapters import settings as settings_module
from functions.routes import FUNCTIONS, Function, Http

RUNTIME: Final = "snapshot_restore_py"  # part of Lambda's Python runtime; elsewhere there are no snapshots
_ALWAYS: Final = ("adapters.aws_credentials", "aws_lambda_powertools", "http.client", "ssl", "urllib.request")  # after a restore keys come from an endpoint
_SDKS: Final = {  # resource of a right -> what its adapters load when they are first used
    "redis": ("redis", "redis.cluster"),
    "mongo": ("pymongo",),
    "token_keys": ("cryptography.hazmat.primitives.serialization", "jwt"),
    "media": ("boto3", "botocore.config", "botocore.signers", "s3transfer"),
    "fcm_credentials": ("firebase_admin.credentials", "firebase_admin.messaging"),
}
_ADAPTERS: Final = {  # resource -> the end of the names of its adapters
    "redis": "_redis",
    "mongo": "_mongo",
    "connections": "_apigateway",
    "notifications": "_sqs",
    "timers": "_sqs",
    "token_keys": "_jwt",
    "media": "_s3",
    "fcm_credentials": "_fcm",
}
_NO_FUNCTIONS: Final = ("migrations_", "usage_")  # of operators and relays
_KEEPS_ANSWERS: Final = ("adapters.idempotency_mongo",)
_SIGNS_IN_BY_IDENTITY: Final = ("adapters.identity_firebase", "adapters.identity_oidc", "firebase_admin.auth", "google.auth.credentials")


def register(forget: Callable[[], None]) -> None:
    """Hands both hooks to Lambda's runtime where it has them; `forget` drops the adapters that were built."""
    try:
        runtime = import_module(RUNTIME)
    except ImportError:
        return
    runtime.register_before_snapshot(load)
    runtime.register_after_restore(wake, forget)


def load() -> None:
    """Imports what this process's function will need."""
    for function in FUNCTIONS:
        if function.handler == settings_module.lambda_handler():
            for name in needed(function):
                import_module(name)


def needed(function: Function) -> Iterator[str]:
    """The modules that its rights and routes say it will load."""
    resources = dict.fromkeys(right.resource for right in function.rights)
    ends = tuple(_ADAPTERS[resource] for resource in resources if resource in _ADAPTERS)
    yield from _ALWAYS
    for resource in resources:
        yield from _SDKS.get(resource, ())
    for path in sorted(Path(settings_module.__file__).parent.glob("*.py")):
        if path.stem.endswith(ends) and not path.stem.startswith(_NO_FUNCTIONS):
            yield f"adapters.{path.stem}"
    routes = [route for route in function.routes if isinstance(route, Http)]
    if any(route.replay == "stored" for route in routes):
        yield from _KEEPS_ANSWERS
    if any(route.body == "IdentitySignIn" for route in routes):
        yield from _SIGNS_IN_BY_IDENTITY


def wake(forget: Callable[[], None]) -> None:
    """A copy of the snapshot starts to live."""
    forget()
    secrets_aws.forget()
    aws_json.hang_up()
    redis_client.forget_failure()
    settings_module.forget_credentials()
    random.seed()
