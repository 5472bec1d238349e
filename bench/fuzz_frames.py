"""200,000 fuzzed frames through the functions' own handlers, with real stores: no crash, no `internal`, and a refused frame changes nothing.

`python -m bench.fuzz_frames [--frames N] [--seed S] [--workers N]`. A worker is a process with stores and a stub of AWS of its own. Three judges watch it:
- each frame: what Redis says was written (keyspace notifications), what MongoDB says it changed (the driver's replies), by trace_id what was posted and queued;
- each batch: every key and every document before and after; what differs must have been written by a frame that was acknowledged;
- each batch: the head of every room is the number of its acknowledged messages and missed calls.
Counters are not state: the token buckets of rate limits and the highest client_seq of a socket move with refused frames too. A refusal for glare is no bad
input: it is remembered in the record of its call (heliograph.negotiation, rule 2).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlsplit

from pymongo import monitoring

from adapters import migrations_mongo, mongo_client
from adapters import settings as settings_module
from bench._fuzzed_frames import Cast, Frames
from bench._signal_world import Person, World, as_function, stores, world
from functions.routes import FUNCTIONS, Socket
from heliograph import errors
from heliograph.auth import claims_for, identity_from
from heliograph.messages import MAX_FRAME_BYTES, Reference, reference
from heliograph.shapes import parse_json
from local.gateway_events import select_route

LIMITS: Final = "account=1000000/100000,device=1000000/100000,messages=1000000/100000,signaling=1000000/100000,live=1000000/100000,presence=20/2"
"""HELIOGRAPH_LIMITS of the run: nobody is held up, but for presence, so that frames over a limit are among the refused ones."""
BATCH, SLOW_S, GAP_EVERY = 1_000, 2.0, 10_000
TWINS, LIVE, LESSER = 0.08, 0.65, 0.03  # shares: unchanged frames, frames on the sender's own socket, frames whose token carries less
COUNTER: Final = re.compile(r"hg:\{.*\}:(seq|limit):")
CODES: Final = {error.code for error in errors.catalogue()} - {errors.Internal.code}
NEVER: Final = {errors.Unavailable.code}  # every store is there
Handler = Callable[[dict[str, Any], Any], dict[str, Any]]


@cache
def handlers() -> dict[str, Handler]:
    """Route key -> the Lambda handler that the route table names."""
    found = {}
    for function in FUNCTIONS:
        for route in function.routes:
            if isinstance(route, Socket) and route.answers:
                module, _, name = function.handler.rpartition(".")
                found[route.key] = getattr(importlib.import_module(module), name)
    return found


@dataclass(slots=True)
class Tally:
    """What came of the frames."""

    frames: int = 0
    accepted: Counter[str] = field(default_factory=Counter)  # by action
    refused: Counter[str] = field(default_factory=Counter)  # by code
    took_ms: list[float] = field(default_factory=list)
    changes: int = 0  # of state, by refused frames
    glares: int = 0  # remembered in the record of their call
    documents: int = 0  # documents and keys compared
    findings: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0

    def add(self, other: Tally) -> None:
        """Takes in what another worker found."""
        self.accepted.update(other.accepted)
        self.refused.update(other.refused)
        for name in ("frames", "took_ms", "changes", "glares", "documents", "findings"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


# --- what happened: the judges' eyes


class _Writes(monitoring.CommandListener):
    """The collections that MongoDB changed, as its replies to the driver say."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._asked: dict[int, str] = {}

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        if event.command_name in ("insert", "update", "delete", "findAndModify"):
            self._asked[event.request_id] = event.command[event.command_name]

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        collection = self._asked.pop(event.request_id, None)
        if collection is not None and _has_changed(event.command_name, event.reply):
            self.seen.add(collection)

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        self._asked.pop(event.request_id, None)

    def take(self) -> set[str]:
        """Those since the last time."""
        seen, self.seen = self.seen, set()
        return seen


