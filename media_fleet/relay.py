"""The shell of the TURN server: one listener socket, one socket per allocation, one timer. It decides nothing; `media_fleet.turn` does.

uvloop runs it where it is installed, asyncio otherwise.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any

from media_fleet.log import log
from media_fleet.stats import serve_stats
from media_fleet.stun import Address
from media_fleet.turn import CloseRelay, Credentials, Effect, Forward, OpenRelay, PeerPolicy, SendToClient, SendToPeer, TurnServer, TurnSettings, Usage
from media_fleet.turn.server import LISTENER

UDP = "udp"
_BATCH = 64  # datagrams read from the listener before others get their turn
_LARGEST = 65_535
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine sleeps, and never jumps


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """Everything a relay is told. Addresses are IP literals; port 0 takes a free one."""

    realm: str
    credentials: Credentials  # media_fleet.turn.static_users or shared_secrets
    listen: Address = ("127.0.0.1", 3478)
    relay_address: str | None = None  # the IP that peers reach us at; default: the listener's
    allow_peers: tuple[str, ...] = ()  # CIDRs that override the deny list; for measuring and for one machine only
    stats_listen: Address | None = None  # HTTP endpoint: /healthz, /allocations
    min_port: int = 49_152  # relayed ports, RFC 8656 s7.2
    max_port: int = 65_535
    default_lifetime_s: int = 600
    max_lifetime_s: int = 3_600
    nonce_lifetime_s: int = 3_600
    credential_grace_s: int = 86_400  # how long after its start an allocation outlives its credentials
    allocations_per_account: int = 64
    max_allocations: int = 8_000
    max_permissions: int = 128  # per allocation
    max_channels: int = 128  # per allocation
    ended_kept: int = 1_000  # usage of ended allocations that is remembered
    receive_buffer_bytes: int = 4_194_304  # of the listener; the kernel may give less
    drain_s: float = 0.0  # how long, after SIGTERM, living allocations may go on


class Relay:
    """A running relay: `async with Relay(config) as relay`."""

    def __init__(self, config: RelayConfig) -> None:
        host = ipaddress.ip_address(config.relay_address or config.listen[0])
        if host.is_unspecified:
            raise ValueError("A relay that listens on every address needs `relay_address`: the IP that peers reach it at.")
        self.config = config
        self.address: Address = config.listen
        self.stats_address: Address | None = None
        self._relay_host = str(host)
        self._sockets: dict[int, socket.socket] = {}  # by relay port, and the listener at LISTENER
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stats: asyncio.Server | None = None
        self._emptied = asyncio.Event()
        self._offset_s = time.time_ns() / 1e9 - time.clock_gettime(_CLOCK)
        self._dropped = self._ended_bytes = 0

    async def __aenter__(self) -> Relay:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def start(self) -> None:
        """Opens the listener and the stats endpoint; OSError when an address is taken."""
        self._loop = asyncio.get_running_loop()
        listener = _udp_socket(self.config.listen)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.config.receive_buffer_bytes)
            self.address = listener.getsockname()[:2]
            if self.config.stats_listen:
                routes: dict[str, Callable[[], tuple[HTTPStatus, object]]] = {
                    "/healthz": self._health,
                    "/allocations": lambda: (HTTPStatus.OK, self.allocations()),
                }
                self._stats = await serve_stats(*self.config.stats_listen, routes)
                self.stats_address = self._stats.sockets[0].getsockname()[:2]
        except BaseException:
            listener.close()
            raise
        self._server = TurnServer(self._settings(), self.config.credentials, os.urandom, self._peers())
        self._sockets[LISTENER] = listener
        self._is_v6 = listener.family == socket.AF_INET6
        self._loop.add_reader(listener.fileno(), self._read_clients)

    async def close(self) -> None:
        """Ends every allocation and closes every socket."""
        if LISTENER not in self._sockets:
            return
        self._perform(self._server.end_all(self._now()))
        if self._timer:
            self._timer.cancel()
        self._close_socket(LISTENER)
        if self._stats:
            self._stats.close()
            await self._stats.wait_closed()

    async def drain(self) -> None:
        """Refuses new allocations and waits until the living ones are gone, at most `drain_s`."""
        self._server.is_draining = True
        if self._server.live:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), self.config.drain_s)

    def allocations(self) -> list[dict[str, Any]]:
        """Ended allocations that are remembered, then living ones, as plain data (see `media_fleet.turn.Usage`)."""
        return [asdict(usage) for usage in self._server.allocations()]

    def reading(self) -> dict[str, float]:
        """What the meters tell (see `media_fleet.meters`); bytes and drops count up since the start."""
        living = sum(_bytes(usage) for usage in self._server.allocations() if usage.ended_at_ms is None)
        return {"Allocations": self._server.live, "RelayedBytes": self._ended_bytes + living, "DroppedDatagrams": self._dropped}

    def _health(self) -> tuple[HTTPStatus, object]:
        is_draining = self._server.is_draining
        body = {"status": "draining" if is_draining else "ok", "allocations": self._server.live, "dropped": self._dropped}
        return (HTTPStatus.SERVICE_UNAVAILABLE if is_draining else HTTPStatus.OK), body

    def _settings(self) -> TurnSettings:
        config = self.config
        return TurnSettings(
            realm=config.realm,
            relay_host=self._relay_host,
            default_lifetime_s=config.default_lifetime_s,
            max_lifetime_s=config.max_lifetime_s,
            nonce_lifetime_s=config.nonce_lifetime_s,
            credential_grace_s=config.credential_grace_s,
            min_port=config.min_port,
            max_port=config.max_port,
            allocations_per_account=config.allocations_per_account,
            max_allocations=config.max_allocations,
            max_permissions=config.max_permissions,
            max_channels=config.max_channels,
            ended_kept=config.ended_kept,
        )

    def _peers(self) -> PeerPolicy:
        """Our listener and our stats endpoint are no peers, under none of their names."""
        addresses = [self.address] if self.stats_address is None else [self.address, self.stats_address]
        own = [(host, port) for at, port in addresses for host in (at, self._relay_host)]
        return PeerPolicy(self.config.allow_peers, own, self._relay_host, range(self.config.min_port, self.config.max_port + 1))

    def _now(self) -> float:
        """Unix seconds that never jump: the wall clock at the start, counted on by the machine's own."""
        return time.clock_gettime(_CLOCK) + self._offset_s

    # Datagrams. These two run once per relayed packet.

    def _read_clients(self) -> None:
        receive, server, here, now = self._sockets[LISTENER].recvfrom, self._server, self.address, self._now()
        for _ in range(_BATCH):
            try:
                data, client = receive(_LARGEST)
            except OSError:  # nothing more to read
                return
            if self._is_v6:
                client = client[:2]
            if data and 0x40 <= data[0] <= 0x7F:
                forward = server.forward(data, (client, here, UDP), now)
                if forward is not None:
                    self._forward(forward)
            else:
                self._receive(data, client, now)

    def _read_peer(self, port: int, relay: socket.socket) -> None:
        try:
            data, peer = relay.recvfrom(_LARGEST)
        except OSError:
            return
        forward = self._server.forward_from_peer(data, port, peer[:2] if self._is_v6 else peer, self._now())
        if forward is not None:
            self._forward(forward)

    def _forward(self, forward: Forward) -> None:
        try:
            self._sockets[forward[0]].sendto(forward[1], forward[2])
        except (OSError, KeyError):  # a full buffer, an unreachable peer: UDP may lose a datagram
            self._dropped += 1

    # Requests and time

    def _receive(self, data: bytes, client: Address, now: float) -> None:
        try:
            self._perform(self._server.receive(data, (client, self.address, UDP), now))
        except Exception as error:  # the process edge: one bad datagram must not end the relay
            log("internal", error=repr(error), client=client[0])
        self._arm()

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendToClient):
                self._forward((LISTENER, effect.data, effect.five_tuple[0]))
            elif isinstance(effect, SendToPeer):
                self._forward((effect.port, effect.data, effect.peer))
            elif isinstance(effect, OpenRelay):
                self._perform(self._server.relay_opened(effect.five_tuple, self._open_socket(effect.ports), self._now()))
            elif isinstance(effect, CloseRelay):
                self._close_socket(effect.port)
                self._ended_bytes += _bytes(effect.usage)
                log("allocation_ended", **asdict(effect.usage))
                if self._server.is_draining and not self._server.live:
                    self._emptied.set()

    def _open_socket(self, ports: tuple[int, ...]) -> int | None:
        """Binds the first of these ports that is free."""
        for port in ports:
            try:
                relay = _udp_socket((self.config.listen[0], port))
            except OSError as error:
                log("relay_port_refused", port=port, error=str(error))
                continue
            self._sockets[port] = relay
            self._loop.add_reader(relay.fileno(), self._read_peer, port, relay)
            return port
        return None

    def _close_socket(self, port: int) -> None:
        closed = self._sockets.pop(port)
        self._loop.remove_reader(closed.fileno())
        closed.close()

    def _arm(self) -> None:
        """Keeps the one timer at the machine's next deadline."""
        deadline = self._server.next_deadline()
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return  # an early timer arms the next one
        if self._timer:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - self._now()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._server.tick(self._now()))
        self._arm()


