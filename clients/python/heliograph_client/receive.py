"""Receiving audio: packets put in order, decoded, placed by their RTP time, each with the moment it would be heard.

aiortc's own audio path holds four packets back and grows by every lost one until sixteen are held; here a packet waits only for a
missing one before it, and at most `REORDER_S`. Conceals nothing: a lost packet is a gap of silence.
Delay is kept apart from content, because placing by pts would hide it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .opus import BYTES_PER_SAMPLE, SAMPLE_RATE, Decoder, OpusError

REORDER_S = 0.06
JITTER_WINDOW_S = 2.0
_MAX_WAITING = 64
_LOG = logging.getLogger("heliograph_client")


class ReceivedFrame(NamedTuple):
    """One decoded packet; a tuple because it is kept per packet."""

    at_s: float  # when its first sample is heard, on the loop's clock: behind the jitter of the last two seconds
    pts: int
    samples: int
    pcm: bytes


class Packet(NamedTuple):
    """What is needed of an RTP packet."""

    sequence_number: int  # 16 bits
    timestamp: int  # 32 bits, 48 kHz
    payload: bytes


@dataclass(slots=True)
class Reorder:
    """Puts packets in order: late ones are dropped, missing ones waited for `REORDER_S`. Pure; time is an argument."""

    lost: int = 0
    late: int = 0
    _next: int | None = None
    _waiting: dict[int, tuple[float, Packet]] = field(default_factory=dict)

    def put(self, packet: Packet, now_s: float) -> list[Packet]:
        """Take a packet; answers those that may be decoded now, in order."""
        if self._next is None:
            self._next = packet.sequence_number
        if _ahead(packet.sequence_number, self._next) >= 0x8000:
            self.late += 1
            return []
        self._waiting.setdefault(packet.sequence_number, (now_s, packet))
        return self.release(now_s)

    def release(self, now_s: float) -> list[Packet]:
        """Those that may be decoded now: the next in line, and whatever stands behind a gap that was waited for long enough."""
        ready: list[Packet] = []
        while self._waiting and self._next is not None:
            if self._next not in self._waiting:
                if now_s < self._waited_until() and len(self._waiting) < _MAX_WAITING:
                    break
                following = min(self._waiting, key=lambda number: _ahead(number, self._next or 0))
                self.lost += _ahead(following, self._next)
                self._next = following
            ready.append(self._waiting.pop(self._next)[1])
            self._next = self._next + 1 & 0xFFFF
        return ready

    def next_deadline(self) -> float | None:
        """When `release` has something to give up waiting for."""
        return self._waited_until() if self._waiting else None

    def _waited_until(self) -> float:
        return min(arrived_s for arrived_s, _ in self._waiting.values()) + REORDER_S


def _ahead(number: int, of: int) -> int:
    """How far a 16-bit number is ahead of another; 0x8000 and more means behind (RFC 1982)."""
    return number - of & 0xFFFF


@dataclass(slots=True)
class Playout:
    """When a packet is heard: as late as the slowest of the last `JITTER_WINDOW_S` seconds, so that those after it do not stutter. Pure."""

    _transits: deque[tuple[float, float]] = field(default_factory=deque)

    def at_s(self, pts: int, arrived_s: float) -> float:
        """The moment the packet's first sample is heard."""
        transit_s = arrived_s - pts / SAMPLE_RATE
        while self._transits and self._transits[0][0] < arrived_s - JITTER_WINDOW_S:
            self._transits.popleft()
        while self._transits and self._transits[-1][1] <= transit_s:
            self._transits.pop()
        self._transits.append((arrived_s, transit_s))
        return pts / SAMPLE_RATE + self._transits[0][1]


class AudioSink:
    """Collects what a remote audio track delivers."""

    def __init__(self) -> None:
        """An empty sink."""
        self.frames: list[ReceivedFrame] = []
        self.reorder = Reorder()
        self._playout = Playout()
        self._decoder = Decoder()
        self._origin: int | None = None
        self._last = 0
        self._timer: asyncio.TimerHandle | None = None

    def attach(self, receiver: Any) -> None:
        """Take over the packets of an aiortc receiver; it goes on counting and reporting them."""
        receiver._RTCRtpReceiver__jitter_buffer = _Tap(self)  # aiortc has no public door for encoded packets

    def receive(self, packet: Packet, now_s: float) -> None:
        """An RTP packet arrived."""
        self._decode(self.reorder.put(packet, now_s), now_s)

    def _expire(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._decode(self.reorder.release(now_s), now_s)

    def _decode(self, packets: list[Packet], now_s: float) -> None:
        for packet in packets:
            try:
                pcm = self._decoder.decode(packet.payload)
            except OpusError as error:
                _LOG.warning("A packet could not be decoded: %s", error)
                continue
            pts = self._unwrapped(packet.timestamp)
            self.frames.append(ReceivedFrame(self._playout.at_s(pts, now_s), pts, len(pcm) // BYTES_PER_SAMPLE, pcm))
        self._schedule()

    def _unwrapped(self, timestamp: int) -> int:
        """RTP time since the first packet, beyond 32 bits."""
        if self._origin is None:
            self._origin = timestamp
        step = (timestamp - self._origin - self._last + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
        self._last += step
        return self._last

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline_s = self.reorder.next_deadline()
        if deadline_s is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline_s, self._expire)

    def stop(self) -> None:
        """Stop waiting for anything; what was collected stays."""
        if self._timer is not None:
            self._timer.cancel()

    def pcm(self, first: int = 0, last: int | None = None) -> bytes:
        """Frames `first` to `last` of `frames` placed by pts from the first one on: 48 kHz s16 interleaved stereo; gaps are silence."""
        frames = self.frames[first:last]
        if not frames:
            return b""
        origin = frames[0].pts
        buffer = bytearray(max(frame.pts - origin + frame.samples for frame in frames) * BYTES_PER_SAMPLE)
        for frame in frames:
            start = (frame.pts - origin) * BYTES_PER_SAMPLE
            if start >= 0:
                buffer[start : start + len(frame.pcm)] = frame.pcm
        return bytes(buffer)


class _Tap:
    """Stands where aiortc's jitter buffer stood, and never has a frame for aiortc's decoder."""

    def __init__(self, sink: AudioSink) -> None:
        self._sink = sink

    def add(self, packet: Any) -> tuple[bool, None]:
        self._sink.receive(Packet(packet.sequence_number, packet.timestamp, packet._data), asyncio.get_running_loop().time())
        return False, None
