"""Sessions on the running product: reuse closes sockets, a lost answer signs nobody out, revocation and expiry reach live sockets, limits answer 429."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from bench._running import Running, running
from heliograph_client import make_id
from tests.integration.test_bad_input import Person, Wire, frame
from tests.running import RunningStack

Json = dict[str, Any]
CLOSED_S = 1.0
FAST = ("--set", "ACCESS_TOKEN_S=2", "--set", "REAUTH_GRACE_S=3", "--set", "REFRESH_GRACE_S=1")
TIGHT = ("--set", "LIMITS=password=3/0.01,messages=3/0.5,tickets=2/0.01,account=100000/100000,device=100000/100000,address=5000/1000,sign_in=5000/1000")


class Sessions(Wire):
    """The wire, with what sessions need."""

    async def pair(self, login: str, device_id: str | None = None) -> Json:
        user = next(user for user in self.endpoints["users"] if user["login"] == login)
        body = {"tenant_id": user["tenant_id"], "login": login, "password": user["password"], "device_id": device_id or make_id("dev")}
        status, pair = await self.rest("POST", "/v1/tokens", body, key())
        assert status == 201, pair
        return pair

    async def refresh(self, token: str) -> tuple[int, Json]:
        return await self.rest("POST", "/v1/tokens/refresh", {"refresh_token": token}, key())

    @asynccontextmanager
    async def greeted(self, person: Person) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A socket that said hello."""
        async with self.socket(person) as ws:
            assert await self.answer(ws, json.dumps(hello := frame("hello")), hello["id"]) == {"re": hello["id"]}
            yield ws

    async def audit(self, kind: str) -> list[Json]:
        admin, after, found = person_of(await self.pair("olga")), 0, list[Json]()
        while True:
            status, page = await self.rest("GET", f"/v1/audit?after={after}", headers=admin.headers)
            assert status == 200
            found += [entry for entry in page["entries"] if entry["kind"] == kind]
            if not page["entries"]:
                return found
            after = page["entries"][-1]["seq"]


def key() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(8)}


def person_of(pair: Json) -> Person:
    return Person(pair["access_token"], pair["account_id"], pair["device_id"])


async def closing(ws: aiohttp.ClientWebSocketResponse, timeout_s: float = 30.0) -> str | None:
    """Waits until the server closes; the reason that it gave."""
    reason = None
    async with asyncio.timeout(timeout_s):
        async for message in ws:
            event = json.loads(message.data)
            if event.get("event") == "closed":
                reason = event["body"]["reason"]
    return reason


@pytest.fixture
async def wire(stack: RunningStack) -> AsyncIterator[Sessions]:
    async with aiohttp.ClientSession() as http:
        yield Sessions(stack, http)


@asynccontextmanager
async def own_stack(tmp_path: Any, *flags: str) -> AsyncIterator[Sessions]:
    async with running(tmp_path, *flags) as stack, aiohttp.ClientSession() as http:
        yield Sessions(Own(stack), http)  # type: ignore[arg-type]


class Own:
    """A stack of this test's own, as `Wire` asks for it."""

    def __init__(self, stack: Running) -> None:
        self.endpoints, self.data_dir = stack.endpoints, stack.data_dir


async def test_reuse_of_an_old_refresh_token_closes_every_socket_of_the_device_within_a_second_and_ends_the_family(
    wire: Sessions, capsys: pytest.CaptureFixture[str]
) -> None:
    first = await wire.pair("ben")
    bystander = person_of(await wire.pair("ben"))
    second = (await wire.refresh(first["refresh_token"]))[1]
    third = (await wire.refresh(second["refresh_token"]))[1]
    ben = person_of(third)
    took_s = list[float]()
    async with wire.greeted(bystander) as other, wire.greeted(ben) as ws, wire.socket(ben) as silent:
        waiting = [asyncio.create_task(closing(each)) for each in (silent, ws)]
        began_s = time.monotonic()
        status, refusal = await wire.refresh(first["refresh_token"])
        for task in waiting:
            task.add_done_callback(lambda _: took_s.append(time.monotonic() - began_s))
        assert await asyncio.gather(*waiting) == ["signed_out", "signed_out"]
        assert (status, refusal["code"]) == (401, "token_invalid")
        for token in (second, third):
            assert (await wire.refresh(token["refresh_token"]))[1]["code"] == "token_invalid", "the whole family has ended"
            assert (await wire.rest("GET", "/v1/rooms", headers=person_of(token).headers))[1]["code"] == "token_invalid"
        assert (await wire.rest("POST", "/v1/tickets", headers=ben.headers))[1]["code"] == "token_invalid"
        ping = frame("ping", client_seq=2)
        assert await wire.answer(other, json.dumps(ping), ping["id"]) == {"re": ping["id"]}, "another device of the account goes on"
    with capsys.disabled():
        print(f"\nreuse -> {len(took_s)} sockets of the family closed after {max(took_s):.2f} s / {CLOSED_S:g} s")
    entries = [entry for entry in await wire.audit("session_ended") if entry["detail"]["why"] == "refresh_reused" and ben.device_id in entry["subject"]]
    assert len(entries) == 1


