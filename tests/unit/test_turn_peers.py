"""Which peers the relay may reach: each refusal beside its passing twin."""

from __future__ import annotations

import ipaddress

import pytest

from media_fleet.turn import DENIED, PeerPolicy

RELAY_PORTS = range(49_152, 65_536)
PUBLIC = PeerPolicy()

# One row per denied range: an address inside it, and the nearest public one outside (None: the neighbours are denied as well).
RANGES: dict[str, tuple[list[str], list[str]]] = {
    "0.0.0.0/8": (["0.0.0.0", "0.255.255.255"], ["1.0.0.0"]),
    "10.0.0.0/8": (["10.0.0.0", "10.255.255.255"], ["9.255.255.255", "11.0.0.0"]),
    "100.64.0.0/10": (["100.64.0.0", "100.127.255.255"], ["100.63.255.255", "100.128.0.0"]),
    "127.0.0.0/8": (["127.0.0.1", "127.255.255.255"], ["126.255.255.255", "128.0.0.0"]),
    "169.254.0.0/16": (["169.254.169.254", "169.254.170.2"], ["169.253.255.255", "169.255.0.0"]),
    "172.16.0.0/12": (["172.16.0.0", "172.31.255.255"], ["172.15.255.255", "172.32.0.0"]),
    "192.0.0.0/24": (["192.0.0.1", "192.0.0.255"], ["191.255.255.255", "192.0.1.0"]),
    "192.0.2.0/24": (["192.0.2.1", "192.0.2.255"], ["192.0.1.255", "192.0.3.0"]),
    "192.88.99.0/24": (["192.88.99.1"], ["192.88.98.255", "192.88.100.0"]),
    "192.168.0.0/16": (["192.168.0.1", "192.168.255.255"], ["192.167.255.255", "192.169.0.0"]),
    "198.18.0.0/15": (["198.18.0.0", "198.19.255.255"], ["198.17.255.255", "198.20.0.0"]),
    "198.51.100.0/24": (["198.51.100.7"], ["198.51.99.255", "198.51.101.0"]),
    "203.0.113.0/24": (["203.0.113.7"], ["203.0.112.255", "203.0.114.0"]),
    "224.0.0.0/4": (["224.0.0.1", "239.255.255.255"], ["223.255.255.255"]),
    "240.0.0.0/4": (["240.0.0.0", "255.255.255.255"], []),
    "::/128": (["::"], ["2606:4700::1111"]),
    "::1/128": (["::1"], ["2606:4700::1111"]),
    "::ffff:0:0/96": (["::ffff:127.0.0.1", "::ffff:8.8.8.8"], ["2606:4700::1111"]),
    "64:ff9b::/96": (["64:ff9b::7f00:1"], ["64:ff9b::1:0:0"]),
    "64:ff9b:1::/48": (["64:ff9b:1::1"], ["64:ff9b:2::1"]),
    "100::/64": (["100::1"], ["100:0:0:1::1"]),
    "2001::/23": (["2001::1", "2001:1ff::1"], ["2001:200::1"]),
    "2001:db8::/32": (["2001:db8::1"], ["2001:db7::1", "2001:db9::1"]),
    "2002::/16": (["2002:7f00:1::"], ["2003::1"]),
    "fc00::/7": (["fc00::1", "fdff::1"], ["fbff::1"]),
    "fd00:ec2::254/128": (["fd00:ec2::254"], ["2606:4700::1111"]),
    "fe80::/10": (["fe80::1", "febf::1"], ["fe7f::1"]),
    "ff00::/8": (["ff02::1"], ["2606:4700::1111"]),
}


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
        assert PUBLIC.allows_ip(host), host
        assert PUBLIC.allows((host, 443)), host


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
