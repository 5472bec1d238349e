"""The shell of the TURN server: listeners, one socket per relayed address, one timer. It decides nothing; `media_fleet.turn` does.

Clients come by UDP (`media_fleet.datapath` reads and forwards) and by TCP and TLS (`media_fleet.streams`). uvloop runs it where it is installed.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any

from heliograph.relays import turn_urls
from media_fleet import siblings
from media_fleet.datapath import compiled
from media_fleet.datapath.outside import OutsidePath
from media_fleet.datapath.paths import DataPath, DataPathName
from media_fleet.datapath.python import LARGEST, RECVERR, RECVERR6, UDP, PythonPath
from media_fleet.log import log
from media_fleet.readings import NETWORK, AllocationUsage, RelayReading
from media_fleet.stats import serve_stats
from media_fleet.streams import BACKLOG, TCP, TLS, Streams, bound_socket
from media_fleet.stun import Address, Icmp
from media_fleet.tls import TlsFiles
from media_fleet.turn import (
    LISTENER,
    SIBLING,
    Bind,
    CloseRelay,
    Credentials,
    Effect,
    Ended,
    Extend,
    FiveTuple,
    Forward,
    Install,
    OpenRelays,
    PeerPolicy,
    Permit,
    RelayId,
    SendToClient,
    SendToPeer,
    SendToSibling,
    Traffic,
    TurnServer,
    TurnSettings,
    Usage,
    is_ipv6,
    port_of,
)
from media_fleet.turn.connections import StreamLimits
from media_fleet.turn.settings import UnaskedFamily

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine sleeps, and never jumps
_BATCH = 64  # datagrams of other workers before others get their turn
# linux/in.h and linux/in6.h, which Python's socket does not name: the DF bit never, and always
_MTU_DISCOVER, _MTU_DISCOVER6, _DF_NEVER, _DF_ALWAYS = 10, 23, 0, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayConfig:
    """Everything a relay is told. Addresses are IP literals; port 0 takes a free one.

    Where several workers share a node (media_fleet.workers), `max_allocations` and the ports are divided among them, and what is counted per account, per
    source or per connection is counted by each worker for itself: an account may have up to `workers` times its allocations and its bandwidth.
    """

    realm: str
    credentials: Credentials  # media_fleet.turn.static_users or shared_secrets
    listen: tuple[Address, ...] = (("127.0.0.1", 3478),)  # UDP
    listen_tcp: tuple[Address, ...] = ()
    listen_tls: tuple[Address, ...] = ()
    tls: TlsFiles | None = None  # of `listen_tls`; without it nothing listens there until `serve_tls`
    data_path: DataPathName = "auto"  # of UDP clients: `compiled` is refused where its library is missing, `auto` takes Python's instead
    relay_addresses: tuple[str, ...] = ()  # the IPs that peers reach us at, at most one of each family; default: the UDP listeners' own
    unasked_family: UnaskedFamily = "ipv4"  # of the relayed address where a client names none; `client` gives it the family that it came by
    urls: tuple[str, ...] = ()  # at which clients reach it; default: made of relay addresses and listeners
    tls_name: str = ""  # of the certificate, for turns: URLs that are made
    no_peers: tuple[Address, ...] = ()  # other services of this node, beside the listeners
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
    account_bytes_per_s: int = 4_000_000  # payload of an account, both ways; 0: unlimited
    unauthenticated_per_s: float = 100.0  # answers to unauthenticated requests of one source; 0: unlimited
    streams: StreamLimits = field(default_factory=StreamLimits)
    ended_kept: int = 1_000  # usage of ended allocations that is remembered
    receive_buffer_bytes: int = 4_194_304  # of the UDP listeners; the kernel may give less
    drain_s: float = 0.0  # how long, after SIGTERM, living allocations may go on

    def relay_hosts(self) -> tuple[str, ...]:
        """ValueError where a relay that listens on every address is not told its own, or has two of a family."""
        hosts = [ipaddress.ip_address(host) for host in self.relay_addresses or dict.fromkeys(host for host, _ in self.listen)]
        if any(host.is_unspecified for host in hosts):
            raise ValueError("A relay that listens on every address needs `relay_addresses`: the IP that peers reach it at.")
        if len({host.version for host in hosts}) < len(hosts):
            raise ValueError("A relay has at most one relay address of each family: name it by `relay_addresses`.")
        return tuple(str(host) for host in hosts)

    def bind_host(self, relay_host: str) -> str:
        """Where relay sockets of this address are bound: at the listener of its family, because behind an Elastic IP the machine has another address."""
        return next((host for host, _ in self.listen if (":" in host) == (":" in relay_host)), relay_host)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one of several workers has of a node."""

    worker: int
    workers: int
    listeners: Mapping[str, Sequence[socket.socket]]  # by transport, ready: in place of the addresses of the configuration
    inbox: socket.socket  # where other workers' datagrams come in
    siblings: Mapping[int, socket.socket]  # the ways to theirs
    ended: Callable[[Usage], object]  # is told what each allocation carried when it is over


