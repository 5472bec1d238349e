"""Counts the RTP packets of a call between two Python clients: each that left, by its sequence number, and each that came."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from heliograph_client.call import Call


class Counted:
    """What one side said and the other heard, from now on; both are connected. Sequence numbers must not run over, which takes 65,536 packets."""

    def __init__(self, talker: Call, listener: Call) -> None:
        self.said: list[int] = []
        self.heard: list[int] = []
        self.at_s: list[float] = []
        self._listener = listener
        ice: Any = talker._paths._ice
        self._send, self._receive = ice._send, listener.sink.receive
        ice._send, listener.sink.receive = self._say, self._hear  # type: ignore[method-assign]

    async def _say(self, data: bytes) -> None:
        if data[0] >> 6 == 2 and not 192 <= data[1] <= 223:  # RTP, and not RTCP (RFC 5761 s4); its header is in the clear
            self.said.append(int.from_bytes(data[2:4], "big"))
        await self._send(data)

    def _hear(self, packet: Any, now_s: float) -> None:
        self.heard.append(packet.sequence_number)
        self.at_s.append(now_s)
        self._receive(packet, now_s)

    @property
    def longest_gap_s(self) -> float:
        """Between two packets that came one after the other."""
        return max((after - before for before, after in zip(self.at_s, self.at_s[1:], strict=False)), default=0.0)

    async def all_came(self, timeout_s: float = 10.0) -> list[int]:
        """Which of the packets that were said until now did not come, after those in flight had their time."""
        said = list(self.said)
        for _ in range(int(timeout_s / 0.05)):
            if not (missing := {*said} - {*self.heard}):
                break
            await asyncio.sleep(0.05)
        return sorted(missing)


class Conversation:
    """Both directions of a call."""

    def __init__(self, ana: Call, ben: Call) -> None:
        self.ways = [Counted(ana, ben), Counted(ben, ana)]

    async def missing(self) -> list[list[int]]:
        """Of each direction the packets that did not come, and those that came too late to be played."""
        assert all(way.said for way in self.ways), "nobody spoke"
        return [[*await way.all_came(), *[0] * way._listener.sink.reorder.late] for way in self.ways]

    @property
    def longest_gap_s(self) -> float:
        """The longest silence on the wire that anybody had."""
        return max(way.longest_gap_s for way in self.ways)

    def counts(self) -> Sequence[tuple[int, int]]:
        """(said, heard) of each direction."""
        return [(len(way.said), len({*way.heard} & {*way.said})) for way in self.ways]
