"""Clients over TCP and TLS on real sockets, under asyncio and under uvloop: what each limit refuses beside what passes, slow readers, slow writers, noise."""

from __future__ import annotations

import asyncio
import datetime
import errno
import inspect
import ipaddress
import os
import random
import socket
import ssl
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from media_fleet.streams import Streams, bound_socket
from media_fleet.stun import Class, Message, Method
from media_fleet.tls import ALPN, TlsFiles, server_context
from media_fleet.turn.allocation import FiveTuple
from media_fleet.turn.connections import StreamLimits
from media_fleet.turn.framing import Deframer, frame

PATIENCE_S = 20.0  # no test fails for a slow machine
QUICK_S = 0.2
REQUEST = Message(Method.BINDING, Class.REQUEST, bytes(range(12))).serialize()
CHANNEL_DATA = b"\x40\x01\x00\x05hello"


def on_each_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Runs the test under asyncio and under uvloop, whose transports are of another family."""

    def runs(run: Callable[[Coroutine[Any, Any, None]], None], **fixtures: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(4 * PATIENCE_S):
                await test(**fixtures)

        run(bounded())

    parameter = inspect.Parameter("run", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    runs.__name__, runs.__doc__ = test.__name__, test.__doc__
    runs.__signature__ = inspect.Signature([parameter, *inspect.signature(test).parameters.values()])  # type: ignore[attr-defined]
    marked: Callable[..., None] = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])(runs)
    return marked


# Certificates


def issued(name: str) -> tuple[str, str]:
    """A self-signed certificate for loopback, and its key, as PEM text."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    today = datetime.datetime.now(datetime.UTC)
    loopback: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(host)) for host in ("127.0.0.1", "::1")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(loopback), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return certificate.public_bytes(pem).decode(), key.private_bytes(pem, pkcs8, plain).decode()


FIRST, SECOND = issued("first"), issued("second")
FILES = TlsFiles(*FIRST)


def trusting(certificate: str = FIRST[0], alpn: list[str] | None = None) -> ssl.SSLContext:
    """A client that accepts this certificate and no other."""
    context = ssl.create_default_context(cadata=certificate)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


# The server under test, and its clients


@dataclass
class World:
    """A server that sends everything back, and what it was told."""

    streams: Streams = field(init=False)
    address: tuple[str, int] = ("", 0)
    tls: bool = False
    received: list[tuple[bytes, FiveTuple]] = field(default_factory=list)
    lost: list[FiveTuple] = field(default_factory=list)

    def echo(self, data: bytes, five_tuple: FiveTuple) -> None:
        self.received.append((data, five_tuple))
        self.streams.send(five_tuple, data)

    @property
    def closed(self) -> dict[str, int]:
        closed: dict[str, int] = self.streams.counters()["closed"]
        return closed

    async def client(self, local: str | None = None, **options: Any) -> Client:
        secure = {"ssl": trusting()} if self.tls else {}
        async with asyncio.timeout(PATIENCE_S):
            return Client(*await asyncio.open_connection(*self.address, local_addr=(local, 0) if local else None, **{**secure, **options}))


@asynccontextmanager
async def serving(
    tls: TlsFiles | None = None, host: str = "127.0.0.1", on_message: Callable[[bytes, FiveTuple], object] | None = None, **limits: Any
) -> AsyncIterator[World]:
    world = World(tls=tls is not None)
    world.streams = Streams(on_message or world.echo, world.lost.append, StreamLimits(**limits))
    world.address = await world.streams.listen((host, 0), tls)
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    try:
        yield world
    finally:
        await world.streams.close()
        assert len(world.streams.table) == 0
    assert failures == []


class Client:
    """A client that knows messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.deframer = Deframer()
        self.arrived: list[bytes] = []

    @property
    def five_tuple(self) -> FiveTuple:
        here, there = self.writer.get_extra_info("sockname"), self.writer.get_extra_info("peername")
        return here[:2], there[:2], "tls" if self.writer.get_extra_info("ssl_object") else "tcp"

    def send(self, *datagrams: bytes) -> None:
        self.writer.write(b"".join(map(frame, datagrams)))

    async def next(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            while not self.arrived:
                data = await self.reader.read(65_536)
                assert data, "the server has closed"
                self.arrived += self.deframer.feed(data)
        return self.arrived.pop(0)

    async def ask(self, datagram: bytes = REQUEST) -> bytes:
        """Sends one and waits for the answer."""
        self.send(datagram)
        return await self.next()

    async def closed(self) -> None:
        """Waits until the server has closed."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while await self.reader.read(65_536):
                    pass
        except (ConnectionError, ssl.SSLError):  # a reset, an alert
            pass
        self.writer.close()

    def leave(self) -> None:
        self.writer.transport.abort()


