"""The attribute table: type, name, and the two directions of each value (RFC 8489 s14, RFC 8656 s18, RFC 8445 s16).

One row per attribute drives both `parse` and `serialize`; an attribute that has no row is unknown.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

MAGIC_COOKIE = 0x2112A442
COOKIE = MAGIC_COOKIE.to_bytes(4, "big")
IPV4, IPV6 = 1, 2

T = TypeVar("T")
Address = tuple[str, int]  # an IP address as canonical text, and a port


class Malformed(ValueError):
    """The bytes are not a STUN message, or an attribute's value is not of its type."""


class ErrorCode(NamedTuple):
    """ERROR-CODE: a number of 300 to 699 and a reason for people."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Attribute(Generic[T]):
    """A row: `pack` and `unpack` take the transaction id as well, because XORed IPv6 addresses need it."""

    type: int
    name: str
    pack: Callable[[T, bytes], bytes]
    unpack: Callable[[bytes, bytes], T]


TABLE: dict[int, Attribute[Any]] = {}


def _row(type_: int, name: str, codec: tuple[Callable[[T, bytes], bytes], Callable[[bytes, bytes], T]]) -> Attribute[T]:
    attribute = Attribute(type_, name, *codec)
    TABLE[type_] = attribute
    return attribute


def _exactly(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise Malformed(f"A value of {length} bytes has {len(data)}.")
    return data


def _pack_address(address: Address, transaction_id: bytes) -> bytes:
    ip = ipaddress.ip_address(address[0])
    return struct.pack("!BBH", 0, IPV4 if ip.version == 4 else IPV6, address[1]) + ip.packed


def _unpack_address(data: bytes, transaction_id: bytes) -> Address:
    if len(data) < 4 or data[1] not in (IPV4, IPV6):
        raise Malformed("An address has family 1 or 2.")
    _exactly(data, 8 if data[1] == IPV4 else 20)
    return str(ipaddress.ip_address(data[4:])), int.from_bytes(data[2:4], "big")


def _xor(value: bytes, transaction_id: bytes) -> bytes:
    """RFC 8489 s14.2: the port with the top of the cookie, the address with cookie and transaction id."""
    pad = COOKIE[:2] + COOKIE + transaction_id
    mixed = int.from_bytes(value[2:], "big") ^ int.from_bytes(pad[: len(value) - 2], "big")
    return value[:2] + mixed.to_bytes(len(value) - 2, "big")


def _pack_xored(address: Address, transaction_id: bytes) -> bytes:
    return _xor(_pack_address(address, transaction_id), transaction_id)


def _unpack_xored(data: bytes, transaction_id: bytes) -> Address:
    if len(data) not in (8, 20):
        raise Malformed("An address has 8 or 20 bytes.")
    return _unpack_address(_xor(data, transaction_id), transaction_id)


def _unpack_text(data: bytes, transaction_id: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Malformed("A text is not UTF-8.") from None


def _unpack_error(data: bytes, transaction_id: bytes) -> ErrorCode:
    if len(data) < 4 or not 3 <= data[2] & 7 <= 6 or data[3] > 99:
        raise Malformed("An error code is 300 to 699.")
    return ErrorCode((data[2] & 7) * 100 + data[3], _unpack_text(data[4:], transaction_id))


class AddressError(NamedTuple):
    """ADDRESS-ERROR-CODE: why an address of this family was not allocated (RFC 8656 s18.12)."""

    family: int
    code: int
    reason: str


def _unpack_address_error(data: bytes, transaction_id: bytes) -> AddressError:
    code, reason = _unpack_error(data, transaction_id)
    return AddressError(data[0], code, reason)


class Icmp(NamedTuple):
    """ICMP: what came back for a datagram that was sent to a peer (RFC 8656 s18.13); `data` is an MTU or 0."""

    type: int
    code: int
    data: int


def _unpack_types(data: bytes, transaction_id: bytes) -> tuple[int, ...]:
    if len(data) % 2:
        raise Malformed("A list of attribute types has an odd length.")
    return struct.unpack(f"!{len(data) // 2}H", data)


def _number(length: int, reserved: int = 0) -> tuple[Callable[[int, bytes], bytes], Callable[[bytes, bytes], int]]:
    """A big-endian number followed by `reserved` bytes that are zero when sent and ignored when read."""
    return (
        lambda value, _: value.to_bytes(length, "big") + bytes(reserved),
        lambda data, _: int.from_bytes(_exactly(data, length + reserved)[:length], "big"),
    )


def _opaque(length: int | None = None) -> tuple[Callable[[bytes, bytes], bytes], Callable[[bytes, bytes], bytes]]:
    return (lambda value, _: value, lambda data, _: data if length is None else _exactly(data, length))


_PLAIN = (_pack_address, _unpack_address)
_XORED = (_pack_xored, _unpack_xored)
_TEXT: tuple[Callable[[str, bytes], bytes], Callable[[bytes, bytes], str]] = (lambda value, _: value.encode(), _unpack_text)
_ERROR: tuple[Callable[[ErrorCode, bytes], bytes], Callable[[bytes, bytes], ErrorCode]] = (
    lambda value, _: bytes((0, 0, value.code // 100, value.code % 100)) + value.reason.encode(),
    _unpack_error,
)
_TYPES: tuple[Callable[[tuple[int, ...], bytes], bytes], Callable[[bytes, bytes], tuple[int, ...]]] = (
    lambda value, _: struct.pack(f"!{len(value)}H", *value),
    _unpack_types,
)

_ADDRESS_ERROR: tuple[Callable[[AddressError, bytes], bytes], Callable[[bytes, bytes], AddressError]] = (
    lambda value, _: bytes((value.family, 0, value.code // 100, value.code % 100)) + value.reason.encode(),
    _unpack_address_error,
)
_ICMP: tuple[Callable[[Icmp, bytes], bytes], Callable[[bytes, bytes], Icmp]] = (
    lambda value, _: struct.pack("!xxBBI", *value),
    lambda data, _: Icmp(*struct.unpack("!xxBBI", _exactly(data, 8))),
)

MAPPED_ADDRESS = _row(0x0001, "MAPPED-ADDRESS", _PLAIN)
USERNAME = _row(0x0006, "USERNAME", _TEXT)
MESSAGE_INTEGRITY = _row(0x0008, "MESSAGE-INTEGRITY", _opaque(20))
ERROR_CODE = _row(0x0009, "ERROR-CODE", _ERROR)
UNKNOWN_ATTRIBUTES = _row(0x000A, "UNKNOWN-ATTRIBUTES", _TYPES)
CHANNEL_NUMBER = _row(0x000C, "CHANNEL-NUMBER", _number(2, 2))
LIFETIME = _row(0x000D, "LIFETIME", _number(4))
XOR_PEER_ADDRESS = _row(0x0012, "XOR-PEER-ADDRESS", _XORED)
DATA = _row(0x0013, "DATA", _opaque())
REALM = _row(0x0014, "REALM", _TEXT)
NONCE = _row(0x0015, "NONCE", _opaque())
XOR_RELAYED_ADDRESS = _row(0x0016, "XOR-RELAYED-ADDRESS", _XORED)
REQUESTED_ADDRESS_FAMILY = _row(0x0017, "REQUESTED-ADDRESS-FAMILY", _number(1, 3))
EVEN_PORT = _row(0x0018, "EVEN-PORT", _number(1))
REQUESTED_TRANSPORT = _row(0x0019, "REQUESTED-TRANSPORT", _number(1, 3))
DONT_FRAGMENT = _row(0x001A, "DONT-FRAGMENT", _opaque(0))
XOR_MAPPED_ADDRESS = _row(0x0020, "XOR-MAPPED-ADDRESS", _XORED)
RESERVATION_TOKEN = _row(0x0022, "RESERVATION-TOKEN", _opaque(8))
PRIORITY = _row(0x0024, "PRIORITY", _number(4))
USE_CANDIDATE = _row(0x0025, "USE-CANDIDATE", _opaque(0))
ADDITIONAL_ADDRESS_FAMILY = _row(0x8000, "ADDITIONAL-ADDRESS-FAMILY", _number(1, 3))
ADDRESS_ERROR_CODE = _row(0x8001, "ADDRESS-ERROR-CODE", _ADDRESS_ERROR)
ICMP = _row(0x8004, "ICMP", _ICMP)
SOFTWARE = _row(0x8022, "SOFTWARE", _TEXT)
ALTERNATE_SERVER = _row(0x8023, "ALTERNATE-SERVER", _PLAIN)
FINGERPRINT = _row(0x8028, "FINGERPRINT", _number(4))
ICE_CONTROLLED = _row(0x8029, "ICE-CONTROLLED", _number(8))
ICE_CONTROLLING = _row(0x802A, "ICE-CONTROLLING", _number(8))
