"""Receiving audio: decoded frames placed by their RTP time, with the moment each one arrived.

Conceals nothing: a lost packet is a gap of silence. Delay is kept apart from content, because placing by pts would hide it.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from aiortc.mediastreams import MediaStreamError

SAMPLE_RATE = 48_000
BYTES_PER_SAMPLE = 4  # s16 interleaved stereo


class ReceivedFrame(NamedTuple):
    """One decoded frame; a tuple because it is kept per packet."""

    at_s: float  # the loop's clock when the frame was decoded and ready to play
    pts: int
    samples: int
    pcm: bytes


class AudioSink:
    """Collects what a remote audio track delivers."""

    def __init__(self) -> None:
        """An empty sink."""
        self.frames: list[ReceivedFrame] = []
        self._task: asyncio.Task[None] | None = None

    def start(self, track: Any) -> None:
        """Consume an aiortc track until it ends."""
        self._task = asyncio.create_task(self._consume(track))

    async def _consume(self, track: Any) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            pcm = bytes(frame.planes[0])[: frame.samples * BYTES_PER_SAMPLE]
            self.frames.append(ReceivedFrame(loop.time(), frame.pts, frame.samples, pcm))

    async def stop(self) -> None:
        """Stop consuming; what was collected stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

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
