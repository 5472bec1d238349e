"""A TURN server without sockets, clients that sign what they are told to, and a judge that believes only what went over the wire.

The judge keeps its own account of what each client was granted, read from requests and answers by code of its own, and compares each effect with it: who may
send where, how large an answer may be, what may be remembered. A breach is a `Finding`. `bench/fuzz_turn.py` and the tests of abuse play in this world.
"""

from __future__ import annotations

import binascii
import hmac
import ipaddress
import itertools
import struct
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from heliograph.ice import turn_key
from media_fleet.stun import Address
from media_fleet.turn import CloseRelay, FiveTuple, Identity, OpenRelay, PeerPolicy, SendToClient, SendToPeer, TurnServer, TurnSettings

NOW = 1_800_000_000.0
REALM = "heliograph"
HOSTS = {4: "52.1.2.3", 6: "2a05:d018::1"}
LISTENER = ("10.0.0.1", 3478)
PORTS = (50_000, 50_015)
AMPLIFICATION = 5  # an answer to a stranger is at most so many times as long as what asked for it
OVERHEAD = 512  # bytes that an answer to somebody known may be longer than the request
WRAPPING = 52  # bytes around relayed data: header, XOR-PEER-ADDRESS and DATA of an indication
ALLOCATIONS, PER_ACCOUNT, PERMISSIONS, CHANNELS, ENDED = 4, 3, 4, 3, 4
ENTRIES = ALLOCATIONS * (PERMISSIONS + 2 * CHANNELS + 8) + 2 * ALLOCATIONS + 64 + ENDED  # all that all tables of this server may hold
OF_STRANGERS: frozenset[str] = frozenset()  # attributes of the server that may remember who did not authenticate, bounded by themselves

BINDING, ALLOCATE, REFRESH, SEND, DATA, CREATE_PERMISSION, CHANNEL_BIND = 1, 3, 4, 6, 7, 8, 9
REQUEST, INDICATION, SUCCESS, ERROR = 0x000, 0x010, 0x100, 0x110
USERNAME, INTEGRITY, ERROR_CODE, CHANNEL_NUMBER, LIFETIME, PEER_ADDRESS, DATA_VALUE, REALM_NAME, NONCE = 0x06, 0x08, 0x09, 0x0C, 0x0D, 0x12, 0x13, 0x14, 0x15
RELAYED_ADDRESS, FAMILY, TRANSPORT, FINGERPRINT = 0x16, 0x17, 0x19, 0x8028
KNOWN = frozenset((USERNAME, CHANNEL_NUMBER, LIFETIME, PEER_ADDRESS, DATA_VALUE, REALM_NAME, NONCE, FAMILY, TRANSPORT))
COOKIE = b"\x21\x12\xa4\x42"
USERS = {"ann": "pass", "bob": "word", "old": "gone"}
OLD_UNTIL = NOW + 700.0  # when the credentials of `old` end
Values = Iterable[tuple[int, bytes]]


class Finding(AssertionError):
    """The server did what it must not do."""


# The wire, by code of its own


def message(method: int, kind: int, transaction_id: bytes, values: Values, key: bytes | None = None, fingerprint: bool = False) -> bytes:
    """A STUN message; `key` signs it."""
    body = b"".join(struct.pack("!HH", number, len(value)) + value + bytes(-len(value) % 4) for number, value in values)
    split = (method & 0x00F) | (method & 0x070) << 1 | (method & 0xF80) << 2 | kind

    def head(more: int) -> bytes:
        return struct.pack("!HH", split, (len(body) + more) & 0xFFFF) + COOKIE + transaction_id

    if key is not None:
        body += struct.pack("!HH", INTEGRITY, 20) + hmac.digest(key, head(24) + body, "sha1")
    if fingerprint:
        body += struct.pack("!HHI", FINGERPRINT, 4, binascii.crc32(head(8) + body) ^ 0x5354554E)
    return head(0) + body


@dataclass(frozen=True, slots=True)
class Read:
    """What a datagram says, up to its signature."""

    method: int
    kind: int
    transaction_id: bytes
    values: tuple[tuple[int, bytes], ...]

    def first(self, number: int) -> bytes | None:
        return next((value for found, value in self.values if found == number), None)

    def peers(self) -> list[Address]:
        found = (xored(value, self.transaction_id) for number, value in self.values if number == PEER_ADDRESS)
        return [peer for peer in found if peer is not None]

    def error(self) -> int | None:
        value = self.first(ERROR_CODE)
        return None if value is None else (value[2] & 7) * 100 + value[3]

    def number(self, number: int) -> int | None:
        value = self.first(number)
        return None if value is None else int.from_bytes(value[:4], "big")


