"""What a node of the fleet is told by its environment; unknown or missing settings stop the start with one sentence."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from media_fleet.stun import Address

PREFIX = "HELIOGRAPH_"


def _setting(doc: str, default: Any = MISSING) -> Any:
    return field(metadata={"doc": doc}) if default is MISSING else field(default=default, metadata={"doc": doc})


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSettings:
    """Of a hub alone. Each field is the environment variable HELIOGRAPH_<NAME>."""

    redis_url: str = _setting("redis:// or rediss:// URL of the session store.")
    connections_url: str = _setting("Base URL of the WebSocket API's @connections, stage included.")
    redis_mode: str = _setting("`single` or `cluster`.", "single")
    redis_user: str = _setting("User of ElastiCache who signs in by IAM; empty where the URL says all.", "")
    redis_cache: str = _setting("Name of the ElastiCache Serverless cache that `redis_user` signs in to.", "")
    hub_stats_listen: str = _setting("IP:PORT of the hub's HTTP endpoint: /healthz and /hub; empty for none.", "")
    hub_concurrency: str = _setting("Posts in flight of the hub; slow targets have lanes of their own.", "64")
    hub_shed_over: str = _setting("Over this many waiting posts, presence events are dropped; over four times as many, the hub lets its lease go.", "10000")
    hub_drain_s: str = _setting("How many seconds the hub may post its backlog after SIGTERM.", "20")
    stage: str = _setting("Name of the deployment.", "")
    meters_s: str = _setting("Every how many seconds the meters are printed on stdout as CloudWatch's embedded metrics; 0 for never.", "0")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings(HubSettings):
    """Of a node: a relay, and a hub where the hub's two required settings are there."""

    turn_secret_id: str = _setting("Secrets Manager id of {current, previous}: the relay's shared secret.")
    relay_address: str = _setting("Public IP address of this node, as peers reach it, or an IPv4 and an IPv6 one with a comma; `auto` asks AWS (EC2, Fargate).")
    turn_listen: str = _setting("IP:PORT the relay listens on, UDP and TCP; several with commas.", "0.0.0.0:3478")
    turn_listen_tls: str = _setting("IP:PORT the relay listens on, TLS, such as 0.0.0.0:5349,0.0.0.0:443; empty for none.", "")
    turn_tls_secret_id: str = _setting("Secrets Manager id of {certificate, key}: PEM texts for `turn_listen_tls`, read again when they changed.", "")
    turn_tls_name: str = _setting("Host name of the certificate, which turns: URLs have; empty: no turns: URL is made.", "")
    turn_data_path: str = _setting("Who forwards for UDP clients: `compiled`, `python`, or `auto`: compiled where it was built.", "auto")
    turn_realm: str = _setting("Realm of the relay; clients learn it from the relay itself.", "heliograph")
    turn_urls: str = _setting("Comma-separated turn: and turns: URLs at which clients reach this node; empty: made of its addresses and ports.", "")
    turn_workers: str = _setting("Number of relay processes; `auto` is one per CPU. What an account may have is counted by each for itself.", "1")
    stats_listen: str = _setting("IP:PORT of the HTTP endpoint: /healthz, /readyz, /metrics, /allocations; empty for none.", "")
    relay_drain_s: str = _setting("How many seconds calls may go on after SIGTERM.", "100")
    mongodb_secret_id: str = _setting("Secrets Manager id of {uri}: a user of MongoDB who may write `relay_usage`; empty for a node that tells no usage.", "")
    mongodb_database: str = _setting("Database of the ledger.", "heliograph")
    usage_s: str = _setting("Every how many seconds the ledger is told what living allocations carried: a node that is killed loses so much.", "60")
    redis_url: str = _setting("redis:// or rediss:// URL of the session store; empty for a node without a hub, which no registry lists.", "")
    connections_url: str = _setting("Base URL of the WebSocket API's @connections, stage included; empty for a node without a hub.", "")


_Settings = TypeVar("_Settings", NodeSettings, HubSettings)


def load(environ: Mapping[str, str]) -> NodeSettings:
    """The settings of a node; SystemExit names the first thing that is wrong."""
    return _load(environ, NodeSettings)


def load_hub(environ: Mapping[str, str]) -> HubSettings:
    """The settings of a hub alone; SystemExit names the first thing that is wrong."""
    return _load(environ, HubSettings)


def _load(environ: Mapping[str, str], kind: type[_Settings]) -> _Settings:
    known = {PREFIX + item.name.upper(): item for item in fields(kind)}
    unknown = sorted(name for name, value in environ.items() if name.startswith(PREFIX) and value and name not in known)
    if unknown:
        raise SystemExit(f"{unknown[0]} is not a setting of a media node.")
    missing = sorted(name for name, item in known.items() if item.default is MISSING and not environ.get(name))
    if missing:
        raise SystemExit(f"{missing[0]} is not set: {known[missing[0]].metadata['doc']}")
    return kind(**{item.name: environ[name] for name, item in known.items() if name in environ})


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


def addresses(text: str, name: str) -> tuple[Address, ...]:
    """Several of `address`, with commas; none for an empty text."""
    return tuple(address(part.strip(), name) for part in text.split(",")) if text else ()
