"""Many devices in one process: raw sockets, and behind each the client library's own stream, so that "delivered" means what its application would see.

A frame that is refused or not acknowledged is sent again with its id, as the library does. Sockets are not reopened here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench._running import Issuer, new_identity
from heliograph.auth import Identity
from heliograph_client import Event, make_id
from heliograph_client.frames import SUBPROTOCOL, TICKET_PREFIX, Ack, GatewayMessage, Refusal, build_frame, parse_frame
from heliograph_client.stream import Deliver, Effect, ReadPage, Stream, is_in_stream

TICK_S = 0.1
AGAIN_AFTER_S, ATTEMPTS = 10.0, 4
OPENING_AT_ONCE = 6
PING_S = 60.0


@dataclass(slots=True)
class Meter:
    """What happened since it was made."""

    started_s: dict[str, float] = field(default_factory=dict)  # message id -> when it was first sent
    acknowledged: dict[str, int] = field(default_factory=dict)  # message id -> offset
    acknowledged_ms: list[float] = field(default_factory=list)
    delivered_ms: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    sent_again: int = 0
    joins: int = 0  # recoveries that a stream asked for
    raw_disorder: int = 0
    raw_duplicates: int = 0


class Device:
    """One socket in one room."""

    def __init__(self, swarm: Swarm, who: Identity, room_id: str) -> None:
        self.swarm, self.who, self.room_id = swarm, who, room_id
        self.stream = Stream(room_id)
        self.delivered: list[tuple[int, str]] = []  # (offset, message id) as the application has them
        self.own: dict[int, str] = {}  # own messages, by offset
        self.start = 0  # the head when it joined
        self.is_open = False
        self.joined = asyncio.get_running_loop().create_future()
        self.raw_seen: set[int] = set()
        self._raw_last = 0
        self._seq = 0
        self._pending: dict[str, tuple[float, int]] = {}  # message id -> (when it is sent again, attempts)
        self._asked: set[str] = set()  # ids of joins
        self._ws: aiohttp.ClientWebSocketResponse

    async def open(self) -> None:
        """Hello and join, until the head is known."""
        swarm = self.swarm
        protocols = (SUBPROTOCOL, TICKET_PREFIX + swarm.issuer.ticket(self.who))
        self._ws = await swarm.http.ws_connect(swarm.endpoints["socket_url"], protocols=protocols, max_msg_size=256 * 1024)
        self.is_open = True
        swarm.spawn(self._read())
        await self._send("hello", {}, None)
        await self.ask()
        async with asyncio.timeout(30):
            await self.joined
        swarm.spawn(self._ping())

    async def send_text(self, text: str) -> None:
        message_id, meter = make_id("msg"), self.swarm.meter
        meter.started_s[message_id] = time.perf_counter()
        self._pending[message_id] = (time.perf_counter() + AGAIN_AFTER_S, 1)
        self.swarm.waiting.add(self)
        await self._send("message", {"text": text}, self.room_id, message_id)

    async def ask(self) -> None:
        """Join, with the position when there is one."""
        frame_id = make_id("msg")
        self._asked.add(frame_id)
        await self._send("join", self.stream.join_body(time.perf_counter()), self.room_id, frame_id)

    async def close(self) -> None:
        await self._ws.close()

    def tick(self, now_s: float) -> bool:
        """What is due; whether something still waits."""
        self._perform(self.stream.tick(now_s))
        for message_id, (due_s, attempts) in list(self._pending.items()):
            if now_s < due_s:
                continue
            if attempts >= ATTEMPTS:
                del self._pending[message_id]
                continue
            self._pending[message_id] = (now_s + AGAIN_AFTER_S, attempts + 1)
            self.swarm.meter.sent_again += 1
            self.swarm.spawn(self._send("message", {"text": self.swarm.text}, self.room_id, message_id))
        return bool(self._pending) or self.stream.next_deadline() is not None

    @property
    def is_waiting(self) -> bool:
        """Whether a message has no answer yet."""
        return bool(self._pending)

    async def _send(self, action: str, body: Mapping[str, Any], room_id: str | None, frame_id: str | None = None) -> None:
        self._seq += 1
        text = build_frame(action, frame_id or make_id("msg"), self._seq, secrets.token_hex(8), room_id, body)
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            await self._ws.send_str(text)

    async def _ping(self) -> None:
        await asyncio.sleep(PING_S * random.random())
        while self.is_open:
            at = self.stream.position
            await self._send("ping", {"rooms": [{"room_id": self.room_id, **({"epoch": at.epoch, "offset": at.offset} if at else {})}]}, None)
            await asyncio.sleep(PING_S * (0.9 + 0.1 * random.random()))

    async def _read(self) -> None:
        try:
            async for message in self._ws:
                if message.type is aiohttp.WSMsgType.TEXT:
                    self._receive(message.data)
        finally:
            self.is_open = False
            self.swarm.closed += not self.swarm.is_closing

    def _receive(self, text: str) -> None:
        frame, now_s, meter = parse_frame(text), time.perf_counter(), self.swarm.meter
        if isinstance(frame, Ack):
            self._acknowledged(frame, now_s, meter)
        elif isinstance(frame, Refusal):
            meter.refusals[frame.error.code] += 1
            if frame.re in self._pending and frame.error.retryable:
                self._pending[frame.re] = (now_s + 0.2 + 0.3 * random.random(), self._pending[frame.re][1])
            elif frame.re in self._asked:
                self.swarm.spawn(self.ask())
        elif isinstance(frame, GatewayMessage):
            meter.refusals[f"gateway: {frame.message}"] += 1
        elif frame is not None:
            self._event(frame, now_s, meter)

    def _acknowledged(self, ack: Ack, now_s: float, meter: Meter) -> None:
        if ack.epoch is None or ack.offset is None:
            return
        if ack.re in self._asked:
            self._asked.discard(ack.re)
            if not self.joined.done():
                self.start = ack.offset
                self.joined.set_result(None)
            self._perform(self.stream.joined(ack.epoch, ack.offset, now_s))
        elif self._pending.pop(ack.re, None) is not None:
            self.own[ack.offset] = ack.re
            meter.acknowledged[ack.re] = ack.offset
            if ack.re in meter.started_s:
                meter.acknowledged_ms.append((now_s - meter.started_s[ack.re]) * 1000)
            self._perform(self.stream.fill(ack.epoch, ack.offset, now_s))

    def _event(self, event: Event, now_s: float, meter: Meter) -> None:
        if event.event == "room":
            self._perform(self.stream.room(event, now_s))
        elif event.event == "behind" and event.epoch is not None and event.offset is not None:
            self._perform(self.stream.behind(event.epoch, event.offset, now_s))
        elif is_in_stream(event) and event.offset is not None:
            meter.raw_disorder += event.offset < self._raw_last
            meter.raw_duplicates += event.offset in self.raw_seen
            self._raw_last = max(self._raw_last, event.offset)
            self.raw_seen.add(event.offset)
            self._perform(self.stream.receive(event, now_s))

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Deliver):
                self._delivered(effect.event)
            elif isinstance(effect, ReadPage):
                self.swarm.spawn(self._read_page(effect))
            else:
                self.swarm.meter.joins += 1
                self.swarm.spawn(self.ask())
        if self.stream.next_deadline() is not None:
            self.swarm.waiting.add(self)

    def _delivered(self, event: Event) -> None:
        message_id, meter = str(event.body.get("id")), self.swarm.meter
        if event.event != "message" or event.offset is None:
            self.swarm.resets += event.event == "stream_reset"
            return
        if event.body["from"]["device_id"] == self.who.device_id:
            self._own_event(event.offset, message_id)
            return
        self.delivered.append((event.offset, message_id))
        if message_id in meter.started_s:
            meter.delivered_ms.append((time.perf_counter() - meter.started_s[message_id]) * 1000)

    def _own_event(self, offset: int, message_id: str) -> None:
        """An own message that came as an event before its acknowledgement did: recovery brought it."""
        self.own[offset] = message_id
        if self._pending.pop(message_id, None) is not None:
            self.swarm.meter.acknowledged[message_id] = offset

    async def _read_page(self, effect: ReadPage) -> None:
        query = {"epoch": effect.after.epoch, "after": str(effect.after.offset)}
        headers = {"Authorization": f"Bearer {self.swarm.issuer.access_token(self.who)}"}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with self.swarm.http.get(f"{self.swarm.endpoints['rest_url']}/v1/rooms/{self.room_id}/events", params=query, headers=headers) as answer:
                if answer.status == 200:
                    self._perform(self.stream.page(effect.after, await answer.json(), time.perf_counter()))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What must be nought."""

    lost: int  # acknowledged, and not handed to an application that was entitled to it
    duplicates: int
    disorder: int
    unstored: int  # acknowledged, and not in MongoDB under that offset
    resets: int
    closed: int

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.duplicates or self.disorder or self.unstored or self.resets or self.closed)


