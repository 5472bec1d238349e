"""The client against the whole product: both write while sockets are replaced and cut, while tokens run out and answers are lost; both have the room's stream,
each event once, and nobody is signed out by accident."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from aioice import stun, turn

from heliograph_client import Client, Event, Position, SignedOutError, make_id
from heliograph_client.opus import PcmSource
from local import voice
from tests.integration.clients import allocations, now_s, online, until
from tests.integration.packets import Conversation
from tests.running import RunningStack, running_stack

CREDENTIAL_S = 5
SHORT_LIVED = (
    *("--set", "ACCESS_TOKEN_S=6", "--set", "REAUTH_GRACE_S=6"),  # a proof is due after 4 to 5 s and may come 7 s late on a busy machine
    *("--set", f"TURN_CREDENTIAL_S={CREDENTIAL_S}"),
)


@pytest.fixture(scope="module")
def short_lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A product whose tokens and relay credentials live for seconds."""
    with running_stack(tmp_path_factory.mktemp("short"), *SHORT_LIVED) as stack:
        yield stack


class Reader:
    """What an application has of a room."""

    def __init__(self, client: Client, room_id: str) -> None:
        self.client, self.room_id = client, room_id
        self.known: list[tuple[int, str]] = []
        self.delays_s: list[float] = []
        self.resets: list[Event] = []
        client.on("message", self._receive)
        client.on("stream_reset", self.resets.append)

    def _receive(self, event: Event) -> None:
        assert event.offset is not None
        self.known.append((event.offset, event.body["text"]))
        self.delays_s.append(now_s() - float(event.body["text"].split()[1]))

    async def write(self, name: str, count: int, every_s: float, on: Callable[[], bool] = lambda: False) -> None:
        """`count` texts, and further ones while `on()` says so."""
        written = 0
        while written < count or on():
            written += 1
            text = f"{name} {now_s()}"
            ack = await self.client.send_text(self.room_id, text, timeout_s=20)
            assert ack.offset is not None
            self.known.append((ack.offset, text))
            await asyncio.sleep(every_s)


async def stream_of(client: Client, room_id: str) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    while page := (await client.rest.call("GET", f"/v1/rooms/{room_id}/events", query={"after": str(len(found))}))["events"]:
        found += [(event["offset"], event["body"]["text"]) for event in page]
    return found


async def test_a_planned_replacement_loses_and_doubles_nothing(stack: RunningStack, capsys: pytest.CaptureFixture[str]) -> None:
    async with online(stack, "ana", reconnect_every_s=1.1) as ana, online(stack, "ben", reconnect_every_s=0.9) as ben:
        room_id = make_id("room")
        await ana.create_room("Swap", [ben.session.account_id], room_id)
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        readers = Reader(ana, room_id), Reader(ben, room_id)
        await asyncio.gather(readers[0].write("ana", 120, 0.04), readers[1].write("ben", 120, 0.04))
        truth = await stream_of(ana, room_id)
        await until(lambda: all(len(reader.known) >= len(truth) for reader in readers), "texts")
    delays_s = sorted(delay_s for reader in readers for delay_s in reader.delays_s)
    with capsys.disabled():
        print(f"\nswap on the stack: {len(delays_s)} events, median {delays_s[len(delays_s) // 2] * 1000:.0f} ms, slowest {delays_s[-1] * 1000:.0f} ms")
    for reader in readers:
        assert sorted(reader.known) == truth
        assert reader.resets == []
    assert len(truth) == 240


async def test_cut_sockets_lose_and_double_nothing(stack: RunningStack) -> None:
    async with online(stack, "ana") as ana, online(stack, "ben") as ben:
        room_id = make_id("room")
        await ana.create_room("Cuts", [ben.session.account_id], room_id)
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        readers = Reader(ana, room_id), Reader(ben, room_id)

        async def cut() -> None:
            for _ in range(8):
                await asyncio.sleep(random.uniform(0.1, 0.5))
                client = random.choice((ana, ben))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await (await client._current())._socket.close()
                client.network_available()

        await asyncio.gather(readers[0].write("ana", 60, 0.02), readers[1].write("ben", 60, 0.02), cut())
        truth = await stream_of(ana, room_id)
        await until(lambda: all(len(reader.known) >= len(truth) for reader in readers), "texts")
        await until(lambda: len(ana.participants(room_id)) == 2, "both in ana's roster")
    for reader in readers:
        assert sorted(reader.known) == truth
        assert reader.resets == []


