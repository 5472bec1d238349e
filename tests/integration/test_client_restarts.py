"""Two Python clients whose call moves to another path while both listen: every packet is counted. Signaling goes by the server's own rules, in memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
import pytest

from heliograph.negotiation import Absent, Device, Signal, Tell, request
from heliograph.negotiation import Call as Record
from heliograph.sdp import check_description
from heliograph_client import ConnectionLostError, ice_restart, restarts
from heliograph_client.call import Call
from heliograph_client.errors import parse_error
from heliograph_client.ice_servers import Draining, IceServers
from heliograph_client.ids import now_ms
from heliograph_client.opus import PcmSource
from local import voice
from local.shaped_link import ShapedLink
from tests.integration.clients import allocations, online, until
from tests.integration.packets import Conversation
from tests.running import RunningStack

ANA, BEN = Device("acc_ana", "dev_2"), Device("acc_ben", "dev_1")  # ben is the polite one
Frame = tuple[Device, str, Mapping[str, Any]]
NOISE = voice.to_pcm(np.random.default_rng(6).normal(0, 0.1, 48_000 * 40))


class Switchboard:
    """What the server does with a call's frames, without a server; `spoil` may drop or change an event on its way (None drops it)."""

    def __init__(self) -> None:
        self.record: Record | None = None
        self.calls: dict[Device, Call] = {}
        self.offline: set[Device] = set()
        self.frames: list[Frame] = []
        self.refusals: list[str] = []
        self.spoil: Callable[[Device, str, dict[str, Any]], dict[str, Any] | None] = lambda _to, _event, body: body
        self._ways: dict[Device, asyncio.Queue[tuple[str, dict[str, Any]]]] = {ANA: asyncio.Queue(), BEN: asyncio.Queue()}

    def take(self, sender: Device, action: Any, body: dict[str, Any]) -> None:
        self.frames.append((sender, action, body))
        if action in ("offer", "answer"):
            body = {**body, "sdp": check_description(body["sdp"], action, allow_private=True)}
        signal = Signal.of(action, body)
        live = [device.device_id for device in self.calls if device.account_id == signal.to_account_id and device not in self.offline]
        self.record, decision = request(self.record, sender, signal, live, int(time.monotonic() * 1_000))
        for effect in decision.effects:
            if isinstance(effect, Absent):
                self._ways[sender].put_nowait(("callee_absent", {"call_id": body["call_id"]}))
            elif isinstance(effect, Tell):
                to = next(device for device in self.calls if device.account_id == effect.account_id)
                told = self.spoil(to, effect.event, {**body, **effect.body, "from": {"account_id": sender.account_id, "device_id": sender.device_id}})
                if told is not None:
                    self._ways[to].put_nowait((effect.event, told))
        if decision.refusal is not None:
            self.refusals.append(decision.refusal.code)
            raise parse_error(decision.refusal.body("0" * 32))

    async def deliver(self, device: Device) -> None:
        is_answered = device == ANA
        while True:
            event, body = await self._ways[device].get()
            if event == "offer" and not is_answered:
                is_answered = True
                await self.calls[device].answer(body)
            else:
                await self.calls[device].handle(event, body)


class Line:
    """One device's way to the switchboard."""

    def __init__(self, board: Switchboard, device: Device) -> None:
        self._board, self._device = board, device

    async def request(self, action: str, room_id: str | None = None, body: Mapping[str, Any] | None = None, *, trace_id: str | None = None) -> None:
        await asyncio.sleep(0.01)
        if self._device in self._board.offline:
            raise ConnectionLostError("offline")
        self._board.take(self._device, action, dict(body or {}))


class Talk:
    """A call between ana and ben that is connected, and every packet of it."""

    def __init__(self, board: Switchboard) -> None:
        self.board, self.ana, self.ben = board, board.calls[ANA], board.calls[BEN]
        self.packets = Conversation(self.ana, self.ben)

    @property
    def restarts(self) -> tuple[list[str], list[str]]:
        return self.ana.restarts, self.ben.restarts

    async def moved(self, times: int) -> None:
        """Both sides have moved so often."""
        await until(lambda: len(self.ana.restarts) == len(self.ben.restarts) == times, f"restart {times}: {self.restarts}", 20)

    async def assert_nothing_was_lost(self) -> None:
        await asyncio.sleep(0.3)
        assert await self.packets.missing() == [[], []], self.packets.counts()


