"""Allocations from their request to their end: RFC 8656 s6 to s8."""

from __future__ import annotations

import itertools
from functools import partial

from heliograph.ice import turn_key
from media_fleet.stun import Address, Class, Message, Method, attributes
from tests.integration.conformance.rule import LIVES_LONG, NUMBER, OTHER_NUMBER, PORT, Rule, allocated, rule
from tests.integration.conformance.world import (
    ASKS_BOTH,
    ASKS_V4,
    ASKS_V6,
    BOTH,
    DONT_FRAGMENT,
    TRANSPORT,
    V4,
    V6,
    Client,
    Stage,
    channel_data,
    code,
    lifetime,
    raw,
)

RULES: list[Rule] = []
allocation = partial(rule, RULES, "Allocate")
refresh = partial(rule, RULES, "Refresh and the end of an allocation")


# Allocate


@allocation("8656 s7.2", "the answer has the relayed address (ports 49152 to 65535), the source and 600 seconds; peers reach it there", min_port=49_152)
async def success(stage: Stage) -> None:
    ann, peer = await stage.client(), stage.peer()
    answer = await ann.ask(Method.ALLOCATE, *ann.transport)
    address = answer.get(attributes.XOR_RELAYED_ADDRESS)
    assert address is not None
    assert address[0] == stage.world.relay_hosts[0]
    assert 49_152 <= address[1] <= 65_535
    assert (answer.get(attributes.XOR_MAPPED_ADDRESS), answer.get(attributes.LIFETIME)) == (ann.address, 600)
    assert await ann.permit(peer.address) is None
    peer.send(b"hello", address)
    assert await ann.hears() == (peer.address, b"hello")


@allocation("8656 s7.2; 6056", "ports are drawn at random")
async def random_ports(stage: Stage) -> None:
    ports = [(await (await stage.client()).allocate())[1] for _ in range(8)]
    assert len(set(ports)) == 8
    assert len({after - before for before, after in itertools.pairwise(ports)}) > 3


@allocation(
    "8656 s7.2 (2)", "a second Allocate on the five-tuple: 437, whatever it asks for", "sent again, the first gets the same bytes; another five-tuple passes"
)
async def retransmission(stage: Stage) -> None:
    ann = await stage.client()
    await ann.allocate(LIVES_LONG)
    request, answer = ann.asked, ann.answered
    for _ in range(2):
        await ann.exchange(request)
        assert ann.answered == answer
    for fields in (ann.transport, ()):
        assert code(await ann.ask(Method.ALLOCATE, *fields)) == 437
    assert len(stage.relay.allocations()) == 1
    await (await stage.client()).allocate()


@allocation("8656 s7.2 (2), note", "the transaction id of an Allocate under another user name is no retransmission: 437", "under its own it is")
async def foreign_retransmission(stage: Stage) -> None:
    ann = await stage.client()
    await ann.allocate()
    request, answer = ann.asked, ann.answered
    own = ((attributes.USERNAME, "bob"), (attributes.REALM, "heliograph"), (attributes.NONCE, ann.nonce))
    forged = Message(Method.ALLOCATE, Class.REQUEST, request[8:20], (*ann.transport, *own)).serialize(turn_key("bob", "heliograph", "word"))
    assert code(await ann.exchange(forged)) == 437
    await ann.exchange(request)
    assert ann.answered == answer


@allocation("8656 s7.2 (3)", "no REQUESTED-TRANSPORT, or one that cannot be read: 400; another protocol than UDP: 442", "UDP passes")
async def requested_transport(stage: Stage) -> None:
    ann = await stage.client()
    wishes = [(), (raw(attributes.REQUESTED_TRANSPORT, b"\x11"),), ((attributes.REQUESTED_TRANSPORT, 6),)]
    assert [code(await ann.ask(Method.ALLOCATE, *wish, *ann.family)) for wish in wishes] == [400, 400, 442]
    await ann.allocate()


@allocation("8656 s7.2 (4)", "DONT-FRAGMENT is understood, because the DF bit can be set")
async def dont_fragment_allowed(stage: Stage) -> None:
    await (await stage.client()).allocate(DONT_FRAGMENT)


