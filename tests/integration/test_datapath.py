"""The compiled data path on loopback, between real sockets: each rule of it beside its passing twin. `s` numbers are RFC 8656's.

Under a sanitizer: DATAPATH_FLAGS="-g -fsanitize=address,undefined" LD_PRELOAD=$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 pytest FILE
"""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from media_fleet.datapath.build import build
from media_fleet.datapath.compiled import CompiledPath, Counters, Library, Upcall, load
from media_fleet.stun import Address

LISTENER, RELAY, OTHER = 0, 50_000, 50_001
NUMBER = 0x4000
HOURS = 3600.0
STUN = bytes.fromhex("000100002112a442") + bytes(12)  # a Binding request
RELAY_BYTES = 6_000  # of one allocation in all user space; the data path must leave most of it to the rest


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    made = tmp_path_factory.mktemp("datapath") / "fast.so"
    build(made, os.environ.get("DATAPATH_FLAGS", "").split())
    loaded = load(made)
    assert loaded is not None
    return loaded


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def framed(payload: bytes, number: int = NUMBER) -> bytes:
    return struct.pack("!HH", number, len(payload)) + payload


def until(holds: Callable[[], object], missing: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"still missing after {seconds} s: {missing}"
        time.sleep(0.002)


class World:
    """A path with one listener, and sockets around it that wait five seconds for what must come."""

    def __init__(self, library: Library, host: str = "127.0.0.1", **settings: int) -> None:
        self.host, self.is_v6 = host, ":" in host
        self.sockets: list[socket.socket] = []
        self.path = CompiledPath(library, **settings)
        self.listener = self.udp(host)
        self.client = self.udp(host)
        self.peer = self.udp(host)
        self.path.listen(LISTENER, self.listener.fileno())

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.path.stop()
        for opened in self.sockets:
            opened.close()

    def udp(self, host: str) -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((host, 0))
        made.settimeout(5)
        self.sockets.append(made)
        return made

    def open(self, relay_id: int = RELAY, client: socket.socket | None = None, host: str = "", **changes: Any) -> tuple[socket.socket, Counters]:
        """A relay without permissions; its relayed address is its socket's."""
        relay = self.udp(host or self.host)
        values = {"expires_at": now() + HOURS, "listener_id": LISTENER} | changes
        return relay, self.path.open(relay_id, relay.fileno(), client=at(client or self.client), relayed=at(relay), **values)

    def bound(self, relay_id: int = RELAY, client: socket.socket | None = None, **changes: Any) -> tuple[socket.socket, Counters]:
        """A relay with a permission and a channel for `peer`."""
        relay, counters = self.open(relay_id, client, **changes)
        self.path.permit(relay_id, self.host, now() + HOURS)
        self.path.bind(relay_id, NUMBER, at(self.peer), False, now() + HOURS)
        return relay, counters

    def send(self, data: bytes, source: socket.socket | None = None) -> None:
        """From a client to the listener."""
        (source or self.client).sendto(data, at(self.listener))

    def dropped(self, reason: str) -> int:
        return self.path.stats()[f"dropped_{reason}"]

    def upcall(self) -> Upcall:
        """The next one; nothing else waits with it."""
        readable, _, _ = select.select([self.path.fileno()], [], [], 5)
        assert readable, "no upcall"
        [found] = self.path.drain()
        return found


def at(opened: socket.socket) -> Address:
    host, port = opened.getsockname()[:2]
    return host, port


@pytest.fixture(params=["127.0.0.1", "::1"], ids=["v4", "v6"])
def world(request: pytest.FixtureRequest, library: Library) -> Iterator[World]:
    with World(library, request.param) as made:
        yield made


@pytest.fixture
def v4(library: Library) -> Iterator[World]:
    with World(library) as made:
        yield made


# Client to peer (s12.6)


def test_channel_data_leaves_by_the_relay_socket_without_its_header_and_its_padding(world: World) -> None:
    relay, counters = world.bound()
    for sent, payload in ((framed(b"voice"), b"voice"), (framed(b"voice") + b"\0\0\0", b"voice"), (framed(b""), b"")):
        world.send(sent)
        data, source = world.peer.recvfrom(100)
        assert (data, source[:2]) == (payload, at(relay))
    until(lambda: world.path.stats()["datagrams_out"] == 3, "three datagrams out")
    assert (counters.from_client_packets, counters.from_client_bytes, counters.dropped_packets) == (3, 10, 0)


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(b"\x40\x00\x00\x06voice", id="longer than it is"),
        pytest.param(b"\x40\x00\x00", id="three bytes"),
        pytest.param(b"\x40", id="one byte"),
        pytest.param(b"", id="empty"),
        pytest.param(b"\x50\x00\x00\x05voice", id="0x5000"),
        pytest.param(b"\x7f\xff\x00\x00", id="0x7fff"),
        pytest.param(b"\xff" * 40, id="0xffff"),
        pytest.param(STUN[:19], id="short STUN"),
        pytest.param(STUN + b"\0\0\0\0", id="long STUN"),
        pytest.param(STUN[:4] + bytes(16), id="no cookie"),
    ],
)
def test_what_is_neither_channel_data_nor_stun_gets_silence(v4: World, refused: bytes) -> None:
    v4.bound()
    v4.send(refused)
    v4.send(framed(b"twin"))
    assert v4.peer.recv(100) == b"twin"
    assert v4.dropped("malformed") == 1
    assert v4.path.drain() == []


