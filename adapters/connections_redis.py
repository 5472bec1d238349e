"""Live sockets in Redis: the connections of an account, and those that are in a room.

Losing all of it loses no message: `hello`, `join` and every `ping` write the entries again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from adapters import keys
from adapters.redis_client import translated
from heliograph.presence import Connection
from heliograph.rooms import Participant


class Connections:
    def __init__(self, client: Any) -> None:
        self._redis = client

    def put(self, tenant_id: str, account_id: str, connection: Connection) -> list[Connection]:
        """Stores the connection; returns every connection of the account, this one included."""
        key = keys.connections(tenant_id, account_id)
        with translated(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hset(key, connection.connection_id, _dump(connection))
            pipe.expire(key, keys.CONNECTION_S)
            pipe.set(keys.last_seen(tenant_id, account_id), connection.seen_at_ms, ex=keys.LAST_SEEN_S)
            pipe.hgetall(key)
            return _load_all(pipe.execute()[-1])

    def remove(self, tenant_id: str, account_id: str, connection_ids: Iterable[str]) -> list[Connection]:
        """Forgets connections; returns those that are left."""
        key, gone = keys.connections(tenant_id, account_id), list(connection_ids)
        with translated(), self._redis.pipeline(transaction=False) as pipe:
            if gone:
                pipe.hdel(key, *gone)
            pipe.hgetall(key)
            return _load_all(pipe.execute()[-1])

    def of_account(self, tenant_id: str, account_id: str) -> list[Connection]:
        with translated():
            return _load_all(self._redis.hgetall(keys.connections(tenant_id, account_id)))

    def of_accounts(self, tenant_id: str, account_ids: Iterable[str]) -> dict[str, tuple[list[Connection], int]]:
        """account_id -> (its connections, last_seen_at_ms) in one round trip per slot."""
        ids = list(account_ids)
        with translated(), self._redis.pipeline(transaction=False) as pipe:
            for account_id in ids:
                pipe.hgetall(keys.connections(tenant_id, account_id))
                pipe.get(keys.last_seen(tenant_id, account_id))
            answers = pipe.execute()
        return {account_id: (_load_all(answers[2 * i]), int(answers[2 * i + 1] or 0)) for i, account_id in enumerate(ids)}

    def enter_room(self, tenant_id: str, room_id: str, participant: Participant) -> list[Participant]:
        """Puts the socket into the room; returns all who are in it."""
        key = keys.room_live(tenant_id, room_id)
        with translated(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hset(key, participant.connection_id, json.dumps([participant.account_id, participant.device_id]))
            pipe.expire(key, keys.ROOM_LIVE_S)
            pipe.hgetall(key)
            return _participants(pipe.execute()[-1])

    def leave_room(self, tenant_id: str, room_id: str, connection_ids: Iterable[str]) -> int:
        """Takes sockets out of the room; returns how many were in it."""
        gone = list(connection_ids)
        if not gone:
            return 0
        with translated():
            return int(self._redis.hdel(keys.room_live(tenant_id, room_id), *gone))

    def in_room(self, tenant_id: str, room_id: str) -> list[Participant]:
        with translated():
            return _participants(self._redis.hgetall(keys.room_live(tenant_id, room_id)))


def _dump(connection: Connection) -> str:
    return json.dumps([connection.device_id, connection.generation, connection.status, connection.seen_at_ms])


def _load_all(stored: dict[str, str]) -> list[Connection]:
    return [Connection(connection_id, *json.loads(text)) for connection_id, text in stored.items()]


def _participants(stored: dict[str, str]) -> list[Participant]:
    return [Participant(connection_id, *json.loads(text)) for connection_id, text in stored.items()]
