"""The TURN server's rules, one by one. `s` numbers are RFC 8656's unless another RFC is named."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sized
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliograph.ice import TurnSecrets, turn_key, turn_password, turn_username
from media_fleet.stun import Address, Attribute, Class, Icmp, Message, Method, attributes, parse
from media_fleet.turn import (
    Bind,
    CloseRelay,
    Credentials,
    Effect,
    Ended,
    Extend,
    FiveTuple,
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
    relay_id_of,
    shared_secrets,
    static_users,
)
from media_fleet.turn.rates import SourceLimit

REALM, HOST, HOST6, NOW = "heliograph", "52.1.2.3", "2a05:d018::1", 1_800_000_000.0
PEER, OTHER, PEER6 = ("8.8.8.8", 5000), ("9.9.9.9", 5000), ("2606:4700::1111", 5000)
USERS = static_users({"ann": "pass", "bob": "word"}, REALM)
Fields = tuple[tuple[Attribute[Any], Any], ...]
UDP: Fields = ((attributes.REQUESTED_TRANSPORT, 17),)


def _random() -> Any:
    numbers = itertools.count(1)
    return lambda count: (next(numbers) * 0x9E3779B97F4A7C15).to_bytes(32, "big")[-8:].ljust(count, b"\x5a") if count != 64 else _draws(next(numbers))


def _draws(number: int) -> bytes:
    return b"".join((number * 1000 + at * 7).to_bytes(4, "big") for at in range(16))


class Laptop:
    """A TURN server without sockets: relay sockets open at once, `opens` says which do."""

    def __init__(self, credentials: Credentials = USERS, peers: PeerPolicy | None = None, **changes: Any) -> None:
        self.server = TurnServer(TurnSettings(**{"realm": REALM, "relay_hosts": (HOST,), **changes}), credentials, _random(), peers)
        self.opens: Callable[[RelayId], bool] = lambda relay_id: True
        self.open_ports: set[RelayId] = set()
        self.to_peers: list[SendToPeer | SendToSibling] = []
        self.told: list[Effect] = []  # what a data path outside Python is told

    def receive(self, data: bytes, five_tuple: FiveTuple, now: float) -> list[SendToClient]:
        return self.perform(self.server.receive(data, five_tuple, now), now)

    def perform(self, effects: Any, now: float) -> list[SendToClient]:
        sent: list[SendToClient] = []
        for effect in effects:
            if isinstance(effect, OpenRelays):
                opened = next((choice for choice in effect.choices if all(map(self.opens, choice))), None)
                assert self.open_ports.isdisjoint(opened or ())
                self.open_ports.update(opened or ())
                sent += self.perform(self.server.relays_opened(effect.five_tuple, opened, now), now)
            elif isinstance(effect, CloseRelay):
                self.open_ports.remove(effect.relay_id)
            elif isinstance(effect, SendToPeer | SendToSibling):
                self.to_peers.append(effect)
            elif isinstance(effect, Install | Extend | Permit | Bind | Ended):
                self.told.append(effect)
            else:
                sent.append(effect)
        return sent


class Client:
    """One five-tuple with credentials; it learns its nonce from the first 401."""

    ids = itertools.count(1)

    def __init__(self, laptop: Laptop, username: str = "ann", password: str = "pass", port: int = 40_000) -> None:  # noqa: S107
        self.laptop, self.username = laptop, username
        self.five_tuple: FiveTuple = (("198.51.100.7", port), ("10.0.0.1", 3478), "udp")
        self.key = turn_key(username, REALM, password)
        self.nonce: bytes | None = None
        self.last = b""

    def ask(self, method: Method, fields: Fields = (), now: float = NOW, data: bytes | None = None) -> Message:
        if self.nonce is None:
            challenge = self.exchange(self.plain(Method.ALLOCATE), now)
            self.nonce = challenge.get(attributes.NONCE)
        self.last = data or self.signed(method, fields)
        return self.exchange(self.last, now)

    def signed(self, method: Method, fields: Fields = (), key: bytes | None = None) -> bytes:
        own: Fields = ((attributes.USERNAME, self.username), (attributes.REALM, REALM), (attributes.NONCE, self.nonce or b""))
        return Message(method, Class.REQUEST, self.next_id(), (*fields, *own)).serialize(key or self.key)

    def plain(self, method: Method, fields: Fields = ()) -> bytes:
        return Message(method, Class.REQUEST, self.next_id(), fields).serialize()

    def next_id(self) -> bytes:
        return next(self.ids).to_bytes(12, "big")

    def exchange(self, data: bytes, now: float = NOW) -> Message:
        answers = self.laptop.receive(data, self.five_tuple, now)
        assert len(answers) == 1, f"one answer expected, got {answers}"
        assert answers[0].five_tuple == self.five_tuple
        message = parse(answers[0].data)
        assert message.transaction_id == data[8:20]
        return message

    def silence(self, data: bytes, now: float = NOW) -> None:
        before = len(self.laptop.to_peers)
        assert self.laptop.receive(data, self.five_tuple, now) == []
        assert len(self.laptop.to_peers) == before

    def allocate(self, now: float = NOW, fields: Fields = ()) -> Address:
        answer = self.ask(Method.ALLOCATE, (*UDP, *fields), now)
        assert code(answer) is None, code(answer)
        assert answer.is_signed_by(self.key)
        relayed = answer.get(attributes.XOR_RELAYED_ADDRESS)
        assert relayed is not None
        return relayed

    def permit(self, *peers: Address, now: float = NOW) -> Message:
        return self.ask(Method.CREATE_PERMISSION, tuple((attributes.XOR_PEER_ADDRESS, peer) for peer in peers), now)

    def bind(self, number: int, peer: Address, now: float = NOW) -> Message:
        return self.ask(Method.CHANNEL_BIND, ((attributes.CHANNEL_NUMBER, number), (attributes.XOR_PEER_ADDRESS, peer)), now)

    def refresh(self, lifetime_s: int | None, now: float = NOW) -> Message:
        return self.ask(Method.REFRESH, () if lifetime_s is None else ((attributes.LIFETIME, lifetime_s),), now)

    def send(self, data: bytes, peer: Address, now: float = NOW, fields: Fields = ()) -> None:
        values: Fields = ((attributes.XOR_PEER_ADDRESS, peer), (attributes.DATA, data), *fields)
        assert self.laptop.receive(Message(Method.SEND, Class.INDICATION, self.next_id(), values).serialize(), self.five_tuple, now) == []


def code(message: Message) -> int | None:
    error = message.get(attributes.ERROR_CODE)
    assert (message.message_class is Class.ERROR) == (error is not None)
    return None if error is None else error.code


def kept(server: TurnServer) -> int:
    """How many entries the server's tables of the living have."""
    tables: tuple[Sized, ...] = (
        server._allocations,
        server._pending,
        server._by_relay,
        server._deadlines,
        server._accounts,
        server._reserved,
        server._reserved_relays,
    )
    return sum(map(len, tables))


def channel_data(number: int, data: bytes) -> bytes:
    return number.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


@pytest.fixture
def laptop() -> Laptop:
    return Laptop()


@pytest.fixture
def ann(laptop: Laptop) -> Client:
    return Client(laptop)


# Binding


def test_a_binding_request_is_answered_with_the_source_address_and_without_authentication(ann: Client) -> None:
    answer = ann.exchange(Message(Method.BINDING, Class.REQUEST, ann.next_id()).serialize(fingerprint=True))
    assert answer.get(attributes.XOR_MAPPED_ADDRESS) == ann.five_tuple[0]
    assert answer.has_fingerprint


