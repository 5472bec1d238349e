"""Who may use the relay: a user name and the time in, the keys that may sign for it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from heliograph.ice import TurnSecrets, parse_turn_username, turn_key, turn_keys


@dataclass(frozen=True, slots=True)
class Identity:
    """The account that pays for the allocation, and the long-term keys accepted for the user name."""

    account_id: str
    keys: tuple[bytes, ...]


Credentials = Callable[[str, float], Identity | None]  # (username, now in Unix seconds); None: unknown or expired


@dataclass(frozen=True, slots=True)
class StaticUsers:
    """Fixed names and passwords, for measuring."""

    users: Mapping[str, str] = field(repr=False)
    realm: str

    def __call__(self, username: str, now: float) -> Identity | None:
        password = self.users.get(username)
        return None if password is None else Identity(username, (turn_key(username, self.realm, password),))


@dataclass(frozen=True, slots=True)
class SharedSecrets:
    """Names `expiry:account_id:device_id` signed with the current or the previous secret; `secrets` is asked each time, so a rotation needs no restart."""

    secrets: Callable[[], TurnSecrets] = field(repr=False)
    realm: str

    def __call__(self, username: str, now: float) -> Identity | None:
        try:
            user = parse_turn_username(username)
        except ValueError:
            return None
        return Identity(user.account_id, turn_keys(username, self.realm, self.secrets())) if now < user.expiry_s else None


static_users, shared_secrets = StaticUsers, SharedSecrets
