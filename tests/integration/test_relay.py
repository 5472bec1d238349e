"""The relay on loopback: aioice's TURN client as an independent peer, noise, meters, and how it drains."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aioice import stun as aioice_stun
from aioice.turn import create_turn_endpoint

from heliograph.ice import TurnSecrets, turn_password, turn_username
from media_fleet.meters import of_relay
from media_fleet.relay import Relay, RelayConfig
from media_fleet.stun import Class, Message, Method, parse
from media_fleet.turn import shared_secrets, static_users
from tests.running import program

REALM = "heliograph"
LOOPBACK = ("127.0.0.0/8",)


def config(**changes: Any) -> RelayConfig:
    values = {"realm": REALM, "credentials": static_users({"ann": "pass"}, REALM), "listen": (("127.0.0.1", 0),), "allow_peers": LOOPBACK}
    return RelayConfig(**{**values, **changes})


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    async with Relay(config()) as running:
        yield running


class Echo(asyncio.DatagramProtocol):
    """A peer that sends everything back."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


@pytest.fixture
async def echo() -> AsyncIterator[tuple[str, int]]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    yield transport.get_extra_info("sockname")
    transport.close()


class Inbox(asyncio.DatagramProtocol):
    """What reached a client of the relay."""

    def __init__(self) -> None:
        self.received: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.errors: list[Exception] = []

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)

    def codes(self) -> list[int]:
        """The error codes with which channels were refused."""
        return [error.response.attributes["ERROR-CODE"][0] for error in self.errors if isinstance(error, aioice_stun.TransactionFailed)]

    async def next(self) -> tuple[bytes, Any]:
        async with asyncio.timeout(30):
            return await self.received.get()


async def allocate(relay: Relay, username: str = "ann", password: str = "pass") -> tuple[Any, Inbox]:  # noqa: S107
    transport, inbox = await create_turn_endpoint(Inbox, relay.address, username, password)
    return transport, inbox


async def until(holds: Callable[[], object], missing: str, seconds: float = 30.0) -> None:
    """Waits until `holds`; fails with what is still missing."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"still missing after {seconds} s: {missing}"
        await asyncio.sleep(0.02)


def living(relay: Relay) -> list[dict[str, Any]]:
    return [usage for usage in relay.allocations() if usage["ended_at_ms"] is None]


# aioice


async def test_a_relay_that_listens_on_every_address_tells_the_public_one_and_takes_what_arrives_at_the_private_one() -> None:
    """As behind an Elastic IP: the network translates, so what peers send to the public address arrives at the machine's own."""
    async with Relay(config(listen=(("0.0.0.0", 0),), relay_addresses=("8.8.4.4",))) as relay:
        transport, inbox = await create_turn_endpoint(Inbox, ("127.0.0.1", relay.address[1]), "ann", "pass")
        told, port = transport.get_extra_info("sockname")
        assert told == "8.8.4.4"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            transport.sendto(b"out", peer.getsockname())
            peer.setblocking(False)
            data, seen = await asyncio.wait_for(asyncio.get_running_loop().sock_recvfrom(peer, 100), 30)
            assert (data, seen) == (b"out", ("127.0.0.1", port))
            peer.sendto(b"back", ("127.0.0.1", port))
            assert await inbox.next() == (b"back", peer.getsockname())
        assert of_relay(relay.reading()) == {"Allocations": 1, "RelayedBytes": 7, "DroppedDatagrams": 0}
        transport.close()
        await until(
            lambda: of_relay(relay.reading()) == {"Allocations": 0, "RelayedBytes": 7, "DroppedDatagrams": 0}, "the end of the allocation, its bytes kept"
        )


async def test_aioice_allocates_binds_a_channel_and_hears_its_echo(relay: Relay, echo: tuple[str, int]) -> None:
    transport, inbox = await allocate(relay)
    host, port = transport.get_extra_info("sockname")
    assert host == "127.0.0.1"
    assert 49_152 <= port <= 65_535
    for data in (b"hello", b"x" * 1400):
        transport.sendto(data, echo)
        assert await inbox.next() == (data, echo)
    (usage,) = relay.allocations()
    assert (usage["username"], usage["account_id"], usage["relayed_address"]) == ("ann", "ann", f"127.0.0.1:{port}")
    assert (usage["from_client_bytes"], usage["to_client_bytes"]) == (1405, 1405)
    assert (usage["from_client_packets"], usage["to_client_packets"]) == (2, 2)
    transport.close()
    await until(lambda: relay.allocations()[0]["ended_at_ms"], "the allocation's end")


async def test_without_an_allowed_cidr_loopback_is_refused() -> None:
    async with Relay(config(allow_peers=())) as relay:
        transport, inbox = await allocate(relay)
        transport.sendto(b"hello", ("127.0.0.9", 5000))
        await until(lambda: inbox.errors, "the refusal")
        assert inbox.codes() == [403]
        transport.close()


async def test_our_own_listener_and_stats_endpoint_are_no_peers_even_where_loopback_is_allowed() -> None:
    async with Relay(config(stats_listen=("127.0.0.1", 0))) as relay:
        transport, inbox = await allocate(relay)
        assert relay.stats_address is not None
        for peer in (relay.address, relay.stats_address):
            transport.sendto(b"hello", peer)
        await until(lambda: len(inbox.errors) == 2, "two refusals")
        assert inbox.codes() == [403, 403]
        transport.close()


