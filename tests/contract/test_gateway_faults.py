"""Faults on demand and the admin endpoint: ours alone, so every test says what AWS does by itself that the fault stands for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from local.gateway_faults import BadFaults, Faults, FaultSettings, parse
from tests.contract.test_gateway_sockets import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as world:
        yield world


async def _admin(world: World, method: str, path: str, body: object = None, **more: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.request(method, world.gateway.admin_url + path, json=body, **more) as response:
        return response.status, await response.json() if response.content_type == "application/json" else None


async def _set(world: World, **faults: object) -> None:
    status, answer = await _admin(world, "POST", "/faults", faults)
    assert status == 200, answer


async def _open(world: World) -> tuple[ClientConnection, str]:
    socket = await world.open()
    return socket, [event for name, event in world.events if name == "opened"][-1]["requestContext"]["connectionId"]


def _disconnects(world: World) -> list[str]:
    return [event["requestContext"]["connectionId"] for name, event in world.events if name == "closed"]


# --- $disconnect


async def test_a_lost_disconnect_is_never_told(world: World) -> None:
    """Manage disconnections with $disconnect: "API Gateway will try its best to deliver the $disconnect event […], but it cannot guarantee delivery"."""
    await _set(world, disconnect_lost=1)
    socket, _ = await _open(world)
    await socket.close()
    await asyncio.sleep(0.1)
    assert _disconnects(world) == []
    assert (await _admin(world, "GET", "/faults"))[1]["dealt"] == {"disconnect_lost": 1}
    assert (await _admin(world, "DELETE", "/faults"))[1]["disconnect_lost"] == 0
    socket, connection_id = await _open(world)
    await socket.close()
    await world.event("closed")
    assert _disconnects(world) == [connection_id]


async def test_a_duplicated_disconnect_is_told_twice(world: World) -> None:
    """Best-effort delivery excludes no repetition."""
    await _set(world, disconnect_duplicated=1)
    socket, connection_id = await _open(world)
    await socket.close(4001, "enough")
    await world.event("closed")
    await asyncio.sleep(0.05)
    assert _disconnects(world) == [connection_id] * 2


async def test_a_late_disconnect_is_told_after_the_next_connect(world: World) -> None:
    """What a phone meets that changes its network: the new socket opens before AWS notices the old one's end."""
    await _set(world, disconnect_late=1, disconnect_late_s=0.3)
    socket, connection_id = await _open(world)
    await socket.close()
    await _open(world)
    assert _disconnects(world) == []
    await asyncio.sleep(0.5)
    assert _disconnects(world) == [connection_id]
    assert world.names()[-1] == "closed"


async def test_a_late_disconnect_does_not_hold_up_the_end() -> None:
    """A laptop that shuts down tells what it still owes."""
    async with World() as world:
        await _set(world, disconnect_late=1, disconnect_late_s=60)
        socket, connection_id = await _open(world)
        await socket.close()
        started = time.monotonic()
    assert time.monotonic() - started < 30
    assert _disconnects(world) == [connection_id]


# --- posts


@pytest.mark.parametrize(
    ("fault", "kind"), [("post_410", "gone"), ("post_429", "throttled"), ("post_500", "failed"), ("post_hang", "failed")], ids=["410", "429", "500", "hang"]
)
async def test_a_post_meets_the_fault_it_was_promised(world: World, fault: str, kind: str) -> None:
    """Service model of the callback API: 410, 429, 500; and the answer that never comes. The socket itself lives on."""
    socket, connection_id = await _open(world)
    await _set(world, **{fault: 1, "hang_s": 60})
    assert (await world.outbox.post(connection_id, b"lost")).kind == kind
    await _set(world)
    assert (await world.outbox.post(connection_id, b"found")).kind == "delivered"
    assert await socket.recv() == "found"