def test_channel_data_without_a_channel_gets_silence(v4: World) -> None:
    _, counters = v4.bound()
    v4.send(framed(b"lost", NUMBER + 1))
    v4.send(framed(b"twin"))
    assert v4.peer.recv(100) == b"twin"
    assert (v4.dropped("no_channel"), counters.dropped_packets) == (1, 1)


def test_channel_data_belongs_to_the_five_tuple_of_its_listener_and_client(v4: World) -> None:
    v4.bound()
    stranger, second = v4.udp("127.0.0.1"), v4.udp("127.0.0.1")
    v4.path.listen(1, second.fileno())
    v4.send(framed(b"lost"), stranger)
    v4.client.sendto(framed(b"lost"), at(second))
    until(lambda: v4.dropped("no_allocation") == 2, "both dropped")
    v4.send(framed(b"twin"))
    assert v4.peer.recv(100) == b"twin"


def test_a_client_with_a_relay_of_each_family_has_one_space_of_channels(v4: World) -> None:
    v4.bound()
    v6_relay, v6_counters = v4.open(OTHER, host="::1")
    v6_peer = v4.udp("::1")
    v4.path.permit(OTHER, "::1", now() + HOURS)
    v4.path.bind(OTHER, NUMBER + 1, at(v6_peer), False, now() + HOURS)
    v4.send(framed(b"six", NUMBER + 1))
    v4.send(framed(b"four", NUMBER))
    assert v6_peer.recv(100) == b"six"
    assert v4.peer.recv(100) == b"four"
    v6_peer.sendto(b"back", at(v6_relay))
    assert v4.client.recv(100) == framed(b"back", NUMBER + 1)
    until(lambda: v6_counters.to_client_bytes == 4, "the count")
    v4.path.close(OTHER)
    v4.send(framed(b"six", NUMBER + 1))
    v4.send(framed(b"four", NUMBER))
    assert v4.peer.recv(100) == b"four"
    assert v4.dropped("no_channel") == 1


# Peer to client (s11.3, s12.7)


def test_a_peer_with_a_channel_is_heard_as_channel_data(world: World) -> None:
    relay, counters = world.bound()
    for payload in (b"voice", b""):
        world.peer.sendto(payload, at(relay))
        data, source = world.client.recvfrom(100)
        assert (data, source[:2]) == (framed(payload), at(world.listener))
    until(lambda: world.path.stats()["datagrams_out"] == 2, "two datagrams out")
    assert (counters.to_client_packets, counters.to_client_bytes, counters.dropped_packets) == (2, 5, 0)


def test_a_peer_without_a_permission_is_dropped(v4: World) -> None:
    relay, counters = v4.bound()
    stranger = v4.udp("127.0.0.2")
    stranger.sendto(b"lost", at(relay))
    v4.peer.sendto(b"twin", at(relay))
    assert v4.client.recv(100) == framed(b"twin")
    assert (v4.dropped("no_permission"), counters.dropped_packets) == (1, 1)
    assert v4.path.drain() == []


