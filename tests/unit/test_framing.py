"""STUN and ChannelData over a byte stream: cut as you like, the same messages come out; anything else is the one error, and nothing grows."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from media_fleet.stun import Class, Malformed, Message, Method, attributes, parse
from media_fleet.turn.framing import LARGEST_MESSAGE, Deframer, frame

REQUEST = Message(Method.BINDING, Class.REQUEST, bytes(range(12))).serialize()
LONGER_REQUEST = Message(Method.ALLOCATE, Class.REQUEST, bytes(12), ((attributes.USERNAME, "ann"), (attributes.REALM, "heliograph"))).serialize(b"key", True)


def channel_data(payload: bytes, number: int = 0x4001) -> bytes:
    return number.to_bytes(2, "big") + len(payload).to_bytes(2, "big") + payload


channel_datas = st.builds(channel_data, st.binary(max_size=40), st.integers(0x4000, 0x4FFF))
messages_ = st.lists(st.one_of(channel_datas, st.sampled_from([REQUEST, LONGER_REQUEST])), max_size=6)


def fed(deframer: Deframer, pieces: list[bytes]) -> list[bytes]:
    return [message for piece in pieces for message in deframer.feed(piece)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    return [data[start:end] for start, end in pairwise([0, *sorted(place for place in places if place <= len(data)), len(data)])]


# What goes out


@pytest.mark.parametrize(("length", "padded"), [(0, 4), (1, 8), (2, 8), (3, 8), (4, 8), (5, 12), (160, 164)])
def test_rfc_8656_12_5_channel_data_is_padded_to_fours_and_its_length_does_not_say_so(length: int, padded: int) -> None:
    datagram = channel_data(b"x" * length)
    framed = frame(datagram)
    assert framed == datagram + bytes(padded - 4 - length)
    assert len(framed) == padded
    assert framed[2:4] == length.to_bytes(2, "big")


def test_stun_goes_out_as_it_is_and_is_not_copied() -> None:
    assert frame(REQUEST) is REQUEST


# What comes in


@given(messages_, st.lists(st.integers(0, 600), max_size=10))
def test_any_cut_of_any_messages_gives_the_same_messages(messages: list[bytes], places: list[int]) -> None:
    deframer = Deframer()
    assert fed(deframer, cut(b"".join(map(frame, messages)), places)) == messages
    assert deframer.held == 0


@given(messages_)
def test_byte_by_byte_gives_the_same_messages(messages: list[bytes]) -> None:
    stream = b"".join(map(frame, messages))
    assert fed(Deframer(), [stream[at : at + 1] for at in range(len(stream))]) == messages


@given(messages_, st.integers(0, 1_000))
def test_an_incomplete_message_waits(messages: list[bytes], length: int) -> None:
    stream = b"".join(map(frame, messages))[:length]
    deframer = Deframer()
    complete = deframer.feed(stream)
    assert complete == messages[: len(complete)]
    assert deframer.held == len(stream) - sum(len(frame(message)) for message in complete)


def test_a_message_whose_padding_is_missing_waits_for_it() -> None:
    deframer = Deframer()
    assert deframer.feed(channel_data(b"abc")) == []
    assert deframer.feed(b"\x00") == [channel_data(b"abc")]


def test_padding_may_be_anything() -> None:
    assert Deframer().feed(channel_data(b"abc") + b"\xff" + REQUEST) == [channel_data(b"abc"), REQUEST]


def test_a_whole_message_is_not_copied() -> None:
    (message,) = Deframer().feed(REQUEST)
    assert message is REQUEST


def test_what_comes_out_is_what_the_codec_reads() -> None:
    (message,) = fed(Deframer(), [LONGER_REQUEST[:7], LONGER_REQUEST[7:]])
    assert parse(message).get(attributes.USERNAME) == "ann"


# What is refused


@pytest.mark.parametrize("first", [0x50, 0x7F, 0x80, 0xFF])
def test_rfc_8656_12_a_first_byte_of_the_reserved_range_is_refused_at_once(first: int) -> None:
    with pytest.raises(Malformed, match="neither"):
        Deframer().feed(bytes([first]))


@pytest.mark.parametrize("first", [0x40, 0x4F])
def test_a_first_byte_of_a_channel_passes(first: int) -> None:
    assert Deframer().feed(bytes([first, 1, 0, 0])) == [bytes([first, 1, 0, 0])]


@pytest.mark.parametrize("at", [4, 5, 6, 7])
def test_a_wrong_magic_cookie_is_refused_at_its_first_wrong_byte(at: int) -> None:
    wrong = bytearray(REQUEST)
    wrong[at] ^= 1
    deframer = Deframer()
    assert deframer.feed(bytes(wrong[:at])) == []
    with pytest.raises(Malformed, match="neither"):
        deframer.feed(bytes(wrong[at : at + 1]))


def test_a_stun_length_that_is_no_multiple_of_four_is_refused() -> None:
    with pytest.raises(Malformed, match="neither"):
        Deframer().feed(b"\x00\x01\x00\x02" + REQUEST[4:] + bytes(2))


def test_garbage_after_messages_is_refused_too() -> None:
    with pytest.raises(Malformed):
        Deframer().feed(frame(channel_data(b"abc")) + b"GET / HTTP/1.1\r\n" * 2_000 + b"\xff")
    with pytest.raises(Malformed):
        fed(Deframer(), [REQUEST, b"\xff"])


@pytest.mark.parametrize("size", [0, 3])
def test_a_message_over_the_limit_is_refused_before_it_is_kept(size: int) -> None:
    """Four bytes of header are enough to refuse; a message of just the limit passes."""
    deframer = Deframer(largest=400)
    passes, refused = frame(channel_data(bytes(396 - size))), channel_data(bytes(397))
    assert len(deframer.feed(passes)) == 1
    with pytest.raises(Malformed, match="too large"):
        deframer.feed(refused[:4])
    assert deframer.held == 0


def test_a_stun_message_over_the_limit_is_refused_by_its_header() -> None:
    header = b"\x00\x01\x03\xe8" + REQUEST[4:]
    with pytest.raises(Malformed, match="too large"):
        Deframer(largest=1_000).feed(header)
    deframer = Deframer(largest=1_020)
    assert deframer.feed(header) == []
    assert deframer.feed(bytes(1_000)) == [header + bytes(1_000)]


def test_the_limit_may_be_raised_while_the_stream_goes_on() -> None:
    deframer = Deframer(largest=400)
    assert deframer.feed(REQUEST) == [REQUEST]
    deframer.largest = LARGEST_MESSAGE
    assert deframer.feed(channel_data(bytes(65_532))) == [channel_data(bytes(65_532))]


def test_the_largest_messages_there_can_be_pass() -> None:
    largest = b"\x00\x01\xff\xfc" + REQUEST[4:20] + bytes(65_532)
    assert len(largest) == LARGEST_MESSAGE
    assert Deframer().feed(largest) == [largest]
    assert fed(Deframer(), cut(frame(channel_data(bytes(65_535))), [3, 40_000])) == [channel_data(bytes(65_535))]


@given(st.lists(st.binary(max_size=400), max_size=30))
def test_noise_gives_whole_messages_or_the_one_error_and_keeps_at_most_one_message(pieces: list[bytes]) -> None:
    deframer = Deframer(largest=300)
    for piece in pieces:
        try:
            messages = deframer.feed(piece)
        except Malformed:
            return
        assert all(message[0] <= 0x4F and 4 <= len(message) <= 300 for message in messages)
        assert deframer.held < 300


@given(messages_, st.binary(min_size=1, max_size=60), st.lists(st.integers(0, 600), max_size=10))
def test_noise_after_messages_is_the_same_however_it_is_cut(messages: list[bytes], noise: bytes, places: list[int]) -> None:
    stream = b"".join(map(frame, messages)) + noise

    def is_refused(pieces: list[bytes]) -> bool:
        try:
            fed(Deframer(), pieces)
        except Malformed:
            return True
        return False

    assert is_refused([stream]) == is_refused(cut(stream, places))


def test_a_million_bytes_in_small_pieces_keep_less_than_one_message() -> None:
    """The message that is never finished costs what arrived of it, and what is done is forgotten."""
    deframer, stream = Deframer(), frame(channel_data(bytes(997))) * 250
    pieces = [stream[at : at + 1_000] for at in range(0, len(stream), 1_000)]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(4):
        for piece in pieces:
            deframer.feed(piece)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 16_384
