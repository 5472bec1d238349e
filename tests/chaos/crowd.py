"""People with the real client library, what each of them was shown, and whether that is everything that was acknowledged, in order, once.

They sign their own tokens with the stack's key, because hundreds of sign-ins would measure argon2.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from bench._running import Issuer, new_identity
from heliograph.auth import Identity
from heliograph_client import Client, Event, HeliographError, make_id
from heliograph_client.ids import now_ms
from heliograph_client.rest import Session

ENTERING = 10  # attempts to come in: where two hours pass in seconds, a busy machine's socket may be over before its hello


@dataclass(slots=True)
class Sent:
    """A text that somebody wrote; times of this process's loop."""

    room_id: str
    device_id: str
    at_s: float
    acknowledged_s: float | None = None
    offset: int = 0


@dataclass(slots=True)
class Person:
    """One device, and what its application was shown."""

    who: Identity
    room_id: str
    client: Client
    is_writer: bool = True
    is_late: bool = False  # does not replace its socket in time
    sockets: set[str] = field(default_factory=set)
    start: int = 0
    shown: list[tuple[int, float]] = field(default_factory=list)  # offset, when
    surprises: list[Event] = field(default_factory=list)  # resets, lost rooms, "connected elsewhere": none of them may happen

    @property
    def rotations(self) -> int:
        """How often another socket took the place of one."""
        return max(0, len(self.sockets) - 1)

    def note(self, event: Event) -> None:
        if event.event == "message" and event.room_id == self.room_id and event.offset is not None:
            self.shown.append((event.offset, asyncio.get_running_loop().time()))
        elif event.event == "welcome":
            self.sockets.add(event.body["connection_id"])
        elif event.event in ("stream_reset", "room_lost", "closed", "signed_out"):
            self.surprises.append(event)


class Crowd:
    """Rooms full of people, all connected."""

    def __init__(self, people: Sequence[Person], issuer: Issuer) -> None:
        self.people, self.issuer = people, issuer
        self.sent: list[Sent] = []
        self.refused: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def write(self, per_second: float, stop: asyncio.Event) -> None:
        """Texts from every writer in turn until `stop`; waits for every answer."""
        for person in itertools.cycle([person for person in self.people if person.is_writer]):
            if stop.is_set():
                break
            task = asyncio.create_task(self._write(person))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(1 / per_second)
        await asyncio.gather(*self._tasks)

    async def _write(self, person: Person) -> None:
        loop = asyncio.get_running_loop()
        sent = Sent(person.room_id, person.who.device_id, loop.time())
        self.sent.append(sent)
        try:
            ack = await person.client.send_text(person.room_id, "a word", timeout_s=180)
        except HeliographError as error:
            self.refused.append(f"{type(error).__name__}: {error}")
            return
        assert ack.offset is not None
        sent.acknowledged_s, sent.offset = loop.time(), ack.offset

    async def dropped(self, admin_url: str, count: int | None = None, timeout_s: float = 180.0) -> float:
        """Breaks the oldest sockets, or all; answers the seconds until everybody who noticed is back."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        async with aiohttp.ClientSession() as http, http.post(f"{admin_url}/sockets/close", json={} if count is None else {"count": count}) as answer:
            closed = (await answer.json())["closed"]
        async with asyncio.timeout(timeout_s):
            while sum(not person.client.is_online for person in self.people) < closed and loop.time() - began_s < 0.5:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            while not all(person.client.is_online for person in self.people):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        return loop.time() - began_s

    def missing(self) -> list[str]:
        """Who was not shown what was acknowledged: one sentence a person."""
        found = []
        for person in self.people:
            due = {sent.offset for sent in self.sent if sent.acknowledged_s and sent.room_id == person.room_id and sent.device_id != person.who.device_id}
            if lacking := sorted(offset for offset in due - {offset for offset, _ in person.shown} if offset > person.start):
                found.append(f"{person.who.device_id} in {person.room_id} lacks {len(lacking)} of {len(due)}: {lacking[:5]}…")
        return found

    async def settled(self, timeout_s: float) -> float:
        """Until everybody was shown everything; answers the seconds it took."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while missing := self.missing():
            assert loop.time() - began_s < timeout_s, f"still missing after {timeout_s:g} s: {missing[:5]}"
            await asyncio.sleep(0.1)
        return loop.time() - began_s

    def duplicates(self) -> int:
        """Texts shown twice to one application."""
        return sum(len(person.shown) - len({offset for offset, _ in person.shown}) for person in self.people)

    def disorder(self) -> int:
        """Texts shown after a later one."""
        return sum(later < earlier for person in self.people for (earlier, _), (later, _) in itertools.pairwise(person.shown))

    async def unstored(self) -> int:
        """Acknowledged, and not in MongoDB's stream; or there twice."""
        stored = await asyncio.to_thread(self.issuer.stored, sorted({person.room_id for person in self.people}))
        gone = sum(sent.offset not in {offset for offset, _ in stored[sent.room_id]} for sent in self.sent if sent.acknowledged_s)
        return gone + sum(len(events) - len({message_id for _, message_id in events}) for events in stored.values())

    def surprises(self) -> list[str]:
        """Events that tell an application that something was lost."""
        return [f"{event.event} {event.body}" for person in self.people for event in person.surprises]

    def summary(self, settled_s: float) -> str:
        """The line that is printed once everybody has everything."""
        return (
            f"  everybody has everything, from the last text: {settled_s:.1f} s / 60 s\n"
            f"  lost 0 / 0, shown twice {self.duplicates()} / 0, out of order {self.disorder()} / 0"
        )

    def rotations(self) -> int:
        """How often a socket was replaced, in all."""
        return sum(person.rotations for person in self.people)

    def acknowledged(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.acknowledged_s is not None]

    def live_after_s(self, at_s: float, within_s: float = 1.0) -> float:
        """How long after `at_s` until everybody had every text within `within_s` of its being written."""
        last = at_s
        for sent in self.sent:
            for person in self.people:
                if sent.at_s < at_s or person.room_id != sent.room_id or person.who.device_id == sent.device_id or not sent.acknowledged_s:
                    continue
                shown_s = next((when for offset, when in person.shown if offset == sent.offset), float("inf"))
                if shown_s - sent.at_s > within_s:
                    last = max(last, sent.at_s)
        return last - at_s


