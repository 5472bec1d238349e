"""Secrets Manager: JSON secrets. `read_secret` reads once per process: a rotated one is picked up by the next process or after `forget()`."""

from __future__ import annotations

import json
import uuid
from functools import cache
from typing import Any

from adapters.aws_json import call


@cache
def read_secret(secret_id: str) -> dict[str, Any]:
    """The secret's JSON object, as it was when this process first asked."""
    return read_secret_now(secret_id)


def read_secret_now(secret_id: str) -> dict[str, Any]:
    """The secret's JSON object as it is now."""
    return dict(json.loads(call("secretsmanager", "secretsmanager.GetSecretValue", {"SecretId": secret_id})["SecretString"]))


def write_secret(secret_id: str, value: dict[str, Any]) -> None:
    """Stores a new version of the secret."""
    call("secretsmanager", "secretsmanager.PutSecretValue", {"SecretId": secret_id, "SecretString": json.dumps(value), "ClientRequestToken": str(uuid.uuid4())})


def forget() -> None:
    """Reads every secret anew next time."""
    read_secret.cache_clear()
