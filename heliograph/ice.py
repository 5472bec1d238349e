"""Time-limited relay credentials: the TURN REST draft (draft-uberti-behave-turn-rest-00) and the long-term key of RFC 8489 s9.2.2.

Knows no network: the function that hands credentials out and the relay that checks them share these lines.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TurnSecrets:
    """The relay's shared secret and the one before it: both are accepted, only `current` signs."""

    current: str
    previous: str | None = None

    @classmethod
    def of(cls, stored: Mapping[str, object]) -> TurnSecrets:
        """From the stored form `{current, previous}`; ValueError when there is no current secret."""
        current, previous = stored.get("current"), stored.get("previous")
        if not isinstance(current, str) or not current:
            raise ValueError("The relay's secret has no `current`.")
        return cls(current, previous if isinstance(previous, str) and previous else None)

    def both(self) -> tuple[str, ...]:
        """Every secret that a password may have been made with, the newest first."""
        return (self.current,) if self.previous is None else (self.current, self.previous)


@dataclass(frozen=True, slots=True)
class TurnUser:
    """What a relay user name says: until when, and for whom."""

    expiry_s: int
    account_id: str
    device_id: str


def turn_username(expiry_s: int, account_id: str, device_id: str) -> str:
    """`expiry:account_id:device_id`; the expiry is Unix seconds."""
    return f"{expiry_s}:{account_id}:{device_id}"


def parse_turn_username(username: str) -> TurnUser:
    """The parts of `turn_username`; ValueError for any other form."""
    expiry, _, rest = username.partition(":")
    account_id, _, device_id = rest.partition(":")
    if not (expiry.isascii() and expiry.isdigit() and len(expiry) <= 12 and account_id and device_id) or ":" in device_id:
        raise ValueError("A relay user name is expiry:account_id:device_id.")
    return TurnUser(int(expiry), account_id, device_id)


def turn_password(secret: str, username: str) -> str:
    """base64(HMAC-SHA1(secret, username)), the secret as its UTF-8 bytes."""
    return base64.b64encode(hmac.digest(secret.encode(), username.encode(), "sha1")).decode()


def turn_key(username: str, realm: str, password: str) -> bytes:
    """The long-term key MD5(username:realm:password) that signs STUN messages."""
    return hashlib.md5(f"{username}:{realm}:{password}".encode(), usedforsecurity=False).digest()


def turn_keys(username: str, realm: str, secrets: TurnSecrets) -> tuple[bytes, ...]:
    """The keys this user name may sign with, one per accepted secret."""
    return tuple(turn_key(username, realm, turn_password(secret, username)) for secret in secrets.both())