class Relay:
    """A running relay: `async with Relay(config) as relay`."""

    def __init__(self, config: RelayConfig, ended: Callable[[AllocationUsage], object] | None = None, share: Share | None = None) -> None:
        """`ended` is told what each allocation carried when it is over."""
        self.config, self._tell_ended, self._share = config, ended, share
        self.hosts = config.relay_hosts()
        self.addresses: dict[str, list[Address]] = {UDP: [], TCP: [], TLS: []}  # where it listens, once it has started
        self.stats_address: Address | None = None
        self._bind_hosts = {":" in host: config.bind_host(host) for host in self.hosts}
        self._listeners: dict[Address, socket.socket] = {}  # UDP
        self._relays: dict[RelayId, socket.socket] = {}
        self._installed: dict[RelayId, DataPath] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._stats: asyncio.Server | None = None
        self._emptied = asyncio.Event()
        self._offset_s = time.time_ns() / 1e9 - time.clock_gettime(_CLOCK)
        self._dropped = 0
        self._dropped_by_paths: Mapping[str, int] = {}  # when it has closed
        self._ended = Traffic()
        self._is_open = False

    @property
    def address(self) -> Address:
        """Of the first UDP listener."""
        return self.addresses[UDP][0]

    async def __aenter__(self) -> Relay:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def start(self) -> None:
        """Opens the listeners and the stats endpoint; CannotListen when an address is taken, ValueError when the TLS files are wrong."""
        self._loop = asyncio.get_running_loop()
        self._streams = Streams(self._on_request, self._on_lost, self.config.streams)
        self._opened = self._share.listeners if self._share else open_listeners(self.config)[0]
        try:
            await self._listen()
            if self.config.stats_listen:
                with listening_at(TCP, self.config.stats_listen):
                    await self._serve_stats(self.config.stats_listen)
            self._server = TurnServer(self._settings(), self.config.credentials, os.urandom, self._peers())
            self._python = PythonPath(self._server, self._now, self._forward, self._on_request, self._on_icmp)
            self._path = self._chosen_path()
        except BaseException:
            await self._streams.close()
            close_listeners(self._opened)
            raise
        for here, listener in self._listeners.items():
            self._path.listen(listener, here)
        if self._share:
            self._loop.add_reader(self._share.inbox.fileno(), self._read_siblings, self._share.inbox)
        self._is_open = True

    def _chosen_path(self) -> DataPath:
        """The data path of UDP clients."""
        if self.config.data_path == "python":
            return self._python
        library = compiled.load()
        if library is None:
            if self.config.data_path == "compiled":
                raise ValueError("The compiled data path is not here: `python -m media_fleet.datapath.build` makes it, with a C compiler.")
            return self._python
        return OutsidePath(library, self._server, self._offset_s, self._now, self._forward, self._on_request, self._on_icmp)

    async def _listen(self) -> None:
        for listener in self._opened[UDP]:
            self._listeners[address_of(listener)] = listener
        self.addresses[UDP] += self._listeners
        for listener in self._opened[TCP]:
            with listening_at(TCP, address_of(listener)):
                self.addresses[TCP].append(await self._streams.listen(listener))
        if self.config.tls is not None:
            await self.serve_tls(self.config.tls)

    async def _serve_stats(self, address: Address) -> None:
        routes: dict[str, Callable[[], tuple[HTTPStatus, object]]] = {
            "/healthz": self._health,
            "/allocations": lambda: (HTTPStatus.OK, self.allocations()),
        }
        self._stats = await serve_stats(*address, routes)
        self.stats_address = self._stats.sockets[0].getsockname()[:2]

    async def close(self) -> None:
        """Ends every allocation and closes every socket."""
        if not self._is_open:
            return
        self._is_open = False
        self._perform(self._server.end_all(self._now()))
        if self._timer:
            self._timer.cancel()
        for here in self._listeners:
            self._path.unlisten(here)
        if self._share:
            self._loop.remove_reader(self._share.inbox.fileno())
            for way in (self._share.inbox, *self._share.siblings.values()):
                way.close()
        self._dropped_by_paths = self._dropped_in_paths()
        self._path.stop()
        await self._streams.close()
        close_listeners(self._opened)
        if self._stats:
            self._stats.close()
            await self._stats.wait_closed()

    async def serve_tls(self, files: TlsFiles) -> None:
        """Opens the TLS listeners, or takes a renewed certificate for handshakes from now on; ValueError when it is wrong, and then the old one stays."""
        if self.addresses[TLS]:
            self._streams.reload(files)
        for listener in self._opened[TLS][len(self.addresses[TLS]) :]:
            with listening_at(TLS, address_of(listener)):
                self.addresses[TLS].append(await self._streams.listen(listener, files))

    async def drain(self) -> None:
        """Refuses new allocations and waits until the living ones are gone, at most `drain_s`."""
        self._server.is_draining = True
        if self._server.live:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), self.config.drain_s)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where clients reach it (RFC 7065)."""
        return urls_of(self.config, self.addresses)

    async def look(self) -> None:
        """Nothing: what it tells is of the moment. A pool of several processes asks them here."""

    def allocations(self) -> list[dict[str, Any]]:
        """Ended allocations that are remembered, then living ones, as plain data (see `media_fleet.turn.Usage`)."""
        return [asdict(usage) for usage in self._server.allocations()]

    def living(self) -> Iterator[AllocationUsage]:
        """What each living allocation carried until it is read here; those that end meanwhile are passed over."""
        return (told(usage, int(self._now() * 1000)) for usage in self.usages())

    def usages(self) -> Iterator[Usage]:
        """`living` with all that the core knows."""
        for five_tuple in self._server.five_tuples():
            if usage := self._server.usage(five_tuple):
                yield usage

    def reading(self) -> RelayReading:
        """Of this moment; counters count up since the start."""
        carried, counts = Traffic(), self._server.counts
        carried.add(self._ended)
        for relayed in self._server.traffic():
            carried.add(relayed)
        return RelayReading(
            allocations=self._server.live,
            capacity=self.config.max_allocations,
            is_draining=self._server.is_draining,
            from_client_bytes=carried.from_client_bytes,
            to_client_bytes=carried.to_client_bytes,
            from_client_packets=carried.from_client_packets,
            to_client_packets=carried.to_client_packets,
            refusals=dict(counts.refusals),
            auth_failures=counts.auth_failures,
            dropped={**(self._dropped_in_paths() if self._is_open else self._dropped_by_paths), NETWORK: self._dropped, "slow_client": self._streams.dropped},
            cpu_s=time.process_time(),
        )

    def _dropped_in_paths(self) -> dict[str, int]:
        return _sums(path.dropped() for path in {self._path, self._python})

    def _health(self) -> tuple[HTTPStatus, object]:
        is_draining = self._server.is_draining
        body = {"status": "draining" if is_draining else "ok", "allocations": self._server.live, "dropped": self._dropped}
        return (HTTPStatus.SERVICE_UNAVAILABLE if is_draining else HTTPStatus.OK), body

    def _settings(self) -> TurnSettings:
        config = self.config
        return TurnSettings(
            realm=config.realm,
            relay_hosts=self.hosts,
            worker=self._share.worker if self._share else 0,
            workers=self._share.workers if self._share else 1,
            unasked_family=config.unasked_family,
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
            account_bytes_per_s=config.account_bytes_per_s,
            unauthenticated_per_s=config.unauthenticated_per_s,
            ended_kept=config.ended_kept,
        )

    def _peers(self) -> PeerPolicy:
        """Our listeners and the node's other services are no peers, under none of their names."""
        addresses = [address_of(listener) for some in self._opened.values() for listener in some]
        addresses += [*self.config.no_peers, *([self.stats_address] if self.stats_address else [])]
        own = [(host, port) for at, port in addresses for host in (at, *self.hosts)]
        return PeerPolicy(self.config.allow_peers, own, self.hosts, range(self.config.min_port, self.config.max_port + 1))

    def _now(self) -> float:
        """Unix seconds that never jump: the wall clock at the start, counted on by the machine's own."""
        return time.clock_gettime(_CLOCK) + self._offset_s

    # Datagrams. These run once per relayed packet.

    def _forward(self, forward: Forward) -> None:
        relay_id, data, to = forward
        try:
            if relay_id == LISTENER:
                if to[2] == UDP:
                    self._listeners[to[1]].sendto(data, to[0])
                else:
                    self._streams.send(to, data)  # it counts what it drops
            elif relay_id == SIBLING:
                self._to_sibling(data, *to)
            else:
                self._relays[relay_id].sendto(data, to)
        except OSError as error:
            if error.errno not in _OF_ANOTHER or not self._again(relay_id, data, to):
                self._dropped += 1
        except KeyError:
            self._dropped += 1

    def _again(self, relay_id: RelayId, data: bytes, to: Address) -> bool:
        """The error told of an ICMP message that answers an earlier datagram (udp(7)): this one was not sent."""
        self._python.read_errors(relay_id)
        try:
            self._relays[relay_id].sendto(data, to)
        except (OSError, KeyError):
            return False
        return True

    def _to_sibling(self, data: bytes, relay_id: RelayId, sender: Address) -> None:
        """As UDP would: a worker that does not keep up loses it. KeyError and OSError are the caller's."""
        assert self._share is not None  # the core knows no siblings where there are none
        self._share.siblings[self._server.settings.worker_of(relay_id)].send(siblings.serialize(relay_id, sender, data))

    def _read_siblings(self, inbox: socket.socket) -> None:
        now, settings = self._now(), self._server.settings
        for _ in range(_BATCH):
            try:
                data = inbox.recv(LARGEST)
            except OSError:  # nothing more to read
                return
            arrived = siblings.parse(data, settings)
            forward = None
            if arrived is not None:
                relay_id, sender, payload = arrived
                forward = self._server.forward_from_peer(payload, relay_id, sender, now)
            if forward is not None:
                self._forward(forward)

    # Requests and time

    def _on_request(self, data: bytes, five_tuple: FiveTuple) -> None:
        self._guarded(lambda now: self._server.receive(data, five_tuple, now), five_tuple[0][0])

    def _on_lost(self, five_tuple: FiveTuple) -> None:
        self._guarded(lambda now: self._server.connection_lost(five_tuple, now), five_tuple[0][0])

    def _on_icmp(self, icmp: Icmp, relay_id: RelayId, peer: Address) -> None:
        self._guarded(lambda now: self._server.receive_icmp(icmp, relay_id, peer, now), peer[0])

    def _guarded(self, judge: Callable[[float], list[Effect]], host: str) -> None:
        try:
            self._perform(judge(self._now()))
        except Exception as error:  # the process edge: one bad datagram must not end the relay
            log("internal", error=repr(error), host=host)
        self._arm()

    def _perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendToClient():
                    self._forward((LISTENER, effect.data, effect.five_tuple))
                case SendToPeer():
                    self._send_to_peer(effect)
                case SendToSibling():
                    self._forward((SIBLING, effect.data, (effect.relay_id, effect.sender)))
                case OpenRelays():
                    self._perform(self._server.relays_opened(effect.five_tuple, self._open_sockets(effect.choices), self._now()))
                case Install():
                    self._install(effect)
                case Extend():
                    self._installed[effect.relay_id].extend(effect)
                case Permit():
                    self._installed[effect.relay_id].permit(effect)
                case Bind():
                    self._installed[effect.relay_id].bind(effect)
                case CloseRelay():
                    self._close_socket(effect.relay_id)
                case Ended():
                    self._end(effect)

    def _install(self, effect: Install) -> None:
        relay_id = effect.relayed.relay_id
        path = self._path if effect.five_tuple[2] == UDP else self._python
        path.open(self._relays[relay_id], effect)
        self._installed[relay_id] = path
        self._streams.keep(effect.five_tuple, True)

    def _end(self, effect: Ended) -> None:
        self._ended.add(effect.usage)
        if self._tell_ended:
            self._tell_ended(told(effect.usage, int(self._now() * 1000)))
        if self._share:
            self._share.ended(effect.usage)
        self._streams.keep(effect.five_tuple, False)
        log("allocation_ended", **asdict(effect.usage))
        if self._server.is_draining and not self._server.live:
            self._emptied.set()

    def _send_to_peer(self, effect: SendToPeer) -> None:
        if not effect.dont_fragment:
            self._forward((effect.relay_id, effect.data, effect.peer))
            return
        relay = self._relays[effect.relay_id]
        _set_dont_fragment(relay, is_ipv6(effect.relay_id), _DF_ALWAYS)
        self._forward((effect.relay_id, effect.data, effect.peer))
        _set_dont_fragment(relay, is_ipv6(effect.relay_id), _DF_NEVER)

    def _open_sockets(self, choices: tuple[tuple[RelayId, ...], ...]) -> tuple[RelayId, ...] | None:
        """Binds the first choice of which every port is free."""
        for choice in choices:
            opened: dict[RelayId, socket.socket] = {}
            try:
                for relay_id in choice:
                    opened[relay_id] = _udp_socket((self._bind_hosts[is_ipv6(relay_id)], port_of(relay_id)))
                    _set_dont_fragment(opened[relay_id], is_ipv6(relay_id), _DF_NEVER)
                    _set_errors(opened[relay_id], is_ipv6(relay_id))
            except OSError as error:
                log("relay_port_refused", ports=[port_of(relay_id) for relay_id in choice], error=str(error))
                for relay in opened.values():
                    relay.close()
                continue
            self._relays.update(opened)
            return choice
        return None

    def _close_socket(self, relay_id: RelayId) -> None:
        if path := self._installed.pop(relay_id, None):
            path.close(relay_id)
        self._relays.pop(relay_id).close()

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


