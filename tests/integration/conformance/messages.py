"""STUN messages and who may send them: RFC 8489, RFC 8656 s5, RFC 5769."""

from __future__ import annotations

import os
from functools import partial

from heliograph.ice import TurnSecrets, turn_key, turn_password, turn_username
from media_fleet.stun import Class, Message, Method, attributes, parse
from media_fleet.turn import shared_secrets, static_users
from tests import rfc5769
from tests.integration.conformance.rule import LIVES_LONG, NUMBER, Rule, allocated, over_udp, rule
from tests.integration.conformance.world import Stage, channel_data, code, lifetime, raw, to, unknown

RULES: list[Rule] = []
message = partial(rule, RULES, "STUN messages")
credential = partial(rule, RULES, "Authentication")
SECRETS = TurnSecrets("new", "old")
AUTHENTICATED = (Method.REFRESH, Method.CREATE_PERMISSION, Method.CHANNEL_BIND)  # and Allocate


# STUN messages


@message("8489 s6.3.1.1", "Binding is answered with the source address, without authentication, from the address that was asked")
async def binding(stage: Stage) -> None:
    ann = await stage.client()
    answer = await ann.exchange(ann.plain(Method.BINDING))
    assert (answer.message_class, answer.get(attributes.XOR_MAPPED_ADDRESS)) == (Class.SUCCESS, ann.address)


@message("8489 s6.3.1", "an unknown comprehension-required attribute: 420 with UNKNOWN-ATTRIBUTES", "an unknown comprehension-optional one is ignored")
async def unknown_attribute(stage: Stage) -> None:
    ann = await stage.client()
    refused = await ann.exchange(ann.plain(Method.BINDING, unknown(0x7001), unknown(0x7002), unknown(0xF001)))
    assert (code(refused), refused.get(attributes.UNKNOWN_ATTRIBUTES)) == (420, (0x7001, 0x7002))
    assert code(await ann.exchange(ann.plain(Method.BINDING, unknown(0xF001)))) is None


@message("8489 s7, s14.7", "a wrong FINGERPRINT, or one that is not last: silence", "a right one is answered with FINGERPRINT, none with none")
async def fingerprint(stage: Stage) -> None:
    ann = await stage.client()
    printed, bare = ann.plain(Method.BINDING, fingerprint=True), ann.plain(Method.BINDING)
    tail = bytes.fromhex("80220000")  # SOFTWARE, empty
    not_last = printed[:2] + (len(printed) - 20 + 4).to_bytes(2) + printed[4:] + tail
    assert await ann.gets_silence(printed[:-1] + bytes([printed[-1] ^ 1]), not_last)
    assert (await ann.exchange(printed)).has_fingerprint
    assert not (await ann.exchange(bare)).has_fingerprint
    await ann.ask(Method.REFRESH)
    answer = await ann.exchange(ann.signed(Method.ALLOCATE, *ann.transport, fingerprint=True))
    assert answer.has_fingerprint
    assert answer.is_signed_by(ann.key)


@message("8489 s6.3", "what is not STUN by cookie or length, and noise: silence", "the next request is answered", over_udp)
async def noise(stage: Stage) -> None:
    ann = await stage.client()
    whole = ann.plain(Method.BINDING)
    wrong = [whole[:4] + bytes(4) + whole[8:], whole[:2] + b"\x00\x04" + whole[4:], whole + b"\x00", whole[:19], b"", b"\x00", b"\xff" * 40]
    assert await ann.gets_silence(*wrong, *(b"\x01" + os.urandom(size) for size in range(60)))
    assert code(await ann.exchange(whole)) is None


@message("8489 s6.3", "answers, requests of unknown methods and requests of Send or Data: silence", "a request of a known method is answered")
async def no_request(stage: Stage) -> None:
    ann, _, _ = await allocated(stage)
    answers = [ann.plain(method, kind=kind) for method in (Method.BINDING, Method.ALLOCATE) for kind in (Class.SUCCESS, Class.ERROR)]
    assert await ann.gets_silence(*answers, ann.signed(0x0ABC), ann.signed(Method.SEND), ann.signed(Method.DATA))
    assert await ann.refresh() is None


@message("8489 s6.3.2", "indications are never answered: Binding, Send, Data, with or without unknown attributes", "as requests they are")
async def indication(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage)
    kinds = [ann.plain(method, *to(peer.address), kind=Class.INDICATION) for method in (Method.BINDING, Method.DATA, Method.ALLOCATE)]
    assert await ann.gets_silence(*kinds, ann.indication(b"x", peer.address, unknown(0x7001)))
    assert peer.has_heard_nothing()
    assert code(await ann.exchange(ann.plain(Method.BINDING))) is None


