"""Commands of the media fleet.

`relay`: the relay alone with fixed users, for measuring. `hub`: the event hub alone. `node`: what the container runs, with secrets from Secrets
Manager: the relay, and the hub where a session store and a callback URL are set. `health`: the container's health check.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, get_args

from heliograph.ice import TurnSecrets
from media_fleet import public_address
from media_fleet.datapath.paths import NAMES, DataPathName
from media_fleet.log import log
from media_fleet.meters import Meter, Reading, publish
from media_fleet.relay import CannotListen, Relay, RelayConfig, run_loop
from media_fleet.settings import HubSettings, NodeSettings, address, addresses, load, load_hub
from media_fleet.tls import TlsFiles
from media_fleet.turn import shared_secrets, static_users
from media_fleet.turn.settings import UnaskedFamily
from media_fleet.workers import WorkerPool, count_of, opened, serve

if TYPE_CHECKING:
    from media_fleet.hub import HubConfig
    from media_fleet.node import NodeConfig

_CONTAINER = ("ECS_CONTAINER_METADATA_URI", "ECS_CONTAINER_METADATA_URI_V4", "KUBERNETES_SERVICE_HOST")
_SECRET_S = 300.0  # how often a rotated secret is looked for


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m media_fleet", description="Heliograph's media fleet.")
    commands = parser.add_subparsers(dest="command", required=True)
    relay = commands.add_parser("relay", help="the TURN relay alone with fixed users, for measuring on one machine")
    relay.add_argument("--listen", action="append", metavar="IP:PORT", help="UDP listener; port 0 takes a free one; may be repeated (127.0.0.1:3478)")
    relay.add_argument("--listen-tcp", action="append", default=[], metavar="IP:PORT", help="TCP listener; may be repeated")
    relay.add_argument("--listen-tls", action="append", default=[], metavar="IP:PORT", help="TLS listener; may be repeated")
    relay.add_argument("--certificate", metavar="FILE", help="certificate chain of the TLS listeners, PEM")
    relay.add_argument("--private-key", metavar="FILE", help="private key of the TLS listeners, PEM")
    relay.add_argument("--realm", default="heliograph", help="realm of the credentials (%(default)s)")
    relay.add_argument("--user", action="append", required=True, metavar="NAME:PASSWORD", help="a fixed user; may be repeated")
    relay.add_argument("--allow-peer", action="append", default=[], metavar="CIDR", help="peers allowed in spite of the deny list; may be repeated")
    relay.add_argument("--relay-address", action="append", default=[], metavar="IP", help="address that peers reach it at, one per family (the listeners')")
    relay.add_argument("--unasked-family", choices=get_args(UnaskedFamily), default="ipv4", help="for clients that name none (%(default)s, as RFC 8656 has it)")
    relay.add_argument("--data-path", choices=NAMES, default="auto", help="who forwards for UDP clients (%(default)s)")
    relay.add_argument("--workers", default="1", metavar="N", help="relay processes, or `auto` for one per CPU (%(default)s)")
    relay.add_argument("--drain", default="0", metavar="SECONDS", help="how long living allocations may go on after SIGTERM (%(default)s)")
    relay.add_argument("--stats", metavar="IP:PORT", help="HTTP endpoint: /healthz and /allocations")
    commands.add_parser("hub", help="the event hub alone; settings come from the environment")
    commands.add_parser("node", help="a node of the fleet; settings come from the environment")
    worker = commands.add_parser("worker", help="one process of a relay that has several, which starts it")
    worker.add_argument("file", type=int, help="number of the inherited socket")
    commands.add_parser("health", help="exit code 0 when the node with the same environment is well; the container's health check")
    chosen = parser.parse_args(arguments)
    if chosen.command == "relay":
        _relay(chosen)
    elif chosen.command == "hub":
        _hub()
    elif chosen.command == "worker":
        from media_fleet.worker import main as work

        work(chosen.file)
    elif chosen.command == "health":
        sys.exit(_health(os.environ))
    else:
        _node()


def _relay(chosen: argparse.Namespace) -> None:
    refuse_in_a_container(os.environ)
    users = dict(_user(text) for text in chosen.user)
    config = RelayConfig(
        realm=chosen.realm,
        credentials=static_users(users, chosen.realm),
        listen=tuple(address(text, "--listen") for text in chosen.listen or ["127.0.0.1:3478"]),
        listen_tcp=tuple(address(text, "--listen-tcp") for text in chosen.listen_tcp),
        listen_tls=tuple(address(text, "--listen-tls") for text in chosen.listen_tls),
        tls=_tls_files(chosen),
        unasked_family=chosen.unasked_family,
        data_path=chosen.data_path,
        account_bytes_per_s=0,
        unauthenticated_per_s=0,
        relay_addresses=tuple(_ip(text, "--relay-address") for text in chosen.relay_address),
        allow_peers=tuple(_network(text) for text in chosen.allow_peer),
        stats_listen=address(chosen.stats, "--stats") if chosen.stats else None,
        allocations_per_account=8_000,
        drain_s=_seconds(chosen.drain, "--drain"),
    )
    _check_relay_address(config, "--relay-address")
    serve(config, count_of(chosen.workers, "--workers"))


def _tls_files(chosen: argparse.Namespace) -> TlsFiles | None:
    if bool(chosen.certificate) != bool(chosen.private_key) or (chosen.listen_tls and not chosen.certificate):
        raise SystemExit("A TLS listener needs --certificate and --private-key.")
    return TlsFiles(chosen.certificate, chosen.private_key) if chosen.certificate else None


def refuse_in_a_container(environ: Mapping[str, str]) -> None:
    """Fixed passwords and open peer ranges are for a laptop; SystemExit where container metadata says this is none."""
    found = next((name for name in _CONTAINER if environ.get(name)), None)
    if found is None and environ.get("AWS_EXECUTION_ENV", "").startswith("AWS_ECS"):
        found = "AWS_EXECUTION_ENV"
    if found:
        raise SystemExit(f"{found} is set, so this is a deployment: `relay` has fixed users and is for measuring only; run `python -m media_fleet node`.")


def _hub() -> None:
    settings = load_hub(os.environ)
    config, every_s = _hub_config(settings), _seconds(settings.meters_s, "HELIOGRAPH_METERS_S")
    from media_fleet import hub

    async def run() -> None:
        readings: list[Callable[[], Reading]] = []
        async with _metered(settings.stage, every_s, readings):
            await hub.until(config, _stopped(), lambda begun: readings.append(begun.reading))

    run_loop(run())


def _hub_config(settings: HubSettings) -> HubConfig:
    from adapters.settings import aws_credentials, aws_region
    from media_fleet.hub import HubConfig

    if settings.redis_mode not in ("single", "cluster"):
        raise SystemExit("HELIOGRAPH_REDIS_MODE must be single or cluster.")
    return HubConfig(
        redis_url=settings.redis_url,
        redis_mode=settings.redis_mode,
        redis_user=settings.redis_user,
        redis_cache=settings.redis_cache,
        connections_url=settings.connections_url,
        region=aws_region(),
        credentials=aws_credentials,
        stats_listen=address(settings.hub_stats_listen, "HELIOGRAPH_HUB_STATS_LISTEN") if settings.hub_stats_listen else None,
        concurrency=_whole(settings.hub_concurrency, "HELIOGRAPH_HUB_CONCURRENCY"),
        shed_over=_whole(settings.hub_shed_over, "HELIOGRAPH_HUB_SHED_OVER"),
        drain_s=_seconds(settings.hub_drain_s, "HELIOGRAPH_HUB_DRAIN_S"),
    )


def _stopped() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped


@asynccontextmanager
async def _metered(stage: str, every_s: float, readings: list[Callable[[], Reading]]) -> AsyncIterator[None]:
    """Tells the meters of what is in `readings` while the block runs; 0 seconds for never."""
    if not every_s:
        yield
        return
    meter = Meter(stage, socket.gethostname())
    telling = asyncio.create_task(publish(meter, lambda: {name: value for read in readings for name, value in read().items()}, every_s))
    try:
        yield
    finally:
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling


def _node() -> None:
    settings = load(os.environ)
    if bool(settings.redis_url) != bool(settings.connections_url):
        raise SystemExit("HELIOGRAPH_REDIS_URL and HELIOGRAPH_CONNECTIONS_URL belong together: set both for a hub, or none.")
    if settings.mongodb_secret_id and not settings.redis_url:
        raise SystemExit("HELIOGRAPH_MONGODB_SECRET_ID needs HELIOGRAPH_REDIS_URL: usage belongs to tenants, and the session store knows them.")
    if bool(settings.turn_listen_tls) != bool(settings.turn_tls_secret_id):
        raise SystemExit("HELIOGRAPH_TURN_LISTEN_TLS and HELIOGRAPH_TURN_TLS_SECRET_ID belong together: set both for TLS, or none.")
    hub_config = _hub_config(settings) if settings.redis_url else None
    node_config, workers = _node_config(settings), count_of(settings.turn_workers, "HELIOGRAPH_TURN_WORKERS")
    try:
        secrets = [_read_secret(settings.turn_secret_id)]
    except ValueError as error:
        raise SystemExit(f"HELIOGRAPH_TURN_SECRET_ID: {error}") from None
    config = RelayConfig(
        realm=settings.turn_realm,
        credentials=shared_secrets(lambda: secrets[-1], settings.turn_realm),
        listen=addresses(settings.turn_listen, "HELIOGRAPH_TURN_LISTEN"),
        listen_tcp=addresses(settings.turn_listen, "HELIOGRAPH_TURN_LISTEN"),
        listen_tls=addresses(settings.turn_listen_tls, "HELIOGRAPH_TURN_LISTEN_TLS"),
        tls=_read_tls(settings),
        tls_name=settings.turn_tls_name,
        urls=tuple(settings.turn_urls.split(",")) if settings.turn_urls else (),
        relay_addresses=tuple(_public_address(text) for text in settings.relay_address.split(",")),
        no_peers=tuple(one.stats_listen for one in (node_config, hub_config) if one and one.stats_listen),
        data_path=_data_path(settings.turn_data_path),
        drain_s=node_config.drain_s,
    )
    _check_relay_address(config, "HELIOGRAPH_RELAY_ADDRESS")

    run_loop(_run_node(settings, config, workers, hub_config, node_config, secrets))


def _node_config(settings: NodeSettings) -> NodeConfig:
    from media_fleet.node import NodeConfig

    usage_s = _seconds(settings.usage_s, "HELIOGRAPH_USAGE_S")
    if not usage_s:
        raise SystemExit("HELIOGRAPH_USAGE_S must be above 0.")
    return NodeConfig(
        node_id=f"{socket.gethostname()}-{os.urandom(4).hex()}",  # another one after each start: a name of a machine may come back
        stage=settings.stage,
        stats_listen=address(settings.stats_listen, "HELIOGRAPH_STATS_LISTEN") if settings.stats_listen else None,
        meters_s=_seconds(settings.meters_s, "HELIOGRAPH_METERS_S"),
        usage_s=usage_s,
        drain_s=_seconds(settings.relay_drain_s, "HELIOGRAPH_RELAY_DRAIN_S"),
    )


async def _run_node(
    settings: NodeSettings, config: RelayConfig, workers: int, hub_config: HubConfig | None, node_config: NodeConfig, secrets: list[TurnSecrets]
) -> None:
    from media_fleet.node import Node
    from media_fleet.session_store import SessionStore, Tenants
    from media_fleet.usage import Usage, UsageLedger

    stopped, store, tenants, usage = _stopped(), None, None, None
    if hub_config:
        who = {"user": hub_config.redis_user, "cache": hub_config.redis_cache, "region": hub_config.region}
        store = SessionStore(hub_config.redis_url, hub_config.redis_mode, credentials=hub_config.credentials, **who)
        tenants = Tenants(store)
    if tenants and settings.mongodb_secret_id:
        ledger = UsageLedger(lambda: _read_uri(settings.mongodb_secret_id), settings.mongodb_database)
        usage = Usage(node_config.node_id, ledger, tenants)
    relay = await opened(config, workers, usage.ended if usage else None)
    watching = asyncio.create_task(_watch_secrets(settings, secrets, relay))
    try:
        await Node(node_config, relay, hub=hub_config, store=store, tenants=tenants, usage=usage).run(stopped)
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def _read_uri(secret_id: str) -> str:
    from adapters.secrets_aws import read_secret_now

    return str(read_secret_now(secret_id)["uri"])


def _read_secret(secret_id: str) -> TurnSecrets:
    from adapters.secrets_aws import forget, read_secret

    forget()
    return TurnSecrets.of(read_secret(secret_id))


def _read_tls(settings: NodeSettings) -> TlsFiles | None:
    """The certificate, or None where there is none to be had now: the node goes on without TLS and looks again."""
    from adapters.secrets_aws import read_secret_now

    if not settings.turn_tls_secret_id:
        return None
    try:
        stored = read_secret_now(settings.turn_tls_secret_id)
        return TlsFiles(str(stored["certificate"]), str(stored["key"]))
    except Exception as error:  # the process edge: calls over UDP and TCP must not wait for a certificate
        log("turn_certificate_not_read", error=repr(error), needed="a secret {certificate, key}, both PEM texts", again_after_s=_SECRET_S)
        return None


async def _watch_secrets(settings: NodeSettings, secrets: list[TurnSecrets], relay: Relay | WorkerPool) -> None:
    """Takes up a rotated secret and a renewed certificate; while they cannot be read, those we have go on."""
    tls = relay.config.tls
    while True:
        await asyncio.sleep(_SECRET_S)
        try:
            secrets[:] = [await asyncio.to_thread(_read_secret, settings.turn_secret_id)]
        except Exception as error:  # the process edge: a store that is away must not end running calls
            log("turn_secret_not_read", error=repr(error))
        found = await asyncio.to_thread(_read_tls, settings)
        if found is None or found == tls:
            continue
        try:
            await relay.serve_tls(found)
            tls = found
        except (ValueError, CannotListen) as error:
            log("turn_certificate_refused", error=str(error))


def _data_path(text: str) -> DataPathName:
    found = next((name for name in NAMES if name == text), None)
    if found is None:
        raise SystemExit(f"HELIOGRAPH_TURN_DATA_PATH must be one of {', '.join(NAMES)}.")
    return found


def _public_address(text: str) -> str:
    if text != public_address.AUTO:
        return _ip(text, "HELIOGRAPH_RELAY_ADDRESS")
    try:
        found = public_address.learn(os.environ)
    except public_address.Unknown as error:
        raise SystemExit(f"HELIOGRAPH_RELAY_ADDRESS is auto, but {error}.") from None
    log("relay_address_learned", relay_address=found)
    return found


def _health(environ: Mapping[str, str]) -> int:
    """The exit code of the container's health check: 0 while the node answers 200 on its statistics port, draining or not."""
    listen = load(environ).stats_listen
    if not listen:
        raise SystemExit("HELIOGRAPH_STATS_LISTEN is not set, so there is nothing to ask.")
    host, port = address(listen, "HELIOGRAPH_STATS_LISTEN")
    asked = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host
    connection = http.client.HTTPConnection(asked, port, timeout=3)
    try:
        connection.request("GET", "/healthz")
        return 0 if connection.getresponse().status == HTTPStatus.OK else 1
    except (OSError, http.client.HTTPException):
        return 1
    finally:
        connection.close()


def _user(text: str) -> tuple[str, str]:
    name, separator, password = text.partition(":")
    if not (name and separator and password):
        raise SystemExit("--user must be NAME:PASSWORD.")
    return name, password


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise SystemExit("--allow-peer must be a CIDR, such as 127.0.0.0/8.") from None


def _ip(text: str, name: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise SystemExit(f"{name} must be an IP address.") from None


def _seconds(text: str, name: str) -> float:
    try:
        return max(0.0, float(text))
    except ValueError:
        raise SystemExit(f"{name} must be a number of seconds.") from None


def _whole(text: str, name: str) -> int:
    try:
        return max(1, int(text))
    except ValueError:
        raise SystemExit(f"{name} must be a whole number.") from None


def _check_relay_address(config: RelayConfig, name: str) -> None:
    told = [ipaddress.ip_address(host) for host in config.relay_addresses or dict.fromkeys(host for host, _ in config.listen)]
    if any(host.is_unspecified for host in told):
        raise SystemExit(f"A relay that listens on every address needs {name}: the IP address that peers reach it at.")
    if len({host.version for host in told}) < len(told):
        raise SystemExit(f"A relay has one relay address of each family at most: say which by {name}.")


if __name__ == "__main__":
    main()
