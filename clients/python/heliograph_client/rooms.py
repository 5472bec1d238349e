"""The rooms this device is in: what their streams and rosters ask for is done here, and what they release goes to the application in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import quote

from .errors import HeliographError, RefusedError, SignedOutError
from .frames import Ack, Event
from .roster import Roster
from .stream import Deliver, Effect, Position, ReadPage, Stream, is_in_stream

_LOG = logging.getLogger("heliograph_client")
ROOMS_PER_PING = 50
JOINS_AT_ONCE = 8

JoinRoom = Callable[[str, Callable[[], Mapping[str, Any]]], Awaitable[Ack]]  # room_id, what makes the body


class Joined:
    """One room this device is in."""

    def __init__(self, room_id: str, after: Position | None) -> None:
        """`after` is the last position the application knows."""
        self.stream = Stream(room_id, after)
        self.roster = Roster()
        self.recovering: dict[str, asyncio.Task[None]] = {}  # "join", "page"

    def deadlines(self) -> list[float]:
        """When a stream or a roster has something to ask for."""
        return [deadline for deadline in (self.stream.next_deadline(), self.roster.next_deadline()) if deadline is not None]


class Rooms:
    """Every room that was joined and not left."""

    def __init__(
        self,
        join: JoinRoom,
        read: Callable[[str, Mapping[str, str]], Awaitable[dict[str, Any]]],
        deliver: Callable[[Event], None],
        is_online: Callable[[], bool],
    ) -> None:
        """`join` sends the frame, `read` gets a REST path with a query, `deliver` takes what is ready for the application."""
        self._join_frame, self._read, self._deliver, self._is_online = join, read, deliver, is_online
        self._rooms: dict[str, Joined] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._joining = asyncio.Semaphore(JOINS_AT_ONCE)

    def get(self, room_id: str) -> Joined | None:
        """A room that was joined."""
        return self._rooms.get(room_id)

    async def join(self, room_id: str, after: Position | None = None) -> Ack:
        """Enter a room; joined already, it is only asked again."""
        is_new = room_id not in self._rooms
        room = self._rooms.setdefault(room_id, Joined(room_id, after))
        try:
            return await self._send_join(room)
        except BaseException:
            if is_new:
                self._rooms.pop(room_id, None)
            raise

    async def _send_join(self, room: Joined) -> Ack:
        def body() -> dict[str, Any]:
            room.roster.asked(_now_s())
            return room.stream.join_body(_now_s())

        ack = await self._join_frame(room.stream.room_id, body)
        if ack.epoch is not None and ack.offset is not None:
            self._perform(room, room.stream.joined(ack.epoch, ack.offset, _now_s()))
        return ack

    def leave(self, room_id: str) -> None:
        """Forget a room."""
        self._rooms.pop(room_id, None)

    def forget(self) -> None:
        """Forget every room."""
        self._rooms.clear()
        self._schedule()

    async def come_back(self) -> None:
        """Join every room again with its position; returns when all were asked for."""
        await asyncio.gather(*(self._recover(room) for room in list(self._rooms.values())))

    def ping_rooms(self) -> list[Mapping[str, Any]]:
        """The bodies of one round of pings: every room with its position."""
        named = [_named(room.stream) for room in self._rooms.values()]
        return [{"rooms": named[start : start + ROOMS_PER_PING]} for start in range(0, max(1, len(named)), ROOMS_PER_PING)]

    def receive(self, event: Event) -> None:
        """An event came, from whichever socket: what is of a joined room's stream or roster is put in order first."""
        room = self._rooms.get(event.room_id or "")
        if room is None:
            self._deliver(event)
        elif event.event == "room":
            roster = room.roster.snapshot(event.body, _now_s())
            self._deliver(event)
            self._perform(room, [*roster, *room.stream.room(event, _now_s())])
        elif event.event == "behind":
            if event.epoch is not None and event.offset is not None:
                self._perform(room, room.stream.behind(event.epoch, event.offset, _now_s()))
        elif is_in_stream(event):
            self._perform(room, room.stream.receive(event, _now_s()))
        elif event.event in ("participant_joined", "participant_left"):
            self._perform(room, room.roster.change(event, _now_s()))
        else:
            self._deliver(event)

    def acknowledged(self, room_id: str, ack: Ack) -> None:
        """An own message is durable."""
        room = self._rooms.get(room_id)
        if room is not None and ack.epoch is not None and ack.offset is not None:
            self._perform(room, room.stream.fill(ack.epoch, ack.offset, _now_s()))

    async def close(self) -> None:
        """Stop."""
        self._rooms.clear()
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _perform(self, room: Joined, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Deliver):
                self._deliver(effect.event)
            elif isinstance(effect, ReadPage):
                self._spawn(room, "page", self._read_page(room, effect.after))
            elif self._is_online():  # offline there is nothing to ask: coming back joins every room
                self._spawn(room, "join", self._recover(room))
        self._schedule()

    async def _recover(self, room: Joined) -> None:
        """Join again with the position; the `room` event that follows brings what was missed."""
        try:
            async with self._joining:
                if self._rooms.get(room.stream.room_id) is room:
                    await self._send_join(room)
        except SignedOutError as error:  # of the socket, not of the room: the next socket joins again
            _LOG.info("room %s was not joined again: %s", room.stream.room_id, error)
        except RefusedError as error:
            if not error.retryable and self._rooms.pop(room.stream.room_id, None) is not None:
                self._deliver(Event("room_lost", {"code": error.code, "message": error.message}, room.stream.room_id))
        except HeliographError as error:  # the deadlines of stream and roster ask again
            _LOG.info("room %s was not joined again yet: %s", room.stream.room_id, error)
        self._schedule()

    async def _read_page(self, room: Joined, after: Position) -> None:
        try:
            page = await self._read(f"/v1/rooms/{quote(room.stream.room_id)}/events", {"epoch": after.epoch, "after": str(after.offset)})
        except HeliographError as error:
            _LOG.info("a page of room %s was not read: %s", room.stream.room_id, error)  # the stream's deadline asks again
            return
        self._perform(room, room.stream.page(after, page, _now_s()))

    def _spawn(self, room: Joined, kind: str, work: Coroutine[Any, Any, None]) -> None:
        """One recovery of a kind and room at a time."""
        running = room.recovering.get(kind)
        if running is not None and not running.done() and running is not asyncio.current_task():
            work.close()
            return
        room.recovering[kind] = task = asyncio.create_task(work, name=f"heliograph recovery by {kind}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadlines = [deadline for room in self._rooms.values() for deadline in room.deadlines()]
        self._timer = asyncio.get_running_loop().call_at(min(deadlines), self._tick) if deadlines else None

    def _tick(self) -> None:
        now_s = _now_s()
        for room in list(self._rooms.values()):
            self._perform(room, [*room.stream.tick(now_s), *room.roster.tick(now_s)])


def _named(stream: Stream) -> dict[str, Any]:
    position = stream.position
    return {"room_id": stream.room_id, **({"epoch": position.epoch, "offset": position.offset} if position is not None else {})}


def _now_s() -> float:
    return asyncio.get_running_loop().time()
