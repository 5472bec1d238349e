"""Which peers the relay may reach: each refusal beside its passing twin, by the policy and by every message that can name a peer."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

import pytest

from bench import _turn_world as wire
from bench._turn_world import Read, World
from media_fleet.turn import DENIED, PeerPolicy
from media_fleet.turn.peers import NEVER

RELAY_PORTS = range(49_152, 65_536)
PUBLIC = PeerPolicy()
PUBLIC_6 = "2606:4700::1111"

# One row per denied range: addresses inside it, and the nearest public ones outside, or a public one where the neighbours are denied as well.
RANGES: dict[str, tuple[list[str], list[str]]] = {
    "0.0.0.0/8": (["0.0.0.0", "0.0.0.1", "0.255.255.255"], ["1.0.0.0"]),
    "10.0.0.0/8": (["10.0.0.0", "10.255.255.255"], ["9.255.255.255", "11.0.0.0"]),
    "100.64.0.0/10": (["100.64.0.0", "100.127.255.255", "100.100.100.200"], ["100.63.255.255", "100.128.0.0"]),
    "127.0.0.0/8": (["127.0.0.0", "127.0.0.1", "127.255.255.255"], ["126.255.255.255", "128.0.0.0"]),
    "168.63.129.16/32": (["168.63.129.16"], ["168.63.129.15", "168.63.129.17"]),
    "169.254.0.0/16": (["169.254.0.0", "169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.255.255"], ["169.253.255.255", "169.255.0.0"]),
    "172.16.0.0/12": (["172.16.0.0", "172.31.255.255"], ["172.15.255.255", "172.32.0.0"]),
    "192.0.0.0/24": (["192.0.0.0", "192.0.0.9", "192.0.0.10", "192.0.0.170", "192.0.0.192", "192.0.0.255"], ["191.255.255.255", "192.0.1.0"]),
    "192.0.2.0/24": (["192.0.2.0", "192.0.2.255"], ["192.0.1.255", "192.0.3.0"]),
    "192.88.99.0/24": (["192.88.99.0", "192.88.99.1", "192.88.99.2", "192.88.99.255"], ["192.88.98.255", "192.88.100.0"]),
    "192.168.0.0/16": (["192.168.0.0", "192.168.255.255"], ["192.167.255.255", "192.169.0.0"]),
    "198.18.0.0/15": (["198.18.0.0", "198.19.255.255"], ["198.17.255.255", "198.20.0.0"]),
    "198.51.100.0/24": (["198.51.100.0", "198.51.100.255"], ["198.51.99.255", "198.51.101.0"]),
    "203.0.113.0/24": (["203.0.113.0", "203.0.113.255"], ["203.0.112.255", "203.0.114.0"]),
    "224.0.0.0/4": (["224.0.0.0", "224.0.0.251", "239.255.255.255"], ["223.255.255.255"]),
    "240.0.0.0/4": (["240.0.0.0", "255.255.255.254", "255.255.255.255"], ["223.255.255.255"]),
    "::/128": (["::"], [PUBLIC_6]),
    "::1/128": (["::1"], [PUBLIC_6]),
    "::/96": (["::2", "::7f00:1", "::808:808", "::ffff:ffff"], [PUBLIC_6]),
    "::ffff:0:0/96": (["::ffff:0.0.0.0", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:169.254.169.254", "::ffff:255.255.255.255"], [PUBLIC_6]),
    "::ffff:0:0:0/96": (["::ffff:0:0:0", "::ffff:0:7f00:1", "::ffff:0:808:808", "::ffff:0:ffff:ffff"], [PUBLIC_6]),
    "64:ff9b::/96": (["64:ff9b::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808", "64:ff9b::ffff:ffff"], [PUBLIC_6]),
    "64:ff9b:1::/48": (["64:ff9b:1::", "64:ff9b:1::7f00:1", "64:ff9b:1:7f00:0:100::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff"], [PUBLIC_6]),
    "100::/64": (["100::", "100::ffff:ffff:ffff:ffff"], [PUBLIC_6]),
    "100:0:0:1::/64": (["100:0:0:1::", "100:0:0:1:ffff:ffff:ffff:ffff"], [PUBLIC_6]),
    "2001::/23": (
        ["2001::", "2001::1", "2001:0:53aa:64c:0:7fff:f7f7:f7f7", "2001:1::2", "2001:2::1", "2001:20::1", "2001:1ff:ffff::1"],
        ["2000:ffff::1", "2001:200::"],
    ),
    "2001:db8::/32": (["2001:db8::", "2001:db8:ffff::1"], ["2001:db7:ffff::1", "2001:db9::"]),
    "2002::/16": (["2002::", "2002:7f00:1::", "2002:808:808::1", "2002:ffff:ffff:ffff::1"], ["2001:ffff::1", "2003::"]),
    "3fff::/20": (["3fff::", "3fff:fff:ffff::1"], ["3ffe:ffff::1", "3fff:1000::"]),
    "5f00::/16": (["5f00::", "5f00:ffff::1"], [PUBLIC_6]),
    "fc00::/7": (["fc00::", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fdff:ffff::1"], [PUBLIC_6]),
    "fe80::/10": (["fe80::", "fe80::a9fe:a9fe", "febf:ffff::1"], [PUBLIC_6]),
    "fec0::/10": (["fec0::", "feff:ffff::1"], [PUBLIC_6]),
    "ff00::/8": (["ff00::", "ff02::1", "ff0e::1", "ffff:ffff::1"], [PUBLIC_6]),
    "::/3": (["64:ff9b::1:0:0", "200::1", "1fff:ffff::1"], ["2000::", PUBLIC_6]),
    "4000::/2": (["4000::", "7fff:ffff::1"], ["3fff:ffff::1"]),
    "8000::/1": (["8000::", "fbff:ffff::1"], ["3fff:ffff::1"]),
}

# IANA's special-purpose registries, by what stands in the column Globally Reachable: False, N/A or nothing, True.
NOT_GLOBAL = [
    "0.0.0.0/8",
    "0.0.0.0/32",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.0.0/29",
    "192.0.0.8/32",
    "192.0.0.170/32",
    "192.0.0.171/32",
    "192.0.2.0/24",
    "192.88.99.2/32",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "::1/128",
    "::/128",
    "::ffff:0:0/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001:2::/48",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
]
UNSAID = ["192.88.99.0/24", "2001::/32", "2001:10::/28", "2002::/16"]
GLOBAL = [
    "192.0.0.9/32",
    "192.0.0.10/32",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.175.48.0/24",
    "64:ff9b::/96",
    "2001:1::1/128",
    "2001:1::2/128",
    "2001:1::3/128",
    "2001:3::/32",
    "2001:4:112::/48",
    "2001:20::/28",
    "2001:30::/28",
    "2620:4f:8000::/48",
]
REGISTRY = (*NOT_GLOBAL, *UNSAID, *GLOBAL)
REACHABLE = ("192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24", "2620:4f:8000::/48")  # AS112, AMT: the Internet's, and in no block that is refused


def test_the_table_below_names_every_denied_range() -> None:
    assert [network for network, _ in DENIED] == list(RANGES)


@pytest.mark.parametrize("network", RANGES)
def test_inside_a_denied_range_a_peer_is_refused_and_its_neighbour_outside_passes(network: str) -> None:
    inside, outside = RANGES[network]
    for host in inside:
        assert ipaddress.ip_address(host) in ipaddress.ip_network(network)
        assert not PUBLIC.allows_ip(host), host
        assert not PUBLIC.allows((host, 443)), host
    for host in outside:
        assert ipaddress.ip_address(host) not in ipaddress.ip_network(network)
        assert PUBLIC.allows_ip(host), host
        assert PUBLIC.allows((host, 443)), host


@pytest.mark.parametrize("block", REGISTRY)
def test_the_registries_column_globally_reachable_decides(block: str) -> None:
    network = ipaddress.ip_network(block)
    is_reachable = block in REACHABLE
    assert block in GLOBAL or not is_reachable
    for number in {0, 1, network.num_addresses // 2, network.num_addresses - 1}:
        if number < network.num_addresses:
            assert PUBLIC.allows_ip(str(network[number])) is is_reachable, network[number]


def test_a_block_called_globally_reachable_is_refused_only_inside_one_that_is_not_or_where_it_leads_to_ipv4() -> None:
    refused = [ipaddress.ip_network(block) for block in (*NOT_GLOBAL, *UNSAID)]
    alone = [block for block in GLOBAL if not any(_is_within(block, network) for network in refused)]
    assert alone == [*REACHABLE[:3], "64:ff9b::/96", REACHABLE[3]]


def _is_within(block: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    first = ipaddress.ip_network(block)
    return first.version == network.version and first[0] in network and first[-1] in network


@pytest.mark.parametrize("host", ["0.0.0.0", "::1", "::"])
def test_cve_2020_26262_other_names_of_loopback_are_refused(host: str) -> None:
    assert not PUBLIC.allows((host, 80))
    assert PUBLIC.allows(("8.8.8.8" if "." in host else "2606:4700::1111", 80))


def test_cve_2026_27624_a_mapped_address_is_refused_even_where_the_inner_or_every_address_is_allowed() -> None:
    everything = PeerPolicy(allowed=["127.0.0.0/8", "::/0"])
    for host in ("::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"):
        assert not PUBLIC.allows((host, 80))
        assert not everything.allows((host, 80))
        assert not everything.allows_ip(host)
    assert everything.allows(("127.0.0.1", 80))
    assert everything.allows(("::1", 80))


@pytest.mark.parametrize("network", NEVER)
def test_what_hides_an_ipv4_address_is_refused_whatever_is_allowed(network: str) -> None:
    everything = PeerPolicy(allowed=["0.0.0.0/0", "::/0"])
    for host in (*(host for host in RANGES.get(network, ([], []))[0]), str(ipaddress.ip_network(network)[1])):
        assert not everything.allows((host, 80)), host
    assert everything.allows(("64:ff9b::808:808", 80))
    assert everything.allows(("::1", 80))


@pytest.mark.parametrize("prefix", ["64:ff9b::", "::ffff:0:", "::", "2606:4700::5efe:", "2606:4700::200:5efe:"])
def test_an_allowed_address_that_wraps_an_ipv4_address_is_as_good_as_that_one(prefix: str) -> None:
    policy = PeerPolicy(allowed=["::/0"])
    for inner in ("7f00:1", "a00:1", "a9fe:a9fe", "a9fe:aa02", "a83f:8110", "c0a8:1"):
        assert not policy.allows((prefix + inner, 80)), prefix + inner
    assert policy.allows((prefix + "808:808", 80))
    both = PeerPolicy(allowed=["::/0", "127.0.0.0/8"])
    assert both.allows((prefix + "7f00:1", 80))


def test_an_allowed_cidr_overrides_the_deny_list_and_nothing_beyond_itself() -> None:
    policy = PeerPolicy(allowed=["127.0.0.0/8"])
    assert policy.allows(("127.0.0.9", 5000))
    assert policy.allows_ip("127.0.0.9")
    assert not policy.allows(("10.0.0.9", 5000))
    assert not PUBLIC.allows(("127.0.0.9", 5000))


def test_our_own_listener_is_refused_whatever_is_allowed() -> None:
    policy = PeerPolicy(["127.0.0.0/8"], [("127.0.0.1", 3478), ("127.0.0.1", 9090)], ["127.0.0.1"], RELAY_PORTS)
    for port in (3478, 9090):
        assert not policy.allows(("127.0.0.1", port))
        assert not policy.allows(("127.0.0.2", port))  # a listener on every address has this name as well
    assert policy.allows(("127.0.0.1", 3479))
    assert not policy.allows(("127.0.0.1", 0))


def test_our_own_relay_address_is_allowed_for_relayed_ports_only() -> None:
    policy = PeerPolicy((), [("52.1.2.3", 3478)], ["52.1.2.3"], RELAY_PORTS)
    assert policy.allows_ip("52.1.2.3")
    assert policy.allows(("52.1.2.3", 50_000))
    for port in (22, 3478, 9090, 49_151):
        assert not policy.allows(("52.1.2.3", port))
    private = PeerPolicy((), [("10.0.0.5", 3478)], ["10.0.0.5"], RELAY_PORTS)
    assert private.allows(("10.0.0.5", 50_000))
    assert not private.allows(("10.0.0.6", 50_000))


def test_the_memory_of_verdicts_is_bounded_and_changes_no_verdict() -> None:
    policy = PeerPolicy()
    for number in range(10_000):
        policy.allows_ip(str(ipaddress.IPv4Address(0x08000000 + number)))
    assert len(policy._verdicts) <= 4096
    assert policy.allows_ip("8.0.0.1")
    assert not policy.allows_ip("10.0.0.1")


# The same at each message that can name a peer


@dataclass
class Tried:
    """What CreatePermission, ChannelBind and Send said to the peers of one range, and to its neighbours."""

    refused: int = 0
    passed: int = 0
    of: int = 0
    neighbours: int = 0
    wrong: list[str] = field(default_factory=list)


def allocated(host: str) -> World:
    """A world whose relay has an address of this host's family, and a client with an allocation."""
    world = World(6 if ":" in host else 4)
    answer = world.ask(0, wire.ALLOCATE, ((wire.TRANSPORT, b"\x11\0\0\0"), _family(host)))
    assert answer is not None
    assert answer.error() is None
    return world


