"""The STUN codec against RFC 5769's vectors, and against noise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.ice import turn_key
from media_fleet.stun import AddressError, Class, ErrorCode, Icmp, Malformed, Message, Method, attributes, parse
from media_fleet.stun.attributes import TABLE, Attribute
from tests.rfc5769 import (
    PASSWORD,
    SAMPLE_IPV4_RESPONSE,
    SAMPLE_IPV6_RESPONSE,
    SAMPLE_LONG_TERM_REQUEST,
    SAMPLE_REALM,
    SAMPLE_REQUEST,
    SHORT_TERM_PASSWORD,
    USERNAME,
)

ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")

VECTORS = [SAMPLE_REQUEST, SAMPLE_IPV4_RESPONSE, SAMPLE_IPV6_RESPONSE, SAMPLE_LONG_TERM_REQUEST]


def test_rfc_5769_2_1_the_sample_request_is_read_and_verifies() -> None:
    message = parse(SAMPLE_REQUEST)
    assert (message.method, message.message_class, message.transaction_id) == (Method.BINDING, Class.REQUEST, ID)
    assert message.get(attributes.SOFTWARE) == "STUN test client"
    assert message.get(attributes.PRIORITY) == 0x6E0001FF
    assert message.get(attributes.ICE_CONTROLLED) == 0x932FF9B151263B36
    assert message.get(attributes.USERNAME) == "evtj:h6vY"
    assert message.has_fingerprint
    assert message.is_signed_by(SHORT_TERM_PASSWORD)


@pytest.mark.parametrize(
    ("data", "address"),
    [(SAMPLE_IPV4_RESPONSE, ("192.0.2.1", 32853)), (SAMPLE_IPV6_RESPONSE, ("2001:db8:1234:5678:11:2233:4455:6677", 32853))],
    ids=["2.2", "2.3"],
)
def test_rfc_5769_2_2_and_2_3_the_sample_responses_are_read_and_verify(data: bytes, address: tuple[str, int]) -> None:
    message = parse(data)
    assert (message.method, message.message_class) == (Method.BINDING, Class.SUCCESS)
    assert message.get(attributes.SOFTWARE) == "test vector"
    assert message.get(attributes.XOR_MAPPED_ADDRESS) == address
    assert message.has_fingerprint
    assert message.is_signed_by(SHORT_TERM_PASSWORD)


def test_rfc_5769_2_4_the_long_term_request_is_read_verifies_and_is_written_byte_for_byte() -> None:
    message = parse(SAMPLE_LONG_TERM_REQUEST)
    key = turn_key(USERNAME, SAMPLE_REALM, PASSWORD)
    assert message.get(attributes.USERNAME) == USERNAME
    assert message.get(attributes.NONCE) == b"f//499k954d6OL34oL9FSTvy64sA"
    assert message.get(attributes.REALM) == SAMPLE_REALM
    assert message.is_signed_by(key)
    assert message.serialize(key) == SAMPLE_LONG_TERM_REQUEST


@pytest.mark.parametrize("data", VECTORS, ids=["2.1", "2.2", "2.3", "2.4"])
def test_what_was_read_is_written_and_reads_the_same(data: bytes) -> None:
    message = parse(data)
    written = message.serialize(SHORT_TERM_PASSWORD, fingerprint=True)
    assert parse(written) == message
    assert parse(written).is_signed_by(SHORT_TERM_PASSWORD)
    assert len(written) == len(data) + (0 if message.has_fingerprint else 8)


@pytest.mark.parametrize("data", VECTORS, ids=["2.1", "2.2", "2.3", "2.4"])
def test_one_flipped_bit_is_noticed(data: bytes) -> None:
    key = turn_key(USERNAME, SAMPLE_REALM, PASSWORD) if data is SAMPLE_LONG_TERM_REQUEST else SHORT_TERM_PASSWORD
    for at in range(len(data) - 8 * parse(data).has_fingerprint):
        try:
            message = parse(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        except Malformed:
            continue
        assert not message.is_signed_by(key)


def test_a_wrong_key_does_not_verify_and_neither_does_a_message_without_integrity() -> None:
    assert not parse(SAMPLE_REQUEST).is_signed_by(b"another")
    assert not parse(Message(Method.BINDING, Class.REQUEST, ID).serialize()).is_signed_by(b"")


def test_every_method_and_class_survives_the_interleaved_header() -> None:
    for method in range(0x1000):
        for message_class in Class:
            message = parse(Message(method, message_class, ID).serialize())
            assert (message.method, message.message_class) == (method, message_class)


VALUES: dict[str, object] = {
    "ERROR-CODE": ErrorCode(438, "Stale Nonce"),
    "UNKNOWN-ATTRIBUTES": (0x001A, 0x7FFF, 0x0030),
    "MAPPED-ADDRESS": ("192.0.2.7", 9),
    "XOR-PEER-ADDRESS": ("2001:db8::1", 65535),
    "XOR-RELAYED-ADDRESS": ("198.51.100.4", 49152),
    "XOR-MAPPED-ADDRESS": ("::1", 0),
    "ALTERNATE-SERVER": ("2001:db8::2", 3478),
    "DATA": b"\x00" * 5,
    "NONCE": b"n",
    "RESERVATION-TOKEN": b"12345678",
    "USERNAME": "u",
    "REALM": "réalm",
    "SOFTWARE": "",
    "DONT-FRAGMENT": b"",
    "USE-CANDIDATE": b"",
    "EVEN-PORT": 0x80,
    "ADDRESS-ERROR-CODE": AddressError(2, 440, "Address Family not Supported"),
    "ICMP": Icmp(3, 4, 1280),
}


@pytest.mark.parametrize("row", [row for row in TABLE.values() if row.name not in ("MESSAGE-INTEGRITY", "FINGERPRINT")], ids=lambda row: str(row.name))
def test_every_row_of_the_table_goes_both_ways(row: Attribute[object]) -> None:
    value = VALUES.get(row.name, 17)
    message = Message(Method.ALLOCATE, Class.REQUEST, ID, ((row, value),))
    assert parse(message.serialize()) == message
    assert parse(message.serialize()).get(row) == value


def test_unknown_attributes_are_told_apart_by_whether_they_must_be_understood() -> None:
    required: Attribute[bytes] = Attribute(0x7F01, "X", lambda value, _: value, lambda data, _: data)
    optional: Attribute[bytes] = Attribute(0xFF01, "Y", lambda value, _: value, lambda data, _: data)
    message = parse(Message(Method.BINDING, Class.REQUEST, ID, ((required, b"a"), (optional, b"b"), (required, b""))).serialize())
    assert message.unknown == (0x7F01,)
    assert message.attributes == ()


@pytest.mark.parametrize(
    ("row", "value"),
    [
        (attributes.XOR_PEER_ADDRESS, b""),
        (attributes.XOR_PEER_ADDRESS, bytes([0, 3]) + bytes(6)),
        (attributes.XOR_PEER_ADDRESS, bytes([0, 2]) + bytes(6)),
        (attributes.MAPPED_ADDRESS, b"\x00"),
        (attributes.LIFETIME, b"\x00\x00\x00"),
        (attributes.USERNAME, b"\xff"),
        (attributes.ERROR_CODE, b"\x00\x00\x02\x00"),
        (attributes.ERROR_CODE, b"\x00\x00\x04\x64"),
        (attributes.UNKNOWN_ATTRIBUTES, b"\x00"),
        (attributes.ADDRESS_ERROR_CODE, b"\x02\x00\x02\x00"),
        (attributes.ICMP, bytes(7)),
        (attributes.DONT_FRAGMENT, b"\x00"),
    ],
)
def test_a_value_that_cannot_be_read_is_named(row: Attribute[object], value: bytes) -> None:
    raw: Attribute[bytes] = Attribute(row.type, row.name, lambda data, _: data, lambda data, _: data)
    message = parse(Message(Method.ALLOCATE, Class.REQUEST, ID, ((raw, value),)).serialize())
    assert message.malformed == (row.name,)
    assert message.get(row) is None


def test_what_follows_the_integrity_is_ignored_and_what_follows_the_fingerprint_is_refused() -> None:
    plain = Message(Method.REFRESH, Class.REQUEST, ID, ((attributes.LIFETIME, 1),)).serialize(b"key")
    tail = bytes.fromhex("000d000400000000")
    longer = plain[:2] + (len(plain) - 20 + len(tail)).to_bytes(2, "big") + plain[4:] + tail
    assert parse(longer).get(attributes.LIFETIME) == 1
    assert list(parse(longer).get_all(attributes.LIFETIME)) == [1]
    assert parse(longer).is_signed_by(b"key")
    printed = Message(Method.REFRESH, Class.REQUEST, ID).serialize(fingerprint=True)
    with pytest.raises(Malformed):
        parse(printed[:2] + (len(printed) - 20 + len(tail)).to_bytes(2, "big") + printed[4:] + tail)


@given(st.binary(max_size=200))
def test_noise_is_a_message_or_the_one_error(data: bytes) -> None:
    _parse_or_refuse(data)


@given(st.integers(0, 0x3FFF), st.lists(st.tuples(st.sampled_from([*TABLE, 0x7777, 0xF777]), st.binary(max_size=24)), max_size=6), st.binary(max_size=8))
def test_noise_in_the_form_of_attributes_is_a_message_or_the_one_error(kind: int, rows: list[tuple[int, bytes]], tail: bytes) -> None:
    body = b"".join(type_.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value + bytes(-len(value) % 4) for type_, value in rows) + tail
    _parse_or_refuse(kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + bytes.fromhex("2112a442") + ID + body)


@given(st.sampled_from(VECTORS), st.integers(0, 115), st.integers(0, 255))
def test_a_damaged_vector_is_a_message_or_the_one_error(data: bytes, at: int, value: int) -> None:
    _parse_or_refuse(data[:at] + bytes([value]) + data[at + 1 :])


def _parse_or_refuse(data: bytes) -> None:
    try:
        message = parse(data)
    except Malformed:
        return
    assert isinstance(message, Message)
    message.serialize(b"key", fingerprint=True)