@asynccontextmanager
async def crowd(
    endpoints: dict[str, Any], issuer: Issuer, *, rooms: int, per_room: int, listeners: int = 0, reconnect_every_s: float | None = None, late: int = 0
) -> AsyncIterator[Crowd]:
    """Everybody signed in, connected and in their room; of each room's people `listeners` never write; every `late`th does not replace its socket."""
    plan = {make_id("room"): [new_identity() for _ in range(per_room)] for _ in range(rooms)}
    await asyncio.to_thread(issuer.create_rooms, plan)
    people: list[Person] = []
    for room_id, members in plan.items():
        for number, who in enumerate(members):
            is_late = late > 0 and len(people) % late == 0
            client = Client(endpoints["rest_url"], endpoints["socket_url"], reconnect_every_s=None if is_late else reconnect_every_s)
            people.append(Person(who, room_id, client, number >= listeners, is_late))
    limit = asyncio.Semaphore(6)

    async def enter(person: Person) -> None:
        async with limit:
            client, who = await person.client.__aenter__(), person.who
            client.rest.session = Session(who.tenant_id, who.account_id, who.device_id, issuer.access_token(who), "", now_ms() + 900_000)
            for name in ("message", "welcome", "stream_reset", "room_lost", "closed", "signed_out"):
                client.on(name, person.note)
            for attempt in range(ENTERING):
                try:
                    await client.connect()
                    ack = await client.join(person.room_id)
                except HeliographError as error:
                    if not error.retryable or attempt == ENTERING - 1:
                        raise
                else:
                    break
            person.start = ack.offset or 0

    try:
        await asyncio.gather(*(enter(person) for person in people))
        yield Crowd(people, issuer)
    finally:
        await asyncio.gather(*(person.client.close() for person in people), return_exceptions=True)