def test_a_binding_request_with_an_unknown_required_attribute_gets_420_rfc_8489_s6_3_1(ann: Client) -> None:
    strange: Attribute[bytes] = Attribute(0x7001, "X", lambda value, _: value, lambda data, _: data)
    answer = ann.exchange(ann.plain(Method.BINDING, ((strange, b""),)))
    assert (code(answer), answer.get(attributes.UNKNOWN_ATTRIBUTES)) == (420, (0x7001,))


# Authentication, RFC 8489 s9.2.4


@pytest.mark.parametrize("method", [Method.ALLOCATE, Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND])
def test_without_integrity_every_request_gets_401_with_realm_and_nonce(ann: Client, method: Method) -> None:
    answer = ann.exchange(ann.plain(method, UDP))
    assert code(answer) == 401
    assert answer.get(attributes.REALM) == REALM
    assert answer.get(attributes.NONCE)
    assert answer.integrity is None


@pytest.mark.parametrize("missing", [attributes.USERNAME, attributes.REALM, attributes.NONCE])
def test_integrity_without_username_realm_or_nonce_gets_400(ann: Client, missing: Attribute[Any]) -> None:
    ann.ask(Method.REFRESH)
    whole = parse(ann.last)
    less = Message(whole.method, whole.message_class, ann.next_id(), tuple(item for item in whole.attributes if item[0] is not missing))
    assert code(ann.exchange(less.serialize(ann.key))) == 400
    assert code(ann.exchange(whole.serialize(ann.key))) == 437  # the twin passes authentication


def test_an_unknown_user_and_a_wrong_password_get_401_and_the_right_one_passes(laptop: Laptop) -> None:
    for username, password in (("eve", "pass"), ("ann", "guess"), ("", "")):
        refused = Client(laptop, username, password).ask(Method.ALLOCATE, UDP)
        assert code(refused) == 401
        assert refused.get(attributes.NONCE)
        assert refused.integrity is None
    Client(laptop).allocate()


def test_a_bad_password_is_told_before_a_stale_nonce(ann: Client) -> None:
    ann.nonce = b"made up"
    assert code(ann.exchange(ann.signed(Method.ALLOCATE, UDP, key=b"wrong"))) == 401
    assert code(ann.exchange(ann.signed(Method.ALLOCATE, UDP))) == 438


def test_a_nonce_is_good_for_an_hour_and_then_438_brings_a_fresh_one(ann: Client) -> None:
    ann.ask(Method.REFRESH)
    assert code(ann.ask(Method.ALLOCATE, UDP, NOW + 3600)) is None
    stale = ann.ask(Method.REFRESH, (), NOW + 3602)
    assert code(stale) == 438
    assert stale.get(attributes.REALM) == REALM
    assert stale.integrity is None
    ann.nonce = stale.get(attributes.NONCE)
    assert code(ann.refresh(600, NOW + 3602)) is None


def test_a_nonce_is_bound_to_its_source_address_and_port(laptop: Laptop, ann: Client) -> None:
    ann.ask(Method.REFRESH)
    neighbour = Client(laptop, port=40_001)
    neighbour.nonce = ann.nonce
    assert code(neighbour.ask(Method.ALLOCATE, UDP)) == 438
    assert code(ann.ask(Method.ALLOCATE, UDP)) is None


def test_each_allocate_a_second_later_gets_another_nonce_s5(ann: Client) -> None:
    nonces = {ann.exchange(ann.plain(Method.ALLOCATE, UDP), NOW + second).get(attributes.NONCE) for second in range(3)}
    assert len(nonces) == 3


def test_a_nonce_says_that_rfc_8489_is_supported_without_its_optional_features_rfc_8489_s9_2(ann: Client) -> None:
    nonce = ann.exchange(ann.plain(Method.ALLOCATE)).get(attributes.NONCE)
    assert nonce is not None
    assert nonce.startswith(b"obMatJos2AAAA")
    assert len(nonce) == 29


@pytest.mark.parametrize("nonce", [b"", b"obMatJos2AAAA", b"obMatJos2AAAA" + b"A" * 16, b"obMatJos2AAAA" + b"*" * 16, b"\xff" * 29, b"0" * 700])
def test_a_forged_nonce_gets_438_and_never_raises(ann: Client, nonce: bytes) -> None:
    ann.nonce = nonce
    assert code(ann.exchange(ann.signed(Method.ALLOCATE, UDP))) == 438


def test_nothing_is_kept_about_a_client_before_it_has_authenticated() -> None:
    laptop = Laptop(unauthenticated_per_s=0)
    for port in range(20_000, 20_200):
        stranger = Client(laptop, "ann", "guess", port)
        stranger.ask(Method.ALLOCATE, UDP)
        stranger.exchange(stranger.plain(Method.CREATE_PERMISSION))
    assert kept(laptop.server) == 0
    assert laptop.server.allocations() == []


def test_an_answer_before_authentication_is_no_amplifier(ann: Client) -> None:
    for request in (ann.plain(Method.ALLOCATE, UDP), ann.plain(Method.BINDING)):
        answer = ann.laptop.receive(request, ann.five_tuple, NOW)[0].data
        assert len(answer) <= 4 * len(request)


def test_unknown_required_attributes_get_420_after_authentication_and_the_answer_is_signed(ann: Client) -> None:
    strange: Attribute[bytes] = Attribute(0x7001, "X", lambda value, _: value, lambda data, _: data)
    assert code(ann.exchange(ann.plain(Method.ALLOCATE, (*UDP, (strange, b""))))) == 401
    answer = ann.ask(Method.ALLOCATE, (*UDP, (strange, b"")))
    assert (code(answer), answer.get(attributes.UNKNOWN_ATTRIBUTES)) == (420, (0x7001,))
    assert answer.is_signed_by(ann.key)


def test_an_expired_credential_gets_401_and_both_secrets_pass_until_then() -> None:
    secrets = TurnSecrets("new", "old")
    laptop = Laptop(shared_secrets(lambda: secrets, REALM))
    name = turn_username(int(NOW) + 60, "acc_1", "dev_1")
    for port, secret, now, expected in ((1, "new", NOW + 59, None), (2, "old", NOW + 59, None), (3, "older", NOW + 59, 401), (4, "new", NOW + 60, 401)):
        assert code(Client(laptop, name, turn_password(secret, name), port).ask(Method.ALLOCATE, UDP, now)) == expected, secret
    assert code(Client(laptop, "ann", "pass", 5).ask(Method.ALLOCATE, UDP)) == 401
    assert {usage.account_id for usage in laptop.server.allocations()} == {"acc_1"}


def test_a_live_allocation_outlives_its_credential_for_a_day_and_no_longer() -> None:
    name = turn_username(int(NOW) + 60, "acc_1", "dev_1")
    laptop = Laptop(shared_secrets(lambda: TurnSecrets("s"), REALM), nonce_lifetime_s=10**6)
    client = Client(laptop, name, turn_password("s", name))
    client.allocate()
    for now in range(int(NOW), int(NOW) + 86_400, 3_000):
        assert code(client.refresh(3600, now)) is None
    assert code(client.refresh(3600, NOW + 86_400)) == 401
    assert code(Client(laptop, name, turn_password("s", name), 9).ask(Method.ALLOCATE, UDP, NOW + 61)) == 401


# Allocate, s7.2


def test_an_allocation_answers_with_its_relayed_address_the_source_and_a_lifetime(ann: Client) -> None:
    answer = ann.ask(Method.ALLOCATE, UDP)
    relayed = answer.get(attributes.XOR_RELAYED_ADDRESS)
    assert relayed is not None
    assert relayed[0] == HOST
    assert 49_152 <= relayed[1] <= 65_535
    assert ann.laptop.open_ports == {relayed[1]}
    assert answer.get(attributes.XOR_MAPPED_ADDRESS) == ann.five_tuple[0]
    assert answer.get(attributes.LIFETIME) == 600
    assert answer.is_signed_by(ann.key)


