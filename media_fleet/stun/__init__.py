"""STUN messages (RFC 8489) with TURN's attributes (RFC 8656): parse, serialise, sign, verify. No sockets, no clock, no randomness."""

from media_fleet.stun.attributes import Address, AddressError, Attribute, ErrorCode, Icmp, Malformed
from media_fleet.stun.message import Class, Message, Method, parse

__all__ = ["Address", "AddressError", "Attribute", "Class", "ErrorCode", "Icmp", "Malformed", "Message", "Method", "parse"]
