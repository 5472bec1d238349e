"""What a frame costs the stores: the commands that a warm function sends for one.

A change of this table is a decision: make it together with the change of the code. Counted by Redis' MONITOR and by the driver of MongoDB.
What scripts do inside Redis is not counted, because nobody waits for the network there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Final

import pytest
from pymongo import monitoring

from bench._signal_world import World, as_function, new_id, world
from functions.signal.handler import handler
from tests.conftest import Stores

CONTEXT: Final = SimpleNamespace(function_name="signal", aws_request_id="r")
HANDSHAKE: Final = {"hello", "client"}  # of this test's own connections
GATE: Final = Counter({"evalsha": 2})  # may it pass, and is it this frame's turn: one command; then it is the next one's
REFRESH: Final = Counter({"hgetall": 2, "hset": 1, "expire": 1, "set": 2})  # who is there; then one pipeline
ROOM: Final = Counter({"find": 1})  # is the sender a member
RELAY: Final = Counter({"hgetall": 2, "get": 1})  # the callee's sockets, to decide and to post; the record of the call
COMMANDS: Final[dict[str, tuple[Counter[str], Counter[str], int]]] = {  # frame -> (Redis, MongoDB, posts to sockets)
    "ping": (GATE + REFRESH, Counter(), 0),
    "ping with a room": (GATE + REFRESH + Counter({"evalsha": 1, "get": 1}), ROOM + Counter({"find": 1}), 0),  # the room entered again; the stream's head
    "message": (GATE + Counter({"get": 1, "set": 1, "hgetall": 1}), ROOM + Counter({"insert": 1}), 1),  # the head's hint; who is in the room
    "candidate": (GATE + RELAY, ROOM, 1),
    "offer": (GATE + RELAY + Counter({"evalsha": 1}), ROOM, 1),  # the record is written where it is the one read
}


class Commands(monitoring.CommandListener):
    """Counts what the driver sends."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.seen[event.command_name] += 1

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Counted when it started."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Counted when it started."""


DRIVER: Final = Commands()


def send(frame: dict[str, Any]) -> None:
    answer = handler(frame, CONTEXT)["body"]
    assert '"re"' in answer, answer
    assert '"code"' not in answer, answer


@pytest.fixture(scope="module")
def warm(stores: Stores) -> Iterator[World]:
    """A world whose sockets said hello and joined, in which every frame was sent once."""
    monitoring.register(DRIVER)  # for clients made from now on
    with world(stores.redis_url, stores.mongodb_uri) as made, as_function(made):
        for person in (made.ana, made.ben):
            send(person.frame("hello", {}))
            send(person.frame("join", {}, made.room_id))
        for frame in frames(made).values():
            send(frame())
        yield made


def frames(made: World) -> dict[str, Callable[[], dict[str, Any]]]:
    """The frames of the table."""
    return {
        "ping": lambda: made.ana.frame("ping", {}),
        "ping with a room": made.ping,
        "message": made.message,
        "candidate": lambda: made.candidate(new_id("call")),
        "offer": lambda: made.offer(new_id("call")),
    }


def cost(made: World, redis_server: Any, *sent: dict[str, Any]) -> tuple[Counter[str], Counter[str], int]:
    """What these frames cost together, in the form of the table."""
    in_redis: Counter[str] = Counter()
    made.posted()
    DRIVER.seen.clear()
    with redis_server.monitor() as monitor:
        for frame in sent:
            send(frame)
        redis_server.echo("the end")
        for command in monitor.listen():
            if command["command"].startswith("ECHO"):
                break
            name = command["command"].partition(" ")[0].lower()
            if command["client_type"] != "lua" and name not in HANDSHAKE:
                in_redis[name] += 1
    return in_redis, Counter(DRIVER.seen), len(made.posted())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_frame_costs_the_stores_what_the_table_says(name: str, warm: World, redis_server: Any) -> None:
    assert cost(warm, redis_server, frames(warm)[name]()) == COMMANDS[name]


def test_the_count_is_not_blind(warm: World, redis_server: Any) -> None:
    once, twice = cost(warm, redis_server, warm.message()), cost(warm, redis_server, warm.message(), warm.message())
    assert twice == (once[0] + once[0], once[1] + once[1], 2 * once[2])