def test_a_peer_with_a_permission_and_no_channel_is_pythons(world: World) -> None:
    relay, counters = world.bound()
    other = world.udp(world.host)
    other.sendto(b"data", at(relay))
    assert world.upcall() == Upcall("peer", b"data", RELAY, at(other))
    assert counters.to_client_packets == 0
    world.peer.sendto(b"twin", at(relay))
    assert world.client.recv(100) == framed(b"twin")


def test_the_largest_datagram_that_is_still_one_with_its_header_passes(v4: World) -> None:
    relay, counters = v4.bound()
    v4.peer.sendto(b"x" * 65_401, at(relay))
    v4.peer.sendto(b"y" * 65_400, at(relay))
    assert v4.client.recv(70_000) == framed(b"y" * 65_400)
    assert (v4.dropped("malformed"), counters.dropped_packets) == (1, 1)
    v4.send(framed(b"z" * 65_400))
    assert v4.peer.recv(70_000) == b"z" * 65_400


# What else clients send


def test_stun_is_pythons(world: World) -> None:
    world.send(STUN)
    assert world.upcall() == Upcall("client", STUN, LISTENER, at(world.client))


def test_what_is_left_after_a_limited_drain_rings_again(v4: World) -> None:
    requests = [STUN[:-1] + bytes([number]) for number in range(5)]
    for request in requests:
        v4.send(request)
    until(lambda: v4.path.stats()["upcalls"] == 5, "five upcalls")
    taken = []
    for _ in range(5):
        assert select.select([v4.path.fileno()], [], [], 5)[0]
        taken += v4.path.drain(1)
    assert [upcall.data for upcall in taken] == requests
    assert v4.path.drain() == []
    assert not select.select([v4.path.fileno()], [], [], 0)[0]


# Relay to relay on one server


def test_two_relays_of_this_server_reach_each_other_inside(world: World) -> None:
    """The sockets stay out of it: neither relay's socket is the address that the other one sends to."""
    callee = world.udp(world.host)
    caller_at, callee_at = (("192.0.2.1", 1000), ("192.0.2.1", 2000)) if not world.is_v6 else (("2001:db8::1", 1000), ("2001:db8::1", 2000))
    sockets = world.udp(world.host), world.udp(world.host)
    caller = world.path.open(RELAY, sockets[0].fileno(), LISTENER, at(world.client), caller_at, now() + HOURS)
    other = world.path.open(OTHER, sockets[1].fileno(), LISTENER, at(callee), callee_at, now() + HOURS)
    world.path.bind(RELAY, NUMBER, callee_at, True, now() + HOURS)
    world.send(framed(b"lost"))
    until(lambda: world.dropped("no_permission") == 1, "a callee without a permission hears nothing")
    world.path.permit(OTHER, caller_at[0], now() + HOURS)
    world.send(framed(b"data"))
    assert world.upcall() == Upcall("peer", b"data", OTHER, caller_at)  # a permission and no channel
    world.path.bind(OTHER, NUMBER + 7, caller_at, True, now() + HOURS)
    world.send(framed(b"voice"))
    assert callee.recv(100) == framed(b"voice", NUMBER + 7)
    until(lambda: other.to_client_packets == 1, "the count")
    assert (caller.from_client_packets, caller.from_client_bytes) == (3, 13)
    assert (other.to_client_bytes, other.dropped_packets) == (5, 1)


def test_a_relayed_address_that_is_not_open_here_is_pythons_unless_it_may_leave(v4: World) -> None:
    v4.bound()
    v4.path.bind(RELAY, NUMBER, at(v4.peer), True, now() + HOURS)
    v4.send(framed(b"up"))
    assert v4.upcall() == Upcall("client", framed(b"up"), LISTENER, at(v4.client))
    v4.path.bind(RELAY, NUMBER, at(v4.peer), True, now() + HOURS, may_leave=True)
    v4.send(framed(b"out"))
    assert v4.peer.recv(100) == b"out"


