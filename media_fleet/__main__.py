"""Commands of the media fleet.

`relay`: the relay alone with fixed users, for measuring. `hub`: the event hub alone. `node`: what the container runs, with secrets from Secrets
Manager: the relay, and the hub where a session store and a callback URL are set.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from heliograph.ice import TurnSecrets
from media_fleet.log import log
from media_fleet.relay import Relay, RelayConfig, run, run_loop, serve
from media_fleet.settings import HubSettings, address, load, load_hub
from media_fleet.turn import shared_secrets, static_users

if TYPE_CHECKING:
    from media_fleet.hub import HubConfig

_CONTAINER = ("ECS_CONTAINER_METADATA_URI", "ECS_CONTAINER_METADATA_URI_V4", "KUBERNETES_SERVICE_HOST")
_SECRET_S = 300.0  # how often a rotated secret is looked for


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m media_fleet", description="Heliograph's media fleet.")
    commands = parser.add_subparsers(dest="command", required=True)
    relay = commands.add_parser("relay", help="the TURN relay alone with fixed users, for measuring on one machine")
    relay.add_argument("--listen", default="127.0.0.1:3478", metavar="IP:PORT", help="UDP address of the listener; port 0 takes a free one (%(default)s)")
    relay.add_argument("--realm", default="heliograph", help="realm of the credentials (%(default)s)")
    relay.add_argument("--user", action="append", required=True, metavar="NAME:PASSWORD", help="a fixed user; may be repeated")
    relay.add_argument("--allow-peer", action="append", default=[], metavar="CIDR", help="peers allowed in spite of the deny list; may be repeated")
    relay.add_argument("--relay-address", metavar="IP", help="address that peers reach the relay at (default: the listener's)")
    relay.add_argument("--stats", metavar="IP:PORT", help="HTTP endpoint: /healthz and /allocations")
    commands.add_parser("hub", help="the event hub alone; settings come from the environment")
    commands.add_parser("node", help="a node of the fleet; settings come from the environment")
    chosen = parser.parse_args(arguments)
    if chosen.command == "relay":
        _relay(chosen)
    elif chosen.command == "hub":
        _hub()
    else:
        _node()


def _relay(chosen: argparse.Namespace) -> None:
    refuse_in_a_container(os.environ)
    users = dict(_user(text) for text in chosen.user)
    config = RelayConfig(
        realm=chosen.realm,
        credentials=static_users(users, chosen.realm),
        listen=address(chosen.listen, "--listen"),
        relay_address=chosen.relay_address and _ip(chosen.relay_address, "--relay-address"),
        allow_peers=tuple(_network(text) for text in chosen.allow_peer),
        stats_listen=address(chosen.stats, "--stats") if chosen.stats else None,
        allocations_per_account=8_000,
    )
    _needs_relay_address(config, "--relay-address")
    serve(config)


def refuse_in_a_container(environ: Mapping[str, str]) -> None:
    """Fixed passwords and open peer ranges are for a laptop; SystemExit where container metadata says this is none."""
    found = next((name for name in _CONTAINER if environ.get(name)), None)
    if found is None and environ.get("AWS_EXECUTION_ENV", "").startswith("AWS_ECS"):
        found = "AWS_EXECUTION_ENV"
    if found:
        raise SystemExit(f"{found} is set, so this is a deployment: `relay` has fixed users and is for measuring only; run `python -m media_fleet node`.")


def _hub() -> None:
    config = _hub_config(load_hub(os.environ))
    from media_fleet import hub

    run_loop(hub.run(config))


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


async def _relay_and_hub(config: RelayConfig, hub_config: HubConfig) -> None:
    """Both in one process and on one signal; each drains in its own time."""
    from media_fleet import hub

    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        relay = Relay(config)
        await relay.start()
    except OSError as error:
        raise SystemExit(f"The relay cannot listen on udp {config.listen[0]}:{config.listen[1]}: {error.strerror or error}.") from None
    try:
        print(f"relay listening on udp {relay.address[0]}:{relay.address[1]}", flush=True)
        hubbing = asyncio.create_task(hub.until(hub_config, stopped))
        await asyncio.wait([hubbing, stopping := asyncio.create_task(stopped.wait())], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if stopped.is_set():
            await relay.drain()
        await hubbing
    finally:
        await relay.close()


def _node() -> None:
    settings = load(os.environ)
    if bool(settings.redis_url) != bool(settings.connections_url):
        raise SystemExit("HELIOGRAPH_REDIS_URL and HELIOGRAPH_CONNECTIONS_URL belong together: set both for a hub, or none.")
    hub_config = _hub_config(settings) if settings.redis_url else None
    try:
        secrets = [_read_secret(settings.turn_secret_id)]
    except ValueError as error:
        raise SystemExit(f"HELIOGRAPH_TURN_SECRET_ID: {error}") from None
    config = RelayConfig(
        realm=settings.turn_realm,
        credentials=shared_secrets(lambda: secrets[-1], settings.turn_realm),
        listen=address(settings.turn_listen, "HELIOGRAPH_TURN_LISTEN"),
        relay_address=_ip(settings.relay_address, "HELIOGRAPH_RELAY_ADDRESS"),
        stats_listen=address(settings.stats_listen, "HELIOGRAPH_STATS_LISTEN") if settings.stats_listen else None,
        drain_s=_seconds(settings.relay_drain_s, "HELIOGRAPH_RELAY_DRAIN_S"),
    )
    _needs_relay_address(config, "HELIOGRAPH_RELAY_ADDRESS")

    async def node() -> None:
        watching = asyncio.create_task(_watch_secret(settings.turn_secret_id, secrets))
        try:
            await (_relay_and_hub(config, hub_config) if hub_config else run(config))
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching

    run_loop(node())


def _read_secret(secret_id: str) -> TurnSecrets:
    from adapters.secrets_aws import forget, read_secret

    forget()
    return TurnSecrets.of(read_secret(secret_id))


async def _watch_secret(secret_id: str, secrets: list[TurnSecrets]) -> None:
    """Takes up a rotated secret; while it cannot be read, the one we have goes on."""
    while True:
        await asyncio.sleep(_SECRET_S)
        try:
            secrets[:] = [await asyncio.to_thread(_read_secret, secret_id)]
        except Exception as error:  # the process edge: a store that is away must not end running calls
            log("turn_secret_not_read", error=repr(error))


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


def _needs_relay_address(config: RelayConfig, name: str) -> None:
    listening, told = ipaddress.ip_address(config.listen[0]), ipaddress.ip_address(config.relay_address or config.listen[0])
    if told.is_unspecified:
        raise SystemExit(f"A relay that listens on every address needs {name}: the IP address that peers reach it at.")
    if told.version != listening.version:
        raise SystemExit(f"{name} must be of the same address family as the listener.")


if __name__ == "__main__":
    main()
