"""What stands before every request and frame, in Redis: token buckets, ended sessions, and what a socket proved since its ticket."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from adapters import keys
from adapters.redis_client import translated
from heliograph.auth import Identity
from heliograph.limits import Bucket


@dataclass(frozen=True, slots=True)
class Lacking:
    """A bucket without a token, and when it has one again."""

    limit: str
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Admission:
    """What Redis knows of a caller. Tokens issued before `stale_before_ms` are to be refreshed; `proved` is the identity that the socket proved last."""

    lacking: Lacking | None
    is_ended: bool
    stale_before_ms: int
    proved: dict[str, Any] | None
    last_seq: int | None


class Admissions:
    def __init__(self, client: Any) -> None:
        self._redis = client
        self._take, self._admit = client.register_script(keys.TAKE), client.register_script(keys.ADMIT)

    def take(self, owner: str, buckets: Sequence[Bucket]) -> Lacking | None:
        """Takes one token of each of a stranger's buckets, or of none; `owner` is an address or a login."""
        names = [keys.limit_of_stranger(owner, bucket.limit.name) for bucket in buckets]
        with translated():
            lacking, wait_us = self._take(keys=names, args=_arguments(buckets))
        return _lacking(buckets, lacking, wait_us)

    def admit(self, who: Identity, buckets: Sequence[Bucket], connection_id: str = "") -> Admission:
        """Takes one token of each bucket, or of none, and reads what is known of the caller and of the socket."""
        owner = (who.tenant_id, who.account_id)
        known = [keys.ended_sessions(*owner), keys.socket_auth(*owner, connection_id), keys.last_seq(*owner, connection_id)]
        names = [keys.limit_of_account(*owner, bucket.limit.name, bucket.owner) for bucket in buckets]
        with translated():
            lacking, wait_us, ended, stale, proved, seq = self._admit(keys=known + names, args=[who.sid, *_arguments(buckets)])
        return Admission(_lacking(buckets, lacking, wait_us), bool(ended), int(stale or 0), json.loads(proved) if proved else None, int(seq) if seq else None)

    def end_sessions(self, tenant_id: str, account_id: str, sids: Iterable[str]) -> None:
        """From now on no access token of these sessions is taken."""
        self._mark(tenant_id, account_id, dict.fromkeys(sids, 1))

    def make_stale(self, tenant_id: str, account_id: str, before_ms: int) -> None:
        """Access tokens of the account that were issued before are to be refreshed."""
        self._mark(tenant_id, account_id, {"*": before_ms})

    def prove(self, who: Identity, connection_id: str) -> None:
        """From now on this socket speaks for that identity."""
        with translated():
            self._redis.set(keys.socket_auth(who.tenant_id, who.account_id, connection_id), json.dumps(who.as_context()), ex=keys.CONNECTION_S)

    def proved(self, tenant_id: str, account_id: str, connection_id: str) -> dict[str, Any] | None:
        """What the socket proved last, if it did so after its ticket."""
        with translated():
            found = self._redis.get(keys.socket_auth(tenant_id, account_id, connection_id))
        return json.loads(found) if found else None

    def _mark(self, tenant_id: str, account_id: str, marks: dict[str, int]) -> None:
        if not marks:
            return
        key = keys.ended_sessions(tenant_id, account_id)
        with translated(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hset(key, mapping=marks)
            pipe.expire(key, keys.ENDED_SESSION_S)
            pipe.execute()


def _arguments(buckets: Sequence[Bucket]) -> list[int]:
    return [number for bucket in buckets for number in (bucket.limit.interval_us, bucket.limit.burst)]


def _lacking(buckets: Sequence[Bucket], index: int, wait_us: int) -> Lacking | None:
    return Lacking(buckets[index - 1].limit.name, -(-wait_us // 1000)) if index else None
