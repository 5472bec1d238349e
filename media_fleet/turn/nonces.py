"""Stateless nonces (RFC 8489 s9.2, s9.2.4): issue time and an HMAC over time and source address, so nothing is kept before authentication."""

from __future__ import annotations

import hmac

from media_fleet.stun import Address


class Nonces:
    """Makes and checks nonces; each is good for one source IP and port and for `lifetime_s`."""

    def __init__(self, key: bytes, lifetime_s: int) -> None:
        self._key, self._lifetime_s = key, lifetime_s

    def make(self, client: Address, now: float) -> bytes:
        """Another one every second: 8 hex digits of time, 16 of HMAC."""
        issued = b"%08x" % (int(now) & 0xFFFFFFFF)
        return issued + self._mac(issued, client)

    def is_fresh(self, nonce: bytes, client: Address, now: float) -> bool:
        """Whether we made it, for this source, not longer ago than its lifetime."""
        issued, mac = nonce[:8], nonce[8:]
        if not hmac.compare_digest(mac, self._mac(issued, client)):
            return False
        return (int(now) - int(issued, 16)) & 0xFFFFFFFF <= self._lifetime_s

    def _mac(self, issued: bytes, client: Address) -> bytes:
        return hmac.digest(self._key, b"%b|%b|%d" % (issued, client[0].encode(), client[1]), "sha256")[:8].hex().encode()