async def test_a_long_absence_is_read_in_order_by_pages(stack: RunningStack) -> None:
    async with online(stack, "ana") as ana, online(stack, "ben") as ben:
        room_id = make_id("room")
        room = await ana.create_room("Absence", [ben.session.account_id], room_id)
        await ana.join(room_id)
        await Reader(ana, room_id).write("ana", 230, 0)
        reader = Reader(ben, room_id)
        await ben.join(room_id, after=Position(room["epoch"], 0))
        await until(lambda: len(reader.known) >= 230, "texts")
        assert reader.known == await stream_of(ben, room_id)


async def test_the_hint_brings_the_socket_back_within_a_second(stack: RunningStack, capsys: pytest.CaptureFixture[str]) -> None:
    async with online(stack, "ana") as ana:
        url = ana._link._url
        ana._link._url = "ws://127.0.0.1:9"  # the network is gone
        await (await ana._current())._socket.close()
        await asyncio.sleep(3)
        assert not ana.is_online
        ana._link._url = url
        before_s = now_s()
        ana.network_available()
        await until(lambda: ana.is_online, "the socket")
        elapsed_s = now_s() - before_s
    with capsys.disabled():
        print(f"\nonline on the stack {elapsed_s * 1000:.0f} ms after the hint")
    assert elapsed_s < 1


# Tokens that run out, answers that are lost


class Cutting:
    """Stands before the REST API and cuts the answers of the next refreshes, after the server acted."""

    def __init__(self, rest_url: str) -> None:
        host, port = rest_url.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self.left = self.seen = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        its_reader, its_writer = await asyncio.open_connection(*self._target)
        try:
            while data := await reader.read(65_536):
                is_refresh = data.startswith(b"POST /v1/tokens/refresh ")
                its_writer.write(data)
                answer = await its_reader.read(65_536)
                self.seen += is_refresh
                if is_refresh and self.left > 0:
                    self.left -= 1
                    return
                writer.write(answer)
        finally:
            writer.transport.abort()
            its_writer.close()


@pytest.mark.parametrize("lost", [1, 3])
async def test_a_refresh_whose_answer_is_lost_signs_nobody_out(stack: RunningStack, lost: int) -> None:
    cutting, user = Cutting(stack.endpoints()["rest_url"]), stack.user("ana")
    async with cutting.listening() as rest_url, Client(rest_url, stack.endpoints()["socket_url"]) as ana:
        first = await ana.sign_in(user["tenant_id"], user["login"], user["password"])
        await ana.connect()
        cutting.left = lost
        second = await ana.rest.token(instead_of=first.access_token)
        assert (cutting.seen, cutting.left) == (lost + 1, 0)
        assert ana.session.refresh_token.split(".")[-2] == "1", "one successor, however often it was asked for"
        assert await ana.rest.token(instead_of=second) != second
        assert len([row for row in await ana.sessions() if row["is_current"]]) == 1
        await ana.set_presence("busy")