async def test_a_lost_refresh_response_does_not_sign_the_user_out(wire: Sessions) -> None:
    pair = await wire.pair("ana")
    host, port = wire.endpoints["rest_url"].removeprefix("http://").split(":")
    body = json.dumps({"refresh_token": pair["refresh_token"]}).encode()
    head = f"POST /v1/tokens/refresh HTTP/1.1\r\nHost: x\r\nIdempotency-Key: {secrets.token_hex(8)}\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + body)
    await reader.readexactly(1)  # the server has acted; the rest of its answer is lost
    writer.transport.abort()
    status, again = await wire.refresh(pair["refresh_token"])
    assert status == 201
    repeated = (await wire.refresh(pair["refresh_token"]))[1]
    assert repeated["refresh_token"] == again["refresh_token"], "the same successor, however often it is asked for"
    status, _ = await wire.refresh(again["refresh_token"])
    assert status == 201
    assert (await wire.rest("GET", "/v1/rooms", headers=person_of(again).headers))[0] == 200


async def test_twenty_clients_that_race_with_one_refresh_token_get_one_successor_and_stay_signed_in(wire: Sessions) -> None:
    pair = await wire.pair("ana")
    answers = await asyncio.gather(*(wire.refresh(pair["refresh_token"]) for _ in range(20)))
    taken = {body["refresh_token"] for status, body in answers if status == 201}
    assert len(taken) == 1
    assert all(status == 201 or body["code"] == "unavailable" for status, body in answers)
    assert (await wire.refresh(taken.pop()))[0] == 201


async def test_the_same_successor_is_not_given_after_the_grace_and_the_reuse_ends_the_session(tmp_path: Any) -> None:
    async with own_stack(tmp_path, *FAST) as wire:
        pair = await wire.pair("ana")
        again = (await wire.refresh(pair["refresh_token"]))[1]
        await asyncio.sleep(1.2)
        assert (await wire.refresh(pair["refresh_token"]))[1]["code"] == "token_invalid"
        assert (await wire.refresh(again["refresh_token"]))[1]["code"] == "token_invalid"
        twin = await wire.pair("ana")
        assert (await wire.refresh(twin["refresh_token"]))[0] == 201


async def test_a_device_is_signed_out_by_its_account_and_the_others_stay(wire: Sessions) -> None:
    phone, laptop = person_of(await wire.pair("ben")), person_of(await wire.pair("ben"))
    _, listed = await wire.rest("GET", "/v1/sessions", headers=laptop.headers)
    sid = next(session["sid"] for session in listed["sessions"] if session["device_id"] == phone.device_id)
    assert [session["device_id"] for session in listed["sessions"] if session["is_current"]] == [laptop.device_id]
    mallory = person_of(await wire.pair("mallory"))
    async with wire.greeted(phone) as ws:
        assert (await wire.rest("DELETE", f"/v1/sessions/{sid}", headers=mallory.headers))[0] == 404
        assert await wire.rest("DELETE", f"/v1/sessions/{sid}", headers=laptop.headers) == (200, {"ended": 1})
        assert await closing(ws) == "signed_out"
    assert (await wire.rest("DELETE", f"/v1/sessions/{sid}", headers=laptop.headers))[1]["code"] == "not_found"
    assert (await wire.rest("GET", "/v1/rooms", headers=phone.headers))[1]["code"] == "token_invalid"
    assert (await wire.rest("GET", "/v1/rooms", headers=laptop.headers))[0] == 200


