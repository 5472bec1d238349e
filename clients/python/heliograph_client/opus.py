"""Opus encoding with live controls, and the track that sends what it makes.

Knows libopus (through cffi in ABI mode, so a variadic call is right on every platform) and pacing. aiortc sends an `av.Packet` unencoded and takes its pts as
RTP time (RFC 7587 4.2: 48 kHz clock), so bitrate, channels, frame duration, FEC and DTX change in the middle of a call without a click.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import av
from aiortc import MediaStreamTrack

SAMPLE_RATE = 48_000
CHANNELS = 2  # the encoder is always opened in stereo; OPUS_SET_FORCE_CHANNELS chooses what is coded
BYTES_PER_SAMPLE = 2 * CHANNELS
PTIMES_MS = (10, 20, 40, 60, 80, 100, 120)

_APPLICATION_AUDIO = 2049  # PESQ-WB of mono speech is 0.01 to 0.1 above OPUS_APPLICATION_VOIP from 12 to 48 kbit/s
_SET_BITRATE, _SET_DTX, _SET_FEC, _SET_LOSS, _SET_CHANNELS = 4002, 4016, 4012, 4014, 4022
_SET_MAX_BANDWIDTH, _WIDEBAND, _FULLBAND = 4004, 1103, 1105
# Left to itself libopus spends a low rate on a wider band, and stays there after a switch down: PESQ-WB of 16 kbit/s is 3.6 so, 4.25 in wideband.
_WIDEBAND_UP_TO_BPS = 24_000
_MAX_PACKET_BYTES = 4_000  # the size opus_encode(3) recommends
_MAX_FRAME_SAMPLES = 5_760  # 120 ms, the longest packet (RFC 6716 3.2)
_DEFINITIONS = """
typedef struct OpusEncoder OpusEncoder;
OpusEncoder *opus_encoder_create(int32_t fs, int channels, int application, int *error);
int opus_encoder_ctl(OpusEncoder *st, int request, ...);
int32_t opus_encode(OpusEncoder *st, const int16_t *pcm, int frame_size, unsigned char *data, int32_t max_data_bytes);
void opus_encoder_destroy(OpusEncoder *st);
typedef struct OpusDecoder OpusDecoder;
OpusDecoder *opus_decoder_create(int32_t fs, int channels, int *error);
int opus_decode(OpusDecoder *st, const unsigned char *data, int32_t length, int16_t *pcm, int frame_size, int decode_fec);
void opus_decoder_destroy(OpusDecoder *st);
"""


class OpusError(RuntimeError):
    """libopus is missing, or refused a call."""


@dataclass(frozen=True, slots=True)
class AudioProfile:
    """How speech is encoded: the `audio` object of a `rung` event."""

    bitrate_bps: int = 32_000
    channels: int = 1
    ptime_ms: int = 20
    fec: bool = False
    loss_percent: int = 0
    dtx: bool = False

    def __post_init__(self) -> None:
        """Refuse what libopus would refuse, before anything changed."""
        if not 6_000 <= self.bitrate_bps <= 510_000:
            raise ValueError(f"bitrate_bps must be 6000 to 510000, got {self.bitrate_bps}")
        if self.channels not in (1, 2):
            raise ValueError(f"channels must be 1 or 2, got {self.channels}")
        if self.ptime_ms not in PTIMES_MS:
            raise ValueError(f"ptime_ms must be one of {PTIMES_MS}, got {self.ptime_ms}")
        if not 0 <= self.loss_percent <= 100:
            raise ValueError(f"loss_percent must be 0 to 100, got {self.loss_percent}")

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> AudioProfile:
        """Read the `audio` object of a `rung` event; fields a newer server adds are ignored."""
        return cls(
            bitrate_bps=int(body["bitrate_bps"]),
            channels=int(body.get("channels", 1)),
            ptime_ms=int(body["ptime_ms"]),
            fec=bool(body.get("fec", False)),
            loss_percent=int(body.get("loss_percent", 0)),
            dtx=bool(body.get("dtx", False)),
        )

    def as_body(self) -> dict[str, Any]:
        """The same object as plain data."""
        return asdict(self)

    @property
    def samples(self) -> int:
        """Samples per channel in one packet."""
        return SAMPLE_RATE * self.ptime_ms // 1_000


def library_paths() -> list[str]:
    """Where libopus may be, best first: inside the PyAV wheel, then the system's."""
    package = Path(av.__file__).parent
    shipped = [
        *(package.parent / "av.libs").glob("libopus*.so*"),
        *(package / ".dylibs").glob("libopus*.dylib"),
        *(package.parent / "av.libs").glob("*opus*.dll"),
    ]
    system = {"darwin": ["libopus.0.dylib", "/opt/homebrew/lib/libopus.dylib", "/usr/local/lib/libopus.dylib"], "win32": ["opus.dll"]}.get(
        sys.platform, ["libopus.so.0"]
    )
    return [*map(str, sorted(shipped)), *system]