def test_a_retransmitted_allocate_gets_the_same_success_and_a_new_one_437_s7_2_2(ann: Client) -> None:
    first = ann.ask(Method.ALLOCATE, UDP)
    assert ann.exchange(ann.last, NOW + 1) == first
    assert code(ann.ask(Method.ALLOCATE, UDP)) == 437
    assert len(ann.laptop.open_ports) == 1


def test_the_transaction_id_of_an_allocate_with_another_users_credentials_is_no_retransmission(laptop: Laptop, ann: Client) -> None:
    first = ann.ask(Method.ALLOCATE, UDP)
    bob = Client(laptop, "bob", "word")
    bob.nonce = ann.nonce
    bob.next_id = lambda: first.transaction_id  # type: ignore[method-assign]
    assert code(bob.exchange(bob.signed(Method.ALLOCATE, UDP))) == 437
    assert ann.exchange(ann.last) == first


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((), 400),  # (3)
        (((attributes.REQUESTED_TRANSPORT, 6),), 442),  # (3)
        ((*UDP, (attributes.DONT_FRAGMENT, b"")), None),  # (4): supported
        ((*UDP, (attributes.RESERVATION_TOKEN, b"12345678"), (attributes.EVEN_PORT, 0)), 400),  # (5)
        ((*UDP, (attributes.RESERVATION_TOKEN, b"12345678"), (attributes.REQUESTED_ADDRESS_FAMILY, 1)), 400),  # (5)
        ((*UDP, (attributes.RESERVATION_TOKEN, b"12345678")), 508),  # (5)
        ((*UDP, (attributes.REQUESTED_ADDRESS_FAMILY, 1), (attributes.ADDITIONAL_ADDRESS_FAMILY, 2)), 400),  # (6)
        ((*UDP, (attributes.REQUESTED_ADDRESS_FAMILY, 2)), 440),  # (7)
        ((*UDP, (attributes.REQUESTED_ADDRESS_FAMILY, 9)), 440),  # (7)
        ((*UDP, (attributes.RESERVATION_TOKEN, b"12345678"), (attributes.ADDITIONAL_ADDRESS_FAMILY, 2)), 400),  # (5)
        ((*UDP, (attributes.EVEN_PORT, 0x80)), None),  # (8)
        ((*UDP, (attributes.EVEN_PORT, 0x80), (attributes.ADDITIONAL_ADDRESS_FAMILY, 2)), 400),  # (8)
        ((*UDP, (attributes.ADDITIONAL_ADDRESS_FAMILY, 1)), 400),  # (9)
        ((*UDP, (attributes.REQUESTED_ADDRESS_FAMILY, 1)), None),
        ((*UDP, (attributes.EVEN_PORT, 0)), None),
        ((*UDP, (attributes.ADDITIONAL_ADDRESS_FAMILY, 2)), None),
    ],
)
def test_allocate_checks_its_attributes_in_the_order_of_s7_2(ann: Client, fields: Fields, expected: int | None) -> None:
    answer = ann.ask(Method.ALLOCATE, fields)
    assert code(answer) == expected
    assert answer.is_signed_by(ann.key)
    assert bool(ann.laptop.open_ports) == (expected is None)


def test_even_port_gives_an_even_port(laptop: Laptop) -> None:
    ports = [Client(laptop, port=port).allocate(fields=((attributes.EVEN_PORT, 0),))[1] for port in range(1, 20)]
    assert all(port % 2 == 0 for port in ports)
    assert len(set(ports)) == len(ports)


@pytest.mark.parametrize(("asked", "granted"), [(None, 600), (0, 600), (10, 600), (601, 601), (3600, 3600), (2**32 - 1, 3600)])
def test_a_lifetime_is_at_least_the_default_and_at_most_an_hour_s7_2(ann: Client, asked: int | None, granted: int) -> None:
    fields: Fields = () if asked is None else ((attributes.LIFETIME, asked),)
    assert ann.ask(Method.ALLOCATE, (*UDP, *fields)).get(attributes.LIFETIME) == granted


def test_the_quota_counts_by_account_and_a_deleted_allocation_gives_its_place_back() -> None:
    laptop = Laptop(allocations_per_account=2)
    clients = [Client(laptop, port=port) for port in (1, 2, 3)]
    clients[0].allocate()
    clients[1].allocate()
    assert code(clients[2].ask(Method.ALLOCATE, UDP)) == 486
    Client(laptop, "bob", "word", 4).allocate()
    clients[0].refresh(0)
    clients[2].allocate()


def test_a_full_server_answers_508_and_so_does_one_whose_ports_are_taken() -> None:
    laptop = Laptop(max_allocations=1)
    laptop.opens = lambda relay_id: False
    assert code(Client(laptop, port=1).ask(Method.ALLOCATE, UDP)) == 508
    assert kept(laptop.server) == 0
    laptop.opens = lambda relay_id: True
    Client(laptop, port=2).allocate()
    assert code(Client(laptop, port=3).ask(Method.ALLOCATE, UDP)) == 508


def test_a_draining_server_takes_no_allocation_and_serves_the_ones_it_has(laptop: Laptop, ann: Client) -> None:
    ann.allocate()
    laptop.server.is_draining = True
    assert code(Client(laptop, port=2).ask(Method.ALLOCATE, UDP)) == 508
    assert code(ann.refresh(600)) is None


def test_each_answer_to_allocate_and_refresh_names_the_software_once_the_client_is_known_s5(ann: Client) -> None:
    assert ann.exchange(ann.plain(Method.ALLOCATE)).get(attributes.SOFTWARE) is None  # 401: as small as can be
    assert ann.ask(Method.ALLOCATE, ()).get(attributes.SOFTWARE) == "heliograph"  # 400
    assert ann.ask(Method.ALLOCATE, UDP).get(attributes.SOFTWARE) == "heliograph"
    assert ann.refresh(600).get(attributes.SOFTWARE) == "heliograph"


# Reservations, s7.2


def reserve(client: Client, now: float = NOW) -> tuple[Address, bytes]:
    answer = client.ask(Method.ALLOCATE, (*UDP, (attributes.EVEN_PORT, 0x80)), now)
    relayed, token = answer.get(attributes.XOR_RELAYED_ADDRESS), answer.get(attributes.RESERVATION_TOKEN)
    assert relayed is not None
    assert token is not None
    return relayed, token


def test_even_port_with_r_holds_the_next_port_for_30_seconds_and_its_token_gives_it(laptop: Laptop, ann: Client) -> None:
    relayed, token = reserve(ann)
    assert relayed[1] % 2 == 0
    assert laptop.open_ports == {relayed[1], relayed[1] + 1}
    second = Client(laptop, port=2)
    assert second.allocate(NOW + 29, fields=((attributes.RESERVATION_TOKEN, token),)) == (HOST, relayed[1] + 1)
    assert code(Client(laptop, port=3).ask(Method.ALLOCATE, (*UDP, (attributes.RESERVATION_TOKEN, token)))) == 508  # used
    assert laptop.open_ports == {relayed[1], relayed[1] + 1}
    second.refresh(0, NOW + 29)
    ann.refresh(0)
    assert laptop.open_ports == set()
    assert kept(laptop.server) == len(laptop.server._deadlines)


