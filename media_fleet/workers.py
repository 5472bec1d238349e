"""A relay in as many processes as are asked for: one CPU each. One is `media_fleet.relay.Relay` in this process; several are a WorkerPool.

The pool's parent makes every socket and keeps it open. The kernel chooses among the UDP sockets of one address by a hash of the client's address, and as no
socket ever leaves, a client stays with its worker: when one dies, its clients alone allocate anew (their requests get 437), at the one that takes its place.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from adapters.settings import now_ms
from media_fleet import control
from media_fleet.control import Start
from media_fleet.datapath.python import UDP
from media_fleet.log import log
from media_fleet.readings import NETWORK, AllocationUsage, RelayReading
from media_fleet.relay import (
    CannotListen,
    Relay,
    RelayConfig,
    address_of,
    close_listeners,
    listening_at,
    open_listeners,
    raise_file_limit,
    run_loop,
    text_of,
    told,
    urls_of,
)
from media_fleet.stats import Answer, serve_stats
from media_fleet.streams import BACKLOG, TCP, TLS
from media_fleet.stun import Address
from media_fleet.tls import TlsFiles, server_context
from media_fleet.turn import Usage
from media_fleet.worker import TELL_S

AUTO: Final = "auto"
MOST: Final = 64
START_S: Final = 30.0  # how long a worker may take to start
SILENT_S: Final = 30.0  # a worker that says nothing for so long hangs, and is replaced
_RESTART_S, _RESTART_MOST_S, _STEADY_S = 0.1, 5.0, 10.0  # the wait before a start, doubled after each, and how long a worker runs before that is forgotten
_CLOSE_S: Final = 5.0  # how long a worker may take to end
_LOOK_S: Final = 1.0
_LATE_S: Final = 2.0  # how much longer than the limit a drain may take
_SIBLING_BUFFER_BYTES: Final = 1_048_576  # the kernel may give less
_ROOT: Final = str(Path(__file__).resolve().parent.parent)  # where `python -m media_fleet` finds this code
_NOTHING: Final = RelayReading(allocations=0, capacity=0)
_Key = TypeVar("_Key", int, str)
_Ended = Callable[[AllocationUsage], object]


class WorkerFailed(Exception):
    """A worker did not come up, and did not say why."""


def count_of(text: str, name: str) -> int:
    """How many processes `text` asks for: a number, or `auto` for one per CPU; SystemExit says what `name` must look like."""
    if text == AUTO:
        return min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if not (text.isdecimal() and 1 <= int(text) <= MOST):
        raise SystemExit(f"{name} must be a number of processes from 1 to {MOST}, or {AUTO} for one per CPU.")
    return int(text)


@dataclass(slots=True, eq=False)
class _Worker:
    """A place among the workers: the process that fills it now, and what that one told."""

    number: int
    first_start: asyncio.Future[None]
    process: asyncio.subprocess.Process | None = None
    writer: asyncio.StreamWriter | None = None
    is_ready: bool = False
    quiet_s: float = 0.0  # as the parent's loop counts: when the machine sleeps, nobody is late
    refusal: str = ""  # why it says that it cannot start
    failure: str = ""  # what became of it
    reading: RelayReading = _NOTHING
    living: dict[str, tuple[Usage, int]] = field(default_factory=dict)  # by allocation_id, and when it was read
    coming: dict[str, tuple[Usage, int]] = field(default_factory=dict)  # the first parts of the next `living`
    has_looked: asyncio.Event = field(default_factory=asyncio.Event)
    is_drained: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, kind: str, content: Mapping[str, Any] | None = None) -> None:
        if self.writer and not self.writer.is_closing():
            self.writer.write(control.line(kind, content))

    def kill(self) -> None:
        if self.process and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()


class WorkerPool:
    """A running relay of several processes, with the face of `Relay`: `async with WorkerPool(config, 4) as relay`. Linux.

    What it tells of the workers is what they told last: readings within TELL_S, allocations within some seconds, both by `look`. A worker that is killed
    takes the traffic since then with it; what it had told is told as ended. A worker's parent is the thread that starts it: the main one.
    """

    def __init__(self, config: RelayConfig, workers: int, ended: _Ended | None = None, *, silent_s: float = SILENT_S) -> None:
        """`ended` is told what each allocation carried when it is over."""
        self.config = config
        self.hosts = config.relay_hosts()
        self.addresses: dict[str, list[Address]] = {UDP: [], TCP: [], TLS: []}  # where it listens, once it has started
        self.stats_address: Address | None = None
        self._count, self._tell_ended, self._silent_s = workers, ended, silent_s
        self._workers: list[_Worker] = []
        self._listeners: tuple[dict[str, list[socket.socket]], ...] = ()
        self._ways: list[tuple[socket.socket, socket.socket]] = []  # to each worker: where the others send, where it receives
        self._keeping: list[asyncio.Task[None]] = []
        self._watching: asyncio.Task[None] | None = None
        self._credentials: Mapping[str, Any] = {}
        self._ended: deque[Usage] = deque(maxlen=config.ended_kept)
        self._gone = _NOTHING  # counters of workers that are no more
        self._stats: asyncio.Server | None = None
        self._is_draining = False
        self._closing = asyncio.Event()

    @property
    def address(self) -> Address:
        """Of the first UDP listener."""
        return self.addresses[UDP][0]

    async def __aenter__(self) -> WorkerPool:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def start(self) -> None:
        """Opens the listeners and starts every worker; CannotListen, ValueError (what a worker refuses, too) or WorkerFailed, and then nothing is left."""
        if sys.platform != "linux":
            raise ValueError("Several relay processes need Linux, whose kernel shares an address among them by the client's.")
        self._credentials = control.told_credentials(self.config.credentials)
        loop = asyncio.get_running_loop()
        try:
            self._listeners = open_listeners(self.config, self._count)
            self.addresses = {transport: [address_of(one) for one in some] for transport, some in self._listeners[0].items()}
            if self.config.tls is None:
                self.addresses[TLS] = []  # until `serve_tls`
            self._ways = [_way() for _ in range(self._count)]
            if self.config.stats_listen:
                await self._serve_stats(self.config.stats_listen)
            self._workers = [_Worker(number, loop.create_future()) for number in range(self._count)]
            self._keeping = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
            self._watching = asyncio.create_task(self._watch())
            await asyncio.gather(*(worker.first_start for worker in self._workers))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends every allocation and every worker, and closes every socket."""
        self._closing.set()
        for worker in self._workers:
            worker.say(control.CLOSE)
        if self._watching:
            self._watching.cancel()
        if self._keeping:
            await asyncio.wait(self._keeping, timeout=_CLOSE_S)
            for worker in self._workers:
                worker.kill()
            await asyncio.wait(self._keeping)
        close_listeners(*self._listeners)
        for way in self._ways:
            for end in way:
                end.close()
        if self._stats:
            self._stats.close()
            await self._stats.wait_closed()

    async def drain(self) -> None:
        """Refuses new allocations and waits until the living ones are gone, at most `drain_s`."""
        self._is_draining = True
        for worker in self._workers:
            worker.say(control.DRAIN)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(worker.is_drained.wait() for worker in self._workers)), self.config.drain_s + _LATE_S)

    async def look(self) -> None:
        """Asks every worker how it stands by now: then `reading`, `living` and `allocations` tell that, but for workers that do not answer soon."""
        for worker in self._workers:
            worker.has_looked.clear()
            worker.say(control.LOOK)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(worker.has_looked.wait() for worker in self._workers if worker.is_ready)), _LOOK_S)

    async def serve_tls(self, files: TlsFiles) -> None:
        """Opens the TLS listeners, or takes a renewed certificate for handshakes from now on; ValueError when it is wrong, and then the old one stays."""
        server_context(files)
        for listener in self._listeners[0][TLS][len(self.addresses[TLS]) :]:
            with listening_at(TLS, address_of(listener)):
                listener.listen(BACKLOG)
                self.addresses[TLS].append(address_of(listener))
        self.config = replace(self.config, tls=files)
        for worker in self._workers:
            worker.say(control.TLS_FILES, asdict(files))

    def pids(self) -> dict[int, int]:
        """The processes of the workers that are up."""
        return {worker.number: worker.process.pid for worker in self._workers if worker.process and worker.is_ready}

    # What they do

    def allocations(self) -> list[dict[str, Any]]:
        """Ended allocations that are remembered, then living ones, as plain data (see `media_fleet.turn.Usage`)."""
        return [asdict(usage) for usage in (*self._ended, *(usage for worker in self._workers for usage, _ in worker.living.values()))]

    def living(self) -> Iterator[AllocationUsage]:
        """What each living allocation carried when its worker was asked; those that end meanwhile are passed over."""
        for worker in self._workers:
            for allocation_id in list(worker.living):
                if found := worker.living.get(allocation_id):
                    yield told(*found)

    def reading(self) -> RelayReading:
        """Of all workers together, the counters of those that are gone included; `cpu_s` is the parent's, too."""
        total = summed(self._gone, *(worker.reading for worker in self._workers))
        return replace(total, is_draining=self._is_draining, cpu_s=total.cpu_s + time.process_time())

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients reach it (RFC 7065)."""
        return urls_of(self.config, self.addresses)

    async def _serve_stats(self, address: Address) -> None:
        routes: dict[str, Callable[[], Answer]] = {"/healthz": self._health, "/allocations": lambda: (HTTPStatus.OK, self.allocations())}
        with listening_at(TCP, address):
            self._stats = await serve_stats(*address, routes)
        self.stats_address = self._stats.sockets[0].getsockname()[:2]

    def _health(self) -> Answer:
        reading, up = self.reading(), len(self.pids())
        status = "draining" if self._is_draining else "ok" if up else "down"
        body = {"status": status, "allocations": reading.allocations, "dropped": reading.dropped.get(NETWORK, 0), "workers": up}
        return (HTTPStatus.OK if status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE), body

    # The life of a worker

    async def _keep(self, worker: _Worker) -> None:
        """Runs a process in this place, and another one when it is gone."""
        loop = asyncio.get_running_loop()
        delay_s = _RESTART_S
        while not self._closing.is_set():
            began = loop.time()
            await self._run(worker)
            exit_code = worker.process.returncode if worker.process else None
            if not worker.first_start.done():
                ended = f"Relay process {worker.number} ended with {exit_code} before it was ready."
                worker.first_start.set_exception(ValueError(worker.refusal) if worker.refusal else WorkerFailed(worker.failure or ended))
                return
            if not self._closing.is_set():
                delay_s = _RESTART_S if loop.time() - began > _STEADY_S else min(2 * delay_s, _RESTART_MOST_S)
                why = worker.refusal or worker.failure
                log("relay_worker_ended", worker=worker.number, exit_code=exit_code, why=why, again_in_s=delay_s)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), delay_s)

    async def _run(self, worker: _Worker) -> None:
        """A process from its start to its end."""
        worker.process, worker.writer, worker.quiet_s, worker.refusal, worker.failure = None, None, 0.0, "", ""
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                reader, worker.writer = await asyncio.open_unix_connection(sock=ours, limit=control.LONGEST_LINE)
                start = self._start_of(worker)
                worker.say(control.START, start.told())  # whatever else is said from now on comes after it
                worker.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", "media_fleet", "worker", str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (_ROOT, os.environ.get("PYTHONPATH"))))},
                    pass_fds=(theirs.fileno(), *start.files()),
                )
            if self._closing.is_set():
                worker.say(control.CLOSE)
            while data := await reader.readline():
                worker.quiet_s = 0.0
                self._hear(worker, *control.parse(data))
        except Exception as error:  # the edge of the process: no file, no memory, a line that was cut off
            worker.failure = worker.failure or repr(error)
        if worker.writer:
            worker.writer.close()
        await self._end(worker)

    def _start_of(self, worker: _Worker) -> Start:
        config = self.config
        config = replace(
            config,
            stats_listen=None,
            no_peers=(*config.no_peers, *([self.stats_address] if self.stats_address else [])),
            max_allocations=-(-config.max_allocations // self._count),
        )
        return Start(
            config=control.told_config(config),
            credentials=self._credentials,
            worker=worker.number,
            workers=self._count,
            listeners={transport: _files(some) for transport, some in self._listeners[worker.number].items()},
            inbox=self._ways[worker.number][1].fileno(),
            siblings={number: to.fileno() for number, (to, _) in enumerate(self._ways) if number != worker.number},
        )

    async def _end(self, worker: _Worker) -> None:
        """Sees to it that the process is gone, and accounts for what it had."""
        if worker.process:
            with suppress(TimeoutError):
                await asyncio.wait_for(worker.process.wait(), _CLOSE_S)
            worker.kill()
            await worker.process.wait()
        worker.is_ready = False
        self._gone = replace(summed(self._gone, worker.reading), allocations=0, capacity=0)
        lost, worker.living, worker.coming, worker.reading = worker.living, {}, {}, _NOTHING
        for usage, _ in lost.values():  # it was killed, so nobody else tells their end
            ended = replace(usage, ended_at_ms=now_ms())
            log("allocation_ended", **asdict(ended))
            self._has_ended(ended)
        if self._is_draining:
            worker.is_drained.set()

    def _has_ended(self, usage: Usage) -> None:
        self._ended.append(usage)
        try:
            if self._tell_ended:
                self._tell_ended(told(usage, now_ms()))
        except Exception as error:  # whoever listens must not end a worker
            log("internal", error=repr(error))

    def _hear(self, worker: _Worker, kind: str, content: dict[str, Any]) -> None:
        match kind:
            case control.READY:
                self._has_started(worker)
            case control.FAILED:
                worker.refusal = str(content["why"])
            case control.READING:
                worker.reading = control.reading_of(content)
            case control.LIVING:
                worker.coming |= {usage.allocation_id: (usage, content["at_ms"]) for usage in map(control.usage_of, content["usages"])}
                if content["is_last"]:
                    worker.living, worker.coming = worker.coming, {}
                    if content["is_asked"]:
                        worker.has_looked.set()
            case control.ENDED:
                usage = control.usage_of(content["usage"])
                worker.living.pop(usage.allocation_id, None)
                worker.coming.pop(usage.allocation_id, None)
                self._has_ended(usage)
            case control.DRAINED:
                worker.is_drained.set()

    def _has_started(self, worker: _Worker) -> None:
        worker.is_ready = True
        if self._is_draining:
            worker.say(control.DRAIN)
        if worker.first_start.done():
            log("relay_worker_started", worker=worker.number)
        else:
            worker.first_start.set_result(None)

    async def _watch(self) -> None:
        """Hands on secrets that were changed, and ends workers that hang."""
        while True:
            await asyncio.sleep(TELL_S)
            try:
                self._tell_credentials()
            except Exception as error:  # the process edge: workers go on with those they have
                log("internal", error=repr(error))
            for worker in self._workers:
                worker.quiet_s += TELL_S
                if worker.quiet_s > (self._silent_s if worker.is_ready else START_S):
                    worker.failure = f"Relay process {worker.number} said nothing for {worker.quiet_s:g} s."
                    worker.kill()

    def _tell_credentials(self) -> None:
        before, self._credentials = self._credentials, control.told_credentials(self.config.credentials)
        if before != self._credentials:
            for worker in self._workers:
                worker.say(control.CREDENTIALS, self._credentials)


def summed(*several: RelayReading) -> RelayReading:
    """Several relays as one."""
    return RelayReading(
        allocations=sum(one.allocations for one in several),
        capacity=sum(one.capacity for one in several),
        is_draining=any(one.is_draining for one in several),
        from_client_bytes=sum(one.from_client_bytes for one in several),
        to_client_bytes=sum(one.to_client_bytes for one in several),
        from_client_packets=sum(one.from_client_packets for one in several),
        to_client_packets=sum(one.to_client_packets for one in several),
        refusals=_added(one.refusals for one in several),
        auth_failures=sum(one.auth_failures for one in several),
        dropped=_added(one.dropped for one in several),
        cpu_s=sum(one.cpu_s for one in several),
    )


def _added(several: Iterable[Mapping[_Key, int]]) -> dict[_Key, int]:
    total: Counter[_Key] = Counter()
    for one in several:
        total.update(one)
    return dict(total)


def _way() -> tuple[socket.socket, socket.socket]:
    """A pair that never waits: what does not fit the kernel's buffer is not sent. Being a pair, it is not limited by net.unix.max_dgram_qlen."""
    to, inbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    to.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SIBLING_BUFFER_BYTES)
    for end in (to, inbox):
        end.setblocking(False)
    return to, inbox


def _files(some: Sequence[socket.socket]) -> list[int]:
    return [one.fileno() for one in some]


async def opened(config: RelayConfig, workers: int = 1, ended: _Ended | None = None) -> Relay | WorkerPool:
    """A relay that listens, which it says on stdout; SystemExit when it cannot."""
    raise_file_limit()
    try:
        relay = WorkerPool(config, workers, ended) if workers > 1 else Relay(config, ended)
        await relay.start()
    except (CannotListen, ValueError, WorkerFailed) as error:
        raise SystemExit(str(error)) from None
    listening = (f"{transport} {text_of(address)}" for transport, addresses in relay.addresses.items() for address in addresses)
    print(f"relay listening on {', '.join(listening)}", flush=True)
    return relay


async def run(config: RelayConfig, workers: int = 1) -> None:
    """Runs a relay until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    relay = await opened(config, workers)
    try:
        await stopped.wait()
        await relay.drain()
    finally:
        await relay.close()


def serve(config: RelayConfig, workers: int = 1) -> None:
    """`run` under uvloop where it is installed, else under asyncio."""
    run_loop(run(config, workers))