async def test_sockets_outlive_their_tokens_and_a_socket_that_does_not_comes_back(short_lived: RunningStack, capsys: pytest.CaptureFixture[str]) -> None:
    async with online(short_lived, "ana") as ana, online(short_lived, "ben") as ben, online(short_lived, "olga") as olga:
        room_id = make_id("room")
        await ana.create_room("Long", [ben.session.account_id], room_id)
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        readers = Reader(ana, room_id), Reader(ben, room_id)
        told: list[Event] = []
        for client in (ana, ben):
            for name in ("closed", "signed_out", "room_lost"):
                client.on(name, told.append)
        (await ben._current()).prove_at_s = float("inf")  # ben's socket is given no fresh token
        before, tokens = (ana.welcome["generation"], ben.welcome["generation"]), [(await ana._current()).token]

        async def promote() -> None:
            await asyncio.sleep(6)
            await olga.rest.call("PUT", f"/v1/accounts/{ana.session.account_id}/role", {"role": "moderator"})
            tokens.append((await ana._current()).token)

        def waits() -> bool:
            return bool(ben.welcome["generation"] == before[1]) and now_s() < give_up_s

        give_up_s = now_s() + 60
        await asyncio.gather(readers[0].write("ana", 50, 0.2, waits), readers[1].write("ben", 50, 0.2, waits), promote())
        truth = await stream_of(ana, room_id)
        await until(lambda: all(len(reader.known) >= len(truth) for reader in readers), "texts")
        tokens.append((await ana._current()).token)
        after = (ana.welcome["generation"], ben.welcome["generation"])
        sessions = [row for row in await ana.sessions() if row["is_current"]]
    with capsys.disabled():
        print(f"\ntokens of 6 s: {int(ana.session.refresh_token.split('.')[-2])} refreshes, one socket; without a fresh token it was replaced")
    assert (after[0] == before[0], after[1] > before[1]) == (True, True), "one socket for ana, another one for ben"
    assert (len(set(tokens)), told, len(sessions)) == (3, [], 1)
    for reader in readers:
        assert sorted(reader.known) == truth
        assert reader.resets == []


# A call that outlives its relay credentials


async def allocated(stack: RunningStack, account_id: str, after_ms: int) -> list[dict[str, Any]]:
    """The account's allocations since then, oldest first."""
    found = [row for row in await allocations(stack) if account_id in row["username"] and row["started_at_ms"] >= after_ms]
    return sorted(found, key=lambda row: int(row["started_at_ms"]))


async def ended(stack: RunningStack, account_id: str, after_ms: int, count: int | None) -> list[dict[str, Any]]:
    """Those allocations, once the oldest `count` of them (None: all) were given back."""
    for _ in range(200):
        rows = await allocated(stack, account_id, after_ms)
        if all(row["ended_at_ms"] is not None for row in rows[:count]):
            return rows
        await asyncio.sleep(0.05)
    pytest.fail(f"still there after 10 s: {[row for row in rows[:count] if row['ended_at_ms'] is None]}")


async def allocate(stack: RunningStack, server: dict[str, Any]) -> str:
    """What the relay says to a new allocation with these credentials: ok, or the error code."""
    relay = stack.endpoints()["relay"]
    try:
        transport, _ = await turn.create_turn_endpoint(
            asyncio.DatagramProtocol, (relay["host"], int(relay["port"])), username=server["username"], password=server["credential"]
        )
    except stun.TransactionFailed as refusal:
        return str(refusal.response.attributes["ERROR-CODE"][0])
    transport.close()
    return "ok"