def test_a_retransmitted_allocate_gets_the_same_token(ann: Client) -> None:
    reserve(ann)
    first = ann.exchange(ann.last)
    assert first.get(attributes.RESERVATION_TOKEN)
    assert ann.exchange(ann.last, NOW + 1) == first


def test_a_reservation_nobody_takes_is_over_after_30_seconds(laptop: Laptop, ann: Client) -> None:
    relayed, token = reserve(ann)
    assert laptop.server.next_deadline() == NOW + 30
    late = Client(laptop, port=2).ask(Method.ALLOCATE, (*UDP, (attributes.RESERVATION_TOKEN, token)), NOW + 30)  # before the tick
    assert code(late) == 508
    laptop.perform(laptop.server.tick(NOW + 30), NOW + 30)
    assert laptop.open_ports == {relayed[1]}
    assert laptop.server.next_deadline() == NOW + 600


def test_a_reserved_port_relays_nothing_and_is_given_to_its_own_account_only(laptop: Laptop, ann: Client) -> None:
    relayed, token = reserve(ann)
    assert laptop.server.receive_from_peer(b"x", relayed[1] + 1, PEER, NOW) == []
    assert code(Client(laptop, "bob", "word", 2).ask(Method.ALLOCATE, (*UDP, (attributes.RESERVATION_TOKEN, token)))) == 508
    Client(laptop, port=3).allocate(fields=((attributes.RESERVATION_TOKEN, token),))


def test_a_reservation_counts_for_the_quota_and_hands_its_place_over() -> None:
    laptop = Laptop(allocations_per_account=2)
    _, token = reserve(Client(laptop, port=1))
    assert code(Client(laptop, port=2).ask(Method.ALLOCATE, UDP)) == 486
    Client(laptop, port=3).allocate(fields=((attributes.RESERVATION_TOKEN, token),))
    assert code(Client(laptop, port=4).ask(Method.ALLOCATE, (*UDP, (attributes.EVEN_PORT, 0x80)))) == 486


def test_a_draining_server_still_gives_what_it_reserved_and_closing_ends_all(laptop: Laptop, ann: Client) -> None:
    reserve(ann)
    laptop.perform(laptop.server.end_all(NOW), NOW)
    assert laptop.open_ports == set()
    assert kept(laptop.server) == len(laptop.server._deadlines)


# Address families, s7.2 (7), (9)


@pytest.fixture
def dual() -> Client:
    return Client(Laptop(relay_hosts=(HOST, HOST6)))


BOTH: Fields = (*UDP, (attributes.ADDITIONAL_ADDRESS_FAMILY, 2))


def test_a_family_is_given_as_asked_and_ipv4_when_none_is(dual: Client) -> None:
    assert dual.allocate()[0] == HOST
    assert Client(dual.laptop, port=2).allocate(fields=((attributes.REQUESTED_ADDRESS_FAMILY, 2),))[0] == HOST6
    assert Client(dual.laptop, port=3).allocate(fields=((attributes.REQUESTED_ADDRESS_FAMILY, 1),))[0] == HOST


def test_without_ipv4_a_request_for_no_family_gets_440() -> None:
    ann = Client(Laptop(relay_hosts=(HOST6,)))
    assert code(ann.ask(Method.ALLOCATE, UDP)) == 440
    assert ann.allocate(fields=((attributes.REQUESTED_ADDRESS_FAMILY, 2),))[0] == HOST6


def test_where_the_operator_says_so_a_client_that_asks_for_no_family_gets_the_one_it_came_by() -> None:
    laptop = Laptop(relay_hosts=(HOST, HOST6), unasked_family="client")
    four, six = Client(laptop), Client(laptop)
    six.five_tuple = (("2606:4700::7", 1), ("2a05:d018::2", 3478), "udp")
    assert (four.allocate()[0], six.allocate()[0]) == (HOST, HOST6)


def test_a_dual_allocation_has_both_addresses_and_each_peer_is_reached_from_that_of_its_family(dual: Client) -> None:
    answer = dual.ask(Method.ALLOCATE, BOTH)
    at4, at6 = answer.get_all(attributes.XOR_RELAYED_ADDRESS)
    assert (at4[0], at6[0], answer.get(attributes.ADDRESS_ERROR_CODE)) == (HOST, HOST6, None)
    assert code(dual.permit(PEER, PEER6)) is None
    for peer in (PEER, PEER6):
        dual.send(b"x", peer)
    assert dual.laptop.to_peers == [SendToPeer(relay_id_of(at4), b"x", PEER), SendToPeer(relay_id_of(at6), b"x", PEER6)]
    assert len(dual.laptop.server.receive_from_peer(b"x", relay_id_of(at6), PEER6, NOW)) == 1
    assert code(dual.bind(0x4000, PEER6)) is None
    dual.laptop.receive(channel_data(0x4000, b"y"), dual.five_tuple, NOW)
    assert dual.laptop.to_peers[-1] == SendToPeer(relay_id_of(at6), b"y", PEER6)


@pytest.mark.parametrize(("hosts", "missing"), [((HOST,), 2), ((HOST6,), 1)])
def test_a_dual_allocation_that_lacks_a_family_says_which_and_why_s7_2_9(hosts: tuple[str, ...], missing: int) -> None:
    answer = Client(Laptop(relay_hosts=hosts)).ask(Method.ALLOCATE, BOTH)
    assert [host for host, _ in answer.get_all(attributes.XOR_RELAYED_ADDRESS)] == list(hosts)
    assert answer.get(attributes.ADDRESS_ERROR_CODE) == (missing, 440, "Address Family not Supported")


def test_a_dual_allocation_of_which_one_port_cannot_be_bound_has_the_other_and_508_for_it(dual: Client) -> None:
    dual.laptop.opens = lambda relay_id: relay_id < 65_536
    answer = dual.ask(Method.ALLOCATE, BOTH)
    assert [host for host, _ in answer.get_all(attributes.XOR_RELAYED_ADDRESS)] == [HOST]
    assert answer.get(attributes.ADDRESS_ERROR_CODE) == (2, 508, "Insufficient Capacity")
    dual.laptop.opens = lambda relay_id: False
    assert code(Client(dual.laptop, port=2).ask(Method.ALLOCATE, BOTH)) == 508


def test_one_family_of_a_dual_allocation_is_refreshed_or_deleted_alone_s8_1(dual: Client) -> None:
    at4, at6 = dual.ask(Method.ALLOCATE, BOTH).get_all(attributes.XOR_RELAYED_ADDRESS)
    dual.bind(0x4000, PEER)
    dual.bind(0x4001, PEER6)
    laptop, six, four = dual.laptop, (attributes.REQUESTED_ADDRESS_FAMILY, 2), (attributes.REQUESTED_ADDRESS_FAMILY, 1)
    dual.ask(Method.REFRESH, (six, (attributes.LIFETIME, 1200)), NOW + 100)
    assert laptop.server.next_deadline() == NOW + 600
    assert code(dual.ask(Method.REFRESH, (four, (attributes.LIFETIME, 0)), NOW + 200)) is None
    assert laptop.open_ports == {relay_id_of(at6)}
    assert laptop.server.receive_from_peer(b"x", relay_id_of(at4), PEER, NOW + 200) == []
    assert len(laptop.server.receive_from_peer(b"x", relay_id_of(at6), PEER6, NOW + 200)) == 1
    dual.silence(channel_data(0x4000, b"x"), NOW + 200)
    assert code(dual.ask(Method.REFRESH, (four,), NOW + 200)) == 443
    assert code(dual.permit(PEER, now=NOW + 200)) == 443
    laptop.perform(laptop.server.tick(NOW + 1300), NOW + 1300)
    assert laptop.open_ports == set()
    assert code(dual.refresh(600, NOW + 1300)) == 437
    assert kept(laptop.server) == 0


