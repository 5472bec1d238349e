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
from .clock import Clock
from .errors import ConnectionLostError, HeliographError, RefusedError, SignedOutError, parse_error

REFRESH_BEFORE_MS = 60_000
REFRESH_TIMEOUT_S = 6.0  # each attempt: all of them must begin within the half minute in which the server gives the same successor again
ATTEMPTS = 4
LONGEST_WAIT_S = 20.0  # who is told to come back later than that is told so: a person waits for the answer


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


@dataclass(frozen=True, slots=True)
class _Request:
    """What is sent, and sent again under the same Idempotency-Key."""

    method: str
    path: str
    body: Mapping[str, Any] | None
    query: Mapping[str, Any] | None
    timeout_s: float | None  # of one attempt; None leaves the HTTP session's own
    key: str


def backoff_s(attempt: int, base_s: float = 0.2, cap_s: float = 20.0) -> float:
    """Full jitter before the next attempt."""
    return full_jitter_s(attempt, random.random(), base_s, cap_s)  # noqa: S311 - jitter, not a secret


class Rest:
    """The REST API of one deployment, for one signed-in device. `session` may be set by whoever kept one."""

    def __init__(self, base_url: str, http: aiohttp.ClientSession) -> None:
        """`base_url` is what stands before `/v1`."""
        self.clock = Clock()
        self.session: Session | None = None
        self._base_url = base_url.rstrip("/")
        self._http = http
        self._refresh_before_ms = REFRESH_BEFORE_MS
        self._refreshing: asyncio.Task[None] | None = None

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        is_public: bool = False,
        query: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """One request, tried again with the same Idempotency-Key while the error says that may help; raises HeliographError."""
        request = _Request(method, path, body, query, timeout_s, secrets.token_hex(16))
        for attempt in range(ATTEMPTS):
            try:
                return await (self._once(request) if is_public else self._authorized(request))
            except HeliographError as error:
                after_s = error.retry_after_s if isinstance(error, RefusedError) else None
                if not error.retryable or attempt == ATTEMPTS - 1 or (after_s or 0.0) > LONGEST_WAIT_S:
                    raise
                await asyncio.sleep(after_s if after_s is not None else backoff_s(attempt))
        raise AssertionError("unreachable")

    async def _authorized(self, request: _Request) -> dict[str, Any]:
        token = await self.token()
        try:
            return await self._once(request, token)
        except SignedOutError:
            return await self._once(request, await self.token(instead_of=token))

    async def _once(self, request: _Request, token: str | None = None) -> dict[str, Any]:
        headers = {"Idempotency-Key": request.key} if request.method == "POST" else {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        url, sent = self._base_url + request.path, request.body
        try:
            async with (
                asyncio.timeout(request.timeout_s),
                self._http.request(request.method, url, json=sent, headers=headers, params=request.query) as response,
            ):
                answer = await _json(response)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ConnectionLostError(f"{request.method} {request.path}: {error or type(error).__name__}") from error
        if response.status >= 400:
            raise parse_error(answer, response.status)
        return answer

    # tokens

    async def sign_in(self, tenant_id: str, login: str, password: str, device_id: str) -> Session:
        """Sign in with a password."""
        body = {"tenant_id": tenant_id, "login": login, "password": password, "device_id": device_id}
        return self._keep(await self.call("POST", "/v1/tokens", body, is_public=True))

    async def sign_in_with_identity(self, tenant_id: str, id_token: str, device_id: str) -> Session:
        """Sign in with the ID token of an OIDC provider or a Firebase project."""
        body = {"tenant_id": tenant_id, "id_token": id_token, "device_id": device_id}
        return self._keep(await self.call("POST", "/v1/tokens/identity", body, is_public=True))

    async def token(self, instead_of: str | None = None) -> str:
        """An access token that is good for a while, and is not `instead_of`. Raises HeliographError; SignedOutError when there is none to be had.

        One refresh at a time, because using a refresh token twice ends the session. It goes on when nobody waits for it any more: an answer that is not heard
        within half a minute is lost, and the session with it.
        """
        session = self._signed_in()
        if session.access_token != instead_of and session.expires_at_ms - self.clock.now_ms() >= self._refresh_before_ms:
            return session.access_token
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refresh(session), name="heliograph refresh")
            self._refreshing.add_done_callback(lambda task: task.cancelled() or task.exception())  # retrieved: nobody may be waiting for it
        await asyncio.shield(self._refreshing)
        return self._signed_in().access_token

    async def close(self) -> None:
        """Stop."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)

    def _signed_in(self) -> Session:
        if self.session is None:
            raise SignedOutError("signed_out", "Call sign_in first.")
        return self.session

    def _keep(self, answer: Mapping[str, Any]) -> Session:
        self.session = Session.parse(answer)
        self._refresh_before_ms = min(REFRESH_BEFORE_MS, (self.session.expires_at_ms - self.clock.now_ms()) // 5)
        return self.session

    async def _refresh(self, session: Session) -> None:
        """Each attempt presents the same refresh token. What comes for a session that is no longer ours, because somebody signed in or out, is dropped."""
        body = {"refresh_token": session.refresh_token}
        try:
            answer = await self.call("POST", "/v1/tokens/refresh", body, is_public=True, timeout_s=REFRESH_TIMEOUT_S)
        except SignedOutError:
            if self.session is session:
                raise
        else:
            if self.session is session:
                self._keep(answer)


async def _json(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        answer = await response.json(content_type=None)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
