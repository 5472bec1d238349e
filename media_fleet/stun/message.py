"""The STUN message (RFC 8489 s5): header, attributes in order, MESSAGE-INTEGRITY (s14.5) and FINGERPRINT (s14.7)."""

from __future__ import annotations

import binascii
import hmac
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeVar

from media_fleet.stun.attributes import COOKIE, FINGERPRINT, MESSAGE_INTEGRITY, TABLE, Attribute, Malformed

T = TypeVar("T")
_HEADER = struct.Struct("!HH4s12s")
_ATTRIBUTE = struct.Struct("!HH")
_FINGERPRINT_XOR = 0x5354554E


class Method(IntEnum):
    """RFC 8489 s18.2 and RFC 8656 s17."""

    BINDING = 0x001
    ALLOCATE = 0x003
    REFRESH = 0x004
    SEND = 0x006
    DATA = 0x007
    CREATE_PERMISSION = 0x008
    CHANNEL_BIND = 0x009


class Class(IntEnum):
    """The two class bits where they stand in the message type."""

    REQUEST = 0x000
    INDICATION = 0x010
    SUCCESS = 0x100
    ERROR = 0x110


@dataclass(frozen=True, slots=True)
class Message:
    """A STUN message. `attributes` keeps order and repetition; the last five fields are what only a parsed message can tell."""

    method: int  # a Method, or a number nobody here knows
    message_class: Class
    transaction_id: bytes
    attributes: tuple[tuple[Attribute[Any], Any], ...] = ()
    unknown: tuple[int, ...] = ()  # comprehension-required types without a row
    malformed: tuple[str, ...] = ()  # names of attributes whose value could not be read
    has_fingerprint: bool = field(default=False, compare=False)
    integrity: bytes | None = field(default=None, compare=False, repr=False)
    signed: bytes = field(default=b"", compare=False, repr=False)  # what the integrity covers

    def get(self, attribute: Attribute[T]) -> T | None:
        """The first value; a repeated attribute counts once (RFC 8489 s14)."""
        return next(self.get_all(attribute), None)

    def get_all(self, attribute: Attribute[T]) -> Iterator[T]:
        """Every value, for the attributes that may repeat (XOR-PEER-ADDRESS in CreatePermission)."""
        return (value for row, value in self.attributes if row is attribute)

    def is_signed_by(self, key: bytes) -> bool:
        """Whether MESSAGE-INTEGRITY is there and was made with this key."""
        return self.integrity is not None and hmac.compare_digest(self.integrity, hmac.digest(key, self.signed, "sha1"))

    def serialize(self, key: bytes | None = None, fingerprint: bool = False) -> bytes:
        """The bytes; `key` adds MESSAGE-INTEGRITY, `fingerprint` adds FINGERPRINT, in that order and last."""
        body = b"".join(_packed(row, row.pack(value, self.transaction_id)) for row, value in self.attributes)
        if key is not None:
            body += _packed(MESSAGE_INTEGRITY, hmac.digest(key, self._header(len(body) + 24) + body, "sha1"))
        if fingerprint:
            body += _packed(FINGERPRINT, _crc(self._header(len(body) + 8) + body).to_bytes(4, "big"))
        return self._header(len(body)) + body

    def _header(self, length: int) -> bytes:
        method = self.method
        split = (method & 0x00F) | (method & 0x070) << 1 | (method & 0xF80) << 2  # RFC 8489 s5, figure 3
        return _HEADER.pack(split | self.message_class, length, COOKIE, self.transaction_id)


def _packed(row: Attribute[Any], value: bytes) -> bytes:
    return _ATTRIBUTE.pack(row.type, len(value)) + value + bytes(-len(value) % 4)


def _crc(data: bytes) -> int:
    return binascii.crc32(data) ^ _FINGERPRINT_XOR


def parse(data: bytes) -> Message:
    """The message in this datagram, or Malformed. A value that cannot be read is named in `malformed`; the server answers those with 400."""
    if len(data) < 20 or data[0] > 0x3F or len(data) % 4:
        raise Malformed("A STUN message has 20 bytes or more, in fours, and begins with two zero bits.")
    kind, length, cookie, transaction_id = _HEADER.unpack_from(data)
    if cookie != COOKIE or length != len(data) - 20:
        raise Malformed("The magic cookie or the length is wrong.")
    method = (kind & 0x000F) | (kind & 0x00E0) >> 1 | (kind & 0x3E00) >> 2
    found = _Reader(data, transaction_id)
    found.read()
    return Message(
        method,
        Class(kind & 0x0110),
        transaction_id,
        tuple(found.attributes),
        tuple(found.unknown),
        tuple(found.malformed),
        found.has_fingerprint,
        found.integrity,
        found.signed,
    )


class _Reader:
    """Walks the attributes of one datagram."""

    __slots__ = ("attributes", "data", "has_fingerprint", "integrity", "malformed", "signed", "transaction_id", "unknown")

    def __init__(self, data: bytes, transaction_id: bytes) -> None:
        self.data, self.transaction_id = data, transaction_id
        self.attributes: list[tuple[Attribute[Any], Any]] = []
        self.unknown: list[int] = []
        self.malformed: list[str] = []
        self.has_fingerprint = False
        self.integrity: bytes | None = None
        self.signed = b""

    def read(self) -> None:
        data, at = self.data, 20
        while at < len(data):
            if self.has_fingerprint:
                raise Malformed("FINGERPRINT is not the last attribute.")  # RFC 8489 s14.7
            type_, length = _ATTRIBUTE.unpack_from(data, at)
            end = at + 4 + length
            if end > len(data):
                raise Malformed("An attribute is longer than the message.")
            if type_ == FINGERPRINT.type:
                self._check_fingerprint(at, data[at + 4 : end])
            elif self.integrity is None:  # what follows MESSAGE-INTEGRITY is ignored (RFC 8489 s14.5)
                self._read_one(type_, at, data[at + 4 : end])
            at = end + (-length % 4)

    def _read_one(self, type_: int, at: int, value: bytes) -> None:
        row = TABLE.get(type_)
        if row is None:
            if type_ < 0x8000 and type_ not in self.unknown:
                self.unknown.append(type_)
        elif row is MESSAGE_INTEGRITY:
            if len(value) != 20:
                raise Malformed("MESSAGE-INTEGRITY has 20 bytes.")
            self.integrity = value
            self.signed = self.data[:2] + (at + 24 - 20).to_bytes(2, "big") + self.data[4:at]
        else:
            self._read_value(row, value)

    def _read_value(self, row: Attribute[Any], value: bytes) -> None:
        try:
            self.attributes.append((row, row.unpack(value, self.transaction_id)))
        except Malformed:
            self.malformed.append(row.name)

    def _check_fingerprint(self, at: int, value: bytes) -> None:
        # The check covers the header as it stands: FINGERPRINT is last, so the length already counts it.
        if len(value) != 4 or int.from_bytes(value, "big") != _crc(self.data[:at]):
            raise Malformed("FINGERPRINT does not match.")
        self.has_fingerprint = True