# Refresh, s8.2


def test_refresh_extends_and_zero_deletes(laptop: Laptop, ann: Client) -> None:
    ann.allocate()
    assert ann.refresh(1200, NOW + 500).get(attributes.LIFETIME) == 1200
    assert laptop.server.next_deadline() == NOW + 1700
    assert ann.refresh(0, NOW + 600).get(attributes.LIFETIME) == 0
    assert laptop.open_ports == set()
    assert code(ann.refresh(0, NOW + 600)) == 437


def test_refresh_of_another_family_gets_443_s8_2(ann: Client) -> None:
    ann.allocate()
    assert code(ann.ask(Method.REFRESH, ((attributes.REQUESTED_ADDRESS_FAMILY, 2),))) == 443
    assert code(ann.ask(Method.REFRESH, ((attributes.REQUESTED_ADDRESS_FAMILY, 1),))) is None


def test_without_an_allocation_requests_get_437_and_data_gets_silence_s5(ann: Client) -> None:
    assert code(ann.refresh(600)) == 437
    assert code(ann.permit(PEER)) == 437
    assert code(ann.bind(0x4000, PEER)) == 437
    ann.silence(channel_data(0x4000, b"x"))
    ann.send(b"x", PEER)
    assert ann.laptop.to_peers == []


def test_another_user_on_an_allocation_gets_441_s5(laptop: Laptop, ann: Client) -> None:
    ann.allocate()
    bob = Client(laptop, "bob", "word")
    for answer in (bob.refresh(0), bob.permit(PEER), bob.bind(0x4000, PEER)):
        assert code(answer) == 441
        assert answer.is_signed_by(bob.key)
    assert code(bob.ask(Method.ALLOCATE, UDP)) == 437
    assert code(ann.refresh(600)) is None


def test_a_killed_client_leaves_nothing_after_its_lifetime(laptop: Laptop, ann: Client) -> None:
    ann.allocate()
    ann.bind(0x4000, PEER)
    assert laptop.server.next_deadline() == NOW + 600
    laptop.perform(laptop.server.tick(NOW + 599.9), NOW + 599.9)
    assert len(laptop.open_ports) == 1
    laptop.perform(laptop.server.tick(NOW + 600), NOW + 600)
    assert laptop.open_ports == set()
    assert kept(laptop.server) == 0
    assert laptop.server.next_deadline() is None
    assert [usage.ended_at_ms for usage in laptop.server.allocations()] == [int((NOW + 600) * 1000)]


def test_an_expired_allocation_is_gone_even_before_the_tick(laptop: Laptop, ann: Client) -> None:
    port = ann.allocate()[1]
    ann.bind(0x4000, PEER)
    ann.bind(0x4000, PEER, NOW + 590)
    ann.silence(channel_data(0x4000, b"x"), NOW + 600)
    assert laptop.server.receive_from_peer(b"x", port, PEER, NOW + 600) == []
    assert ann.allocate(NOW + 600)[0] == HOST
    assert len(laptop.open_ports) == 1


def test_a_client_that_refreshes_or_reallocates_all_the_time_leaves_no_more_behind(laptop: Laptop, ann: Client) -> None:
    ann.allocate()
    for second in range(300):
        ann.refresh(600 + second, NOW + second)
    assert kept(laptop.server) < 100
    for second in range(300):
        ann.refresh(0, NOW + 300 + second)
        ann.allocate(NOW + 300 + second)
    assert kept(laptop.server) < 100
    assert laptop.server.next_deadline() == NOW + 599 + 600


# Permissions, s9 to s11


def test_a_permission_is_by_address_only_and_lasts_300_seconds(laptop: Laptop, ann: Client) -> None:
    port = ann.allocate()[1]
    assert laptop.server.receive_from_peer(b"hello", port, PEER, NOW) == []
    assert code(ann.permit((PEER[0], 1))) is None
    (effect,) = laptop.server.receive_from_peer(b"hello", port, PEER, NOW + 299.9)
    assert isinstance(effect, SendToClient)
    indication = parse(effect.data)
    assert (indication.method, indication.message_class) == (Method.DATA, Class.INDICATION)
    assert indication.get(attributes.XOR_PEER_ADDRESS) == PEER
    assert indication.get(attributes.DATA) == b"hello"
    assert effect.five_tuple == ann.five_tuple
    assert laptop.server.receive_from_peer(b"hello", port, OTHER, NOW) == []
    assert laptop.server.receive_from_peer(b"hello", port, PEER, NOW + 300) == []


def test_a_send_indication_needs_a_permission_and_does_not_refresh_it_s11_2(laptop: Laptop, ann: Client) -> None:
    port = ann.allocate()[1]
    ann.send(b"early", PEER)
    ann.permit(PEER)
    for now in (NOW, NOW + 299):
        ann.send(b"data", PEER, now)
    ann.send(b"late", PEER, NOW + 300)
    assert laptop.to_peers == [SendToPeer(port, b"data", PEER)] * 2


def test_a_send_indication_may_be_empty_and_is_silent_when_incomplete_or_not_understood(laptop: Laptop, ann: Client) -> None:
    port = ann.allocate()[1]
    ann.permit(PEER)
    ann.send(b"", PEER)
    assert laptop.to_peers == [SendToPeer(port, b"", PEER)]
    strange: Attribute[bytes] = Attribute(0x7001, "X", lambda value, _: value, lambda data, _: data)
    ann.send(b"x", PEER, fields=((strange, b""),))
    for fields in ((), ((attributes.DATA, b"x"),), ((attributes.XOR_PEER_ADDRESS, PEER),)):
        ann.silence(Message(Method.SEND, Class.INDICATION, ann.next_id(), fields).serialize())
    assert len(laptop.to_peers) == 1


def test_create_permission_is_all_or_nothing(laptop: Laptop, ann: Client) -> None:
    port = ann.allocate()[1]
    assert code(ann.permit()) == 400
    assert code(ann.permit(PEER, ("10.0.0.1", 1))) == 403
    assert code(ann.permit(PEER, ("2606:4700::1111", 1))) == 443
    assert laptop.server.receive_from_peer(b"x", port, PEER, NOW) == []
    assert code(ann.permit(PEER, OTHER)) is None
    assert len(laptop.server.receive_from_peer(b"x", port, OTHER, NOW)) == 1


def test_an_unreadable_peer_address_gets_400(ann: Client) -> None:
    ann.allocate()
    raw: Attribute[bytes] = Attribute(attributes.XOR_PEER_ADDRESS.type, "XOR-PEER-ADDRESS", lambda value, _: value, lambda data, _: data)
    assert code(ann.ask(Method.CREATE_PERMISSION, ((raw, b"\x00\x03\x00\x00" + bytes(4)),))) == 400


def test_permissions_and_channels_are_bounded_and_expired_ones_make_room() -> None:
    laptop = Laptop(max_permissions=4, max_channels=2)
    ann = Client(laptop)
    ann.allocate()
    assert code(ann.permit(*((f"8.8.8.{number}", 1) for number in range(4)))) is None
    assert code(ann.permit(("8.8.4.4", 1))) == 508
    assert code(ann.bind(0x4000, ("8.8.4.4", 1))) == 508
    assert code(ann.bind(0x4000, ("8.8.8.0", 1))) is None
    assert code(ann.bind(0x4001, ("8.8.8.0", 2))) is None
    assert code(ann.bind(0x4002, ("8.8.8.0", 3))) == 508
    assert code(ann.permit(("8.8.4.4", 1), now=NOW + 300)) is None


