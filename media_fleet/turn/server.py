"""The TURN server's rules over UDP (RFC 8656, credentials by RFC 8489 s9.2), paragraph by paragraph.

Knows no socket: the shell performs the effects and answers an OpenRelay with `relay_opened`. Not copied between the two legs: DSCP, ECN and TTL (s14).
Relay to relay on this server stays inside the machine: the datagram goes straight to the other allocation.
"""

from __future__ import annotations

import heapq
import ipaddress
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from media_fleet.stun import Address, Attribute, Class, ErrorCode, Malformed, Message, Method, attributes, parse
from media_fleet.turn.allocation import Allocation, FiveTuple, Usage
from media_fleet.turn.credentials import Credentials
from media_fleet.turn.nonces import Nonces
from media_fleet.turn.peers import PeerPolicy

UDP = 17
LARGEST_PAYLOAD = 65_400  # with its header as ChannelData or Data indication it still is one UDP datagram
LISTENER = 0  # the `port` of a Forward that leaves by the listener
Forward = tuple[int, bytes, Address]  # (relay port to send from, or LISTENER; datagram; destination): a tuple, because it is made per packet

REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    420: "Unknown Attribute",
    437: "Allocation Mismatch",
    438: "Stale Nonce",
    440: "Address Family not Supported",
    441: "Wrong Credentials",
    442: "Unsupported Transport Protocol",
    443: "Peer Address Family Mismatch",
    486: "Allocation Quota Reached",
    508: "Insufficient Capacity",
}


@dataclass(frozen=True, slots=True)
class SendToClient:
    """Send this from the listener of the five-tuple."""

    data: bytes
    five_tuple: FiveTuple


@dataclass(frozen=True, slots=True)
class SendToPeer:
    """Send this from the relay socket on `port`."""

    port: int
    data: bytes
    peer: Address


@dataclass(frozen=True, slots=True)
class OpenRelay:
    """Bind the first free port of these, then call `relay_opened`."""

    five_tuple: FiveTuple
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CloseRelay:
    """The allocation ended; close its relay socket."""

    port: int
    usage: Usage


Effect = SendToClient | SendToPeer | OpenRelay | CloseRelay


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSettings:
    """What one server allows. Permissions and channels last 300 s and 600 s: the RFC leaves no choice."""

    realm: str
    relay_host: str  # the address of relayed addresses, as clients are told
    default_lifetime_s: int = 600
    max_lifetime_s: int = 3600  # RFC 8656 s7.2: at most an hour recommended
    nonce_lifetime_s: int = 3600  # RFC 8656 s5: expire at least hourly
    credential_grace_s: int = 86_400  # how long after its start an allocation outlives its credentials
    min_port: int = 49_152
    max_port: int = 65_535
    allocations_per_account: int = 64
    max_allocations: int = 8_000
    max_permissions: int = 128  # per allocation
    max_channels: int = 128  # per allocation
    ended_kept: int = 1_000  # usage of ended allocations that is remembered


@dataclass(frozen=True, slots=True)
class _Signer:
    username: str
    account_id: str
    key: bytes


@dataclass(frozen=True, slots=True)
class _Pending:
    """An allocation whose relay socket is being opened."""

    message: Message
    signer: _Signer
    lifetime_s: int


class _Refused(Exception):
    """The request is answered with this error; nothing has changed."""

    def __init__(self, code: int, *more: tuple[Attribute[Any], Any]) -> None:
        self.code, self.more = code, more
        super().__init__(REASONS[code])