async def until(holds: Callable[[], object], missing: str) -> None:
    """Waits until `holds`; fails with what is still missing."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"still missing: {missing}"
        await asyncio.sleep(0.01)


# Messages both ways

both_transports = pytest.mark.parametrize("tls", [None, FILES], ids=["tcp", "tls"])


@both_transports
@on_each_loop
async def test_messages_go_there_and_back_and_the_five_tuple_is_who_sent_them(tls: TlsFiles | None) -> None:
    async with serving(tls) as world:
        client = await world.client()
        for datagram in (REQUEST, CHANNEL_DATA, b"\x40\x02\x00\x00", b"\x4f\xff\x00\x01x"):
            assert await client.ask(datagram) == datagram
            assert world.received[-1] == (datagram, client.five_tuple)
        client.send(*[CHANNEL_DATA] * 1_000)
        assert [await client.next() for _ in range(1_000)] == [CHANNEL_DATA] * 1_000
        counters = world.streams.counters()
    assert (counters["connections"], counters["accepted"], counters["dropped_datagrams"]) == (1, 1, 0)


@both_transports
@on_each_loop
async def test_a_writer_of_single_bytes_is_understood(tls: TlsFiles | None) -> None:
    async with serving(tls, partial_s=PATIENCE_S) as world:
        client = await world.client()
        for byte in REQUEST + frame(CHANNEL_DATA):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0.001)  # each a segment, and a record, of its own
        assert [await client.next(), await client.next()] == [REQUEST, CHANNEL_DATA]


@both_transports
@on_each_loop
async def test_200_connections_at_once_are_all_served(tls: TlsFiles | None) -> None:
    async with serving(tls, max_connections_per_source=200, handshake_s=PATIENCE_S, first_message_s=PATIENCE_S) as world:
        clients = await asyncio.gather(*(world.client() for _ in range(200)))
        answers = await asyncio.gather(*(client.ask(CHANNEL_DATA) for client in clients))
        assert answers == [CHANNEL_DATA] * 200
        assert len({five_tuple for _, five_tuple in world.received}) == 200
        for client in clients[:100]:
            client.leave()
        await until(lambda: len(world.lost) == 100, "100 connections told as lost")
        assert world.streams.counters()["connections"] == 100
        assert set(world.lost) == {five_tuple for _, five_tuple in world.received} - {client.five_tuple for client in clients[100:]}


@both_transports
@on_each_loop
async def test_ipv6_is_served_and_an_ipv6_listener_leaves_ipv4_to_another(tls: TlsFiles | None) -> None:
    async with serving(tls, host="::1") as world:
        client = await world.client()
        assert await client.ask() == REQUEST
        assert world.received[0][1][0][0] == world.received[0][1][1][0] == "::1"
    async with serving(tls, host="::") as world:
        for _ in range(10):  # until the same port is free for IPv4, which only IPV6_V6ONLY makes possible
            _, port = await world.streams.listen(("::", 0), tls)
            with suppress(OSError):
                await world.streams.listen(("0.0.0.0", port), tls)
                break
        world.address = ("127.0.0.1", port)
        client = await world.client()
        assert await client.ask() == REQUEST
        assert world.received[0][1] == client.five_tuple  # with the address that was reached, where the listener has them all


@on_each_loop
async def test_what_is_sent_to_a_client_that_has_gone_is_false() -> None:
    async with serving() as world:
        client = await world.client()
        await client.ask()
        five_tuple = client.five_tuple
        assert world.streams.send(five_tuple, CHANNEL_DATA)
        client.leave()
        await until(lambda: world.lost == [five_tuple], "the loss")
        assert not world.streams.send(five_tuple, CHANNEL_DATA)
        world.streams.keep(five_tuple, True)  # nobody's any more
        assert world.streams.counters()["connections"] == 0


@on_each_loop
async def test_what_is_sent_while_a_connection_breaks_is_lost_without_an_error() -> None:
    async with serving() as world:
        client, other = await world.client(), await world.client()
        await client.ask()
        await other.ask()
        world.streams._streams[client.five_tuple].transport.abort()  # as a reset that is noticed in this turn
        world.streams.send(client.five_tuple, CHANNEL_DATA)
        world.streams.send(other.five_tuple, CHANNEL_DATA)
        await client.closed()
        assert await other.next() == CHANNEL_DATA


@on_each_loop
async def test_connections_are_sent_at_once_and_watched_by_the_kernel() -> None:
    """Each has the options of its listener: no Nagle, keepalive, and (on Linux) little unsent and a time to acknowledge."""
    async with serving(stalled_s=30, kernel_buffer_bytes=131_072) as world:
        client = await world.client()
        await client.ask()
        (stream,) = world.streams._streams.values()
        made = stream.transport.get_extra_info("socket")
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 2 * 131_072
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 65_536


@both_transports
@on_each_loop
async def test_closing_says_goodbye_to_everyone_once(tls: TlsFiles | None) -> None:
    async with serving(tls) as world:
        clients = [await world.client() for _ in range(3)]
        for client in clients:
            await client.ask()
        world.streams.send(clients[0].five_tuple, CHANNEL_DATA)  # in this very turn
        await world.streams.close()
        assert sorted(world.lost) == sorted(client.five_tuple for client in clients)
        assert await clients[0].next() == CHANNEL_DATA
        for client in clients:
            async with asyncio.timeout(PATIENCE_S):
                assert await client.reader.read() == b""  # an end, no error
            client.writer.close()
        assert world.closed == {"server": 3}
        with pytest.raises(ConnectionRefusedError):
            await world.client()


@on_each_loop
async def test_a_tls_client_is_told_that_nothing_was_cut_off() -> None:
    """RFC 8446 s6.1: a close_notify before the end, which a client that insists on it would miss."""
    async with serving(FILES) as world:
        with closing(socket.create_connection(world.address)) as made:

            def ask() -> ssl.SSLSocket:
                client = trusting().wrap_socket(made, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
                client.send(REQUEST)
                assert client.recv(100) == REQUEST
                return client

            with closing(await asyncio.to_thread(ask)) as client:
                await world.streams.close()
                assert await asyncio.to_thread(client.recv, 100) == b""


@on_each_loop
async def test_an_address_that_is_taken_is_an_error_and_a_listener_that_is_handed_over_serves() -> None:
    async with serving() as world:
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            await world.streams.listen(world.address)
        listener = bound_socket(("127.0.0.1", 0), world.streams.limits)
        shared = listener.getsockname()
        assert await world.streams.listen(listener.dup()) == shared
        await world.streams.close()
        waits = await asyncio.open_connection(*shared)  # the listener itself is still there
        async with serving() as another:
            await another.streams.listen(listener)
            assert await Client(*waits).ask() == REQUEST


# Who may connect


@both_transports
@on_each_loop
async def test_beyond_the_limit_a_connection_is_closed_at_once_and_when_one_left_the_next_is_served(tls: TlsFiles | None) -> None:
    async with serving(tls, max_connections=3) as world:
        clients = [await world.client() for _ in range(3)]
        assert [await client.ask() for client in clients] == [REQUEST] * 3
        with closing(socket.create_connection(world.address)) as refused:
            refused.send(REQUEST)  # already here when we look
            await until(lambda: world.streams.counters()["refused"] == {"connections": 1}, "the refusal")
            await Client(*await asyncio.open_connection(sock=refused)).closed()
        clients[0].leave()
        await until(lambda: len(world.lost) == 1, "the loss of the first")
        assert await (await world.client()).ask() == REQUEST
        assert len(world.lost) == 1  # nobody is told of the refused one


@on_each_loop
async def test_beyond_its_limit_a_source_is_refused_and_another_is_served() -> None:
    async with serving(max_connections_per_source=2) as world:
        clients = [await world.client("127.0.0.2") for _ in range(2)]
        assert [await client.ask() for client in clients] == [REQUEST] * 2
        await (await world.client("127.0.0.2")).closed()
        assert world.streams.counters()["refused"] == {"source": 1}
        assert await (await world.client("127.0.0.3")).ask() == REQUEST


@on_each_loop
async def test_the_same_five_tuple_again_replaces_the_one_that_is_dead() -> None:
    """A client is reset while we still work on what it sent, and comes again from its port before we look at it."""
    received, lost = [], []
    with closing(socket.socket()) as first, closing(socket.socket()) as second:

        def come_again(data: bytes, five_tuple: FiveTuple) -> None:
            received.append(data)
            if len(received) == 1:
                first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                first.close()
                second.bind(five_tuple[0])
                second.connect(five_tuple[1])
                second.send(REQUEST)
            if data == REQUEST:
                lost.extend(world.lost)
                world.streams.send(five_tuple, data)

        async with serving(on_message=come_again) as world:
            first.bind(("127.0.0.4", 0))  # nobody else's port
            first.connect(world.address)
            here = first.getsockname()
            sent = first.send(b"\x40\x01\x00\x00" * 16_000) // 4
            await until(lambda: received and received[-1] == REQUEST, "the message of the second")
            assert lost == [(here, world.address, "tcp")]  # told before anything of the second was
            assert world.closed == {"replaced": 1}
            assert len(received) < sent  # and nothing of the first after that
            second.setblocking(False)
            async with asyncio.timeout(PATIENCE_S):
                assert await asyncio.get_running_loop().sock_recv(second, 100) == REQUEST


# Until when


@on_each_loop
async def test_a_client_that_says_nothing_is_closed_and_one_that_speaks_is_not() -> None:
    async with serving(first_message_s=QUICK_S) as world:
        spoken, silent = await world.client(), await world.client()
        await spoken.ask()
        await silent.closed()
        assert world.closed == {"first_message": 1}
        assert world.lost == [silent.five_tuple]
        assert await spoken.ask() == REQUEST


@on_each_loop
async def test_a_client_without_tls_is_closed_and_one_with_it_is_not() -> None:
    async with serving(FILES, handshake_s=QUICK_S) as world:
        secure = await world.client()
        await Client(*await asyncio.open_connection(*world.address)).closed()
        assert world.closed == {"handshake": 1}
        assert await secure.ask() == REQUEST


@both_transports
@on_each_loop
async def test_a_client_that_is_idle_is_closed_and_one_with_an_allocation_is_not_until_it_ends(tls: TlsFiles | None) -> None:
    async with serving(tls, idle_s=QUICK_S, first_message_s=PATIENCE_S) as world:
        kept = await world.client()
        await kept.ask()
        world.streams.keep(kept.five_tuple, True)
        idle = await world.client()
        await idle.ask()
        await idle.closed()
        assert world.closed == {"idle": 1}
        assert await kept.ask() == REQUEST
        world.streams.keep(kept.five_tuple, False)
        await kept.closed()
        assert world.closed == {"idle": 2}


@both_transports
@on_each_loop
async def test_an_incomplete_message_is_not_waited_for_long_and_a_complete_one_is_served(tls: TlsFiles | None) -> None:
    async with serving(tls, partial_s=QUICK_S) as world:
        complete, slow = await world.client(), await world.client()
        for client in (complete, slow):
            await client.ask()
            world.streams.keep(client.five_tuple, True)  # having an allocation does not help
            client.writer.write(REQUEST[:19])
        complete.writer.write(REQUEST[19:])
        assert await complete.next() == REQUEST
        await slow.closed()
        assert world.closed == {"partial": 1}
        assert await complete.ask() == REQUEST


@on_each_loop
async def test_a_drip_of_bytes_does_not_buy_time() -> None:
    """Slowloris: a byte now and then, and never a message."""
    async with serving(partial_s=QUICK_S) as world:
        client = await world.client()
        for byte in channel_data(1_000):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0.01)
            if world.lost:
                break
        assert world.closed == {"partial": 1}


# Slow readers


def channel_data(length: int, number: int = 0) -> bytes:
    return b"\x40\x01" + length.to_bytes(2, "big") + number.to_bytes(4, "big") + bytes(length - 4)


async def deaf(world: World) -> tuple[socket.socket, FiveTuple]:
    """A client that has an allocation and will not read; a small window, so that little is on its way."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    made.connect(world.address)
    made.setblocking(False)
    made.send(REQUEST)
    await until(lambda: world.received, "the first message")
    five_tuple = world.received[-1][1]
    world.streams.keep(five_tuple, True)
    return made, five_tuple


