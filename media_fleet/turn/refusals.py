"""Error answers: the codes with their reasons (RFC 8489 s14.8, RFC 8656 s19), and the exception that becomes one."""

from __future__ import annotations

from typing import Any

from media_fleet.stun import Attribute, Message, attributes

REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    420: "Unknown Attribute",
    437: "Allocation Mismatch",
    438: "Stale Nonce",
    440: "Address Family not Supported",
    441: "Wrong Credentials",
    442: "Unsupported Transport Protocol",
    443: "Peer Address Family Mismatch",
    486: "Allocation Quota Reached",
    508: "Insufficient Capacity",
}


class Refused(Exception):
    """The request is answered with this error; nothing has changed."""

    def __init__(self, code: int, *more: tuple[Attribute[Any], Any]) -> None:
        self.code, self.more = code, more
        super().__init__(REASONS[code])


def check_understood(message: Message) -> None:
    """Raises 420 for a comprehension-required attribute that is unknown (RFC 8489 s6.3.1), 400 for a value that cannot be read."""
    if message.unknown:
        raise Refused(420, (attributes.UNKNOWN_ATTRIBUTES, message.unknown))
    if message.malformed:
        raise Refused(400)
