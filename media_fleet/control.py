"""What a relay's parent process and its workers say to each other over an inherited socket: one JSON array `[kind, content]` a line. Pure.

Secrets go this way, and never by a command line or an environment. The parent says START first, and then any of the others; a worker answers START with
READY or FAILED, and goes on with READING, LIVING, ENDED and DRAINED until the socket closes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from heliograph.ice import TurnSecrets
from media_fleet.readings import RelayReading
from media_fleet.relay import RelayConfig
from media_fleet.tls import TlsFiles
from media_fleet.turn import Credentials, SharedSecrets, StaticUsers, Usage
from media_fleet.turn.connections import StreamLimits

# from the parent
START: Final = "start"  # Start
CREDENTIALS: Final = "credentials"  # as `told_credentials`
TLS_FILES: Final = "tls_files"  # {certificate, key}
LOOK: Final = "look"  # {}: tell READING and LIVING now
DRAIN: Final = "drain"  # {}
CLOSE: Final = "close"  # {}
# from a worker
READY: Final = "ready"  # {}
FAILED: Final = "failed"  # {why}: it cannot start
READING: Final = "reading"  # as `told_reading`
LIVING: Final = "living"  # {at_ms, usages, is_last, is_asked}: all that live, in parts; whether LOOK or DRAIN asked for it
ENDED: Final = "ended"  # {usage}
DRAINED: Final = "drained"  # {}: no allocation is left, or the time is over

LONGEST_LINE: Final = 4 * 1024 * 1024
_USAGE: Final = tuple(item.name for item in fields(Usage))


@dataclass(frozen=True, slots=True)
class Start:
    """All that a worker has to know. Files are inherited: these are their numbers."""

    config: Mapping[str, Any]  # as `told_config`
    credentials: Mapping[str, Any]  # as `told_credentials`
    worker: int
    workers: int
    listeners: Mapping[str, list[int]]  # by transport
    inbox: int
    siblings: Mapping[int, int]  # the ways to other workers, by their numbers

    def told(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Start:
        return cls(**{**told, "siblings": {int(worker): fd for worker, fd in told["siblings"].items()}})

    def files(self) -> tuple[int, ...]:
        """What must be inherited; two listeners may be one file."""
        return tuple(dict.fromkeys((*(fd for some in self.listeners.values() for fd in some), self.inbox, *self.siblings.values())))


def line(kind: str, content: Mapping[str, Any] | None = None) -> bytes:
    return json.dumps([kind, content or {}], separators=(",", ":")).encode() + b"\n"


def parse(data: bytes) -> tuple[str, dict[str, Any]]:
    """ValueError for a line that is none of ours, or was cut off."""
    try:
        kind, content = json.loads(data)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if not isinstance(kind, str) or not isinstance(content, dict):
        raise ValueError("a line of the control socket is [kind, content]")
    return kind, content


def told_config(config: RelayConfig) -> dict[str, Any]:
    """Without its credentials."""
    told = {item.name: getattr(config, item.name) for item in fields(config) if item.name != "credentials"}
    return told | {"tls": asdict(config.tls) if config.tls else None, "streams": asdict(config.streams)}


def config_of(told: Mapping[str, Any], credentials: Credentials) -> RelayConfig:
    values = {name: _tuples(value) for name, value in told.items()}
    tls = TlsFiles(**told["tls"]) if told["tls"] else None
    return RelayConfig(**{**values, "credentials": credentials, "tls": tls, "streams": StreamLimits(**told["streams"])})


def told_credentials(credentials: Credentials) -> dict[str, Any]:
    """ValueError for credentials that only this process can judge."""
    match credentials:
        case StaticUsers():
            return {"users": dict(credentials.users)}
        case SharedSecrets():
            return {"secrets": asdict(credentials.secrets())}
        case _:
            raise ValueError("The credentials of a relay with several workers must be fixed users or shared secrets.")


def credentials_of(told: Callable[[], Mapping[str, Any]], realm: str) -> Credentials:
    """`told` gives what was told last: secrets may change, the kind of credentials does not."""
    if "users" in told():
        return StaticUsers(told()["users"], realm)
    return SharedSecrets(lambda: TurnSecrets(**told()["secrets"]), realm)


def told_usage(usage: Usage) -> list[Any]:
    return [getattr(usage, name) for name in _USAGE]


def usage_of(told: Iterable[Any]) -> Usage:
    return Usage(*told)


def told_reading(reading: RelayReading) -> dict[str, Any]:
    return asdict(reading)


def reading_of(told: Mapping[str, Any]) -> RelayReading:
    return RelayReading(**{**told, "refusals": {int(code): count for code, count in told["refusals"].items()}})  # JSON made text of the codes


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
