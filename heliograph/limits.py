"""Rate limits, by name: token buckets of an account, of one device or of an address. Where the tokens are counted is the adapter's.

A limit says what happens while the session store is away. Open: the request passes, because it carries a proof that cannot be guessed and losing words is
worse. Closed: it waits, because without the count somebody could guess passwords or collect relay credentials. API Gateway throttles beneath all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal

Per = Literal["account", "device", "address", "login"]


@dataclass(frozen=True, slots=True)
class Limit:
    """`burst` tokens at most, `per_s` of them come back each second. `per` says whose bucket it is; `login` is a tenant's login, known or not."""

    name: str
    per: Per
    burst: int
    per_s: float
    fails: Literal["open", "closed"]
    doc: str

    @property
    def interval_us(self) -> int:
        """Microseconds until one token is back."""
        return round(1e6 / self.per_s)


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket to take a token from: a limit and whose it is."""

    limit: Limit
    owner: str


LIMITS: Final[dict[str, Limit]] = {
    limit.name: limit
    for limit in (
        # everything an account, a device does
        Limit("account", "account", 400, 100, "open", "Every request and frame of an account."),
        Limit("device", "device", 200, 50, "open", "Every request and frame of one device."),
        # before anybody is known
        Limit("address", "address", 1000, 100, "open", "Requests of one address that carry no access token, and its new sockets."),
        Limit("sign_in", "address", 100, 2, "closed", "Sign-ins with a password from one address."),
        Limit("password", "login", 10, 0.05, "closed", "Sign-ins with the password of one login, known or not."),
        # routes
        Limit("reads", "account", 60, 10, "open", "REST routes that read."),
        Limit("writes", "account", 60, 10, "open", "REST routes that write."),
        Limit("tickets", "device", 20, 0.5, "open", "Socket tickets."),
        Limit("relay_credentials", "account", 20, 0.2, "closed", "Relay credentials."),
        Limit("links", "account", 60, 2, "open", "Upload tickets and download links."),
        Limit("accounts", "account", 20, 1, "closed", "What admins do to accounts."),
        # frames
        Limit("messages", "account", 120, 20, "open", "Texts. A device that was offline sends what it kept in one go."),
        Limit("signaling", "account", 200, 50, "open", "Offers, answers, candidates, byes, network reports."),
        Limit("presence", "device", 30, 2, "open", "Status changes and watch lists."),
        Limit("live", "device", 60, 10, "open", "hello, join, leave, ping, reauth, and frames of no known action."),
        # what is written because of a refusal
        Limit("audited_refusals", "account", 20, 0.05, "closed", "Refusals of an account that are written to the ledger; more of them are only logged."),
    )
}
_OVERRIDE: Final = re.compile(r"([a-z_]+)=(\d{1,7})/(\d{1,7}(?:\.\d{1,3})?)")


def overridden(text: str) -> Mapping[str, Limit]:
    """The limits with those replaced that `name=burst/per_s,…` names; ValueError says what is wrong. Empty text leaves the defaults."""
    limits = dict(LIMITS)
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _OVERRIDE.fullmatch(part)
        if match is None or match[1] not in LIMITS:
            raise ValueError(f"{part!r} is not name=burst/per_s with one of {', '.join(LIMITS)}")
        burst, per_s = int(match[2]), float(match[3])
        if burst < 1 or per_s <= 0:
            raise ValueError(f"{match[1]} needs a burst of at least 1 and a rate above 0")
        limits[match[1]] = replace(limits[match[1]], burst=burst, per_s=per_s)
    return limits


def address_key(text: str) -> str:
    """Whose bucket an address is: an IPv4 address alone, an IPv6 address with its /64, because one subscriber has all of it. Mapped ones are unwrapped."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(IPv6Address(int(address) >> 64 << 64))
        address = address.ipv4_mapped
    return str(address)
