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
from heliograph_client.receive import REORDER_S, AudioSink, Packet, Playout, ReceivedFrame, Reorder
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


def numbered(*numbers: int) -> list[Packet]:
    return [Packet(number & 0xFFFF, number * 960, b"") for number in numbers]


def test_packets_that_overtook_each_other_are_put_in_order_without_waiting() -> None:
    reorder = Reorder()
    released = [[packet.sequence_number for packet in reorder.put(packet, 0.0)] for packet in numbered(65_534, 65_536, 65_535, 65_537)]
    assert released == [[65_534], [], [65_535, 0], [1]]
    assert (reorder.lost, reorder.late) == (0, 0)


def test_a_missing_packet_is_waited_for_only_so_long_and_then_late() -> None:
    reorder = Reorder()
    one, two, three, four = numbered(1, 2, 3, 4)
    assert reorder.put(one, 0.0) == [one]
    assert reorder.next_deadline() is None
    assert reorder.put(three, 0.02) == []
    assert reorder.next_deadline() == 0.02 + REORDER_S
    assert reorder.release(0.02 + REORDER_S / 2) == []
    assert reorder.put(four, 0.02 + REORDER_S) == [three, four]
    assert reorder.put(two, 0.1) == []
    assert (reorder.lost, reorder.late) == (1, 1)


def test_many_losses_do_not_make_what_follows_wait_longer() -> None:
    reorder, delays = Reorder(), []
    for number in range(0, 1_000, 2):
        now_s = number * 0.02
        reorder.put(numbered(number)[0], now_s)
        deadline_s = reorder.next_deadline()
        delays.append(0.0 if deadline_s is None else deadline_s - now_s)
    assert max(delays) == pytest.approx(REORDER_S)


def test_a_packet_is_heard_behind_the_slowest_of_the_last_two_seconds() -> None:
    playout = Playout()
    delays_s = [0.01] * 10 + [0.2] + [0.01] * 200
    heard = [playout.at_s(number * 960, number * 0.02 + delay_s) - number * 0.02 for number, delay_s in enumerate(delays_s)]
    assert heard[9] == pytest.approx(0.01)
    assert [heard[10], heard[11], heard[60]] == pytest.approx([0.2] * 3)
    assert heard[-1] == pytest.approx(0.01)


def test_rtp_time_goes_on_beyond_its_32_bits() -> None:
    sink, encoder = AudioSink(), Encoder(AudioProfile())
    for number in range(4):
        sink.receive(Packet(65_534 + number & 0xFFFF, (1 << 32) - 1_920 + number * 960 & 0xFFFFFFFF, encoder.encode(NOISE[: 960 * 4])), number * 0.02)
    assert [frame.pts for frame in sink.frames] == [0, 960, 1_920, 2_880]
    assert {frame.samples for frame in sink.frames} == {960}


def test_a_packet_that_is_not_opus_is_skipped() -> None:
    sink = AudioSink()
    sink.receive(Packet(1, 0, b"\xff" * 3), 0.0)
    assert sink.frames == []


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
