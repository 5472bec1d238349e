"""The relay on real sockets and what stands around it: clients over UDP, TCP and TLS that know the codec and no more, and peers."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol, cast

from heliograph.ice import turn_key
from media_fleet.datapath.compiled import CompiledPath
from media_fleet.datapath.outside import OutsidePath
from media_fleet.datapath.paths import DataPathName
from media_fleet.relay import Relay, RelayConfig
from media_fleet.stun import Address, Attribute, Class, ErrorCode, Icmp, Message, Method, attributes, parse
from media_fleet.tls import TlsFiles
from media_fleet.turn import Counters, static_users

REALM = "heliograph"
USERS = {"ann": "pass", "bob": "word"}
V4, V6 = "127.0.0.1", "::1"
BOTH = (V4, V6)
UDP, TCP, TLS = "udp", "tcp", "tls"
RELAYED_PORTS = range(61_000, 65_536)  # above those that the system gives: no relayed address has the port of a listener by chance
WAIT_S = 10.0  # until what must come is given up

Field = tuple[Attribute[Any], Any]
TRANSPORT: Field = (attributes.REQUESTED_TRANSPORT, 17)
ASKS_V4: Field = (attributes.REQUESTED_ADDRESS_FAMILY, 1)
ASKS_V6: Field = (attributes.REQUESTED_ADDRESS_FAMILY, 2)
ASKS_BOTH: Field = (attributes.ADDITIONAL_ADDRESS_FAMILY, 2)
DONT_FRAGMENT: Field = (attributes.DONT_FRAGMENT, b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """A way to reach peers through the relay: how clients come, which relayed addresses there are, who forwards."""

    name: str
    transport: str = UDP
    client_host: str = V4  # where clients come from and the relay listens
    relay_hosts: tuple[str, ...] = (V4,)
    data_path: DataPathName = "python"
    loop: str = "uvloop"  # which the fleet runs on where it is installed

    @property
    def is_stream(self) -> bool:
        return self.transport != UDP

    @property
    def peer_family(self) -> int:
        """Of a relayed address that is asked for without a family, where that is possible."""
        return socket.AF_INET if V4 in self.relay_hosts else socket.AF_INET6


WORLDS = (
    World(name="UDP"),
    World(name="UDP, asyncio", loop="asyncio"),
    World(name="UDP, compiled", data_path="compiled"),
    World(name="TCP", transport=TCP),
    World(name="TLS", transport=TLS),
    World(name="IPv6", client_host=V6, relay_hosts=(V6,)),
    World(name="dual stack", client_host=V6, relay_hosts=BOTH),
)


@dataclass(frozen=True)
class Trust:
    """The certificate that a relay shows, and what a client trusts."""

    files: TlsFiles
    authority: str  # a path

    @cached_property
    def context(self) -> ssl.SSLContext:
        """A client's."""
        return self.new_context()

    def new_context(self) -> ssl.SSLContext:
        """One that may be changed."""
        return ssl.create_default_context(cafile=self.authority)


def raw(attribute: Attribute[Any], value: bytes) -> Field:
    """The attribute with these bytes, whatever they mean."""
    return Attribute(attribute.type, attribute.name, lambda data, _: data, lambda data, _: data), value


def unknown(type_: int) -> Field:
    """An attribute of a type that nobody knows."""
    return Attribute(type_, "unknown", lambda data, _: data, lambda data, _: data), b"?"


def to(*peers: Address) -> tuple[Field, ...]:
    return tuple((attributes.XOR_PEER_ADDRESS, peer) for peer in peers)


def lifetime(seconds: int) -> Field:
    return attributes.LIFETIME, seconds


def code(message: Message) -> int | None:
    """Of an error response; None of a success."""
    error: ErrorCode | None = message.get(attributes.ERROR_CODE)
    assert (message.message_class is Class.ERROR) == (error is not None)
    return None if error is None else error.code


def channel_data(number: int, data: bytes) -> bytes:
    return struct.pack("!HH", number, len(data)) + data


# Sockets