async def test_a_call_outlives_its_relay_credentials_three_times_without_a_packet_lost(
    short_lived: RunningStack, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    noise = voice.to_pcm(np.random.default_rng(6).normal(0, 0.1, 60 * voice.SAMPLE_RATE))
    async with online(short_lived, "ana") as ana, online(short_lived, "ben") as ben:
        room_id, users = make_id("room"), (ana.session.account_id, ben.session.account_id)
        await ana.create_room("Long call", [users[1]], room_id)
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        after_ms = ana.rest.clock.now_ms()
        first = next(server for server in await ana.ice_servers() if server.get("username"))
        calling, incoming = await asyncio.gather(ana.call(room_id, users[1], "relay", source=PcmSource(noise)), ben.incoming_call(timeout_s=30))
        answered = await incoming.answer(ice_policy="relay", source=PcmSource(noise))
        await asyncio.gather(calling.connected(), answered.connected())
        began_s, packets = now_s(), Conversation(calling, answered)
        for _ in range(3):
            moves = len(calling.restarts)
            await until(lambda: len(calling.restarts) > moves, f"a restart after {calling.restarts}", 30)  # noqa: B023 - awaited at once
        lasted_s = now_s() - began_s
        assert {*calling.restarts, *answered.restarts} <= {"renewal", "peer"}
        assert lasted_s > 2 * CREDENTIAL_S, "the first credentials are over"

        for body in ({"relay_hosts": "all"}, {"relay_hosts": ["203.0.113.7"], "ends_at_ms": 1}):
            ana.receive(Event("relay_draining", body, None, None, None, 1, "0" * 16))
        ana.receive(Event("relay_draining", {"relay_hosts": [short_lived.endpoints()["relay"]["host"]], "ends_at_ms": ana.rest.clock.now_ms() + 500}))
        await until(lambda: "draining" in calling.restarts, f"the move from the draining relay: {calling.restarts}")
        await asyncio.sleep(1)
        missing, gap_s, counts = await packets.missing(), packets.longest_gap_s, packets.counts()
        assert calling.selected_path() == answered.selected_path() == {"local": "relay", "remote": "relay", "protocol": "udp"}
        refused, passed = await allocate(short_lived, first), await allocate(short_lived, next(s for s in await ana.ice_servers() if s.get("username")))
        carried = [await ended(short_lived, user, after_ms, 3) for user in users]
        await calling.hangup()
        assert await asyncio.wait_for(answered.ended(), 10) == "hangup"
        left = [await ended(short_lived, user, after_ms, None) for user in users]
    with capsys.disabled():
        print(f"\ncredentials of {CREDENTIAL_S} s: {len(calling.restarts)} restarts in {lasted_s:.1f} s; packets said and heard: {counts}")
        print(f"longest gap between two packets {gap_s * 1000:.0f} ms")
    assert missing == [[], []]
    assert gap_s < 5, "generous: a busy machine"
    assert (refused, passed) == ("401", "ok"), "without a renewal there is no way on"
    assert caplog.text.count("could not be read") == 1
    assert all(len({row["username"] for row in rows}) >= 4 for rows in carried), "another user name for each path"
    assert all(left), "and at the end nothing is left at the relay"


async def test_a_device_that_its_account_signs_out_says_so_and_comes_back_after_signing_in(stack: RunningStack) -> None:
    async with online(stack, "ben") as here, online(stack, "ben") as there:
        told: list[Event] = []
        there.on("signed_out", told.append)
        sid = next(row["sid"] for row in await here.sessions() if row["device_id"] == there.session.device_id)
        await here.end_session(sid)
        await until(lambda: len(told) == 1, "the word that it is signed out")
        with pytest.raises(SignedOutError):
            await there.connect()
        user = stack.user("ben")
        await there.sign_in(user["tenant_id"], user["login"], user["password"], there.session.device_id)
        await there.connect()
        await there.set_presence("busy")
        assert here.is_online
        await there.sign_out()
        assert there.rest.session is None
        assert [row["device_id"] for row in await here.sessions() if row["device_id"] == here.session.device_id] == [here.session.device_id]


async def test_signing_in_again_on_a_connected_device_keeps_it_connected(stack: RunningStack) -> None:
    async with online(stack, "ana") as ana:
        user, before = stack.user("ana"), ana.welcome["generation"]
        await ana.sign_in(user["tenant_id"], user["login"], user["password"], ana.session.device_id)
        await ana.connect()
        await ana.set_presence("busy")
        assert ana.welcome["generation"] > before


async def test_an_identity_providers_token_signs_in(stack: RunningStack) -> None:
    endpoints = stack.endpoints()
    async with aiohttp.ClientSession() as http, http.post(f"{endpoints['identity_url']}/tokens", json={"subject": make_id("sub")}) as answer:
        id_token = (await answer.json())["id_token"]
    async with Client(endpoints["rest_url"], endpoints["socket_url"]) as client:
        with pytest.raises(SignedOutError) as refusal:
            await client.sign_in_with_identity("acme", id_token[:-8] + "AAAAAAAA")
        assert refusal.value.code == "identity_refused"
        session = await client.sign_in_with_identity("acme", id_token)
        await client.connect()
        assert client.welcome["account_id"] == session.account_id