def _has_changed(command: str, reply: Mapping[str, Any]) -> bool:
    if command == "update":
        return bool(reply.get("nModified") or reply.get("upserted"))
    if command == "findAndModify":
        about = reply.get("lastErrorObject", {})
        return bool(about.get("updatedExisting") or about.get("upserted") or (about.get("n") and reply.get("value")))
    return bool(reply.get("n"))


@cache
def _writes() -> _Writes:
    """One listener a process: the driver knows no way to take one off again."""
    listener = _Writes()
    monitoring.register(listener)  # for clients made from now on
    return listener


class _Keys:
    """The keys that Redis says were written or deleted; `expired` holds those that ended by themselves."""

    _EVENT: Final = re.compile(rb"__keyspace@0__:(?!\*\r)([^\r]+)\r\n\$\d+\r\n(\w+)")
    _PONG: Final = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"

    def __init__(self, url: str) -> None:
        import redis

        make: Any = redis.Redis.from_url
        self.client, self.expired = make(url), set[str]()
        self.client.config_set("notify-keyspace-events", "KA")
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 6379))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(10)
        self._rest = b""
        self._socket.sendall(b"PSUBSCRIBE __keyspace@0__:*\r\n")
        self.take()

    def take(self) -> set[str]:
        """Those since the last time; a PING behind the last command makes sure that all of them have come."""
        self._socket.sendall(b"PING\r\n")
        answer = self._rest
        while (end := answer.find(self._PONG)) < 0:
            more = self._socket.recv(1 << 20)
            if not more:
                raise ConnectionError("Redis ended")
            answer += more
        answer, self._rest = answer[:end], answer[end + len(self._PONG) :]  # a key may end by itself right behind the answer
        found: set[str] = set()
        for key, event in self._EVENT.findall(answer):  # by hand: the client library takes ten times as long, and there are millions of them
            (self.expired if event == b"expired" else found).add(key.decode())
        return found

    def close(self) -> None:
        self._socket.close()
        self.client.close()