@lru_cache(maxsize=1)
def _library() -> tuple[Any, Any]:
    """cffi's ffi and the opened library."""
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(_DEFINITIONS)
    for path in library_paths():
        try:
            return ffi, ffi.dlopen(path)
        except OSError:
            continue
    raise OpusError("libopus was not found in the PyAV wheel nor on the system; install it, e.g. `apt-get install libopus0`")


class Encoder:
    """One libopus encoder: 48 kHz, s16 interleaved stereo in, Opus packets out."""

    def __init__(self, profile: AudioProfile) -> None:
        """Open the encoder with a profile."""
        self._ffi, self._lib = _library()
        error = self._ffi.new("int *")
        handle = self._lib.opus_encoder_create(SAMPLE_RATE, CHANNELS, _APPLICATION_AUDIO, error)
        if error[0] != 0:
            raise OpusError(f"opus_encoder_create answered {error[0]}")
        self._handle = self._ffi.gc(handle, self._lib.opus_encoder_destroy)
        self._packet = self._ffi.new("unsigned char[]", _MAX_PACKET_BYTES)
        self.apply(profile)

    def apply(self, profile: AudioProfile) -> None:
        """Use another profile from the next packet on."""
        self._control(_SET_CHANNELS, profile.channels)
        self._control(_SET_BITRATE, profile.bitrate_bps)
        self._control(_SET_FEC, int(profile.fec))
        self._control(_SET_LOSS, profile.loss_percent)
        self._control(_SET_DTX, int(profile.dtx))
        is_narrow = profile.bitrate_bps <= _WIDEBAND_UP_TO_BPS * profile.channels
        self._control(_SET_MAX_BANDWIDTH, _WIDEBAND if is_narrow else _FULLBAND)
        self.profile = profile

    def _control(self, request: int, value: int) -> None:
        result = self._lib.opus_encoder_ctl(self._handle, request, self._ffi.cast("int", value))
        if result != 0:
            raise OpusError(f"opus_encoder_ctl({request}, {value}) answered {result}")

    def encode(self, pcm: bytes) -> bytes:
        """One packet; 2 bytes or fewer mean silence that DTX need not send."""
        length = self._lib.opus_encode(self._handle, self._ffi.from_buffer("int16_t[]", pcm), len(pcm) // BYTES_PER_SAMPLE, self._packet, _MAX_PACKET_BYTES)
        if length < 0:
            raise OpusError(f"opus_encode answered {length}")
        return bytes(self._ffi.buffer(self._packet, length))


class Decoder:
    """One libopus decoder: Opus packets in, 48 kHz s16 interleaved stereo out."""

    def __init__(self) -> None:
        """Open the decoder."""
        self._ffi, self._lib = _library()
        error = self._ffi.new("int *")
        handle = self._lib.opus_decoder_create(SAMPLE_RATE, CHANNELS, error)
        if error[0] != 0:
            raise OpusError(f"opus_decoder_create answered {error[0]}")
        self._handle = self._ffi.gc(handle, self._lib.opus_decoder_destroy)
        self._pcm = self._ffi.new("int16_t[]", _MAX_FRAME_SAMPLES * CHANNELS)

    def decode(self, packet: bytes) -> bytes:
        """The packet's samples; raises OpusError when it is not an Opus packet."""
        samples = self._lib.opus_decode(self._handle, packet, len(packet), self._pcm, _MAX_FRAME_SAMPLES, 0)
        if samples < 0:
            raise OpusError(f"opus_decode answered {samples}")
        return bytes(self._ffi.buffer(self._pcm, samples * BYTES_PER_SAMPLE))


class Source(Protocol):
    """What is sent: anything that hands out PCM on request (a file, a microphone's ring buffer, a mixer)."""

    def read(self, samples: int) -> bytes:
        """The next `samples` samples, 48 kHz s16 interleaved stereo; shorter means silence for the rest."""
        ...


class Silence:
    """Nothing to say."""

    def read(self, samples: int) -> bytes:
        """No samples, ever."""
        return b""


class PcmSource:
    """PCM held in memory, played once."""

    def __init__(self, pcm: bytes, channels: int = 1) -> None:
        """`pcm` is 48 kHz s16 little-endian, mono or interleaved stereo."""
        if channels not in (1, 2):
            raise ValueError(f"channels must be 1 or 2, got {channels}")
        self._pcm = _to_stereo(pcm) if channels == 1 else pcm
        self._position = 0

    def read(self, samples: int) -> bytes:
        """The next samples; empty at the end."""
        end = self._position + samples * BYTES_PER_SAMPLE
        block = self._pcm[self._position : end]
        self._position = end
        return block


def _to_stereo(mono: bytes) -> bytes:
    """Each sample twice."""
    stereo = bytearray(2 * len(mono))
    for byte in range(4):
        stereo[byte::4] = mono[byte % 2 :: 2]
    return bytes(stereo)


class SentPacket(NamedTuple):
    """One packet as it was handed to RTP; a tuple because it is kept per packet."""

    at_s: float  # the loop's clock
    pts: int
    samples: int
    length_bytes: int


class OpusTrack(MediaStreamTrack):
    """A track of Opus packets, paced like a microphone: a packet leaves when its last sample would have been captured."""

    kind = "audio"

    def __init__(self, source: Source | None = None, profile: AudioProfile | None = None) -> None:
        """Send `source` (silence without one) with `profile`."""
        super().__init__()
        self.source: Source = source or Silence()
        self._encoder = Encoder(profile or AudioProfile())
        self._pts = 0
        self.started_at_s: float | None = None  # the loop's clock when sample 0 was captured
        self.sent: list[SentPacket] = []

    @property
    def profile(self) -> AudioProfile:
        """The profile in use."""
        return self._encoder.profile

    def next_capture_at_s(self) -> float:
        """When the first sample of the next packet is captured, on the loop's clock: what a source put in now is said from then on."""
        started_at_s = asyncio.get_running_loop().time() if self.started_at_s is None else self.started_at_s
        return started_at_s + self._pts / SAMPLE_RATE

    def apply(self, profile: AudioProfile) -> None:
        """Use another profile from the next packet on, within one frame duration."""
        self._encoder.apply(profile)

    async def recv(self) -> av.Packet[Any]:
        """The next packet; waits until it is due. Packets that DTX leaves out only advance pts."""
        while True:
            pts, data = await self._next()
            if not (self.profile.dtx and len(data) <= 2):
                self.sent.append(SentPacket(asyncio.get_running_loop().time(), pts, self._pts - pts, len(data)))
                packet = av.Packet(data)
                packet.pts = pts
                packet.time_base = Fraction(1, SAMPLE_RATE)
                return packet

    async def _next(self) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        if self.started_at_s is None:
            self.started_at_s = loop.time()
        samples, pts = self.profile.samples, self._pts
        await asyncio.sleep(self.started_at_s + (pts + samples) / SAMPLE_RATE - loop.time())
        data = self._encoder.encode(self.source.read(samples).ljust(samples * BYTES_PER_SAMPLE, b"\0"))
        self._pts = pts + samples
        return pts, data