# Time: C's own clock decides at each datagram, nobody sweeps


def pass_by(deadline: float) -> None:
    while now() <= deadline:
        time.sleep(0.005)


def test_an_allocation_ends_by_the_clock_and_lives_on_where_it_is_extended(v4: World) -> None:
    relay, counters = v4.bound()
    v4.path.extend(RELAY, soon := now() + 0.02)
    pass_by(soon)
    v4.send(framed(b"late"))
    v4.peer.sendto(b"late", at(relay))
    until(lambda: v4.dropped("no_allocation") == 2, "both late ones dropped")
    v4.path.extend(RELAY, now() + HOURS)
    v4.send(framed(b"twin"))
    assert v4.peer.recv(100) == b"twin"
    v4.peer.sendto(b"twin", at(relay))
    assert v4.client.recv(100) == framed(b"twin")
    until(lambda: v4.path.stats()["datagrams_out"] == 2, "two datagrams out")
    assert (counters.from_client_packets, counters.to_client_packets) == (1, 1)


def test_a_permission_ends_by_the_clock_and_lives_on_where_it_is_refreshed(v4: World) -> None:
    relay, _ = v4.bound()
    v4.path.permit(RELAY, "127.0.0.1", soon := now() + 0.02)
    pass_by(soon)
    v4.peer.sendto(b"late", at(relay))
    until(lambda: v4.dropped("no_permission") == 1, "the late one dropped")
    v4.path.permit(RELAY, "127.0.0.1", now() + HOURS)
    v4.peer.sendto(b"twin", at(relay))
    assert v4.client.recv(100) == framed(b"twin")


def test_a_channel_ends_by_the_clock_and_lives_on_where_it_is_bound_again(v4: World) -> None:
    relay, _ = v4.bound()
    v4.path.bind(RELAY, NUMBER, at(v4.peer), False, soon := now() + 0.02)
    pass_by(soon)
    v4.send(framed(b"late"))
    until(lambda: v4.dropped("no_channel") == 1, "the late one dropped")
    v4.peer.sendto(b"late", at(relay))
    assert v4.upcall().data == b"late"  # its permission is alive
    v4.path.bind(RELAY, NUMBER, at(v4.peer), False, now() + HOURS)
    v4.send(framed(b"twin"))
    assert v4.peer.recv(100) == b"twin"
    v4.peer.sendto(b"twin", at(relay))
    assert v4.client.recv(100) == framed(b"twin")


def test_a_channel_takes_the_place_of_what_had_its_number_or_its_peer(v4: World) -> None:
    relay, _ = v4.bound()
    second = v4.udp("127.0.0.1")
    v4.path.bind(RELAY, NUMBER, at(second), False, now() + HOURS)
    v4.send(framed(b"second"))
    assert second.recv(100) == b"second"
    v4.peer.sendto(b"unbound", at(relay))
    assert v4.upcall().data == b"unbound"
    v4.path.bind(RELAY, NUMBER + 1, at(second), False, now() + HOURS)
    v4.send(framed(b"lost", NUMBER))
    v4.send(framed(b"second", NUMBER + 1))
    assert second.recv(100) == b"second"
    assert v4.dropped("no_channel") == 1


# Rate


def test_relays_of_one_account_share_a_bucket_in_both_directions_and_another_account_does_not(v4: World) -> None:
    v4.path.bucket("ann", 0.0, 100.0)
    v4.path.bucket("bob", 0.0, 100.0)
    others = v4.udp("127.0.0.1"), v4.udp("127.0.0.1")
    relay, first = v4.bound(bucket_id="ann")
    _, second = v4.bound(OTHER, others[0], bucket_id="ann")
    v4.bound(OTHER + 1, others[1], bucket_id="bob")
    v4.send(framed(b"x" * 40))
    assert v4.peer.recv(100) == b"x" * 40
    v4.peer.sendto(b"y" * 40, at(relay))
    assert v4.client.recv(100) == framed(b"y" * 40)
    v4.send(framed(b"z" * 21), others[0])
    v4.send(framed(b"z" * 20), others[0])
    assert v4.peer.recv(100) == b"z" * 20
    v4.peer.sendto(b"y", at(relay))
    until(lambda: v4.dropped("over_rate") == 2, "what is over the rate")
    v4.send(framed(b"bob" * 30), others[1])
    assert v4.peer.recv(100) == b"bob" * 30
    assert (first.dropped_packets, second.dropped_packets) == (1, 1)


