"""Bad input over the real wire: a stable code and a sentence, nothing dies, and the same request made valid passes right after."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from heliograph_client import make_id
from tests.running import RunningStack
from tests.unit.test_sdp import MINIMAL

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Person:
    """A signed-in sample user."""

    token: str
    account_id: str
    device_id: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}", "Idempotency-Key": secrets.token_hex(8)}


class Wire:
    """Raw HTTP and WebSocket against the running product."""

    def __init__(self, stack: RunningStack, http: aiohttp.ClientSession) -> None:
        self.stack, self.http, self.endpoints = stack, http, stack.endpoints()

    async def rest(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Json]:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        async with self.http.request(method, self.endpoints["rest_url"] + path, data=data, headers=headers) as answer:
            return answer.status, json.loads(await answer.read())

    async def sign_in(self, login: str) -> Person:
        user = self.stack.user(login)
        body = {"tenant_id": user["tenant_id"], "login": login, "password": user["password"], "device_id": make_id("dev")}
        status, pair = await self.rest("POST", "/v1/tokens", body, {"Idempotency-Key": secrets.token_hex(8)})
        assert status == 201, pair
        return Person(pair["access_token"], pair["account_id"], pair["device_id"])

    async def room(self, owner: Person, *members: Person) -> str:
        body = {"room_id": make_id("room"), "name": "Depot", "member_ids": [member.account_id for member in members]}
        status, room = await self.rest("POST", "/v1/rooms", body, owner.headers)
        assert status == 201, room
        return str(room["room_id"])

    async def ticket(self, person: Person) -> str:
        status, body = await self.rest("POST", "/v1/tickets", headers=person.headers)
        assert status == 201, body
        return str(body["ticket"])

    @asynccontextmanager
    async def socket(self, person: Person) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        protocols = ["heliograph.v1", f"ticket.{await self.ticket(person)}"]
        async with self.http.ws_connect(self.endpoints["socket_url"], protocols=protocols) as ws:
            assert ws.protocol == "heliograph.v1"
            yield ws

    async def answer(self, ws: aiohttp.ClientWebSocketResponse, text: str, frame_id: str | None) -> Json:
        """The acknowledgement or refusal of a frame; events are passed over."""
        await ws.send_str(text)
        async with asyncio.timeout(30):
            while True:
                frame: Json = await ws.receive_json()
                if "event" not in frame and frame.get("re") == frame_id:
                    return frame


def frame(action: str, room_id: str | None = None, body: Json | None = None, **changes: Any) -> Json:
    made = {"action": action, "id": make_id("msg"), "room_id": room_id, "client_seq": 1, "trace_id": secrets.token_hex(16), "body": body or {}}
    return {key: value for key, value in (made | changes).items() if value is not None}


@pytest.fixture
async def wire(stack: RunningStack) -> AsyncIterator[Wire]:
    async with aiohttp.ClientSession() as http:
        yield Wire(stack, http)


def is_refusal(body: Json, code: str) -> bool:
    return body.get("code") == code and body["message"].endswith(".") and isinstance(body["retryable"], bool) and bool(body["trace_id"])


CALL, OTHER_ACCOUNT = make_id("call"), make_id("acc")
DEEP = '{"action":"message","body":' + "[" * 9000 + "]" * 9000 + "}"
SDP = {"call_id": CALL, "negotiation_id": "n1", "sdp": MINIMAL}

# what is wrong -> (frame changes or raw text, code)
BAD_FRAMES: dict[str, tuple[Json | str, str]] = {
    "not JSON": ("{", "malformed"),
    "a list": ("[]", "malformed"),
    "nested 9,000 deep": (DEEP, "malformed"),
    "a field twice": ('{"action":"message","action":"hello"}', "malformed"),
    "NaN": ('{"action":"message","client_seq":NaN}', "malformed"),
    "an unknown action": ({"action": "explode"}, "unknown_action"),
    "no action": ({"action": None}, "malformed"),
    "an id of another kind": ({"id": "msg_1"}, "malformed"),
    "a sequence number that is text": ({"client_seq": "1"}, "malformed"),
    "text that is a number": ({"body": {"text": 5}}, "malformed"),
    "text that is too long": ({"body": {"text": "x" * 4001}}, "malformed"),
    "a lone surrogate": ({"body": {"text": "\ud800"}}, "malformed"),
    "NUL": ({"body": {"text": "a\0b"}}, "malformed"),
    "an unknown field": ({"body": {"text": "x", "admin": True}}, "malformed"),
    "no room": ({"room_id": None}, "malformed"),
    "a room that does not exist": ({"room_id": make_id("room")}, "not_found"),
    "the room of a foreign tenant": ({"room_id": "FOREIGN"}, "not_found"),
    "a call to nobody in the room": ({"action": "offer", "body": {**SDP, "to": {"account_id": OTHER_ACCOUNT}}}, "not_found"),
    "an SDP that is not one": ({"action": "offer", "body": {**SDP, "sdp": "v=0", "to": {"account_id": OTHER_ACCOUNT}}}, "sdp_invalid"),
    "loss of 200 %": ({"action": "stats", "body": {"call_id": CALL, "loss": 2}}, "malformed"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_a_bad_frame_is_refused_and_its_twin_passes_on_the_same_socket(wire: Wire, name: str) -> None:
    ana, mallory = await asyncio.gather(wire.sign_in("ana"), wire.sign_in("mallory"))
    room_id = await wire.room(ana)
    change, code = BAD_FRAMES[name]
    if isinstance(change, dict) and change.get("room_id") == "FOREIGN":
        change = change | {"room_id": await wire.room(mallory)}
    good = frame("message", room_id, {"text": "hello"})
    bad = change if isinstance(change, str) else json.dumps({k: v for k, v in (good | change).items() if v is not None})
    async with wire.socket(ana) as ws:
        known_id = None if isinstance(change, str) or "id" in change or name in ("nested 9,000 deep",) else good["id"]
        refusal = await wire.answer(ws, bad, known_id)
        assert is_refusal(refusal, code), refusal
        page = await wire.rest("GET", f"/v1/rooms/{room_id}/events", headers=ana.headers)
        assert page[1]["head"] == 0, "a refused frame must change nothing"
        twin = frame("message", room_id, {"text": "hello"}, id=good["id"], client_seq=2)
        acknowledged = await wire.answer(ws, json.dumps(twin), good["id"])
        assert acknowledged["offset"] == 1


async def test_a_foreign_room_and_an_unknown_one_get_the_same_answer(wire: Wire) -> None:
    ana, mallory = await asyncio.gather(wire.sign_in("ana"), wire.sign_in("mallory"))
    room_id = await wire.room(ana)
    unknown, foreign = await asyncio.gather(*(wire.rest("GET", f"/v1/rooms/{asked}", headers=mallory.headers) for asked in (make_id("room"), room_id)))
    for status, body in (unknown, foreign):
        assert status == 404
        assert is_refusal(body, "not_found")
    assert {**unknown[1], "trace_id": ""} == {**foreign[1], "trace_id": ""}
    assert (await wire.rest("GET", f"/v1/rooms/{room_id}", headers=ana.headers))[0] == 200


async def test_a_member_of_another_tenant_cannot_be_invited(wire: Wire) -> None:
    ana, ben, mallory = await asyncio.gather(*(wire.sign_in(login) for login in ("ana", "ben", "mallory")))
    body = {"room_id": make_id("room"), "name": "x", "member_ids": [mallory.account_id]}
    status, refusal = await wire.rest("POST", "/v1/rooms", body, ana.headers)
    assert (status, refusal["code"]) == (404, "not_found")
    assert (await wire.rest("POST", "/v1/rooms", body | {"member_ids": [ben.account_id]}, ana.headers))[0] == 201


GOOD_SIGN_IN = {"tenant_id": "acme", "login": "ana", "password": "", "device_id": make_id("dev")}
BAD_BODIES: dict[str, tuple[Any, int, str]] = {
    "not JSON": (b"{", 400, "malformed"),
    "not UTF-8": (b'{"login": "\xff"}', 400, "malformed"),
    "a list": ([], 400, "malformed"),
    "too large": ({"login": "x" * 70_000}, 413, "too_large"),
    "a missing field": ({"tenant_id": "acme"}, 400, "malformed"),
    "an unknown field": ({**GOOD_SIGN_IN, "role": "admin"}, 400, "malformed"),
    "a wrong type": ({**GOOD_SIGN_IN, "login": 5}, 400, "malformed"),
    "a wrong password": ({**GOOD_SIGN_IN, "password": "wrong"}, 401, "credentials_invalid"),
    "an unknown login": ({**GOOD_SIGN_IN, "password": "wrong", "login": "nobody"}, 401, "credentials_invalid"),
    "another tenant": ({**GOOD_SIGN_IN, "password": "ana-on-a-hill", "tenant_id": "globex"}, 401, "credentials_invalid"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_bad_body_is_refused_and_its_twin_passes(wire: Wire, name: str) -> None:
    body, status, code = BAD_BODIES[name]
    if isinstance(body, dict) and body.get("password") == "":
        body = body | {"password": wire.stack.user("ana")["password"]}
    got, refusal = await wire.rest("POST", "/v1/tokens", body, {"Idempotency-Key": secrets.token_hex(8)})
    assert got == status
    assert is_refusal(refusal, code), refusal
    await wire.sign_in("ana")


async def test_a_post_without_an_idempotency_key_is_refused(wire: Wire) -> None:
    ana = await wire.sign_in("ana")
    body = {"room_id": make_id("room"), "name": "x", "member_ids": []}
    status, refusal = await wire.rest("POST", "/v1/rooms", body, {"Authorization": ana.headers["Authorization"]})
    assert (status, refusal["code"]) == (400, "malformed")
    assert "Idempotency-Key" in refusal["message"]
    first = await wire.rest("POST", "/v1/rooms", body, headers := ana.headers)
    again = await wire.rest("POST", "/v1/rooms", body, headers)
    assert first == again == (201, first[1])
    assert (await wire.rest("POST", "/v1/rooms", body, ana.headers))[1]["code"] == "id_taken"


def forged(token: str) -> str:
    head, body, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    changed = base64.urlsafe_b64encode(json.dumps(claims | {"tenant_id": "globex"}).encode()).rstrip(b"=").decode()
    return f"{head}.{changed}.{signature}"


async def test_a_forged_or_missing_token_is_refused(wire: Wire) -> None:
    ana = await wire.sign_in("ana")
    for bad in (forged(ana.token), "garbage", await wire.ticket(ana)):
        status, refusal = await wire.rest("GET", "/v1/rooms", headers={"Authorization": f"Bearer {bad}"})
        assert status == 401
        assert is_refusal(refusal, "token_invalid")
    assert await wire.rest("GET", "/v1/rooms") == (401, {"message": "Unauthorized"})
    assert (await wire.rest("GET", "/v1/rooms", headers=ana.headers))[0] == 200


async def test_a_socket_opens_only_with_a_fresh_unused_ticket_and_our_subprotocol(wire: Wire) -> None:
    ana, url = await wire.sign_in("ana"), wire.endpoints["socket_url"]
    ticket = await wire.ticket(ana)
    async with wire.http.ws_connect(url, protocols=["heliograph.v1", f"ticket.{ticket}"]):
        pass
    attempts: list[tuple[list[str], int]] = [
        (["heliograph.v1", f"ticket.{ticket}"], 403),  # used
        (["heliograph.v1", f"ticket.{forged(ticket)}"], 403),
        (["heliograph.v1", f"ticket.{ana.token}"], 403),  # an access token is not a ticket
        (["heliograph.v1"], 403),
        ([], 401),  # the identity source is missing: the authorizer is not asked
        ([f"ticket.{await wire.ticket(ana)}"], 400),  # a good ticket, but no subprotocol of ours
    ]
    for protocols, status in attempts:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
            await wire.http.ws_connect(url, protocols=protocols)
        assert refusal.value.status == status, protocols
    async with wire.socket(ana) as ws:
        assert await wire.answer(ws, json.dumps(hello := frame("hello")), hello["id"]) == {"re": hello["id"]}


async def test_the_push_target_of_another_device_cannot_be_set(wire: Wire) -> None:
    ana = await wire.sign_in("ana")
    body = {"target_kind": "token", "target": "t"}
    assert (await wire.rest("PUT", f"/v1/devices/{make_id('dev')}/push-target", body, ana.headers))[0] == 404
    assert (await wire.rest("PUT", f"/v1/devices/{ana.device_id}/push-target", body, ana.headers))[0] == 200


async def test_a_file_of_another_tenant_is_unknown_and_an_upload_that_never_came_cannot_be_linked(wire: Wire) -> None:
    ana, mallory = await asyncio.gather(wire.sign_in("ana"), wire.sign_in("mallory"))
    media_id, content = make_id("med"), b"content"
    import hashlib

    body = {
        "media_id": media_id,
        "room_id": await wire.room(ana),
        "file_name": "a.txt",
        "content_type": "text/plain",
        "length_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    assert (await wire.rest("POST", "/v1/media", body | {"room_id": make_id("room")}, ana.headers))[1]["code"] == "not_found"
    assert (await wire.rest("POST", "/v1/media", body | {"length_bytes": 10**9}, ana.headers))[1]["code"] == "too_large"
    status, ticket = await wire.rest("POST", "/v1/media", body, ana.headers)
    assert status == 201
    assert (await wire.rest("POST", f"/v1/media/{media_id}/complete", headers=ana.headers))[1]["code"] == "upload_missing"
    assert (await wire.rest("POST", f"/v1/media/{media_id}/links", {}, ana.headers))[1]["code"] == "upload_missing"
    upload = ticket["upload"]
    async with wire.http.put(upload["url"], data=b"CONTENT", headers=upload["headers"]) as other:
        assert other.status == 400, "other bytes than announced"
    async with wire.http.put(upload["url"], data=content, headers=upload["headers"]) as sent:
        assert sent.status == 200, await sent.text()
    async with wire.http.put(upload["url"], data=content, headers=upload["headers"]) as again:
        assert again.status == 412, "no overwrite"
    assert (await wire.rest("POST", f"/v1/media/{media_id}/complete", headers=ana.headers))[0] == 200
    assert (await wire.rest("POST", f"/v1/media/{media_id}/links", {"expires_s": 901}, ana.headers))[1]["code"] == "malformed"
    assert (await wire.rest("POST", f"/v1/media/{media_id}/links", {}, mallory.headers))[1]["code"] == "not_found"
    status, link = await wire.rest("POST", f"/v1/media/{media_id}/links", {}, ana.headers)
    assert status == 201
    async with wire.http.get(link["url"]) as got:
        assert (await got.read(), got.headers["Content-Disposition"].split(";")[0]) == (content, "attachment")


async def test_oversize_and_binary_frames_close_the_socket_and_a_new_one_works(wire: Wire) -> None:
    ana = await wire.sign_in("ana")
    async with wire.socket(ana) as ws:
        await ws.send_str("x" * 40_000)
        assert (await ws.receive()).type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        assert ws.close_code == 1009
    async with wire.socket(ana) as ws:
        await ws.send_bytes(b"audio does not travel here")
        await ws.receive()
        assert ws.close_code == 1003
    async with wire.socket(ana) as ws:
        assert await wire.answer(ws, json.dumps(ping := frame("ping")), ping["id"]) == {"re": ping["id"]}


async def test_garbage_on_the_relay_port_changes_nothing(wire: Wire) -> None:
    relay = wire.endpoints["relay"]
    binding = bytes.fromhex("0001000021 12a442".replace(" ", "")) + secrets.token_bytes(12)

    def ask(data: bytes) -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.settimeout(2)
            for garbage in (b"", b"\0", secrets.token_bytes(1400), b"GET / HTTP/1.1\r\n\r\n", binding[:19], b"\x40\x00\xff\xff" + b"x" * 10):
                udp.sendto(garbage, (relay["host"], relay["port"]))
            udp.sendto(data, (relay["host"], relay["port"]))
            return udp.recv(1500)

    answer = await asyncio.to_thread(ask, binding)
    assert answer[:2] == b"\x01\x01"
    assert answer[8:20] == binding[8:]


async def test_the_published_document_lists_every_route_and_is_public(wire: Wire) -> None:
    from functions.routes import http_routes

    status, document = await wire.rest("GET", "/v1/openapi.json")
    assert status == 200
    assert document["openapi"].startswith("3.1")
    for _, route in http_routes():
        assert route.method.lower() in document["paths"][route.path]