class _Desk(ThreadingHTTPServer):
    """Secrets Manager with every secret the functions ask for, and queues that keep what they get."""

    daemon_threads = True

    def __init__(self, secret: Mapping[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), _DeskRequest)
        self.secret, self.queued = json.dumps(secret), list[dict[str, Any]]()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _DeskRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, 65_536  # an answer is one packet
    server: _Desk

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["x-amz-target"].endswith("SendMessage"):
            self.server.queued.append(json.loads(asked["MessageBody"]))
        body = json.dumps({"SecretString": self.server.secret, "MessageId": "1"}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


def snapshot(client: Any, database: Any) -> dict[str, int]:
    """A hash of every key of Redis and of every document of MongoDB, counters left out."""
    import bson

    names = [name for name in client.scan_iter(count=5000) if not COUNTER.match(name.decode())]
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.dump(name)
        found = {f"redis {name.decode()}": hash(value) for name, value in zip(names, pipe.execute(), strict=True) if value is not None}
    for collection in database.list_collection_names():
        for document in database[collection].find():
            found[f"mongo {collection} {document['_id']}"] = hash(bson.encode(document))
    return found


# --- the scene


class Scene:
    """A tenant with five devices in two rooms and a foreign tenant, all of them live; new ids in every batch."""

    def __init__(self, made: World, database: Any, random: Random) -> None:
        def new(prefix: str) -> str:
            return f"{prefix}_{random.getrandbits(128):032x}"

        def person(tenant_id: str, account_id: str | None = None) -> Person:
            return Person(tenant_id, account_id or new("acc"), new("dev"), f"{random.getrandbits(64):016x}=")

        self.people = [person("fuzz") for _ in range(4)]
        self.people.append(person("fuzz", self.people[0].account_id))  # a second device
        self.foreign = [person("other") for _ in range(2)]
        members = {new("room"): self.people, new("room"): self.people[1:3], new("room"): self.foreign}
        self.rooms = {room_id: theirs[0].tenant_id for room_id, theirs in members.items()}
        accounts = [{p.account_id for p in theirs} for theirs in members.values()]
        for (room_id, tenant_id), inside in zip(self.rooms.items(), accounts, strict=True):
            room = {"tenant_id": tenant_id, "room_id": room_id, "name": "fuzz", "epoch": "e1", "created_at_ms": 0, "schema_version": 1}
            database.rooms.insert_one(room | {"members": [{"account_id": account_id, "role": "member"} for account_id in sorted(inside)]})
        everybody = [*self.people, *self.foreign]
        calls: dict[str, list[tuple[str, str, str, str]]] = {p.account_id: [] for p in everybody}
        for (room_id, theirs), _ in product(members.items(), range(2)):
            call_id, pair = new("call"), random.sample(theirs, 2)
            for one, other in (pair, pair[::-1]):
                calls[one.account_id].append((call_id, room_id, other.account_id, other.device_id))
        self.cast = Cast(
            calls=calls,
            rooms={p.account_id: [room_id for room_id, inside in zip(members, accounts, strict=True) if p.account_id in inside] for p in everybody},
            others={p.account_id: [room_id for room_id, inside in zip(members, accounts, strict=True) if p.account_id not in inside] for p in everybody},
            peers={p.account_id: [(q.account_id, q.device_id) for q in everybody if q.tenant_id == p.tenant_id and q is not p] for p in everybody},
            ids={"acc": [p.account_id for p in everybody], "dev": [p.device_id for p in everybody], "room": list(members), "call": [new("call")]},
            texts={"access_token": self._token},
        )
        for each in everybody:
            _must_be_taken(each, "hello", None)
            for room_id in self.cast.rooms[each.account_id]:
                _must_be_taken(each, "join", room_id)

    def _token(self, account_id: str) -> str:
        """An access token of one of the account's devices."""
        from functions import wiring

        sender = next(p for p in (*self.people, *self.foreign) if p.account_id == account_id)
        settings, now_ms = settings_module.settings(), settings_module.now_ms()
        identity = identity_from(_authorizer(sender.frame("ping", {})))
        sender.sent -= 1
        made = claims_for(identity, issuer=settings.issuer, audience=settings.audience, now_ms=now_ms, lifetime_s=600, jti=f"{now_ms:032x}")
        return str(wiring.tokens().sign(made, "at+jwt"))


def _authorizer(event: Mapping[str, Any]) -> dict[str, Any]:
    context: dict[str, Any] = event["requestContext"]["authorizer"]
    return context


def _parsed(text: str) -> dict[str, Any]:
    """The frame as the functions read it."""
    return parse_json(text, MAX_FRAME_BYTES)


def _must_be_taken(person: Person, action: str, room_id: str | None) -> None:
    answer = json.loads(handlers()[action](person.frame(action, {}, room_id), CONTEXT)["body"])
    if "code" in answer:
        raise AssertionError(f"{action}: {answer}")


CONTEXT: Final = SimpleNamespace(function_name="fuzz", aws_request_id="00000000-0000-0000-0000-000000000000", function_version="1", memory_limit_in_mb=512)


# --- one frame, and what is said of it


@dataclass(slots=True)
class Sent:
    """One frame on its way: whose, through which socket, in which words."""

    sender: Person
    event: dict[str, Any]
    how: tuple[str, ...]
    is_live: bool
    named: Reference

    @property
    def text(self) -> str:
        return str(self.event["body"])


class Batch:
    """A scene, its frames, and the judges' notes on them."""

    def __init__(self, made: World, eyes: Eyes, seed: int, answering: Mapping[str, Handler], tally: Tally) -> None:
        self._made, self._eyes, self._answering, self._tally = made, eyes, answering, tally
        self._scene = Scene(made, eyes.database, Random(seed))
        self._frames, self._random = Frames(seed, self._scene.cast), Random(seed + 1)
        self._written: set[str] = set()  # keys and collections, by acknowledged frames
        self._traces: set[str] = set()  # of acknowledged frames
        self._messages: dict[str, set[tuple[str, str]]] = {room_id: set() for room_id in self._scene.rooms}
        eyes.forget(made)

    def play(self, count: int) -> None:
        """Sends frames, then compares the world with the one before."""
        before = snapshot(self._eyes.keys.client, self._eyes.database)
        for number in range(count):
            self._send(self._next(is_gap=(self._tally.frames % GAP_EVERY) == GAP_EVERY // 2))
            if number % 100 == 99:
                self._look_at_posts()
        self._look_at_posts()
        self._compare(before, snapshot(self._eyes.keys.client, self._eyes.database))
        self._count_messages()

    def _next(self, *, is_gap: bool) -> Sent:
        """The next frame. On the sender's own socket it has the next client_seq, or an old one; else it comes through a socket that nobody knows."""
        pick = self._random
        sender = pick.choice(self._scene.people if pick.random() < 0.9 else self._scene.foreign)
        is_live = is_gap or pick.random() < LIVE
        seq = sender.sent + (3 if is_gap else 1) if is_live else pick.randint(1, 1000)
        if is_live and not is_gap and pick.random() < 0.04:
            seq = max(1, seq - pick.randint(1, 3))
        frame = self._frames.valid(sender.account_id, seq)
        text, how = (json.dumps(frame), ()) if is_gap or pick.random() < TWINS else self._frames.bent(frame, sender.account_id)
        named = reference(text)
        if is_live and not is_gap and (named.client_seq or 0) > sender.sent + 1:
            is_live = False  # it would wait ORDER_WAIT_S for what never comes
        sent_before, event = sender.sent, sender.frame("ping", {})
        sender.sent = sent_before
        about = event["requestContext"]
        about["routeKey"] = select_route(text, self._answering)
        if not is_live:
            about |= {"connectionId": f"{pick.getrandbits(64):016x}=", "connectedAt": settings_module.now_ms()}
        if pick.random() < LESSER:
            lesser = ({"role": "service", "scope": "rooms:read"}, {"scope": ""}, {"role": "king"}, {"account_id": ""}, {"sid": "ses_1"})
            _authorizer(event).update(pick.choice(lesser))
            how = (*how, "lesser token")
        event["body"] = text
        return Sent(sender, event, how, is_live, named)

    def _send(self, sent: Sent) -> None:
        self._tally.frames += 1
        started = time.perf_counter()
        try:
            answer = self._answering[sent.event["requestContext"]["routeKey"]](sent.event, CONTEXT)
        except Exception as raised:  # a handler never raises
            self._found("the handler raised", sent, repr(raised))
            answer = {}
        took_s = time.perf_counter() - started
        self._tally.took_ms.append(took_s * 1000)
        if took_s > SLOW_S:
            self._found(f"{took_s:.1f} s", sent, answer)
        said = self._judged(sent, answer)
        written, collections = self._eyes.keys.take(), self._eyes.writes.take()
        self._follow(sent, written, is_taken=said is not None and "code" not in said)
        touched = {f"redis {name}" for name in written if not COUNTER.match(name)} | {f"mongo {name}" for name in collections}
        if said is None:
            return
        if "code" not in said:
            self._taken(sent, said, touched)
            return
        self._tally.refused[said["code"]] += 1
        if said["code"] == errors.Glare.code and all(":call:" in name for name in touched):
            self._tally.glares += bool(touched)
            self._written |= touched
        elif touched:
            self._tally.changes += 1
            self._found(f"a refused frame wrote {', '.join(sorted(touched))}", sent, said)

    def _judged(self, sent: Sent, answer: Any) -> dict[str, Any] | None:
        """The answer's body, if it is an acknowledgement or a refusal of the documented form."""
        try:
            said: dict[str, Any] = json.loads(answer["body"])
        except (KeyError, TypeError, ValueError):
            self._found("no JSON", sent, answer)
            return None
        named = sent.named
        if answer.get("statusCode") != 200:
            self._found("not 200", sent, answer)
        if "code" not in said:
            if said.keys() - {"re", "epoch", "offset"} or said.get("re") != named.id:
                self._found("not an acknowledgement of this frame", sent, said)
                return None
            if sent.event["requestContext"]["routeKey"] != _parsed(sent.text)["action"]:
                self._found("taken under another route", sent, said)
            return said
        if said["code"] not in CODES or said["code"] in NEVER or (sent.how == () and said["code"] == "malformed" and not named.client_seq):
            self._found("not a refusal that may be", sent, said)
        must = {"code", "message", "retryable", "trace_id"}
        if said.keys() - must - {"retry_after_ms", "re"} or must - said.keys() or said.get("re") != named.id or not said["message"].endswith("."):
            self._found("not the form of a refusal", sent, said)
        return said

    def _taken(self, sent: Sent, said: Mapping[str, Any], touched: set[str]) -> None:
        frame = _parsed(sent.text)
        self._tally.accepted[frame["action"]] += 1
        self._written |= touched
        self._traces.add(frame["trace_id"])
        if frame["action"] == "message":
            self._messages[frame["room_id"]].add((sent.sender.device_id, frame["id"]))

    def _follow(self, sent: Sent, written: set[str], *, is_taken: bool) -> None:
        """Keeps up with the sender's client_seq; a newer socket that said hello is the sender's from then on."""
        about, sender = sent.event["requestContext"], sent.sender
        named = sent.named.client_seq
        has_moved = any(name.endswith(f":seq:{about['connectionId']}") for name in written)
        if sent.is_live and named is not None and has_moved:
            sender.sent = max(sender.sent, named)
        elif is_taken and _parsed(sent.text)["action"] == "hello" and named is not None and named < 2**31:
            sender.connection_id, sender.connected_at_ms, sender.sent = about["connectionId"], about["connectedAt"], named

    def _look_at_posts(self) -> None:
        """Whatever left the functions carries the trace_id of an acknowledged frame; an audited refusal alone is queued for a refused one."""
        for event in self._made.posted():
            if event["trace_id"] not in self._traces:
                self._tally.changes += 1
                self._tally.findings.append(f"a refused frame posted {event}")
        for message in self._eyes.desk.queued:
            if message.get("trace_id") not in self._traces and "audit" not in str(message.get("kind")):
                self._tally.changes += 1
                self._tally.findings.append(f"a refused frame queued {message}")
        self._eyes.desk.queued.clear()

    def _compare(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        self._tally.documents += len(after)
        self._eyes.keys.take()
        gone = {f"redis {name}" for name in self._eyes.keys.expired}
        differ = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        allowed = self._written | gone
        for name in sorted(differ):
            if name not in allowed and " ".join(name.split(" ")[:2]) not in allowed:
                self._tally.changes += 1
                self._tally.findings.append(f"changed by no acknowledged frame: {name}")

    def _count_messages(self) -> None:
        for room_id, tenant_id in self._scene.rooms.items():
            events = list(self._eyes.database.room_events.find({"tenant_id": tenant_id, "room_id": room_id}))
            head = max((event["offset"] for event in events), default=0)
            expected = len(self._messages[room_id]) + sum(event["event"] == "missed_call" for event in events)
            if not head == len(events) == expected or any(event["trace_id"] not in self._traces for event in events):
                self._tally.findings.append(f"{room_id} has {len(events)} events and head {head}; acknowledged frames make {expected}")

    def _found(self, what: str, sent: Sent, answer: Any) -> None:
        self._tally.findings.append(f"{what}: {sent.how} {sent.event['requestContext']['routeKey']} {sent.text[:300]!r} -> {str(answer)[:300]}")


@dataclass(slots=True)
class Eyes:
    """What the judges look with."""

    keys: _Keys
    writes: _Writes
    desk: _Desk
    database: Any

    def forget(self, made: World) -> None:
        """From here on only what happens next is seen."""
        self.keys.take()
        self.keys.expired.clear()
        self.writes.take()
        self.desk.queued.clear()
        made.posted()

    def empty(self) -> None:
        """Nothing is left of the last batch."""
        self.keys.client.flushdb()
        for name in self.database.list_collection_names():
            self.database[name].delete_many({})


@contextmanager
def opened(made: World) -> Iterator[Eyes]:
    """This process as every function at once, watched."""
    pem = _private_pem()
    desk = _Desk({"uri": made.mongodb_uri, "current": {"kid": "k1", "private_pem": pem}, "previous": None})
    watch = _Keys(made.redis_url)
    listener = _writes()
    database = mongo_client.connect(made.mongodb_uri, "heliograph")
    migrations_mongo.migrate(database)
    try:
        with as_function(made):
            os.environ |= {"AWS_ENDPOINT_URL_SECRETS_MANAGER": desk.url, "AWS_ENDPOINT_URL_SQS": desk.url}
            if any(item.name == "limits" for item in fields(settings_module.Settings)):
                os.environ[settings_module.PREFIX + "LIMITS"] = LIMITS
            yield Eyes(watch, listener, desk, database)
    finally:
        watch.close()
        database.client.close()
        desk.shutdown()
        desk.server_close()


def _private_pem() -> str:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def fuzz(made: World, frames: int, seed: int, answering: Mapping[str, Handler] | None = None) -> Tally:
    """Sends that many frames in this process; `answering` may put other handlers in the place of the functions'."""
    tally, started = Tally(), time.monotonic()
    with opened(made) as eyes:
        for number in range(-(-frames // BATCH)):
            eyes.empty()
            Batch(made, eyes, seed * 1_000_003 + number, answering or handlers(), tally).play(min(BATCH, frames - tally.frames))
    tally.elapsed_s = time.monotonic() - started
    return tally


# --- the run


def _work(frames: int, seed: int) -> Tally:
    """One worker; its log lines are written, as in Lambda, but not read."""
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 1)
    with tempfile.TemporaryDirectory() as folder, stores(Path(folder)) as (redis_url, mongodb_uri), world(redis_url, mongodb_uri) as made:
        return fuzz(made, frames, seed)


def run(frames: int, seed: int, workers: int) -> Tally:
    """All workers' frames."""
    tally, started = Tally(), time.monotonic()
    shares = [frames // workers + (number < frames % workers) for number in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for found in pool.map(_work, shares, [seed + number for number in range(workers)]):
            tally.add(found)
    tally.elapsed_s = time.monotonic() - started
    return tally


def show(tally: Tally, seed: int) -> None:
    """The table."""
    from rich.console import Console
    from rich.table import Table

    times = sorted(tally.took_ms)
    table = Table(title=f"Fuzzed frames, seed {seed}")
    table.add_column("what")
    table.add_column("count", justify="right")
    rows: list[tuple[str, str]] = [("frames", f"{tally.frames:,}")]
    rows += [(f"refused: {code}", f"{count:,}") for code, count in tally.refused.most_common()]
    rows += [(f"acknowledged: {action}", f"{count:,}") for action, count in tally.accepted.most_common()]
    rows += [
        ("frames a second, judges included", f"{tally.frames / tally.elapsed_s:,.0f}"),
        ("median, p99, worst, ms", f"{times[len(times) // 2]:.2f}, {times[len(times) * 99 // 100]:.1f}, {times[-1]:.0f}"),
        ("calls that remember a glare", f"{tally.glares:,}"),
        ("keys and documents compared", f"{tally.documents:,}"),
        ("state changes by refused frames", f"{tally.changes:,}"),
        ("findings", f"{len(tally.findings):,}"),
    ]
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    for finding in tally.findings[:10]:
        print(finding.encode("ascii", "backslashreplace").decode())


def main() -> int:
    """Prints the table; 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz_frames")
    parser.add_argument("--frames", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    tally = run(asked.frames, asked.seed, asked.workers)
    show(tally, asked.seed)
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