@contextlib.asynccontextmanager
async def talking(board: Switchboard | None = None, **options: Any) -> AsyncIterator[Talk]:
    """Ana has called ben, both speak without a pause; options for one side alone are prefixed ana_ or ben_."""
    board = board or Switchboard()
    for device, peer, side in ((ANA, BEN, "ana_"), (BEN, ANA, "ben_")):
        own = {name[4:]: value for name, value in options.items() if name.startswith(side)}
        call_id = board.calls[ANA].call_id if device == BEN else None
        to = {"account_id": peer.account_id, "device_id": peer.device_id}
        call = Call(Line(board, device), "room_1", to, call_id=call_id, report_every_s=None, source=PcmSource(NOISE), **own)
        board.calls[device] = call
    deliveries = [asyncio.create_task(board.deliver(device)) for device in (ANA, BEN)]
    try:
        await board.calls[ANA].offer()
        await asyncio.gather(*(call.connected() for call in board.calls.values()))
        talk = Talk(board)
        await until(lambda: all(way.heard for way in talk.packets.ways), "the first packets")
        yield talk
    finally:
        await asyncio.gather(*(call.hangup() for call in board.calls.values()))
        for task in deliveries:
            task.cancel()


async def test_either_side_moves_the_call_and_no_packet_is_lost() -> None:
    async with talking() as talk:
        before = talk.ana._paths.current, talk.ben._paths.current
        talk.ana.restart()
        await talk.moved(1)
        talk.ben.restart()
        await talk.moved(2)
        assert talk.restarts == (["asked", "peer"], ["peer", "asked"])
        assert before[0] is not talk.ana._paths.current
        await talk.assert_nothing_was_lost()
        assert talk.packets.longest_gap_s < 2.0, "generous: a busy machine"


@pytest.mark.parametrize("apart_s", [0.0, 0.005, 0.02])
async def test_both_move_at_once_and_end_on_one_path(apart_s: float) -> None:
    """Ben is polite: his offer gives way, or comes first and is answered."""
    async with talking() as talk:
        for _ in range(3):
            for call in (talk.ben, talk.ana):
                call.restart()
                await asyncio.sleep(apart_s)
            await until(lambda: not any(call._restarts._is_asked for call in (talk.ana, talk.ben)), f"an end: {talk.restarts}", 20)
        await until(lambda: len(talk.ana.restarts) == len(talk.ben.restarts), f"agreement: {talk.restarts}")
        assert all(reason in ("asked", "peer") for reason in (*talk.ana.restarts, *talk.ben.restarts))
        ends = [talk.ana._paths.current.connection, talk.ben._paths.current.connection]
        assert [ends[0].remote_username, ends[1].remote_username] == [ends[1].local_username, ends[0].local_username], "both ends of the same path"
        await talk.assert_nothing_was_lost()


