"""Who may use the relay: a user name and the time in, the keys that may sign for it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from heliograph.ice import TurnSecrets, parse_turn_username, turn_key, turn_keys


@dataclass(frozen=True, slots=True)
class Identity:
    """The account that pays for the allocation, and the long-term keys accepted for the user name."""

    account_id: str
    keys: tuple[bytes, ...]


Credentials = Callable[[str, float], Identity | None]  # (username, now in Unix seconds); None: unknown or expired


def static_users(users: Mapping[str, str], realm: str) -> Credentials:
    """Fixed names and passwords, for measuring."""
    identities = {name: Identity(name, (turn_key(name, realm, password),)) for name, password in users.items()}
    return lambda username, now: identities.get(username)


def shared_secrets(secrets: Callable[[], TurnSecrets], realm: str) -> Credentials:
    """Names `expiry:account_id:device_id` signed with the current or the previous secret; `secrets` is asked each time, so a rotation needs no restart."""

    def credentials(username: str, now: float) -> Identity | None:
        try:
            user = parse_turn_username(username)
        except ValueError:
            return None
        return Identity(user.account_id, turn_keys(username, realm, secrets())) if now < user.expiry_s else None

    return credentials