# Forbidden peers, s21.2.2, s21.4


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "10.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255"])
def test_a_forbidden_peer_gets_403_for_permission_and_channel_and_silence_for_send(laptop: Laptop, ann: Client, host: str) -> None:
    ann.allocate()
    assert code(ann.permit((host, 80))) == 403
    assert code(ann.bind(0x4000, (host, 80))) == 403
    ann.send(b"x", (host, 80))
    assert laptop.to_peers == []
    assert code(ann.bind(0x4000, PEER)) is None


@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "::ffff:8.8.8.8", "::1", "::", "2001::1", "2002:7f00:1::", "fd00:ec2::254"])
def test_on_an_ipv6_relay_loopback_by_any_name_teredo_and_6to4_get_403(host: str) -> None:
    laptop = Laptop(relay_hosts=(HOST6,))
    ann = Client(laptop)
    ann.allocate(fields=((attributes.REQUESTED_ADDRESS_FAMILY, 2),))
    assert code(ann.permit((host, 80))) == 403
    assert code(ann.bind(0x4000, (host, 80))) == 403
    ann.send(b"x", (host, 80))
    assert laptop.to_peers == []
    assert code(ann.bind(0x4000, ("2606:4700::1111", 80))) is None


def test_on_an_ipv4_relay_a_mapped_loopback_gets_443_and_reaches_nothing(laptop: Laptop, ann: Client) -> None:
    ann.allocate()
    assert code(ann.permit(("::ffff:127.0.0.1", 80))) == 443
    assert code(ann.bind(0x4000, ("::ffff:127.0.0.1", 80))) == 443
    ann.send(b"x", ("::ffff:127.0.0.1", 80))
    assert laptop.to_peers == []


@pytest.mark.parametrize("host", ["2001:0:1234::1", "2002:c633:6407::1"])
def test_a_client_at_a_teredo_or_6to4_address_gets_403_and_its_neighbour_passes_s21_4(laptop: Laptop, ann: Client, host: str) -> None:
    here = ann.five_tuple[1:]
    ann.five_tuple = ((host, 40_000), *here)
    assert code(ann.ask(Method.ALLOCATE, UDP)) == 403
    ann.five_tuple, ann.nonce = (("2003::1", 40_000), *here), None
    ann.allocate()


# DF bit and ICMP, s14, s11.5


def test_a_send_indication_with_dont_fragment_asks_for_the_df_bit_s14(laptop: Laptop, ann: Client) -> None:
    port = ann.allocate()[1]
    ann.permit(PEER)
    ann.send(b"x", PEER, fields=((attributes.DONT_FRAGMENT, b""),))
    ann.send(b"y", PEER)
    assert laptop.to_peers == [SendToPeer(port, b"x", PEER, dont_fragment=True), SendToPeer(port, b"y", PEER)]


@pytest.mark.parametrize(
    ("client", "transport", "peer", "is_set"),
    [
        ("198.51.100.7", "udp", PEER, True),
        ("198.51.100.7", "udp", PEER6, False),
        ("2606:4700::7", "udp", PEER, False),
        ("2606:4700::7", "udp", PEER6, False),
        ("198.51.100.7", "tcp", PEER, True),
        ("2606:4700::7", "tls", PEER6, True),
    ],
)
def test_from_udp_to_udp_dont_fragment_counts_between_ipv4_only_and_from_a_stream_always_s13_to_s15(
    dual: Client, client: str, transport: str, peer: Address, is_set: bool
) -> None:
    dual.five_tuple = ((client, 40_000), ("10.0.0.1", 3478), transport)
    dual.ask(Method.ALLOCATE, BOTH)
    dual.permit(peer)
    dual.send(b"x", peer, fields=((attributes.DONT_FRAGMENT, b""),))
    assert [effect.dont_fragment for effect in dual.laptop.to_peers if isinstance(effect, SendToPeer)] == [is_set]


def test_dont_fragment_counts_towards_another_socket_of_the_relays_own_host() -> None:
    laptop = Laptop(peers=PeerPolicy([f"{HOST}/32"], relay_hosts=[HOST], ports=range(49_152, 65_536)))
    ann, peer = Client(laptop), (HOST, 9)
    port = ann.allocate()[1]
    ann.permit(peer)
    ann.send(b"x", peer, fields=((attributes.DONT_FRAGMENT, b""),))
    assert laptop.to_peers == [SendToPeer(port, b"x", peer, dont_fragment=True)]


@pytest.mark.parametrize(("type_", "is_told"), [(3, True), (11, True), (0, False), (5, False), (8, False)])
def test_icmp_of_a_permitted_peer_is_told_in_a_data_indication_s11_5(laptop: Laptop, ann: Client, type_: int, is_told: bool) -> None:
    port, icmp = ann.allocate()[1], Icmp(type_, 4, 1280)
    assert laptop.server.receive_icmp(icmp, port, PEER, NOW) == []
    ann.permit(PEER)
    effects = laptop.server.receive_icmp(icmp, port, PEER, NOW)
    assert len(effects) == is_told
    for effect in effects:
        assert isinstance(effect, SendToClient)
        indication = parse(effect.data)
        assert (indication.method, indication.message_class) == (Method.DATA, Class.INDICATION)
        assert indication.get(attributes.XOR_PEER_ADDRESS) == PEER
        assert indication.get(attributes.ICMP) == icmp
        assert indication.get(attributes.DATA) is None
    assert laptop.server.receive_icmp(icmp, port, OTHER, NOW) == []
    assert laptop.server.receive_icmp(icmp, port, PEER, NOW + 300) == []


# Channels, s12


def test_a_channel_carries_data_both_ways_and_lasts_600_seconds(laptop: Laptop, ann: Client) -> None:
    port = ann.allocate(fields=((attributes.LIFETIME, 3600),))[1]
    assert code(ann.bind(0x4000, PEER)) is None
    assert ann.laptop.receive(channel_data(0x4000, b"up"), ann.five_tuple, NOW + 599) == []
    assert laptop.to_peers == [SendToPeer(port, b"up", PEER)]
    ann.silence(channel_data(0x4000, b"late"), NOW + 600)
    (effect,) = laptop.server.receive_from_peer(b"down", port, PEER, NOW + 299)
    assert effect == SendToClient(channel_data(0x4000, b"down"), ann.five_tuple)


def test_channel_data_refreshes_neither_channel_nor_permission_and_a_new_bind_does_both_s12_6(laptop: Laptop, ann: Client) -> None:
    port = ann.allocate(fields=((attributes.LIFETIME, 3600),))[1]
    ann.bind(0x4000, PEER)
    ann.laptop.receive(channel_data(0x4000, b"x"), ann.five_tuple, NOW + 299)
    assert laptop.server.receive_from_peer(b"x", port, PEER, NOW + 300) == []
    ann.bind(0x4000, PEER, NOW + 300)
    assert len(laptop.server.receive_from_peer(b"x", port, PEER, NOW + 599)) == 1
    ann.laptop.receive(channel_data(0x4000, b"x"), ann.five_tuple, NOW + 899)
    ann.silence(channel_data(0x4000, b"x"), NOW + 900)


@pytest.mark.parametrize("number", [0x0000, 0x3FFF, 0x5000, 0x7FFF, 0xFFFF])
def test_a_channel_number_outside_0x4000_to_0x4fff_gets_400(ann: Client, number: int) -> None:
    ann.allocate()
    assert code(ann.bind(number, PEER)) == 400
    assert code(ann.bind(0x4FFF, PEER)) is None


