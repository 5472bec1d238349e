"""The sockets of clients that come by TCP or TLS: a thin shell around `Deframer` and `Connections`. STARTTLS and DTLS are not spoken.

A client that reads too slowly loses datagrams, as over UDP; it never makes the relay wait, and never has more than `max_write_buffer_bytes` waiting.
TLS runs over memory, not in the loops' own transports: those show a connection only after its handshake, and asyncio's keeps 256 KiB for each.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, cast

from media_fleet.log import log
from media_fleet.stun import Address, Malformed
from media_fleet.tls import TlsFiles, server_context
from media_fleet.turn.allocation import FiveTuple
from media_fleet.turn.connections import Closed, Connection, Connections, StreamLimits
from media_fleet.turn.framing import Deframer, frame

TCP, TLS = "tcp", "tls"
_READ_BYTES = 65_536  # at a time; one buffer for all connections
_RECORD_BYTES = 16_384  # the most that a TLS record carries, RFC 8446 s5.1
_BATCH = 256  # messages of one client before others get their turn
BACKLOG = 1_024  # connections that wait to be accepted
_OVERHEAD_BYTES = 56  # what Python keeps of a datagram beside its bytes; a client pays for it too
_UNSENT_BYTES = 65_536  # in the kernel for a client that does not read; what it has not sent, it cannot make fresher


class Streams:
    """All client connections of a process, over any number of listeners.

    `on_message(datagram, five_tuple)` gets whole messages, as they would have come over UDP. `on_lost(five_tuple)` is told once of every connection that ended,
    for whatever reason, and never from inside `send` or `keep`. A five-tuple is ((client host, port), (server host, port), "tcp" or "tls").
    """

    def __init__(self, on_message: Callable[[bytes, FiveTuple], object], on_lost: Callable[[FiveTuple], object], limits: StreamLimits | None = None) -> None:
        self.limits = limits or StreamLimits()
        self.on_message, self.on_lost = on_message, on_lost
        self.table = Connections(self.limits)
        self.read_buffer = memoryview(bytearray(_READ_BYTES))
        self.dropped = 0
        self._streams: dict[FiveTuple, _Stream] = {}
        self._full: set[_Stream] = set()
        self._unflushed: list[_Stream] = []
        self._servers: list[asyncio.Server] = []
        self._secure: list[_Secure] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    async def listen(self, at: Address | socket.socket, tls: TlsFiles | None = None) -> Address:
        """Opens a listener, or takes one of `bound_socket`, of TLS where there are files for it; returns its address (port 0 has become a real one).

        OSError when the address is taken, ValueError when the files are wrong.
        """
        self._loop = asyncio.get_running_loop()
        secure = _Secure(tls) if tls else None
        listener = at if isinstance(at, socket.socket) else bound_socket(at, self.limits)
        try:
            self._servers.append(await self._loop.create_server(lambda: _TlsStream(self, secure) if secure else _Stream(self), sock=listener, backlog=BACKLOG))
        except BaseException:
            if listener is not at:
                listener.close()
            raise
        if secure:
            self._secure.append(secure)
        host, port = listener.getsockname()[:2]
        return host, port

    def reload(self, files: TlsFiles) -> None:
        """Takes these TLS files for handshakes from now on; ValueError when they are wrong, and then nothing changes."""
        context = server_context(files)
        for secure in self._secure:
            secure.context = context

    async def close(self) -> None:
        """Ends every connection and closes the listeners."""
        for server in self._servers:
            server.close()
        self.flush()
        for stream in list(self._streams.values()):
            self.drop(stream, Closed.SERVER)
        if self._timer:
            self._timer.cancel()
        for server in self._servers:
            await server.wait_closed()

    def send(self, five_tuple: FiveTuple, data: bytes) -> bool:
        """Sends a datagram; False when the client is gone, or so far behind that the datagram is dropped. What one turn of the loop sends leaves together."""
        stream = self._streams.get(five_tuple)
        if stream is None:
            return False
        framed = frame(data)
        charged = stream.charged + len(framed) + _OVERHEAD_BYTES
        if charged > stream.room and not self._has_room(stream, charged):
            return False
        stream.charged = charged
        pending = stream.pending
        if not pending and not stream.is_blocked:
            if not self._unflushed:
                self._loop.call_soon(self.flush)
            self._unflushed.append(stream)
        pending.append(framed)
        return True

    def keep(self, five_tuple: FiveTuple, is_kept: bool) -> None:
        """Whether this client has an allocation: then it may be silent, and its messages as large as datagrams are."""
        stream = self._streams.get(five_tuple)
        if stream is not None:
            if is_kept:
                stream.deframer.largest = self.limits.largest_message_bytes
            self.table.keep(stream.connection, is_kept, self._loop.time())
            self._arm()

    def counters(self) -> dict[str, Any]:
        """Plain data: connections now, and counts since the start."""
        return {
            "connections": len(self.table),
            "accepted": self.table.accepted,
            "refused": dict(self.table.refused),
            "closed": dict(self.table.closed),
            "dropped_datagrams": self.dropped,
        }

    # For the streams

    def admit(self, stream: _Stream) -> bool:
        """Whether a new connection may stay."""
        five_tuple = _five_tuple(stream.transport, stream.name)
        if five_tuple is None:
            self.table.refused["gone"] += 1
            return False
        if five_tuple in self._streams:  # the kernel knows that the old one is gone; we were about to hear of it
            self.drop(self._streams[five_tuple], Closed.REPLACED)
        connection = self.table.admit(five_tuple, self._loop.time(), is_open=stream.name == TCP)
        if connection is None:
            return False
        stream.connection = connection
        self._streams[five_tuple] = stream
        self._arm()
        return True

    def tell(self, stream: _Stream, *, has_message: bool) -> None:
        """Keeps the table's time."""
        self.table.received(stream.connection, self._loop.time(), has_message=has_message, has_partial=stream.deframer.held > 0)
        self._arm()

    def opened(self, stream: _Stream) -> None:
        """TLS is established."""
        self.table.opened(stream.connection, self._loop.time())
        self._arm()

    def later(self, callback: Callable[[], object]) -> None:
        """Calls back when others have had their turn."""
        self._loop.call_soon(callback)

    def drop(self, stream: _Stream, reason: Closed) -> None:
        """Ends a connection, and tells so once."""
        if not stream.is_lost:
            stream.is_lost = True
            self._full.discard(stream)
            del self._streams[stream.connection.five_tuple]
            self.table.remove(stream.connection, reason)
            stream.abort()
            self.on_lost(stream.connection.five_tuple)

    def flush(self) -> None:
        """Hands to the sockets what was sent."""
        unflushed, self._unflushed = self._unflushed, []
        for stream in unflushed:
            stream.flush()

    def drained(self, stream: _Stream) -> None:
        """It reads again."""
        if stream in self._full:
            self._full.discard(stream)
            self.table.drained(stream.connection)

    def _has_room(self, stream: _Stream, charged: int) -> bool:
        """Looks again at how much of its buffer the client has read; counts what it must drop."""
        stream.room = self.limits.max_write_buffer_bytes - stream.transport.get_write_buffer_size()
        if charged <= stream.room:
            self.drained(stream)
            return True
        self.dropped += 1
        if stream not in self._full:
            self._full.add(stream)
            self.table.filled(stream.connection, self._loop.time())
            self._arm()
        return False

    # Time

    def _arm(self) -> None:
        """Keeps the one timer at the table's next deadline; one that is early arms the next."""
        deadline = self.table.next_deadline()
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return
        if self._timer:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for stream in [stream for stream in self._full if stream.buffered < self.limits.max_write_buffer_bytes // 2]:
            self.drained(stream)  # nobody sent to it since, but it has read
        for connection, reason in self.table.tick(self._loop.time()):
            self.drop(self._streams[connection.five_tuple], reason)
        self._arm()


class _Stream(asyncio.BufferedProtocol):
    """One TCP connection. What it sends waits in `pending` for the end of the loop's turn; the transport holds only what the kernel did not take then."""

    __slots__ = ("backlog", "charged", "connection", "deframer", "is_blocked", "is_lost", "pending", "room", "streams", "transport")
    name = TCP
    connection: Connection
    transport: asyncio.Transport

    def __init__(self, streams: Streams) -> None:
        self.streams = streams
        self.is_lost = True  # until it is admitted
        self.is_blocked = False  # the kernel takes no more
        self.room = streams.limits.max_write_buffer_bytes  # what `charged` may reach: at least so much is free
        self.charged = 0  # bytes that `pending` takes
        self.pending: list[bytes] = []
        self.deframer = Deframer(streams.limits.largest_unproven_message_bytes)
        self.backlog: Iterator[bytes] = iter(())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are of no common class
        if not self.streams.admit(self):
            self.transport.abort()
            return
        self.is_lost = False
        self.transport.set_write_buffer_limits(high=0)

    def connection_lost(self, exc: Exception | None) -> None:
        self.streams.drop(self, Closed.NETWORK if exc else Closed.CLIENT)

    def eof_received(self) -> None:
        self.streams.drop(self, Closed.CLIENT)  # half a connection relays nothing

    # Reading

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.streams.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self.is_lost:
            self.receive(bytes(self.streams.read_buffer[:nbytes]))

    def receive(self, data: bytes) -> None:
        """Bytes of the stream of messages."""
        try:
            messages = self.deframer.feed(data)
        except Malformed:
            self.streams.drop(self, Closed.MALFORMED)
            return
        self.streams.tell(self, has_message=bool(messages))
        self.deliver(messages)

    def deliver(self, messages: list[bytes]) -> None:
        """A client that sends many at once waits for the others after each batch."""
        if len(messages) <= _BATCH:
            self._deliver(messages)
        else:
            self.transport.pause_reading()
            self.backlog = iter(messages)
            self._continue()

    def _continue(self) -> None:
        if self.is_lost:
            return
        batch = list(islice(self.backlog, _BATCH))
        if batch:
            self._deliver(batch)
            self.streams.later(self._continue)
        else:
            self.transport.resume_reading()

    def _deliver(self, messages: list[bytes]) -> None:
        on_message, five_tuple = self.streams.on_message, self.connection.five_tuple
        try:
            for message in messages:
                on_message(message, five_tuple)
        except Exception as error:  # an edge of the process: one bad message must not end the relay
            log("internal", error=repr(error), client=five_tuple[0][0])
            self.streams.drop(self, Closed.INTERNAL)

    # Writing

    @property
    def buffered(self) -> int:
        """Bytes that wait for this client, outside the kernel."""
        return self.charged + self.transport.get_write_buffer_size()

    def flush(self) -> None:
        """Writes what is pending, as much as the kernel takes."""
        if self.pending and not self.is_blocked and not self.transport.is_closing():
            data = b"".join(self.pending)
            self.forget()
            self.write(data)

    def forget(self) -> None:
        """Nothing is pending any more."""
        self.pending.clear()
        self.charged = 0

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.is_blocked = True
        self.room = self.streams.limits.max_write_buffer_bytes - self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        self.is_blocked = False
        self.room = self.streams.limits.max_write_buffer_bytes
        if not self.is_lost:
            self.streams.drained(self)
            self.flush()

    def abort(self) -> None:
        self.forget()
        self.transport.abort()


class _Secure:
    """The certificate of one listener."""

    def __init__(self, files: TlsFiles) -> None:
        self.context = server_context(files)


class _TlsStream(_Stream):
    """One TLS connection."""

    __slots__ = ("incoming", "is_ended", "is_open", "outgoing", "secure", "tls")
    name = TLS

    def __init__(self, streams: Streams, secure: _Secure) -> None:
        super().__init__(streams)
        self.secure = secure
        self.is_open = self.is_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self.is_lost:
            self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = self.secure.context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def buffer_updated(self, nbytes: int) -> None:
        if self.is_lost:
            return
        try:
            plain = self._decrypt(self.streams.read_buffer[:nbytes])
        except ssl.SSLError:
            self.streams.drop(self, Closed.TLS)
            return
        if self.outgoing.pending:
            self.transport.write(self.outgoing.read())
            if self.transport.get_write_buffer_size() > self.streams.limits.max_write_buffer_bytes + _RECORD_BYTES:  # it asks for new keys, and reads none
                self.streams.drop(self, Closed.STALLED)
                return
        if plain:
            self.receive(plain)
        if self.is_ended:
            self.streams.drop(self, Closed.CLIENT)

    def _decrypt(self, data: memoryview) -> bytes:
        """What these bytes say, as far as they reach; piece by piece, because a BIO keeps the memory of the most that it ever held."""
        plain = []
        for at in range(0, len(data), _RECORD_BYTES):
            self.incoming.write(data[at : at + _RECORD_BYTES])
            with suppress(ssl.SSLWantReadError):
                if not self.is_open:
                    self.tls.do_handshake()
                    self.is_open = True
                    self.streams.opened(self)
                while self.incoming.pending and not self.is_ended:
                    piece = self.tls.read(_RECORD_BYTES)
                    self.is_ended = not piece
                    plain.append(piece)
        return b"".join(plain)

    def flush(self) -> None:
        if self.is_open:
            super().flush()
        else:
            self.forget()

    def write(self, data: bytes) -> None:
        view, records = memoryview(data), []
        try:
            for at in range(0, len(view), _RECORD_BYTES):
                self.tls.write(view[at : at + _RECORD_BYTES])
                records.append(self.outgoing.read())
        except ssl.SSLError:
            self.streams.drop(self, Closed.TLS)
        else:
            self.transport.write(b"".join(records))

    def abort(self) -> None:
        """With the goodbye, or the alert that OpenSSL has ready, where the kernel takes it."""
        if not self.is_blocked and not self.transport.is_closing():
            if self.is_open:
                with suppress(ssl.SSLError):
                    self.tls.unwrap()
            self.transport.write(self.outgoing.read())
        super().abort()


def _five_tuple(transport: asyncio.Transport, name: str) -> FiveTuple | None:
    """None when the client has gone already."""
    with suppress(OSError):
        client, server = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if client and server:
            return (_host(client[0]), client[1]), (_host(server[0]), server[1]), name
    return None


def _host(text: str) -> str:
    """The canonical text: without scope, and an IPv4 address as one."""
    ip = ipaddress.ip_address(text.partition("%")[0])
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def bound_socket(address: Address, limits: StreamLimits) -> socket.socket:
    """A socket for a listener, whose options its connections inherit. Several processes may accept from it. OSError when the address is taken."""
    is_v6 = ":" in address[0]
    made = socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_v6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, limits.kernel_buffer_bytes)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.kernel_buffer_bytes)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_NODELAY", 1),
            ("TCP_KEEPIDLE", 60),
            ("TCP_KEEPINTVL", 10),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", int(limits.stalled_s * 1000)),  # what is sent and not acknowledged, as ICE consent (RFC 7675) would
            ("TCP_NOTSENT_LOWAT", _UNSENT_BYTES),
        ):
            if hasattr(socket, name):  # the last two are Linux's
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        made.setblocking(False)
        made.bind(address)
    except BaseException:
        made.close()
        raise
    return made