async def pour(world: World, five_tuple: FiveTuple, datagrams: int, length: int) -> int:
    """Sends so many to a client, some every turn; how many were taken."""
    taken = 0
    for number in range(datagrams):
        taken += world.streams.send(five_tuple, channel_data(length, number))
        if number % 50 == 0:
            await asyncio.sleep(0)
    return taken


@pytest.mark.parametrize("length", [1_000, 4], ids=["kilobytes", "tiny"])
@on_each_loop
async def test_a_client_that_does_not_read_loses_datagrams_and_holds_no_more_memory_than_it_may(length: int) -> None:
    """20,000 datagrams of which none is read: the process keeps the bound; others notice nothing; what was taken arrives whole and in order later."""
    bound = 65_536
    async with serving(max_write_buffer_bytes=bound) as world:
        other = await world.client()
        slow, five_tuple = await deaf(world)
        with closing(slow):
            stream = world.streams._streams[five_tuple]
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            taken = await pour(world, five_tuple, 20_000, length)
            after, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert 0 < taken < 20_000
            assert world.streams.dropped == 20_000 - taken
            assert bound / 2 < stream.buffered <= bound
            assert after - before < 2 * bound
            print(f"{taken} of 20,000 datagrams of {length} bytes taken, {stream.buffered} bytes wait, {after - before} bytes of memory")
            assert await other.ask() == REQUEST

            deframer, messages = Deframer(), list[bytes]()
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_048_576)
            async with asyncio.timeout(PATIENCE_S):
                while len(messages) < taken + 1:
                    messages += deframer.feed(await asyncio.get_running_loop().sock_recv(slow, 65_536))
            numbers = [int.from_bytes(message[4:8], "big") for message in messages[1:]]
            assert numbers == sorted(set(numbers))
            assert await pour(world, five_tuple, 10, length) == 10  # it reads again, so it is sent to again