class TurnServer:
    """`receive` and `receive_from_peer` return effects; `forward` and `forward_from_peer` are the same rules for relayed datagrams alone, without objects."""

    def __init__(self, settings: TurnSettings, credentials: Credentials, random_bytes: Callable[[int], bytes], peers: PeerPolicy | None = None) -> None:
        self.settings = settings
        self.is_draining = False  # no new allocations
        self._credentials, self._random_bytes = credentials, random_bytes
        self._peers = peers or PeerPolicy(relay_host=settings.relay_host, ports=range(settings.min_port, settings.max_port + 1))
        self._family = ipaddress.ip_address(settings.relay_host).version
        self._nonces = Nonces(random_bytes(32), settings.nonce_lifetime_s)
        self._allocations: dict[FiveTuple, Allocation] = {}
        self._by_port: dict[int, Allocation] = {}
        self._pending: dict[FiveTuple, _Pending] = {}
        self._per_account: Counter[str] = Counter()
        self._deadlines: list[tuple[float, FiveTuple]] = []  # a heap; entries may be outdated, `next_deadline` drops those
        self._ended: deque[Usage] = deque(maxlen=settings.ended_kept)
        self._requests: dict[int, Callable[[Message, _Signer, FiveTuple, float], list[Effect]]] = {
            Method.ALLOCATE: self._allocate,
            Method.REFRESH: self._refresh,
            Method.CREATE_PERMISSION: self._create_permission,
            Method.CHANNEL_BIND: self._channel_bind,
        }

    # The shell's verbs

    def receive(self, data: bytes, five_tuple: FiveTuple, now: float) -> list[Effect]:
        """A datagram from a client. Garbage is answered with silence; nothing raises."""
        if data and 0x40 <= data[0] <= 0x7F:
            return _effects(self.forward(data, five_tuple, now), five_tuple)
        try:
            message = parse(data)
        except Malformed:
            return []
        ended = self._end_if_expired(five_tuple, now)
        if message.message_class is Class.REQUEST:
            return ended + self._request(message, five_tuple, now)
        if message.message_class is Class.INDICATION and message.method == Method.SEND:
            return ended + _effects(self._send_indication(message, five_tuple, now), five_tuple)
        return ended

    def receive_from_peer(self, data: bytes, port: int, peer: Address, now: float) -> list[Effect]:
        """A datagram that arrived on the relay socket of this port."""
        allocation = self._by_port.get(port)
        return [] if allocation is None else _effects(self.forward_from_peer(data, port, peer, now), allocation.five_tuple)

    def relay_opened(self, five_tuple: FiveTuple, port: int | None, now: float) -> list[Effect]:
        """The answer to OpenRelay: the port that was bound, or None when none of them could be."""
        pending = self._pending.pop(five_tuple)
        if port is None:
            self._leave(pending.signer.account_id)
            return [SendToClient(self._error(pending.message, 508, pending.signer.key), five_tuple)]  # s7.2 (10)
        return [SendToClient(self._admit(pending, five_tuple, port, now).reply, five_tuple)]

    def tick(self, now: float) -> list[Effect]:
        """Ends every allocation whose lifetime is over."""
        effects: list[Effect] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            effects += self._end(self._deadlines[0][1], now)
        return effects

    def next_deadline(self) -> float | None:
        """When `tick` has something to do, or None."""
        while self._deadlines:
            at, five_tuple = self._deadlines[0]
            allocation = self._allocations.get(five_tuple)
            if allocation is not None and allocation.expires_at == at:
                return at
            heapq.heappop(self._deadlines)
        return None

    def end_all(self, now: float) -> list[Effect]:
        """Ends every allocation: the server is closing."""
        return [effect for five_tuple in list(self._allocations) for effect in self._end(five_tuple, now)]

    def allocations(self) -> list[Usage]:
        """What the remembered ended allocations carried, then the living ones."""
        return [*self._ended, *(allocation.usage() for allocation in self._allocations.values())]

    @property
    def live(self) -> int:
        """How many allocations live."""
        return len(self._allocations)

    # Relayed datagrams: the per-packet path

    def forward(self, data: bytes, five_tuple: FiveTuple, now: float) -> Forward | None:
        """ChannelData from a client (s12.6); None is silence. It refreshes nothing."""
        allocation = self._allocations.get(five_tuple)
        if allocation is None or len(data) < 4 or allocation.expires_at <= now:
            return None
        channel = allocation.channels.get(data[0] << 8 | data[1])
        end = (data[2] << 8 | data[3]) + 4
        if channel is None or channel.expires_at <= now or end > len(data):
            return None
        payload = data[4:end]  # s12.5: over UDP padding may follow, and is ignored; length 0 is an empty datagram
        if channel.is_own:
            return self._to_own(allocation, payload, channel.peer, now)
        allocation.from_client_packets += 1
        allocation.from_client_bytes += end - 4
        return allocation.relayed[1], payload, channel.peer

    def forward_from_peer(self, data: bytes, port: int, peer: Address, now: float) -> Forward | None:
        """A peer's datagram (s11.3, s12.7): ChannelData where a channel is bound, else a Data indication; None without a permission."""
        allocation = self._by_port.get(port)
        if allocation is None or allocation.permissions.get(peer[0], 0.0) <= now or allocation.expires_at <= now:
            return None
        length = len(data)
        if length > LARGEST_PAYLOAD:
            return None
        channel = allocation.channels_by_peer.get(peer)
        if channel is not None and channel.expires_at > now:
            datagram = bytes((channel.number >> 8, channel.number & 0xFF, length >> 8, length & 0xFF)) + data
        else:
            datagram = self._data_indication(data, peer)
        allocation.to_client_packets += 1
        allocation.to_client_bytes += length
        return LISTENER, datagram, allocation.five_tuple[0]

    def _send_indication(self, message: Message, five_tuple: FiveTuple, now: float) -> Forward | None:
        """s11.2: an indication is never answered. It refreshes no permission."""
        allocation = self._allocations.get(five_tuple)
        peer, data = message.get(attributes.XOR_PEER_ADDRESS), message.get(attributes.DATA)
        if allocation is None or peer is None or data is None or message.unknown or message.malformed:
            return None
        if message.get(attributes.DONT_FRAGMENT) is not None:  # s15: not supported, so it counts as unknown
            return None
        if not allocation.is_permitted(peer[0], now) or not self._peers.allows(peer):
            return None
        if peer[0] == self.settings.relay_host:
            return self._to_own(allocation, data, peer, now)
        return self._to_peer(allocation, data, peer)

    def _to_own(self, allocation: Allocation, payload: bytes, peer: Address, now: float) -> Forward | None:
        """The peer is at our relay address: another allocation, or (only where a CIDR allows the host) somebody else's socket."""
        if peer[1] in self._by_port:
            allocation.from_client_packets += 1
            allocation.from_client_bytes += len(payload)
            return self.forward_from_peer(payload, peer[1], allocation.relayed, now)
        return self._to_peer(allocation, payload, peer) if self._peers.is_listed(peer[0]) else None

    def _to_peer(self, allocation: Allocation, payload: bytes, peer: Address) -> Forward:
        allocation.from_client_packets += 1
        allocation.from_client_bytes += len(payload)
        return allocation.relayed[1], payload, peer

    def _data_indication(self, data: bytes, peer: Address) -> bytes:
        fields = ((attributes.XOR_PEER_ADDRESS, peer), (attributes.DATA, data))
        return Message(Method.DATA, Class.INDICATION, self._random_bytes(12), fields).serialize()

    # Requests

    def _request(self, message: Message, five_tuple: FiveTuple, now: float) -> list[Effect]:
        key: bytes | None = None
        try:
            if message.method == Method.BINDING:  # s5: no authentication needed for Binding
                return [SendToClient(self._binding(message, five_tuple), five_tuple)]
            if message.method not in self._requests:
                return []  # RFC 8489 s6.3: an unknown method is ignored
            signer = self._authenticate(message, five_tuple, now)
            key = signer.key
            _check_understood(message)
            return self._requests[message.method](message, signer, five_tuple, now)
        except _Refused as refused:
            return [SendToClient(self._error(message, refused.code, key, refused.more), five_tuple)]

    def _binding(self, message: Message, five_tuple: FiveTuple) -> bytes:
        _check_understood(message)
        return self._success(message, None, ((attributes.XOR_MAPPED_ADDRESS, five_tuple[0]),))

    def _authenticate(self, message: Message, five_tuple: FiveTuple, now: float) -> _Signer:
        """RFC 8489 s9.2.4, in its order; it keeps nothing about a client that it refuses."""
        challenge = ((attributes.REALM, self.settings.realm), (attributes.NONCE, self._nonces.make(five_tuple[0], now)))
        if message.integrity is None:
            raise _Refused(401, *challenge)
        username, nonce = message.get(attributes.USERNAME), message.get(attributes.NONCE)
        if username is None or nonce is None or message.get(attributes.REALM) is None:
            raise _Refused(400)
        signer = self._signer(message, username, five_tuple, now)
        if signer is None:
            raise _Refused(401, *challenge)
        if not self._nonces.is_fresh(nonce, five_tuple[0], now):
            raise _Refused(438, *challenge)
        return signer

    def _signer(self, message: Message, username: str, five_tuple: FiveTuple, now: float) -> _Signer | None:
        """Who signed. A live allocation's own key stays good for a while after its credentials expired, so a long call can refresh."""
        allocation = self._allocations.get(five_tuple)
        is_remembered = allocation is not None and allocation.username == username and now < allocation.started_at + self.settings.credential_grace_s
        if allocation is not None and is_remembered and message.is_signed_by(allocation.key):
            return _Signer(username, allocation.account_id, allocation.key)
        identity = self._credentials(username, now)
        key = None if identity is None else next((key for key in identity.keys if message.is_signed_by(key)), None)
        return None if identity is None or key is None else _Signer(username, identity.account_id, key)

    def _allocate(self, message: Message, signer: _Signer, five_tuple: FiveTuple, now: float) -> list[Effect]:
        existing = self._allocations.get(five_tuple)
        if five_tuple in self._pending:
            return []
        if existing is not None:  # s7.2 (2): a retransmission gets the same success, anything else 437
            if existing.transaction_id != message.transaction_id:
                raise _Refused(437)
            return [SendToClient(existing.reply, five_tuple)]
        self._check_allocate(message, signer)
        ports = self._free_ports(is_even=message.get(attributes.EVEN_PORT) is not None)
        if not ports:
            raise _Refused(508)
        self._per_account[signer.account_id] += 1
        self._pending[five_tuple] = _Pending(message, signer, self._lifetime(message))
        return [OpenRelay(five_tuple, ports)]

    def _check_allocate(self, message: Message, signer: _Signer) -> None:
        transport, family = message.get(attributes.REQUESTED_TRANSPORT), message.get(attributes.REQUESTED_ADDRESS_FAMILY)
        additional, even = message.get(attributes.ADDITIONAL_ADDRESS_FAMILY), message.get(attributes.EVEN_PORT)
        if transport is None:
            raise _Refused(400)  # s7.2 (3)
        if transport != UDP:
            raise _Refused(442)  # s7.2 (3)
        if message.get(attributes.DONT_FRAGMENT) is not None:
            raise _Refused(420, (attributes.UNKNOWN_ATTRIBUTES, (attributes.DONT_FRAGMENT.type,)))  # s7.2 (4): as if unknown
        if message.get(attributes.RESERVATION_TOKEN) is not None:  # s7.2 (5); we hand out no tokens, so none is valid
            raise _Refused(508 if even is None and family is None and additional is None else 400)
        if family is not None and additional is not None:
            raise _Refused(400)  # s7.2 (6)
        if (family or attributes.IPV4) != (attributes.IPV4 if self._family == 4 else attributes.IPV6):
            raise _Refused(440)  # s7.2 (7)
        if even is not None and even & 0x80:  # s7.2 (8): no reservation of the next port yet
            raise _Refused(508 if additional is None else 400)
        if additional not in (None, attributes.IPV6):
            raise _Refused(400)  # s7.2 (9); an additional IPv6 address is not given, which s7.2 leaves to us
        if self._per_account[signer.account_id] >= self.settings.allocations_per_account:
            raise _Refused(486)  # s7.2 (10): by account, not by address
        if self.is_draining or len(self._allocations) + len(self._pending) >= self.settings.max_allocations:
            raise _Refused(508)  # s7.2 (10)

    def _lifetime(self, message: Message) -> int:
        """s7.2: what was asked for, at least the default, at most the maximum."""
        asked = message.get(attributes.LIFETIME) or 0
        return min(max(asked, self.settings.default_lifetime_s), self.settings.max_lifetime_s)

    def _free_ports(self, is_even: bool) -> tuple[int, ...]:
        """A few random candidates (s7.2, RFC 6056)."""
        first, count = self.settings.min_port, self.settings.max_port - self.settings.min_port + 1
        drawn = self._random_bytes(64)
        numbers = (first + int.from_bytes(drawn[at : at + 4], "big") % count for at in range(0, 64, 4))
        even = (number - number % 2 if is_even else number for number in numbers)
        return tuple(dict.fromkeys(number for number in even if number >= first and number not in self._by_port))

    def _admit(self, pending: _Pending, five_tuple: FiveTuple, port: int, now: float) -> Allocation:
        relayed = (self.settings.relay_host, port)
        message, signer = pending.message, pending.signer
        fields = ((attributes.XOR_RELAYED_ADDRESS, relayed), (attributes.LIFETIME, pending.lifetime_s), (attributes.XOR_MAPPED_ADDRESS, five_tuple[0]))
        reply = self._success(message, signer.key, fields)
        expires_at = now + pending.lifetime_s
        allocation = Allocation(
            five_tuple, relayed, self._family, signer.username, signer.account_id, signer.key, message.transaction_id, reply, now, expires_at
        )
        self._allocations[five_tuple] = self._by_port[port] = allocation
        self._watch(allocation)
        return allocation

    def _refresh(self, message: Message, signer: _Signer, five_tuple: FiveTuple, now: float) -> list[Effect]:
        allocation = self._allocation_of(signer, five_tuple)
        family = message.get(attributes.REQUESTED_ADDRESS_FAMILY)
        if family is not None and family != (attributes.IPV4 if allocation.family == 4 else attributes.IPV6):
            raise _Refused(443)  # s8.2
        if message.get(attributes.LIFETIME) == 0:  # s8.2: deletes the allocation
            return [*self._end(five_tuple, now), self._succeed(message, signer, five_tuple, ((attributes.LIFETIME, 0),))]
        lifetime_s = self._lifetime(message)
        allocation.expires_at = now + lifetime_s
        allocation.forget_expired(now)
        self._watch(allocation)
        return [self._succeed(message, signer, five_tuple, ((attributes.LIFETIME, lifetime_s),))]

    def _create_permission(self, message: Message, signer: _Signer, five_tuple: FiveTuple, now: float) -> list[Effect]:
        allocation = self._allocation_of(signer, five_tuple)
        hosts = {host for host, _ in message.get_all(attributes.XOR_PEER_ADDRESS)}
        if not hosts:
            raise _Refused(400)  # s10.2
        for host in hosts:
            self._check_family(allocation, host)
            if not self._peers.allows_ip(host):
                raise _Refused(403)  # s10.2
        allocation.forget_expired(now)
        if len(hosts | allocation.permissions.keys()) > self.settings.max_permissions:
            raise _Refused(508)  # s10.2
        for host in hosts:
            allocation.permit(host, now)
        return [self._succeed(message, signer, five_tuple)]

    def _channel_bind(self, message: Message, signer: _Signer, five_tuple: FiveTuple, now: float) -> list[Effect]:
        allocation = self._allocation_of(signer, five_tuple)
        number, peer = message.get(attributes.CHANNEL_NUMBER), message.get(attributes.XOR_PEER_ADDRESS)
        allocation.forget_expired(now)
        if number is None or peer is None or not 0x4000 <= number <= 0x4FFF or not allocation.may_bind(number, peer):
            raise _Refused(400)  # s12.2
        self._check_family(allocation, peer[0])
        if not self._peers.allows(peer):
            raise _Refused(403)  # s12.2
        if (number not in allocation.channels and len(allocation.channels) >= self.settings.max_channels) or (
            peer[0] not in allocation.permissions and len(allocation.permissions) >= self.settings.max_permissions
        ):
            raise _Refused(508)  # s12.2
        allocation.bind(number, peer, peer[0] == self.settings.relay_host, now)
        return [self._succeed(message, signer, five_tuple)]

    def _allocation_of(self, signer: _Signer, five_tuple: FiveTuple) -> Allocation:
        allocation = self._allocations.get(five_tuple)
        if allocation is None:
            raise _Refused(437)  # s5
        if allocation.username != signer.username:
            raise _Refused(441)  # s5, s21.3.3
        return allocation

    def _check_family(self, allocation: Allocation, host: str) -> None:
        if (6 if ":" in host else 4) != allocation.family:
            raise _Refused(443)  # s10.2, s12.2

    # The end of an allocation

    def _watch(self, allocation: Allocation) -> None:
        """Notes when it ends; a client that refreshes or reallocates all the time does not make the heap grow."""
        heapq.heappush(self._deadlines, (allocation.expires_at, allocation.five_tuple))
        if len(self._deadlines) > 2 * len(self._allocations) + 64:
            self._deadlines = [(living.expires_at, living.five_tuple) for living in self._allocations.values()]
            heapq.heapify(self._deadlines)

    def _end_if_expired(self, five_tuple: FiveTuple, now: float) -> list[Effect]:
        allocation = self._allocations.get(five_tuple)
        return self._end(five_tuple, now) if allocation is not None and allocation.expires_at <= now else []

    def _end(self, five_tuple: FiveTuple, now: float) -> list[Effect]:
        allocation = self._allocations.pop(five_tuple)
        del self._by_port[allocation.relayed[1]]
        self._leave(allocation.account_id)
        usage = allocation.usage(ended_at=min(now, allocation.expires_at))
        self._ended.append(usage)
        return [CloseRelay(allocation.relayed[1], usage)]

    def _leave(self, account_id: str) -> None:
        self._per_account[account_id] -= 1
        if not self._per_account[account_id]:
            del self._per_account[account_id]

    # Answers

    def _succeed(self, message: Message, signer: _Signer, five_tuple: FiveTuple, fields: Iterable[tuple[Attribute[Any], Any]] = ()) -> SendToClient:
        return SendToClient(self._success(message, signer.key, fields), five_tuple)

    def _success(self, message: Message, key: bytes | None, fields: Iterable[tuple[Attribute[Any], Any]]) -> bytes:
        return Message(message.method, Class.SUCCESS, message.transaction_id, tuple(fields)).serialize(key, message.has_fingerprint)

    def _error(self, message: Message, code: int, key: bytes | None, more: Iterable[tuple[Attribute[Any], Any]] = ()) -> bytes:
        """Before authentication there is no key, so no MESSAGE-INTEGRITY (RFC 8489 s9.2.4)."""
        fields = ((attributes.ERROR_CODE, ErrorCode(code, REASONS[code])), *more)
        return Message(message.method, Class.ERROR, message.transaction_id, fields).serialize(key, message.has_fingerprint)


def _check_understood(message: Message) -> None:
    if message.unknown:
        raise _Refused(420, (attributes.UNKNOWN_ATTRIBUTES, message.unknown))  # RFC 8489 s6.3.1
    if message.malformed:
        raise _Refused(400)


def _effects(forward: Forward | None, five_tuple: FiveTuple) -> list[Effect]:
    """A Forward as an effect. What goes relay to relay leaves by the listener, to another client than the one that sent."""
    if forward is None:
        return []
    port, data, destination = forward
    if port == LISTENER:
        return [SendToClient(data, (destination, five_tuple[1], five_tuple[2]))]
    return [SendToPeer(port, data, destination)]