def test_a_bucket_fills_with_time_and_takes_new_limits(v4: World) -> None:
    v4.path.bucket("ann", 0.0, 0.0)
    _, counters = v4.bound(bucket_id="ann")
    v4.send(framed(b"lost"))
    until(lambda: v4.dropped("over_rate") == 1, "the first one dropped")
    v4.path.bucket("ann", 1_000.0, 4.0)

    def passes() -> bool:
        v4.send(framed(b"four"))
        return bool(select.select([v4.peer], [], [], 0.002)[0])

    until(passes, "a bucket that has filled")
    until(lambda: counters.from_client_packets >= 1, "the count")


def test_what_python_forwards_is_charged_and_counted_by_the_same_bucket(v4: World) -> None:
    v4.path.bucket("ann", 0.0, 100.0)
    relay, counters = v4.bound(bucket_id="ann")
    assert v4.path.spend(RELAY, 60, is_from_client=True)
    assert v4.path.spend(RELAY, 30, is_from_client=False)
    assert not v4.path.spend(RELAY, 11, is_from_client=True)
    assert (counters.from_client_bytes, counters.to_client_bytes, counters.dropped_packets) == (60, 30, 1)
    other = v4.udp("127.0.0.1")
    other.sendto(b"x" * 11, at(relay))  # it would be handed up, only to be refused there
    other.sendto(b"x" * 10, at(relay))
    assert v4.upcall().data == b"x" * 10
    assert v4.dropped("over_rate") == 2


def test_a_bucket_that_is_dropped_still_limits_the_relays_that_have_it(v4: World) -> None:
    v4.path.bucket("ann", 0.0, 4.0)
    v4.bound(bucket_id="ann")
    v4.path.drop_bucket("ann")
    v4.send(framed(b"four"))
    v4.send(framed(b"lost"))
    assert v4.peer.recv(100) == b"four"
    until(lambda: v4.dropped("over_rate") == 1, "the second one dropped")
    with pytest.raises(KeyError):
        v4.open(OTHER, bucket_id="ann")


# Batches


def test_a_burst_arrives_as_the_datagrams_that_were_sent_in_their_order(world: World) -> None:
    """A burst of one flow may leave as one send that the kernel cuts; the receiver must not see that."""
    relay, counters = world.bound()
    sizes = [100, 100, 100, 50, 100, 0, 100, 100, 1400, 1400, 7, 100] * 8
    payloads = [bytes([number]) * size for number, size in enumerate(sizes)]
    for payload in payloads:
        world.send(framed(payload))
    assert [world.peer.recv(2000) for _ in payloads] == payloads
    for payload in payloads:
        world.peer.sendto(payload, at(relay))
    assert [world.client.recv(2000) for _ in payloads] == [framed(payload) for payload in payloads]
    until(lambda: world.path.stats()["datagrams_out"] == 2 * len(sizes), "all counted")
    assert counters.from_client_bytes == counters.to_client_bytes == sum(sizes)


def test_flows_of_many_clients_and_peers_do_not_mix(v4: World) -> None:
    flows = []
    for number in range(40):
        client, peer = v4.udp("127.0.0.1"), v4.udp("127.0.0.1")
        relay, counters = v4.open(number, client)
        v4.path.permit(number, "127.0.0.1", now() + HOURS)
        v4.path.bind(number, NUMBER + number, at(peer), False, now() + HOURS)
        flows.append((number, client, peer, relay, counters))
    for repeat in range(5):
        for number, client, peer, relay, _ in flows:
            v4.send(framed(b"up %d %d" % (number, repeat), NUMBER + number), client)
            peer.sendto(b"down %d %d" % (number, repeat), at(relay))
    for number, client, peer, _, _ in flows:
        assert [peer.recv(100) for _ in range(5)] == [b"up %d %d" % (number, repeat) for repeat in range(5)]
        assert [client.recv(100) for _ in range(5)] == [framed(b"down %d %d" % (number, repeat), NUMBER + number) for repeat in range(5)]
    until(lambda: all(counters.from_client_packets == counters.to_client_packets == 5 for *_, counters in flows), "the counts")