async def test_an_offer_is_said_again_and_its_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "REPEAT_AFTER_S", 0.3)
    lost = ["offer", "answer"]

    def lose(_: Device, event: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if lost and lost[0] == event and talk_began:
            lost.pop(0)
            return None
        return body

    talk_began: list[bool] = []
    async with talking() as talk:
        talk.board.spoil = lose
        talk_began.append(True)
        lost[:] = ["answer"]  # of the first saying; the second is answered again
        talk.ana.restart()
        await talk.moved(1)
        lost[:] = ["offer"]
        talk.ben.restart()
        await talk.moved(2)
        assert lost == []
        assert len({body["negotiation_id"] for _, action, body in talk.board.frames if action == "offer"}) == 3, "the first offer and two restarts"
        await talk.assert_nothing_was_lost()


async def test_a_peer_whose_socket_is_away_changes_nothing_and_the_restart_follows_when_it_is_back() -> None:
    async with talking() as talk:
        talk.board.offline.add(BEN)
        talk.ana.restart()
        await until(lambda: any(action == "offer" and body["negotiation_id"] != talk.ana._negotiation_id for _, action, body in talk.board.frames), "an offer")
        await asyncio.sleep(0.2)
        assert talk.ana.end_reason is None
        assert talk.restarts == ([], [])
        talk.board.offline.clear()
        talk.ana.restart()
        await talk.moved(1)
        await talk.assert_nothing_was_lost()


def trickled(talk_to: Switchboard) -> Callable[[Device, str, dict[str, Any]], dict[str, Any] | None]:
    """As browsers signal: descriptions without candidates, the candidates after them, some of them of another negotiation or unreadable."""

    def spoil(to: Device, event: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if event not in ("offer", "answer"):
            return body
        lines = body["sdp"].splitlines()
        found = [line[2:] for line in lines if line.startswith("a=candidate:")]
        head = {"call_id": body["call_id"], "negotiation_id": body["negotiation_id"], "sdp_mid": "0", "sdp_m_line_index": 0}
        bodies = [head | {"candidate": line} for line in ["candidate:nonsense", *found, ""]]
        strange = head | {"negotiation_id": "neg_of_another_life", "candidate": found[0]}
        for candidate in [strange, bodies[0]]:
            talk_to._ways[to].put_nowait(("candidate", candidate))  # before their description
        talk_to._ways[to].put_nowait((event, body | {"sdp": "".join(f"{line}\r\n" for line in lines if line[:12] not in ("a=candidate:", "a=end-of-can"))}))
        for candidate in bodies[1:]:
            talk_to._ways[to].put_nowait(("candidate", candidate))
        return None

    return spoil


async def test_candidates_may_come_before_and_after_their_description_and_strange_ones_do_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    async with talking() as talk:
        talk.board.spoil = trickled(talk.board)
        talk.ana.restart()
        await talk.moved(1)
        talk.ben.restart()
        await talk.moved(2)
        await talk.assert_nothing_was_lost()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_description_of_another_association_is_refused_and_its_twin_passes(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "heliograph_client")
    async with talking() as talk:
        other = "AB:" * 31 + "AB"

        def forge(_: Device, event: str, body: dict[str, Any]) -> dict[str, Any]:
            head, _, tail = body.get("sdp", "").partition("a=fingerprint:sha-256 ")
            return body | {"sdp": f"{head}a=fingerprint:sha-256 {other}{tail[95:]}"} if tail and event == "offer" else body

        talk.board.spoil = forge
        talk.ana.restart()
        await until(lambda: "another DTLS association" in caplog.text, "the refusal")
        talk.board.spoil = lambda _to, _event, body: body
        assert talk.restarts == ([], [])
        await talk.assert_nothing_was_lost()
    async with talking() as talk:
        talk.ana.restart()
        await talk.moved(1)


async def test_a_call_that_finds_no_path_for_long_ends_as_failed_and_its_twin_that_finds_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SILENT_S", 0.3), ("ASKED_TIMES", 1)):
        monkeypatch.setattr(ice_restart, name, value)
    monkeypatch.setattr(restarts, "TICK_S", 0.1)
    async with talking() as talk:
        await break_path(talk.ana)
        await talk.moved(1)
        assert "lost" in (*talk.ana.restarts, *talk.ben.restarts)
        said = len(talk.packets.ways[0].said)
        await until(lambda: len(talk.packets.ways[0].said) > said + 20, "packets on the new path")
        assert talk.ana.end_reason is None
        monkeypatch.setattr(restarts, "LOST_S", 1.0)
        talk.board.offline |= {ANA, BEN}
        await break_path(talk.ana)
        assert await asyncio.wait_for(talk.ana.ended(), 10) == "failed"


async def break_path(call: Call) -> None:
    """What aioice does when the peer has not consented for half a minute (RFC 7675)."""
    await call._paths.current.connection.close()


class Fetch:
    """Servers of the stack's relay whose credentials the client believes to live `life_s`; the next `failing` answers are lost."""

    def __init__(self, servers: list[dict[str, Any]], life_s: float, failing: int = 0) -> None:
        self._servers, self._life_s, self.failing, self.asked = servers, life_s, failing, 0

    def servers(self) -> IceServers:
        return IceServers(tuple(self._servers), self._life_s, now_ms() + int(self._life_s * 1_000))

    async def __call__(self) -> IceServers:
        self.asked += 1
        if self.failing > 0:
            self.failing -= 1
            raise ConnectionLostError("the answer is lost")
        return self.servers()


@contextlib.asynccontextmanager
async def relayed(stack: RunningStack, life_s: float = 600.0, failing: int = 0) -> AsyncIterator[tuple[Talk, Fetch]]:
    """A relay-only call; ana's credentials seem to live `life_s`, ben's for long."""
    async with online(stack, "ana") as ana:
        servers = await ana.ice_servers()
    fetch = Fetch(servers, life_s, failing)
    async with talking(
        ana_ice_policy="relay", ben_ice_policy="relay", ana_ice_servers=fetch.servers(), ana_fetch_servers=fetch, ben_ice_servers=servers
    ) as talk:
        yield talk, fetch


async def test_a_fetch_that_fails_is_repeated_before_the_credentials_end(stack: RunningStack) -> None:
    async with relayed(stack, life_s=2.0, failing=2) as (talk, fetch):
        began_s = asyncio.get_running_loop().time()
        await talk.moved(1)
        elapsed_s = asyncio.get_running_loop().time() - began_s
        assert talk.restarts == (["renewal"], ["peer"])
        assert (fetch.asked, fetch.failing) == (3, 0)
        assert elapsed_s > 1.0, "not before it is due"
        await talk.assert_nothing_was_lost()


async def test_a_call_leaves_a_draining_relay_at_once_and_stays_on_one_that_does_not_drain(stack: RunningStack) -> None:
    async with relayed(stack) as (talk, _):
        host = talk.ana._paths.current.turn_host
        talk.ana.drain(Draining(frozenset({"203.0.113.7"}), now_ms()))
        await asyncio.sleep(0.3)
        assert talk.restarts == ([], []), "another relay's business"
        talk.ana.drain(Draining(frozenset({host}), now_ms() + 1_000))
        await talk.moved(1)
        assert talk.restarts == (["draining"], ["peer"])
        await talk.assert_nothing_was_lost()


async def test_a_relay_that_died_is_left_for_another_before_the_call_is_lost(stack: RunningStack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SILENT_S", 0.5), ("ASKED_TIMES", 2)):
        monkeypatch.setattr(ice_restart, name, value)
    relay = stack.endpoints()["relay"]
    async with online(stack, "ana") as ana:
        servers = [server for server in await ana.ice_servers() if server.get("username")]
    async with ShapedLink((relay["host"], int(relay["port"]))) as link:
        through = IceServers(({**servers[0], "urls": [f"turn:127.0.0.1:{link.address[1]}?transport=udp"]},))
        fetch = Fetch(servers, 600.0)
        own: dict[str, Any] = {"ana_ice_servers": through, "ana_fetch_servers": fetch, "ben_ice_servers": servers}
        async with talking(ana_ice_policy="relay", ben_ice_policy="relay", **own) as talk:
            link.shape.loss = 1.0
            await until(lambda: bool(talk.ana.restarts) and bool(talk.ben.restarts), f"another path: {talk.restarts}", 30)
            heard = [len(way.heard) for way in talk.packets.ways]
            await until(lambda: all(len(way.heard) > before + 20 for way, before in zip(talk.packets.ways, heard, strict=True)), "packets")
            assert "lost" in (*talk.ana.restarts, *talk.ben.restarts)
            assert talk.ana._paths.current.turn_host == relay["host"]
            assert talk.ana.end_reason is None
            link.shape.loss = 0.0


class FarRelay:
    """The stack's relay, 100 ms away: 150 ms after the beginning its 401 was answered, and the allocation is on its way."""

    BUSY_S = 0.15

    def __init__(self, stack: RunningStack, server: Mapping[str, Any], link: ShapedLink) -> None:
        link.shape.delay_ms = 50.0
        self.servers = IceServers(({**server, "urls": [f"turn:127.0.0.1:{link.address[1]}?transport=udp"]},))
        self._stack, self._username = stack, server["username"]

    async def has_one_allocation_back(self) -> None:
        rows: list[dict[str, Any]] = []
        for _ in range(200):
            rows = [row for row in await allocations(self._stack) if row["username"] == self._username]
            if rows and all(row["ended_at_ms"] is not None for row in rows):
                break
            await asyncio.sleep(0.05)
        assert [row["ended_at_ms"] is not None for row in rows] == [True], rows


@contextlib.asynccontextmanager
async def far_relay(stack: RunningStack) -> AsyncIterator[FarRelay]:
    relay = stack.endpoints()["relay"]
    async with online(stack, "ana") as ana, ShapedLink((relay["host"], int(relay["port"]))) as link:
        yield FarRelay(stack, next(server for server in await ana.ice_servers() if server.get("username")), link)


@pytest.mark.parametrize("is_over", [False, True])
async def test_a_path_that_is_given_up_while_it_is_gathered_leaves_nothing_at_the_relay(stack: RunningStack, is_over: bool) -> None:
    async with far_relay(stack) as relay, talking() as talk:
        gathering = asyncio.create_task(talk.ana._paths.gather(relay.servers))
        await asyncio.sleep(relay.BUSY_S)
        gathering.cancel()
        await asyncio.gather(gathering, return_exceptions=True)
        if is_over:
            await talk.ana.hangup()
        await relay.has_one_allocation_back()


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_call_that_is_given_up_while_its_first_path_is_gathered_leaves_nothing_at_the_relay(stack: RunningStack, is_cancelled: bool) -> None:
    async with far_relay(stack) as relay:
        board = Switchboard()
        call = Call(Line(board, ANA), "room_1", {"account_id": BEN.account_id}, ice_servers=relay.servers, ice_policy="relay", report_every_s=None)
        board.calls[ANA] = call
        offering = asyncio.create_task(call.offer())
        await asyncio.sleep(relay.BUSY_S)
        if is_cancelled:
            offering.cancel()
        await call.hangup()
        await asyncio.gather(offering, return_exceptions=True)
        await relay.has_one_allocation_back()