@both_transports
@on_each_loop
async def test_a_client_that_reads_nothing_is_closed_and_one_that_reads_slowly_is_not(tls: TlsFiles | None) -> None:
    async with serving(tls, max_write_buffer_bytes=65_536, stalled_s=1.0) as world:
        slow, stuck = await world.client(limit=2_048), await world.client(limit=2_048)
        for client in (slow, stuck):
            await client.ask()
            world.streams.keep(client.five_tuple, True)
        stuck_tuple, slow_tuple = stuck.five_tuple, slow.five_tuple
        async with asyncio.timeout(PATIENCE_S):
            while stuck_tuple not in world.lost:
                world.streams.send(stuck_tuple, channel_data(1_000))
                world.streams.send(slow_tuple, channel_data(1_000))
                if world.streams._streams[slow_tuple] in world.streams._full:
                    await slow.reader.read(65_536)
                await asyncio.sleep(0)
        assert world.closed == {"stalled": 1}
        assert slow_tuple not in world.lost
        slow.leave()
        stuck.leave()


@on_each_loop
async def test_a_client_is_full_until_it_reads_and_no_longer() -> None:
    """It counts as full from a drop until a datagram is taken again, all has gone, or (with nothing sent to it since) half has gone by the next look."""
    async with serving(max_write_buffer_bytes=262_144, stalled_s=1_000) as world:
        slow, five_tuple = await deaf(world)
        with closing(slow):
            stream, full, loop = world.streams._streams[five_tuple], world.streams._full, asyncio.get_running_loop()

            def fill() -> None:
                while world.streams.send(five_tuple, channel_data(1_000)):
                    pass
                assert stream in full

            fill()  # in one turn, so one batch
            await until(lambda: stream.is_blocked, "the end of the turn")
            fill()
            while stream.buffered >= 131_072:
                await loop.sock_recv(slow, 4_096)
            assert stream in full
            world.streams._tick()
            assert stream not in full

            fill()
            while stream.buffered:
                await loop.sock_recv(slow, 65_536)
            assert stream not in full

            fill()
            await until(lambda: stream.is_blocked, "the end of the turn")
            fill()
            while stream in full and stream.buffered > 200_000:
                await loop.sock_recv(slow, 4_096)
                world.streams.send(five_tuple, channel_data(1_000))
            assert stream not in full
            assert world.lost == []


