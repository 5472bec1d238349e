"""A relay of several processes on loopback: who serves whom, what passes between them, and who notices when one is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aioice.turn import create_turn_endpoint

from heliograph.ice import TurnSecrets, turn_password, turn_username
from media_fleet.datapath import build
from media_fleet.readings import AllocationUsage, RelayReading
from media_fleet.relay import CannotListen, Relay, RelayConfig, text_of
from media_fleet.stun import Address
from media_fleet.tls import TlsFiles
from media_fleet.turn import shared_secrets, static_users
from media_fleet.workers import WorkerPool
from tests.certificates import make_certificates
from tests.turn_client import CHANNEL, Refused, TurnClient

pytestmark = pytest.mark.asyncio(loop_scope="module")
REALM, LOOPBACK, ELSEWHERE = "heliograph", ("127.0.0.0/8",), "127.0.0.2"  # where peers are: a relay's own address is its workers'


def config(**changes: Any) -> RelayConfig:
    values = {"realm": REALM, "credentials": static_users({"ann": "pass"}, REALM), "listen": (("127.0.0.1", 0),), "allow_peers": LOOPBACK}
    return RelayConfig(**{**values, **changes})


@pytest.fixture(scope="module", params=["python", "compiled"])
def data_path(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled" and not build.LIBRARY.exists():
        build.build()
    return str(request.param)


@pytest.fixture(scope="module")
def ended() -> list[AllocationUsage]:
    """What the pool told of ended allocations."""
    return []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(data_path: str, ended: list[AllocationUsage]) -> AsyncIterator[WorkerPool]:
    own = (("127.0.0.1", 9_999),)
    settings = config(data_path=data_path, listen_tcp=(("127.0.0.1", 0),), stats_listen=("127.0.0.1", 0), no_peers=own)
    async with WorkerPool(settings, 2, ended.append) as running:
        yield running


@contextmanager
def clients(server: Address, count: int) -> Iterator[list[TurnClient]]:
    """With an allocation each."""
    made = [TurnClient(server) for _ in range(count)]
    try:
        for client in made:
            client.allocate()
        yield made
    finally:
        for client in made:
            client.close()


@contextmanager
def one_of_each(server: Address) -> Iterator[tuple[TurnClient, TurnClient]]:
    """A client of either worker."""
    with ExitStack() as open_ones:
        served: dict[int, TurnClient] = {}
        for _ in range(40):
            client = open_ones.enter_context(closing(TurnClient(server)))
            served.setdefault(worker_of(client.allocate()), client)
            if len(served) == 2:
                yield served[0], served[1]
                return
        raise AssertionError(f"40 ports, and all at the same worker: {served}")


def served(server: Address, username: str = "ann", password: str = "pass", *, count: int) -> Counter[int]:  # noqa: S107
    """Who gave so many clients their allocations: numbers of workers, or codes of refusals."""
    by: Counter[int] = Counter()
    with ExitStack() as open_ones:
        for _ in range(count):
            client = open_ones.enter_context(closing(TurnClient(server, username, password)))
            try:
                by[worker_of(client.allocate())] += 1
            except Refused as refused:
                by[refused.code] += 1
    return by


def worker_of(relayed: Address) -> int:
    return relayed[1] // 2 % 2


@contextmanager
def peer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((ELSEWHERE, 0))
        made.settimeout(10)
        yield made


def round_trip(client: TurnClient, there: socket.socket, data: bytes) -> None:
    """To the peer and back, by the channel."""
    client.send(data)
    arrived, relayed = there.recvfrom(2_000)
    assert (arrived, relayed) == (data, client.relayed)
    there.sendto(data[::-1], relayed)
    assert client.receive() == (data[::-1], CHANNEL)


async def until(holds: Callable[[], object], missing: str, seconds: float = 30.0) -> None:
    """Waits until `holds`; fails with what is still missing."""
    async with asyncio.timeout(seconds):
        while not holds():
            assert missing
            await asyncio.sleep(0.02)


def grown(before: RelayReading, after: RelayReading) -> tuple[int, int, int]:
    """Allocations, and payload bytes from and to clients."""
    assert after.dropped["network"] == 0
    carried = after.from_client_bytes - before.from_client_bytes, after.to_client_bytes - before.to_client_bytes
    return after.allocations - before.allocations, *carried


def process_file(pid: int, name: str) -> list[bytes]:
    """What the kernel keeps between zeros."""
    return Path(f"/proc/{pid}/{name}").read_bytes().split(b"\0")


def children() -> set[int]:
    """The pids of our child processes."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


