"""Channels, from relay to relay, and what is of TCP and TLS alone: RFC 8656 s12, RFC 8489 s6.2."""

from __future__ import annotations

import ssl
from functools import partial

from media_fleet.stun import Class, Message, Method, attributes
from tests.integration.conformance.rule import LIVES_LONG, NUMBER, OTHER_NUMBER, Rule, allocated, over_streams, over_tls, over_udp, rule
from tests.integration.conformance.world import ASKS_BOTH, BOTH, RELAYED_PORTS, TCP, TLS, TRANSPORT, UDP, Client, Stage, Stream, channel_data, code, to

RULES: list[Rule] = []
channel = partial(rule, RULES, "Channels")
relayed = partial(rule, RULES, "From relay to relay")
stream = partial(rule, RULES, "TCP and TLS")


# Channels


@channel("8656 s12, s12.6, s12.7", "a channel carries data both ways, from and to the relayed address, and ChannelBind permits its peer")
async def both_ways(stage: Stage) -> None:
    ann, peer = await stage.client(), stage.peer()
    address = await ann.allocate()
    assert await ann.bind(NUMBER, peer.address) is None
    for sent in (b"hello", b"abcd", b"abcde"):
        ann.send(channel_data(NUMBER, sent))
        assert await peer.hears() == (sent, address)
        peer.send(sent, address)
        assert await ann.hears() == (NUMBER, sent)


@channel("8656 s12, s12.2", "a channel number outside 0x4000 to 0x4FFF: 400", "the first and the last pass")
async def numbers(stage: Stage) -> None:
    ann, peer = await stage.client(), stage.peer()
    await ann.allocate()
    for number in (0x0000, 0x3FFF, 0x5000, 0x7FFF, 0xFFFF):
        assert await ann.bind(number, peer.address) == 400
    assert [await ann.bind(0x4000, peer.address), await ann.bind(0x4FFF, stage.elsewhere)] == [None, None]


@channel("8656 s12.2", "a second peer on a channel, a second channel of a peer: 400", "the same again, and another port as another peer, pass")
async def one_to_one(stage: Stage) -> None:
    ann, peer, other_port = await stage.client(), stage.peer(), stage.peer()
    await ann.allocate()
    pairs = ((NUMBER, peer), (NUMBER, other_port), (OTHER_NUMBER, peer), (NUMBER, peer), (OTHER_NUMBER, other_port))
    assert [await ann.bind(number, somebody.address) for number, somebody in pairs] == [None, 400, 400, None, None]
    for number, somebody in ((NUMBER, peer), (OTHER_NUMBER, other_port)):
        ann.send(channel_data(number, b"x"))
        assert (await somebody.hears())[0] == b"x"


@channel("8656 s12.2", "ChannelBind without CHANNEL-NUMBER or without XOR-PEER-ADDRESS: 400", "with both it passes")
async def bind_incomplete(stage: Stage) -> None:
    ann, peer = await stage.client(), stage.peer()
    await ann.allocate()
    assert code(await ann.ask(Method.CHANNEL_BIND, (attributes.CHANNEL_NUMBER, NUMBER))) == 400
    assert code(await ann.ask(Method.CHANNEL_BIND, *to(peer.address))) == 400
    assert await ann.bind(NUMBER, peer.address) is None