@on_each_loop
async def test_a_client_that_will_neither_read_nor_write_is_gone_whatever_waits_for_it() -> None:
    async with serving(max_write_buffer_bytes=65_536) as world:
        slow, five_tuple = await deaf(world)
        with closing(slow):
            await pour(world, five_tuple, 1_000, 1_000)
            slow.shutdown(socket.SHUT_WR)
            await until(lambda: world.lost == [five_tuple], "the loss")


@on_each_loop
async def test_a_tls_client_that_does_not_read_is_bounded_too() -> None:
    bound = 65_536
    async with serving(FILES, max_write_buffer_bytes=bound) as world:
        client = await world.client(limit=2_048)
        await client.ask()
        world.streams.keep(client.five_tuple, True)
        stream = world.streams._streams[client.five_tuple]
        assert await pour(world, client.five_tuple, 20_000, 1_000) < 20_000
        assert bound / 2 < stream.buffered < bound + 1_024  # a record of 16 KiB has 22 bytes more
        client.leave()


@on_each_loop
async def test_one_fast_client_does_not_starve_the_others() -> None:
    """16,000 tiny messages lie in the kernel before a request does; it is not answered last."""
    async with serving(on_message=lambda data, five_tuple: order.append(data)) as world:
        order: list[bytes] = []
        with closing(socket.create_connection(world.address)) as flood, closing(socket.create_connection(world.address)) as other:
            await until(lambda: world.streams.counters()["connections"] == 2, "both connections")
            flood.setblocking(False)
            sent = flood.send(b"\x40\x01\x00\x00" * 16_000) // 4
            other.send(REQUEST)
            await until(lambda: len(order) > sent, "all messages")
            assert sent > 5_000
            assert order.index(REQUEST) < sent / 2
            flood.send(CHANNEL_DATA + bytes(3))
            await until(lambda: order[-1] == CHANNEL_DATA, "what the fast one sends next")


