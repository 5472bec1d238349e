"""The record of a call in Redis, written only over the version that was read. Lost with Redis: the next offer begins the call anew."""

from __future__ import annotations

import json
from typing import Any

from adapters import keys
from adapters.redis_client import translated
from heliograph.negotiation import Call


class Calls:
    def __init__(self, client: Any) -> None:
        self._redis, self._replace = client, client.register_script(keys.REPLACE_CALL)

    def get(self, tenant_id: str, room_id: str, call_id: str) -> Call | None:
        with translated():
            text = self._redis.get(keys.call(tenant_id, room_id, call_id))
        return Call.from_json(json.loads(text)) if text else None

    def replace(self, tenant_id: str, room_id: str, call: Call, before: Call | None) -> bool:
        """Whether the record still was the one decided on; if not, read and decide again."""
        ttl_s = keys.ENDED_CALL_S if call.state == "ended" else keys.CALL_S
        args = [before.version if before else 0, json.dumps(call.as_json()), ttl_s]
        with translated():
            return bool(self._replace(keys=[keys.call(tenant_id, room_id, call.call_id)], args=args))