def test_a_datagram_that_cannot_be_sent_is_counted_and_the_next_one_goes_out(v4: World) -> None:
    _, counters = v4.bound()
    v4.path.bind(RELAY, NUMBER + 1, ("127.0.0.1", 0), False, now() + HOURS)  # no such port
    for _ in range(3):
        v4.send(framed(b"lost", NUMBER + 1))
    v4.send(framed(b"twin"))
    assert v4.peer.recv(100) == b"twin"
    until(lambda: v4.dropped("send_failed") == 3, "three that failed")
    assert (counters.from_client_packets, counters.dropped_packets) == (1, 3)


def test_errors_that_somebody_asked_a_socket_for_do_not_keep_the_thread_busy(v4: World) -> None:
    relay, _ = v4.bound()
    relay.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = at(closed)
    v4.path.bind(RELAY, NUMBER + 1, nobody, False, now() + HOURS)
    v4.send(framed(b"refused", NUMBER + 1))

    def rests() -> bool:
        before = v4.path.stats()["rounds"]
        time.sleep(0.02)
        return v4.path.stats()["rounds"] == before > 1

    until(rests, "a thread that waits")
    v4.send(framed(b"lost, for it gets the error"))
    v4.send(framed(b"twin"))
    until(lambda: v4.peer.recv(100) == b"twin", "the datagram after it")


# The end of relays, listeners and paths


def test_a_closed_relays_socket_is_python_s_again_and_its_upcalls_are_gone(v4: World) -> None:
    relay, counters = v4.bound()
    other = v4.udp("127.0.0.1")
    other.sendto(b"stale", at(relay))
    until(lambda: v4.path.stats()["upcalls"] == 1, "an upcall")
    v4.path.close(RELAY)
    v4.peer.sendto(b"unread", at(relay))
    v4.send(framed(b"lost"))
    until(lambda: v4.dropped("no_allocation") == 1, "its ChannelData dropped")
    assert relay.recv(100) == b"unread"
    assert counters.dropped_packets == 0
    v4.bound()  # the id again, for another allocation
    assert v4.path.drain() == []
    v4.send(framed(b"twin"))
    assert v4.peer.recv(100) == b"twin"


def test_a_listener_that_is_left_alone_is_python_s_again(v4: World) -> None:
    relay, counters = v4.bound()
    v4.path.unlisten(LISTENER)
    v4.send(framed(b"unread"))
    assert v4.listener.recv(100) == framed(b"unread")
    v4.peer.sendto(b"lost", at(relay))
    until(lambda: counters.dropped_packets == 1, "an answer that has no way out")
    v4.path.close(RELAY)
    v4.path.listen(LISTENER, v4.listener.fileno())
    v4.bound()
    v4.send(framed(b"twin"))
    assert v4.peer.recv(100) == b"twin"


def test_listeners_come_and_go(v4: World) -> None:
    for number in range(200):
        v4.path.listen(1, v4.client.fileno())
        v4.bound(number, v4.peer, listener_id=1)
        v4.path.unlisten(1)
        v4.path.close(number)
    v4.bound()
    v4.send(framed(b"twin"))
    assert v4.peer.recv(100) == b"twin"


def test_a_stopped_path_leaves_its_sockets_alone_and_takes_no_more_calls(library: Library) -> None:
    with World(library) as world:
        world.bound()
        world.path.stop()
        world.path.stop()
        world.send(b"unread")
        assert world.listener.recv(100) == b"unread"
        with pytest.raises(TypeError):
            world.path.stats()


def test_a_path_that_is_forgotten_ends_by_itself(library: Library) -> None:
    def threads() -> int:
        return sum(Path(f"/proc/self/task/{task}/comm").read_text() == "turn-datapath\n" for task in os.listdir("/proc/self/task"))

    path = CompiledPath(library)
    until(lambda: threads() == 1, "its thread")
    del path
    assert threads() == 0


# What the caller may not ask