async def test_an_admin_signs_an_account_of_their_own_tenant_out_and_no_other(wire: Sessions) -> None:
    olga, ben, mallory = [person_of(await wire.pair(login)) for login in ("olga", "ben", "mallory")]
    async with wire.greeted(ben) as ws:
        path = f"/v1/accounts/{ben.account_id}/sessions?device_id={ben.device_id}"
        assert (await wire.rest("DELETE", path, headers=ben.headers))[1]["code"] == "forbidden"
        assert (await wire.rest("DELETE", f"/v1/accounts/{mallory.account_id}/sessions", headers=olga.headers))[1]["code"] == "not_found"
        assert await wire.rest("DELETE", path, headers=olga.headers) == (200, {"ended": 1})
        assert await closing(ws) == "signed_out"
    assert (await wire.rest("GET", "/v1/rooms", headers=mallory.headers))[0] == 200


async def test_signing_out_everywhere_ends_this_device_too(wire: Sessions) -> None:
    one, two = person_of(await wire.pair("mallory")), person_of(await wire.pair("mallory"))
    status, body = await wire.rest("DELETE", "/v1/sessions", headers=one.headers)
    assert status == 200
    assert body["ended"] >= 2
    for person in (one, two):
        assert (await wire.rest("GET", "/v1/rooms", headers=person.headers))[1]["code"] == "token_invalid"
    await wire.pair("mallory")


async def test_a_changed_role_holds_with_the_next_token_and_earlier_ones_are_to_be_refreshed(tmp_path: Any) -> None:
    async with own_stack(tmp_path) as wire:
        olga, pair = person_of(await wire.pair("olga")), await wire.pair("ben")
        ben = person_of(pair)
        path = f"/v1/accounts/{ben.account_id}/role"
        assert (await wire.rest("PUT", path, {"role": "admin"}, ben.headers))[1]["code"] == "forbidden"
        async with wire.greeted(ben) as ws:
            assert (await wire.rest("PUT", path, {"role": "admin"}, olga.headers))[0] == 200
            assert (await wire.rest("GET", "/v1/audit", headers=ben.headers))[1]["code"] == "token_expired"
            refused = frame("ping", client_seq=2)
            assert (await wire.answer(ws, json.dumps(refused), refused["id"]))["code"] == "token_expired"
            promoted = person_of((await wire.refresh(pair["refresh_token"]))[1])
            proof = frame("reauth", body={"access_token": promoted.token}, client_seq=3)
            assert await wire.answer(ws, json.dumps(proof), proof["id"]) == {"re": proof["id"]}
            ping = frame("ping", client_seq=4)
            assert await wire.answer(ws, json.dumps(ping), ping["id"]) == {"re": ping["id"]}
        assert (await wire.rest("GET", "/v1/audit", headers=promoted.headers))[0] == 200
        assert (await wire.rest("PUT", path, {"role": "member"}, promoted.headers))[1]["code"] == "conflict", "nobody changes their own role"
        kinds = [entry["detail"] for entry in await wire.audit("role_changed")]
        assert kinds == [{"from": "member", "to": "admin"}]
        assert [entry["detail"]["code"] for entry in await wire.audit("access_refused")][:1] == ["forbidden"]


