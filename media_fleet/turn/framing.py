"""STUN and ChannelData over a byte stream: the way of TCP and TLS (RFC 8489 s6.2.2, RFC 8656 s12.5). It knows no socket.

Nothing marks where a message begins, so a stream that once carried something else can never be read again: the one error ends it.
"""

from __future__ import annotations

from media_fleet.stun import Malformed
from media_fleet.stun.attributes import COOKIE

LARGEST_MESSAGE = 65_552  # the longest STUN message there can be: 20 bytes of header, 16 bits of length in fours; ChannelData is shorter
_PADDING = (b"", b"\x00", b"\x00\x00", b"\x00\x00\x00")


def frame(datagram: bytes) -> bytes:
    """A message as it goes over a stream: ChannelData is padded to fours (RFC 8656 s12.5), STUN always is. A copy only where something is added."""
    return datagram + _PADDING[-len(datagram) & 3] if len(datagram) & 3 else datagram


class Deframer:
    """Cuts one stream into messages. It keeps one incomplete message at most, and of that what arrived.

    `largest` (bytes, padding included) may be raised at any time; a message that announces more is refused before it is kept.
    """

    __slots__ = ("_held", "largest")

    def __init__(self, largest: int = LARGEST_MESSAGE) -> None:
        self.largest = largest
        self._held = bytearray()

    @property
    def held(self) -> int:
        """How many bytes of an incomplete message wait for the rest."""
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that these bytes complete, as datagrams: ChannelData without its padding. Each is cut out of `data` once.

        Malformed when the stream is neither STUN nor ChannelData, or a message is larger than `largest`; what `data` completed before that is lost with it.
        """
        messages: list[bytes] = []
        largest, end = self.largest, len(data)
        at = self._complete(data, messages) if self._held else 0
        while at < end:
            if end - at > 3 and 0x40 <= data[at] <= 0x4F:  # ChannelData without a call: this runs once per relayed packet
                size = 4 + (data[at + 2] << 8 | data[at + 3])
                after = at + (size + 3 & 0x1FFFC)
                if after <= end and after - at <= largest:
                    messages.append(data[at : at + size])
                    at = after
                    continue
            span = self._span(data, at)
            if at + span > end:
                self._held += data[at:]
                break
            messages.append(data[at : at + span])
            at += span
        return messages

    def _complete(self, data: bytes, messages: list[bytes]) -> int:
        """Gives the held message what it lacks and no more; returns where the next one begins."""
        held, at = self._held, 0
        while at < len(data) and len(held) < (span := self._span(held, 0)):
            missing = span - len(held)
            held += data[at : at + missing]
            at += missing
        if len(held) >= self._span(held, 0):
            messages.append(bytes(held[: 4 + (held[2] << 8 | held[3])] if held[0] & 0x40 else held))
            held.clear()
        return min(at, len(data))

    def _span(self, data: bytes | bytearray, at: int) -> int:
        """How many bytes the message at `at` takes, padding included; while too few are here to tell, how many it takes to know more."""
        first, there = data[at], len(data) - at
        if first > 0x4F:  # RFC 8656 s12, table 3: 0x50 to 0xFF is reserved
            raise Malformed("The stream carries neither STUN nor ChannelData.")
        if there < 4:
            return 4
        length = data[at + 2] << 8 | data[at + 3]
        if first & 0x40:
            span = length + 7 & 0x1FFFC
        else:
            if length & 3 or not COOKIE.startswith(data[at + 4 : at + 8]):  # RFC 8489 s5
                raise Malformed("The stream carries neither STUN nor ChannelData.")
            span = length + 20
        if span > self.largest:
            raise Malformed("A message is too large.")
        return span if first & 0x40 or there >= 8 else 8