@allocation("8656 s7.2 (5)", "RESERVATION-TOKEN beside EVEN-PORT or a family: 400; one that nobody holds: 508", "without it, it passes", relay_addresses=BOTH)
async def reservation_token(stage: Stage) -> None:
    ann = await stage.client()
    token = (attributes.RESERVATION_TOKEN, b"12345678")
    for beside in ((attributes.EVEN_PORT, 0), ASKS_V4, ASKS_BOTH):
        assert code(await ann.ask(Method.ALLOCATE, TRANSPORT, token, beside)) == 400
    assert code(await ann.ask(Method.ALLOCATE, TRANSPORT, token)) == 508
    await ann.allocate()


@allocation("8656 s7.2 (6)", "REQUESTED- and ADDITIONAL-ADDRESS-FAMILY together: 400", "each alone passes", relay_addresses=BOTH)
async def two_family_attributes(stage: Stage) -> None:
    ann, other = await stage.client(), await stage.client()
    assert code(await ann.ask(Method.ALLOCATE, TRANSPORT, ASKS_V4, ASKS_BOTH)) == 400
    await ann.allocate(ASKS_V4)
    await other.allocate(ASKS_BOTH)


@allocation("8656 s7.2 (7)", "a family that is not there, or none of the two: 440; no IPv4 and none asked for: 440", "the family that is there passes")
async def family(stage: Stage) -> None:
    ann = await stage.client()
    hosts = stage.world.relay_hosts
    absent = [asked for asked, host in ((ASKS_V4, V4), (ASKS_V6, V6)) if host not in hosts]
    for wish in (*absent, (attributes.REQUESTED_ADDRESS_FAMILY, 9)):
        assert code(await ann.ask(Method.ALLOCATE, TRANSPORT, wish)) == 440
    if V4 not in hosts:
        assert code(await ann.ask(Method.ALLOCATE, TRANSPORT)) == 440
    for asked, host in ((ASKS_V4, V4), (ASKS_V6, V6)):
        if host in hosts:
            assert (await (await stage.client()).allocate(asked))[0] == host


@allocation("8656 s7.2 (7)", "who names no family gets an IPv4 address where there is one", relay_addresses=BOTH)
async def family_unasked(stage: Stage) -> None:
    assert (await (await stage.client()).allocate())[0] == V4


@allocation("8656 s7.2 (8)", "EVEN-PORT with R beside ADDITIONAL-ADDRESS-FAMILY: 400", "without R it passes", relay_addresses=BOTH)
async def reservation_of_two_families(stage: Stage) -> None:
    ann = await stage.client()
    assert code(await ann.ask(Method.ALLOCATE, TRANSPORT, (attributes.EVEN_PORT, 0x80), ASKS_BOTH)) == 400
    answer = await ann.ask(Method.ALLOCATE, TRANSPORT, (attributes.EVEN_PORT, 0), ASKS_BOTH)
    assert [port % 2 for _, port in answer.get_all(attributes.XOR_RELAYED_ADDRESS)] == [0, 0]


@allocation("8656 s7.2 (8)", "EVEN-PORT with R where no pair can be had: 508", "a single port can", min_port=PORT, max_port=PORT)
async def no_pair(stage: Stage) -> None:
    ann = await stage.client()
    assert code(await ann.ask(Method.ALLOCATE, *ann.transport, (attributes.EVEN_PORT, 0x80))) == 508
    assert (await ann.allocate((attributes.EVEN_PORT, 0)))[1] == PORT


@allocation("8656 s7.2 (9)", "ADDITIONAL-ADDRESS-FAMILY that is not IPv6: 400", "IPv6 passes", relay_addresses=BOTH)
async def additional_ipv4(stage: Stage) -> None:
    ann = await stage.client()
    assert code(await ann.ask(Method.ALLOCATE, TRANSPORT, (attributes.ADDITIONAL_ADDRESS_FAMILY, 1))) == 400
    await ann.allocate(ASKS_BOTH)