def _family(host: str) -> tuple[int, bytes]:
    return wire.FAMILY, b"\x02\0\0\0" if ":" in host else b"\x01\0\0\0"


def named(world: World, method: int, host: str, port: int, who: int = 0) -> int | None:
    """The error code with which a request that names this peer is answered, None for success."""
    transaction_id = world.transaction()
    values = [(wire.PEER_ADDRESS, wire.xor((host, port), transaction_id))] + ([(wire.CHANNEL_NUMBER, b"\x40\x01\0\0")] if method == wire.CHANNEL_BIND else [])
    answer = world.ask(who, method, values, transaction_id=transaction_id)
    assert isinstance(answer, Read)
    return answer.error()


def is_sent(world: World, host: str, port: int) -> bool:
    """Whether a Send indication to this peer leaves the relay, or goes to another client of it."""
    transaction_id = world.transaction()
    before = world.tally["from a client: dropped"]
    world.receive(
        0, wire.message(wire.SEND, wire.INDICATION, transaction_id, [(wire.PEER_ADDRESS, wire.xor((host, port), transaction_id)), (wire.DATA_VALUE, b"x")])
    )
    return world.tally["from a client: dropped"] == before


def permit_behind_its_back(world: World, host: str) -> None:
    """So that Send is refused by its own check, not for want of a permission."""
    for allocation in world.server._allocations.values():
        allocation.permissions[host] = wire.NOW + 300


