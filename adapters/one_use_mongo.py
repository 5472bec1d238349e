"""One use per ticket or assertion while Redis is away: the first to insert its `jti` wins. MongoDB removes the mark by itself."""

from __future__ import annotations

import datetime as dt
from typing import Any

from adapters.mongo_client import translated


class OneUse:
    def __init__(self, database: Any) -> None:
        self._used = database.used_tickets

    def take(self, tenant_id: str, account_id: str, jti: str, kept_s: int, now_ms: int) -> bool:
        """Whether this is the first use; remembered for `kept_s`."""
        from pymongo.errors import DuplicateKeyError

        expires_at = dt.datetime.fromtimestamp(now_ms / 1000 + kept_s, dt.UTC)
        try:
            with translated():
                self._used.insert_one({"tenant_id": tenant_id, "account_id": account_id, "jti": jti, "expires_at": expires_at, "schema_version": 1})
        except DuplicateKeyError:
            return False
        return True