@allocation(
    "8656 s7.2 (9)", "with ADDITIONAL-ADDRESS-FAMILY there are two relayed addresses, and each peer is reached from that of its family", relay_addresses=BOTH
)
async def dual_allocation(stage: Stage) -> None:
    ann, peers = await stage.client(), [stage.peer("127.0.0.2"), stage.peer(V6)]
    answer = await ann.ask(Method.ALLOCATE, TRANSPORT, ASKS_BOTH)
    addresses = list(answer.get_all(attributes.XOR_RELAYED_ADDRESS))
    assert ([host for host, _ in addresses], answer.get(attributes.ADDRESS_ERROR_CODE)) == ([*BOTH], None)
    assert await ann.permit(*(peer.address for peer in peers)) is None
    for number, peer, address in zip((NUMBER, OTHER_NUMBER), peers, addresses, strict=True):
        ann.send_to(peer.address, b"out")
        assert await peer.hears() == (b"out", address)
        peer.send(b"in", address)
        assert await ann.hears() == (peer.address, b"in")
        assert await ann.bind(number, peer.address) is None
        ann.send(channel_data(number, b"out"))
        assert await peer.hears() == (b"out", address)
        peer.send(b"in", address)
        assert await ann.hears() == (number, b"in")


@allocation(
    "8656 s7.2 (9), s18.12", "where one of the two families is not there, the answer has the other, and ADDRESS-ERROR-CODE 440 for it", relay_addresses=(V4,)
)
async def dual_allocation_of_one_family(stage: Stage) -> None:
    ann = await stage.client()
    answer = await ann.ask(Method.ALLOCATE, TRANSPORT, ASKS_BOTH)
    assert [host for host, _ in answer.get_all(attributes.XOR_RELAYED_ADDRESS)] == [V4]
    assert (answer.get(attributes.ADDRESS_ERROR_CODE) or ())[:2] == (2, 440)


@allocation(
    "8656 s7.2 (9), s18.12",
    "no port of either family: 508",
    "of one family: the other, and ADDRESS-ERROR-CODE 508 for it",
    relay_addresses=BOTH,
    min_port=PORT,
    max_port=PORT,
)
async def dual_allocation_without_a_port(stage: Stage) -> None:
    first, second, third = [await stage.client() for _ in range(3)]
    await first.allocate(ASKS_V6)
    answer = await second.ask(Method.ALLOCATE, TRANSPORT, ASKS_BOTH)
    assert list(answer.get_all(attributes.XOR_RELAYED_ADDRESS)) == [(V4, PORT)]
    assert (answer.get(attributes.ADDRESS_ERROR_CODE) or ())[:2] == (2, 508)
    assert code(await third.ask(Method.ALLOCATE, TRANSPORT, ASKS_BOTH)) == 508


@allocation("8656 s7.2", "EVEN-PORT gives an even port")
async def even_port(stage: Stage) -> None:
    ports = [(await (await stage.client()).allocate((attributes.EVEN_PORT, 0)))[1] for _ in range(6)]
    assert [port % 2 for port in ports] == [0] * 6


@allocation("8656 s7.2", "EVEN-PORT with R holds the next port; its token gives that port once: then 508", "to another five-tuple it is given")
async def reservation(stage: Stage) -> None:
    ann, second, third = [await stage.client() for _ in range(3)]
    address, token = await reserved(ann)
    assert address[1] % 2 == 0
    assert not stage.is_free((address[0], address[1] + 1))
    wish = (TRANSPORT, (attributes.RESERVATION_TOKEN, token))
    answer = await second.ask(Method.ALLOCATE, *wish)
    assert answer.get(attributes.XOR_RELAYED_ADDRESS) == (address[0], address[1] + 1)
    assert code(await third.ask(Method.ALLOCATE, *wish)) == 508


@allocation("8656 s7.2", "a reservation is over after 30 seconds: 508, and its port is closed", "until then it is given")
async def reservation_over(stage: Stage) -> None:
    (first, token), (second, late) = await reserved(await stage.client()), await reserved(await stage.client())
    taker, other = await stage.client(), await stage.client()
    stage.pass_time(29)
    assert code(await taker.ask(Method.ALLOCATE, TRANSPORT, (attributes.RESERVATION_TOKEN, token))) is None
    stage.pass_time(2)
    assert code(await other.ask(Method.ALLOCATE, TRANSPORT, (attributes.RESERVATION_TOKEN, late))) == 508
    assert [stage.is_free((host, port + 1)) for host, port in (first, second)] == [False, True]


