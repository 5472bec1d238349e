"""Who is live in a room: the server's roster on a real Redis and the client's, over a network that loses and delays, always agree in the end."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from adapters import keys
from adapters.connections_redis import Connections
from heliograph.rooms import Participant
from heliograph_client.frames import Event
from heliograph_client.roster import Roster
from heliograph_client.stream import Join

SOCKETS = [Participant(f"c{n}", f"acc_{n % 3}", f"dev_{n}") for n in range(5)]


class Membership(RuleBasedStateMachine):
    """One room. `live` is the model; what the watcher is sent waits in `on_its_way`."""

    redis: ClassVar[Any]
    rooms: ClassVar[int] = 0

    @initialize()
    def a_watcher_joins(self) -> None:
        Membership.rooms += 1
        self.connections, self.room_id = Connections(self.redis), f"room_{Membership.rooms}_{random.random()}"
        self.live: set[str] = set()
        self.on_its_way: list[Event] = []
        self.watcher, self.now_s = Roster(), 0.0
        self.snapshot()

    def snapshot(self) -> None:
        self.watcher.asked(self.now_s)
        is_new, roster = self.connections.enter_room("t", self.room_id, Participant("w", "acc_w", "dev_w"))
        self.watcher.snapshot(roster.as_json(), self.now_s)
        if is_new:
            self.live.add("w")

    def tell(self, name: str, socket: Participant, roster: Any) -> None:
        body = {"account_id": socket.account_id, "device_id": socket.device_id, **roster.position()}
        self.on_its_way.append(Event(name, body=body, room_id=self.room_id))

    @rule(socket=st.sampled_from(SOCKETS))
    def somebody_enters(self, socket: Participant) -> None:
        is_new, roster = self.connections.enter_room("t", self.room_id, socket)
        assert is_new == (socket.connection_id not in self.live)
        self.live.add(socket.connection_id)
        if is_new:
            self.tell("participant_joined", socket, roster)

    @rule(socket=st.sampled_from(SOCKETS))
    def somebody_leaves_or_is_gone(self, socket: Participant) -> None:
        was_in, roster = self.connections.leave_room("t", self.room_id, [socket.connection_id])
        assert was_in == (socket.connection_id in self.live)
        self.live.discard(socket.connection_id)
        if was_in:
            self.tell("participant_left", socket, roster)

    @rule()
    def redis_loses_everything(self) -> None:
        self.redis.delete(keys.room_live("t", self.room_id), keys.room_roster("t", self.room_id))
        self.live.clear()

    @rule(data=st.data())
    def an_event_arrives_or_is_lost(self, data: st.DataObject) -> None:
        if self.on_its_way:
            event = self.on_its_way.pop(data.draw(st.integers(0, len(self.on_its_way) - 1)))
            if data.draw(st.integers(0, 3)):
                self.hear(self.watcher.change(event, self.now_s))

    @rule(seconds=st.floats(0.1, 30))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.hear(self.watcher.tick(self.now_s))

    def hear(self, effects: list[Any]) -> None:
        if any(isinstance(effect, Join) for effect in effects):
            self.snapshot()

    @invariant()
    def the_server_has_exactly_the_living(self) -> None:
        if hasattr(self, "live"):
            assert {p.connection_id for p in self.connections.in_room("t", self.room_id)} == self.live

    def teardown(self) -> None:
        """However much was lost: after one more join the watcher sees whom the server sees, and nobody else."""
        if hasattr(self, "live"):
            self.snapshot()
            seen = {(item["account_id"], item["device_id"]) for item in self.watcher.as_json()}
            assert seen == {(p.account_id, p.device_id) for p in self.connections.in_room("t", self.room_id)}


@pytest.mark.timeout(60)
def test_rosters_agree_in_the_end_whatever_the_network_does(redis_server: Any) -> None:
    Membership.redis = redis_server
    run_state_machine_as_test(  # type: ignore[no-untyped-call, unused-ignore]
        Membership, settings=settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
    )
