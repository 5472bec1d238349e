"""Stateless nonces (RFC 8489 s9.2, s9.2.4): issue time and an HMAC over time and source address, so nothing is kept before authentication."""

from __future__ import annotations

import base64
import hmac

from media_fleet.stun import Address

COOKIE = b"obMatJos2AAAA"  # RFC 8489 s9.2: this server knows that RFC, and uses none of its optional security features


class Nonces:
    """Makes and checks nonces; each is good for one source IP and port and for `lifetime_s`."""

    def __init__(self, key: bytes, lifetime_s: int) -> None:
        self._key, self._lifetime_s = key, lifetime_s

    def make(self, client: Address, now: float) -> bytes:
        """Another one every second."""
        return self._nonce(int(now) & 0xFFFFFFFF, client)

    def is_fresh(self, nonce: bytes, client: Address, now: float) -> bool:
        """Whether we made it, for this source, not longer ago than its lifetime."""
        try:
            issued = int.from_bytes(base64.b64decode(nonce[len(COOKIE) :], validate=True)[:4], "big")
        except ValueError:
            return False
        return hmac.compare_digest(nonce, self._nonce(issued, client)) and (int(now) - issued) & 0xFFFFFFFF <= self._lifetime_s

    def _nonce(self, issued: int, client: Address) -> bytes:
        """The cookie, and in base64 four bytes of time and eight of HMAC."""
        mac = hmac.digest(self._key, b"%08x|%b|%d" % (issued, client[0].encode(), client[1]), "sha256")[:8]
        return COOKIE + base64.b64encode(issued.to_bytes(4, "big") + mac)
