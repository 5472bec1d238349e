"""What a signaling function needs around it, on loopback: stores, a stub of AWS, a room with two people in it. And the Lambda events of their frames."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from adapters import migrations_mongo, mongo_client, secrets_aws
from adapters import settings as settings_module
from functions import wiring
from heliograph.auth import ACCESS_TOKEN_S, SCOPES, Identity
from heliograph.limits import LIMITS
from local import service_mongo, service_redis
from local.services import choose_ports
from local.supervisor import Supervisor

ROOT: Final = Path(__file__).resolve().parent.parent
SDP: Final = "".join(
    f"{line}\r\n"
    for line in (
        "v=0",
        "o=- 7006363845595942468 2 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE 0",
        "m=audio 9 UDP/TLS/RTP/SAVPF 111",
        "c=IN IP4 0.0.0.0",
        "a=rtcp:9 IN IP4 0.0.0.0",
        "a=ice-ufrag:5Fbr",
        "a=ice-pwd:9vF1FQ6pOWMMrtsk8YyGmUtE",
        "a=ice-options:trickle",
        "a=fingerprint:sha-256 " + ":".join(["4A"] * 32),
        "a=setup:actpass",
        "a=mid:0",
        "a=sendrecv",
        "a=rtcp-mux",
        "a=rtpmap:111 opus/48000/2",
        "a=fmtp:111 minptime=10;useinbandfec=1",
    )
)
UNLIMITED: Final = ",".join(f"{name}=1000000/1000000" for name in LIMITS)
LINE: Final = "candidate:1 1 udp 1677729535 203.0.113.7 50000 typ srflx raddr 0.0.0.0 rport 0"


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(16)}"


@dataclass(slots=True)
class Person:
    """An account with one socket."""

    tenant_id: str
    account_id: str = field(default_factory=lambda: new_id("acc"))
    device_id: str = field(default_factory=lambda: new_id("dev"))
    connection_id: str = field(default_factory=lambda: secrets.token_hex(8) + "=")
    connected_at_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    sid: str = field(default_factory=lambda: new_id("ses"))
    role: str = "member"
    sent: int = 0

    def identity(self) -> Identity:
        """Who they are, authenticated just now for a quarter of an hour."""
        now_ms = time.time_ns() // 1_000_000
        scope = " ".join(sorted(SCOPES[self.role]))
        return Identity(self.tenant_id, self.account_id, self.device_id, self.sid, self.role, scope, now_ms, now_ms + ACCESS_TOKEN_S * 1000)

    def frame(self, action: str, body: dict[str, Any], room_id: str | None = None) -> dict[str, Any]:
        """The Lambda event of the next frame of this socket."""
        self.sent += 1
        frame = {"action": action, "id": new_id("msg"), "client_seq": self.sent, "trace_id": secrets.token_hex(16), "body": body}
        about = {"routeKey": action, "connectionId": self.connection_id, "connectedAt": self.connected_at_ms, "authorizer": self.identity().as_context()}
        return {"requestContext": about, "body": json.dumps(frame | ({"room_id": room_id} if room_id else {})), "isBase64Encoded": False}


@dataclass(slots=True)
class World:
    """Where everything listens, and who is there."""

    redis_url: str
    mongodb_uri: str
    aws_url: str
    room_id: str = field(default_factory=lambda: new_id("room"))
    ana: Person = field(default_factory=lambda: Person("bench"))
    ben: Person = field(default_factory=lambda: Person("bench"))

    def environment(self) -> dict[str, str]:
        """The environment of a function."""
        prefix = settings_module.PREFIX
        needed = {prefix + item.name.upper(): "x" for item in fields(settings_module.Settings) if item.default is MISSING}
        queues = {f"{prefix}{name}_QUEUE_URL": f"{self.aws_url}/000000000000/{name.lower()}" for name in ("NOTIFICATIONS", "TIMERS")}
        ours = {
            prefix + "LIMITS": UNLIMITED,
            prefix + "TOKEN_KEYS_SECRET_ID": "token-keys",
            prefix + "REDIS_URL": self.redis_url,
            prefix + "CONNECTIONS_URL": f"{self.aws_url}/dev",
            **queues,
        }
        keys = {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        return needed | ours | keys | {"AWS_ENDPOINT_URL": self.aws_url, "AWS_EC2_METADATA_DISABLED": "true"}

    def posted(self) -> list[dict[str, Any]]:
        """The frames that sockets were sent since the last time this was asked."""
        with urllib.request.urlopen(f"{self.aws_url}/posted", timeout=5) as answer:  # noqa: S310  # loopback
            return [json.loads(text) for text in json.load(answer)]

    def call(self, call_id: str, **more: Any) -> dict[str, Any]:
        """The body of ana's signaling frame to ben."""
        return {"call_id": call_id, "to": {"account_id": self.ben.account_id, "device_id": self.ben.device_id}, **more}

    def ping(self, offset: int = 0) -> dict[str, Any]:
        """A ping that names the room; with offset 0 the client knows nothing of its stream."""
        room = {"room_id": self.room_id} | ({"epoch": "e1", "offset": offset} if offset else {})
        return self.ana.frame("ping", {"rooms": [room]})

    def message(self) -> dict[str, Any]:
        return self.ana.frame("message", {"text": "Can you hear me? The gate is open, come round the back."}, self.room_id)

    def candidate(self, call_id: str) -> dict[str, Any]:
        body = self.call(call_id, negotiation_id="neg_1", candidate=LINE, sdp_mid="0", sdp_m_line_index=0)
        return self.ana.frame("candidate", body, self.room_id)

    def offer(self, call_id: str) -> dict[str, Any]:
        return self.ana.frame("offer", self.call(call_id, negotiation_id="neg_1", sdp=SDP), self.room_id)

    def make_room(self) -> None:
        """Stores the room with ana and ben as members."""
        database = mongo_client.connect(self.mongodb_uri, "heliograph")
        migrations_mongo.migrate(database)
        members = [{"account_id": person.account_id, "role": "member"} for person in (self.ana, self.ben)]
        room = {"tenant_id": "bench", "room_id": self.room_id, "name": "bench", "epoch": "e1", "members": members}
        database.rooms.insert_one(room | {"created_at_ms": 0, "schema_version": 1})
        database.client.close()


