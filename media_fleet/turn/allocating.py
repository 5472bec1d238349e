"""What an Allocate request asks for: the checks of RFC 8656 s7.2 (3) to (9), which need the request and the settings alone."""

from __future__ import annotations

from dataclasses import dataclass

from media_fleet.stun import Message, attributes
from media_fleet.stun.attributes import IPV4, IPV6
from media_fleet.turn.refusals import Refused
from media_fleet.turn.settings import TurnSettings

UDP = 17
_RESERVE = 0x80  # the R bit of EVEN-PORT


@dataclass(frozen=True, slots=True)
class Wanted:
    """`families` can all be given; `missing` are those that cannot, which only a dual allocation may lack."""

    families: tuple[int, ...]
    missing: tuple[int, ...] = ()
    is_even: bool = False
    reserves: bool = False  # the next higher port is to be held for another allocation
    token: bytes | None = None


def wanted(message: Message, settings: TurnSettings, client_host: str) -> Wanted:
    """The request's wish, or Refused by the first of the checks that fails."""
    unasked = IPV6 if settings.unasked_family == "client" and ":" in client_host else IPV4
    transport, token = message.get(attributes.REQUESTED_TRANSPORT), message.get(attributes.RESERVATION_TOKEN)
    family, additional = message.get(attributes.REQUESTED_ADDRESS_FAMILY), message.get(attributes.ADDITIONAL_ADDRESS_FAMILY)
    even = message.get(attributes.EVEN_PORT)
    if transport is None:
        raise Refused(400)  # (3)
    if transport != UDP:
        raise Refused(442)  # (3)
    # (4): DONT-FRAGMENT is understood, because the shell can set the DF bit.
    if token is not None:
        if not (even is family is additional is None):
            raise Refused(400)  # (5)
        return Wanted((), token=token)
    if family is not None and additional is not None:
        raise Refused(400)  # (6)
    if additional is None and (family or unasked) not in settings.hosts:
        raise Refused(440)  # (7)
    is_even, reserves = even is not None, bool(even and even & _RESERVE)
    if reserves and additional is not None:
        raise Refused(400)  # (8)
    if reserves and settings.workers > 1:
        raise Refused(508)  # (8): the token might come to another worker
    if additional is None:
        return Wanted((family or unasked,), is_even=is_even, reserves=reserves)
    if additional != IPV6:
        raise Refused(400)  # (9)
    both = (IPV4, IPV6)
    return Wanted(tuple(one for one in both if one in settings.hosts), tuple(one for one in both if one not in settings.hosts), is_even)