def test_wrong_calls_are_refused_and_change_nothing(v4: World) -> None:
    relay, _ = v4.bound()
    path, client, later = v4.path, at(v4.client), now() + HOURS
    spare = v4.udp("127.0.0.1")
    with pytest.raises(ValueError, match="is open"):
        path.open(RELAY, spare.fileno(), LISTENER, client, at(spare), later)
    with pytest.raises(OSError, match="File exists"):
        path.open(OTHER, relay.fileno(), LISTENER, client, at(relay), later)
    with pytest.raises(OSError, match="Bad file"):
        path.open(OTHER, 1_000_000, LISTENER, client, at(spare), later)
    with pytest.raises(OSError, match="No such"):
        path.open(OTHER, spare.fileno(), 9, client, at(spare), later)
    with pytest.raises(OSError, match="No such"):
        path.unlisten(9)
    with pytest.raises(OSError, match="File exists"):
        path.listen(LISTENER, spare.fileno())
    for number in (0x3FFF, 0x5000):
        with pytest.raises(OSError, match="Invalid"):
            path.bind(RELAY, number, at(spare), False, later)
    with pytest.raises(OSError, match="family"):
        path.bind(RELAY, NUMBER, ("::1", 9), False, later)
    with pytest.raises(OSError, match="family"):
        path.permit(RELAY, "::1", later)
    with pytest.raises(OSError, match="Invalid"):
        path.bucket("ann", float("nan"), 1.0)
    with pytest.raises(KeyError):
        path.close(OTHER)
    with pytest.raises(KeyError):
        path.permit(OTHER, "127.0.0.1", later)
    v4.send(framed(b"twin"))
    assert v4.peer.recv(100) == b"twin"


def test_permissions_and_channels_of_one_relay_have_an_end_and_those_that_are_over_make_room(v4: World) -> None:
    v4.bound()
    soon = now() + 0.5
    for number in range(1023):
        v4.path.permit(RELAY, f"10.0.{number >> 8}.{number & 255}", soon)
        v4.path.bind(RELAY, NUMBER + 1 + number, ("10.0.0.1", 1000 + number), False, soon)
    if now() < soon:  # on a machine that is not too slow
        with pytest.raises(OSError, match="No space"):
            v4.path.permit(RELAY, "10.1.1.1", soon)
    pass_by(soon)
    v4.path.permit(RELAY, "10.1.1.1", now() + HOURS)
    v4.path.bind(RELAY, NUMBER + 1, ("10.1.1.1", 1000), False, now() + HOURS)
    v4.send(framed(b"twin"))
    assert v4.peer.recv(100) == b"twin"


# Floods, races, memory


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_full_ring_loses_requests_and_nothing_that_is_forwarded(v4: World) -> None:
    v4.bound()
    before, flooded = resident(), 20_000
    for number in range(flooded):
        v4.send(STUN)
        if number % 100 == 0:  # no more than a listener holds
            v4.send(framed(b"%d" % number))
            assert v4.peer.recv(100) == b"%d" % number
    assert v4.dropped("ring_full") > 0
    assert resident() - before < 8_000_000
    taken = 0
    while found := v4.path.drain():
        taken += len(found)
    assert taken == v4.path.stats()["upcalls"]
    v4.send(STUN)
    assert v4.upcall().data == STUN


def test_peers_without_channels_leave_room_in_the_ring_for_requests(v4: World) -> None:
    relay, _ = v4.bound()
    other = v4.udp("127.0.0.1")
    until(lambda: [other.sendto(b"x" * 1000, at(relay)) for _ in range(50)] and v4.dropped("ring_full") > 0, "a ring that peers have filled")
    v4.send(STUN)
    until(lambda: v4.path.stats()["datagrams_in"] and any(upcall.kind == "client" for upcall in v4.path.drain(2_000)), "the request")


