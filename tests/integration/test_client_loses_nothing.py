"""The client against a small server that speaks the protocol over a bad network: posts are lost, doubled and late, sockets die, fall silent or are replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from heliograph_client import Client, Event, Position, TimedOutError, make_id
from heliograph_client.ids import now_ms

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass
class Peer:
    """An open socket."""

    socket: web.WebSocketResponse
    account_id: str
    device_id: str
    seqs: list[int] = field(default_factory=list)
    is_silent: bool = False  # half-open: nothing goes in or out

    async def send(self, frame: dict[str, Any]) -> None:
        if not self.is_silent:
            with contextlib.suppress(ConnectionError):
                await self.socket.send_str(json.dumps(frame))


@dataclass
class Room:
    """A room's stream and who is in it."""

    epoch: str = "e1"
    events: list[dict[str, Any]] = field(default_factory=list)
    offsets: dict[str, int] = field(default_factory=dict)
    live: list[Peer] = field(default_factory=list)
    roster_version: int = 0


class Hall:
    """The server, and the network before it."""

    def __init__(self) -> None:
        self.url = ""
        self.rooms: dict[str, Room] = {}
        self.peers: list[Peer] = []
        self.accounts: dict[str, tuple[str, str]] = {}  # access token or ticket -> (account_id, device_id)
        self.seen: list[tuple[Peer, dict[str, Any]]] = []
        self.welcome: dict[str, Any] = {"heartbeat_s": 0.3}
        self.recovered_at_once = 100
        self.page = 100
        self.dice = random.Random(7)
        self.loses, self.doubles, self.delays_s = 0.0, 0.0, 0.0
        self.is_down = False
        self.are_tokens_dead = False
        self.intercept: Callable[[Peer, dict[str, Any]], dict[str, Any] | None] = lambda peer, frame: None  # an answer instead of the action
        self.tasks: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._gate])
        app.router.add_post("/v1/tokens", self._token)
        app.router.add_post("/v1/tokens/refresh", self._token)
        app.router.add_post("/v1/tickets", self._ticket)
        app.router.add_get("/v1/rooms/{room_id}/events", self._events)
        app.router.add_get("/socket", self._socket)
        return app

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self.is_down:
            return web.json_response({"message": "Service Unavailable"}, status=503)
        if self.are_tokens_dead and request.path != "/v1/tokens":
            return web.json_response({"message": "Unauthorized"}, status=401)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _token(self, request: web.Request) -> web.Response:
        body = await request.json()
        names = {"tenant_id": "acme", "account_id": f"acc_{body['login']}", "device_id": body["device_id"], "token_type": "Bearer"}
        token = make_id("tok")
        self.accounts[token] = (names["account_id"], names["device_id"])
        return web.json_response({**names, "access_token": token, "refresh_token": "r", "expires_at_ms": now_ms() + 900_000}, status=201)

    async def _ticket(self, request: web.Request) -> web.Response:
        ticket = make_id("tick")
        self.accounts[ticket] = self.accounts[request.headers["Authorization"].removeprefix("Bearer ")]
        return web.json_response({"ticket": ticket, "expires_at_ms": now_ms() + 30_000}, status=201)

    async def _events(self, request: web.Request) -> web.Response:
        room, after = self.rooms[request.match_info["room_id"]], int(request.query["after"])
        is_same = request.query["epoch"] == room.epoch
        start = after if is_same else max(0, len(room.events) - self.page)
        return web.json_response({"epoch": room.epoch, "head": len(room.events), "recovered": is_same, "events": room.events[start : start + self.page]})

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        account_id, device_id = self.accounts.pop(request.headers["Sec-WebSocket-Protocol"].split("ticket.")[1])
        socket = web.WebSocketResponse(protocols=("heliograph.v1",))
        await socket.prepare(request)
        peer = Peer(socket, account_id, device_id)
        async for message in socket:
            frame = json.loads(message.data)
            if peer.is_silent:
                continue
            self.seen.append((peer, frame))
            peer.seqs.append(frame["client_seq"])
            answer = self.intercept(peer, frame) or getattr(self, frame["action"])(peer, frame)
            await peer.send(answer)
        self.forget(peer)
        return socket

    def forget(self, peer: Peer) -> None:
        if peer in self.peers:
            self.peers.remove(peer)
        for room_id, room in self.rooms.items():
            if peer in room.live:
                room.live.remove(peer)
                self._tell(room_id, "participant_left", peer)

    def _tell(self, room_id: str, event: str, about: Peer) -> None:
        room = self.rooms[room_id]
        room.roster_version += 1
        body = {"account_id": about.account_id, "device_id": about.device_id, "roster_epoch": "r1", "roster_version": room.roster_version}
        for peer in room.live:
            if peer is not about:
                self.post(peer, event, body, room_id=room_id)

    def post(self, peer: Peer, event: str, body: dict[str, Any], **more: Any) -> None:
        """A post to a socket: perhaps lost, perhaps twice, perhaps late."""
        frame = {"event": event, "at_ms": now_ms(), "trace_id": TRACE, "body": body, **more}
        for _ in range(2 if self.dice.random() < self.doubles else 1):
            if self.dice.random() >= self.loses:
                self._later(peer, frame, self.dice.uniform(0, self.delays_s))

    def _later(self, peer: Peer, frame: dict[str, Any], delay_s: float) -> None:
        async def deliver() -> None:
            await asyncio.sleep(delay_s)
            await peer.send(frame)

        task = asyncio.create_task(deliver())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # actions

    def hello(self, peer: Peer, frame: dict[str, Any]) -> dict[str, Any]:
        older = [other for other in self.peers if other.device_id == peer.device_id]
        self.peers.append(peer)
        self._later(peer, {"event": "welcome", "at_ms": now_ms(), "trace_id": TRACE, "body": self.welcome}, 0)
        for other in older:
            self._later(other, {"event": "closed", "at_ms": now_ms(), "trace_id": TRACE, "body": {"reason": "connected_elsewhere"}}, 0)
            self.cut(other)
        return {"re": frame["id"]}

    def cut(self, peer: Peer, after_s: float = 0.01) -> None:
        async def close() -> None:
            await asyncio.sleep(after_s)
            await peer.socket.close()

        self.forget(peer)
        task = asyncio.create_task(close())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def join(self, peer: Peer, frame: dict[str, Any]) -> dict[str, Any]:
        room_id, position = frame["room_id"], frame["body"]
        room = self.rooms[room_id]
        if peer not in room.live:
            room.live.append(peer)
            self._tell(room_id, "participant_joined", peer)
        is_known = position.get("epoch") == room.epoch
        missed = room.events[position["offset"] :][: self.recovered_at_once] if is_known else []
        body = {
            "participants": [{"account_id": other.account_id, "device_id": other.device_id} for other in room.live],
            "roster_epoch": "r1",
            "roster_version": room.roster_version,
            "recovered": is_known,
            "events": missed,
            "more": is_known and position["offset"] + len(missed) < len(room.events),
        }
        self.post(peer, "room", body, room_id=room_id, epoch=room.epoch, offset=len(room.events))
        return {"re": frame["id"], "epoch": room.epoch, "offset": len(room.events)}

    def leave(self, peer: Peer, frame: dict[str, Any]) -> dict[str, Any]:
        self.rooms[frame["room_id"]].live.remove(peer)
        return {"re": frame["id"]}

    def message(self, peer: Peer, frame: dict[str, Any]) -> dict[str, Any]:
        room_id = frame["room_id"]
        room = self.rooms[room_id]
        if frame["id"] not in room.offsets:
            body = {**frame["body"], "id": frame["id"], "from": {"account_id": peer.account_id, "device_id": peer.device_id}}
            room.offsets[frame["id"]] = offset = len(room.events) + 1
            where = {"room_id": room_id, "epoch": room.epoch, "offset": offset}
            room.events.append({"event": "message", "at_ms": now_ms(), "trace_id": TRACE, "body": body, **where})
        event = room.events[room.offsets[frame["id"]] - 1]
        for other in room.live:
            if other is not peer:
                self.post(other, "message", event["body"], room_id=room_id, epoch=room.epoch, offset=event["offset"])
        return {"re": frame["id"], "epoch": room.epoch, "offset": event["offset"]}

    def ping(self, peer: Peer, frame: dict[str, Any]) -> dict[str, Any]:
        for named in frame["body"]["rooms"]:
            room = self.rooms[named["room_id"]]
            if named.get("epoch") != room.epoch or named.get("offset", 0) < len(room.events):
                self.post(peer, "behind", {}, room_id=named["room_id"], epoch=room.epoch, offset=len(room.events))
        return {"re": frame["id"]}

    def presence(self, peer: Peer, frame: dict[str, Any]) -> dict[str, Any]:
        return {"re": frame["id"]}

    watch = presence

    def of(self, client: Client) -> Peer:
        """The newest socket of a client."""
        return next(peer for peer in reversed(self.peers) if peer.device_id == client.session.device_id)