_OF_ANOTHER = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EMSGSIZE, errno.EPROTO, errno.EACCES)


def _set_errors(relay: socket.socket, is_v6: bool) -> None:
    """ICMP is to be told, by the socket's queue of errors."""
    relay.setsockopt(*((socket.IPPROTO_IPV6, RECVERR6) if is_v6 else (socket.IPPROTO_IP, RECVERR)), 1)


def _set_dont_fragment(relay: socket.socket, is_v6: bool, value: int) -> None:
    relay.setsockopt(*((socket.IPPROTO_IPV6, _MTU_DISCOVER6) if is_v6 else (socket.IPPROTO_IP, _MTU_DISCOVER)), value)


def urls_of(config: RelayConfig, addresses: Mapping[str, Sequence[Address]]) -> tuple[str, ...]:
    """Where clients reach a relay that listens at these addresses, by transport (RFC 7065)."""
    if config.urls:
        return config.urls
    made: list[str] = []
    for host in config.relay_hosts():
        udp, tcp = ([port for at, port in addresses[transport] if (":" in at) == (":" in host)] for transport in (UDP, TCP))
        made += [url for port in udp for url in turn_urls(host, udp=port)] + [url for port in tcp for url in turn_urls(host, tcp=port)]
    made += [url for _, port in addresses[TLS] for url in turn_urls("", tls=port, tls_host=config.tls_name)]
    return tuple(dict.fromkeys(made))


