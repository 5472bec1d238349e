"""What every service of the laptop needs: a port of its own, a private file for its secrets, and a ping in its own protocol."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from local.supervisor import NotReady

HOST: Final = "127.0.0.1"
FILES_WANTED: Final = 65_536
FILES_NEEDED: Final = 4_096  # below, a few thousand sockets do not fit and the person should hear of it
_FILES_MACOS: Final = 10_240  # OPEN_MAX: where the hard limit says "unlimited", more than this is refused
_PING_TIMEOUT_S: Final = 2.0


class LocalError(Exception):
    """The stack cannot start; the text is one sentence that says what to do."""


def raise_file_limit(wanted: int = FILES_WANTED) -> int:
    """Lets this process and its children open as many files as wanted, or as the system grants; answers how many. Each socket of the gateway is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    is_capped = hard != resource.RLIM_INFINITY and hard < wanted
    most = hard if is_capped else wanted
    for new_soft, new_hard in ((wanted, wanted if is_capped else hard), (most, hard), (min(most, _FILES_MACOS), hard)):
        if new_soft > soft:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (new_soft, new_hard))
                return new_soft
    return soft


def files_note(limit: int) -> str | None:
    """A sentence for the person whose system grants too few open files."""
    if limit >= FILES_NEEDED:
        return None
    return f"This process may open {limit} files, and each socket is one; `ulimit -Hn {FILES_WANTED}` (as root, before the start) allows more."


def choose_ports(names: tuple[str, ...], earlier: Mapping[str, int]) -> dict[str, int]:
    """A free loopback port for each name; the one of the last run where it is still free."""
    held: list[socket.socket] = []
    ports: dict[str, int] = {}
    try:
        for name in sorted(names, key=lambda each: each not in earlier):
            held += _bind(earlier.get(name, 0)) or _bind(0)
            ports[name] = held[-1].getsockname()[1]
    finally:
        for each in held:
            each.close()
    return ports


def _bind(port: int) -> list[socket.socket]:
    """The port held for TCP and UDP, or nothing."""
    pair = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
    try:
        pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # TIME_WAIT of the last run is no reason to move
        pair[1].bind((HOST, port))
        pair[1].listen(1)
        pair[0].bind((HOST, pair[1].getsockname()[1]))
    except OSError:
        for each in pair:
            each.close()
        return []
    return pair


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty when the file is missing or torn."""
    try:
        data = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return data if isinstance(data, dict) else {}


def write_private_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file that only its owner may read, all at once."""
    new = path.with_name(f"{path.name}.tmp")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(data, file, indent=2)
    new.replace(path)


async def exchange(port: int, request: bytes, at_least: int) -> bytes:
    """Send bytes to a TCP port and read the start of the answer. Raises NotReady."""
    try:
        async with asyncio.timeout(_PING_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(request)
                return await reader.readexactly(at_least)
            finally:
                writer.close()
    except ConnectionRefusedError:
        raise NotReady(f"nothing listens on port {port} yet") from None
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as reason:
        raise NotReady(f"port {port} is open but does not answer ({type(reason).__name__})") from None


async def ping_http(port: int, path: str) -> None:
    """Any HTTP answer below 500. Raises NotReady."""
    line = await exchange(port, f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: close\r\n\r\n".encode(), 12)
    if not line.startswith(b"HTTP/1.") or line[9:10] == b"5":
        raise NotReady(f"port {port} answered {line!r}")


async def ping_redis(port: int) -> None:
    """PING and PONG. Raises NotReady."""
    answer = await exchange(port, b"PING\r\n", 5)
    if answer != b"+PONG":
        raise NotReady(f"Redis answered {answer!r}")


async def ping_mongo(port: int) -> None:
    """`hello` in an OP_MSG, the answer's header. Raises NotReady."""
    import bson

    body = struct.pack("<IB", 0, 0) + bson.encode({"hello": 1, "$db": "admin"})
    answer = await exchange(port, struct.pack("<iiii", 16 + len(body), 1, 0, 2013) + body, 16)
    if struct.unpack("<iiii", answer)[3] != 2013:
        raise NotReady("MongoDB answered something else than OP_MSG")


async def ping_stun(port: int) -> None:
    """A STUN Binding request (RFC 8489) over UDP. Raises NotReady."""
    loop = asyncio.get_running_loop()
    transaction_id = os.urandom(12)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setblocking(False)
        try:
            udp.connect((HOST, port))
            async with asyncio.timeout(0.5):
                await loop.sock_sendall(udp, struct.pack("!HHI", 1, 0, 0x2112A442) + transaction_id)
                answer = await loop.sock_recv(udp, 2048)
        except (OSError, TimeoutError):
            raise NotReady(f"no STUN answer on UDP port {port} yet") from None
    if answer[8:20] != transaction_id:
        raise NotReady("the STUN answer belongs to another request")
