"""The decision board's memory of one sender in one call. Lost with Redis: the board then starts anew."""

from __future__ import annotations

import json
from typing import Any

from adapters import keys
from adapters.redis_client import translated
from heliograph.bitrate.board import State, state_from


class Boards:
    def __init__(self, client: Any) -> None:
        self._redis = client

    def get(self, tenant_id: str, account_id: str, device_id: str, call_id: str) -> State | None:
        with translated():
            text = self._redis.get(keys.board(tenant_id, account_id, device_id, call_id))
        return state_from(json.loads(text)) if text else None

    def put(self, tenant_id: str, account_id: str, device_id: str, call_id: str, state: State) -> None:
        with translated():
            self._redis.set(keys.board(tenant_id, account_id, device_id, call_id), json.dumps(state.as_json()), ex=keys.BOARD_S)
