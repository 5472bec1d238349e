"""The compiled data path as Python sees it: a thread of C (fast.c) forwards relayed datagrams; this opens, permits, binds and closes.

Python owns every socket and may send on it; C alone reads the sockets it was given. Deadlines are seconds of CLOCK_BOOTTIME, and C checks them at each batch of
datagrams that it received. Every call but `drain` and `fileno` waits until C has finished the batch in its hands (64 datagrams at most), without the GIL.
"""

from __future__ import annotations

import os
import socket
import struct
import weakref
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from media_fleet.datapath.build import LIBRARY
from media_fleet.log import log
from media_fleet.stun import Address

_HEADER = Path(__file__).with_name("fast.h")
RING_BYTES = 1_048_576
PAUSE_US = 500


class Counters(Protocol):
    """What one relay carried: payload bytes and datagrams that were forwarded, and datagrams that were not. They stay readable after `close`."""

    from_client_bytes: int
    to_client_bytes: int
    from_client_packets: int
    to_client_packets: int
    dropped_packets: int


class Upcall(NamedTuple):
    """What is not C's business: from a client all STUN, from a peer what has a permission and no channel, and ICMP that answers a datagram to a peer.

    The data of `icmp` are a `struct fast_icmp`, see `icmp_of`.
    """

    kind: Literal["client", "peer", "icmp"]
    data: bytes
    owner_id: int  # of the listener or of the relay where it arrived
    source: Address


