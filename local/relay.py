"""The relay of the laptop: `media_fleet.relay` with the product's time-limited credentials, and this machine as an allowed peer.

Loopback peers are refused everywhere else; here both ends of a call live on loopback. The secret comes by an environment variable, never by an argument.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence

from heliograph.ice import TurnSecrets
from media_fleet.relay import RelayConfig
from media_fleet.settings import address
from media_fleet.turn import shared_secrets
from media_fleet.workers import serve

LOOPBACK = ("127.0.0.0/8", "::1/128")


def config_of(argv: Sequence[str], secret: str | None) -> RelayConfig:
    """The relay that these arguments ask for. SystemExit with one sentence when they cannot be served."""
    parser = argparse.ArgumentParser(prog="python -m local.relay", description="The TURN relay for calls on this machine.")
    parser.add_argument("--listen", default="127.0.0.1:3478", metavar="IP:PORT", help="address of the UDP and the TCP listener; must be loopback (%(default)s)")
    parser.add_argument("--stats", required=True, metavar="IP:PORT", help="HTTP endpoint: /healthz and /allocations")
    parser.add_argument("--realm", default="heliograph", help="realm of the credentials (%(default)s)")
    parser.add_argument("--secret-env", default="HELIOGRAPH_LOCAL_TURN_SECRET", metavar="NAME", help="variable that holds the shared secret (%(default)s)")
    chosen = parser.parse_args(argv)
    listen, stats = address(chosen.listen, "--listen"), address(chosen.stats, "--stats")
    if not all(ipaddress.ip_address(host).is_loopback for host, _ in (listen, stats)):
        raise SystemExit("local.relay lets clients reach this machine's loopback, so it listens on loopback only.")
    if not secret:
        raise SystemExit(f"{chosen.secret_env} is not set: it holds the relay's shared secret.")
    secrets = TurnSecrets(secret)
    credentials = shared_secrets(lambda: secrets, chosen.realm)
    return RelayConfig(realm=chosen.realm, credentials=credentials, listen=(listen,), listen_tcp=(listen,), stats_listen=stats, allow_peers=LOOPBACK)


def _secret(argv: Sequence[str]) -> str | None:
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--secret-env", default="HELIOGRAPH_LOCAL_TURN_SECRET")
    return os.environ.pop(named.parse_known_args(argv)[0].secret_env, None)


if __name__ == "__main__":
    serve(config_of(sys.argv[1:], _secret(sys.argv[1:])))
