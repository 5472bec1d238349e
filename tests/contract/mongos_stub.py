"""A router of a sharded cluster, as far as the migration can tell: the laptop's MongoDB behind a proxy that says `isdbgrid` and keeps the book of shard keys.

What a real mongos does with the data is not here: MongoDB's manual, "hello" and "shardCollection", says what it answers.
"""

from __future__ import annotations

import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import bson

_MSG, _QUERY, _REPLY = 2013, 2004, 1
_OF_A_REPLICA_SET: Final = (
    "setName",
    "setVersion",
    "hosts",
    "passives",
    "arbiters",
    "primary",
    "me",
    "electionId",
    "secondary",
    "lastWrite",
    "topologyVersion",
)


class Mongos(socketserver.ThreadingTCPServer):
    """`sharding` are the commands of sharding that came, in order."""

    daemon_threads = True

    def __init__(self, upstream: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.upstream, self.sharding = upstream, list[dict[str, Any]]()

    @property
    def uri(self) -> str:
        return f"mongodb://127.0.0.1:{self.server_address[1]}/?retryWrites=false"

    def answer(self, command: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a command of sharding; None for any other."""
        if not {"enableSharding", "shardCollection"} & set(command):
            return None
        self.sharding.append({name: value for name, value in command.items() if name in ("enableSharding", "shardCollection", "key", "unique", "$db")})
        if command["$db"] != "admin":
            return {"ok": 0.0, "code": 13, "errmsg": "may only be run against the admin database."}
        if "shardCollection" in command:
            self.upstream.config.collections.insert_one({"_id": command["shardCollection"], "key": command["key"], "unique": False})
        return {"ok": 1.0}


class _Connection(socketserver.BaseRequestHandler):
    server: Mongos

    def handle(self) -> None:
        with socket.create_connection(self.server.upstream.address) as upstream:
            while (request := _read(self.request)) is not None:
                code, number = struct.unpack_from("<i", request, 12)[0], struct.unpack_from("<i", request, 4)[0]
                if code == _MSG and (ours := self.server.answer(bson.decode(request[21:]) if request[20] == 0 else {})) is not None:
                    self.request.sendall(_message(_MSG, number, struct.pack("<IB", 0, 0) + bson.encode(ours)))
                    continue
                upstream.sendall(request)
                reply = _read(upstream)
                if reply is None:
                    return
                self.request.sendall(_as_mongos(reply))


def _as_mongos(reply: bytes) -> bytes:
    """An answer to hello, rewritten; any other as it came."""
    start = 21 if struct.unpack_from("<i", reply, 12)[0] == _MSG else 36
    document = bson.decode(reply[start:])
    if "isWritablePrimary" not in document and "ismaster" not in document:
        return reply
    for name in _OF_A_REPLICA_SET:
        document.pop(name, None)
    response_to, code = struct.unpack_from("<ii", reply, 8)
    return _message(code, response_to, reply[16:start] + bson.encode(document | {"msg": "isdbgrid"}))


def _message(code: int, response_to: int, body: bytes) -> bytes:
    return struct.pack("<iiii", 16 + len(body), 0, response_to, code) + body


def _read(connection: socket.socket) -> bytes | None:
    head = _exactly(connection, 4)
    rest = _exactly(connection, struct.unpack("<i", head)[0] - 4) if head else b""
    return head + rest if rest else None


def _exactly(connection: socket.socket, size: int) -> bytes:
    read = b""
    while len(read) < size:
        try:
            part = connection.recv(size - len(read))
        except OSError:
            return b""
        if not part:
            return b""
        read += part
    return read


@contextmanager
def mongos(upstream: Any) -> Iterator[Mongos]:
    """Listens on loopback; `upstream` is a client of the server behind it."""
    server = Mongos(upstream)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
