"""The event hub: takes fan-out jobs from Redis Pub/Sub and posts them to sockets. One hub handles one room, in the order of publication.

It renews its lease only after a message of its own came back through its channel; without a live lease the functions post themselves.
Pub/Sub may lose a job when a hub or Redis dies, and while rooms move between hubs two posts may change places. Durable events stay recoverable:
they stand in MongoDB before they are published, clients order them by `offset`, and `ping` with the client's position finds what is missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from adapters import keys, redis_client
from adapters.connections_redis import Connections
from adapters.hub_redis import CACHED_S, PLAIN, SHARDED, Hubs
from adapters.outbox_apigateway import Outbox, Outcome
from adapters.settings import now_ms
from adapters.sigv4 import Credentials
from heliograph.errors import HeliographError, Malformed, Unavailable
from heliograph.fanout import Batch, Job, Scope, job_of, parse_job
from heliograph.messages import Event
from heliograph.rooms import Participant
from media_fleet.hub_backlog import Backlog, Item
from media_fleet.log import log
from media_fleet.stats import serve_stats
from media_fleet.stun import Address

_PROBE: Final = b"probe:"
_PROBE_S: Final = 1.0
_RETRY_S: Final = 0.2  # until a lost subscription is tried again
_SLOW_S: Final = 0.25  # a post that takes longer no longer counts against `concurrency`
_TICK_S: Final = 0.1
_LANES_PER_CONCURRENCY: Final = 4
_OVERFULL: Final = 4  # times `shed_over`: the lease is not renewed, so that the functions post themselves
_BLIND_AFTER: Final = 100  # posts without any answer, one after another: the gateway is out of reach from here
_BLIND_S: Final = 10.0
_GATHER_S: Final = 0.1  # 410s that come together are handled together
_TOLD_EACH: Final = 16
_SAMPLES: Final = 4096
_CREDENTIALS_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HubConfig:
    """Everything a hub is told."""

    redis_url: str
    connections_url: str
    region: str
    credentials: Callable[[], Credentials]  # may block: it is called in a thread, every half minute
    redis_mode: str = "single"
    redis_user: str = ""  # of ElastiCache, who signs in by IAM; empty where the URL says all
    redis_cache: str = ""
    stats_listen: Address | None = None  # HTTP endpoint: /healthz, /hub
    concurrency: int = 64  # posts in flight that were answered in time; slow ones have lanes of their own
    shed_over: int = 10_000
    lease_s: float = 3.0
    drain_s: float = 20.0  # how long, after SIGTERM, the backlog may be posted


class Hub:
    """A running hub: `async with Hub(config) as hub`."""

    def __init__(self, config: HubConfig) -> None:
        self.config = config
        self.stats_address: Address | None = None
        self.name = ""
        self.is_draining = False
        self.outcomes = dict.fromkeys(("delivered", "gone", "throttled", "failed", "too_large", "forbidden"), 0)
        self._id = os.urandom(8).hex()
        self._malformed = self._unanswered = self._lanes = 0
        self._blind_until_s = self._lease_until_s = 0.0
        self._limit = config.concurrency  # of lanes; more while targets are slow
        self._took_ms: deque[float] = deque(maxlen=_SAMPLES)
        self._backlog = Backlog(shed_over=config.shed_over, slow_lanes=max(1, config.concurrency // 4))
        self._begun_s: dict[str, float] = {}  # of the posts in flight, by socket
        self._gone: list[tuple[Item, str]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._probe: tuple[bytes, asyncio.Future[None]] | None = None
        self._subscribed, self._idle = asyncio.Event(), asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._stats: asyncio.Server | None = None

    async def __aenter__(self) -> Hub:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    @property
    def has_lease(self) -> bool:
        """Whether the last renewal still holds."""
        return asyncio.get_running_loop().time() < self._lease_until_s

    async def start(self) -> None:
        """Opens the stats endpoint and begins to listen; a Redis that is away is waited for. OSError when the address is taken."""
        config, self._loop = self.config, asyncio.get_running_loop()
        if config.stats_listen:
            self._stats = await serve_stats(*config.stats_listen, {"/healthz": self._health, "/hub": lambda: (HTTPStatus.OK, self.stats())})
            self.stats_address = self._stats.sockets[0].getsockname()[:2]
        self._credentials = await asyncio.to_thread(config.credentials)
        lanes = config.concurrency * _LANES_PER_CONCURRENCY
        self._outbox = Outbox(config.connections_url, region=config.region, credentials=lambda: self._credentials, concurrency=lanes, read_timeout_s=1.8)
        self._listener = asyncio.create_task(self._listen())
        self._control = [asyncio.create_task(self._keep_lease()), asyncio.create_task(self._keep_credentials())]

    async def close(self) -> None:
        """Ends at once, without the backlog."""
        await _ended(*self._control, self._listener, *self._tasks)
        if self._timer:
            self._timer.cancel()
        await self._outbox.aclose()
        if hasattr(self, "_client"):
            await asyncio.to_thread(self._client.close)
        if self._stats:
            self._stats.close()
            await self._stats.wait_closed()

    async def drain(self) -> None:
        """Gives up the lease, hears out the functions that still believe in it, and posts the backlog, at most `drain_s`."""
        self.is_draining = True
        await _ended(*self._control)
        if self.name:
            with contextlib.suppress(HeliographError):
                await asyncio.to_thread(self._hubs.give_up, self.name)
        self._lease_until_s = 0.0
        await asyncio.sleep(CACHED_S + 0.2)
        await _ended(self._listener)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_s):
                while not self._backlog.is_idle:
                    self._idle.clear()
                    await self._idle.wait()
                while self._tasks:
                    await asyncio.gather(*self._tasks)
        log("hub_drained", left=self._backlog.size, **self.outcomes)

    def stats(self) -> dict[str, Any]:
        """Counters since the start, and the time from job to answer of the last posts."""
        counts, took = asdict(self._backlog.counts), sorted(self._took_ms)
        failed = self.outcomes["failed"] + counts.pop("overflown")
        at = {f"p{cut}_ms": round(took[min(len(took) - 1, len(took) * cut // 100)], 1) if took else None for cut in (50, 99)}
        state = {"hub": self.name, "has_lease": self.has_lease, "backlog": self._backlog.size, "in_flight": len(self._begun_s)}
        return state | self.outcomes | {"failed": failed, "malformed": self._malformed} | counts | at

    def _health(self) -> tuple[HTTPStatus, object]:
        """Without a lease it is well all the same: a Redis that is away must not get hubs replaced."""
        status = "draining" if self.is_draining else "ok" if self.has_lease else "without_lease"
        return (HTTPStatus.SERVICE_UNAVAILABLE if self.is_draining else HTTPStatus.OK), {"status": status, "backlog": self._backlog.size}

    # The lease

    async def _keep_lease(self) -> None:
        had_lease = False
        while True:
            begun_s = self._loop.time()
            try:
                await self._prove_and_renew()
            except Exception as error:  # the process edge: whatever Redis answers, the next attempt may go better
                if had_lease:
                    log("hub_lease_not_renewed", hub=self.name, error=repr(error))
                self._subscribed.clear()
                if self._reading:
                    self._reading.cancel()  # it may hang: begin anew
            if self.has_lease and not had_lease:
                log("hub_has_lease", hub=self.name)
            had_lease = self.has_lease
            pause_s = self.config.lease_s / 3 if had_lease else _RETRY_S
            await asyncio.sleep(max(0.0, begun_s + pause_s - self._loop.time()))

    async def _prove_and_renew(self) -> None:
        """A message of our own must come back through our channel; only then, and only while we keep up, the lease is renewed."""
        async with asyncio.timeout(_PROBE_S):
            await self._subscribed.wait()
            nonce, back = _PROBE + os.urandom(8).hex().encode(), self._loop.create_future()
            self._probe = nonce, back
            name = self.name
            await asyncio.to_thread(self._hubs.publish, name, nonce)
            await back
        if self._backlog.size < _OVERFULL * self.config.shed_over and self._loop.time() >= self._blind_until_s:
            asked_s = self._loop.time()
            await asyncio.to_thread(self._hubs.renew, name, int(self.config.lease_s * 1000))
            self._lease_until_s = asked_s + self.config.lease_s

    async def _keep_credentials(self) -> None:
        while True:
            await asyncio.sleep(_CREDENTIALS_S)
            try:
                self._credentials = await asyncio.to_thread(self.config.credentials)
            except (OSError, ValueError, SystemExit) as error:  # the ones we have may still be good
                log("hub_credentials_not_read", error=repr(error))

    # The channel

    async def _listen(self) -> None:
        """Subscribes again whenever the subscription ends."""
        while True:
            self._reading = asyncio.create_task(self._read())
            try:
                await asyncio.wait([self._reading])
            finally:
                self._subscribed.clear()
                await _ended(self._reading)
            if not self._reading.cancelled() and (error := self._reading.exception()):
                log("hub_subscription_lost", error=repr(error))
            await asyncio.sleep(_RETRY_S)

    async def _read(self) -> None:
        if not hasattr(self, "_client"):
            self._client = await asyncio.to_thread(redis_client.connect, self.config.redis_url, self.config.redis_mode, self._signed_in())
            self._hubs = Hubs(self._client, is_cluster=self.config.redis_mode == "cluster")
            self._connections = Connections(self._client)
        async with await self._subscriber() as client, client.pubsub() as pubsub:
            channel = keys.hub_jobs(self.name)
            await (pubsub.ssubscribe if self.name.startswith(SHARDED) else pubsub.subscribe)(channel)
            async for message in pubsub.listen():
                if message["type"] in ("subscribe", "ssubscribe"):
                    self._subscribed.set()
                elif message["type"] in ("message", "smessage"):
                    self._receive(message["data"])
                else:
                    return  # the slot moved to another node

    async def _subscriber(self) -> Any:
        """A client at the server that our channel is on; Redis 7.0 and later have sharded channels, which a cluster does not repeat on every node."""
        import redis.asyncio

        options: dict[str, Any] = {"socket_connect_timeout": redis_client.CONNECT_TIMEOUT_S, "socket_timeout": redis_client.SOCKET_TIMEOUT_S}
        options["credential_provider"] = self._signed_in()
        url, is_cluster = self.config.redis_url, self.config.redis_mode == "cluster"
        if is_cluster and self.name.startswith(SHARDED):
            url = await asyncio.to_thread(self._url_of_node)
        client = redis.asyncio.Redis.from_url(url, retry=None, **options)
        try:
            kind = SHARDED if int(str((await client.info("server"))["redis_version"]).partition(".")[0]) >= 7 else PLAIN
        except BaseException:
            await client.aclose()
            raise
        if self.name == kind + self._id:
            return client
        self.name = kind + self._id
        await client.aclose()
        return await self._subscriber()

    def _signed_in(self) -> Any:
        """With the keys that are kept here: this loop must not wait for the container's endpoint."""
        config = self.config
        return redis_client.sign_in(config.redis_user, config.redis_cache, credentials=lambda: self._credentials, region=config.region)

    def _url_of_node(self) -> str:
        self._client.nodes_manager.initialize()
        node = self._client.get_node_from_key(keys.hub_jobs(self.name))
        parts = urlsplit(self.config.redis_url)
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        host = f"[{node.host}]" if ":" in node.host else node.host
        return urlunsplit(parts._replace(netloc=f"{login}{host}:{node.port}"))

    def _receive(self, data: bytes) -> None:
        if data.startswith(_PROBE):
            if self._probe and self._probe[0] == data and not self._probe[1].done():
                self._probe[1].set_result(None)
            return
        try:
            job = parse_job(data)
        except Malformed as error:
            self._malformed += 1
            log("hub_job_malformed", error=str(error))
            return
        self.add(job)

    def add(self, job: Job) -> None:
        """Takes up a job, as if it had come by the channel."""
        self._backlog.add(job, self._loop.time())
        self._fill()

    # Posts

    def _fill(self) -> None:
        """A lane for each post that may go now. Lanes with a slow target do not count, up to a limit."""
        now_s = self._loop.time()
        slow = sum(begun_s < now_s - _SLOW_S for begun_s in self._begun_s.values()) if self._lanes >= self.config.concurrency else 0
        self._limit = min(self.config.concurrency + slow, self.config.concurrency * _LANES_PER_CONCURRENCY)
        while self._lanes < self._limit and (taken := self._backlog.take(now_s)):
            self._lanes += 1
            self._begun_s[taken[0]] = now_s
            self._run(self._lane(*taken))
        if self._timer is None and not self._backlog.is_idle:
            self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._backlog.tick(self._loop.time())
        self._fill()

    async def _lane(self, connection_id: str, item: Item) -> None:
        """Posts until nothing is ready, or until there are lanes enough without this one."""
        while True:
            try:
                outcome = await self._outbox.post(connection_id, item.job.data)
            except Exception as error:  # the process edge: one post must not end a lane
                outcome = Outcome(connection_id, "failed", detail=repr(error))
            del self._begun_s[connection_id]
            now_s = self._loop.time()
            self._count(connection_id, item, outcome, now_s)
            self._backlog.done(connection_id, is_slow=outcome.status is None)
            if self._lanes > self._limit or (taken := self._backlog.take(now_s)) is None:
                break
            connection_id, item = taken
            self._begun_s[connection_id] = now_s
        self._lanes -= 1
        if self._backlog.is_idle:
            self._idle.set()

    def _count(self, connection_id: str, item: Item, outcome: Outcome, now_s: float) -> None:
        self.outcomes[outcome.kind] += 1
        self._took_ms.append((now_s - item.at_s) * 1000)
        self._unanswered = self._unanswered + 1 if outcome.status in (None, 403) else 0
        if self._unanswered >= _BLIND_AFTER and now_s >= self._blind_until_s:
            self._blind_until_s = now_s + _BLIND_S
            log("hub_without_answers", posts=self._unanswered, detail=outcome.detail)
        if outcome.kind == "gone":
            self.outcomes["gone"] += self._backlog.forget(connection_id)
            self._gone.append((item, connection_id))
            if len(self._gone) == 1:
                self._run(self._forget_gone())

    async def _forget_gone(self) -> None:
        """Takes sockets that answered 410 out of their rooms and accounts and tells those who are left; what fails is done at the next 410."""
        await asyncio.sleep(_GATHER_S)
        gone, self._gone = self._gone, []
        try:
            for job in await asyncio.to_thread(self._forget, gone):
                self.add(job)
        except Unavailable:
            log("hub_gone_not_forgotten", connections=len(gone))

    def _forget(self, gone: list[tuple[Item, str]]) -> list[Job]:
        rooms: dict[tuple[str, str], dict[str, Job]] = {}
        accounts: dict[tuple[str, str], set[str]] = {}
        for item, connection_id in gone:
            job = item.job
            if job.room_id:
                rooms.setdefault((job.tenant_id, job.room_id), {})[connection_id] = job
            elif owner := item.owner or job.account_id:
                accounts.setdefault((job.tenant_id, owner), set()).add(connection_id)
        left: list[Job] = []
        for (tenant_id, room_id), jobs in rooms.items():
            participants = [p for p in self._connections.in_room(tenant_id, room_id) if p.connection_id in jobs]
            for p in participants:
                accounts.setdefault((tenant_id, p.account_id), set()).add(p.connection_id)
            left += self._take_out(tenant_id, room_id, participants, jobs)
        for (tenant_id, account_id), ids in accounts.items():
            self._connections.remove(tenant_id, account_id, ids)
        return left

    def _take_out(self, tenant_id: str, room_id: str, gone: list[Participant], jobs: Mapping[str, Job]) -> list[Job]:
        """Each leaving is a version of the roster and is told. Of many at once only the last is: the others see the gap and read the roster anew."""
        if len(gone) > _TOLD_EACH:
            self._connections.leave_room(tenant_id, room_id, [participant.connection_id for participant in gone[:-1]])
            gone = gone[-1:]
        left: list[Job] = []
        for participant in gone:
            was_in, roster = self._connections.leave_room(tenant_id, room_id, [participant.connection_id])
            if was_in and roster.participants:
                body = {"account_id": participant.account_id, "device_id": participant.device_id, **roster.position()}
                event = Event("participant_left", now_ms(), _trace_id(jobs[participant.connection_id].data), body, room_id)
                left.append(job_of(Scope(tenant_id, room_id), Batch(event, tuple(p.connection_id for p in roster.participants))))
        return left

    def _run(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _trace_id(data: bytes) -> str:
    """The trace an event belongs to."""
    try:
        return str(json.loads(data)["trace_id"])
    except (ValueError, KeyError, TypeError):
        return os.urandom(16).hex()


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run(config: HubConfig) -> None:
    """Runs a hub until SIGTERM or SIGINT; says on stdout when it has begun."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await until(config, stopped)


async def until(config: HubConfig, stopped: asyncio.Event) -> None:
    """Runs a hub until the event is set, then drains it."""
    hub = Hub(config)
    try:
        await hub.start()
    except OSError as error:
        raise SystemExit(f"The hub cannot listen on {config.stats_listen}: {error.strerror or error}.") from None
    try:
        print("hub started" + (f", stats on {hub.stats_address[0]}:{hub.stats_address[1]}" if hub.stats_address else ""), flush=True)
        await stopped.wait()
        await hub.drain()
    finally:
        await hub.close()