@message("8489 s14", "of a repeated attribute the first counts")
async def repeated_attribute(stage: Stage) -> None:
    ann = await stage.client()
    answer = await ann.ask(Method.ALLOCATE, *ann.transport, lifetime(1000), lifetime(2000))
    assert answer.get(attributes.LIFETIME) == 1000


@message("8489 s14.5", "attributes after MESSAGE-INTEGRITY are ignored", "before it they count")
async def after_integrity(stage: Stage) -> None:
    ann = await stage.client()
    await ann.ask(Method.REFRESH)
    signed = ann.signed(Method.ALLOCATE, *ann.transport, lifetime(1000))
    tail = Message(0, Class.REQUEST, bytes(12), (lifetime(2000), unknown(0x7001))).serialize()[20:]
    answer = await ann.exchange(signed[:2] + (len(signed) - 20 + len(tail)).to_bytes(2) + signed[4:] + tail)
    assert answer.get(attributes.LIFETIME) == 1000


@message("8656 s18.1, s18.6 to s18.8", "bits that are reserved for future use are ignored")
async def reserved_bits(stage: Stage) -> None:
    ann, peer = await stage.client(), stage.peer()
    wish = raw(attributes.REQUESTED_TRANSPORT, b"\x11\xff\xff\xff"), raw(attributes.REQUESTED_ADDRESS_FAMILY, bytes([2 if ann.family else 1]) + b"\xff\xff\xff")
    answer = await ann.ask(Method.ALLOCATE, *wish, raw(attributes.EVEN_PORT, b"\x7f"))
    assert code(answer) is None
    assert answer.get(attributes.RESERVATION_TOKEN) is None
    assert code(await ann.ask(Method.CHANNEL_BIND, raw(attributes.CHANNEL_NUMBER, b"\x40\x00\xff\xff"), *to(peer.address))) is None


@message("5769 s2.1", "the sample request with a bit flipped: silence", "whole it is answered, FINGERPRINT by FINGERPRINT")
async def sample_request(stage: Stage) -> None:
    ann = await stage.client()
    sample = rfc5769.SAMPLE_REQUEST
    assert parse(sample).is_signed_by(rfc5769.SHORT_TERM_PASSWORD)
    answer = await ann.exchange(sample)
    assert (answer.get(attributes.XOR_MAPPED_ADDRESS), answer.has_fingerprint) == (ann.address, True)
    assert await ann.gets_silence(*(sample[:at] + bytes([sample[at] ^ 1]) + sample[at + 1 :] for at in range(20, len(sample), 7)))


@message("5769 s2.2, s2.3", "the sample responses are read, verify, and get silence from a server")
async def sample_responses(stage: Stage) -> None:
    ann = await stage.client()
    for sample, host in ((rfc5769.SAMPLE_IPV4_RESPONSE, "192.0.2.1"), (rfc5769.SAMPLE_IPV6_RESPONSE, "2001:db8:1234:5678:11:2233:4455:6677")):
        assert parse(sample).get(attributes.XOR_MAPPED_ADDRESS) == (host, 32853)
        assert parse(sample).is_signed_by(rfc5769.SHORT_TERM_PASSWORD)
        assert await ann.gets_silence(sample)


@message(
    "5769 s2.4",
    "the sample's user signs as the vector does: another password gets 401",
    "its own makes an allocation",
    realm=rfc5769.SAMPLE_REALM,
    credentials=static_users({rfc5769.USERNAME: rfc5769.PASSWORD}, rfc5769.SAMPLE_REALM),
)
async def sample_credentials(stage: Stage) -> None:
    sample = parse(rfc5769.SAMPLE_LONG_TERM_REQUEST)
    other = await stage.client(rfc5769.USERNAME, "TheMatrix", realm=rfc5769.SAMPLE_REALM)
    own = await stage.client(rfc5769.USERNAME, rfc5769.PASSWORD, realm=rfc5769.SAMPLE_REALM)
    assert (sample.is_signed_by(own.key), sample.is_signed_by(other.key)) == (True, False)
    assert code(await other.ask(Method.ALLOCATE, *other.transport)) == 401
    await own.allocate()


# Authentication