async def test_a_target_has_probabilities_of_its_own(world: World) -> None:
    """One dead phone among many: only posts to it fail."""
    (_, dead), (_, alive) = await _open(world), await _open(world)
    await _set(world, targets={dead: {"post_410": 1}})
    assert [(await world.outbox.post(target, b"x")).kind for target in (dead, alive)] == ["gone", "delivered"]
    await _set(world, post_410=1, targets={alive: {}})
    assert [(await world.outbox.post(target, b"x")).kind for target in (dead, alive)] == ["gone", "delivered"]


def test_the_same_seed_breaks_the_same_things_at_the_rate_asked_for() -> None:
    runs = []
    for seed in (1, 1, 2):
        faults = Faults()
        faults.set(FaultSettings(post_410=0.1, post_429=0.2, post_hang=0.05, disconnect_lost=0.3, disconnect_duplicated=0.1, seed=seed))
        runs.append(([faults.post("c=") for _ in range(4000)], [faults.disconnects() for _ in range(4000)], dict(faults.dealt)))
    assert runs[0] == runs[1] != runs[2]
    dealt = runs[0][2]
    expected = {"post_410": 400, "post_429": 800, "post_hang": 200, "disconnect_lost": 1200, "disconnect_duplicated": 280}
    assert dealt.keys() == expected.keys()
    assert all(abs(dealt[name] - count) < 100 for name, count in expected.items()), dealt


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ([], "a JSON object"),
        ({"disconect_lost": 1}, "disconect_lost is no fault"),
        ({"post_410": 1.5}, "0 to 1"),
        ({"post_410": -1}, "not negative"),
        ({"post_410": True}, "number"),
        ({"post_410": float("nan")}, "not negative"),
        ({"targets": []}, "targets is an object"),
        ({"targets": {"c=": {"hang_s": 1}}}, "A target has"),
    ],
)
async def test_a_wrong_wish_is_400_with_a_sentence_and_changes_nothing(world: World, wish: object, says: str) -> None:
    await _set(world, post_410=1)
    status, answer = await _admin(world, "POST", "/faults", wish)
    assert status == 400
    assert says in answer["message"]
    assert (await _admin(world, "GET", "/faults"))[1]["post_410"] == 1


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_any_wish_is_read_or_refused(wish: object) -> None:
    with contextlib.suppress(BadFaults):
        assert isinstance(parse(wish), FaultSettings)


# --- sockets


async def test_sockets_are_counted_and_broken_without_a_close_frame(world: World) -> None:
    """What a failing network does to all phones at once; $disconnect says 1006 for each."""
    sockets = [(await _open(world))[0] for _ in range(3)]
    assert (await _admin(world, "GET", "/sockets"))[1] == {"open": 3, "handshaking": 0}
    assert await _admin(world, "POST", "/sockets/close", {"count": 1}) == (200, {"closed": 1})
    with pytest.raises(ConnectionClosed):
        await sockets[0].recv()
    assert sockets[0].close_code == 1006
    assert (await world.event("closed"))["requestContext"]["disconnectStatusCode"] == 1006
    assert [socket.close_code for socket in sockets[1:]] == [None, None]
    assert await _admin(world, "POST", "/sockets/close") == (200, {"closed": 2})
    for socket in sockets[1:]:
        await socket.wait_closed()
    assert (await _admin(world, "GET", "/sockets"))[1]["open"] == 0


@pytest.mark.parametrize("body", [{"count": -1}, {"count": "all"}, [], {"count": True}])
async def test_a_wrong_count_closes_nothing(world: World, body: object) -> None:
    await _open(world)
    assert (await _admin(world, "POST", "/sockets/close", body))[0] == 400
    assert (await _admin(world, "GET", "/sockets"))[1]["open"] == 1


async def test_a_page_in_a_browser_cannot_reach_the_admin_endpoint(world: World) -> None:
    """Ours: neither across origins nor through a name that resolves to this machine."""
    for headers in ({"Origin": "http://example.com"}, {"Host": "example.com:80"}):
        assert (await _admin(world, "POST", "/sockets/close", {}, headers=headers))[0] == 403
    assert (await _admin(world, "GET", "/sockets"))[0] == 200