@pytest.fixture
async def hall() -> AsyncIterator[Hall]:
    hall = Hall()
    runner = web.AppRunner(hall.app(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    hall.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield hall
    await runner.cleanup()


@contextlib.asynccontextmanager
async def online(hall: Hall, login: str, **options: Any) -> AsyncIterator[Client]:
    async with Client(hall.url, hall.url.replace("http", "ws") + "/socket", **options) as client:
        await client.sign_in("acme", login, "secret", make_id("dev"))
        await client.connect()
        yield client


class Reader:
    """What an application has of a room: events and acknowledgements."""

    def __init__(self, client: Client, room_id: str) -> None:
        self.client, self.room_id = client, room_id
        self.events: list[Event] = []
        self.sent: list[tuple[int, str]] = []
        for name in ("message", "stream_reset", "closed", "room_lost", "signed_out"):
            client.on(name, self.events.append)

    async def send(self, text: str) -> None:
        ack = await self.client.send_text(self.room_id, text, timeout_s=20)
        assert ack.offset is not None
        self.sent.append((ack.offset, text))

    @property
    def names(self) -> list[str]:
        return [event.event for event in self.events if event.event != "message"]

    @property
    def texts(self) -> list[tuple[int, str]]:
        return [(event.offset or 0, event.body["text"]) for event in self.events if event.event == "message"]

    def has(self, room: Room) -> bool:
        return sorted(self.texts + self.sent) == [(event["offset"], event["body"]["text"]) for event in room.events]

    def check(self, room: Room) -> None:
        assert self.texts == sorted(self.texts), "events in the order of their offsets"
        assert sorted(self.texts + self.sent) == [(event["offset"], event["body"]["text"]) for event in room.events], "everything, once"


async def until(holds: Callable[[], bool], missing: str, timeout_s: float = 30.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - what is awaited lives in the server and has no event
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"after {timeout_s:g} s still missing: {missing}")


def now_s() -> float:
    return asyncio.get_running_loop().time()


def room_of(hall: Hall) -> tuple[str, Room]:
    room_id = make_id("room")
    hall.rooms[room_id] = Room()
    return room_id, hall.rooms[room_id]


async def test_nothing_is_lost_or_doubled_on_a_bad_network(hall: Hall) -> None:
    room_id, room = room_of(hall)
    hall.recovered_at_once, hall.page = 5, 7
    async with online(hall, "ana") as ana, online(hall, "ben") as ben:
        readers = [Reader(ana, room_id), Reader(ben, room_id)]
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        hall.loses, hall.doubles, hall.delays_s = 0.2, 0.2, 0.05

        async def write(reader: Reader, name: str) -> None:
            for number in range(100):
                await reader.send(f"{name} {number}")

        async def cut() -> None:
            for _ in range(12):
                await asyncio.sleep(0.15)
                if hall.peers:
                    hall.cut(hall.dice.choice(hall.peers), after_s=0)

        await asyncio.gather(*(write(reader, name) for reader, name in zip(readers, ("ana", "ben"), strict=True)), cut())
        await until(lambda: all(reader.has(room) for reader in readers), "everything that was written", 30)
    for reader in readers:
        reader.check(room)
        assert reader.names == []
    assert len(room.events) == 200
    assert all(seqs == list(range(1, len(seqs) + 1)) for seqs in [peer.seqs for peer, _ in hall.seen]), "client_seq counts every transmission"


async def test_a_socket_is_replaced_before_its_time_without_a_gap(hall: Hall, capsys: pytest.CaptureFixture[str]) -> None:
    room_id, room = room_of(hall)
    sent_s: dict[str, float] = {}
    delays_s: list[float] = []
    async with online(hall, "ana") as ana, online(hall, "ben", reconnect_every_s=0.4) as ben:
        writer, reader = Reader(ana, room_id), Reader(ben, room_id)
        ben.on("message", lambda event: delays_s.append(now_s() - sent_s[event.body["text"]]))
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        for number in range(400):
            sent_s[str(number)] = now_s()
            await writer.send(str(number))
            if number % 8 == 0:
                await reader.send(f"ben {number}")
            await asyncio.sleep(0.005)
        await until(lambda: reader.has(room) and writer.has(room), "everything that was written")
        sockets = {id(peer) for peer, frame in hall.seen if frame["action"] == "hello" and peer.account_id == "acc_ben"}
    reader.check(room)
    writer.check(room)
    with capsys.disabled():
        print(f"\nswap: {len(sockets) - 1} replacements, {len(delays_s)} events, the slowest after {max(delays_s) * 1000:.0f} ms")
    assert len(sockets) > 4
    assert reader.names == [], "being closed by one's own next socket is nothing to tell"
    assert max(delays_s) < 5


async def test_the_hint_that_the_network_is_back_collapses_the_pause(hall: Hall, capsys: pytest.CaptureFixture[str]) -> None:
    async with online(hall, "ana") as ana:
        hall.is_down = True
        await hall.of(ana).socket.close()
        await asyncio.sleep(3)
        assert not ana.is_online
        hall.is_down = False
        before_s = now_s()
        ana.network_available()
        await until(lambda: ana.is_online, "the socket")
        elapsed_s = now_s() - before_s
    with capsys.disabled():
        print(f"\nonline {elapsed_s * 1000:.0f} ms after the hint")
    assert elapsed_s < 1


async def test_the_hint_probes_a_socket_that_only_seems_open(hall: Hall) -> None:
    hall.welcome = {"heartbeat_s": 60}
    async with online(hall, "ana") as ana:
        hall.of(ana).is_silent = True
        ana.network_available()
        await until(lambda: len([1 for _, frame in hall.seen if frame["action"] == "hello"]) == 2, "another socket", 4)


async def test_a_socket_that_does_not_answer_a_ping_is_replaced(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heliograph_client.uplink.PING_TIMEOUT_S", 0.3)
    room_id, room = room_of(hall)
    async with online(hall, "ana") as ana, online(hall, "ben") as ben:
        reader = Reader(ben, room_id)
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        hall.of(ben).is_silent = True
        await ana.send_text(room_id, "while ben is half-open")
        await until(lambda: reader.has(room), "the text")


async def test_a_lost_post_is_found_by_the_next_ping(hall: Hall) -> None:
    room_id, room = room_of(hall)
    async with online(hall, "ana") as ana, online(hall, "ben") as ben:
        reader = Reader(ben, room_id)
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        hall.loses = 1.0
        await ana.send_text(room_id, "nobody hears this")
        await asyncio.sleep(0.05)
        hall.loses = 0.0
        await until(lambda: reader.has(room), "the text")
        assert ben.position(room_id) == Position("e1", 1)


async def test_a_device_connected_elsewhere_stays_away_until_it_is_told_to_connect(hall: Hall) -> None:
    async with online(hall, "ana", timeout_s=0.5) as ana:
        reader = Reader(ana, "")
        async with Client(hall.url, hall.url.replace("http", "ws") + "/socket") as twin:
            await twin.sign_in("acme", "ana", "secret", ana.session.device_id)
            await twin.connect()
            await until(lambda: not ana.is_online, "the end of the first socket")
            ana.network_available()
            with pytest.raises(TimedOutError, match="not connected"):
                await ana.set_presence("online")
            assert reader.names == ["closed"]
            assert len(hall.peers) == 1
            await ana.connect()
            await ana.set_presence("busy")
            await until(lambda: not twin.is_online, "the end of the second socket")


async def test_a_device_that_is_signed_out_goes_on_after_signing_in(hall: Hall) -> None:
    async with online(hall, "ana") as ana:
        reader = Reader(ana, "")
        hall.are_tokens_dead = True
        await hall.of(ana).socket.close()
        await until(lambda: reader.names == ["signed_out"], "the word that it is signed out")
        hall.are_tokens_dead = False
        await ana.sign_in("acme", "ana", "secret", ana.session.device_id)
        await until(lambda: ana.is_online, "the socket")


async def test_a_new_epoch_reaches_the_application_as_a_reset(hall: Hall) -> None:
    room_id, room = room_of(hall)
    async with online(hall, "ana") as ana, online(hall, "ben") as ben:
        reader = Reader(ben, room_id)
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        await ana.send_text(room_id, "in the first life")
        await until(lambda: reader.has(room), "the text")
        room.epoch, room.events = "e2", []
        await ana.send_text(room_id, "in the second life")
        await until(lambda: "stream_reset" in reader.names, "the reset")
        await ana.send_text(room_id, "after the reset")
        await until(lambda: (2, "after the reset") in reader.texts, "the text after the reset")
    reset = next(event for event in reader.events if event.event == "stream_reset")
    assert (reset.epoch, reset.body["previous"]) == ("e2", {"epoch": "e1", "offset": 1})


async def test_an_application_goes_on_where_its_last_run_ended(hall: Hall) -> None:
    room_id, room = room_of(hall)
    hall.recovered_at_once, hall.page = 10, 10
    async with online(hall, "ana") as ana:
        writer = Reader(ana, room_id)
        await ana.join(room_id)
        for number in range(35):
            await writer.send(str(number))
        async with online(hall, "ben") as ben:
            reader = Reader(ben, room_id)
            await ben.join(room_id, after=Position("e1", 0))
            await until(lambda: reader.has(room), "everything, by pages")
    reader.check(room)


async def test_the_roster_is_whole_after_coming_back(hall: Hall) -> None:
    room_id, room = room_of(hall)
    async with online(hall, "ana") as ana, online(hall, "ben") as ben:
        await ana.join(room_id)
        await ben.join(room_id)
        await until(lambda: len(ana.participants(room_id)) == 2, "ben in ana's roster")
        hall.is_down = True
        await hall.of(ana).socket.close()
        await ben.leave(room_id)
        room.roster_version += 1
        hall.is_down = False
        ana.network_available()
        await until(lambda: len(ana.participants(room_id)) == 1, "ben's absence in ana's roster")
    assert ana.participants(room_id) == []


async def test_a_swap_does_not_take_its_device_out_of_the_rosters(hall: Hall) -> None:
    room_id, _ = room_of(hall)
    sizes: set[int] = set()
    async with online(hall, "ana") as ana, online(hall, "ben", reconnect_every_s=0.3) as ben:
        await ana.join(room_id)
        await ben.join(room_id)
        await until(lambda: len(ana.participants(room_id)) == 2, "ben in ana's roster")
        for name in ("participant_joined", "participant_left"):
            ana.on(name, lambda event: sizes.add(len(ana.participants(room_id))))
        await until(lambda: len([1 for _, frame in hall.seen if frame["action"] == "hello"]) > 5, "some swaps")
        await until(lambda: len(ana.participants(room_id)) == 2, "ben in ana's roster")
    assert ana.participants(room_id) == []


async def test_a_frame_out_of_order_is_sent_again_under_its_id(hall: Hall) -> None:
    room_id, room = room_of(hall)
    refused: Counter[str] = Counter()

    def refuse_twice(peer: Peer, frame: dict[str, Any]) -> dict[str, Any] | None:
        refused[frame["id"]] += frame["action"] == "message"
        if 0 < refused[frame["id"]] < 3:
            return {"code": "out_of_order", "message": "No.", "retryable": True, "trace_id": TRACE, "re": frame["id"]}
        return None

    hall.intercept = refuse_twice
    async with online(hall, "ana") as ana:
        ack = await ana.send_text(room_id, "in the end")
    tries = [frame for _, frame in hall.seen if frame["action"] == "message"]
    assert (ack.offset, len(room.events), len(tries), len({frame["id"] for frame in tries})) == (1, 1, 3, 1)
    assert [frame["client_seq"] for frame in tries] == sorted({frame["client_seq"] for frame in tries})


@pytest.mark.parametrize("message", ["Too Many Requests", "Internal server error"])
async def test_a_failure_of_api_gateway_is_that_of_the_only_frame_on_its_way(hall: Hall, message: str) -> None:
    room_id, _ = room_of(hall)
    failed: list[str] = []

    def fail_once(peer: Peer, frame: dict[str, Any]) -> dict[str, Any] | None:
        if frame["action"] != "message" or failed:
            return None
        failed.append(frame["id"])
        return {"message": message, "connectionId": "c", "requestId": "r"}

    hall.welcome, hall.intercept = {"heartbeat_s": 60}, fail_once
    async with online(hall, "ana", timeout_s=8) as ana:
        before_s = now_s()
        await ana.send_text(room_id, "again")
        assert now_s() - before_s < 6, "not after the timeout"


async def test_with_several_frames_on_their_way_their_timeouts_decide(hall: Hall) -> None:
    room_id, room = room_of(hall)
    failed: list[str] = []

    def fail_the_first(peer: Peer, frame: dict[str, Any]) -> dict[str, Any] | None:
        if frame["action"] != "message" or len(failed) >= 2:
            return None
        failed.append(frame["id"])
        return {"message": "Internal server error", "connectionId": "c", "requestId": "r"}

    hall.welcome, hall.intercept = {"heartbeat_s": 60}, fail_the_first
    async with online(hall, "ana", timeout_s=1) as ana:
        before_s = now_s()
        await asyncio.gather(ana.send_text(room_id, "one"), ana.send_text(room_id, "two"))
        assert now_s() - before_s >= 0.5
    assert len(room.events) == 2


async def test_a_text_waits_for_the_connection_and_says_when_there_was_none(hall: Hall) -> None:
    room_id, room = room_of(hall)
    async with online(hall, "ana") as ana:
        hall.is_down = True
        await hall.of(ana).socket.close()
        await until(lambda: not ana.is_online, "the end of the socket")
        with pytest.raises(TimedOutError, match="not connected"):
            await ana.send_text(room_id, "too soon", timeout_s=0.2)
        sending = asyncio.create_task(ana.send_text(room_id, "patient", timeout_s=5))
        await asyncio.sleep(0.1)
        hall.is_down = False
        ana.network_available()
        assert (await sending).offset == 1
    assert [event["body"]["text"] for event in room.events] == ["patient"]


async def test_pings_are_denser_on_a_call_and_what_belongs_to_a_socket_is_said_again(hall: Hall) -> None:
    hall.welcome = {"heartbeat_s": 60, "heartbeat_call_s": 0.05}
    async with online(hall, "ana") as ana:
        await ana.set_presence("on_a_call")
        await ana.watch(["acc_ben"])
        await hall.of(ana).socket.close()
        await until(lambda: len([1 for _, frame in hall.seen if frame["action"] == "ping"]) > 2, "pings")
    said = [frame["body"] for _, frame in hall.seen if frame["action"] in ("presence", "watch")]
    assert said == [{"status": "on_a_call"}, {"account_ids": ["acc_ben"]}] * 2


async def test_a_socket_that_is_refused_because_of_a_newer_one_is_left(hall: Hall) -> None:
    def refuse(peer: Peer, frame: dict[str, Any]) -> dict[str, Any] | None:
        is_late = frame["action"] == "presence" and frame["body"]["status"] == "busy"
        return {"code": "connected_elsewhere", "message": "No.", "retryable": False, "trace_id": TRACE, "re": frame["id"]} if is_late else None

    hall.intercept = refuse
    async with online(hall, "ana") as ana:
        reader = Reader(ana, "")
        with pytest.raises(TimedOutError, match="not connected"):
            await ana.request("presence", None, {"status": "busy"}, timeout_s=0.5)
        assert reader.names == ["closed"]
        assert len([1 for _, frame in hall.seen if frame["action"] == "hello"]) == 1


async def test_two_hundred_suspensions_do_not_end_it(hall: Hall) -> None:
    room_id, room = room_of(hall)
    async with online(hall, "ana") as ana, online(hall, "ben") as ben:
        reader = Reader(ben, room_id)
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        for number in range(200):
            for peer in [peer for peer in hall.peers if peer.account_id == "acc_ben" and hall.dice.random() < 0.7]:
                hall.cut(peer, after_s=hall.dice.uniform(0, 0.01))
            if number % 10 == 0:
                await ana.send_text(room_id, str(number))
            await asyncio.sleep(hall.dice.uniform(0, 0.02))
            ben.network_available()
        await until(lambda: reader.has(room), "everything that was written")
    reader.check(room)