# Noise


@pytest.mark.parametrize(
    "noise",
    [b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-OpenSSH_9.2\r\n", channel_data(5_000)],
    ids=["http", "tls", "ssh", "too large"],
)
@on_each_loop
async def test_what_is_no_turn_is_closed_at_once(noise: bytes) -> None:
    async with serving() as world:
        client, good = await world.client(), await world.client()
        client.writer.write(noise)
        await client.closed()
        assert world.closed == {"malformed": 1}
        assert world.received == []
        assert await good.ask() == REQUEST


@both_transports
@on_each_loop
async def test_a_client_with_an_allocation_may_send_what_udp_would_carry(tls: TlsFiles | None) -> None:
    async with serving(tls) as world:
        client = await world.client()
        await client.ask()
        world.streams.keep(client.five_tuple, True)
        assert await client.ask(channel_data(65_500)) == channel_data(65_500)


@on_each_loop
async def test_a_tls_listener_closes_what_is_no_tls_and_what_is_none_any_more() -> None:
    async with serving(FILES) as world:
        plain = Client(*await asyncio.open_connection(*world.address))
        plain.send(REQUEST)
        await plain.closed()
        assert world.closed == {"tls": 1}
        forged = await world.client()
        await forged.ask()
        forged.writer.get_extra_info("socket")  # below TLS, as somebody on the path would
        with closing(socket.socket(fileno=socket.dup(forged.writer.get_extra_info("socket").fileno()))) as below:
            below.send(b"\x17\x03\x03\x00\x20" + bytes(32))
            await forged.closed()
        assert world.closed == {"tls": 2}
        assert await (await world.client()).ask() == REQUEST


@both_transports
@on_each_loop
async def test_noise_of_every_kind_leaves_the_server_as_it_was(tls: TlsFiles | None) -> None:
    """Random bytes, damaged messages and early goodbyes, before and inside TLS: each ends one connection at most."""
    dice = random.Random(6)
    async with serving(tls, max_connections_per_source=200) as world:
        witness = await world.client()
        for _ in range(60):
            is_inside = dice.random() < 0.7
            client = await world.client() if is_inside else Client(*await asyncio.open_connection(*world.address))
            damaged = bytearray(b"".join(dice.choices([REQUEST, frame(CHANNEL_DATA), channel_data(400)], k=6)))
            for _ in range(dice.randrange(4)):
                damaged[dice.randrange(len(damaged))] = dice.randrange(256)
            client.writer.write(dice.choice([dice.randbytes(dice.randrange(1, 2_000)), bytes(damaged)]))
            if dice.random() < 0.5:
                client.writer.close()
            else:
                await asyncio.sleep(0)
                client.leave()
        await until(lambda: world.streams.counters()["connections"] == 1, "the end of all the noise")
        assert await witness.ask() == REQUEST
        counters = world.streams.counters()
        assert sum(counters["closed"].values()) == counters["accepted"] - 1 == len(world.lost)


@on_each_loop
async def test_our_own_mistake_ends_one_connection(capsys: pytest.CaptureFixture[str]) -> None:
    def mistaken(data: bytes, five_tuple: FiveTuple) -> None:
        if data == CHANNEL_DATA:
            raise KeyError("a mistake")
        world.echo(data, five_tuple)

    async with serving(on_message=mistaken) as world:
        client, other = await world.client(), await world.client()
        client.send(CHANNEL_DATA)
        await client.closed()
        assert (world.closed, world.lost) == ({"internal": 1}, [client.five_tuple])
        assert await other.ask() == REQUEST
    assert "a mistake" in capsys.readouterr().err


# TLS


@pytest.mark.parametrize(("offered", "chosen"), [([ALPN], ALPN), (["stun.nat-discovery", ALPN], ALPN), (["http/1.1"], None), (None, None)])
@on_each_loop
async def test_rfc_7443_the_protocol_is_agreed_on_where_it_is_offered_and_not_required(offered: list[str] | None, chosen: str | None) -> None:
    async with serving(FILES) as world:
        client = await world.client(ssl=trusting(alpn=offered))
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
        assert await client.ask() == REQUEST


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@on_each_loop
async def test_tls_1_2_and_1_3_are_spoken(version: ssl.TLSVersion) -> None:
    async with serving(FILES) as world:
        context = trusting()
        context.minimum_version = context.maximum_version = version
        client = await world.client(ssl=context)
        assert client.writer.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
        assert await client.ask() == REQUEST


@pytest.mark.parametrize(
    ("version", "ciphers"),
    [(ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0"), (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0")],
    ids=["TLS 1.1", "a CBC cipher"],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
@on_each_loop
async def test_old_versions_and_ciphers_are_refused(version: ssl.TLSVersion, ciphers: str) -> None:
    async with serving(FILES) as world:
        context = trusting()
        context.set_ciphers(ciphers)
        context.minimum_version = context.maximum_version = version
        with pytest.raises(ssl.SSLError, match=r"(?i)alert"):  # told by an alert, not by silence
            await world.client(ssl=context)
        await until(lambda: world.closed == {"tls": 1}, "the refusal")


@on_each_loop
async def test_a_certificate_is_rotated_without_an_end_of_living_connections() -> None:
    async with serving(TlsFiles(*FIRST)) as world:
        living = await world.client(ssl=trusting(FIRST[0]))
        await living.ask()
        with pytest.raises(ValueError, match="does not belong"):
            world.streams.reload(TlsFiles(SECOND[0], FIRST[1]))
        assert await (await world.client(ssl=trusting(FIRST[0]))).ask() == REQUEST  # nothing has changed
        world.streams.reload(TlsFiles(*SECOND))
        assert await (await world.client(ssl=trusting(SECOND[0]))).ask() == REQUEST
        with pytest.raises(ssl.SSLCertVerificationError):
            await world.client(ssl=trusting(FIRST[0]))
        assert await living.ask() == REQUEST


@pytest.mark.parametrize(
    ("certificate", "key", "problem"),
    [
        (FIRST[0], SECOND[1], "The TLS key does not belong to the certificate."),
        ("/nowhere/certificate.pem", FIRST[1], "The TLS certificate /nowhere/certificate.pem cannot be read: No such file or directory."),
        (FIRST[0], "/nowhere/key.pem", "The TLS key file cannot be read: No such file or directory."),
        (FIRST[1], FIRST[1], "The TLS certificate is not PEM: it has no line that ends in CERTIFICATE-----."),
        (FIRST[0], FIRST[0], "The TLS key is not PEM: it has no line that ends in PRIVATE KEY-----."),
        (FIRST[0], "-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "The TLS key is encrypted; it must be stored without a passphrase."),
        ("-----BEGIN CERTIFICATE-----\nnoise\n-----END CERTIFICATE-----\n", FIRST[1], "The TLS certificate and key cannot be read: they are no valid PEM."),
    ],
)
def test_wrong_tls_files_are_told_in_one_sentence(certificate: str, key: str, problem: str) -> None:
    with pytest.raises(ValueError, match="TLS") as refused:
        server_context(TlsFiles(certificate, key))
    assert str(refused.value) == problem
    assert "PRIVATE" not in repr(TlsFiles(*FIRST))
    server_context(FILES)
