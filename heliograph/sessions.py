"""Sessions and their refresh tokens (RFC 9700, 4.14): every use makes a successor, a second use of an old one ends the session.

A refresh token is `tenant.account.sid.n.secret`. The secrets of a session form a chain: secret n+1 = HMAC-SHA256(salt, n | secret n), and the store keeps the
salt and the hash of the newest secret. So
- who has a token cannot make its successor without the store, and who reads the store cannot make any token;
- the successor of a token is always the same: a client that lost the answer asks again and gets it again;
- every older token can be told from a forged one however old it is, without keeping it: walking its chain forward must end at the newest.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, replace
from typing import Literal

from heliograph.ids import TENANT_PATTERN

SESSION_S = 30 * 86_400
"""How long a device may stay away; every refresh begins it anew."""
LONGEST_SESSION_S = 90 * 86_400
"""How long after signing in somebody signs in again, however often they refreshed (ASVS 5.0, 10.4.8)."""
SECRET_BYTES = 32
LONGEST_CHAIN = 100_000
"""Refreshes after which a session ends: more than anybody's in LONGEST_SESSION_S, and the bound of what checking a token may cost (0.1 s)."""
_TOKEN = re.compile(rf"({TENANT_PATTERN})\.(acc_[0-9a-f]{{32}})\.(ses_[0-9a-f]{{32}})\.(\d{{1,6}})\.([A-Za-z0-9_-]{{43}})")

Outcome = Literal["rotated", "repeated", "reused", "refused"]


@dataclass(frozen=True, slots=True)
class Session:
    """A sign-in of one device. `n` counts refreshes; `refresh_hash` is that of the newest secret."""

    tenant_id: str
    account_id: str
    device_id: str
    sid: str
    role: str
    salt: str
    n: int
    refresh_hash: str
    signed_in_at_ms: int
    refreshed_at_ms: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """What a client presents: which session, which number, and the secret that proves it."""

    tenant_id: str
    account_id: str
    sid: str
    n: int
    secret: str

    def __str__(self) -> str:
        return f"{self.tenant_id}.{self.account_id}.{self.sid}.{self.n}.{self.secret}"


def parse_refresh_token(text: str) -> RefreshToken | None:
    """The token, or None when it is not of the form."""
    match = _TOKEN.fullmatch(text)
    return None if match is None else RefreshToken(match[1], match[2], match[3], int(match[4]), match[5])


def begun(
    tenant_id: str, account_id: str, device_id: str, sid: str, role: str, now_ms: int, random: bytes, lifetime_s: int = SESSION_S
) -> tuple[Session, RefreshToken]:
    """A new session and its first token; `random` gives SECRET_BYTES for the salt and SECRET_BYTES for the secret."""
    if len(random) != 2 * SECRET_BYTES:
        raise ValueError(f"a session needs {2 * SECRET_BYTES} random bytes")
    salt, secret = _text(random[:SECRET_BYTES]), _text(random[SECRET_BYTES:])
    session = Session(tenant_id, account_id, device_id, sid, role, salt, 0, _hash(secret), now_ms, now_ms, now_ms + lifetime_s * 1000)
    return session, RefreshToken(tenant_id, account_id, sid, 0, secret)


def refresh(session: Session, token: RefreshToken, now_ms: int, grace_ms: int) -> tuple[Outcome, Session, RefreshToken | None]:
    """Decides on a presented token: (outcome, the session to store, the successor).

    rotated: the newest token; store the session. repeated: its predecessor within `grace_ms`, the same successor again. reused: an older genuine one, or the
    predecessor too late; end the session. refused: forged, or the session is over; change nothing.
    """
    steps = session.n - token.n
    if not (0 <= steps <= LONGEST_CHAIN) or now_ms >= session.expires_at_ms or session.n >= LONGEST_CHAIN:
        return "refused", session, None
    secret, successor = token.secret, ""
    for n in range(token.n, session.n):
        secret = _successor(session.salt, n, secret)
        successor = successor or secret
    if not hmac.compare_digest(_hash(secret), session.refresh_hash):
        return "refused", session, None
    if steps == 0:
        successor = _successor(session.salt, session.n, secret)
        expires_at_ms = min(now_ms + SESSION_S * 1000, session.signed_in_at_ms + LONGEST_SESSION_S * 1000)
        after = replace(session, n=session.n + 1, refresh_hash=_hash(successor), refreshed_at_ms=now_ms, expires_at_ms=expires_at_ms)
        return "rotated", after, replace(token, n=after.n, secret=successor)
    if steps == 1 and now_ms - session.refreshed_at_ms <= grace_ms:
        return "repeated", session, replace(token, n=session.n, secret=successor)
    return "reused", session, None


def _successor(salt: str, n: int, secret: str) -> str:
    return _text(hmac.digest(salt.encode(), f"{n}|{secret}".encode(), hashlib.sha256))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
