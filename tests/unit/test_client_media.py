"""The client's media parts without a network: Opus profiles, placing by pts, the path meter, ids, the link's arithmetic."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from heliograph.ids import new_id
from heliograph_client.ids import uuid7_hex
from heliograph_client.opus import AudioProfile, Encoder, PcmSource
from heliograph_client.path import PathMeter, Sample
from heliograph_client.receive import AudioSink, ReceivedFrame
from local.shaped_link import HEADER_BYTES, Direction, Shape

NOISE = random.Random(1).randbytes(4 * 48_000)


def kbps(encoder: Encoder) -> float:
    samples = encoder.profile.samples
    packets = [encoder.encode(NOISE[start : start + samples * 4]) for start in range(0, len(NOISE) - samples * 4, samples * 4)]
    return sum(map(len, packets)) * 8 / (len(packets) * encoder.profile.ptime_ms)


def test_a_live_encoder_follows_each_new_bitrate() -> None:
    encoder = Encoder(AudioProfile(64_000, 2, 20))
    for profile in (AudioProfile(64_000, 2, 20), AudioProfile(24_000, 1, 60), AudioProfile(12_000, 1, 120), AudioProfile(32_000, 1, 20)):
        encoder.apply(profile)
        assert kbps(encoder) == pytest.approx(profile.bitrate_bps / 1_000, rel=0.25)


def test_dtx_marks_silence_as_not_worth_sending() -> None:
    encoder = Encoder(AudioProfile(24_000, 1, 60, dtx=True))
    lengths = [len(encoder.encode(bytes(encoder.profile.samples * 4))) for _ in range(30)]
    assert min(lengths) <= 2


def test_an_impossible_profile_is_refused_and_changes_nothing() -> None:
    encoder = Encoder(AudioProfile())
    good = encoder.profile.as_body()
    for name, value in {"bitrate_bps": 1, "channels": 3, "ptime_ms": 21, "loss_percent": 101}.items():
        with pytest.raises(ValueError, match=name):
            encoder.apply(AudioProfile.parse(good | {name: value}))
    assert encoder.profile == AudioProfile()


def test_a_rung_of_a_newer_server_is_read_by_the_fields_known() -> None:
    profile = AudioProfile.parse({"bitrate_bps": 12000, "channels": 1, "ptime_ms": 60, "fec": False, "loss_percent": 0, "dtx": True, "red": 1})
    assert profile == AudioProfile(12_000, 1, 60, dtx=True)


def test_mono_speaks_on_both_channels_and_then_falls_silent() -> None:
    source = PcmSource(b"\x01\x02\x03\x04", channels=1)
    assert source.read(1) == b"\x01\x02\x01\x02"
    assert source.read(5) == b"\x03\x04\x03\x04"
    assert source.read(5) == b""


def test_frames_stand_where_their_pts_says_and_gaps_are_silence() -> None:
    sink = AudioSink()
    first, late, early, before_the_first = (100, b"aaaabbbb"), (104, b"dddd"), (103, b"cccc"), (90, b"xxxx")
    sink.frames = [ReceivedFrame(0.0, pts, len(pcm) // 4, pcm) for pts, pcm in (first, late, early, before_the_first)]
    assert sink.pcm() == b"aaaabbbb\0\0\0\0ccccdddd"


def test_the_client_makes_the_ids_the_server_makes() -> None:
    number = int.from_bytes(bytes(range(10)), "big")
    made = new_id("msg", 1_735_689_600_000, bytes(range(10)))
    at_ms, rand_a, rand_b = made[4:16], number >> 64 & 0xFFF, number & (1 << 62) - 1
    assert uuid7_hex(int(at_ms, 16), rand_a << 62 | rand_b) == made[4:]


def sample(second: float, *, lost: int, rtt_s: float = 0.05) -> Sample:
    sent = round(second * 50)
    return Sample(second, sent, sent * 80, packets_lost=lost, packets_reported=sent, rtt_average_s=rtt_s, jitter_s=0.001)


def test_a_clean_path_claims_no_limit() -> None:
    meter = PathMeter()
    reports = [meter.report(sample(second, lost=0)) for second in range(1, 6)]
    assert all("available_bps" not in report for report in reports)
    assert reports[-1]["loss"] == 0
    assert reports[-1]["sent_bps"] == (80 + 58) * 8 * 50


def test_a_lossy_path_is_good_for_what_it_delivered() -> None:
    meter = PathMeter()
    for second in range(1, 4):
        meter.report(sample(second, lost=0))
    for second in range(4, 8):
        report = meter.report(sample(second, lost=25 * (second - 3)))
    assert report["loss"] == 0.5
    assert report["available_bps"] == pytest.approx(0.5 * (80 + 58) * 8 * 50, rel=0.01)


def test_a_growing_round_trip_is_a_queue() -> None:
    meter = PathMeter()
    meter.report(sample(1, lost=0, rtt_s=0.05))
    report = meter.report(sample(2, lost=0, rtt_s=0.85 * 0.05 + 0.15 * 0.35))
    assert report["queue_ms"] == pytest.approx(300)
    assert "available_bps" in report


def test_losses_of_the_old_rate_are_not_held_against_the_new_one() -> None:
    meter = PathMeter()
    for second in range(1, 4):
        meter.report(sample(second, lost=25 * second))
    meter.restart(packets_sent=160)
    assert meter.report(sample(3.1, lost=80)) == {"has_video": False}
    meter.report(sample(4, lost=100))
    assert meter.report(sample(5, lost=100))["loss"] == 0


def test_a_link_serialises_then_queues_then_drops() -> None:
    direction = Direction(Shape(rate_bps=8_000, queue_ms=300, delay_ms=10), random.Random(1))
    size = 200 - HEADER_BYTES  # 200 ms on this link
    assert direction.admit(size, 0.0) == pytest.approx(0.21)
    assert direction.admit(size, 0.0) == pytest.approx(0.41)
    assert direction.admit(size, 0.0) is None
    assert direction.admit(size, 0.2) == pytest.approx(0.61)
    assert (direction.counters.datagrams, direction.counters.dropped) == (3, 1)


def test_a_link_without_a_rate_only_delays() -> None:
    direction = Direction(Shape(delay_ms=10), random.Random(1))
    assert [direction.admit(1_000, 1.0) for _ in range(3)] == [pytest.approx(1.01)] * 3


def test_losses_follow_their_share() -> None:
    direction = Direction(Shape(loss=0.2), random.Random(1))
    assert sum(direction.admit(100, 0.0) is None for _ in range(2_000)) == pytest.approx(400, rel=0.15)


def test_the_client_imports_aiortc_only_when_somebody_calls() -> None:
    program = "import sys, heliograph_client; print([name for name in ('aiortc', 'av', 'cffi', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
