"""MongoDB: a deployment somebody runs already, or SecantusDB as a process of its own (GPL-2.0: started, never imported).

SecantusDB keeps an acknowledged write over kill -9 only with `j: true`, and slows down with retryable writes: both stand in the URI. It holds its directory
for about two seconds after SIGTERM, so a stop waits for the exit.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from local.services import HOST, LocalError, ping_mongo
from local.supervisor import Child

URI_ENVIRONMENT = "HELIOGRAPH_MONGODB_URI"


def child(port: int, storage_dir: Path) -> Child:
    """The server as a child process on loopback, its data under `storage_dir`."""
    binary = shutil.which("secantusd-py", path=str(Path(sys.executable).parent)) or shutil.which("secantusd-py")
    if binary is None:
        raise LocalError(f"No MongoDB found: `pip install SecantusDB`, or name a deployment in {URI_ENVIRONMENT}.")
    storage_dir.mkdir(parents=True, exist_ok=True)
    argv = (binary, "--host", HOST, "--port", str(port), "--storage-path", str(storage_dir), "--cache-size", "256M", "--log-level", "WARNING")
    return Child("mongo", argv, lambda: ping_mongo(port))


def uri(port: int) -> str:
    """Where clients find it, with the write concern that survives a kill."""
    return f"mongodb://{HOST}:{port}/?retryWrites=false&w=majority&journal=true"