def told(usage: Usage, at_ms: int) -> AllocationUsage:
    """What a node is told of an allocation; `at_ms` is when it was read."""
    return AllocationUsage(
        usage.username,
        usage.relayed_address,
        usage.from_client_bytes,
        usage.to_client_bytes,
        usage.from_client_packets,
        usage.to_client_packets,
        usage.started_at_ms,
        usage.ended_at_ms or at_ms,
        usage.ended_at_ms,
    )


def _sums(several: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in several:
        total.update(one)
    return dict(total)


class CannotListen(Exception):
    """An address is taken, or is not this machine's."""


@contextmanager
def listening_at(transport: str, address: Address) -> Iterator[None]:
    """CannotListen for an OSError."""
    try:
        yield
    except OSError as error:
        raise CannotListen(f"The relay cannot listen on {transport} {text_of(address)}: {error.strerror or error}.") from None


def _udp_socket(address: Address, is_shared: bool = False) -> socket.socket:
    is_v6 = ":" in address[0]
    made = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if is_v6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if is_shared:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.setblocking(False)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made


def open_listeners(config: RelayConfig, workers: int = 1) -> tuple[dict[str, list[socket.socket]], ...]:
    """The listeners of each worker by transport: UDP sockets of its own, of which the kernel chooses one by the client's address, and TCP sockets of all.

    Without a certificate those of TLS are bound, and refuse connections. CannotListen when an address is taken.
    """
    opened: tuple[dict[str, list[socket.socket]], ...] = tuple({UDP: [], TCP: [], TLS: []} for _ in range(workers))
    try:
        for address in config.listen:
            with listening_at(UDP, address):
                for listeners, listener in zip(opened, _udp_listeners(address, workers, config.receive_buffer_bytes), strict=True):
                    listeners[UDP].append(listener)
        for transport, addresses in ((TCP, config.listen_tcp), (TLS, config.listen_tls)):
            for address in addresses:
                with listening_at(transport, address):
                    shared = bound_socket(address, config.streams)
                    for listeners in opened:
                        listeners[transport].append(shared)
                    if transport == TCP or config.tls is not None:
                        shared.listen(BACKLOG)
    except BaseException:
        close_listeners(*opened)
        raise
    return opened


def address_of(listener: socket.socket) -> Address:
    host, port = listener.getsockname()[:2]
    return host, port


def close_listeners(*opened: Mapping[str, Sequence[socket.socket]]) -> None:
    for listeners in opened:
        for some in listeners.values():
            for listener in some:
                listener.close()


def _udp_listeners(address: Address, count: int, receive_buffer_bytes: int) -> list[socket.socket]:
    """Sockets of one address. The first is shared only when it is bound: an address that another program shares already is taken, too."""
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            made.append(_udp_socket(made[0].getsockname() if made else address, is_shared=bool(made)))
            made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            _set_dont_fragment(made[-1], ":" in address[0], _DF_NEVER)  # RFC 8656 s14: the DF bit of what peers sent counts as 0
            if count > 1:
                made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except BaseException:
        for listener in made:
            listener.close()
        raise
    return made


def run_loop(main: Any) -> None:
    """Runs one coroutine under the fastest loop there is."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def raise_file_limit() -> None:
    """One socket per allocation: take as many files as the system lets us have."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def text_of(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
