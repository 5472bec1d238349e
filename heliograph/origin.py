"""What may stand before the API (CloudFront): how a request proves that it came that way, and whose it then is.

Sources: CloudFront developer guide, "Restrict access to files on custom origins", "Add CloudFront request headers".
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

SECRET_HEADER: Final = "x-heliograph-origin"  # noqa: S105 - its name
"""CloudFront puts the secret there, in place of whatever the client wrote."""
ADDRESS_HEADER: Final = "cloudfront-viewer-address"
"""CloudFront puts the caller's address there; without the right secret anybody may have written it."""
LONGEST_ADDRESS: Final = 64


def is_one_of(given: str, accepted: Iterable[str]) -> bool:
    """Whether this is one of the secrets, in a time that does not tell how much of it is right. An empty secret is none."""
    found = False
    for secret in accepted:
        found |= bool(secret) and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())
    return found


def viewer_address(text: str) -> str | None:
    """The address of `203.0.113.7:46532` or `2001:db8::7:46532` in its shortest form; None for anything else.

    The port is what follows the last colon: CloudFront always adds one, and puts no brackets around an IPv6 address.
    """
    if len(text) > LONGEST_ADDRESS:
        return None
    address, _, port = text.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if "%" in address or not (port.isascii() and port.isdecimal() and int(port) <= 65_535):
        return None
    try:
        return str(ip_address(address))
    except ValueError:
        return None
