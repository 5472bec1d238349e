"""What a node of the fleet is told by its environment; unknown or missing settings stop the start with one sentence."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from media_fleet.stun import Address

PREFIX = "HELIOGRAPH_"


def _setting(doc: str, default: Any = MISSING) -> Any:
    return field(metadata={"doc": doc}) if default is MISSING else field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Each field is the environment variable HELIOGRAPH_<NAME>."""

    turn_secret_id: str = _setting("Secrets Manager id of {current, previous}: the relay's shared secret.")
    relay_address: str = _setting("The public IP address of this node, as peers reach it.")
    turn_listen: str = _setting("IP:PORT the relay listens on, UDP.", "0.0.0.0:3478")
    turn_realm: str = _setting("Realm of the relay; clients learn it from the relay itself.", "heliograph")
    stats_listen: str = _setting("IP:PORT of the HTTP endpoint for health and meters; empty for none.", "")
    relay_drain_s: str = _setting("How many seconds calls may go on after SIGTERM.", "100")
    stage: str = _setting("Name of the deployment.", "")


def load(environ: Mapping[str, str]) -> NodeSettings:
    """The settings in these variables; SystemExit names the first thing that is wrong."""
    known = {PREFIX + item.name.upper(): item for item in fields(NodeSettings)}
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise SystemExit(f"{unknown[0]} is not a setting of a media node.")
    missing = sorted(name for name, item in known.items() if item.default is MISSING and not environ.get(name))
    if missing:
        raise SystemExit(f"{missing[0]} is not set: {known[missing[0]].metadata['doc']}")
    return NodeSettings(**{item.name: environ[name] for name, item in known.items() if name in environ})


def address(text: str, name: str) -> Address:
    """`IP:PORT` or `[IPv6]:PORT`; SystemExit says what `name` must look like."""
    host, _, port = text.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        number = int(port)
    except ValueError:
        number = -1
    if not 0 <= number <= 65_535:
        raise SystemExit(f"{name} must be an IP address and a port, such as 127.0.0.1:3478.")
    return str(ip), number
