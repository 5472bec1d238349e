"""Secrets Manager: JSON secrets, read once per process. A rotated secret is picked up by the next process or after `forget()`."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from adapters.aws_json import call


@cache
def read_secret(secret_id: str) -> dict[str, Any]:
    """The secret's JSON object."""
    return dict(json.loads(call("secretsmanager", "secretsmanager.GetSecretValue", {"SecretId": secret_id})["SecretString"]))


def forget() -> None:
    """Reads every secret anew next time."""
    read_secret.cache_clear()
