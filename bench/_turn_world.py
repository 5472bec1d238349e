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
from media_fleet.stun import Address, Icmp
from media_fleet.turn import FiveTuple, Identity, PeerPolicy, TurnServer, TurnSettings
from media_fleet.turn.effects import Bind, CloseRelay, Ended, Extend, Install, OpenRelays, Permit, SendToClient, SendToPeer, SendToSibling

NOW = 1_800_000_000.0
REALM = "heliograph"
HOSTS = {4: "52.1.2.3", 6: "2a05:d018::1"}
LISTENER = ("10.0.0.1", 3478)
PORTS = (50_000, 50_015)
AMPLIFICATION = 4  # an answer to a stranger is at most so many times as long as what asked for it
OVERHEAD = 512  # bytes that an answer to somebody known may be longer than the request
WRAPPING = 52  # bytes around relayed data: header, XOR-PEER-ADDRESS and DATA of an indication
ALLOCATIONS, PER_ACCOUNT, PERMISSIONS, CHANNELS, ENDED = 4, 3, 4, 3, 4
RESERVATION_S, BYTES_PER_S, ANSWERS_PER_S, ANSWERS = 30, 100_000, 1.0, 24
ENTRIES = ALLOCATIONS * (PERMISSIONS + 2 * CHANNELS + 12) + 4 * ALLOCATIONS + 64 + ENDED  # all that all tables of this server may hold
OF_STRANGERS = frozenset(("_sources", "counts"))  # what may remember who did not authenticate: a table of a fixed size, and counts by error code

BINDING, ALLOCATE, REFRESH, SEND, DATA, CREATE_PERMISSION, CHANNEL_BIND = 1, 3, 4, 6, 7, 8, 9
REQUEST, INDICATION, SUCCESS, ERROR = 0x000, 0x010, 0x100, 0x110
USERNAME, INTEGRITY, ERROR_CODE, CHANNEL_NUMBER, LIFETIME, PEER_ADDRESS, DATA_VALUE, REALM_NAME, NONCE = 0x06, 0x08, 0x09, 0x0C, 0x0D, 0x12, 0x13, 0x14, 0x15
RELAYED_ADDRESS, FAMILY, TRANSPORT, RESERVATION_TOKEN, FINGERPRINT = 0x16, 0x17, 0x19, 0x22, 0x8028
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
    relays: dict[int, float]  # relay id -> expires at
    granted: dict[str, float] = field(default_factory=dict)
    channels: dict[int, tuple[Address, float]] = field(default_factory=dict)
    offered: list[int] = field(default_factory=lambda: [0, 0])  # datagrams and bytes of data from the client, relayed or not
    relayed: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # datagrams and bytes from the client, datagrams and bytes to it
    told: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # the same by the server's counters

    def relay_for(self, host: str, now: float) -> int | None:
        """The living relay of this host's family."""
        return next((relay_id for relay_id, until in self.relays.items() if is_ipv6(relay_id) == (":" in host) and until > now), None)

    def forget(self, relay_id: int) -> None:
        """Without a relay there are no permissions and channels of its family."""
        del self.relays[relay_id]
        self.granted = {host: until for host, until in self.granted.items() if (":" in host) != is_ipv6(relay_id)}
        self.channels = {number: bound for number, bound in self.channels.items() if (":" in bound[0][0]) != is_ipv6(relay_id)}


@dataclass(slots=True)
class Path:
    """What a data path outside Python was told about one relay."""

    client: FiveTuple
    until: float
    permits: dict[str, float] = field(default_factory=dict)
    binds: dict[int, tuple[Address, float]] = field(default_factory=dict)


@dataclass(slots=True)
class Done:
    """Effects by kind, after every OpenRelays among them was answered; `closed` says whose the sockets were."""

    to_clients: list[tuple[FiveTuple, bytes]] = field(default_factory=list)
    to_peers: list[tuple[int, bytes, Address]] = field(default_factory=list)
    to_siblings: list[tuple[int, bytes, Address]] = field(default_factory=list)
    opened: list[int] = field(default_factory=list)
    closed: list[tuple[int, FiveTuple | None]] = field(default_factory=list)
    ended: list[FiveTuple] = field(default_factory=list)

    def sent(self) -> int:
        """How many datagrams leave."""
        return len(self.to_clients) + len(self.to_peers) + len(self.to_siblings)