def read(data: bytes) -> Read | None:
    """A STUN message, or None; lenient about everything but the header."""
    if len(data) < 20 or data[0] > 0x3F or data[4:8] != COOKIE:
        return None
    kind, at, values = data[0] << 8 | data[1], 20, []
    while at + 4 <= len(data):
        number, length = struct.unpack_from("!HH", data, at)
        if number == INTEGRITY:
            break
        values.append((number, data[at + 4 : at + 4 + length]))
        at += 4 + length + -length % 4
    return Read((kind & 0x000F) | (kind & 0x00E0) >> 1 | (kind & 0x3E00) >> 2, kind & 0x0110, data[8:20], tuple(values))


def is_signed(data: bytes, key: bytes) -> bool:
    """Whether the last 24 bytes, or the 24 before a FINGERPRINT, are a MESSAGE-INTEGRITY made with this key."""
    for end in (len(data), len(data) - 8):
        signed = data[:2] + struct.pack("!H", end - 20) + data[4 : end - 24]
        if data[end - 24 : end - 20] == struct.pack("!HH", INTEGRITY, 20) and data[end - 20 : end] == hmac.digest(key, signed, "sha1"):
            return True
    return False


def xored(value: bytes, transaction_id: bytes) -> Address | None:
    """The address in a XOR-…-ADDRESS."""
    if (len(value), value[1:2]) not in ((8, b"\x01"), (20, b"\x02")):
        return None
    pad = COOKIE + transaction_id
    host = bytes(one ^ other for one, other in zip(value[4:], pad, strict=False))
    return str(ipaddress.ip_address(host)), int.from_bytes(value[2:4], "big") ^ 0x2112


def xor(address: Address, transaction_id: bytes) -> bytes:
    """The value of a XOR-…-ADDRESS."""
    packed = ipaddress.ip_address(address[0]).packed
    host = bytes(one ^ other for one, other in zip(packed, COOKIE + transaction_id, strict=False))
    return struct.pack("!BBH", 0, 1 if len(packed) == 4 else 2, address[1] ^ 0x2112) + host


def is_public(host: str) -> bool:
    """Whether a relay may send there, by another way than the relay's own: Python's registry, only global unicast, nothing that wraps IPv4."""
    ip = ipaddress.ip_address(host)
    if isinstance(ip, ipaddress.IPv6Address):
        wraps = ip.ipv4_mapped or ip.sixtofour or ip.teredo
        return ip.is_global and not wraps and int(ip) >> 125 == 1 and not ip.exploded.startswith("3fff:0")
    return ip.is_global and not ip.is_multicast and ip != ipaddress.IPv4Address("168.63.129.16")


# The world


@dataclass(slots=True)
class Holding:
    """What one client has, by the server's answers to it."""

    username: str
    expires_at: float
    ports: set[int]
    granted: dict[str, float] = field(default_factory=dict)
    channels: dict[int, tuple[Address, float]] = field(default_factory=dict)
    offered: list[int] = field(default_factory=lambda: [0, 0])  # datagrams and bytes of data from the client, relayed or not
    relayed: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # datagrams and bytes from the client, datagrams and bytes to it
    told: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # the same by the server's counters


@dataclass(slots=True)
class Done:
    """Effects by kind, after every OpenRelay among them was answered; `closed` says whose the sockets were."""

    to_clients: list[tuple[FiveTuple, bytes]] = field(default_factory=list)
    to_peers: list[tuple[int, bytes, Address]] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    closed: list[FiveTuple] = field(default_factory=list)