@allocation("8656 s7.2, note", "an Allocate that is sent again gets the token again")
async def reservation_retransmitted(stage: Stage) -> None:
    ann = await stage.client()
    _, token = await reserved(ann)
    assert (await ann.exchange(ann.asked)).get(attributes.RESERVATION_TOKEN) == token


@allocation("8656 s7.2 (5)", "the token of another account: 508", "its own account gets it")
async def reservation_of_another(stage: Stage) -> None:
    ann, bob = await stage.client(), await stage.client("bob")
    _, token = await reserved(await stage.client())
    assert code(await bob.ask(Method.ALLOCATE, TRANSPORT, (attributes.RESERVATION_TOKEN, token))) == 508
    assert code(await ann.ask(Method.ALLOCATE, TRANSPORT, (attributes.RESERVATION_TOKEN, token))) is None


async def reserved(client: Client) -> tuple[Address, bytes]:
    """A relayed address and the token of the one after it."""
    answer = await client.ask(Method.ALLOCATE, *client.transport, (attributes.EVEN_PORT, 0x80))
    address, token = answer.get(attributes.XOR_RELAYED_ADDRESS), answer.get(attributes.RESERVATION_TOKEN)
    assert address is not None
    assert token is not None
    return address, token


@allocation("8656 s7.2, s8.2", "LIFETIME is at least the default of 600 seconds and at most an hour, in Allocate and in Refresh")
async def lifetimes(stage: Stage) -> None:
    for asked, granted in ((None, 600), (0, 600), (10, 600), (601, 601), (3600, 3600), (2**32 - 1, 3600)):
        ann, fields = await stage.client(), () if asked is None else (lifetime(asked),)
        assert (await ann.ask(Method.ALLOCATE, *ann.transport, *fields)).get(attributes.LIFETIME) == granted
        if asked != 0:
            assert (await ann.ask(Method.REFRESH, *fields)).get(attributes.LIFETIME) == granted


@allocation(
    "8656 s7.2 (10), s5",
    "more allocations than the account may have: 486",
    "another account passes, and so does this one where one has ended",
    allocations_per_account=2,
)
async def quota(stage: Stage) -> None:
    first, second, third = [await stage.client() for _ in range(3)]
    await first.allocate()
    await second.allocate()
    assert code(await third.ask(Method.ALLOCATE, *third.transport)) == 486
    await (await stage.client("bob")).allocate()
    assert await first.refresh(lifetime(0)) is None
    await third.allocate()


@allocation("8656 s7.2, s19", "a full server: 508", "the allocation that it has goes on", max_allocations=1)
async def full(stage: Stage) -> None:
    ann, bob = await stage.client(), await stage.client("bob")
    await ann.allocate()
    assert code(await bob.ask(Method.ALLOCATE, *bob.transport)) == 508
    assert await ann.refresh() is None


@allocation("8656 s5", "answers to Allocate and Refresh, success or error, name the SOFTWARE once the client is known")
async def software(stage: Stage) -> None:
    ann = await stage.client()
    answers = [await ann.ask(Method.REFRESH), await ann.ask(Method.ALLOCATE), await ann.ask(Method.ALLOCATE, *ann.transport), await ann.ask(Method.REFRESH)]
    assert [code(answer) for answer in answers] == [437, 400, None, None]
    assert {answer.get(attributes.SOFTWARE) for answer in answers} == {"heliograph"}


# Refresh and the end of an allocation


