"""The TURN server as a state machine (RFC 8656): datagrams and time in, effects out. No sockets, no clock, no randomness of its own."""

from media_fleet.turn.allocation import Counters, FiveTuple, Relayed, RelayId, Traffic, Usage, is_ipv6, port_of, relay_id_of
from media_fleet.turn.credentials import Credentials, Identity, SharedSecrets, StaticUsers, shared_secrets, static_users
from media_fleet.turn.effects import (
    LISTENER,
    SIBLING,
    Bind,
    CloseRelay,
    Effect,
    Ended,
    Extend,
    Forward,
    Install,
    OpenRelays,
    Permit,
    SendToClient,
    SendToPeer,
    SendToSibling,
)
from media_fleet.turn.peers import DENIED, PeerPolicy
from media_fleet.turn.server import Counts, TurnServer
from media_fleet.turn.settings import TurnSettings

__all__ = [
    "DENIED",
    "LISTENER",
    "SIBLING",
    "Bind",
    "CloseRelay",
    "Counters",
    "Counts",
    "Credentials",
    "Effect",
    "Ended",
    "Extend",
    "FiveTuple",
    "Forward",
    "Identity",
    "Install",
    "OpenRelays",
    "PeerPolicy",
    "Permit",
    "RelayId",
    "Relayed",
    "SendToClient",
    "SendToPeer",
    "SendToSibling",
    "SharedSecrets",
    "StaticUsers",
    "Traffic",
    "TurnServer",
    "TurnSettings",
    "Usage",
    "is_ipv6",
    "port_of",
    "relay_id_of",
    "shared_secrets",
    "static_users",
]