class World:
    """One server with five clients; each verb is judged."""

    def __init__(self, family: int = 4) -> None:
        self.now, self.host, self.does_open = NOW, HOSTS[family], True
        self.tally: Counter[str] = Counter()
        numbers = itertools.count(1)

        def random(count: int) -> bytes:
            return b"".join((next(numbers) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big") for _ in range(-(-count // 8)))[:count]

        settings = TurnSettings(
            realm=REALM,
            relay_host=self.host,
            min_port=PORTS[0],
            max_port=PORTS[1],
            allocations_per_account=PER_ACCOUNT,
            max_allocations=ALLOCATIONS,
            max_permissions=PERMISSIONS,
            max_channels=CHANNELS,
            ended_kept=ENDED,
        )
        own = [LISTENER, (self.host, LISTENER[1])]
        self.server = TurnServer(settings, _identity, random, PeerPolicy((), own, self.host, range(PORTS[0], PORTS[1] + 1)))
        hosts = (("198.51.100.7", 40_000, "udp"), ("198.51.100.7", 40_001, "udp"), ("203.0.113.9", 40_000, "udp"), ("2001:db8::7", 40_000, "udp"))
        self.clients: list[FiveTuple] = [((host, port), LISTENER, transport) for host, port, transport in (*hosts, ("198.51.100.8", 40_000, "tcp"))]
        self.holdings: dict[FiveTuple, Holding] = {}
        self.sockets: dict[int, FiveTuple] = {}
        self.transactions = itertools.count(1)
        self.last_transaction = bytes(12)
        self._empty = self._kept = self._entries()

    # What is done to the server

    def ask(
        self, who: int, method: int, values: Values = (), username: str = "ann", *, key: bytes | None = None, stale: bool = False, fingerprint: bool = False,
        transaction_id: bytes | None = None, plain: bool = False,
    ) -> Read | None:  # fmt: skip
        """A request of this client's; `plain` leaves it unsigned, `key` signs with another one, `stale` gives another client's nonce."""
        transaction_id = transaction_id or self.transaction()
        if plain:
            return self.receive(who, message(method, REQUEST, transaction_id, values, None, fingerprint))
        own = turn_key(username, REALM, USERS.get(username, "?"))
        nonce = self.server._nonces.make(("192.0.2.1", 9) if stale else self.clients[who][0], self.now)
        signed = (*values, (USERNAME, username.encode()), (REALM_NAME, REALM.encode()), (NONCE, nonce))
        is_good = not stale and key is None and username in USERS
        return self.receive(who, message(method, REQUEST, transaction_id, signed, key or own, fingerprint), username if is_good else None)

    def transaction(self) -> bytes:
        self.last_transaction = next(self.transactions).to_bytes(12, "big")
        return self.last_transaction

    def receive(self, who: int, data: bytes, username: str | None = None) -> Read | None:
        """A datagram from this client, signed by that user with a fresh nonce, or by nobody; the answer, if there is one."""
        client, asked, kept, live = self.clients[who], read(data), self._kept, self.server.live
        done = self._perform(self.server.receive(data, client, self.now))
        self._kept, answer = self._entries(), None
        if asked is None or asked.kind != REQUEST:
            self._closed(done, None)
            self._data_from_client(client, data, asked, done)
        else:
            answer = self._answer(client, data, asked, done)
            if username is None or (username == "old" and self.now >= OLD_UNTIL and not self._has(client, username)):
                self._stranger(data, asked, answer, done, kept, live)
            else:
                self._known(client, username, data, asked, answer, done)
        self._look()
        return None if answer is None else read(answer)

    def receive_from_peer(self, port: int, peer: Address, data: bytes) -> None:
        """A datagram on the relay socket of this port."""
        done = self._perform(self.server.receive_from_peer(data, port, peer, self.now))
        self._none(done.to_peers, "a peer's datagram went to a peer")
        self._none(done.closed, "a peer's datagram ended an allocation")
        if done.to_clients:
            self._one(done.to_clients, "a peer's datagram")
            self._delivered(port, peer, data, *done.to_clients[0])
        self.tally["from a peer: delivered" if done.to_clients else "from a peer: dropped"] += 1
        self._look()

    def wait(self, seconds: float, does_tick: bool = True) -> None:
        """Time passes; the shell's timer may be late."""
        self.now += seconds
        if does_tick:
            self.tick()

    def tick(self) -> None:
        done = self._perform(self.server.tick(self.now))
        self._kept = self._entries()
        self._none(done.to_clients + done.to_peers, "a tick sent something")
        self._closed(done, None)
        self._must(not any(holding.expires_at <= self.now for holding in self.holdings.values()), "an allocation outlived its lifetime and a tick")
        deadline = self.server.next_deadline()
        self._must(deadline is None or deadline > self.now, "after a tick the next deadline has passed")
        self._look()

    def finish(self) -> None:
        """A day later nothing is left."""
        self.wait(100_000.0)
        self._must(not self.holdings and not self.sockets and self.server.live == 0, "allocations are left after a day")
        self._must(self.server.next_deadline() is None, "a deadline is left after a day")
        self._must(self._kept <= self._empty + ENDED, "something is remembered after a day")

    # What is judged

    def _stranger(self, data: bytes, asked: Read, answer: bytes | None, done: Done, kept: int, live: int) -> None:
        """No state, nothing sent but one small refusal; a Binding request alone succeeds."""
        self._closed(done, None)
        self._none(done.opened, "a stranger opened a relay socket")
        self._must(self.server.live <= live and self._kept <= kept, "something is remembered about a stranger")
        if answer is not None:
            said = read(answer)
            assert said is not None
            self._must(said.kind == ERROR or asked.method == BINDING, "a stranger was granted something")
            self._must(len(answer) <= AMPLIFICATION * len(data), f"{len(answer)} bytes answer a stranger's {len(data)}")
        self.tally[f"stranger: {'silence' if answer is None else _outcome(answer)}"] += 1

    def _known(self, client: FiveTuple, username: str, data: bytes, asked: Read, answer: bytes | None, done: Done) -> None:
        self._must(answer is None or len(answer) <= len(data) + OVERHEAD, "an answer is very long")
        said = None if answer is None else read(answer)
        self.tally[f"{asked.method}: {'silence' if answer is None else _outcome(answer)}"] += 1
        if said is None or answer is None or said.kind == ERROR or asked.method == BINDING:
            self._must(all(self.sockets.get(port) is None for port in done.opened), "what was refused left a relay socket open")
            self._closed(done, None)
            return
        self._must(is_signed(answer, turn_key(username, REALM, USERS[username])), "a success is not signed with the key of who asked")
        ends = asked.method == REFRESH and said.number(LIFETIME) == 0
        self._closed(done, client if ends else None)
        if asked.method == ALLOCATE:
            self._allocated(client, username, said, done)
            return
        holding = self.holdings.get(client)
        self._must(ends or (holding is not None and holding.username == username), "a success without an allocation of one's own")
        self._none(done.opened, "a relay socket was opened for something else than an allocation")
        if holding is not None and not ends:
            self._granted(holding, asked, said)

    def _allocated(self, client: FiveTuple, username: str, said: Read, done: Done) -> None:
        ports = {address[1] for number, value in said.values if number == RELAYED_ADDRESS and (address := xored(value, said.transaction_id))}
        if client in self.holdings:  # a retransmission
            self._none(done.opened, "a retransmission opened another socket")
            self._must(ports <= self.holdings[client].ports, "a retransmission got another address")
            return
        self._must(bool(ports) and ports <= set(done.opened), "the relayed address is not the one that was opened")
        self.holdings[client] = Holding(username, self.now + (said.number(LIFETIME) or 0), set(done.opened))

    def _granted(self, holding: Holding, asked: Read, said: Read) -> None:
        if asked.method == REFRESH:
            holding.expires_at = self.now + (said.number(LIFETIME) or 0)
        peers = asked.peers() if asked.method == CREATE_PERMISSION else asked.peers()[:1]
        for peer in peers if asked.method in (CREATE_PERMISSION, CHANNEL_BIND) else ():
            self._must(self._may_reach(peer[0]), f"a permission for {peer[0]}")
            holding.granted[peer[0]] = self.now + 300.0
        if asked.method == CHANNEL_BIND:
            number = (asked.number(CHANNEL_NUMBER) or 0) >> 16
            self._must(0x4000 <= number <= 0x4FFF and bool(peers), "a channel out of range, or to nobody")
            self._must(peers[0][0] != self.host or PORTS[0] <= peers[0][1] <= PORTS[1], "a channel to our own machine")
            clash = (peer for other, (peer, until) in holding.channels.items() if until > self.now and (other == number) != (peer == peers[0]))
            self._none(list(clash), "two channels for one peer, or two peers for one channel")
            holding.channels[number] = (peers[0], self.now + 600.0)

    def _data_from_client(self, client: FiveTuple, data: bytes, asked: Read | None, done: Done) -> None:
        """ChannelData or a Send indication: one datagram to a permitted peer, or over to another client of ours, or silence."""
        self._none(done.opened, "data opened a relay socket")
        _offer(self.holdings.get(client), data)
        self._must(len(done.to_clients) + len(done.to_peers) <= 1, "one datagram became several")
        if not done.to_clients and not done.to_peers:
            self.tally["from a client: dropped"] += 1
            return
        holding = self.holdings.get(client)
        self._must(holding is not None and holding.expires_at > self.now, "data without an allocation")
        assert holding is not None
        peer, payload = self._meant(holding, data, asked)
        self._must(holding.granted.get(peer[0], 0.0) > self.now or asked is None, f"data to {peer} without a permission")
        self._must(self._may_reach(peer[0]), f"data to {peer}")
        if done.to_peers:
            port, sent, to = done.to_peers[0]
            self._must(port in holding.ports and to == peer and sent == payload, f"data for {peer} went to {to}, or from another's port, or changed")
            self._must(peer[0] != self.host, "data to our own machine left by a socket")
        else:
            self._must(peer[0] == self.host, "data for a peer went to a client")
            self._delivered(peer[1], (self.host, min(holding.ports)), payload, *done.to_clients[0])
        _count(holding, 0, payload)
        self.tally["from a client: relayed" if done.to_peers else "from a client: to another client"] += 1

    def _meant(self, holding: Holding, data: bytes, asked: Read | None) -> tuple[Address, bytes]:
        """Whom a client's data is for, and what it is."""
        if asked is not None:
            self._must(asked.kind == INDICATION and asked.method == SEND, "something else than a Send indication was relayed")
            self._must(bool(asked.peers()) and asked.first(DATA_VALUE) is not None, "an incomplete Send indication was relayed")
            return asked.peers()[0], asked.first(DATA_VALUE) or b""
        number, length = struct.unpack_from("!HH", data.ljust(4, b"\0"))
        peer, until = holding.channels.get(number, (("", 0), 0.0))
        self._must(until > self.now and len(data) >= 4 + length, "ChannelData on no channel, or too short, was relayed")
        return peer, data[4 : 4 + length]

    def _delivered(self, port: int, peer: Address, payload: bytes, to: FiveTuple, data: bytes) -> None:
        """A datagram reached a client: the one that has the port, which permitted the peer."""
        holding = self.holdings.get(self.sockets.get(port, to))
        self._must(holding is not None and self.sockets.get(port) == to and holding.expires_at > self.now, "data reached a client that does not have the port")
        assert holding is not None
        self._must(holding.granted.get(peer[0], 0.0) > self.now, f"data from {peer} reached a client without a permission")
        self._must(payload in data and len(data) <= len(payload) + WRAPPING, "data changed on its way to the client")
        _count(holding, 1, payload)

    def _answer(self, client: FiveTuple, data: bytes, asked: Read, done: Done) -> bytes | None:
        self._none(done.to_peers, "a request sent something to a peer")
        if not done.to_clients:
            return None
        self._one(done.to_clients, "a request")
        to, answer = done.to_clients[0]
        said = read(answer)
        self._must(to == client, "an answer went to somebody else")
        self._must(said is not None and len(answer) % 4 == 0 and struct.unpack_from("!H", answer, 2)[0] == len(answer) - 20, "an answer is no STUN message")
        assert said is not None
        is_ours = said.method == asked.method and said.kind in (SUCCESS, ERROR) and said.transaction_id == data[8:20]
        self._must(is_ours and (said.kind == ERROR) == (said.error() is not None), "an answer does not answer")
        return answer

    def _closed(self, done: Done, ends: FiveTuple | None) -> None:
        """Only what expired, or what its owner ended, is closed."""
        for client in set(done.closed) & self.holdings.keys():
            self._must(client == ends or self.holdings[client].expires_at <= self.now, "a living allocation was ended")
            del self.holdings[client]

    def _look(self) -> None:
        """What must always hold."""
        self._must(self.server.live == len(self.holdings) <= ALLOCATIONS, f"{self.server.live} allocations, {len(self.holdings)} by the answers")
        self._must(self._kept <= self._empty + ENTRIES, "the tables are larger than the settings allow")
        accounts = Counter(holding.username for holding in self.holdings.values())
        self._must(max(accounts.values(), default=0) <= PER_ACCOUNT, "an account has more than its quota")
        for usage in self.server.allocations():
            if usage.ended_at_ms is None:
                holding = next(held for client, held in self.holdings.items() if usage.client_address in _texts(client[0]))
                told = [usage.from_client_packets, usage.from_client_bytes, usage.to_client_packets, usage.to_client_bytes]
                self._must(all(map(int.__ge__, told, holding.told)), f"counters {holding.told} went to {told}")
                is_true = all(map(int.__ge__, told, holding.relayed)) and all(map(int.__le__, told[:2], holding.offered)) and told[2:] == holding.relayed[2:]
                self._must(is_true, f"counters {told} tell of {holding.relayed} relayed")
                holding.told = told

    def _has(self, client: FiveTuple, username: str) -> bool:
        return client in self.holdings and self.holdings[client].username == username

    def _may_reach(self, host: str) -> bool:
        return host == self.host or is_public(host)

    # The shell's part

    def _perform(self, effects: Iterable[Any]) -> Done:
        done = Done()
        for effect in effects:
            if isinstance(effect, SendToClient):
                done.to_clients.append((effect.five_tuple, bytes(effect.data)))
            elif isinstance(effect, SendToPeer):
                done.to_peers.append((effect.port, bytes(effect.data), effect.peer))
            elif isinstance(effect, CloseRelay):
                self._must(effect.port in self.sockets, "a socket was closed that was not open")
                done.closed.append(self.sockets.pop(effect.port))
            elif isinstance(effect, OpenRelay):
                self._open(effect, done)
            else:
                raise Finding(f"an unknown effect {effect!r}")
        return done

    def _open(self, effect: OpenRelay, done: Done) -> None:
        self._must(bool(effect.ports) and all(PORTS[0] <= port <= PORTS[1] for port in effect.ports), "a relay socket out of range")
        free = [port for port in effect.ports if port not in self.sockets]
        self._must(free == list(effect.ports), "a relay socket where another one is open")
        port = free[0] if self.does_open else None
        if port is not None:
            self.sockets[port] = effect.five_tuple
            done.opened.append(port)
        more = self._perform(self.server.relay_opened(effect.five_tuple, port, self.now))
        done.to_clients += more.to_clients
        done.to_peers += more.to_peers
        done.opened += more.opened
        done.closed += more.closed

    def _entries(self) -> int:
        """How many entries all tables of the server hold, whatever they are called. The memory of verdicts about peers is no table of clients."""
        todo = [value for name, value in vars(self.server).items() if name not in OF_STRANGERS]
        total, seen = 0, set()
        while todo:
            value = todo.pop()
            kind = type(value)
            if kind in _PLAIN or id(value) in seen:
                continue
            seen.add(id(value))
            if isinstance(value, dict | list | set | deque):
                total += len(value)
                todo += value.values() if isinstance(value, dict) else value
            elif kind.__module__.startswith("media_fleet.turn") and kind is not PeerPolicy:
                todo += (getattr(value, name, None) for name in getattr(kind, "__slots__", ()) or vars(value))
        return total

    def _must(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Finding(otherwise)

    def _none(self, found: Any, otherwise: str) -> None:
        self._must(not found, f"{otherwise}: {found}")

    def _one(self, found: list[Any], what: str) -> None:
        self._must(len(found) == 1, f"{what} brought {len(found)} datagrams")


def _identity(username: str, now: float) -> Identity | None:
    if username not in USERS or (username == "old" and now >= OLD_UNTIL):
        return None
    return Identity(username, (turn_key(username, REALM, USERS[username]),))


def _outcome(answer: bytes) -> str:
    said = read(answer)
    assert said is not None
    return str(said.error() or "success")


def _offer(holding: Holding | None, data: bytes) -> None:
    if holding is not None:
        holding.offered = [holding.offered[0] + 1, holding.offered[1] + len(data)]


def _count(holding: Holding, direction: int, payload: bytes) -> None:
    holding.relayed[2 * direction] += 1
    holding.relayed[2 * direction + 1] += len(payload)


_PLAIN = frozenset((str, bytes, int, float, bool, tuple, type(None)))


def _texts(address: Address) -> tuple[str, str]:
    return f"{address[0]}:{address[1]}", f"[{address[0]}]:{address[1]}"