class Swarm:
    """Devices that share one process, one HTTP session and one clock."""

    def __init__(self, http: aiohttp.ClientSession, endpoints: Mapping[str, Any], issuer: Issuer) -> None:
        self.http, self.endpoints, self.issuer = http, endpoints, issuer
        self.text = "x" * 100
        self.devices: list[Device] = []
        self.meter = Meter()
        self.waiting: set[Device] = set()
        self.resets, self.closed, self.is_closing = 0, 0, False
        self._tasks: set[asyncio.Task[None]] = set()
        self.spawn(self._tick())

    async def grow(self, rooms: int, per_room: int) -> float:
        """That many rooms more, all their sockets open; answers the seconds it took."""
        plan = {make_id("room"): [new_identity() for _ in range(per_room)] for _ in range(rooms)}
        await asyncio.to_thread(self.issuer.create_rooms, plan)
        fresh = [Device(self, who, room_id) for room_id, people in plan.items() for who in people]
        limit, began_s = asyncio.Semaphore(OPENING_AT_ONCE), time.perf_counter()

        async def open_one(device: Device) -> None:
            async with limit:
                await device.open()

        await asyncio.gather(*(open_one(device) for device in fresh))
        self.devices += fresh
        return time.perf_counter() - began_s

    async def send(self, rate: float, seconds: float) -> float:
        """Texts at this rate from everybody in turn; answers how many a second left us."""
        self.meter = Meter()
        senders = random.sample(self.devices, len(self.devices))
        began_s = time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))
            await senders[number % len(senders)].send_text(self.text)
        return int(rate * seconds) / (time.perf_counter() - began_s)

    async def settle(self, timeout_s: float) -> float:
        """Waits until everything is answered and every stream is whole, or the time is over; answers the seconds it took."""
        began_s = time.perf_counter()
        while time.perf_counter() - began_s < timeout_s:
            if not any(device.is_waiting for device in self.waiting) and not self._missing():
                break
            await asyncio.sleep(0.1)
        return time.perf_counter() - began_s

    def _missing(self) -> int:
        heads: dict[str, int] = {}
        for device in self.devices:
            heads[device.room_id] = max(heads.get(device.room_id, 0), max(device.own, default=0))
        return sum(device.stream.position is not None and device.stream.position.offset < heads[device.room_id] for device in self.devices)

    def verdict(self) -> Verdict:
        """Compares what every application has with what was acknowledged, and that with MongoDB."""
        rooms: dict[str, list[Device]] = {}
        for device in self.devices:
            rooms.setdefault(device.room_id, []).append(device)
        stored, lost, duplicates, disorder, unstored = self.issuer.stored(list(rooms)), 0, 0, 0, 0
        for room_id, devices in rooms.items():
            acknowledged = {(offset, message_id) for device in devices for offset, message_id in device.own.items()}
            unstored += len(acknowledged - set(stored[room_id])) + len(stored[room_id]) - len({message_id for _, message_id in stored[room_id]})
            for device in devices:
                had, offsets = set(device.delivered), [offset for offset, _ in device.delivered]
                lost += sum(1 for at in acknowledged if at[0] > device.start and at not in had and device.own.get(at[0]) != at[1])
                duplicates += len(device.delivered) - len({message_id for _, message_id in device.delivered})
                disorder += sum(later <= earlier for earlier, later in itertools.pairwise(offsets))
        return Verdict(lost, duplicates, disorder, unstored, self.resets, self.closed)

    async def close(self) -> None:
        """Closes every socket."""
        self.is_closing = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(device.close() for device in self.devices), return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.waiting = {device for device in self.waiting if device.tick(time.perf_counter())}

    def spawn(self, work: Any) -> None:
        """Runs it until it ends or the swarm is closed."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
