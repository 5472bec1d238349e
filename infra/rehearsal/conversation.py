"""The main road over the deployed APIs: two people sign in, open sockets, one calls the other, one shares a file. Knows URLs and accounts, no insides."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from heliograph_client import make_id
from heliograph_client.connection import Connection, Frame, open_connection
from heliograph_client.errors import HeliographError
from heliograph_client.files import upload
from heliograph_client.frames import Ack, Event, Refusal
from heliograph_client.rest import Rest
from infra.rehearsal.record import Record, RehearsalError

ANSWER_S: Final = 20.0  # the first frame may wait for a cold function
SDP: Final = "\r\n".join(
    (
        "v=0",
        "o=- 1 1 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "m=audio 9 UDP/TLS/RTP/SAVPF 111",
        "c=IN IP4 0.0.0.0",
        "a=mid:0",
        "a=ice-ufrag:rehe",
        "a=ice-pwd:arsalarsalarsalarsalarsa",
        "a=fingerprint:sha-256 " + ":".join(["AB"] * 32),
        "a=setup:actpass",
        "a=sendrecv",
        "a=rtpmap:111 opus/48000/2",
        "",
    )
)


@dataclass(frozen=True, slots=True)
class Person:
    """An account that admin tools made."""

    tenant_id: str
    login: str
    password: str


class Line:
    """One signed-in device with one socket, and everything that came over it."""

    def __init__(self, rest: Rest, connection: Connection) -> None:
        self.rest, self._connection = rest, connection
        self._frames: list[Frame] = []
        self._came = asyncio.Event()
        connection.start(self._take, lambda _: self._came.set())

    def _take(self, _: Connection, frame: Frame) -> None:
        self._frames.append(frame)
        self._came.set()

    async def ask(self, action: str, room_id: str | None = None, **body: Any) -> Ack:
        """Send a frame and return its acknowledgement."""
        frame_id = make_id("msg")
        await self._connection.send(action, frame_id, secrets.token_hex(16), room_id, body)
        answer = await self._next(f"the acknowledgement of {action}", lambda frame: isinstance(frame, Ack | Refusal) and frame.re == frame_id)
        if isinstance(answer, Refusal):
            raise RehearsalError(f"{action} was refused: {answer.error}.")
        assert isinstance(answer, Ack)
        return answer

    async def event(self, name: str) -> Event:
        found = await self._next(f"the event {name}", lambda frame: isinstance(frame, Event) and frame.event == name)
        assert isinstance(found, Event)
        return found

    async def _next(self, what: str, fits: Any) -> Frame:
        try:
            async with asyncio.timeout(ANSWER_S):
                while True:
                    for frame in self._frames:
                        if fits(frame):
                            self._frames.remove(frame)
                            return frame
                    if self._connection.ended.is_set():
                        raise RehearsalError(f"The socket closed before {what} came.")
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            raise RehearsalError(f"{what} did not come within {ANSWER_S:.0f} s; instead: {self._frames}.") from None

    async def close(self) -> None:
        await self._connection.close()
        await self.rest.close()


async def _arrive(record: Record, http: aiohttp.ClientSession, rest_url: str, socket_url: str, person: Person) -> Line:
    rest = Rest(rest_url, http)
    with record.step(f"POST /v1/tokens: {person.login} signs in"):
        await rest.sign_in(person.tenant_id, person.login, person.password, make_id("dev"))
    with record.step(f"POST /v1/tickets: {person.login} gets a ticket"):
        ticket = (await rest.call("POST", "/v1/tickets"))["ticket"]
    with record.step(f"$connect: {person.login} opens a socket"):
        connection = await open_connection(http, socket_url, ticket, await rest.token())
    line = Line(rest, connection)
    with record.step(f"hello: {person.login} is welcomed") as step:
        await line.ask("hello", client="rehearsal")
        step["note"] = f"welcome for {(await line.event('welcome')).body['account_id'][:8]}…"
    return line


async def hold(record: Record, rest_url: str, socket_url: str, first: Person, second: Person) -> None:
    """Everything in order. RehearsalError says which answer was missing."""
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as http, contextlib.AsyncExitStack() as sockets:
            lines = []
            for person in (first, second):
                lines.append(await _arrive(record, http, rest_url, socket_url, person))
                sockets.push_async_callback(lines[-1].close)
            room_id = await _call(record, lines[0], lines[1])
            await _share(record, http, lines[0], lines[1], room_id)
    except (HeliographError, aiohttp.ClientError) as error:
        raise RehearsalError(f"The conversation broke off: {error} (its step is the last one of the report).") from error


async def _call(record: Record, caller: Line, callee: Line) -> str:
    room_id, call_id = make_id("room"), make_id("call")
    assert callee.rest.session is not None
    callee_id = callee.rest.session.account_id
    with record.step("POST /v1/rooms: a room for both; both join"):
        await caller.rest.call("POST", "/v1/rooms", {"room_id": room_id, "name": "Rehearsal", "member_ids": [callee_id]})
        for line in (caller, callee):
            await line.ask("join", room_id)
    with record.step("offer: reaches the second socket") as step:
        await caller.ask("offer", room_id, call_id=call_id, to={"account_id": callee_id}, negotiation_id="n1", sdp=SDP)
        offer = await callee.event("offer")
        record.require(offer.body["sdp"] == SDP and offer.body["call_id"] == call_id, "the offer arrived changed.")
        step["note"] = f"{len(SDP)} bytes of SDP, unchanged"
    with record.step("message: stands in the room's stream"):
        ack = await caller.ask("message", room_id, text="Can you hear me?")
        event = await callee.event("message")
        record.require(ack.offset is not None and ack.offset == event.offset, f"the text was acknowledged at {ack.offset} and delivered at {event.offset}.")
    return room_id


async def _share(record: Record, http: aiohttp.ClientSession, giver: Line, taker: Line, room_id: str) -> None:
    content = secrets.token_bytes(50_000)
    with record.step("POST /v1/media, PUT, complete: a file by upload ticket"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rehearsal.bin"
        path.write_bytes(content)
        media_id = await upload(giver.rest, http, room_id, path)
    with record.step("POST /v1/media/{media_id}/links: the other reads it by an expiring link") as step:
        link = await taker.rest.call("POST", f"/v1/media/{media_id}/links", {})
        async with http.get(link["url"]) as response:
            found = await response.read()
        same = response.status == 200 and hashlib.sha256(found).digest() == hashlib.sha256(content).digest()
        record.require(same, f"the link answered {response.status} with {len(found)} bytes, not the file.")
        step["note"] = f"{len(found)} bytes, checksum as sent"
