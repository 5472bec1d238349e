"""Human speech to send, and meters for what came out: PESQ-WB (ITU-T P.862.2) and mouth-to-ear delay.

Scores and delay are two meters on purpose: frames are placed by RTP time before scoring, which hides delay. Knows nothing of calls or of the network.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 48_000
METER_RATE = 16_000
ALSA_FOLDER = Path("/usr/share/sounds/alsa")  # human speech, GPL-2, from the Debian package alsa-utils
ALSA_CLIPS = ("Front_Left", "Side_Right", "Rear_Left", "Front_Right", "Side_Left", "Rear_Right", "Front_Center", "Rear_Center")
ESPEAK_TEXTS = (
    "The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background. These days a chicken leg is a rare dish. "
    "Rice is often served in round bowls.",
    "Four hours of steady work faced us. A large size in stockings is hard to sell. The boy was there when the sun rose. A rod is used to catch pink salmon.",
)
MISSING = "No speech to send: install alsa-utils (apt-get install alsa-utils) or espeak-ng (apt-get install espeak-ng; brew install espeak-ng)."
SILENCE_SCORE = 1.0  # P.862.2 cannot score a signal without speech; the scale's lower end stands for it
_LEAST_SPEECH_S = 6.0

Samples = npt.NDArray[np.float64]


class NoSpeechError(RuntimeError):
    """Nothing on this machine can speak."""


@cache
def speech(voice: int = 0) -> Samples:
    """At least 6 s of speech, mono 48 kHz within ±0.95, read-only; `voice` 0 and 1 are different recordings or texts. Raises NoSpeechError."""
    for find in (_alsa_speech, _espeak_speech, _espeakng_loader_speech):
        found = find(voice % 2)
        if found is not None and len(found) >= _LEAST_SPEECH_S * SAMPLE_RATE:
            scaled = found * min(1.0, 0.95 / float(np.max(np.abs(found))))
            scaled.setflags(write=False)
            return scaled
    raise NoSpeechError(MISSING)


def _alsa_speech(voice: int) -> Samples | None:
    names = ALSA_CLIPS if voice == 0 else ALSA_CLIPS[::-1]
    paths = [ALSA_FOLDER / f"{name}.wav" for name in names[:5]]
    if not all(path.exists() for path in paths):
        return None
    return np.concatenate([read_wave(path) for path in paths])


def _espeak_speech(voice: int) -> Samples | None:
    program = shutil.which("espeak-ng")
    if program is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run([program, "-w", str(path), ESPEAK_TEXTS[voice]], check=True)
        return read_wave(path)


def _espeakng_loader_speech(voice: int) -> Samples | None:
    """The library of espeakng-loader (PyPI), when it is installed: the same synthesiser without its command."""
    try:
        loader = importlib.import_module("espeakng_loader")
    except ImportError:
        return None
    import ctypes

    library = ctypes.CDLL(str(loader.get_library_path()))
    heard: list[bytes] = []
    listener_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def listen(samples: Any, count: int, _events: Any) -> int:
        if samples:
            heard.append(ctypes.string_at(samples, 2 * count))
        return 0

    listener = listener_type(listen)
    rate = library.espeak_Initialize(2, 0, str(loader.get_data_path()).encode(), 0)  # 2 = AUDIO_OUTPUT_SYNCHRONOUS
    if rate <= 0:
        return None
    library.espeak_SetSynthCallback(listener)
    text = ESPEAK_TEXTS[voice].encode()
    library.espeak_SetVoiceByName(b"en")
    library.espeak_Synth(text, len(text) + 1, 0, 1, 0, 1, None, None)  # 1 = POS_CHARACTER, 1 = espeakCHARS_UTF8
    library.espeak_Synchronize()
    return to_rate(np.frombuffer(b"".join(heard), np.int16) / 32_768, rate, SAMPLE_RATE)


def read_wave(path: Path) -> Samples:
    """A 16-bit wave file as mono 48 kHz."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, file.getnchannels())[:, 0] / 32_768
        return to_rate(samples, file.getframerate(), SAMPLE_RATE)


def to_rate(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """Resample by a polyphase filter."""
    from scipy.signal import resample_poly

    if from_hz == to_hz:
        return samples
    divisor = np.gcd(from_hz, to_hz)
    resampled: Samples = resample_poly(samples, to_hz // divisor, from_hz // divisor)
    return resampled


def joined(*parts: npt.ArrayLike) -> Samples:
    """One after the other."""
    return np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])


def to_pcm(samples: Samples) -> bytes:
    """s16 little-endian, mono."""
    return (np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes()


def from_pcm(pcm: bytes, channels: int = 2) -> Samples:
    """The left channel of s16 interleaved PCM."""
    left: Samples = np.frombuffer(pcm, "<i2").reshape(-1, channels)[:, 0] / 32_768
    return left


def lag_samples(reference: Samples, received: Samples) -> int:
    """Where `reference` begins in `received`, by the strongest absolute cross-correlation (a path may invert polarity)."""
    from scipy.signal import correlate

    return int(np.argmax(np.abs(correlate(received, reference, mode="full", method="fft")))) - (len(reference) - 1)


def score(reference_48k: Samples, received_48k: Samples) -> float:
    """PESQ-WB from 1.0 to 4.64 of `received_48k` (which may begin earlier and end later) against `reference_48k`; silence scores 1.0."""
    if not np.any(np.abs(received_48k) > 1e-4):
        return SILENCE_SCORE
    reference = to_rate(reference_48k, SAMPLE_RATE, METER_RATE)
    received = to_rate(received_48k, SAMPLE_RATE, METER_RATE)
    from pesq import NoUtterancesError, pesq

    lag = lag_samples(reference, received)
    heard = np.zeros(len(reference))
    start, end = max(0, lag), min(len(received), lag + len(reference))
    heard[start - lag : end - lag] = received[start:end]
    try:
        return float(pesq(METER_RATE, reference, heard, "wb"))
    except NoUtterancesError:
        return SILENCE_SCORE


def latency_ms(reference_48k: Samples, received_48k: Samples, captured_at_s: float, arrivals: Iterable[tuple[int, float]]) -> float:
    """Median mouth-to-ear delay: from the capture of a sample to the moment its frame was ready to play.

    `captured_at_s` is when sample 0 of the reference was captured, `arrivals` are (index in `received_48k` of a frame's first sample, moment);
    all on one clock.
    """
    lag = lag_samples(reference_48k, received_48k)
    delays = [at_s - (captured_at_s + (index - lag) / SAMPLE_RATE) for index, at_s in arrivals]
    return float(np.median(delays) * 1_000)