def try_all(inside: list[str], outside: list[str]) -> Tried:
    tried = Tried()
    for host in inside:
        world = allocated(host)
        codes = [named(world, wire.CREATE_PERMISSION, host, 80), named(world, wire.CHANNEL_BIND, host, 80)]
        permit_behind_its_back(world, host)
        refusals = [code == 403 for code in codes] + [not is_sent(world, host, 80)]
        tried.refused, tried.of = tried.refused + sum(refusals), tried.of + 3
        tried.wrong += [] if all(refusals) else [host]
    for host in outside:
        world = allocated(host)
        passes = [named(world, wire.CREATE_PERMISSION, host, 80) is None, is_sent(world, host, 80), named(world, wire.CHANNEL_BIND, host, 80) is None]
        tried.passed, tried.neighbours = tried.passed + sum(passes), tried.neighbours + 3
        tried.wrong += [] if all(passes) else [host]
    return tried


def test_every_range_is_refused_at_create_permission_channel_bind_and_send_and_its_neighbours_pass(capsys: pytest.CaptureFixture[str]) -> None:
    table = {network: try_all(*rows) for network, rows in RANGES.items()}
    blocks = [str(network[number]) for block in REGISTRY if block not in REACHABLE and (network := ipaddress.ip_network(block)) for number in {0, -1}]
    table["registries"] = try_all(blocks, [str(ipaddress.ip_network(block)[1]) for block in REACHABLE])
    with capsys.disabled():
        cells = [f"{name} {tried.refused}/{tried.of}" for name, tried in table.items()]
        print("\npeers refused at CreatePermission, ChannelBind and Send (why: docs/relay-peers.md):")
        for at in range(0, len(cells), 7):
            print("  " + " · ".join(cells[at : at + 7]))
        print(f"neighbours that pass: {sum(tried.passed for tried in table.values())}/{sum(tried.neighbours for tried in table.values())}")
    assert {name: tried.wrong for name, tried in table.items() if tried.wrong} == {}


@pytest.mark.parametrize("family", [4, 6])
def test_our_own_listener_is_refused_at_channel_bind_and_send_and_our_relay_ports_pass(family: int) -> None:
    host, world = wire.HOSTS[family], allocated(wire.HOSTS[family])
    other = world.ask(1, wire.ALLOCATE, ((wire.TRANSPORT, b"\x11\0\0\0"), _family(host)))
    assert other is not None
    (relay_id,) = world.holdings[world.clients[1]].relays
    assert named(world, wire.CREATE_PERMISSION, host, 0) is None  # by address only: another client of ours may be there
    for refused in (wire.LISTENER[1], 22, 9478, 0):
        assert named(world, wire.CHANNEL_BIND, host, refused) == 403
        assert not is_sent(world, host, refused)
    assert named(world, wire.CHANNEL_BIND, host, relay_id & 0xFFFF) is None
    assert named(world, wire.CREATE_PERMISSION, host, 0, who=1) is None
    assert is_sent(world, host, relay_id & 0xFFFF)
