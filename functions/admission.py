"""What stands before every request and frame: rate limits, ended sessions, expired authentication. One command of the session store.

Without the session store limits fail open or closed as each says, and MongoDB tells whether the session lives: nobody who is signed in is locked out, and
nobody who was signed out comes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from adapters.admissions_redis import Admission, Lacking
from adapters.settings import settings
from functions import wiring
from heliograph.auth import LEEWAY_S, Identity, identity_from
from heliograph.errors import OriginRefused, RateLimited, TokenExpired, TokenInvalid, Unauthenticated, Unavailable
from heliograph.limits import Bucket, address_key
from heliograph.origin import ADDRESS_HEADER, SECRET_HEADER, viewer_address

ALWAYS = ("account", "device")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found of a caller; `found` is None while the session store is away."""

    who: Identity
    found: Admission | None

    @property
    def last_seq(self) -> int | None:
        return self.found.last_seq if self.found else None

    @property
    def proved(self) -> Identity:
        """What the socket proved last, after its ticket; who called, elsewhere."""
        return identity_from(self.found.proved) if self.found and self.found.proved else self.who

    @property
    def is_hopeless(self) -> bool:
        """Whether it will be refused whatever comes: nobody should wait for its turn."""
        return self.found is not None and (self.found.is_ended or self.found.lacking is not None)

    def admitted(self, now_ms: int, *, may_be_expired: bool = False) -> Identity:
        """The identity as it is now. TokenInvalid for an ended session, RateLimited, TokenExpired for what is to be refreshed or proved again."""
        if self.found is None:
            return _admitted_by_ledger(self.who)
        if self.found.is_ended:
            raise TokenInvalid("The session has ended; sign in again.")
        _must_not_lack(self.found.lacking)
        who = self.proved
        if not may_be_expired and (who.issued_at_ms < self.found.stale_before_ms or now_ms > who.expires_at_ms + LEEWAY_S * 1000):
            raise TokenExpired
        return who

    def closes(self, refusal: Unauthenticated, now_ms: int, grace_s: int) -> Literal["signed_out", "token_expired"] | None:
        """Why a socket whose frame was refused like this is to be closed; None while it may still prove anew who speaks on it."""
        if not isinstance(refusal, TokenExpired):
            return "signed_out"
        return "token_expired" if now_ms > self.proved.expires_at_ms + grace_s * 1000 else None


def ask(who: Identity, limit: str | None, connection_id: str = "") -> Verdict:
    """Takes the tokens of this request or frame, and says what is known of its sender. Unavailable where a limit fails closed."""
    buckets = [_bucket(who, name) for name in (*ALWAYS, *([limit] if limit else []))]
    try:
        return Verdict(who, wiring.admissions().admit(who, buckets, connection_id))
    except Unavailable as away:
        _must_fail_open(buckets, away)
        return Verdict(who, None)


def admit_stranger(owner: str, *limits: str) -> None:
    """Takes a token of each limit of an address or a login; RateLimited, or Unavailable where a limit fails closed."""
    buckets = [Bucket(wiring.limits()[name], owner) for name in limits]
    try:
        _must_not_lack(wiring.admissions().take(owner, buckets))
    except Unavailable as away:
        _must_fail_open(buckets, away)


def admit_to_ledger(who: Identity) -> None:
    """Takes the token of one refusal that is written down; RateLimited, or Unavailable: then it is only logged."""
    _must_not_lack(wiring.admissions().admit(who, [_bucket(who, "audited_refusals")]).lacking)


def caller_address(headers: Mapping[str, str], source_ip: str) -> str:
    """The caller's address; `headers` have lower-case names. OriginRefused for who came past CloudFront, where CloudFront stands before us.

    Only with the right secret is the header with the address believed: then `source_ip` is CloudFront's own.
    """
    if not settings().origin_secret_id:
        return source_ip
    if not wiring.origin_secret().accepts(headers.get(SECRET_HEADER, "")):
        raise OriginRefused
    return viewer_address(headers.get(ADDRESS_HEADER, "")) or source_ip


def address(source_ip: str) -> str:
    """The owner of an address's buckets."""
    return f"address/{address_key(source_ip)}"


def _must_not_lack(lacking: Lacking | None) -> None:
    if lacking is not None:
        raise RateLimited(f"Too many requests (limit {lacking.limit}); wait and try again.", retry_after_ms=lacking.wait_ms)


def _bucket(who: Identity, name: str) -> Bucket:
    limit = wiring.limits()[name]
    return Bucket(limit, who.device_id if limit.per == "device" else "")


def _must_fail_open(buckets: list[Bucket], away: Unavailable) -> None:
    if any(bucket.limit.fails == "closed" for bucket in buckets):
        raise away


def _admitted_by_ledger(who: Identity) -> Identity:
    """An expired authentication is good for as long as the session lives: a device cannot prove anew what nobody could keep."""
    session = wiring.sessions().get(who.tenant_id, who.account_id, who.sid)
    if session is None:
        raise TokenInvalid("The session has ended; sign in again.")
    return replace(who, role=session.role)