def icmp_of(data: bytes) -> tuple[int, int, int]:
    """Type, code and info, which is an MTU where the type has one."""
    type_, code, info = struct.unpack("=BBxxI", data)
    return type_, code, info


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded library that fits."""

    ffi: Any
    lib: Any


def load(library: Path = LIBRARY) -> Library | None:
    """The library, or None with the reason logged: it was not built, it was built from another header, cffi is missing."""
    try:
        ffi = _ffi()
        lib = ffi.dlopen(str(library.absolute()))
        found = lib.fast_abi()
        reason = None if found == lib.FAST_ABI else f"it speaks version {found} of the header, not {lib.FAST_ABI}: build it again"
    except (ImportError, OSError, AttributeError) as error:
        reason = str(error)
    if reason is None:
        return Library(ffi, lib)
    log("compiled_path_unavailable", library=str(library), reason=reason)
    return None


@cache
def _ffi() -> Any:
    """What the header says, read once."""
    from cffi import FFI

    ffi = FFI()
    ffi.cdef(_HEADER.read_text())
    return ffi


class CompiledPath:
    """A running data path. For one thread of Python; ids of listeners and relays are the caller's and fit 64 bits.

    A client may have several relays, one per family: they share its channel numbers, and a ChannelData message goes to the relay that has the channel.
    What cannot be done raises OSError (a file descriptor that is taken, the 65th listener, the 1025th permission), an unknown id KeyError.
    """

    def __init__(self, library: Library, ring_bytes: int = RING_BYTES, pause_us: int = PAUSE_US) -> None:
        """`ring_bytes` hold the upcalls until they are drained, at least 256 KiB. `pause_us`: how long datagrams are collected where they come often."""
        self._ffi, self._lib = library.ffi, library.lib
        self._path = self._lib.fast_start(ring_bytes, pause_us)
        if self._path == self._ffi.NULL:
            raise OSError(self._ffi.errno, os.strerror(self._ffi.errno))
        self._fileno = self._lib.fast_fileno(self._path)
        self._upcall = self._ffi.new("struct fast_upcall *")
        self._relays: dict[int, tuple[Any, Any]] = {}  # what C writes to until the relay is closed: counters, bucket
        self._buckets: dict[Hashable, Any] = {}
        self._end = weakref.finalize(self, self._lib.fast_stop, self._path)

    def stop(self) -> None:
        """Ends the thread; the sockets may be closed. No other call may follow."""
        self._end()
        self._path = None

    def fileno(self) -> int:
        """Readable when `drain` has something."""
        return int(self._fileno)

    def listen(self, listener_id: int, fd: int) -> None:
        """Reads a UDP socket that clients send to."""
        self._check(self._lib.fast_listen(self._path, listener_id, fd))

    def unlisten(self, listener_id: int) -> None:
        """Leaves the socket alone: when this returns it may be closed. What relays of its clients would answer is dropped."""
        self._check(self._lib.fast_unlisten(self._path, listener_id))

    def open(
        self, relay_id: int, fd: int, listener_id: int, client: Address, relayed: Address, expires_at: float, bucket_id: Hashable | None = None
    ) -> Counters:
        """Reads and serves a relay socket. `relayed` is the address as peers know it; without a bucket the rate has no limit."""
        if relay_id in self._relays:
            raise ValueError(f"relay {relay_id} is open")
        bucket = self._ffi.NULL if bucket_id is None else self._buckets[bucket_id]
        counters = self._ffi.new("struct fast_counters *")
        addresses = self._address(client), self._address(relayed)
        self._check(self._lib.fast_open(self._path, relay_id, fd, listener_id, *addresses, expires_at, bucket, counters))
        self._relays[relay_id] = counters, bucket
        return counters  # type: ignore[no-any-return]

    def close(self, relay_id: int) -> None:
        """Leaves the socket alone: when this returns it may be closed, and the counters are final."""
        self._check(self._lib.fast_close(self._path, self._handle(relay_id)))
        del self._relays[relay_id]

    def extend(self, relay_id: int, expires_at: float) -> None:
        """The allocation lives until then."""
        self._check(self._lib.fast_extend(self._path, self._handle(relay_id), expires_at))

    def permit(self, relay_id: int, host: str, expires_at: float) -> None:
        """Installs or refreshes a permission."""
        self._check(self._lib.fast_permit(self._path, self._handle(relay_id), self._address((host, 0)), expires_at))

    def bind(self, relay_id: int, number: int, peer: Address, is_own: bool, expires_at: float, may_leave: bool = False) -> None:
        """Installs or refreshes a channel, not its permission. It takes the place of what had the number or the peer.

        `is_own`: the peer is a relayed address of this server, so what is sent to it is delivered inside. Where no such relay is open here it is handed up, or
        leaves by the socket if it `may_leave`: the operator allows that host as a peer, whoever has the port.
        """
        self._check(self._lib.fast_bind(self._path, self._handle(relay_id), number, self._address(peer), is_own, may_leave, expires_at))

    def bucket(self, bucket_id: Hashable, bytes_per_s: float, burst_bytes: float) -> None:
        """A token bucket of payload bytes, both directions together, full at first; or other limits for it. A larger datagram than its burst never passes."""
        bucket = self._buckets.get(bucket_id) or self._ffi.new("struct fast_bucket *")
        self._check(self._lib.fast_bucket(self._path, bucket, bytes_per_s, burst_bytes))
        self._buckets[bucket_id] = bucket

    def drop_bucket(self, bucket_id: Hashable) -> None:
        """Forgets it; relays that were opened with it stay under it."""
        del self._buckets[bucket_id]

    def spend(self, relay_id: int, size: int, *, is_from_client: bool) -> bool:
        """Counts a datagram that Python is about to forward for this relay. False: the bucket does not hold so much; it is counted as dropped."""
        return bool(self._check(self._lib.fast_spend(self._path, self._handle(relay_id), size, is_from_client)))

    def drain(self, limit: int = 256) -> list[Upcall]:
        """What waits for Python, oldest first. It is neither counted nor charged: see `spend`."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._fileno)
        taken: list[Upcall] = []
        upcall = self._upcall
        for _ in range(limit):
            if not self._lib.fast_next(self._path, upcall):
                return taken
            if upcall.kind == self._lib.FAST_FROM_CLIENT:
                taken.append(Upcall("client", self._data(), upcall.id, self._source()))
            elif upcall.id in self._relays and self._handle(upcall.id) == upcall.handle:  # else it came for a relay that is closed by now
                kind: Literal["peer", "icmp"] = "icmp" if upcall.kind == self._lib.FAST_ICMP else "peer"
                taken.append(Upcall(kind, self._data(), upcall.id, self._source()))
        os.eventfd_write(self._fileno, 1)  # there may be more
        return taken

    def stats(self) -> dict[str, int]:
        """Datagrams since the start, see `struct fast_stats`."""
        stats = self._ffi.new("struct fast_stats *")
        self._lib.fast_stats(self._path, stats)
        return {name: int(getattr(stats, name)) for name, _ in self._ffi.typeof("struct fast_stats").fields}

    def _handle(self, relay_id: int) -> Any:
        return self._relays[relay_id][0].handle

    def _data(self) -> bytes:
        return bytes(self._ffi.buffer(self._upcall.data, self._upcall.length))

    def _source(self) -> Address:
        source = self._upcall.source
        packed = bytes(source.ip)
        if source.family == 4:
            return socket.inet_ntop(socket.AF_INET, packed[:4]), source.port
        host = socket.inet_ntop(socket.AF_INET6, packed)
        return f"{host}%{source.scope}" if source.scope else host, source.port

    def _check(self, result: int) -> int:
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def _address(self, address: Address) -> Any:
        host, _, zone = address[0].partition("%")
        made = self._ffi.new("struct fast_address *", {"port": address[1], "family": 6 if ":" in host else 4})
        packed = socket.inet_pton(socket.AF_INET6 if made.family == 6 else socket.AF_INET, host)
        self._ffi.memmove(made.ip, packed, len(packed))
        if zone:
            made.scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
        return made
