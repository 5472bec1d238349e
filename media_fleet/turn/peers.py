"""Which peers the relay may send to (RFC 8656 s21.2.2, s21.4): a public relay must not be a way into its own network.

Sources: IANA's special-purpose registries (RFC 6890 and its updates to RFC 9780), the clouds' metadata addresses, CVE-2020-26262 and CVE-2026-27624.
Refused is what the registries do not call globally reachable, with everything inside it, and what wraps an IPv4 address; docs/relay-peers.md has the table.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from media_fleet.stun import Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DENIED: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this network; 0.0.0.0 reaches loopback (CVE-2020-26262)"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "carrier-grade NAT; 100.100.100.200 Alibaba's metadata"),
    ("127.0.0.0/8", "loopback"),
    ("168.63.129.16/32", "Azure's platform address: its agent, DNS and health probes, at a public address"),
    ("169.254.0.0/16", "link-local; 169.254.169.254 metadata, 169.254.170.2 and 169.254.170.23 container credentials"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments; 192.0.0.192 Oracle's metadata"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relay anycast, deprecated"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved, with broadcast"),
    ("::/128", "unspecified; reaches loopback (CVE-2020-26262)"),
    ("::1/128", "loopback (CVE-2020-26262)"),
    ("::/96", "IPv4-compatible, deprecated (RFC 4291)"),
    ("::ffff:0:0/96", "IPv4-mapped (CVE-2026-27624)"),
    ("::ffff:0:0:0/96", "IPv4-translated (RFC 2765)"),
    ("64:ff9b::/96", "NAT64: reaches IPv4 behind our own translator"),
    ("64:ff9b:1::/48", "local NAT64 (RFC 8215)"),
    ("100::/64", "discard"),
    ("100:0:0:1::/64", "dummy prefix (RFC 9780)"),
    ("2001::/23", "protocol assignments, with Teredo (RFC 8656 s21.4), benchmarking, ORCHID"),
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4 (RFC 8656 s21.4)"),
    ("3fff::/20", "documentation (RFC 9637)"),
    ("5f00::/16", "segment routing (RFC 9602)"),
    ("fc00::/7", "unique local; fd00:ec2::254 AWS's, fd20:ce::254 Google's metadata, fd00:ec2::23 container credentials"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local, deprecated (RFC 3879)"),
    ("ff00::/8", "multicast"),
    ("::/3", "not global unicast, which is 2000::/3 (RFC 4291 s2.4)"),
    ("4000::/2", "not global unicast"),
    ("8000::/1", "not global unicast"),
)
TUNNELS = ("2001::/32", "2002::/16")  # Teredo and 6to4: neither peers nor clients (RFC 8656 s21.4)
# What no CIDR allows: other names of IPv4 hosts, at places where the IPv4 address cannot be judged for certain or the RFC leaves no choice.
NEVER = ("::ffff:0:0/96", "64:ff9b:1::/48", *TUNNELS)
_DENIED: tuple[Network, ...] = tuple(ipaddress.ip_network(text) for text, _ in DENIED)
_NEVER: tuple[Network, ...] = tuple(ipaddress.ip_network(text) for text in NEVER)
_WRAPPING: tuple[Network, ...] = tuple(ipaddress.ip_network(text) for text in ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96"))
_ISATAP = 0x00005EFE  # RFC 5214 s6.1: the upper half of the interface identifier, whatever its "universal" bit is
_TUNNELS: tuple[Network, ...] = tuple(ipaddress.ip_network(text) for text in TUNNELS)
_REMEMBERED = 4096


def is_tunnelled(host: str) -> bool:
    """Whether the address is of TUNNELS."""
    return ":" in host and any(ipaddress.ip_address(host) in network for network in _TUNNELS)


class PeerPolicy:
    """`allowed` CIDRs override the deny list; `own` addresses (listener, stats) are refused whatever is allowed.

    The relay's own addresses are allowed for its relay `ports` only, so that two clients of one relay reach each other and nothing else on the host.
    """

    def __init__(self, allowed: Collection[str] = (), own: Collection[Address] = (), relay_hosts: Collection[str] = (), ports: range = range(0)) -> None:
        self._allowed: tuple[Network, ...] = tuple(ipaddress.ip_network(text) for text in allowed)
        self._own = frozenset(own)
        self._own_ports = frozenset(port for _, port in own)
        self._relay_hosts, self._ports = frozenset(relay_hosts), ports
        self._verdicts: dict[str, tuple[bool, bool]] = {}

    def allows_ip(self, host: str) -> bool:
        """For CreatePermission, which knows no port (RFC 8656 s9)."""
        is_reachable, is_allowed = self._verdict(host)
        return is_reachable or is_allowed or host in self._relay_hosts

    def allows(self, peer: Address) -> bool:
        """For ChannelBind and Send."""
        host, port = peer
        is_reachable, is_allowed = self._verdict(host)
        if port == 0 or peer in self._own or (port in self._own_ports and ipaddress.ip_address(host).is_loopback):
            return False
        if host in self._relay_hosts and not is_allowed:
            return port in self._ports
        return is_reachable or is_allowed

    def is_listed(self, host: str) -> bool:
        """Whether an `allowed` CIDR names this host."""
        return self._verdict(host)[1]

    def _verdict(self, host: str) -> tuple[bool, bool]:
        found = self._verdicts.get(host)
        if found is None:
            if len(self._verdicts) >= _REMEMBERED:
                self._verdicts.clear()
            found = self._verdicts[host] = self._judge(host)
        return found

    def _judge(self, host: str) -> tuple[bool, bool]:
        """(outside the deny list, inside the allow list). What wraps an IPv4 address is only as good as that one, and in NEVER it is neither."""
        ip = ipaddress.ip_address(host)
        if any(ip in network for network in _NEVER):
            return False, False
        inner = _inner(ip)
        if inner is not None and not any(self._judge(inner)):
            return False, False
        return not any(ip in network for network in _DENIED), any(ip in network for network in self._allowed)


def _inner(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str | None:
    """The IPv4 address in the last 32 bits of an address that wraps one. `::` and `::1` wrap none."""
    number = int(ip)
    if ip.version == 4 or (number >> 32 == 0 and number < 1 << 24):
        return None
    if any(ip in network for network in _WRAPPING) or (number >> 32) & 0xFDFFFFFF == _ISATAP:
        return str(ipaddress.IPv4Address(number & 0xFFFFFFFF))
    return None
