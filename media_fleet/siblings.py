"""What one worker of a node hands to another: a datagram between two relayed addresses of the node. Pure; the sockets are inherited, so nobody else can send.

It names both relays by their ids. The node's hosts are the same in all workers, so an id is an address, and none but the node's own can be claimed.
"""

from __future__ import annotations

import struct

from media_fleet.stun import Address
from media_fleet.stun.attributes import IPV4, IPV6
from media_fleet.turn import RelayId, TurnSettings, is_ipv6, port_of, relay_id_of

_HEADER = struct.Struct("!II")  # the relay that it is for, the relay that it comes from


def serialize(relay_id: RelayId, sender: Address, payload: bytes) -> bytes:
    """For `relay_id`, as coming from the relayed address `sender`."""
    return _HEADER.pack(relay_id, relay_id_of(sender)) + payload


def parse(data: bytes, settings: TurnSettings) -> tuple[RelayId, Address, bytes] | None:
    """The relay, the sender's relayed address and the payload; None where it is not for this worker, or does not come from another one."""
    if len(data) < _HEADER.size:
        return None
    relay_id, sender_id = _HEADER.unpack_from(data)
    host = settings.hosts.get(IPV6 if is_ipv6(sender_id) else IPV4)
    if host is None or is_ipv6(relay_id) != is_ipv6(sender_id) or not settings.is_mine(relay_id) or not settings.is_a_siblings(sender_id):
        return None
    sender = host, port_of(sender_id)
    return (relay_id, sender, data[_HEADER.size :]) if relay_id_of(sender) == sender_id else None
