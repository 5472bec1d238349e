"""Who is a peer, and what is relayed by indications: RFC 8656 s9 to s11, s13 to s15, s21."""

from __future__ import annotations

import os
import socket
from functools import partial

from media_fleet.stun import Address, Class, Icmp, Method, attributes
from tests.integration.conformance.rule import LIVES_LONG, NUMBER, OTHER_NUMBER, Rule, allocated, over_streams, over_udp_v4, over_udp_v6, rule, with_df_bit
from tests.integration.conformance.world import (
    DONT_FRAGMENT,
    TCP,
    TLS,
    UDP,
    V4,
    V6,
    Datagrams,
    Stage,
    channel_data,
    code,
    hear_only,
    heard_tos,
    raw,
    to,
    unknown,
)

RULES: list[Rule] = []
permission = partial(rule, RULES, "Permissions")
data = partial(rule, RULES, "Send and Data indications")


# Permissions


@permission(
    "8656 s9, s11.3, s21.2.3", "a datagram from a peer without permission is dropped", "with it, it comes as Data indication, from every port of that address"
)
async def by_address(stage: Stage) -> None:
    ann, peer, other_port = await stage.client(), stage.peer(), stage.peer()
    address = await ann.allocate()
    peer.send(b"too early", address)
    assert await ann.hears_nothing()
    assert await ann.permit((peer.address[0], 1)) is None
    for sender in (peer, other_port):
        sender.send(b"hello", address)
        assert await ann.hears() == (sender.address, b"hello")


@permission("8656 s9", "a permission for one address is none for another", "for its own it is")
async def of_another_address(stage: Stage) -> None:
    ann, peer = await stage.client(), stage.peer()
    address = await ann.allocate()
    assert await ann.permit(stage.elsewhere) is None
    peer.send(b"x", address)
    assert await ann.gets_silence(ann.indication(b"x", peer.address))
    assert peer.has_heard_nothing()
    assert await ann.permit(peer.address) is None
    peer.send(b"y", address)
    assert await ann.hears() == (peer.address, b"y")


@permission("8656 s9", "permissions of one allocation are none of another, of the same user neither", "its own are")
async def of_another_allocation(stage: Stage) -> None:
    _, peer, address = await allocated(stage)
    ann = await stage.client()
    own = await ann.allocate()
    peer.send(b"x", own)
    assert await ann.gets_silence(ann.indication(b"x", peer.address))
    assert peer.has_heard_nothing()
    assert address != own
    assert await ann.permit(peer.address) is None
    peer.send(b"y", own)
    assert await ann.hears() == (peer.address, b"y")


@permission(
    "8656 s9", "a permission lasts 300 seconds, then what its peers send is dropped", "for 299, and renewed by CreatePermission or ChannelBind, it passes"
)
async def for_300_seconds(stage: Stage) -> None:
    ann, peer, address = await allocated(stage, LIVES_LONG)
    for renew in (partial(ann.permit, peer.address), partial(ann.bind, NUMBER, peer.address)):
        stage.pass_time(299)
        peer.send(b"in time", address)
        assert await ann.hears() == (peer.address, b"in time")
        stage.pass_time(2)
        peer.send(b"late", address)
        assert await ann.hears_nothing()
        assert await renew() is None
    peer.send(b"again", address)
    assert await ann.hears() == (NUMBER, b"again")