async def _readable(opened: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(opened.fileno(), lambda: None if ready.done() else ready.set_result(None))
    try:
        async with asyncio.timeout(WAIT_S):
            await ready
    finally:
        loop.remove_reader(opened.fileno())


async def _received(opened: socket.socket) -> tuple[bytes, Address]:
    while True:
        with suppress(BlockingIOError):
            data, sender = opened.recvfrom(65_535)
            return data, sender[:2]
        await _readable(opened)


def _udp(host: str, port: int = 0) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.bind((host, port))
    return made


def hear_only(opened: socket.socket, *, dont_fragment: bool) -> None:
    """From now on the socket hears only IPv4 datagrams that came with, or without, the DF bit: a filter in the kernel looks at the header (bpf(2), classic)."""
    flags_of_ip, has_df = 0xFFF00000 + 6, 0x4000  # SKF_NET_OFF
    program = struct.pack("=HBBI", 0x28, 0, 0, flags_of_ip) + struct.pack("=HBBI", 0x45, *((0, 1) if dont_fragment else (1, 0)), has_df)
    program += struct.pack("=HBBI", 0x06, 0, 0, 0xFFFF) + struct.pack("=HBBI", 0x06, 0, 0, 0)
    held = ctypes.create_string_buffer(program, len(program))
    opened.setsockopt(socket.SOL_SOCKET, 26, struct.pack("@HP", len(program) // 8, ctypes.addressof(held)))  # SO_ATTACH_FILTER


async def heard_tos(opened: socket.socket) -> int:
    """DSCP and ECN of the next IPv4 datagram."""
    opened.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
    await _readable(opened)
    _, ancillary, _, _ = opened.recvmsg(2048, 64)
    return next(value[0] for _, kind, value in ancillary if kind == socket.IP_TOS)


class Link(Protocol):
    """How a client's messages go and come: one at a time, as datagrams are."""

    address: Address  # the client's

    def write(self, data: bytes) -> None:
        """These bytes and no others."""

    async def read(self) -> bytes:
        """The next message, ChannelData without padding."""

    def close(self) -> None: ...


class Datagrams:
    """UDP. The socket is connected, so it hears nothing but what comes from the address that it sends to (RFC 8489 s6.3.1.2)."""

    def __init__(self, server: Address) -> None:
        self.socket = _udp(server[0])
        self.socket.connect(server)
        self.address: Address = self.socket.getsockname()[:2]

    def write(self, data: bytes) -> None:
        self.socket.send(data)

    async def read(self) -> bytes:
        return (await _received(self.socket))[0]

    def close(self) -> None:
        self.socket.close()


class Stream:
    """TCP or TLS. It cuts messages out of the stream by itself (RFC 8489 s6.2.2, RFC 8656 s12.5)."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.address: Address = writer.get_extra_info("sockname")[:2]

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def read(self) -> bytes:
        async with asyncio.timeout(WAIT_S):
            head = await self.reader.readexactly(4)
            length = int.from_bytes(head[2:])
            if not head[0] & 0x40:
                return head + await self.reader.readexactly(16 + length)
            return (head + await self.reader.readexactly(length + -length % 4))[: 4 + length]

    async def has_ended(self) -> bool:
        """Waits for the end of the connection; False where something comes before it."""
        async with asyncio.timeout(WAIT_S):
            try:
                return await self.reader.read(1) == b""
            except (ConnectionError, ssl.SSLError):
                return True

    def close(self) -> None:
        self.writer.transport.abort()


class Peer:
    """Somebody with a UDP socket."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = _udp(host, port)
        self.address: Address = self.socket.getsockname()[:2]

    def send(self, data: bytes, relayed: Address) -> None:
        self.socket.sendto(data, relayed)

    async def hears(self) -> tuple[bytes, Address]:
        """The next datagram and its source."""
        return await _received(self.socket)

    def has_heard_nothing(self) -> bool:
        """Nothing waits in its socket. On loopback what has been sent has arrived."""
        try:
            self.socket.recv(1)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        """Its port answers by ICMP from now on."""
        self.socket.close()


class Client:
    """One five-tuple with credentials. It asks for the nonce when it first needs one, and checks that every answer after authentication is signed."""

    ids = itertools.count(int.from_bytes(os.urandom(8)))

    def __init__(self, link: Link, username: str, password: str, realm: str, family: tuple[Field, ...]) -> None:
        self.link, self.username, self.realm, self.family = link, username, realm, family
        self.key = turn_key(username, realm, password)
        self.nonce: bytes | None = None
        self.asked = self.answered = b""  # the last request and the bytes of its answer
        self._unread: deque[Message | tuple[int, bytes]] = deque()

    @property
    def address(self) -> Address:
        return self.link.address

    @property
    def transport(self) -> tuple[Field, ...]:
        """What an Allocate must have to get the usual address of this world."""
        return (TRANSPORT, *self.family)

    def plain(self, method: int, *fields: Field, kind: Class = Class.REQUEST, fingerprint: bool = False) -> bytes:
        return Message(method, kind, self._new_id(), fields).serialize(fingerprint=fingerprint)

    def signed(self, method: int, *fields: Field, key: bytes | None = None, fingerprint: bool = False, without: Attribute[Any] | None = None) -> bytes:
        own = ((attributes.USERNAME, self.username), (attributes.REALM, self.realm), (attributes.NONCE, self.nonce or b""))
        fields = (*fields, *(field for field in own if field[0] is not without))
        return Message(method, Class.REQUEST, self._new_id(), fields).serialize(key or self.key, fingerprint)

    def _new_id(self) -> bytes:
        return (next(self.ids) % 2**96).to_bytes(12)

    def send(self, data: bytes) -> None:
        """One message; over a stream ChannelData is padded."""
        padding = -len(data) % 4 if isinstance(self.link, Stream) else 0
        self.link.write(data + bytes(padding))

    async def exchange(self, request: bytes) -> Message:
        """The answer to this request. What comes before it is kept for `hears`."""
        self.asked = request
        self.send(request)
        while True:
            self.answered = await self.link.read()
            message = _heard(self.answered)
            if isinstance(message, Message) and message.message_class in (Class.SUCCESS, Class.ERROR):
                assert message.transaction_id == request[8:20]
                return message
            self._unread.append(message)

    async def ask(self, method: int, *fields: Field, key: bytes | None = None) -> Message:
        """The answer to a signed request."""
        if self.nonce is None:
            self.nonce = (await self.exchange(self.plain(Method.REFRESH))).get(attributes.NONCE)
        answer = await self.exchange(self.signed(method, *fields, key=key))
        if code(answer) not in (400, 401, 438):
            assert answer.is_signed_by(self.key)
        return answer

    async def allocate(self, *fields: Field) -> Address:
        """The relayed address."""
        answer = await self.ask(Method.ALLOCATE, *self.transport, *fields)
        assert code(answer) is None, code(answer)
        relayed = answer.get(attributes.XOR_RELAYED_ADDRESS)
        assert relayed is not None
        return relayed

    async def permit(self, *peers: Address) -> int | None:
        return code(await self.ask(Method.CREATE_PERMISSION, *to(*peers)))

    async def bind(self, number: int, peer: Address) -> int | None:
        return code(await self.ask(Method.CHANNEL_BIND, (attributes.CHANNEL_NUMBER, number), *to(peer)))

    async def refresh(self, *fields: Field) -> int | None:
        return code(await self.ask(Method.REFRESH, *fields))

    def indication(self, data: bytes, peer: Address, *fields: Field) -> bytes:
        return self.plain(Method.SEND, *to(peer), *fields, (attributes.DATA, data), kind=Class.INDICATION)

    def send_to(self, peer: Address, data: bytes, *fields: Field) -> None:
        self.send(self.indication(data, peer, *fields))

    async def message(self) -> Message | tuple[int, bytes]:
        """The next message that is no answer: ChannelData as (number, data)."""
        return self._unread.popleft() if self._unread else _heard(await self.link.read())

    async def hears(self) -> tuple[Address | int, bytes | Icmp]:
        """The next data, with its channel, or its peer where it came as Data indication; or ICMP with its peer."""
        message = await self.message()
        if not isinstance(message, Message):
            return message
        assert (message.method, message.message_class) == (Method.DATA, Class.INDICATION)
        peer, data, icmp = message.get(attributes.XOR_PEER_ADDRESS), message.get(attributes.DATA), message.get(attributes.ICMP)
        assert peer is not None
        if data is None:
            assert icmp is not None
            return peer, icmp
        assert icmp is None
        return peer, data

    async def hears_nothing(self) -> bool:
        """Whether nothing was sent to it until now: the relay answers what it is asked last, and nothing comes before that."""
        await self.exchange(self.plain(Method.BINDING))
        return not self._unread

    async def gets_silence(self, *messages: bytes) -> bool:
        """Whether nothing answers these, although what follows them is answered."""
        for message in messages:
            self.send(message)
        return await self.hears_nothing()

    async def has_ended(self) -> bool:
        """Whether the relay ends this connection, and says nothing before."""
        assert isinstance(self.link, Stream)
        return await self.link.has_ended()

    def close(self) -> None:
        self.link.close()


def _heard(data: bytes) -> Message | tuple[int, bytes]:
    if data[0] & 0xC0 != 0x40:
        return parse(data)
    assert len(data) == 4 + int.from_bytes(data[2:4])
    return int.from_bytes(data[:2]), data[4:]


# The stage of one rule


class Nearer:
    """The compiled data path, whose deadlines come nearer: it compares with the machine's clock, which cannot leap."""

    def __init__(self, path: CompiledPath) -> None:
        self._path = path
        self._told: dict[tuple[int, object], tuple[float, Callable[[float], None]]] = {}  # what was told last comes last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path, name)

    def come(self, seconds: float) -> None:
        """Every deadline that C was told, and none that it should have been told, is so much nearer now."""
        for key, (at, tell) in list(self._told.items()):
            self._told[key] = at - seconds, tell
            tell(at - seconds)

    def open(
        self, relay_id: int, fd: int, listener_id: int, client: Address, relayed: Address, expires_at: float, bucket_id: Hashable | None = None
    ) -> Counters:
        counters = self._path.open(relay_id, fd, listener_id, client, relayed, expires_at, bucket_id)
        self._remember(relay_id, None, expires_at, partial(self._path.extend, relay_id))
        return counters

    def extend(self, relay_id: int, expires_at: float) -> None:
        self._path.extend(relay_id, expires_at)
        self._remember(relay_id, None, expires_at, partial(self._path.extend, relay_id))

    def permit(self, relay_id: int, host: str, expires_at: float) -> None:
        self._path.permit(relay_id, host, expires_at)
        self._remember(relay_id, host, expires_at, partial(self._path.permit, relay_id, host))

    def bind(self, relay_id: int, number: int, peer: Address, is_own: bool, expires_at: float, may_leave: bool = False) -> None:
        self._path.bind(relay_id, number, peer, is_own, expires_at, may_leave)
        self._remember(relay_id, number, expires_at, partial(self._path.bind, relay_id, number, peer, is_own, may_leave=may_leave))

    def _remember(self, relay_id: int, of: object, at: float, tell: Callable[[float], None]) -> None:
        self._told.pop((relay_id, of), None)
        self._told[relay_id, of] = at, tell

    def close(self, relay_id: int) -> None:
        self._path.close(relay_id)
        self._told = {key: told for key, told in self._told.items() if key[0] != relay_id}


class Stage:
    """A relay, alone in its world, and who talks to it."""

    def __init__(self, world: World, relay: Relay, trust: Trust) -> None:
        self.world, self.relay, self.trust = world, relay, trust
        if isinstance(relay._path, OutsidePath):
            relay._path._path = cast(CompiledPath, Nearer(relay._path._path))
        self._opened: list[Client | Peer] = []

    async def client(
        self,
        username: str = "ann",
        password: str | None = None,
        *,
        realm: str = REALM,
        transport: str | None = None,
        context: ssl.SSLContext | None = None,
        plain: bool = False,
    ) -> Client:
        """A new five-tuple; `plain` speaks no TLS where TLS is spoken."""
        family = () if V4 in self.relay.config.relay_addresses else (ASKS_V6,)
        transport = transport or self.world.transport
        link = await self._link(transport, None if plain or transport != TLS else context or self.trust.context)
        made = Client(link, username, USERS.get(username, "") if password is None else password, realm, family)
        self._opened.append(made)
        return made

    async def _link(self, transport: str, context: ssl.SSLContext | None) -> Link:
        server = self.relay.addresses[transport][0]
        return Datagrams(server) if transport == UDP else Stream(*await asyncio.open_connection(*server, ssl=context))

    def peer(self, host: str | None = None, port: int = 0) -> Peer:
        """Reachable from the usual relayed address of this world, if not from this host. A port of a listener, of TCP too, is refused as one of a peer."""
        own = {port for addresses in self.relay.addresses.values() for _, port in addresses}
        made = Peer(host or (V6 if V4 not in self.relay.config.relay_addresses else "127.0.0.2"), port)
        self._opened.append(made)
        return self.peer(host) if made.address[1] in own else made

    @property
    def elsewhere(self) -> Address:
        """A peer that may be, and is not, of the usual family."""
        return ("127.0.0.77" if V4 in self.relay.config.relay_addresses else "fd00::77"), 7777

    def is_free(self, relayed: Address) -> bool:
        """Whether the relay has closed the socket of this relayed address."""
        with socket.socket(socket.AF_INET6 if ":" in relayed[0] else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(relayed)
            except OSError:
                return False
            return True

    def pass_time(self, seconds: float) -> None:
        """The relay's clock leaps."""
        relay = self.relay
        relay._offset_s += seconds
        if isinstance(relay._path, OutsidePath):
            relay._path._offset_s += seconds
            cast(Nearer, relay._path._path).come(seconds)
        if relay._timer:
            relay._timer.cancel()
        relay._tick()

    def close(self) -> None:
        for opened in self._opened:
            opened.close()


@asynccontextmanager
async def opened(world: World, trust: Trust, *, has_tls: bool = False, **changes: Any) -> AsyncIterator[Stage]:
    """A stage whose relay has this configuration besides the world's. It listens on UDP and TCP, and on TLS where the world has it or `has_tls`."""
    here = ((world.client_host, 0),)
    values: dict[str, Any] = {
        "realm": REALM,
        "credentials": static_users(USERS, REALM),
        "listen": here,
        "listen_tcp": here,
        "listen_tls": here if has_tls or world.transport == TLS else (),
        "tls": trust.files,
        "data_path": world.data_path,
        "relay_addresses": world.relay_hosts,
        "min_port": RELAYED_PORTS[0],
        "allow_peers": ("127.0.0.0/8", "::1/128", "fd00::/16"),
        "unauthenticated_per_s": 0.0,
    }
    async with Relay(RelayConfig(**{**values, **changes})) as relay:
        stage = Stage(world, relay, trust)
        try:
            yield stage
        finally:
            stage.close()
