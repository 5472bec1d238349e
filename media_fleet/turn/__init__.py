"""The TURN server as a state machine (RFC 8656 over UDP): datagrams and time in, effects out. No sockets, no clock, no randomness of its own."""

from media_fleet.turn.allocation import FiveTuple, Usage
from media_fleet.turn.credentials import Credentials, Identity, shared_secrets, static_users
from media_fleet.turn.peers import DENIED, PeerPolicy
from media_fleet.turn.server import CloseRelay, Effect, Forward, OpenRelay, SendToClient, SendToPeer, TurnServer, TurnSettings

__all__ = [
    "DENIED",
    "CloseRelay",
    "Credentials",
    "Effect",
    "FiveTuple",
    "Forward",
    "Identity",
    "OpenRelay",
    "PeerPolicy",
    "SendToClient",
    "SendToPeer",
    "TurnServer",
    "TurnSettings",
    "Usage",
    "shared_secrets",
    "static_users",
]