@permission("8656 s11.2", "Send indications refresh no permission: after 300 seconds they are dropped, and so is what comes back", "CreatePermission does")
async def not_by_sending(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    stage.pass_time(200)
    ann.send_to(peer.address, b"in time")
    assert (await peer.hears())[0] == b"in time"
    stage.pass_time(101)
    peer.send(b"late", address)
    assert await ann.gets_silence(ann.indication(b"late", peer.address))
    assert peer.has_heard_nothing()
    assert await ann.permit(peer.address) is None
    ann.send_to(peer.address, b"again")
    assert (await peer.hears())[0] == b"again"


@permission("8656 s10.2", "CreatePermission without XOR-PEER-ADDRESS, or with one that cannot be read: 400", "one or several are permitted, whatever the port")
async def without_a_peer(stage: Stage) -> None:
    ann, peer = await stage.client(), stage.peer()
    address = await ann.allocate()
    assert await ann.permit() == 400
    broken = raw(attributes.XOR_PEER_ADDRESS, b"\x00\x03\x00\x00" + bytes(4))
    assert code(await ann.ask(Method.CREATE_PERMISSION, *to(peer.address), broken)) == 400
    assert await ann.permit((peer.address[0], 0), stage.elsewhere) is None
    peer.send(b"x", address)
    assert await ann.hears() == (peer.address, b"x")


@permission("8656 s10.2, s12.2", "a peer of another family: 443, to ChannelBind too, and silence for Send", "of its own it passes", relay_addresses=(V4,))
async def of_another_family(stage: Stage) -> None:
    ann, peer4, peer6 = await stage.client(), stage.peer("127.0.0.2"), stage.peer(V6)
    await ann.allocate()
    assert [await ann.permit(peer6.address), await ann.bind(NUMBER, peer6.address)] == [443, 443]
    assert await ann.gets_silence(ann.indication(b"x", peer6.address))
    assert peer6.has_heard_nothing()
    assert [await ann.permit(peer4.address), await ann.bind(NUMBER, peer4.address)] == [None, None]


FORBIDDEN = {
    V4: ("0.0.0.0", "10.0.0.1", "169.254.169.254", "169.254.170.2", "224.0.0.1", "255.255.255.255"),
    V6: ("::", "fc00::1", "fe80::1", "ff02::1", "64:ff9b::7f00:1", "::ffff:127.0.0.1"),
}


@permission("8656 s10.2, s11.2, s12.2, s21.2.2", "a forbidden peer: 403 to CreatePermission and ChannelBind, silence for Send", "an allowed one passes")
async def forbidden_peers(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage)
    for host in FORBIDDEN[V6 if ":" in peer.address[0] else V4]:
        assert [await ann.permit((host, 80)), await ann.bind(NUMBER, (host, 80))] == [403, 403], host
        assert await ann.gets_silence(ann.indication(b"x", (host, 80)))
    assert [usage["from_client_packets"] for usage in stage.relay.allocations()] == [0]
    assert await ann.bind(NUMBER, peer.address) is None


@permission("8656 s21.4", "a Teredo or 6to4 peer: 403 to CreatePermission and ChannelBind", "another IPv6 peer passes", relay_addresses=(V6,))
async def tunnelled_peers(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage)
    for host in ("2001::1", "2002:7f00:1::"):
        assert [await ann.permit((host, 80)), await ann.bind(NUMBER, (host, 80))] == [403, 403], host
    assert await ann.bind(NUMBER, peer.address) is None


@permission("8656 s10.2", "one peer that is refused refuses them all: 403, 443", "without it they are permitted", relay_addresses=(V4,))
async def all_or_nothing(stage: Stage) -> None:
    ann, peer = await stage.client(), stage.peer()
    address = await ann.allocate()
    assert [await ann.permit(peer.address, (host, 1)) for host in ("224.0.0.1", "2606:4700::1111")] == [403, 443]
    peer.send(b"x", address)
    assert await ann.hears_nothing()
    assert await ann.permit(peer.address, stage.elsewhere) is None
    peer.send(b"y", address)
    assert await ann.hears() == (peer.address, b"y")


@permission("8656 s21.2.2", "our own listeners are no peers: 403 to ChannelBind, silence for Send", "another port of their address is one", has_tls=True)
async def own_listeners(stage: Stage) -> None:
    ann = await stage.client()
    host, _ = await ann.allocate()
    assert await ann.permit((host, 1)) is None
    for transport in (UDP, TCP, TLS):
        own = (host, stage.relay.addresses[transport][0][1])
        assert await ann.bind(NUMBER, own) == 403
        assert await ann.gets_silence(ann.indication(b"x", own))
    peer = stage.peer(host)
    assert await ann.bind(NUMBER, peer.address) is None


@permission(
    "8656 s10.2, s12.2",
    "more permissions or channels than an allocation may have: 508",
    "what is there is renewed, and what is over makes room",
    max_permissions=1,
    max_channels=1,
)
async def too_many(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage, LIVES_LONG)
    assert await ann.bind(NUMBER, peer.address) is None
    other_port = peer.address[0], stage.elsewhere[1]
    assert [await ann.permit(stage.elsewhere), await ann.bind(OTHER_NUMBER, other_port), await ann.bind(NUMBER, peer.address)] == [508, 508, None]
    stage.pass_time(601)
    assert [await ann.permit(stage.elsewhere), await ann.permit(peer.address)] == [None, 508]


# Send and Data indications


@data("8656 s11.2", "a Send indication leaves from the relayed address with its data and no more, 0 bytes too")
async def send(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    for sent in (b"hello", b"", b"\x00\x01\x02"):
        ann.send_to(peer.address, sent)
        assert await peer.hears() == (sent, address)


@data("8656 s11.2", "a Send indication without permission: silence, and nothing leaves", "with it, it leaves")
async def send_without_permission(stage: Stage) -> None:
    ann, peer = await stage.client(), stage.peer()
    await ann.allocate()
    assert await ann.gets_silence(ann.indication(b"x", peer.address))
    assert peer.has_heard_nothing()
    assert await ann.permit(peer.address) is None
    ann.send_to(peer.address, b"y")
    assert (await peer.hears())[0] == b"y"


@data("8656 s11.2; 8489 s6.3.2", "a Send indication without peer or data, with a peer that cannot be read or an attribute unknown: dropped", "whole it leaves")
async def send_incomplete(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage)
    whole = (*to(peer.address), (attributes.DATA, b"x"))
    broken = raw(attributes.XOR_PEER_ADDRESS, b"\x00\x01")
    for fields in ((), whole[:1], whole[1:], (broken, *whole), (*whole, unknown(0x7001))):
        assert await ann.gets_silence(ann.plain(Method.SEND, *fields, kind=Class.INDICATION))
    assert peer.has_heard_nothing()
    ann.send(ann.plain(Method.SEND, *whole, unknown(0xF001), kind=Class.INDICATION))
    assert (await peer.hears())[0] == b"x"


@data("8656 s11.3", "what a peer sends comes as Data indication with its address and its data, 0 bytes too")
async def receive(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    for sent in (b"hello", b"", b"\x00\x01\x02"):
        peer.send(sent, address)
        assert await ann.hears() == (peer.address, sent)


@data("8656 s13, s14, s15", "datagrams of 60,000 bytes go both ways whole")
async def large(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    sent = os.urandom(60_000)
    ann.send_to(peer.address, sent)
    assert await peer.hears() == (sent, address)
    peer.send(sent, address)
    assert await ann.hears() == (peer.address, sent)


@data(
    "8656 s14, s15",
    "without DONT-FRAGMENT, and from a channel, the DF bit is 0",
    "DONT-FRAGMENT in a Send indication sets it",
    with_df_bit,
    relay_addresses=(V4,),
)
async def dont_fragment(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage)
    assert await ann.bind(NUMBER, peer.address) is None
    for has_df, heard in ((True, [b"with"]), (False, [b"without", b"channel"])):
        hear_only(peer.socket, dont_fragment=has_df)
        ann.send_to(peer.address, b"without")
        ann.send_to(peer.address, b"with", DONT_FRAGMENT)
        assert await ann.hears_nothing()
        ann.send(channel_data(NUMBER, b"channel"))
        assert await ann.hears_nothing()
        assert [(await peer.hears())[0] for _ in heard] == heard
        assert peer.has_heard_nothing()


@data("8656 s14", "what goes to the client over UDP has the DF bit 0, as indication and on a channel", where=over_udp_v4)
async def no_df_to_the_client(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    assert isinstance(ann.link, Datagrams)
    hear_only(ann.link.socket, dont_fragment=False)
    peer.send(b"indication", address)
    assert await ann.hears() == (peer.address, b"indication")
    assert await ann.bind(NUMBER, peer.address) is None
    peer.send(b"channel", address)
    assert await ann.hears() == (NUMBER, b"channel")


@data("8656 s14", "datagrams leave as best effort and Not-ECT, whatever DSCP and ECN they came with, both ways", where=over_udp_v4)
async def no_marks(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    assert isinstance(ann.link, Datagrams)
    assert await ann.bind(NUMBER, peer.address) is None
    for sender in (ann.link.socket, peer.socket):
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8 | 1)  # expedited forwarding, ECT(1)
    ann.send_to(peer.address, b"x")
    assert await heard_tos(peer.socket) == 0
    ann.send(channel_data(NUMBER, b"x"))
    assert await heard_tos(peer.socket) == 0
    peer.send(b"x", address)
    assert await heard_tos(ann.link.socket) == 0


@data("8656 s13", "between UDP over IPv6 and either family DONT-FRAGMENT is ignored: the DF bit is 0", where=over_udp_v6, relay_addresses=(V4,))
async def dont_fragment_ignored(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage)
    hear_only(peer.socket, dont_fragment=False)
    ann.send_to(peer.address, b"x", DONT_FRAGMENT)
    assert (await peer.hears())[0] == b"x"


@data(
    "8656 s15",
    "from TCP, a datagram with DONT-FRAGMENT that is larger than the link to an IPv6 peer carries is dropped",
    "without DONT-FRAGMENT it goes in fragments",
    over_streams,
    relay_addresses=(V6,),
)
async def dont_fragment_over_ipv6(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    large = bytes(65_492)  # with 48 bytes of headers more than loopback's 65,536
    assert await ann.gets_silence(ann.indication(large, peer.address, DONT_FRAGMENT))
    assert peer.has_heard_nothing()
    ann.send_to(peer.address, large)
    assert await peer.hears() == (large, address)


@data("8656 s11.5, s18.13", "ICMP from a peer's address comes as Data indication with ICMP, its address and no DATA; the relay goes on for others")
async def icmp(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    gone = closed(stage)
    for _ in range(2):
        for number in range(3):
            peer.send(bytes([number]), address)
        ann.send_to(gone, b"is anybody there?")
        ann.send_to(peer.address, b"the error of the one before is not mine")
        assert {await ann.hears() for _ in range(4)} == {(gone, unreachable(gone)), *((peer.address, bytes([number])) for number in range(3))}
        assert (await peer.hears())[0] == b"the error of the one before is not mine"


@data("8656 s12.5", "ICMP comes as Data indication where a channel is bound too; the relay goes on for others")
async def icmp_of_a_channel(stage: Stage) -> None:
    ann, peer, address = await allocated(stage)
    gone = closed(stage)
    assert [await ann.bind(NUMBER, gone), await ann.bind(OTHER_NUMBER, peer.address)] == [None, None]
    for _ in range(2):
        for number in range(3):
            peer.send(bytes([number]), address)
        ann.send(channel_data(NUMBER, b"is anybody there?"))
        ann.send(channel_data(OTHER_NUMBER, b"the error of the one before is not mine"))
        assert {await ann.hears() for _ in range(4)} == {(gone, unreachable(gone)), *((OTHER_NUMBER, bytes([number])) for number in range(3))}
        assert (await peer.hears())[0] == b"the error of the one before is not mine"


@data("8656 s11.5", "ICMP for a peer without permission is dropped", "with a permission it is told")
async def icmp_without_permission(stage: Stage) -> None:
    ann = await stage.client()
    await ann.allocate()
    gone = closed(stage)
    assert await ann.bind(NUMBER, gone) is None
    stage.pass_time(301)
    ann.send(channel_data(NUMBER, b"x"))
    for _ in range(3):  # it comes a turn of the loop after what it answers
        assert await ann.hears_nothing()
    assert await ann.permit(gone) is None
    ann.send(channel_data(NUMBER, b"y"))
    assert await ann.hears() == (gone, unreachable(gone))


def closed(stage: Stage) -> Address:
    """An address that answers by ICMP."""
    peer = stage.peer()
    peer.close()
    return peer.address


def unreachable(peer: Address) -> Icmp:
    """Port unreachable, RFC 792 and RFC 4443."""
    return Icmp(1, 4, 0) if ":" in peer[0] else Icmp(3, 3, 0)


@data("8656 s5", "what an account sends beyond its bandwidth is dropped", "another account's passes", account_bytes_per_s=1000)
async def bandwidth(stage: Stage) -> None:
    ann, bob, peer = await stage.client(), await stage.client("bob"), stage.peer()
    for client in (ann, bob):
        await client.allocate()
        assert await client.bind(NUMBER, peer.address) is None
    for client, size in ((ann, 1900), (ann, 1901), (bob, 1902)):
        client.send(channel_data(NUMBER, bytes(size)))
        assert await client.hears_nothing()
    assert [len((await peer.hears())[0]) for _ in range(2)] == [1900, 1902]
    assert peer.has_heard_nothing()
