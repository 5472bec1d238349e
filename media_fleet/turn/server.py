"""The TURN server's rules (RFC 8656, credentials by RFC 8489 s9.2), paragraph by paragraph.

Knows no socket: the shell performs the effects and answers an OpenRelays with `relays_opened`. Not copied between the two legs: DSCP and ECN, for
which s14 has an alternate behavior; the DF bit is set where a Send indication asks for it, else it is 0. Not here: mobility (RFC 8016; a client
restarts ICE instead), TCP to peers (RFC 6062). Relay to relay on this server stays inside the machine: the datagram goes straight to the other allocation.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from media_fleet.stun import Address, AddressError, Attribute, Class, ErrorCode, Icmp, Malformed, Message, Method, attributes, parse
from media_fleet.stun.attributes import IPV4, IPV6
from media_fleet.turn.allocating import Wanted, wanted
from media_fleet.turn.allocation import (
    CHANNEL_S,
    PERMISSION_S,
    Allocation,
    Channel,
    Counters,
    FiveTuple,
    Relayed,
    RelayId,
    Usage,
    is_ipv6,
    port_of,
    relay_id_of,
)
from media_fleet.turn.credentials import Credentials
from media_fleet.turn.effects import (
    LISTENER,
    SIBLING,
    Bind,
    CloseRelay,
    Effect,
    Ended,
    Extend,
    Forward,
    Install,
    OpenRelays,
    Permit,
    SendToClient,
    SendToPeer,
    SendToSibling,
)
from media_fleet.turn.nonces import Nonces
from media_fleet.turn.peers import PeerPolicy, is_tunnelled
from media_fleet.turn.rates import SourceLimit, TokenBucket
from media_fleet.turn.refusals import REASONS, Refused, check_understood
from media_fleet.turn.settings import TurnSettings

LARGEST_PAYLOAD = 65_400  # with its header as ChannelData or Data indication it still is one UDP datagram
_CHOICES = 16  # random ports that the shell may try
_ICMP = {4: (3, 11), 6: (1, 2, 3)}  # the types that are told to the client (s11.5)


@dataclass(frozen=True, slots=True)
class _Signer:
    username: str
    account_id: str
    key: bytes


@dataclass(slots=True)
class _Account:
    """What an account has on this server: allocations and reservations count for its quota."""

    bucket: TokenBucket | None
    held: int = 0


@dataclass(frozen=True, slots=True)
class _Pending:
    """An allocation whose relay sockets are being opened."""

    message: Message
    signer: _Signer
    wish: Wanted


@dataclass(frozen=True, slots=True)
class _Reservation:
    """A port that is open and waits for its allocation (s7.2)."""

    token: bytes
    relay_id: RelayId
    account_id: str
    expires_at: float


@dataclass(slots=True)
class Counts:
    """What the server did not do, since its start."""

    refusals: Counter[int] = field(default_factory=Counter)  # by error code
    auth_failures: int = 0  # requests with credentials that were wrong, unknown or expired
    silenced: int = 0  # answers to unauthenticated requests beyond the limit of their source
    over_rate: int = 0  # relayed datagrams beyond the bandwidth of their account


class TurnServer:
    """`receive` and `receive_from_peer` return effects; `forward` and `forward_from_peer` are the same rules for relayed datagrams alone, without objects."""

    def __init__(self, settings: TurnSettings, credentials: Credentials, random_bytes: Callable[[int], bytes], peers: PeerPolicy | None = None) -> None:
        self.settings = settings
        self.is_draining = False  # no new allocations
        self.counts = Counts()
        self._credentials, self._random_bytes = credentials, random_bytes
        self._peers = peers or PeerPolicy(relay_hosts=settings.relay_hosts, ports=range(settings.min_port, settings.max_port + 1))
        self._hosts = frozenset(settings.relay_hosts)
        self._nonces = Nonces(random_bytes(32), settings.nonce_lifetime_s)
        self._sources = SourceLimit(random_bytes(32), settings.unauthenticated_per_s, settings.unauthenticated_burst)
        self._allocations: dict[FiveTuple, Allocation] = {}
        self._by_relay: dict[RelayId, tuple[Allocation, Relayed]] = {}
        self._pending: dict[FiveTuple, _Pending] = {}
        self._reserved: dict[bytes, _Reservation] = {}
        self._reserved_relays: dict[RelayId, _Reservation] = {}
        self._accounts: dict[str, _Account] = {}
        self._deadlines: list[tuple[float, RelayId]] = []  # a heap; entries may be outdated, `next_deadline` drops those
        self._ended: deque[Usage] = deque(maxlen=settings.ended_kept)
        self._requests: dict[int, Callable[[Message, _Signer, FiveTuple, float], list[Effect]]] = {
            Method.ALLOCATE: self._allocate,
            Method.REFRESH: self._refresh,
            Method.CREATE_PERMISSION: self._create_permission,
            Method.CHANNEL_BIND: self._channel_bind,
        }

    # The shell's verbs

    def receive(self, data: bytes, five_tuple: FiveTuple, now: float) -> list[Effect]:
        """A datagram from a client, or a message of its stream. Garbage is answered with silence; nothing raises."""
        if data and 0x40 <= data[0] <= 0x7F:
            return _effects(self.forward(data, five_tuple, now))
        try:
            message = parse(data)
        except Malformed:
            return []
        ended = self._end_if_expired(five_tuple, now)
        if message.message_class is Class.REQUEST:
            return ended + self._request(message, five_tuple, now)
        if message.message_class is Class.INDICATION and message.method == Method.SEND:
            return ended + self._send_indication(message, five_tuple, now)
        return ended

    def receive_from_peer(self, data: bytes, relay_id: RelayId, peer: Address, now: float) -> list[Effect]:
        """A datagram that arrived on this relay socket."""
        return _effects(self.forward_from_peer(data, relay_id, peer, now))

    def receive_icmp(self, icmp: Icmp, relay_id: RelayId, peer: Address, now: float) -> list[Effect]:
        """ICMP that answers a datagram from this relay socket to this peer (s11.5)."""
        found = self._by_relay.get(relay_id)
        if found is None or icmp.type not in _ICMP[6 if is_ipv6(relay_id) else 4]:
            return []
        allocation, relayed = found
        if relayed.expires_at <= now or not allocation.is_permitted(peer[0], now):
            return []
        fields = ((attributes.XOR_PEER_ADDRESS, peer), (attributes.ICMP, icmp))
        return [SendToClient(Message(Method.DATA, Class.INDICATION, self._random_bytes(12), fields).serialize(), allocation.five_tuple)]

    def relays_opened(self, five_tuple: FiveTuple, relay_ids: tuple[RelayId, ...] | None, now: float) -> list[Effect]:
        """The answer to OpenRelays: the choice that was bound, or None when none of them could be."""
        pending = self._pending.pop(five_tuple)
        if relay_ids is None:
            self._leave(pending.signer.account_id)
            return [self._refuse(pending.message, pending.signer, five_tuple, 508)]  # s7.2 (8), (9)
        more: tuple[tuple[Attribute[Any], Any], ...] = ()
        if pending.wish.reserves:
            relay_ids, spare = relay_ids[:1], relay_ids[1]
            more = ((attributes.RESERVATION_TOKEN, self._reserve(spare, pending.signer.account_id, now)),)
        absent = [(family, 440) for family in pending.wish.missing]
        absent += [(family, 508) for family in pending.wish.families if not any(_family(relay_id) == family for relay_id in relay_ids)]
        more += tuple((attributes.ADDRESS_ERROR_CODE, AddressError(family, code, REASONS[code])) for family, code in absent)  # s7.2 (9)
        return self._admit(pending.message, pending.signer, five_tuple, relay_ids, more, now)

    def connection_lost(self, five_tuple: FiveTuple, now: float) -> list[Effect]:
        """The client's connection is gone, so nothing can reach it by this five-tuple any more: its allocation ends."""
        allocation = self._allocations.get(five_tuple)
        return [] if allocation is None else self._end(allocation, now)

    def tick(self, now: float) -> list[Effect]:
        """Ends every relay and every reservation whose time is over."""
        effects: list[Effect] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            _, relay_id = heapq.heappop(self._deadlines)
            if relay_id in self._by_relay:
                effects += self._end_relay(*self._by_relay[relay_id], now)
            else:
                effects += self._release(self._reserved_relays[relay_id], closes=True)
        return effects

    def next_deadline(self) -> float | None:
        """When `tick` has something to do, or None."""
        while self._deadlines:
            at, relay_id = self._deadlines[0]
            if self._expiry(relay_id) == at:
                return at
            heapq.heappop(self._deadlines)
        return None

    def end_all(self, now: float) -> list[Effect]:
        """Ends every allocation and reservation: the server is closing."""
        ended = [effect for allocation in list(self._allocations.values()) for effect in self._end(allocation, now)]
        return ended + [effect for held in list(self._reserved.values()) for effect in self._release(held, closes=True)]

    def allocations(self) -> list[Usage]:
        """What the remembered ended allocations carried, then the living ones."""
        return [*self._ended, *self.living()]

    def living(self) -> list[Usage]:
        return [allocation.usage() for allocation in self._allocations.values()]

    def five_tuples(self) -> list[FiveTuple]:
        """Of the living allocations."""
        return list(self._allocations)

    def usage(self, five_tuple: FiveTuple) -> Usage | None:
        """What this living allocation carried until now."""
        allocation = self._allocations.get(five_tuple)
        return None if allocation is None else allocation.usage()

    def traffic(self) -> Iterator[Counters]:
        """The counters of all living allocations."""
        for allocation in self._allocations.values():
            yield allocation.traffic
            for relayed in allocation.relays:
                if relayed.counters is not None:
                    yield relayed.counters

    @property
    def live(self) -> int:
        """How many allocations live."""
        return len(self._allocations)

    def has(self, five_tuple: FiveTuple) -> bool:
        """Whether this client has an allocation."""
        return five_tuple in self._allocations

    # Relayed datagrams: the per-packet path

    def forward(self, data: bytes, five_tuple: FiveTuple, now: float) -> Forward | None:
        """ChannelData from a client (s12.6); None is silence. It refreshes nothing."""
        allocation = self._allocations.get(five_tuple)
        if allocation is None or len(data) < 4:
            return None
        channel = allocation.channels.get(data[0] << 8 | data[1])
        end = (data[2] << 8 | data[3]) + 4
        if channel is None or channel.expires_at <= now or channel.relayed.expires_at <= now or end > len(data):
            return None
        payload = data[4:end]  # s12.5: padding may follow, and is ignored; length 0 is an empty datagram
        bucket = allocation.bucket
        if bucket is not None and not bucket.takes(end - 4, now):
            self.counts.over_rate += 1
            return None
        if channel.is_own:
            return self._to_own(allocation, channel.relayed, payload, channel.peer, now)
        traffic = allocation.traffic
        traffic.from_client_packets += 1
        traffic.from_client_bytes += end - 4
        return channel.relayed.relay_id, payload, channel.peer

    def forward_from_peer(self, data: bytes, relay_id: RelayId, peer: Address, now: float) -> Forward | None:
        """A peer's datagram (s11.3, s12.7): ChannelData where a channel is bound, else a Data indication; None without a permission."""
        found = self._by_relay.get(relay_id)
        if found is None:
            return None
        allocation, relayed = found
        length = len(data)
        if allocation.permissions.get(peer[0], 0.0) <= now or relayed.expires_at <= now or length > LARGEST_PAYLOAD:
            return None
        bucket = allocation.bucket
        if bucket is not None and not bucket.takes(length, now):
            self.counts.over_rate += 1
            return None
        channel = allocation.channels_by_peer.get(peer)
        if channel is not None and channel.expires_at > now:
            datagram = bytes((channel.number >> 8, channel.number & 0xFF, length >> 8, length & 0xFF)) + data
        else:
            datagram = self._data_indication(data, peer)
        traffic = allocation.traffic
        traffic.to_client_packets += 1
        traffic.to_client_bytes += length
        return LISTENER, datagram, allocation.five_tuple

    def _send_indication(self, message: Message, five_tuple: FiveTuple, now: float) -> list[Effect]:
        """s11.2: an indication is never answered. It refreshes no permission."""
        allocation = self._allocations.get(five_tuple)
        peer, data = message.get(attributes.XOR_PEER_ADDRESS), message.get(attributes.DATA)
        if allocation is None or peer is None or data is None or message.unknown or message.malformed:
            return []
        relayed = allocation.relay_for(peer[0])
        if relayed is None or relayed.expires_at <= now or not allocation.is_permitted(peer[0], now) or not self._peers.allows(peer):
            return []
        if allocation.bucket is not None and not allocation.bucket.takes(len(data), now):
            self.counts.over_rate += 1
            return []
        forward: Forward | None = relayed.relay_id, data, peer
        if peer[0] in self._hosts:
            forward = self._to_own(allocation, relayed, data, peer, now)
        else:
            allocation.traffic.from_client_packets += 1
            allocation.traffic.from_client_bytes += len(data)
        return _effects(forward, message.get(attributes.DONT_FRAGMENT) is not None and _may_set_df(five_tuple, peer))

    def _to_own(self, allocation: Allocation, relayed: Relayed, payload: bytes, peer: Address, now: float) -> Forward | None:
        """The peer is at our relay address: an allocation of ours or of a sibling, or (only where a CIDR allows the host) somebody else's socket."""
        relay_id = relay_id_of(peer)
        if relay_id in self._by_relay:
            forward = self.forward_from_peer(payload, relay_id, relayed.address, now)
        elif self.settings.is_a_siblings(relay_id):
            forward = (SIBLING, payload, (relay_id, relayed.address))
        elif self._peers.is_listed(peer[0]):
            forward = (relayed.relay_id, payload, peer)
        else:
            return None
        allocation.traffic.from_client_packets += 1
        allocation.traffic.from_client_bytes += len(payload)
        return forward

    def _data_indication(self, data: bytes, peer: Address) -> bytes:
        fields = ((attributes.XOR_PEER_ADDRESS, peer), (attributes.DATA, data))
        return Message(Method.DATA, Class.INDICATION, self._random_bytes(12), fields).serialize()

    # Requests

    def _request(self, message: Message, five_tuple: FiveTuple, now: float) -> list[Effect]:
        signer: _Signer | None = None
        try:
            if message.method == Method.BINDING:  # s5: no authentication needed for Binding
                return self._unauthenticated(self._binding(message, five_tuple), five_tuple, now)
            if message.method not in self._requests:
                return []  # RFC 8489 s6.3: an unknown method is ignored
            signer = self._authenticate(message, five_tuple, now)
            check_understood(message)
            return self._requests[message.method](message, signer, five_tuple, now)
        except Refused as refused:
            refusal = self._refuse(message, signer, five_tuple, refused.code, refused.more)
            return [refusal] if signer else self._unauthenticated(refusal, five_tuple, now)

    def _unauthenticated(self, answer: SendToClient, five_tuple: FiveTuple, now: float) -> list[Effect]:
        """An answer to somebody who may be anybody: only so many per source."""
        if self._sources.takes(five_tuple[0][0], now):
            return [answer]
        self.counts.silenced += 1
        return []

    def _binding(self, message: Message, five_tuple: FiveTuple) -> SendToClient:
        check_understood(message)
        return self._succeed(message, None, five_tuple, ((attributes.XOR_MAPPED_ADDRESS, five_tuple[0]),))

    def _authenticate(self, message: Message, five_tuple: FiveTuple, now: float) -> _Signer:
        """RFC 8489 s9.2.4, in its order; it keeps nothing about a client that it refuses."""
        challenge = ((attributes.REALM, self.settings.realm), (attributes.NONCE, self._nonces.make(five_tuple[0], now)))
        if message.integrity is None:
            raise Refused(401, *challenge)
        username, nonce = message.get(attributes.USERNAME), message.get(attributes.NONCE)
        if username is None or nonce is None or message.get(attributes.REALM) is None:
            raise Refused(400)
        signer = self._signer(message, username, five_tuple, now)
        if signer is None:
            self.counts.auth_failures += 1
            raise Refused(401, *challenge)
        if not self._nonces.is_fresh(nonce, five_tuple[0], now):
            raise Refused(438, *challenge)
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

    # Allocate (s7.2)

    def _allocate(self, message: Message, signer: _Signer, five_tuple: FiveTuple, now: float) -> list[Effect]:
        existing = self._allocations.get(five_tuple)
        if five_tuple in self._pending:
            return []
        if existing is not None:  # (2): a retransmission gets the same success, anything else 437
            if (existing.transaction_id, existing.username) != (message.transaction_id, signer.username):
                raise Refused(437)
            return [SendToClient(existing.reply, five_tuple)]
        if is_tunnelled(five_tuple[0][0]):
            raise Refused(403)  # s21.4
        wish = wanted(message, self.settings, five_tuple[0][0])
        if wish.token is not None:
            return self._allocate_reserved(message, signer, five_tuple, wish.token, now)
        account = self._accounts.get(signer.account_id)
        if account is not None and account.held + wish.reserves >= self.settings.allocations_per_account:
            raise Refused(486)  # (10): by account, not by address
        held = len(self._allocations) + len(self._pending) + len(self._reserved)
        if self.is_draining or held + wish.reserves >= self.settings.max_allocations:
            raise Refused(508)
        choices = self._choices(wish)
        if not choices:
            raise Refused(508)
        self._enter(signer.account_id, now)
        self._pending[five_tuple] = _Pending(message, signer, wish)
        return [OpenRelays(five_tuple, choices)]

    def _allocate_reserved(self, message: Message, signer: _Signer, five_tuple: FiveTuple, token: bytes, now: float) -> list[Effect]:
        """(5): the token's port, if it is still held and the account is the one that reserved it; its place in the quota goes over."""
        held = self._reserved.get(token)
        if held is None or held.expires_at <= now or held.account_id != signer.account_id:
            raise Refused(508)
        self._enter(signer.account_id, now)
        self._release(held, closes=False)
        return self._admit(message, signer, five_tuple, (held.relay_id,), (), now)

    def _choices(self, wish: Wanted) -> tuple[tuple[RelayId, ...], ...]:
        """Random candidates (s7.2, RFC 6056). Of a dual allocation both, and if that cannot be, one (9)."""
        if wish.reserves:
            firsts = self._free_ports(wish.families[0], is_even=True)
            return tuple((first, first + 1) for first in firsts if port_of(first) < self.settings.max_port and not self._is_taken(first + 1))
        each = [self._free_ports(family, wish.is_even) for family in wish.families]
        together = tuple(zip(*each, strict=False))
        return together if len(each) == 1 else together + tuple((relay_id,) for ids in each for relay_id in ids)

    def _free_ports(self, family: int, is_even: bool) -> tuple[RelayId, ...]:
        first, count, workers = self.settings.min_port, self.settings.max_port - self.settings.min_port + 1, self.settings.workers
        drawn = self._random_bytes(4 * _CHOICES)
        ports = [first + int.from_bytes(drawn[at : at + 4], "big") % count for at in range(0, len(drawn), 4)]
        if workers > 1:
            ports = [port + 2 * ((self.settings.worker - (port >> 1)) % workers) for port in ports]
        ids = (relay_id_of((self.settings.hosts[family], port & ~1 if is_even else port)) for port in ports)
        return tuple(dict.fromkeys(relay_id for relay_id in ids if self.settings.is_mine(relay_id) and not self._is_taken(relay_id)))

    def _is_taken(self, relay_id: RelayId) -> bool:
        return relay_id in self._by_relay or relay_id in self._reserved_relays

    def _reserve(self, relay_id: RelayId, account_id: str, now: float) -> bytes:
        held = _Reservation(self._random_bytes(8), relay_id, account_id, now + self.settings.reservation_s)
        self._enter(account_id, now)
        self._reserved[held.token] = self._reserved_relays[relay_id] = held
        self._watch(relay_id, held.expires_at)
        return held.token

    def _admit(
        self,
        message: Message,
        signer: _Signer,
        five_tuple: FiveTuple,
        relay_ids: tuple[RelayId, ...],
        more: tuple[tuple[Attribute[Any], Any], ...],
        now: float,
    ) -> list[Effect]:
        lifetime_s = self._lifetime(message)
        relays = tuple(Relayed(relay_id, (self.settings.hosts[_family(relay_id)], port_of(relay_id)), now + lifetime_s) for relay_id in relay_ids)
        answer = self._succeed(
            message,
            signer,
            five_tuple,
            (
                *((attributes.XOR_RELAYED_ADDRESS, relayed.address) for relayed in relays),
                (attributes.LIFETIME, lifetime_s),
                (attributes.XOR_MAPPED_ADDRESS, five_tuple[0]),
                *more,
            ),
        )
        allocation = Allocation(
            self._random_bytes(16).hex(),
            five_tuple,
            relays,
            signer.username,
            signer.account_id,
            signer.key,
            message.transaction_id,
            relays[0].address,
            answer.data,
            now,
            self._accounts[signer.account_id].bucket,
        )
        self._allocations[five_tuple] = allocation
        for relayed in relays:
            self._by_relay[relayed.relay_id] = allocation, relayed
            self._watch(relayed.relay_id, relayed.expires_at)
        return [*(Install(relayed, five_tuple, signer.account_id, relayed.expires_at) for relayed in relays), answer]

    def _lifetime(self, message: Message) -> int:
        """s7.2: what was asked for, at least the default, at most the maximum."""
        asked = message.get(attributes.LIFETIME) or 0
        return min(max(asked, self.settings.default_lifetime_s), self.settings.max_lifetime_s)

    # Refresh (s8.2), CreatePermission (s10.2), ChannelBind (s12.2)

    def _refresh(self, message: Message, signer: _Signer, five_tuple: FiveTuple, now: float) -> list[Effect]:
        allocation = self._allocation_of(signer, five_tuple)
        family = message.get(attributes.REQUESTED_ADDRESS_FAMILY)
        relays = [relayed for relayed in allocation.relays if family in (None, _family(relayed.relay_id))]  # s8.1: one of a dual allocation, or all
        if not relays:
            raise Refused(443)
        if message.get(attributes.LIFETIME) == 0:
            ended = [effect for relayed in relays for effect in self._end_relay(allocation, relayed, now)]
            return [*ended, self._succeed(message, signer, five_tuple, ((attributes.LIFETIME, 0),))]
        lifetime_s = self._lifetime(message)
        allocation.forget_expired(now)
        for relayed in relays:
            relayed.expires_at = now + lifetime_s
            self._watch(relayed.relay_id, relayed.expires_at)
        answer = self._succeed(message, signer, five_tuple, ((attributes.LIFETIME, lifetime_s),))
        return [*(Extend(relayed.relay_id, relayed.expires_at) for relayed in relays), answer]

    def _create_permission(self, message: Message, signer: _Signer, five_tuple: FiveTuple, now: float) -> list[Effect]:
        allocation = self._allocation_of(signer, five_tuple)
        hosts = dict.fromkeys(host for host, _ in message.get_all(attributes.XOR_PEER_ADDRESS))
        if not hosts:
            raise Refused(400)
        relays = {host: self._relay_for(allocation, host) for host in hosts}
        if not all(self._peers.allows_ip(host) for host in hosts):
            raise Refused(403)
        allocation.forget_expired(now)
        if len(hosts.keys() | allocation.permissions.keys()) > self.settings.max_permissions:
            raise Refused(508)
        permits = [self._permit(allocation, relayed, host, now) for host, relayed in relays.items()]
        return [*permits, self._succeed(message, signer, five_tuple)]

    def _channel_bind(self, message: Message, signer: _Signer, five_tuple: FiveTuple, now: float) -> list[Effect]:
        allocation = self._allocation_of(signer, five_tuple)
        number, peer = message.get(attributes.CHANNEL_NUMBER), message.get(attributes.XOR_PEER_ADDRESS)
        allocation.forget_expired(now)
        if number is None or peer is None or not 0x4000 <= number <= 0x4FFF or not allocation.may_bind(number, peer):
            raise Refused(400)
        relayed = self._relay_for(allocation, peer[0])
        if not self._peers.allows(peer):
            raise Refused(403)
        if (number not in allocation.channels and len(allocation.channels) >= self.settings.max_channels) or (
            peer[0] not in allocation.permissions and len(allocation.permissions) >= self.settings.max_permissions
        ):
            raise Refused(508)
        channel = Channel(number, peer, now + CHANNEL_S, relayed, peer[0] in self._hosts)
        allocation.channels[number] = allocation.channels_by_peer[peer] = channel
        may_leave = self._peers.is_listed(peer[0]) and not self.settings.is_a_siblings(relay_id_of(peer))
        bound = Bind(relayed.relay_id, number, peer, channel.is_own, may_leave, channel.expires_at)
        return [self._permit(allocation, relayed, peer[0], now), bound, self._succeed(message, signer, five_tuple)]

    def _permit(self, allocation: Allocation, relayed: Relayed, host: str, now: float) -> Permit:
        allocation.permissions[host] = now + PERMISSION_S
        return Permit(relayed.relay_id, host, now + PERMISSION_S)

    def _allocation_of(self, signer: _Signer, five_tuple: FiveTuple) -> Allocation:
        allocation = self._allocations.get(five_tuple)
        if allocation is None:
            raise Refused(437)  # s5
        if allocation.username != signer.username:
            raise Refused(441)  # s5, s21.3.3
        return allocation

    def _relay_for(self, allocation: Allocation, host: str) -> Relayed:
        relayed = allocation.relay_for(host)
        if relayed is None:
            raise Refused(443)  # s10.2, s12.2
        return relayed

    # The end of an allocation

    def _watch(self, relay_id: RelayId, at: float) -> None:
        """Notes when it ends; a client that refreshes or reallocates all the time does not make the heap grow."""
        heapq.heappush(self._deadlines, (at, relay_id))
        if len(self._deadlines) > 2 * (len(self._by_relay) + len(self._reserved)) + 64:
            living = [(relayed.expires_at, relayed.relay_id) for _, relayed in self._by_relay.values()]
            self._deadlines = living + [(held.expires_at, held.relay_id) for held in self._reserved.values()]
            heapq.heapify(self._deadlines)

    def _expiry(self, relay_id: RelayId) -> float | None:
        if found := self._by_relay.get(relay_id):
            return found[1].expires_at
        held = self._reserved_relays.get(relay_id)
        return None if held is None else held.expires_at

    def _end_if_expired(self, five_tuple: FiveTuple, now: float) -> list[Effect]:
        allocation = self._allocations.get(five_tuple)
        expired = () if allocation is None else tuple(relayed for relayed in allocation.relays if relayed.expires_at <= now)
        return [effect for relayed in expired if allocation is not None for effect in self._end_relay(allocation, relayed, now)]

    def _end(self, allocation: Allocation, now: float) -> list[Effect]:
        return [effect for relayed in allocation.relays for effect in self._end_relay(allocation, relayed, now)]

    def _end_relay(self, allocation: Allocation, relayed: Relayed, now: float) -> list[Effect]:
        """Ends one relayed address, and with the last one the allocation."""
        del self._by_relay[relayed.relay_id]
        allocation.forget_relay(relayed)
        closed = CloseRelay(relayed.relay_id)
        if allocation.relays:
            return [closed]
        del self._allocations[allocation.five_tuple]
        self._leave(allocation.account_id)
        usage = allocation.usage(ended_at=min(now, relayed.expires_at))
        self._ended.append(usage)
        return [closed, Ended(allocation.five_tuple, usage)]

    def _release(self, held: _Reservation, closes: bool) -> list[Effect]:
        """Ends a reservation; its port is closed, or goes to an allocation."""
        del self._reserved[held.token], self._reserved_relays[held.relay_id]
        self._leave(held.account_id)
        return [CloseRelay(held.relay_id)] if closes else []

    def _enter(self, account_id: str, now: float) -> None:
        account = self._accounts.get(account_id)
        if account is None:
            per_s = self.settings.account_bytes_per_s
            bucket = TokenBucket(per_s, per_s * self.settings.account_burst_s, now) if per_s else None
            account = self._accounts[account_id] = _Account(bucket)
        account.held += 1

    def _leave(self, account_id: str) -> None:
        account = self._accounts[account_id]
        account.held -= 1
        if not account.held:
            del self._accounts[account_id]

    # Answers

    def _succeed(self, message: Message, signer: _Signer | None, five_tuple: FiveTuple, fields: Iterable[tuple[Attribute[Any], Any]] = ()) -> SendToClient:
        return self._answer(message, Class.SUCCESS, signer, five_tuple, fields)

    def _refuse(
        self, message: Message, signer: _Signer | None, five_tuple: FiveTuple, code: int, more: Iterable[tuple[Attribute[Any], Any]] = ()
    ) -> SendToClient:
        """Before authentication there is no MESSAGE-INTEGRITY (RFC 8489 s9.2.4), and as little as can be: whoever asked may not be who gets it."""
        self.counts.refusals[code] += 1
        return self._answer(message, Class.ERROR, signer, five_tuple, ((attributes.ERROR_CODE, ErrorCode(code, REASONS[code] if signer else "")), *more))

    def _answer(
        self, message: Message, kind: Class, signer: _Signer | None, five_tuple: FiveTuple, fields: Iterable[tuple[Attribute[Any], Any]]
    ) -> SendToClient:
        tells = signer is not None and message.method in (Method.ALLOCATE, Method.REFRESH)  # s5: these SHOULD name the software
        said = (*fields, (attributes.SOFTWARE, self.settings.software)) if tells else tuple(fields)
        answer = Message(message.method, kind, message.transaction_id, said)
        return SendToClient(answer.serialize(signer.key if signer else None, message.has_fingerprint), five_tuple)


def _family(relay_id: RelayId) -> int:
    return IPV6 if is_ipv6(relay_id) else IPV4


def _may_set_df(five_tuple: FiveTuple, peer: Address) -> bool:
    """From UDP to UDP the attribute DONT-FRAGMENT is ignored where either side is IPv6 (s13); else it counts (s14, s15)."""
    return five_tuple[2] != "udp" or not any(":" in host for host, _ in (five_tuple[0], peer))


def _effects(forward: Forward | None, dont_fragment: bool = False) -> list[Effect]:
    """A Forward as an effect."""
    if forward is None:
        return []
    relay_id, data, to = forward
    if relay_id == LISTENER:
        return [SendToClient(data, to)]
    return [SendToSibling(to[0], data, to[1]) if relay_id == SIBLING else SendToPeer(relay_id, data, to, dont_fragment)]