@credential("8489 s9.2.4; 8656 s5", "a request without MESSAGE-INTEGRITY: 401 with REALM and NONCE, unsigned, without USERNAME", "signed it passes")
async def no_integrity(stage: Stage) -> None:
    ann = await stage.client()
    for method in (Method.ALLOCATE, *AUTHENTICATED):
        answer = await ann.exchange(ann.plain(method, *ann.transport))
        assert (code(answer), answer.get(attributes.REALM), answer.integrity) == (401, "heliograph", None)
        assert answer.get(attributes.NONCE)
        assert answer.get(attributes.USERNAME) is None
    await ann.allocate()


@credential("8489 s9.2.4", "signed, but without USERNAME, REALM or NONCE: 400 without REALM and NONCE", "with all three it passes")
async def incomplete_credentials(stage: Stage) -> None:
    ann = await stage.client()
    await ann.ask(Method.REFRESH)
    for missing in (attributes.USERNAME, attributes.REALM, attributes.NONCE):
        answer = await ann.exchange(ann.signed(Method.ALLOCATE, *ann.transport, without=missing))
        assert (code(answer), answer.get(attributes.REALM), answer.get(attributes.NONCE), answer.integrity) == (400, None, None, None)
    await ann.allocate()


@credential("8489 s9.2.4", "an unknown user, then a wrong password: 401 with REALM and NONCE", "the right one passes")
async def wrong_credentials(stage: Stage) -> None:
    for username, password in (("eve", "pass"), ("ann", "guess"), ("", "")):
        stranger = await stage.client(username, password)
        answer = await stranger.ask(Method.ALLOCATE, *stranger.transport)
        assert (code(answer), answer.get(attributes.REALM), answer.integrity) == (401, "heliograph", None)
        assert answer.get(attributes.NONCE)
    await (await stage.client()).allocate()


@credential("8489 s9.2.4", "a request that was changed on its way: 401", "unchanged it passes")
async def changed_request(stage: Stage) -> None:
    ann = await stage.client()
    await ann.ask(Method.REFRESH)
    whole = ann.signed(Method.ALLOCATE, *ann.transport, lifetime(600))
    at = whole.index(bytes.fromhex("000d0004"))
    assert code(await ann.exchange(whole[: at + 6] + b"\xff" + whole[at + 7 :])) == 401
    assert code(await ann.exchange(whole)) is None


@credential("8489 s9.2.4", "a wrong password is told before a stale nonce: 401, then 438", "a fresh nonce passes")
async def order_of_refusals(stage: Stage) -> None:
    ann = await stage.client()
    ann.nonce = b"made up"
    assert code(await ann.ask(Method.ALLOCATE, *ann.transport, key=b"wrong")) == 401
    stale = await ann.ask(Method.ALLOCATE, *ann.transport)
    assert (code(stale), stale.get(attributes.REALM), stale.integrity) == (438, "heliograph", None)
    ann.nonce = stale.get(attributes.NONCE)
    await ann.allocate()


@credential("8489 s9.2.4", "a nonce belongs to one source address and port: 438 for a neighbour", "its owner passes")
async def nonce_of_another(stage: Stage) -> None:
    ann, neighbour = await stage.client(), await stage.client()
    await ann.ask(Method.REFRESH)
    neighbour.nonce = ann.nonce
    assert code(await neighbour.ask(Method.ALLOCATE, *neighbour.transport)) == 438
    await ann.allocate()


@credential("8656 s5; 8489 s9.2.4", "a nonce is stale after an hour: 438 with a valid one", "within the hour, and with the new one, it passes")
async def stale_nonce(stage: Stage) -> None:
    ann = await stage.client()
    await ann.ask(Method.REFRESH)
    stage.pass_time(3599)
    await ann.allocate(LIVES_LONG)
    stage.pass_time(3)
    stale = await ann.ask(Method.REFRESH)
    assert code(stale) == 438
    ann.nonce = stale.get(attributes.NONCE)
    assert await ann.refresh() is None


@credential("8656 s5", "a later Allocate gets another nonce")
async def new_nonce(stage: Stage) -> None:
    ann = await stage.client()
    nonces = set()
    for _ in range(3):
        nonces.add((await ann.exchange(ann.plain(Method.ALLOCATE))).get(attributes.NONCE))
        stage.pass_time(1)
    assert len(nonces) == 3