@refresh(
    "8656 s8.2, s6", "an allocation that is not refreshed ends, with its port, permissions and channels", "refreshed in time it lives; a new one can be made"
)
async def expiry(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    idle = await stage.client()
    idle_address = await idle.allocate()
    stage.pass_time(590)
    assert await ann.refresh() is None
    assert await ann.bind(NUMBER, peer.address) is None
    assert await idle.bind(NUMBER, peer.address) is None
    stage.pass_time(11)
    assert [stage.is_free(address), stage.is_free(idle_address)] == [False, True]
    assert await idle.refresh() == 437
    assert await idle.gets_silence(channel_data(NUMBER, b"gone"))
    ann.send(channel_data(NUMBER, b"here"))
    assert (await peer.hears())[0] == b"here"
    assert await idle.allocate() != address


@refresh("8656 s6", "data refreshes no allocation: it ends all the same", "a Refresh keeps it")
async def data_refreshes_nothing(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    stage.pass_time(599)
    assert await ann.bind(NUMBER, peer.address) is None
    ann.send(channel_data(NUMBER, b"x"))
    await peer.hears()
    peer.send(b"x", address)
    await ann.hears()
    stage.pass_time(2)
    assert await ann.gets_silence(channel_data(NUMBER, b"y"))
    assert peer.has_heard_nothing()
    assert await ann.refresh() == 437
    await ann.allocate()
    stage.pass_time(599)
    assert await ann.refresh() is None
    stage.pass_time(2)
    assert await ann.refresh() is None


@refresh(
    "8656 s8.2", "LIFETIME 0 deletes: the answer says 0, the port is closed, what follows gets 437, the same Refresh sent again too", "until then it is there"
)
async def deletion(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    assert not stage.is_free(address)
    assert (await ann.ask(Method.REFRESH, lifetime(0))).get(attributes.LIFETIME) == 0
    assert stage.is_free(address)
    assert code(await ann.exchange(ann.asked)) == 437
    assert await ann.permit(peer.address) == 437
    assert await ann.gets_silence(ann.indication(b"x", peer.address))
    assert peer.has_heard_nothing()
    await ann.allocate()


@refresh("8656 s8.2", "a Refresh of a family that the allocation has not: 443", "of its own it passes", relay_addresses=(V4,))
async def refresh_of_another_family(stage: Stage) -> None:
    ann = await stage.client()
    await ann.allocate()
    assert [await ann.refresh(ASKS_V6), await ann.refresh((attributes.REQUESTED_ADDRESS_FAMILY, 9)), await ann.refresh(ASKS_V4)] == [443, 443, None]


@refresh(
    "8656 s8.1",
    "one family of a dual allocation is deleted alone: 443 to what is asked of it",
    "the other keeps its permissions and channels",
    relay_addresses=BOTH,
)
async def deletion_of_one_family(stage: Stage) -> None:
    ann, peer4, peer6 = await stage.client(), stage.peer("127.0.0.2"), stage.peer(V6)
    at4, at6 = (await ann.ask(Method.ALLOCATE, TRANSPORT, ASKS_BOTH)).get_all(attributes.XOR_RELAYED_ADDRESS)
    assert [await ann.bind(NUMBER, peer4.address), await ann.bind(OTHER_NUMBER, peer6.address)] == [None, None]
    assert await ann.refresh(ASKS_V4, lifetime(0)) is None
    assert [stage.is_free(at4), stage.is_free(at6)] == [True, False]
    assert [await ann.refresh(ASKS_V4), await ann.permit(peer4.address), await ann.bind(NUMBER, peer4.address)] == [443, 443, 443]
    assert await ann.gets_silence(channel_data(NUMBER, b"x"))
    assert peer4.has_heard_nothing()
    ann.send(channel_data(OTHER_NUMBER, b"out"))
    assert await peer6.hears() == (b"out", at6)
    peer6.send(b"in", at6)
    assert await ann.hears() == (OTHER_NUMBER, b"in")


@refresh(
    "8656 s8.1", "one family of a dual allocation is refreshed alone: the other ends in its time", "without a family both are refreshed", relay_addresses=BOTH
)
async def refresh_of_one_family(stage: Stage) -> None:
    ann, bob = await stage.client(), await stage.client("bob")
    mine = list((await ann.ask(Method.ALLOCATE, TRANSPORT, ASKS_BOTH)).get_all(attributes.XOR_RELAYED_ADDRESS))
    others = list((await bob.ask(Method.ALLOCATE, TRANSPORT, ASKS_BOTH)).get_all(attributes.XOR_RELAYED_ADDRESS))
    stage.pass_time(300)
    assert [await ann.refresh(ASKS_V6), await bob.refresh()] == [None, None]
    stage.pass_time(301)
    assert [stage.is_free(address) for address in (*mine, *others)] == [True, False, False, False]
