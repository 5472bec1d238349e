"""One use per ticket or assertion: the first to mark its `jti` wins."""

from __future__ import annotations

from typing import Any

from adapters import keys
from adapters.redis_client import translated


class OneUse:
    def __init__(self, client: Any) -> None:
        self._redis = client

    def take(self, tenant_id: str, account_id: str, jti: str, kept_s: int) -> bool:
        """Whether this is the first use; remembered for `kept_s`."""
        with translated():
            return bool(self._redis.set(keys.ticket(tenant_id, account_id, jti), 1, nx=True, ex=kept_s))
