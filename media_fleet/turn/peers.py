"""Which peers the relay may send to (RFC 8656 s21.2.2, s21.4): a public relay must not be a way into its own network.

Sources: RFC 6890's special-purpose registries, the cloud metadata addresses, CVE-2020-26262 and CVE-2026-27624.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from media_fleet.stun import Address

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DENIED: tuple[tuple[str, str], ...] = (
    ("0.0.0.0/8", "this network; 0.0.0.0 reaches loopback (CVE-2020-26262)"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "carrier-grade NAT"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local; 169.254.169.254 metadata, 169.254.170.2 container credentials"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.0.2.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relay anycast"),
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "benchmarking"),
    ("198.51.100.0/24", "documentation"),
    ("203.0.113.0/24", "documentation"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved, with broadcast"),
    ("::/128", "unspecified; reaches loopback (CVE-2020-26262)"),
    ("::1/128", "loopback (CVE-2020-26262)"),
    ("::ffff:0:0/96", "IPv4-mapped (CVE-2026-27624)"),
    ("64:ff9b::/96", "NAT64"),
    ("64:ff9b:1::/48", "local NAT64"),
    ("100::/64", "discard"),
    ("2001::/23", "protocol assignments, with Teredo (RFC 8656 s21.4)"),
    ("2001:db8::/32", "documentation"),
    ("2002::/16", "6to4 (RFC 8656 s21.4)"),
    ("fc00::/7", "unique local"),
    ("fd00:ec2::254/128", "metadata over IPv6"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
)
_DENIED: tuple[Network, ...] = tuple(ipaddress.ip_network(text) for text, _ in DENIED)
_REMEMBERED = 4096


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
        """(outside the deny list, inside the allow list). An IPv4-mapped address is neither: over a dual-stack socket it is another name of the inner one."""
        ip = ipaddress.ip_address(host)
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            return False, False
        return not any(ip in network for network in _DENIED), any(ip in network for network in self._allowed)
