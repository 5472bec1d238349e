"""Every limit while Redis is killed, and while it hangs: open ones let pass, closed ones say `unavailable`. And who is signed out stays out."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bench._running import running
from heliograph.limits import LIMITS
from heliograph_client import make_id
from local import service_redis
from tests.chaos.test_outages import OwnRedis
from tests.integration.test_bad_input import Person, frame
from tests.integration.test_sessions_stack import Own, Sessions, person_of

Json = dict[str, Any]
Attempt = Callable[["Asked"], Awaitable[Json]]


class Asked(Sessions):
    """Somebody with a socket that was opened before Redis went, and a fresh refresh token."""

    def __init__(self, stack: Any, http: aiohttp.ClientSession) -> None:
        super().__init__(stack, http)
        self.seq = 1

    async def begin(self) -> None:
        self.ana_pair, self.olga_pair, self.gone_pair = await self.pair("ana"), await self.pair("olga"), await self.pair("ben")
        self.ana, self.olga, self.gone = person_of(self.ana_pair), person_of(self.olga_pair), person_of(self.gone_pair)
        self.room_id = await self.room(self.ana)
        self.ws = await self.http.ws_connect(self.endpoints["socket_url"], protocols=["heliograph.v1", f"ticket.{await self.ticket(self.ana)}"])
        hello = frame("hello")
        assert await self.answer(self.ws, json.dumps(hello), hello["id"]) == {"re": hello["id"]}

    async def call(self, method: str, path: str, body: Any = None, person: Person | None = None) -> Json:
        headers = (person or self.ana).headers if person is not None else {"Idempotency-Key": secrets.token_hex(8)}
        return (await self.rest(method, path, body, headers))[1]

    async def frame(self, action: str, room_id: str | None = None, body: Json | None = None) -> Json:
        self.seq += 1
        sent = frame(action, room_id, body, client_seq=self.seq)
        return await self.answer(self.ws, json.dumps(sent), sent["id"])


def signing_in(login: str) -> Json:
    return {"tenant_id": "acme", "login": login, "password": f"{login}-on-a-hill", "device_id": make_id("dev")}


MEDIA = {"file_name": "a.txt", "content_type": "text/plain", "length_bytes": 1, "sha256": "0" * 64}
# limit -> a request or frame that it counts. `account`, `device` and `address` are counted with every one of them.
ATTEMPTS: dict[str, Attempt] = {
    "account": lambda a: a.frame("ping"),
    "device": lambda a: a.frame("ping"),
    "address": lambda a: a.call("POST", "/v1/tokens/refresh", {"refresh_token": a.olga_pair["refresh_token"]}),
    "sign_in": lambda a: a.call("POST", "/v1/tokens", signing_in("ana")),
    "password": lambda a: a.call("POST", "/v1/tokens", signing_in("ana")),
    "reads": lambda a: a.call("GET", f"/v1/rooms/{a.room_id}", None, a.ana),
    "writes": lambda a: a.call("POST", "/v1/rooms", {"room_id": make_id("room"), "name": "x", "member_ids": []}, a.ana),
    "tickets": lambda a: a.call("POST", "/v1/tickets", None, a.ana),
    "relay_credentials": lambda a: a.call("GET", "/v1/ice-servers", None, a.ana),
    "links": lambda a: a.call("POST", "/v1/media", {"media_id": make_id("med"), "room_id": a.room_id, **MEDIA}, a.ana),
    "accounts": lambda a: a.call("PUT", f"/v1/accounts/{a.ana.account_id}/role", {"role": "member"}, a.olga),
    "messages": lambda a: a.frame("message", a.room_id, {"text": "without Redis"}),
    "signaling": lambda a: a.frame("stats", a.room_id, {"call_id": make_id("call"), "rtt_ms": 10}),
    "presence": lambda a: a.frame("watch", None, {"account_ids": []}),
    "live": lambda a: a.frame("hello"),
    "audited_refusals": lambda a: a.call("GET", "/v1/audit", None, a.ana),
}
REDIS_NEEDED = {"signaling", "presence"}
"""Frames that pass their limit and then have nowhere to go: calls and presence live in Redis alone."""


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["killed", "hung"])
async def test_every_limit_fails_as_it_says_and_who_was_signed_out_stays_out(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert set(ATTEMPTS) == set(LIMITS), "every limit is tried"
    redis = OwnRedis(tmp_path / "own-redis")
    await redis.start()
    lines = [f"\nlimits while Redis is {how}:"]
    try:
        async with running(tmp_path, environ={"HELIOGRAPH_REDIS_URL": service_redis.url(redis.port)}) as stack, aiohttp.ClientSession() as http:
            asked = Asked(Own(stack), http)
            await asked.begin()
            sid = (await asked.call("GET", "/v1/sessions", None, asked.gone))["sessions"][0]["sid"]
            assert sid
            await asked.call("DELETE", "/v1/sessions", None, asked.gone)
            redis.signal(signal.SIGSTOP) if how == "hung" else redis.kill()
            for name, attempt in ATTEMPTS.items():
                began_s = time.monotonic()
                answer = await attempt(asked)
                lines.append(f"  {name:18} fails {LIMITS[name].fails:7} -> {answer.get('code', 'passed'):12} after {time.monotonic() - began_s:.2f} s")
                expected = {"unavailable"} if name in REDIS_NEEDED or (LIMITS[name].fails == "closed" and name != "audited_refusals") else {None}
                assert answer.get("code") in (expected if name != "audited_refusals" else {"forbidden"}), (name, answer)
            assert (await asked.call("GET", "/v1/rooms", None, asked.gone))["code"] == "token_invalid", "MongoDB knows that the session has ended"
            if how == "hung":
                redis.signal(signal.SIGCONT)
            else:
                await redis.start()
            await asyncio.sleep(2)
            for name in ("relay_credentials", "sign_in", "signaling", "presence"):
                answer = await ATTEMPTS[name](asked)
                assert "code" not in answer, (name, answer)
            lines.append("  after its return: relay credentials, sign-in, signaling and presence pass again")
            await asked.ws.close()
    finally:
        redis.signal(signal.SIGCONT)
        redis.kill()
    with capsys.disabled():
        print("\n".join(lines))