def test_one_channel_per_peer_and_one_peer_per_channel_s12_2(ann: Client) -> None:
    ann.allocate(fields=((attributes.LIFETIME, 3600),))
    assert code(ann.bind(0x4000, PEER)) is None
    assert code(ann.bind(0x4000, OTHER)) == 400
    assert code(ann.bind(0x4001, PEER)) == 400
    assert code(ann.bind(0x4000, PEER)) is None
    assert code(ann.bind(0x4001, (PEER[0], 5001))) is None
    assert code(ann.bind(0x4000, OTHER, NOW + 600)) is None


def test_a_channel_bind_without_number_or_peer_gets_400(ann: Client) -> None:
    ann.allocate()
    assert code(ann.ask(Method.CHANNEL_BIND, ((attributes.CHANNEL_NUMBER, 0x4000),))) == 400
    assert code(ann.ask(Method.CHANNEL_BIND, ((attributes.XOR_PEER_ADDRESS, PEER),))) == 400
    assert code(ann.bind(0x4000, ("2606:4700::1111", 80))) == 443


def test_channel_data_unbound_reserved_or_short_is_silent_and_padding_and_length_zero_pass_s12_6(laptop: Laptop, ann: Client) -> None:
    port = ann.allocate()[1]
    ann.bind(0x4000, PEER)
    for data in (channel_data(0x4001, b"x"), channel_data(0x5000, b"x"), channel_data(0x7FFF, b"x"), b"\x40", b"\x40\x00\x00", b"\x40\x00\x00\x05abcd"):
        ann.silence(data)
    ann.laptop.receive(channel_data(0x4000, b"abc") + b"\x00", ann.five_tuple, NOW)
    ann.laptop.receive(channel_data(0x4000, b""), ann.five_tuple, NOW)
    assert laptop.to_peers == [SendToPeer(port, b"abc", PEER), SendToPeer(port, b"", PEER)]


@pytest.mark.parametrize("relay_host", [HOST, HOST6])
def test_a_datagram_too_large_to_be_wrapped_is_dropped_and_the_largest_passes(relay_host: str) -> None:
    laptop = Laptop(relay_hosts=(relay_host,))
    ann, peer = Client(laptop), PEER if relay_host == HOST else ("2606:4700::1111", 5000)
    port = relay_id_of(ann.allocate(fields=((attributes.REQUESTED_ADDRESS_FAMILY, 1 if relay_host == HOST else 2),)))
    ann.permit(peer)
    for length in (65_401, 65_507, 65_527, 65_535):
        assert laptop.server.receive_from_peer(bytes(length), port, peer, NOW) == []
    (effect,) = laptop.server.receive_from_peer(bytes(65_400), port, peer, NOW)
    assert isinstance(effect, SendToClient)
    assert len(effect.data) <= 65_507


# Relay to relay on one server


def test_two_relayed_addresses_of_one_server_reach_each_other_without_leaving_it(laptop: Laptop) -> None:
    ann, bob = Client(laptop, port=1), Client(laptop, "bob", "word", 2)
    at_ann, at_bob = ann.allocate(), bob.allocate()
    assert code(ann.bind(0x4000, at_bob)) is None
    assert laptop.receive(channel_data(0x4000, b"no permission yet"), ann.five_tuple, NOW) == []
    assert code(bob.permit(at_ann)) is None
    (sent,) = laptop.receive(channel_data(0x4000, b"hello"), ann.five_tuple, NOW)
    assert sent.five_tuple == bob.five_tuple
    assert parse(sent.data).get(attributes.XOR_PEER_ADDRESS) == at_ann
    bob.bind(0x4777, at_ann)
    (sent,) = laptop.receive(channel_data(0x4000, b"hello"), ann.five_tuple, NOW)
    assert sent == SendToClient(channel_data(0x4777, b"hello"), bob.five_tuple)
    (sent,) = laptop.receive(channel_data(0x4777, b"back"), bob.five_tuple, NOW)
    assert sent == SendToClient(channel_data(0x4000, b"back"), ann.five_tuple)
    assert laptop.to_peers == []


def test_at_our_own_relay_address_nothing_but_living_allocations_is_reached(laptop: Laptop, ann: Client) -> None:
    port = ann.allocate()[1]
    free = (HOST, port + 1 if port < 65_535 else port - 1)
    assert code(ann.bind(0x4000, (HOST, 22))) == 403
    assert code(ann.bind(0x4000, free)) is None
    ann.silence(channel_data(0x4000, b"x"))
    ann.send(b"x", free)
    assert laptop.to_peers == []


# Workers of one node


def test_each_worker_has_ports_of_its_own_in_pairs_and_together_they_have_all() -> None:
    workers = [TurnSettings(realm=REALM, relay_hosts=(HOST,), worker=worker, workers=3) for worker in range(3)]
    for port in range(49_152, 65_536):
        assert [settings.is_mine(port) for settings in workers].count(True) == 1
        assert {settings.is_mine(port & ~1) for settings in workers if settings.is_mine(port)} == {True}
    assert not workers[0].is_mine(3478)
    assert not workers[0].is_a_siblings(3478)


@pytest.mark.parametrize("worker", range(3))
def test_a_worker_gives_ports_of_its_share(worker: int) -> None:
    laptop = Laptop(worker=worker, workers=3)
    for number in range(50):
        assert laptop.server.settings.is_mine(Client(laptop, port=number + 1).allocate()[1])
    assert code(Client(laptop, port=99).ask(Method.ALLOCATE, (*UDP, (attributes.EVEN_PORT, 0x80)))) == 508
    assert Client(laptop, port=98).allocate(fields=((attributes.EVEN_PORT, 0),))[1] % 2 == 0


def test_a_datagram_for_a_siblings_relay_is_handed_over_and_is_judged_there() -> None:
    here, there = Laptop(worker=0, workers=2), Laptop(worker=1, workers=2)
    ann, bob = Client(here), Client(there, "bob", "word")
    at_ann, at_bob = ann.allocate(), bob.allocate()
    assert code(ann.bind(0x4000, at_bob)) is None
    here.receive(channel_data(0x4000, b"hello"), ann.five_tuple, NOW)
    assert here.to_peers == [SendToSibling(at_bob[1], b"hello", at_ann)]
    assert there.server.receive_from_peer(b"hello", at_bob[1], at_ann, NOW) == []
    bob.permit(at_ann)
    assert len(there.server.receive_from_peer(b"hello", at_bob[1], at_ann, NOW)) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_channel_to_a_siblings_port_never_leaves_by_the_socket_even_where_the_host_is_allowed(workers: int) -> None:
    """The data path hands it up: behind an Elastic IP what leaves for the public address comes back to nobody."""
    peers = PeerPolicy(allowed=(f"{HOST}/32",), relay_hosts=(HOST,), ports=range(49_152, 65_536))
    laptop = Laptop(peers=peers, worker=0, workers=workers)
    ann = Client(laptop)
    ann.allocate()
    for number, port in ((0x4000, 50_001), (0x4001, 50_003)):  # worker 0's and worker 1's
        assert code(ann.bind(number, (HOST, port))) is None
    assert [effect.may_leave for effect in laptop.told if isinstance(effect, Bind)] == [True, workers == 1]


# Limits per second, s5, s21.3.1