@credential("8656 s5; 8489 s9.2", "a nonce begins with the nonce cookie: RFC 8489 is supported, none of its optional security features is in use")
async def nonce_cookie(stage: Stage) -> None:
    ann = await stage.client()
    answer = await ann.exchange(ann.plain(Method.ALLOCATE))
    nonce = answer.get(attributes.NONCE)
    assert nonce is not None
    assert nonce.startswith(b"obMatJos2AAAA")
    assert len(nonce) < 128


@credential("8489 s9.2.4", "what is answered after authentication, success or error, is signed and names no USERNAME, REALM or NONCE")
async def signed_answers(stage: Stage) -> None:
    ann, peer = await stage.client(), stage.peer()
    answers = [await ann.ask(method) for method in AUTHENTICATED] + [await ann.ask(Method.ALLOCATE, *ann.transport)]
    answers += [await ann.ask(Method.CREATE_PERMISSION, *to(peer.address)), await ann.ask(Method.CHANNEL_BIND)]
    assert [code(answer) for answer in answers] == [437, 437, 437, None, None, 400]
    for answer in answers:
        assert answer.is_signed_by(ann.key)
        assert not {row for row, _ in answer.attributes} & {attributes.USERNAME, attributes.REALM, attributes.NONCE}


@credential("8489 s6.3, s9.2.4", "unknown attributes are told after authentication: 401 first, then a signed 420", "without them it passes")
async def unknown_after_authentication(stage: Stage) -> None:
    ann = await stage.client()
    assert code(await ann.exchange(ann.plain(Method.ALLOCATE, *ann.transport, unknown(0x7001)))) == 401
    answer = await ann.ask(Method.ALLOCATE, *ann.transport, unknown(0x7001))
    assert (code(answer), answer.get(attributes.UNKNOWN_ATTRIBUTES)) == (420, (0x7001,))
    await ann.allocate(unknown(0xF001))


@credential(
    "8489 s9.2.4",
    "a time-limited user name that is over, or signed with an older secret: 401",
    "with the current and the previous secret it passes",
    credentials=shared_secrets(lambda: SECRETS, "heliograph"),
)
async def time_limited_credentials(stage: Stage) -> None:
    now = int(stage.relay._now())
    valid, over = turn_username(now + 600, "acc_1", "dev_1"), turn_username(now - 1, "acc_1", "dev_1")
    for name, secret, expected in ((over, "new", 401), (valid, "older", 401), (valid, "new", None), (valid, "old", None)):
        client = await stage.client(name, turn_password(secret, name))
        assert code(await client.ask(Method.ALLOCATE, *client.transport)) == expected


@credential("8656 s5, s21.3.3", "another user on this five-tuple: 441, and 437 to Allocate", "its own user passes")
async def another_user(stage: Stage) -> None:
    ann, peer, _ = await allocated(stage)
    ann.username, ann.key = "bob", turn_key("bob", "heliograph", "word")
    codes = [await ann.refresh(lifetime(0)), await ann.permit(peer.address), await ann.bind(NUMBER, peer.address)]
    assert codes == [441, 441, 441]
    assert code(await ann.ask(Method.ALLOCATE, *ann.transport)) == 437
    ann.username, ann.key = "ann", turn_key("ann", "heliograph", "pass")
    assert await ann.refresh() is None


@credential("8656 s5", "without an allocation: 437 to requests, silence for Send and ChannelData", "with one they pass")
async def no_allocation(stage: Stage) -> None:
    ann, peer = await stage.client(), stage.peer()
    assert [await ann.refresh(), await ann.permit(peer.address), await ann.bind(NUMBER, peer.address)] == [437, 437, 437]
    assert await ann.gets_silence(ann.indication(b"x", peer.address), channel_data(NUMBER, b"x"))
    assert peer.has_heard_nothing()
    await ann.allocate()
    assert [await ann.refresh(), await ann.permit(peer.address), await ann.bind(NUMBER, peer.address)] == [None, None, None]
    ann.send(channel_data(NUMBER, b"y"))
    assert (await peer.hears())[0] == b"y"


@credential("good practice", "before authentication nothing is kept, and no answer is four times as large as its request")
async def nothing_kept(stage: Stage) -> None:
    ann = await stage.client("ann", "guess")
    for request in (ann.plain(Method.ALLOCATE, *ann.transport), ann.plain(Method.BINDING)):
        await ann.exchange(request)
        assert len(ann.answered) < 4 * len(ann.asked)
    assert code(await ann.ask(Method.ALLOCATE, *ann.transport)) == 401
    server = stage.relay._server
    assert [len(kept) for kept in (server._allocations, server._pending, server._accounts)] == [0, 0, 0]
