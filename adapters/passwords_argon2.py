"""Passwords by argon2id (RFC 9106) with argon2-cffi's defaults; an unknown login costs as much as a wrong password."""

from __future__ import annotations

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

_hasher = PasswordHasher()
_DECOY = "$argon2id$v=19$m=65536,t=3,p=4$4GptpcC9nOi9licq4KhY3g$DqkNniBW2azpidO8EXlCPaoaGix7US3R+GG1xEvQ3cU"
"""The hash of a password that nobody has: made ahead, so that the first unknown login of a process costs no more than the next."""


def hashed(password: str) -> str:
    return _hasher.hash(password)


def is_right(password: str, stored: str | None) -> bool:
    """Whether the password belongs to the stored hash; None (no such login) is checked against a decoy."""
    try:
        return _hasher.verify(stored or _DECOY, password) and stored is not None
    except (VerificationError, InvalidHashError):
        return False