def test_garbage_neither_ends_the_path_nor_grows_it(v4: World) -> None:
    relay, _ = v4.bound()
    draw = random.Random(8656)
    stranger = v4.udp("127.0.0.2")
    starts = [b"", b"\x40\x00", b"\x40\x00\x00\x04", b"\x4f\xff\xff\xff", STUN, STUN[:8], b"\x00\x03\x00\x08"]
    ends_at, rounds = time.monotonic() + 1.0, 0
    before = resident()
    while time.monotonic() < ends_at:
        rounds += 1
        for _ in range(50):
            data = draw.choice(starts) + draw.randbytes(draw.choice((0, 1, 3, 4, 20, 100, 1500, 9000)))
            v4.send(data, draw.choice((v4.client, stranger)))
            draw.choice((v4.peer, stranger)).sendto(data, at(relay))
        for upcall in v4.path.drain(1_000):
            assert upcall.kind == "client"
            assert upcall.data[4:8] == STUN[4:8]
        for receiver in (v4.client, v4.peer):  # what was valid by chance
            while select.select([receiver], [], [], 0)[0]:
                receiver.recv(70_000)
    assert rounds

    def is_alive() -> bool:
        """Again until it comes: sockets that are full of garbage lose it."""
        v4.send(framed(b"alive"))
        while select.select([v4.peer], [], [], 0.01)[0]:
            if v4.peer.recv(70_000) == b"alive":
                return True
        return False

    until(is_alive, "a datagram after the garbage")
    assert resident() - before < 8_000_000


def test_relays_open_and_close_while_datagrams_flow(library: Library) -> None:
    """Python changes every table and closes sockets, whose numbers come again at once, under traffic; the lasting relay loses nothing."""
    with World(library) as world:
        _, lasting = world.bound()
        briefs, clients = world.udp("127.0.0.1"), [world.udp("127.0.0.1") for _ in range(8)]
        heard: list[bytes] = []
        is_over = threading.Event()

        def talk() -> None:
            while not is_over.is_set():
                said = b"%d" % len(heard)
                world.send(framed(said))
                for client in clients:
                    world.send(framed(b"brief"), client)
                heard.append(world.peer.recv(100))
                if heard[-1] != said:
                    return

        talking = threading.Thread(target=talk)
        talking.start()
        ends_at, opened, carried = time.monotonic() + 1.0, 0, 0
        while time.monotonic() < ends_at:
            relays = {relay_id: world.open(relay_id, client) for relay_id, client in enumerate(clients, opened)}
            for relay_id, (relay, _) in relays.items():
                world.path.permit(relay_id, "127.0.0.1", now() + HOURS)
                world.path.bind(relay_id, NUMBER, at(briefs), False, now() + HOURS)
                briefs.sendto(b"back", at(relay))
            for relay_id, (relay, counters) in relays.items():
                world.path.close(relay_id)
                world.sockets.remove(relay)
                relay.close()
                carried += counters.from_client_packets
            opened += len(relays)
            while select.select([briefs], [], [], 0)[0]:
                assert briefs.recv(100) == b"brief"
        is_over.set()
        talking.join(10)
        assert not talking.is_alive()
        assert heard == [b"%d" % number for number in range(len(heard))]
        until(lambda: lasting.from_client_packets == len(heard), "the counts")
        assert lasting.dropped_packets == world.dropped("send_failed") == 0
        assert opened
        print(f"{opened} relays opened and closed, {carried} datagrams through them, {len(heard)} through the lasting one")


def test_an_allocation_costs_little_memory(v4: World) -> None:
    """Two permissions and two channels each; counted as what the process holds, tables, counters and Python's objects included."""
    count = 4_000
    fds = [os.dup(v4.peer.fileno()) for _ in range(count)]
    try:
        before = resident()
        for number, fd in enumerate(fds):
            client, relayed = ("10.0.0.1", number + 1), ("192.0.2.1", number + 1)
            v4.path.open(number, fd, LISTENER, client, relayed, now() + HOURS)
            for host in (1, 2):
                v4.path.permit(number, f"10.0.0.{host}", now() + HOURS)
                v4.path.bind(number, NUMBER + host, (f"10.0.0.{host}", 5000), False, now() + HOURS)
        each = (resident() - before) / count
        print(f"{each:.0f} bytes an allocation")
        for number in range(count):
            v4.path.close(number)
    finally:
        for fd in fds:
            os.close(fd)
    assert each < RELAY_BYTES / 3