# Who serves whom


async def test_clients_of_one_address_are_shared_among_the_workers_and_each_stays_with_its_own(pool: WorkerPool) -> None:
    await pool.look()
    before = pool.reading()
    with clients(pool.address, 24) as made, peer() as there:
        assert {worker_of(client.relayed) for client in made} == {0, 1}  # else once in 8 million runs
        for client in made:
            client.bind(there.getsockname())
            round_trip(client, there, b"hello")
            client.refresh(600)
        assert pool.hosts == ("127.0.0.1",)
        await pool.look()
        assert grown(before, pool.reading()) == (24, 120, 120)
        told = {usage.relayed_address: usage for usage in pool.living()}
        assert [told[text_of(client.relayed)].from_client_packets for client in made] == [1] * 24
        for client in made:
            client.refresh(0)
        await pool.look()
        assert grown(before, pool.reading()) == (0, 120, 120)
        assert {text_of(client.relayed) for client in made} <= {told["relayed_address"] for told in pool.allocations() if told["ended_at_ms"]}


async def test_both_workers_accept_from_one_listener_of_tcp(pool: WorkerPool) -> None:
    (address,) = pool.addresses["tcp"]
    served = set()
    for _ in range(200):  # whoever wakes first accepts
        transport, _ = await create_turn_endpoint(asyncio.DatagramProtocol, address, "ann", "pass", transport="tcp")
        served.add(worker_of(transport.get_extra_info("sockname")))
        transport.close()
        if served == {0, 1}:
            break
    assert served == {0, 1}


async def test_one_process_has_the_ports_of_both_and_no_child() -> None:
    def talk(server: Address) -> None:
        with one_of_each(server) as (ann, bob), peer() as there:
            for client in (ann, bob):
                client.bind(there.getsockname())
                round_trip(client, there, b"hello")
            ann.bind(bob.relayed, CHANNEL + 1)
            bob.bind(ann.relayed, CHANNEL + 1)
            ann.send(b"inside", CHANNEL + 1)
            assert bob.receive() == (b"inside", CHANNEL + 1)

    before = children()
    async with Relay(config()) as relay:
        await asyncio.to_thread(talk, relay.address)
        assert relay.reading().capacity == 8_000
        assert children() == before


async def test_the_capacity_of_a_node_is_shared_out() -> None:
    async with WorkerPool(config(max_allocations=2), 2) as pool:
        assert pool.reading().capacity == 2
        assert served(pool.address, count=30) == {0: 1, 1: 1, 508: 28}


# Relay to relay


async def test_relayed_addresses_of_two_workers_reach_each_other_both_ways(pool: WorkerPool) -> None:
    await pool.look()
    before = pool.reading()
    with one_of_each(pool.address) as (ann, bob):
        for one, other in ((ann, bob), (bob, ann)):
            one.bind(other.relayed)
        for one, other in ((ann, bob), (bob, ann)):
            for number in range(20):
                one.send(b"%d" % number)
                one.send_to(b"%d" % number, other.relayed)
                assert [other.receive(), other.receive()] == [(b"%d" % number, CHANNEL)] * 2
            for data in (b"", os.urandom(9_000)):
                one.send(data)
                assert other.receive() == (data, CHANNEL)
        await pool.look()
        after = pool.reading()
        assert grown(before, after)[1:] == (2 * (2 * (10 + 2 * 10) + 9_000),) * 2
        assert after.from_client_packets - before.from_client_packets == after.to_client_packets - before.to_client_packets == 2 * 42


async def test_from_worker_to_worker_nothing_passes_without_the_permission_of_who_receives() -> None:
    """No CIDR is allowed: between relayed addresses none is needed, as inside one worker."""
    async with WorkerPool(config(allow_peers=()), 2) as pool:
        with one_of_each(pool.address) as (ann, bob), ExitStack() as open_ones:
            carl = open_ones.enter_context(closing(TurnClient(pool.address)))
            while worker_of(carl.allocate()) != 1:
                carl = open_ones.enter_context(closing(TurnClient(pool.address)))
            carl.permit(ann.relayed)
            with pytest.raises(Refused) as denied:
                ann.permit((ELSEWHERE, 1))
            assert denied.value.code == 403
            ann.bind(bob.relayed)
            ann.bind(carl.relayed, CHANNEL + 1)
            ann.send(b"too early")
            ann.send(b"for carl", CHANNEL + 1)
            assert carl.receive() == (b"for carl", ann.relayed)  # by the same way, so the one before was judged
            bob.permit(ann.relayed)
            ann.send(b"hello")
            assert bob.receive() == (b"hello", ann.relayed)
            ann.refresh(0)
            bob.bind(ann.relayed)
            bob.send(b"too late")
            bob.refresh(600)
        await pool.look()
        assert (pool.reading().from_client_packets, pool.reading().to_client_packets) == (4, 2)