async def test_a_socket_is_closed_when_its_token_has_expired_and_lives_on_when_it_proves_itself_anew(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    async with own_stack(tmp_path, *FAST) as wire:
        idle, active = await wire.pair("ana"), await wire.pair("ben")
        began_s = time.monotonic()
        async with wire.greeted(person_of(idle)) as ws, wire.greeted(person_of(active)) as kept:
            closed = asyncio.create_task(closing(ws, 20))
            seq = 1
            while not closed.done():
                active = (await wire.refresh(active["refresh_token"]))[1]
                seq += 1
                proof = frame("reauth", body={"access_token": active["access_token"]}, client_seq=seq)
                assert await wire.answer(kept, json.dumps(proof), proof["id"]) == {"re": proof["id"]}
                await asyncio.sleep(0.7)
            assert await closed == "token_expired"
            took_s = time.monotonic() - began_s
            ping = frame("ping", client_seq=seq + 1)
            assert await wire.answer(kept, json.dumps(ping), ping["id"]) == {"re": ping["id"]}
        with capsys.disabled():
            print(f"\na socket whose token lived 2 s, with 3 s of grace, was closed after {took_s:.1f} s")
        assert took_s > 5


async def test_limits_answer_429_with_the_time_to_wait_on_rest_and_on_frames_and_somebody_else_is_not_counted(tmp_path: Any) -> None:
    async with own_stack(tmp_path, *TIGHT) as wire:
        body = {"tenant_id": "acme", "login": "ana", "password": "guess", "device_id": make_id("dev")}
        guesses = [await guess(wire, body | {"password": f"guess {number}"}) for number in range(5)]
        assert [status for status, _, _ in guesses] == [401, 401, 401, 429, 429]
        _, refusal, retry_after = guesses[-1]
        assert refusal["code"] == "rate_limited"
        assert 90_000 < refusal["retry_after_ms"] <= 100_000
        assert retry_after == str(-(-refusal["retry_after_ms"] // 1000))
        assert (await guess(wire, body | {"login": "nobody"}))[0] == 401, "a login that nobody has is counted by itself, like one that somebody has"
        for number in range(2):
            assert (await guess(wire, body | {"login": "nobody", "password": f"{number}"}))[0] == 401
        assert (await guess(wire, body | {"login": "nobody"}))[0] == 429
        assert (await guess(wire, body, {"X-Forwarded-For": "198.51.100.9"}))[0] == 429
        ben = person_of(await wire.pair("ben"))
        assert [(await wire.rest("POST", "/v1/tickets", headers=ben.headers))[0] for _ in range(3)] == [201, 201, 429]
        await limited_frames(wire)


async def limited_frames(wire: Sessions) -> None:
    olga = person_of(await wire.pair("olga"))
    room_id = await wire.room(olga)
    async with wire.greeted(olga) as ws:
        answers = []
        for seq in range(2, 7):
            text = frame("message", room_id, {"text": str(seq)}, client_seq=seq)
            answers.append(await wire.answer(ws, json.dumps(text), text["id"]))
        assert [answer.get("offset", answer.get("code")) for answer in answers] == [1, 2, 3, "rate_limited", "rate_limited"]
        assert 0 < answers[-1]["retry_after_ms"] <= 2_000
        await asyncio.sleep(answers[-1]["retry_after_ms"] / 1000)
        text = frame("message", room_id, {"text": "again"}, client_seq=7)
        assert (await wire.answer(ws, json.dumps(text), text["id"]))["offset"] == 4, "the socket lives, and what was refused changed nothing"


async def guess(wire: Sessions, body: Json, headers: dict[str, str] | None = None) -> tuple[int, Json, str | None]:
    url = wire.endpoints["rest_url"] + "/v1/tokens"
    async with wire.http.post(url, json=body, headers=key() | (headers or {})) as answer:
        return answer.status, await answer.json(), answer.headers.get("Retry-After")


async def test_who_signs_in_again_on_a_device_ends_its_earlier_session(wire: Sessions) -> None:
    device_id = make_id("dev")
    first = await wire.pair("ana", device_id)
    second = await wire.pair("ana", device_id)
    assert (await wire.rest("GET", "/v1/rooms", headers=person_of(first).headers))[1]["code"] == "token_invalid"
    assert (await wire.refresh(first["refresh_token"]))[1]["code"] == "token_invalid"
    assert (await wire.rest("GET", "/v1/rooms", headers=person_of(second).headers))[0] == 200


async def test_a_session_whose_end_was_cut_short_is_ended_by_the_queue(wire: Sessions) -> None:
    """The function died after it had queued the end: nothing was done yet, and a second later all of it is."""
    from adapters import mongo_client
    from local.service_aws import REGION

    pair = await wire.pair("ben")
    ben = person_of(pair)
    database = mongo_client.connect(wire.endpoints["mongodb_uri"], wire.endpoints["mongodb_database"])
    session = database.sessions.find_one({"device_id": ben.device_id})
    database.client.close()
    ending: Json = {"kind": "end_sessions", "tenant_id": "acme", "account_id": ben.account_id, "sessions": [[session["sid"], ben.device_id]]}
    ending |= {"actor": ben.account_id, "why": "revoked", "trace_id": secrets.token_hex(16), "at_ms": time.time_ns() // 1_000_000 + 5_000}
    async with wire.greeted(ben) as ws:
        await queue(wire, ending, REGION)
        assert await closing(ws) == "signed_out"
    assert (await wire.refresh(pair["refresh_token"]))[1]["code"] == "token_invalid"


async def queue(wire: Sessions, message: Json, region: str) -> None:
    """Puts a message into the timers queue."""
    import boto3

    aws, url = wire.endpoints["aws"], wire.endpoints["notifications_queue_url"].replace("notifications", "timers")
    keys = {"aws_access_key_id": aws["access_key_id"], "aws_secret_access_key": aws["secret_access_key"]}
    client = boto3.client("sqs", endpoint_url=wire.endpoints["sqs_url"], region_name=region, **keys)
    await asyncio.to_thread(client.send_message, QueueUrl=url, MessageBody=json.dumps(message))