@contextmanager
def stores(folder: Path) -> Iterator[tuple[str, str]]:
    """A Redis and a MongoDB server, started as the laptop starts them: (redis_url, mongodb_uri)."""
    ports = choose_ports(("redis", "mongo"), {})
    binary = service_redis.resolve({}).binary
    if binary is None:
        raise RuntimeError(service_redis.INSTALL_HINT)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    supervisor = Supervisor(folder / "logs", folder / "pids.json")
    children = (service_redis.child(binary, ports["redis"], folder / "redis"), service_mongo.child(ports["mongo"], folder / "mongo"))
    try:
        for child in children:
            asyncio.run_coroutine_threadsafe(supervisor.start(child), loop).result(40)
        yield service_redis.url(ports["redis"]), service_mongo.uri(ports["mongo"])
    finally:
        asyncio.run_coroutine_threadsafe(supervisor.stop(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextmanager
def world(redis_url: str, mongodb_uri: str) -> Iterator[World]:
    """A stub of AWS beside these stores, and a room."""
    command = [sys.executable, "-m", "bench._aws_stub", mongodb_uri]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        made = World(redis_url, mongodb_uri, process.stdout.readline().strip())
        made.make_room()
        yield made
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def as_function(made: World) -> Iterator[None]:
    """Makes this process one of a function in that world: its environment, and adapters built anew."""
    before, clean = dict(os.environ), {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", settings_module.PREFIX))}
    try:
        os.environ.clear()
        os.environ.update(clean | made.environment())
        _forget()
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        _forget()


def _forget() -> None:
    wiring.forget()
    secrets_aws.forget()
    for value in vars(settings_module).values():
        if hasattr(value, "cache_clear"):
            value.cache_clear()
