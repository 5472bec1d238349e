"""The session store as a node's control plane uses it: the functions' own adapters, called in threads. The hub's subscription has a client of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from adapters import redis_client
from adapters.connections_redis import Connections
from adapters.relays_redis import Relays
from adapters.sigv4 import Credentials
from heliograph.errors import Unavailable

CALL_S: Final = 2.0  # a call ends by the client's own time-outs before that, but on a cluster that changes
MOST_TENANTS: Final = 100_000  # about 20 MB
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Adapters:
    """What a node asks of the session store."""

    relays: Relays
    connections: Connections


class SessionStore:
    """Reached at the first call, and again at each one until it answers."""

    def __init__(self, url: str, mode: str, *, user: str = "", cache: str = "", credentials: Callable[[], Credentials], region: str) -> None:
        self._url, self._mode = url, mode
        self._signed_in = redis_client.sign_in(user, cache, credentials=credentials, region=region)
        self._lock = threading.Lock()
        self._client: Any = None
        self._adapters: Adapters | None = None

    async def ask(self, work: Callable[[Adapters], _T]) -> _T:
        """The answer of a call of an adapter, made in a thread. Raises Unavailable."""
        try:
            async with asyncio.timeout(CALL_S):
                return await asyncio.to_thread(lambda: work(self._reached()))
        except TimeoutError:
            raise Unavailable("The session store did not answer in time.") from None

    def _reached(self) -> Adapters:
        with self._lock:
            if self._adapters is None:
                self._client = redis_client.connect(self._url, self._mode, self._signed_in)
                self._adapters = Adapters(Relays(self._client), Connections(self._client))
            return self._adapters

    async def close(self) -> None:
        if self._client is not None:
            await asyncio.to_thread(self._client.close)


class Tenants:
    """The tenants of accounts. Looked up while an account has an allocation and remembered: the session store forgets an hour after its credentials."""

    def __init__(self, store: SessionStore, most: int = MOST_TENANTS) -> None:
        self._store, self._most = store, most
        self._known: dict[str, str] = {}  # the one not asked for the longest first

    async def of(self, account_ids: Collection[str]) -> dict[str, str]:
        """account_id -> tenant_id of those that are known. Raises Unavailable when it had to ask and nobody answered: `known` has the others."""
        found = {account_id: self._known.pop(account_id) for account_id in set(account_ids) if account_id in self._known}
        self._known |= found
        if missing := set(account_ids) - found.keys():
            asked = await self._store.ask(lambda adapters: adapters.relays.tenants(missing))
            self._known |= asked
            found |= asked
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]
        return found

    def known(self, account_id: str) -> str | None:
        """The tenant, if it was asked for before."""
        return self._known.get(account_id)