def _bytes(usage: Usage) -> int:
    return usage.from_client_bytes + usage.to_client_bytes


def _udp_socket(address: Address) -> socket.socket:
    is_v6 = ":" in address[0]
    made = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if is_v6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setblocking(False)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


async def run(config: RelayConfig) -> None:
    """Runs a relay until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    relay = await opened(config)
    try:
        await stopped.wait()
        await relay.drain()
    finally:
        await relay.close()


async def opened(config: RelayConfig) -> Relay:
    """A relay that listens, which it says on stdout; SystemExit when an address is taken."""
    _raise_file_limit()
    relay = Relay(config)
    try:
        await relay.start()
    except OSError as error:
        also = f" and tcp {_text(config.stats_listen)}" if config.stats_listen else ""
        raise SystemExit(f"The relay cannot listen on udp {_text(config.listen)}{also}: {error.strerror or error}.") from None
    print(f"relay listening on udp {_text(relay.address)}", flush=True)
    return relay


def serve(config: RelayConfig) -> None:
    """`run` under uvloop where it is installed, else under asyncio."""
    run_loop(run(config))


def run_loop(main: Any) -> None:
    """Runs one coroutine under the fastest loop there is."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def _raise_file_limit() -> None:
    """One socket per allocation: take as many files as the system lets us have."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _text(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
