"""Live sockets in Redis: the connections of an account, and those that are in a room.

Losing all of it loses no message: `hello`, `join` and every `ping` write the entries again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from adapters import keys
from adapters.redis_client import translated
from heliograph.errors import ConnectedElsewhere
from heliograph.presence import Connection
from heliograph.rooms import Participant, Roster


class Connections:
    def __init__(self, client: Any) -> None:
        self._redis = client
        self._enter, self._leave, self._advance = (client.register_script(text) for text in (keys.ENTER_ROOM, keys.LEAVE_ROOM, keys.ADVANCE))

    def put(self, tenant_id: str, account_id: str, connection: Connection) -> list[Connection]:
        """Stores the connection, whose frames are counted from here on; returns every connection of the account, this one included."""
        key = keys.connections(tenant_id, account_id)
        with translated(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hset(key, connection.connection_id, _dump(connection))
            pipe.expire(key, keys.CONNECTION_S)
            pipe.set(keys.last_seen(tenant_id, account_id), connection.seen_at_ms, ex=keys.LAST_SEEN_S)
            pipe.set(keys.last_seq(tenant_id, account_id, connection.connection_id), 0, nx=True, ex=keys.CONNECTION_S)
            pipe.hgetall(key)
            return _load_all(pipe.execute()[-1])

    def own(self, tenant_id: str, account_id: str, connection_id: str, device_id: str, generation: int, now_ms: int) -> Connection:
        """The stored connection as seen now, or a new one when Redis does not know it. ConnectedElsewhere when a newer socket of the device is there."""
        known = self.of_account(tenant_id, account_id)
        if any(c.device_id == device_id and c.generation > generation for c in known):
            raise ConnectedElsewhere
        fresh = Connection(connection_id, device_id, generation, "online", now_ms)
        return replace(next((c for c in known if c.connection_id == connection_id), fresh), seen_at_ms=now_ms)

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

    def enter_room(self, tenant_id: str, room_id: str, participant: Participant) -> tuple[bool, Roster]:
        """Puts the socket into the room: (whether it was not in it before, the roster now)."""
        entry = json.dumps([participant.account_id, participant.device_id])
        return self._roster(self._enter, tenant_id, room_id, participant.connection_id, entry)

    def leave_room(self, tenant_id: str, room_id: str, connection_ids: Iterable[str]) -> tuple[bool, Roster]:
        """Takes sockets out of the room: (whether one of them was in it, the roster now)."""
        return self._roster(self._leave, tenant_id, room_id, *connection_ids)

    def in_room(self, tenant_id: str, room_id: str) -> list[Participant]:
        with translated():
            return _participants(self._redis.hgetall(keys.room_live(tenant_id, room_id)))

    def may_tell_presence(self, tenant_id: str, account_id: str) -> tuple[bool, bool]:
        """(may be told now, must be queued for later): at most one telling a second and account, and the last change is never lost."""
        with translated():
            if self._redis.set(keys.presence_gate(tenant_id, account_id), 1, nx=True, px=keys.PRESENCE_GATE_MS):
                return True, False
            return False, bool(self._redis.set(keys.presence_pending(tenant_id, account_id), 1, nx=True, px=10 * keys.PRESENCE_GATE_MS))

    def presence_is_due(self, tenant_id: str, account_id: str) -> None:
        """The queued telling is being done: a change from now on queues another one."""
        with translated():
            self._redis.delete(keys.presence_pending(tenant_id, account_id))

    def last_seq(self, tenant_id: str, account_id: str, connection_id: str) -> int | None:
        """The highest client_seq of the socket that was handled; None when Redis does not know the socket, or lost it."""
        with translated():
            found = self._redis.get(keys.last_seq(tenant_id, account_id, connection_id))
        return None if found is None else int(found)

    def advance_seq(self, tenant_id: str, account_id: str, connection_id: str, seq: int) -> None:
        with translated():
            self._advance(keys=[keys.last_seq(tenant_id, account_id, connection_id)], args=[seq, keys.CONNECTION_S])

    def _roster(self, script: Any, tenant_id: str, room_id: str, *args: str) -> tuple[bool, Roster]:
        names = [keys.room_live(tenant_id, room_id), keys.room_roster(tenant_id, room_id)]
        with translated():
            changed, epoch, version, flat = script(keys=names, args=[secrets.token_hex(8), keys.ROOM_LIVE_S, *args])
        stored = dict(zip(flat[::2], flat[1::2], strict=True))
        return changed > 0, Roster(epoch, int(version), tuple(_participants(stored)))


def _dump(connection: Connection) -> str:
    return json.dumps([connection.device_id, connection.generation, connection.status, connection.seen_at_ms, connection.watches])


def _load_all(stored: dict[str, str]) -> list[Connection]:
    return [_connection(connection_id, *json.loads(text)) for connection_id, text in stored.items()]


def _connection(connection_id: str, device_id: str, generation: int, status: str, seen_at_ms: int, watches: list[str] | None) -> Connection:
    return Connection(connection_id, device_id, generation, status, seen_at_ms, None if watches is None else tuple(watches))


def _participants(stored: dict[str, str]) -> list[Participant]:
    return [Participant(connection_id, *json.loads(text)) for connection_id, text in stored.items()]
