"""REST: tokens and their refresh, idempotency keys, retries, the error shape. Knows HTTP and nothing of what the routes mean."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from .backoff import full_jitter_s
from .errors import ConnectionLostError, HeliographError, RefusedError, SignedOutError, parse_error
from .ids import now_ms

REFRESH_BEFORE_MS = 60_000
ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Session:
    """Who is signed in on which device."""

    tenant_id: str
    account_id: str
    device_id: str
    access_token: str
    refresh_token: str
    expires_at_ms: int

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Session:
        """Read the answer of `POST /v1/tokens`."""
        return cls(**{name: body[name] for name in cls.__slots__})


def backoff_s(attempt: int, base_s: float = 0.2, cap_s: float = 20.0) -> float:
    """Full jitter before the next attempt."""
    return full_jitter_s(attempt, random.random(), base_s, cap_s)  # noqa: S311 - jitter, not a secret


class Rest:
    """The REST API of one deployment, for one signed-in device."""

    def __init__(self, base_url: str, http: aiohttp.ClientSession) -> None:
        """`base_url` is what stands before `/v1`."""
        self._base_url = base_url.rstrip("/")
        self._http = http
        self._refreshing = asyncio.Lock()
        self.session: Session | None = None

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, is_public: bool = False, query: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """One request, tried again with the same Idempotency-Key while the error says that may help; raises HeliographError."""
        key = secrets.token_hex(16)
        for attempt in range(ATTEMPTS):
            try:
                return await self._authorized(method, path, body, key, is_public, query)
            except HeliographError as error:
                if not error.retryable or attempt == ATTEMPTS - 1:
                    raise
                after_s = error.retry_after_s if isinstance(error, RefusedError) else None
                await asyncio.sleep(after_s if after_s is not None else backoff_s(attempt))
        raise AssertionError("unreachable")

    async def _authorized(
        self, method: str, path: str, body: Mapping[str, Any] | None, key: str, is_public: bool, query: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        if is_public:
            return await self._once(method, path, body, key, None, query)
        token = await self._token()
        try:
            return await self._once(method, path, body, key, token, query)
        except SignedOutError:
            return await self._once(method, path, body, key, await self._token(instead_of=token), query)

    async def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None, key: str, token: str | None, query: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        headers = {"Idempotency-Key": key} if method == "POST" else {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with self._http.request(method, self._base_url + path, json=body if body is not None else None, headers=headers, params=query) as response:
                answer = await _json(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConnectionLostError(f"{method} {path}: {error or type(error).__name__}") from error
        if response.status >= 400:
            raise parse_error(answer, response.status)
        return answer

    async def sign_in(self, tenant_id: str, login: str, password: str, device_id: str) -> Session:
        """Sign in with a password."""
        body = {"tenant_id": tenant_id, "login": login, "password": password, "device_id": device_id}
        self.session = Session.parse(await self.call("POST", "/v1/tokens", body, is_public=True))
        return self.session

    async def _token(self, instead_of: str | None = None) -> str:
        """A token that is good for a while; one refresh at a time, because using a refresh token twice ends the session."""
        if self.session is None:
            raise SignedOutError("signed_out", "Call sign_in first.")
        async with self._refreshing:
            if self.session.expires_at_ms - now_ms() < REFRESH_BEFORE_MS or self.session.access_token == instead_of:
                answer = await self.call("POST", "/v1/tokens/refresh", {"refresh_token": self.session.refresh_token}, is_public=True)
                self.session = Session.parse(answer)
            return self.session.access_token


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        answer = await response.json(content_type=None)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