async def test_an_expired_credential_is_refused_beside_valid_ones_of_both_secrets(echo: tuple[str, int]) -> None:
    async with Relay(config(credentials=shared_secrets(lambda: TurnSecrets("new", "old"), REALM))) as relay:
        valid = turn_username(int(time.time_ns() // 10**9) + 60, "acc_1", "dev_1")
        expired = turn_username(int(time.time_ns() // 10**9) - 1, "acc_1", "dev_1")
        for secret in ("new", "old"):
            transport, inbox = await allocate(relay, valid, turn_password(secret, valid))
            transport.sendto(secret.encode(), echo)
            assert (await inbox.next())[0] == secret.encode()
            transport.close()
        for username, secret in ((expired, "new"), (valid, "older")):
            with pytest.raises(aioice_stun.TransactionFailed) as refused:
                await allocate(relay, username, turn_password(secret, username))
            assert refused.value.response.attributes["ERROR-CODE"][0] == 401


async def test_a_killed_client_leaves_no_socket_after_its_lifetime() -> None:
    async with Relay(config(default_lifetime_s=1, max_lifetime_s=1)) as relay:
        transport, _ = await allocate(relay)
        port = transport.get_extra_info("sockname")[1]
        transport._TurnTransport__inner_protocol.refresh_task.cancel()
        transport._TurnTransport__inner_protocol.transport.close()
        await until(lambda: not living(relay), "the end of the allocation", 3)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.bind(("127.0.0.1", port))


async def test_a_draining_relay_takes_no_allocation_and_waits_for_the_living(echo: tuple[str, int]) -> None:
    async with Relay(config(drain_s=5)) as relay:
        transport, inbox = await allocate(relay)
        draining = asyncio.create_task(relay.drain())
        await asyncio.sleep(0)
        with pytest.raises(aioice_stun.TransactionFailed) as refused:
            await allocate(relay)
        assert refused.value.response.attributes["ERROR-CODE"][0] == 508
        transport.sendto(b"still here", echo)
        assert (await inbox.next())[0] == b"still here"
        assert not draining.done()
        transport.close()
        await asyncio.wait_for(draining, 30)


# coturn's STUN client; its TURN client, aiortc and browsers: test_relay_peers.py, test_relay_browser.py


async def test_coturns_stun_client_learns_its_address(relay: Relay) -> None:
    command = [program("turnutils_stunclient"), "-p", str(relay.address[1]), "127.0.0.1"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)
    try:
        async with asyncio.timeout(30):
            text, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert b"UDP reflexive addr: 127.0.0.1:" in text


# Noise, meters


async def test_garbage_on_the_port_never_kills_the_relay(relay: Relay, echo: tuple[str, int]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as noise:
        for number in range(500):
            noise.sendto(os.urandom(number % 97), relay.address)
            noise.sendto(b"\x40\x00" + os.urandom(number % 13), relay.address)
            noise.sendto(b"\x00\x03\x00\x08\x21\x12\xa4\x42" + os.urandom(20), relay.address)
            if number % 50 == 0:
                await asyncio.sleep(0)
    transport, inbox = await allocate(relay)
    transport.sendto(b"alive", echo)
    assert (await inbox.next())[0] == b"alive"
    transport.close()


async def test_the_stats_endpoint_tells_health_and_allocations() -> None:
    async with Relay(config(stats_listen=("127.0.0.1", 0))) as relay:
        transport, _ = await allocate(relay)
        assert relay.stats_address is not None
        base = f"http://127.0.0.1:{relay.stats_address[1]}"
        assert (await _get(f"{base}/healthz"))[1]["allocations"] == 1
        assert (await _get(f"{base}/allocations"))[1] == relay.allocations()
        assert (await _get(f"{base}/other"))[0] == 404
        transport.close()
        await relay.drain()
        assert await _get(f"{base}/healthz") == (503, {"status": "draining", "allocations": relay._server.live, "dropped": 0})


async def _get(url: str) -> tuple[int, Any]:
    def get() -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)

    return await asyncio.to_thread(get)


async def test_a_relay_on_every_address_must_be_told_its_own() -> None:
    with pytest.raises(ValueError, match="relay_address"):
        Relay(config(listen=(("0.0.0.0", 0),)))
    async with Relay(config(listen=(("0.0.0.0", 0),), relay_addresses=("127.0.0.1",))) as relay:
        transport, _ = await create_turn_endpoint(Inbox, ("127.0.0.1", relay.address[1]), "ann", "pass")
        assert transport.get_extra_info("sockname")[0] == "127.0.0.1"
        transport.close()


async def test_over_ipv6_a_binding_is_answered() -> None:
    async with Relay(config(listen=(("::1", 0),), allow_peers=("::1/128",))) as relay:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(relay.address)
            await loop.sock_sendall(client, Message(Method.BINDING, Class.REQUEST, bytes(12)).serialize())
            async with asyncio.timeout(30):
                assert parse(await loop.sock_recv(client, 1500)).message_class is Class.SUCCESS
