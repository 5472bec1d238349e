"""The Python client of Heliograph: sign-in, presence, rooms, files and calls.

Calls need the extra `call` (aiortc): `from heliograph_client.call import Call`; everything else works without it.
"""

from .calls import IncomingCall
from .client import Client
from .errors import (
    ConflictError,
    ConnectionLostError,
    ForbiddenError,
    HeliographError,
    InvalidRequestError,
    NotFoundError,
    RateLimitedError,
    RefusedError,
    ServerError,
    SignedOutError,
    TimedOutError,
)
from .events import Subscription
from .frames import Ack, Event
from .ids import make_id
from .rest import Session
from .stream import Position

__all__ = [
    "Ack",
    "Client",
    "ConflictError",
    "ConnectionLostError",
    "Event",
    "ForbiddenError",
    "HeliographError",
    "IncomingCall",
    "InvalidRequestError",
    "NotFoundError",
    "Position",
    "RateLimitedError",
    "RefusedError",
    "ServerError",
    "Session",
    "SignedOutError",
    "Subscription",
    "TimedOutError",
    "make_id",
]