@channel("8656 s12.5", "once a channel is bound the server uses it, for that peer alone; before, and for another port, it sends Data indications")
async def used_once_bound(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    other_port = stage.peer()
    peer.send(b"before", address)
    assert await ann.hears() == (peer.address, b"before")
    assert await ann.bind(NUMBER, peer.address) is None
    peer.send(b"after", address)
    assert await ann.hears() == (NUMBER, b"after")
    other_port.send(b"other", address)
    assert await ann.hears() == (other_port.address, b"other")


@channel("8656 s11.1, s12.5", "Send indications pass beside a channel")
async def beside_indications(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    assert await ann.bind(NUMBER, peer.address) is None
    ann.send_to(peer.address, b"indication")
    assert await peer.hears() == (b"indication", address)


@channel("8656 s12.6, s12.7", "length 0 still is a datagram, both ways")
async def empty(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    assert await ann.bind(NUMBER, peer.address) is None
    ann.send(channel_data(NUMBER, b""))
    assert await peer.hears() == (b"", address)
    peer.send(b"", address)
    assert await ann.hears() == (NUMBER, b"")


@channel("8656 s12.5", "over UDP padding is allowed and ignored, and none is sent", where=over_udp)
async def padding(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    assert await ann.bind(NUMBER, peer.address) is None
    for spare in (b"", b"\x00", b"\x00\x00\x00"):
        ann.send(channel_data(NUMBER, b"abc") + spare)
        assert await peer.hears() == (b"abc", address)
    peer.send(b"abc", address)
    assert await ann.link.read() == channel_data(NUMBER, b"abc")


@channel("8656 s12.6", "ChannelData that is shorter than it says, or of a channel that is not bound: silence", "whole and bound it leaves", over_udp)
async def short_or_unbound(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage)
    assert await ann.bind(NUMBER, peer.address) is None
    assert await ann.gets_silence(b"\x40", b"\x40\x00", b"\x40\x00\x00", b"\x40\x00\x00\x05abcd", channel_data(0x4001, b"x"), channel_data(0x4FFF, b"x"))
    assert peer.has_heard_nothing()
    ann.send(channel_data(NUMBER, b"y"))
    assert (await peer.hears())[0] == b"y"


@channel("8656 s12, s12.6", "what begins with 0x5000 to 0xFFFF: silence", "with 0x4000 to 0x4FFF it leaves", over_udp)
async def reserved_numbers(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage)
    assert await ann.bind(NUMBER, peer.address) is None
    assert await ann.gets_silence(*(channel_data(number, b"x") for number in (0x5000, 0x6000, 0x7FFF, 0x8000, 0xBFFF, 0xFFFF)))
    assert peer.has_heard_nothing()
    ann.send(channel_data(NUMBER, b"y"))
    assert (await peer.hears())[0] == b"y"


@channel("8656 s12", "a channel lasts 600 seconds, whatever it carries; then it is silent and its number and peer are free", "renewed, and for 599, it lives")
async def for_600_seconds(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage, LIVES_LONG)
    assert await ann.bind(NUMBER, peer.address) is None
    for _ in range(2):
        stage.pass_time(599)
        ann.send(channel_data(NUMBER, b"in time"))
        assert (await peer.hears())[0] == b"in time"
        assert await ann.bind(NUMBER, peer.address) is None
    stage.pass_time(601)
    assert await ann.gets_silence(channel_data(NUMBER, b"late"))
    assert peer.has_heard_nothing()
    assert [await ann.bind(OTHER_NUMBER, peer.address), await ann.bind(NUMBER, stage.elsewhere)] == [None, None]


@channel("8656 s12.6", "ChannelData refreshes no permission: after 300 seconds the channel carries nothing back", "a new ChannelBind renews both")
async def refreshes_nothing(stage: Stage) -> None:
    ann, peer, address = await allocated(stage, LIVES_LONG)
    assert await ann.bind(NUMBER, peer.address) is None
    stage.pass_time(299)
    ann.send(channel_data(NUMBER, b"out"))
    await peer.hears()
    stage.pass_time(2)
    peer.send(b"late", address)
    assert await ann.hears_nothing()
    assert await ann.bind(NUMBER, peer.address) is None
    peer.send(b"again", address)
    assert await ann.hears() == (NUMBER, b"again")


@channel("8656 s12", "a channel of one allocation is none of another: there it is silent", "there it is bound to another peer")
async def of_one_allocation(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage)
    second, other = await stage.client(), stage.peer()
    await second.allocate()
    assert await ann.bind(NUMBER, peer.address) is None
    assert await second.gets_silence(channel_data(NUMBER, b"x"))
    assert peer.has_heard_nothing()
    assert await second.bind(NUMBER, other.address) is None
    for client, somebody in ((ann, peer), (second, other)):
        client.send(channel_data(NUMBER, b"y"))
        assert (await somebody.hears())[0] == b"y"


# From relay to relay


@relayed(
    "8656 s9, s12", "two clients of one relay reach each other at their relayed addresses, by indications and by channels", "without permission they do not"
)
async def of_one_relay(stage: Stage) -> None:
    await meet(await stage.client(), await stage.client("bob"))


@relayed("8656 s2, s7.2 (9)", "so do two dual allocations, over each of both families", relay_addresses=BOTH)
async def of_both_families(stage: Stage) -> None:
    ann, bob = await stage.client(), await stage.client("bob")
    at_ann, at_bob = [list((await client.ask(Method.ALLOCATE, TRANSPORT, ASKS_BOTH)).get_all(attributes.XOR_RELAYED_ADDRESS)) for client in (ann, bob)]
    for number, from_ann, from_bob in zip((NUMBER, OTHER_NUMBER), at_ann, at_bob, strict=True):
        assert [await ann.bind(number, from_bob), await bob.permit(from_ann)] == [None, None]
        ann.send(channel_data(number, b"hello"))
        assert await bob.hears() == (from_ann, b"hello")
        bob.send_to(from_ann, b"back")
        assert await ann.hears() == (number, b"back")


@relayed("8656 s2", "so do clients that came by different transports: UDP, TCP, TLS", has_tls=True)
async def of_different_transports(stage: Stage) -> None:
    for other in {UDP, TCP, TLS} - {stage.world.transport}:
        await meet(await stage.client(), await stage.client("bob", transport=other))


async def meet(ann: Client, bob: Client) -> None:
    """Talk through two allocations of one relay."""
    at_ann, at_bob = await ann.allocate(), await bob.allocate()
    assert await ann.permit(at_bob) is None
    ann.send_to(at_bob, b"too early")
    assert await ann.hears_nothing()
    assert await bob.hears_nothing()
    assert await bob.permit(at_ann) is None
    ann.send_to(at_bob, b"hello")
    assert await bob.hears() == (at_ann, b"hello")
    assert [await ann.bind(NUMBER, at_bob), await bob.bind(OTHER_NUMBER, at_ann)] == [None, None]
    ann.send(channel_data(NUMBER, b"hello"))
    assert await bob.hears() == (OTHER_NUMBER, b"hello")
    bob.send(channel_data(OTHER_NUMBER, b"back"))
    assert await ann.hears() == (NUMBER, b"back")
    bob.send_to(at_ann, b"back")
    assert await ann.hears() == (NUMBER, b"back")


@relayed("8656 s21.2.2", "a relayed address that nobody has is reached by nobody", "one that somebody has is", allow_peers=())
async def nobody(stage: Stage) -> None:
    ann, bob = await stage.client(), await stage.client("bob")
    address, at_bob = await ann.allocate(), await bob.allocate()
    free = next(port for port in RELAYED_PORTS if port not in (address[1], at_bob[1]) and stage.is_free((address[0], port)))
    squatter = stage.peer(address[0], free)
    assert [await ann.bind(NUMBER, (address[0], 22)), await ann.bind(NUMBER, squatter.address)] == [403, None]
    assert await ann.gets_silence(channel_data(NUMBER, b"x"), ann.indication(b"x", squatter.address))
    assert squatter.has_heard_nothing()
    assert [await ann.bind(OTHER_NUMBER, at_bob), await bob.permit(address)] == [None, None]
    ann.send(channel_data(OTHER_NUMBER, b"hello"))
    assert await bob.hears() == (address, b"hello")


# TCP and TLS


@stream(
    "8489 s6.2.2; 8656 s12.5", "messages are cut out of the stream, in pieces or several at once; ChannelData is padded to fours, both ways", where=over_streams
)
async def framing(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    assert await ann.bind(NUMBER, peer.address) is None
    binding = ann.plain(Method.BINDING)
    for data in (b"", b"a", b"ab", b"abc", b"abcd"):
        padded = channel_data(NUMBER, data) + bytes(-len(data) % 4)
        ann.link.write(padded + binding + padded)
        assert [(await peer.hears())[0] for _ in range(2)] == [data, data]
        answer = await ann.message()
        assert isinstance(answer, Message)
        assert answer.transaction_id == binding[8:20]
        peer.send(data, address)
        peer.send(b"next", address)
        assert [await ann.hears() for _ in range(2)] == [(NUMBER, data), (NUMBER, b"next")]
    for at in range(len(binding)):
        ann.link.write(binding[at : at + 1])
    answer = await ann.message()
    assert isinstance(answer, Message)
    assert answer.message_class is Class.SUCCESS


@stream("8656 s12.6", "ChannelData of a channel that is not bound: silence", "the message after it is served", over_streams)
async def unbound(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage)
    assert await ann.bind(NUMBER, peer.address) is None
    assert await ann.gets_silence(channel_data(0x4001, b"x"), channel_data(0x4FFF, b"xyz"))
    assert peer.has_heard_nothing()
    ann.send(channel_data(NUMBER, b"y"))
    assert (await peer.hears())[0] == b"y"


@stream("8656 s12, s12.6; 8489 s6.3", "what cannot be cut (0x5000 to 0xFFFF, another cookie) ends the connection", "another connection goes on", over_streams)
async def uncuttable(stage: Stage) -> None:
    other, peer, _ = await allocated(stage)
    for wrong in (channel_data(0x5000, b"x") + bytes(3), b"GET / HTTP/1.1\r\n\r\n", b"\x00\x01\x00\x00" + bytes(16)):
        ann = await stage.client()
        ann.link.write(wrong)
        assert await ann.has_ended()
    assert await other.permit(peer.address) is None


@stream("8656 s6, s2.1", "the end of a connection is the end of its allocation", "another connection of the same host keeps its own", over_streams)
async def connection_lost(stage: Stage) -> None:
    ann, other = await stage.client(), await stage.client()
    address, kept = await ann.allocate(), await other.allocate()
    ann.close()
    while all(usage["ended_at_ms"] is None for usage in stage.relay.allocations()):
        assert await other.refresh() is None
    assert [stage.is_free(address), stage.is_free(kept)] == [True, False]


@stream("7443", "TLS agrees on stun.turn where the client offers it", "who offers nothing is served too", over_tls)
async def alpn(stage: Stage) -> None:
    for offered, agreed in ((("stun.nat-discovery", "stun.turn"), "stun.turn"), ((), None)):
        context = stage.trust.new_context()
        if offered:
            context.set_alpn_protocols(offered)
        ann = await stage.client(context=context)
        assert isinstance(ann.link, Stream)
        assert ann.link.writer.get_extra_info("ssl_object").selected_alpn_protocol() == agreed
        assert await ann.hears_nothing()


@stream("8489 s6.2.3", "on the TLS port plain STUN, and TLS below 1.2, end the connection", "TLS 1.2 and 1.3 are served", over_tls)
async def only_tls(stage: Stage) -> None:
    bob = await stage.client("bob", plain=True)
    bob.send(bob.plain(Method.BINDING))
    assert await bob.has_ended()
    context = stage.trust.new_context()
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context.minimum_version = context.maximum_version = version
        assert await (await stage.client(context=context)).hears_nothing()
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # it offers it
    try:
        await stage.client(context=context)
    except (ssl.SSLError, ConnectionError):
        return
    raise AssertionError("TLS 1.1 is served")