def test_an_account_has_so_much_bandwidth_over_all_its_allocations_and_both_ways() -> None:
    laptop = Laptop(account_bytes_per_s=1000, account_burst_s=1.0)
    ann, second, bob = Client(laptop, port=1), Client(laptop, port=2), Client(laptop, "bob", "word", 3)
    ports = [client.allocate()[1] for client in (ann, second, bob)]
    for client in (ann, second, bob):
        client.bind(0x4000, PEER)
    laptop.receive(channel_data(0x4000, bytes(600)), ann.five_tuple, NOW)
    assert len(laptop.server.receive_from_peer(bytes(400), ports[1], PEER, NOW)) == 1
    assert laptop.server.receive_from_peer(b"x", ports[0], PEER, NOW) == []
    second.silence(channel_data(0x4000, b"x"))
    second.send(b"x", PEER)
    assert len(laptop.to_peers) == 1
    assert laptop.server.counts.over_rate == 3
    laptop.receive(channel_data(0x4000, b"x"), bob.five_tuple, NOW)
    laptop.receive(channel_data(0x4000, bytes(500)), second.five_tuple, NOW + 0.5)
    assert len(laptop.to_peers) == 3
    assert sum(usage.from_client_bytes + usage.to_client_bytes for usage in laptop.server.allocations()) == 1501


def test_a_source_gets_so_many_answers_before_it_authenticates_and_is_served_afterwards() -> None:
    laptop = Laptop(unauthenticated_per_s=2, unauthenticated_burst=3)
    ann, elsewhere = Client(laptop), Client(laptop)
    elsewhere.five_tuple = (("198.51.100.8", 1), *elsewhere.five_tuple[1:])
    ann.allocate()  # takes one answer: the 401
    for data in (ann.plain(Method.ALLOCATE), ann.plain(Method.BINDING)):
        ann.exchange(data)
    for data in (ann.plain(Method.ALLOCATE), ann.plain(Method.BINDING), ann.signed(Method.REFRESH, key=b"wrong")):
        ann.silence(data)
    assert laptop.server.counts.silenced == 3
    assert code(ann.refresh(600)) is None
    elsewhere.allocate()
    ann.exchange(ann.plain(Method.BINDING), NOW + 0.5)


def test_a_flood_of_sources_takes_no_memory() -> None:
    limit = SourceLimit(b"key", 1, 1, slots=16)
    assert sum(limit.takes(f"52.0.{number >> 8}.{number & 255}", NOW) for number in range(5000)) == 16
    assert len(limit._buckets) == 16
    assert limit.takes("2001:db8:0:1::1", NOW + 60)
    assert not limit.takes("2001:db8:0:1::2", NOW + 60)  # the same /64
    assert all(SourceLimit(b"key", 0, 0).takes("52.0.0.1", NOW) for _ in range(3))


# What a data path outside Python is told


def test_a_data_path_outside_python_is_told_all_it_has_to_know(laptop: Laptop, ann: Client) -> None:
    relayed = ann.allocate()
    ann.permit(PEER)
    ann.bind(0x4000, OTHER)
    ann.refresh(1200, NOW + 10)
    port = relayed[1]
    install, *rest = laptop.told
    assert isinstance(install, Install)
    assert (install.relayed.address, install.five_tuple, install.account_id, install.expires_at) == (relayed, ann.five_tuple, "ann", NOW + 600)
    assert rest == [
        Permit(port, PEER[0], NOW + 300),
        Permit(port, OTHER[0], NOW + 300),
        Bind(port, 0x4000, OTHER, False, False, NOW + 600),
        Extend(port, NOW + 1210),
    ]
    install.relayed.counters = Traffic(1, 2, 3, 4)
    ann.send(b"by Python", PEER)
    (usage,) = laptop.server.allocations()
    assert (usage.from_client_bytes, usage.to_client_bytes, usage.from_client_packets, usage.to_client_packets) == (10, 2, 4, 4)
    ann.refresh(0)
    (usage,) = laptop.server.allocations()
    assert (usage.from_client_bytes, usage.to_client_packets) == (10, 4)


def test_the_allocation_of_a_lost_connection_ends(laptop: Laptop, ann: Client) -> None:
    ann.allocate()
    assert laptop.server.has(ann.five_tuple)
    laptop.perform(laptop.server.connection_lost(ann.five_tuple, NOW + 1), NOW + 1)
    assert laptop.open_ports == set()
    assert laptop.server.connection_lost(ann.five_tuple, NOW + 1) == []


# Counters


def test_each_allocation_counts_relayed_payload_both_ways_and_keeps_it_when_it_ended() -> None:
    laptop = Laptop(ended_kept=2)
    ann = Client(laptop)
    port = ann.allocate()[1]
    ann.bind(0x4000, PEER)
    laptop.receive(channel_data(0x4000, b"12345"), ann.five_tuple, NOW)
    ann.send(b"123", PEER)
    laptop.server.receive_from_peer(b"1234567", port, PEER, NOW)
    laptop.server.receive_from_peer(b"dropped", port, OTHER, NOW)
    (usage,) = laptop.server.allocations()
    assert (usage.from_client_packets, usage.from_client_bytes, usage.to_client_packets, usage.to_client_bytes) == (2, 8, 1, 7)
    assert (usage.username, usage.relayed_address, usage.client_address) == ("ann", f"{HOST}:{port}", "198.51.100.7:40000")
    assert (usage.started_at_ms, usage.ended_at_ms) == (int(NOW * 1000), None)
    ann.refresh(0, NOW + 5)
    (usage,) = laptop.server.allocations()
    assert (usage.from_client_bytes, usage.ended_at_ms) == (8, int((NOW + 5) * 1000))
    for port in (1, 2, 3):
        client = Client(laptop, port=port)
        client.allocate()
        client.refresh(0)
    assert len(laptop.server.allocations()) == 2


# Noise


def test_answers_and_unknown_methods_are_ignored(ann: Client) -> None:
    for method, message_class in ((Method.BINDING, Class.SUCCESS), (Method.BINDING, Class.INDICATION), (Method.ALLOCATE, Class.ERROR), (0x0ABC, Class.REQUEST)):
        ann.silence(Message(method, message_class, ann.next_id()).serialize())


@pytest.fixture(scope="module")
def busy() -> Client:
    client = Client(Laptop())
    client.allocate()
    client.bind(0x4000, PEER)
    return client


@given(st.binary(max_size=120))
def test_garbage_from_a_client_never_raises(busy: Client, data: bytes) -> None:
    busy.laptop.receive(data, busy.five_tuple, NOW)
    busy.laptop.receive(b"\x40\x00" + data, busy.five_tuple, NOW)


@settings(max_examples=150)
@given(
    st.sampled_from([*Method]),
    st.sampled_from([*Class]),
    st.lists(st.tuples(st.sampled_from([*attributes.TABLE]), st.binary(max_size=20)), max_size=5),
    st.booleans(),
)
def test_garbage_that_is_signed_never_raises(busy: Client, method: Method, message_class: Class, rows: list[tuple[int, bytes]], is_new: bool) -> None:
    fields = tuple((Attribute(type_, "raw", lambda value, _: value, lambda data, _: data), value) for type_, value in rows)
    own: Fields = ((attributes.USERNAME, "ann"), (attributes.REALM, REALM), (attributes.NONCE, busy.nonce))
    data = Message(method, message_class, busy.next_id(), (*own, *fields)).serialize(busy.key)
    busy.laptop.receive(data, (("198.51.100.7", 9), *busy.five_tuple[1:]) if is_new else busy.five_tuple, NOW)


@given(st.binary(max_size=80), st.integers(0, 65_535))
def test_garbage_from_a_peer_never_raises(busy: Client, data: bytes, port: int) -> None:
    for relay_port in _ports(busy):
        busy.laptop.server.receive_from_peer(data, relay_port, (PEER[0], port), NOW)
    busy.laptop.server.receive_from_peer(data, port, PEER, NOW)


def _ports(client: Client) -> Iterator[int]:
    return iter(sorted(client.laptop.open_ports))