def relay_id_of(address: Address) -> int:
    """The port, and 65,536 more for IPv6."""
    return address[1] + (65_536 if ":" in address[0] else 0)


def is_ipv6(relay_id: int) -> bool:
    return relay_id >= 65_536


class World:
    """One server with five clients; each verb is judged. `families` are those of its relayed addresses; with two `workers` half of the ports are another's."""

    def __init__(self, *families: int, workers: int = 1) -> None:
        self.now, self.does_open, self.opens_ipv6 = NOW, True, True
        self.hosts = tuple(HOSTS[family] for family in families or (4,))
        self.tally: Counter[str] = Counter()
        numbers = itertools.count(1)

        def random(count: int) -> bytes:
            return b"".join((next(numbers) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big") for _ in range(-(-count // 8)))[:count]

        self.settings = TurnSettings(
            realm=REALM,
            relay_hosts=self.hosts,
            reservation_s=RESERVATION_S,
            min_port=PORTS[0],
            max_port=PORTS[1],
            workers=workers,
            allocations_per_account=PER_ACCOUNT,
            max_allocations=ALLOCATIONS,
            max_permissions=PERMISSIONS,
            max_channels=CHANNELS,
            account_bytes_per_s=BYTES_PER_S,
            unauthenticated_per_s=ANSWERS_PER_S,
            unauthenticated_burst=ANSWERS,
            ended_kept=ENDED,
        )
        assert len(self.settings.hosts) == len(self.hosts)  # asked now, because the settings remember it
        own = [LISTENER, *((host, LISTENER[1]) for host in self.hosts)]
        self.server = TurnServer(self.settings, _identity, random, PeerPolicy((), own, self.hosts, range(PORTS[0], PORTS[1] + 1)))
        hosts = (("198.51.100.7", 40_000, "udp"), ("198.51.100.7", 40_001, "udp"), ("203.0.113.9", 40_000, "udp"), ("2001:db8::7", 40_000, "udp"))
        self.clients: list[FiveTuple] = [((host, port), LISTENER, transport) for host, port, transport in (*hosts, ("198.51.100.8", 40_000, "tcp"))]
        self.holdings: dict[FiveTuple, Holding] = {}
        self.sockets: dict[int, FiveTuple | None] = {}  # by relay id; None: reserved
        self.reserved: dict[int, tuple[str, float]] = {}  # relay id -> user, expires at
        self.tokens: list[bytes] = []
        self.path: dict[int, Path] = {}
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

    def receive_from_peer(self, relay_id: int, peer: Address, data: bytes) -> None:
        """A datagram on this relay socket."""
        done = self._perform(self.server.receive_from_peer(data, relay_id, peer, self.now))
        self._none(done.to_peers + done.to_siblings, "a peer's datagram went to a peer")
        self._none(done.closed, "a peer's datagram ended an allocation")
        if done.to_clients:
            self._one(done.to_clients, "a peer's datagram")
            self._delivered(relay_id, peer, data, *done.to_clients[0])
        self.tally["from a peer: delivered" if done.to_clients else "from a peer: dropped"] += 1
        self._look()

    def receive_icmp(self, relay_id: int, peer: Address, icmp: Icmp) -> None:
        """ICMP about a datagram from this relay socket to this peer."""
        done = self._perform(self.server.receive_icmp(icmp, relay_id, peer, self.now))
        self._none(done.to_peers + done.to_siblings + done.closed, "ICMP did more than it may")
        if done.to_clients:
            self._one(done.to_clients, "ICMP")
            to, data = done.to_clients[0]
            self._permitted(relay_id, peer, to)
            said = read(data)
            self._must(said is not None and (said.method, said.kind) == (DATA, INDICATION) and said.peers() == [peer], "ICMP is told in another form")
        self.tally["icmp: told" if done.to_clients else "icmp: dropped"] += 1
        self._look()

    def lose(self, who: int) -> None:
        """This client's connection is gone, and with it its allocation."""
        client = self.clients[who]
        done = self._perform(self.server.connection_lost(client, self.now))
        self._must(not done.sent(), "a lost connection sent something")
        self._closed(done, client)
        self._must(client not in self.holdings, "a lost connection left its allocation")
        self._look()

    def wait(self, seconds: float, does_tick: bool = True) -> None:
        """Time passes; the shell's timer may be late."""
        self.now += seconds
        if does_tick:
            self.tick()

    def tick(self) -> None:
        done = self._perform(self.server.tick(self.now))
        self._kept = self._entries()
        self._must(not done.sent(), "a tick sent something")
        self._closed(done, None)
        late = [until for holding in self.holdings.values() for until in holding.relays.values()] + [until for _, until in self.reserved.values()]
        self._must(min(late, default=self.now + 1) > self.now, "an allocation or a reservation outlived its time and a tick")
        deadline = self.server.next_deadline()
        self._must(deadline is None or deadline > self.now, "after a tick the next deadline has passed")
        self._look()

    def finish(self) -> None:
        """A day later nothing is left."""
        self.wait(100_000.0)
        self._must(not self.holdings and not self.sockets and not self.path and self.server.live == 0, "allocations are left after a day")
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
            self._must(not any(relay_id in self.sockets for relay_id in done.opened), "what was refused left a relay socket open")
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
        addresses = [xored(value, said.transaction_id) for number, value in said.values if number == RELAYED_ADDRESS]
        relays = {relay_id_of(address) for address in addresses if address is not None and address[0] in self.hosts}
        self._must(bool(relays) and len(relays) == len(addresses), "a relayed address is not ours")
        if client in self.holdings:  # a retransmission
            self._none(done.opened, "a retransmission opened another socket")
            self._must(self.holdings[client].username == username, "a retransmission by somebody else")
            return
        until = self.now + (said.number(LIFETIME) or 0)
        self.holdings[client] = Holding(username, dict.fromkeys(relays, until))
        token = said.first(RESERVATION_TOKEN)
        spare = set(done.opened) - relays
        self._must(len(spare) == (token is not None), "sockets are open that nobody has")
        for relay_id in spare:
            self._must(relay_id - 1 in relays and relay_id % 2 == 1, "the reserved port is not the next one")
            self.sockets[relay_id] = None
            self.reserved[relay_id] = username, self.now + RESERVATION_S
            self.tokens.append(token or b"")
        for relay_id in relays - set(done.opened):
            holder, until = self.reserved.pop(relay_id, ("", 0.0))
            self._must(holder == username and until > self.now, "a relayed address that was neither opened nor reserved for this user")
            self.sockets[relay_id] = client

    def _granted(self, holding: Holding, asked: Read, said: Read) -> None:
        if asked.method == REFRESH:
            family = asked.first(FAMILY)
            for relay_id in holding.relays:
                if family is None or is_ipv6(relay_id) == (family[:1] == b"\x02"):
                    holding.relays[relay_id] = self.now + (said.number(LIFETIME) or 0)
        peers = asked.peers() if asked.method == CREATE_PERMISSION else asked.peers()[:1]
        for peer in peers if asked.method in (CREATE_PERMISSION, CHANNEL_BIND) else ():
            self._must(self._may_reach(peer[0]), f"a permission for {peer[0]}")
            holding.granted[peer[0]] = self.now + 300.0
        if asked.method == CHANNEL_BIND:
            number = (asked.number(CHANNEL_NUMBER) or 0) >> 16
            self._must(0x4000 <= number <= 0x4FFF and bool(peers), "a channel out of range, or to nobody")
            self._must(peers[0][0] not in self.hosts or PORTS[0] <= peers[0][1] <= PORTS[1], "a channel to our own machine")
            clash = (peer for other, (peer, until) in holding.channels.items() if until > self.now and (other == number) != (peer == peers[0]))
            self._none(list(clash), "two channels for one peer, or two peers for one channel")
            holding.channels[number] = (peers[0], self.now + 600.0)

    def _data_from_client(self, client: FiveTuple, data: bytes, asked: Read | None, done: Done) -> None:
        """ChannelData or a Send indication: one datagram to a permitted peer, or over to another client of ours, or silence."""
        self._none(done.opened, "data opened a relay socket")
        _offer(self.holdings.get(client), data)
        self._must(done.sent() <= 1, "one datagram became several")
        if not done.sent():
            self.tally["from a client: dropped"] += 1
            return
        holding = self.holdings.get(client)
        self._must(holding is not None, "data without an allocation")
        assert holding is not None
        peer, payload = self._meant(holding, data, asked)
        relay_id = holding.relay_for(peer[0], self.now)
        self._must(relay_id is not None, "data by a relay that is over, or of another family")
        assert relay_id is not None
        self._must(holding.granted.get(peer[0], 0.0) > self.now or asked is None, f"data to {peer} without a permission")
        self._must(self._may_reach(peer[0]), f"data to {peer}")
        ours = self.hosts[[is_ipv6(relay_id_of((host, 0))) for host in self.hosts].index(is_ipv6(relay_id))], relay_id & 0xFFFF
        if done.to_peers:
            left, sent, to = done.to_peers[0]
            self._must(left == relay_id and to == peer and sent == payload, f"data for {peer} went to {to}, or from another's port, or changed")
            self._must(peer[0] not in self.hosts, "data to our own machine left by a socket")
        elif done.to_siblings:
            self._must(done.to_siblings[0] == (relay_id_of(peer), payload, ours) and peer[0] in self.hosts, "data for a sibling went elsewhere, or changed")
            self._must(self.settings.is_a_siblings(relay_id_of(peer)), "a sibling got what is not its own")
        else:
            self._must(peer[0] in self.hosts, "data for a peer went to a client")
            self._delivered(relay_id_of(peer), ours, payload, *done.to_clients[0])
        _count(holding, 0, payload)
        self.tally[f"from a client: {'relayed' if done.to_peers else 'to a sibling' if done.to_siblings else 'to another client'}"] += 1

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

    def _delivered(self, relay_id: int, peer: Address, payload: bytes, to: FiveTuple, data: bytes) -> None:
        """A datagram reached a client: the one that has the relay, which permitted the peer."""
        holding = self._permitted(relay_id, peer, to)
        self._must(payload in data and len(data) <= len(payload) + WRAPPING, "data changed on its way to the client")
        _count(holding, 1, payload)

    def _permitted(self, relay_id: int, peer: Address, to: FiveTuple) -> Holding:
        holding = self.holdings.get(to)
        has = holding is not None and self.sockets.get(relay_id) == to and holding.relays.get(relay_id, 0.0) > self.now
        self._must(has, "data reached a client that does not have the port")
        assert holding is not None
        self._must(holding.granted.get(peer[0], 0.0) > self.now, f"data from {peer} reached a client without a permission")
        return holding

    def _answer(self, client: FiveTuple, data: bytes, asked: Read, done: Done) -> bytes | None:
        self._none(done.to_peers + done.to_siblings, "a request sent something to a peer")
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
        over = set()
        for relay_id, client in done.closed:
            if client is None:
                self._must(self.reserved.pop(relay_id)[1] <= self.now, "a reservation was ended early")
                continue
            self._must(client == ends or self.holdings[client].relays[relay_id] <= self.now, "a living allocation was ended")
            self.holdings[client].forget(relay_id)
            if not self.holdings[client].relays:
                del self.holdings[client]
                over.add(client)
        self._must(over == set(done.ended) and len(over) == len(done.ended), "the shell was not told what ended")

    def _look(self) -> None:
        """What must always hold."""
        self._must(self.server.live == len(self.holdings), f"{self.server.live} allocations, {len(self.holdings)} by the answers")
        self._must(len(self.holdings) + len(self.reserved) <= ALLOCATIONS, "more allocations and reservations than the settings allow")
        self._must(self._kept <= self._empty + ENTRIES, "the tables are larger than the settings allow")
        accounts = Counter([holding.username for holding in self.holdings.values()] + [username for username, _ in self.reserved.values()])
        self._must(max(accounts.values(), default=0) <= PER_ACCOUNT, "an account has more than its quota")
        relays = {relay_id: client for client, holding in self.holdings.items() for relay_id in holding.relays}
        self._must(self.sockets == relays | dict.fromkeys(self.reserved), "sockets are open that nobody has, or the other way round")
        self._must(self.path.keys() == relays.keys(), "the data path knows other relays than there are")
        for relay_id, path in self.path.items():
            self._look_at_path(relay_id, path)
        for client, holding in self.holdings.items():
            usage = self.server.usage(client)
            self._must(usage is not None, "an allocation without a count")
            assert usage is not None
            told = [usage.from_client_packets, usage.from_client_bytes, usage.to_client_packets, usage.to_client_bytes]
            self._must(all(map(int.__ge__, told, holding.told)), f"counters {holding.told} went to {told}")
            is_true = all(map(int.__ge__, told, holding.relayed)) and all(map(int.__le__, told[:2], holding.offered)) and told[2:] == holding.relayed[2:]
            self._must(is_true, f"counters {told} tell of {holding.relayed} relayed")
            holding.told = told

    def _look_at_path(self, relay_id: int, path: Path) -> None:
        """A data path that forwards by itself was told what the clients were told, and nothing else."""
        holding = self.holdings[path.client]
        self._must(relay_id in holding.relays and path.until == holding.relays[relay_id], "the data path knows another end of a relay")
        granted = {host: until for host, until in holding.granted.items() if until > self.now and (":" in host) == is_ipv6(relay_id)}
        self._must({host: until for host, until in path.permits.items() if until > self.now} == granted, "the data path knows other permissions")
        channels = {number: bound for number, bound in holding.channels.items() if bound[1] > self.now and (":" in bound[0][0]) == is_ipv6(relay_id)}
        self._must({number: bound for number, bound in path.binds.items() if bound[1] > self.now} == channels, "the data path knows other channels")

    def _has(self, client: FiveTuple, username: str) -> bool:
        return client in self.holdings and self.holdings[client].username == username

    def _may_reach(self, host: str) -> bool:
        return host in self.hosts or is_public(host)

    # The shell's part

    def _perform(self, effects: Iterable[Any]) -> Done:
        done = Done()
        for effect in effects:
            if isinstance(effect, SendToClient):
                done.to_clients.append((effect.five_tuple, bytes(effect.data)))
            elif isinstance(effect, SendToPeer):
                done.to_peers.append((effect.relay_id, bytes(effect.data), effect.peer))
            elif isinstance(effect, SendToSibling):
                done.to_siblings.append((effect.relay_id, bytes(effect.data), effect.sender))
            elif isinstance(effect, CloseRelay):
                self._must(effect.relay_id in self.sockets, "a socket was closed that was not open")
                done.closed.append((effect.relay_id, self.sockets.pop(effect.relay_id)))
                self.path.pop(effect.relay_id, None)
            elif isinstance(effect, Ended):
                done.ended.append(effect.five_tuple)
            elif isinstance(effect, OpenRelays):
                self._open(effect, done)
            else:
                self._tell_path(effect)
        return done

    def _tell_path(self, effect: Any) -> None:
        """The data path's part."""
        if isinstance(effect, Install):
            relay_id = effect.relayed.relay_id
            self._must(relay_id in self.sockets and relay_id not in self.path, "a relay was installed that is not open, or twice")
            self.path[relay_id] = Path(effect.five_tuple, effect.expires_at)
            return
        self._must(effect.relay_id in self.path, f"the data path is told about a relay that it does not have: {effect}")
        path = self.path[effect.relay_id]
        if isinstance(effect, Extend):
            path.until = effect.expires_at
        elif isinstance(effect, Permit):
            path.permits[effect.host] = effect.expires_at
        elif isinstance(effect, Bind):
            self._must(effect.is_own == (effect.peer[0] in self.hosts) and not effect.may_leave, "the data path may send to our own machine")
            path.binds[effect.number] = (effect.peer, effect.expires_at)
        else:
            raise Finding(f"an unknown effect {effect!r}")

    def _open(self, effect: OpenRelays, done: Done) -> None:
        for relay_id in (relay_id for choice in effect.choices for relay_id in choice):
            self._must(self.settings.is_mine(relay_id), "a relay socket out of range")
            self._must(relay_id not in self.sockets, "a relay socket where another one is open")
        can = (choice for choice in effect.choices if self.does_open and (self.opens_ipv6 or not any(map(is_ipv6, choice))))
        choice = next(can, None)
        for relay_id in choice or ():
            self.sockets[relay_id] = effect.five_tuple
            done.opened.append(relay_id)
        more = self._perform(self.server.relays_opened(effect.five_tuple, choice, self.now))
        self._none(more.closed + more.ended + more.opened, "opening closed something")
        done.to_clients += more.to_clients
        done.to_peers += more.to_peers

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