# The end of a worker


async def test_a_killed_worker_comes_back_its_clients_allocate_anew_and_the_others_lose_nothing(pool: WorkerPool, ended: list[AllocationUsage]) -> None:
    with one_of_each(pool.address) as (ann, bob), peer() as there:
        for client in (ann, bob):
            client.bind(there.getsockname())
            round_trip(client, there, b"before")
        await pool.look()
        relayed, before, killed = bob.relayed, pool.reading(), pool.pids()[1]
        ended.clear()
        os.kill(killed, signal.SIGKILL)
        number = 0
        while number < 100 or pool.pids().get(1, killed) == killed:
            round_trip(ann, there, b"%d" % number)
            number += 1
            await asyncio.sleep(0.002)
        with pytest.raises(Refused) as gone:
            bob.refresh(600)
        assert gone.value.code == 437
        assert worker_of(bob.allocate()) == 1
        bob.bind(there.getsockname())
        round_trip(bob, there, b"after")
        (lost,) = [usage for usage in ended if usage.relayed_address == text_of(relayed)]
        assert (lost.from_client_bytes, lost.to_client_bytes) == (6, 6)
        assert {int(usage.relayed_address.rpartition(":")[2]) // 2 % 2 for usage in ended} == {1}
        await pool.look()
        for sent in grown(before, pool.reading())[1:]:  # what the killed one had told is counted still
            assert sent >= 10


async def test_a_worker_that_hangs_is_replaced() -> None:
    async with WorkerPool(config(), 2, silent_s=2) as pool:
        hung = pool.pids()[0]
        os.kill(hung, signal.SIGSTOP)
        await until(lambda: pool.pids().get(0, hung) != hung, "another process in the place of the one that hangs")
        with one_of_each(pool.address):
            pass


async def test_signals_that_a_terminal_sends_to_all_are_the_parents_business(pool: WorkerPool) -> None:
    pids = pool.pids()
    for pid in pids.values():
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    with one_of_each(pool.address):
        await pool.look()
        assert pool.pids() == pids


async def test_a_draining_pool_takes_no_allocation_and_waits_for_the_living_and_tells_how_they_ended() -> None:
    ended: list[AllocationUsage] = []
    async with WorkerPool(config(drain_s=60), 2, ended.append) as pool:
        with clients(pool.address, 6) as made, peer() as there:
            draining = asyncio.create_task(pool.drain())
            await asyncio.sleep(0)
            await pool.look()
            assert len(list(pool.living())) == 6
            for _ in range(8):
                with closing(TurnClient(pool.address)) as late, pytest.raises(Refused) as full:
                    late.allocate()
                assert full.value.code == 508
            for client in made:
                client.bind(there.getsockname())
                round_trip(client, there, b"still here")
            for client in made[1:]:
                client.refresh(0)
            await until(lambda: len(ended) == 5, "the ends of those that left")
            assert not draining.done()
            made[0].refresh(0)
            await asyncio.wait_for(draining, 30)
    assert [(usage.from_client_bytes, usage.to_client_bytes) for usage in ended] == [(10, 10)] * 6


async def test_the_allocations_that_are_left_when_it_closes_are_told_as_ended() -> None:
    ended: list[AllocationUsage] = []
    async with WorkerPool(config(), 2, ended.append) as pool:
        with clients(pool.address, 6):
            await pool.drain()  # its limit is 0
    assert len(ended) == 6
    assert all(usage.ended_at_ms for usage in ended)
    assert (pool.reading().allocations, pool.reading().refusals[401]) == (0, 6)


# Settings


async def test_a_rotated_secret_reaches_the_workers() -> None:
    secrets = [TurnSecrets("old")]
    async with WorkerPool(config(credentials=shared_secrets(lambda: secrets[-1], REALM)), 2) as pool:
        name = turn_username(2**33, "acc_1", "dev_1")

        def taken(secret: str) -> set[int]:
            return set(served(pool.address, name, turn_password(secret, name), count=12))

        assert (taken("old"), taken("new")) == ({0, 1}, {401})
        secrets.append(TurnSecrets("new"))
        await until(lambda: taken("new") == {0, 1}, "the new secret at both workers")
        assert taken("old") == {401}


async def test_a_certificate_that_comes_later_opens_tls_at_every_worker_and_another_one_takes_its_place(tmp_path: Path) -> None:
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    first, second = map(make_certificates, folders)
    settings = config(listen_tls=(("127.0.0.1", 0),))
    for relay in (WorkerPool(settings, 2), Relay(settings)):
        async with relay:
            assert relay.addresses["tls"] == []
            with pytest.raises(ValueError, match="does not belong"):
                await relay.serve_tls(TlsFiles(str(first.chain), str(second.key)))
            assert relay.addresses["tls"] == []
            for made in (first, second):
                await relay.serve_tls(TlsFiles(str(made.chain), str(made.key)))
                (address,) = relay.addresses["tls"]
                served: set[int] = set()
                async with asyncio.timeout(30):
                    while len(served) < (2 if isinstance(relay, WorkerPool) else 1):
                        served |= await allocated_over_tls(address, made.authority)


async def allocated_over_tls(server: Address, authority: Path) -> set[int]:
    """The worker that gave an allocation, or nobody while the certificate is another authority's."""
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = False
    try:
        transport, _ = await create_turn_endpoint(asyncio.DatagramProtocol, server, "ann", "pass", ssl=context, transport="tcp")
    except ssl.SSLCertVerificationError:
        return set()
    transport.close()
    return {worker_of(transport.get_extra_info("sockname"))}


async def test_no_secret_stands_in_a_command_line_or_an_environment(pool: WorkerPool) -> None:
    for pid in pool.pids().values():
        words = process_file(pid, "cmdline")
        assert words[1:4] == [b"-m", b"media_fleet", b"worker"]
        assert words[4].isdigit()
        assert words[5:] == [b""]
        assert {name.partition(b"=")[0] for name in process_file(pid, "environ")} <= {b"", b"PYTHONPATH", *os.environb}


async def test_an_address_that_is_taken_is_refused_as_by_one_process_and_nothing_is_left(pool: WorkerPool) -> None:
    before = children()
    for taken in ({"listen": (pool.address,)}, {"listen_tcp": tuple(pool.addresses["tcp"])}, {"stats_listen": pool.addresses["tcp"][0]}):
        for refused in (WorkerPool(config(**taken), 2), Relay(config(**taken))):
            with pytest.raises(CannotListen, match="cannot listen on"):
                await refused.start()
    assert children() == before


async def test_what_a_worker_refuses_is_what_the_pool_refuses_and_nothing_is_left() -> None:
    before = children()
    wrong = config(listen_tls=(("127.0.0.1", 0),), tls=TlsFiles("none.pem", "none.pem"))
    for refused in (WorkerPool(wrong, 2), Relay(wrong)):
        with pytest.raises(ValueError, match=r"none\.pem cannot be read"):
            await refused.start()
    assert children() == before


async def test_the_nodes_own_addresses_are_no_peers_of_any_worker(pool: WorkerPool) -> None:
    assert pool.stats_address is not None
    with one_of_each(pool.address) as both:
        for client in both:
            for own in (pool.address, pool.stats_address, ("127.0.0.1", 9_999)):
                with pytest.raises(Refused) as denied:
                    client.bind(own)
                assert denied.value.code == 403
            client.bind(("127.0.0.1", 9_998))


async def test_the_stats_endpoint_tells_of_all_workers(pool: WorkerPool) -> None:
    await pool.look()
    before = pool.reading()
    with clients(pool.address, 8):
        await pool.look()
        reading = pool.reading()
        assert grown(before, reading)[0] == 8
        health = {"status": "ok", "allocations": reading.allocations, "dropped": 0, "workers": 2}
        assert await get(pool, "/healthz") == (200, health)
        assert await get(pool, "/allocations") == (200, pool.allocations())


async def get(pool: WorkerPool, path: str) -> tuple[int, Any]:
    assert pool.stats_address is not None
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{pool.stats_address[1]}{path}") as answer:
        return answer.status, await answer.json()
