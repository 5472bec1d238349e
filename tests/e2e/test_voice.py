"""Human speech through real calls between two Python peers, scored; the peers signal in memory, everything else is the real thing."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heliograph_client.call import Call, CallFailedError
from heliograph_client.opus import SAMPLE_RATE, AudioProfile, Decoder, Encoder, PcmSource
from local import voice
from local.shaped_link import ShapedLink

LEAD_S, SPEECH_S, TAIL_S = 0.3, 5.0, 0.6
BEN, ANA = {"account_id": "acc_ben", "device_id": "dev_ben"}, {"account_id": "acc_ana", "device_id": "dev_ana"}


class Wire:
    """Signaling in memory: what one side requests is what the other handles, in order."""

    def __init__(self, sender: Mapping[str, str]) -> None:
        self._sender = dict(sender)
        self._frames: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def request(self, action: str, room_id: str | None = None, body: Mapping[str, Any] | None = None, *, trace_id: str | None = None) -> None:
        self._frames.put_nowait((action, {**(body or {}), "from": self._sender}))

    async def deliver(self, call: Call) -> None:
        while True:
            action, body = await self._frames.get()
            if action == "offer":
                await call.answer(body)
            else:
                await call.handle(action, body)


class TricklingWire(Wire):
    """As a browser signals: descriptions without candidates, then one frame for each, then the end."""

    async def request(self, action: str, room_id: str | None = None, body: Mapping[str, Any] | None = None, *, trace_id: str | None = None) -> None:
        body = dict(body or {})
        lines = body.get("sdp", "").splitlines()
        trickled = [line[2:] for line in lines if line.startswith("a=candidate:")]
        if trickled:
            body["sdp"] = "".join(f"{line}\r\n" for line in lines if not line.startswith(("a=candidate:", "a=end-of-candidates")))
        await super().request(action, room_id, body)
        for candidate in [*trickled, ""] if trickled else []:
            await super().request("candidate", room_id, {"candidate": candidate, "sdp_mid": "0", "sdp_m_line_index": 0})


@contextlib.asynccontextmanager
async def talking(*, wire: type[Wire] = Wire, **options: Any) -> AsyncIterator[tuple[Call, Call]]:
    """Two connected calls; options for one side alone are prefixed ana_ or ben_."""
    shared = {name: value for name, value in options.items() if not name.startswith(("ana_", "ben_"))}
    own = {side: {name[4:]: value for name, value in options.items() if name.startswith(side)} for side in ("ana_", "ben_")}
    wires = wire(ANA), wire(BEN)
    ana = Call(wires[0], "room_1", BEN, report_every_s=None, **shared, **own["ana_"])
    ben = Call(wires[1], "room_1", ANA, call_id=ana.call_id, report_every_s=None, **shared, **own["ben_"])
    deliveries = [asyncio.create_task(wires[0].deliver(ben)), asyncio.create_task(wires[1].deliver(ana))]
    try:
        await ana.offer()
        await asyncio.gather(ana.connected(), ben.connected())
        yield ana, ben
        await ana.hangup()
        assert await asyncio.wait_for(ben.ended(), 30) == "hangup"
    finally:
        for task in deliveries:
            task.cancel()


def speech() -> voice.Samples:
    return voice.speech(0)[: int(SPEECH_S * SAMPLE_RATE)]


async def say(talker: Call, listener: Call) -> tuple[float, float]:
    """PESQ-WB and mouth-to-ear milliseconds of one speech."""
    first = len(listener.sink.frames)
    talker.track.source = PcmSource(voice.to_pcm(voice.joined(np.zeros(int(LEAD_S * SAMPLE_RATE)), speech())))
    captured_at_s = talker.track.next_capture_at_s() + LEAD_S
    await asyncio.sleep(LEAD_S + SPEECH_S + TAIL_S)
    frames = listener.sink.frames[first:]
    received = voice.from_pcm(listener.sink.pcm(first))
    arrivals = [(frame.pts - frames[0].pts, frame.at_s) for frame in frames]
    return voice.score(speech(), received), voice.latency_ms(speech(), received, captured_at_s, arrivals)


@pytest.fixture
async def turn_port(tmp_path: Path) -> AsyncIterator[int]:
    """An independent TURN server."""
    program = shutil.which("turnserver")
    if program is None:
        pytest.skip("needs coturn: apt-get install coturn")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fixed = "-n --listening-ip=127.0.0.1 --relay-ip=127.0.0.1 --lt-cred-mech -u u:p -r r --allow-loopback-peers --no-cli --no-tls --no-dtls"
    process = await asyncio.create_subprocess_exec(
        *(program, *fixed.split(), "-p", str(port), "--min-port", "50000", "--max-port", "52000"),
        *("--pidfile", str(tmp_path / "pid"), "--log-file", str(tmp_path / "log")),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await asyncio.sleep(1)
    yield port
    process.terminate()
    await process.wait()


def turn(port: int) -> list[dict[str, Any]]:
    return [{"urls": [f"turn:127.0.0.1:{port}?transport=udp"], "username": "u", "credential": "p"}]


def test_the_meter_knows_perfect_speech_from_other_speech_and_from_silence() -> None:
    reference, other = voice.speech(0), voice.speech(1)
    assert len(reference) >= 6 * SAMPLE_RATE
    assert voice.score(reference, reference) > 4.5
    assert voice.score(reference, voice.joined(np.zeros(30_000), -reference)) > 4.5, "late and inverted is still perfect"
    assert voice.score(reference, other) < 2
    assert voice.score(reference, np.zeros(len(reference))) < 2
    assert voice.score(reference, np.zeros(0)) < 2


@pytest.fixture
def no_recordings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine without the clips of alsa-utils."""
    monkeypatch.setattr(voice, "ALSA_FOLDER", tmp_path)
    voice.speech.cache_clear()
    yield
    voice.speech.cache_clear()


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng: apt-get install espeak-ng")
def test_without_recordings_a_synthesiser_speaks(no_recordings: None) -> None:
    first, second = voice.speech(0), voice.speech(1)
    assert min(len(first), len(second)) >= 6 * SAMPLE_RATE
    assert voice.score(first, first) > 4.5
    assert voice.score(first, second) < 2


def test_without_any_speech_one_sentence_names_the_command(no_recordings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    if importlib.util.find_spec("espeakng_loader") is None:
        with pytest.raises(voice.NoSpeechError, match="apt-get install alsa-utils"):
            voice.speech(0)


def test_the_delay_meter_reads_a_known_delay() -> None:
    reference = voice.speech(0)
    received = voice.joined(np.zeros(4_800), reference)
    arrivals = [(index, 10.0 + index / SAMPLE_RATE) for index in range(0, len(received), 960)]
    assert voice.latency_ms(reference, received, 10.0, arrivals) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize(("bitrate_bps", "least"), [(24_000, 4.2), (16_000, 3.9), (12_000, 3.4)])
def test_an_encoder_that_comes_down_live_is_as_good_as_one_opened_low(bitrate_bps: int, least: float) -> None:
    encoder, decoder, source = Encoder(AudioProfile(32_000)), Decoder(), PcmSource(voice.to_pcm(voice.joined(speech(), speech())))
    heard = bytearray()
    for packet in range(int(2 * SPEECH_S * 50)):
        if packet == int(SPEECH_S * 50):
            encoder.apply(AudioProfile(bitrate_bps))
            heard.clear()
        heard += decoder.decode(encoder.encode(source.read(960)))
    assert voice.score(speech(), voice.from_pcm(bytes(heard))) >= least


async def test_speech_survives_a_direct_call() -> None:
    async with talking(ice_policy="all") as (ana, ben):
        pesq_wb, delay_ms = await say(ana, ben)
        assert ana.selected_path() == {"local": "host", "remote": "host", "protocol": "udp"}
        stats = await ana.stats()
    assert pesq_wb >= 4.2
    assert delay_ms < 250
    assert "available_bps" not in stats


async def test_candidates_that_trickle_in_connect_a_call() -> None:
    async with talking(wire=TricklingWire, ice_policy="all") as (ana, ben):
        assert ana.selected_path() == {"local": "host", "remote": "host", "protocol": "udp"}
        assert ben.selected_path() is not None


async def test_speech_survives_the_relay_and_a_narrow_link_after_a_rung_change(turn_port: int) -> None:
    async with ShapedLink(("127.0.0.1", turn_port)) as link:
        profile = AudioProfile(64_000, 2, 20)
        async with talking(ice_policy="relay", ana_ice_servers=turn(link.address[1]), ben_ice_servers=turn(turn_port), ana_profile=profile) as (ana, ben):
            pesq_wb, delay_ms = await say(ana, ben)
            assert ana.selected_path() == {"local": "relay", "remote": "relay", "protocol": "udp"}
            assert pesq_wb >= 4.2
            assert delay_ms < 250
            assert link.up.counters.length_bytes > sum(packet.length_bytes for packet in ana.track.sent) > 30_000
            link.shape.rate_bps = 40_000
            await ana.handle("rung", {"audio": {"bitrate_bps": 16_000, "channels": 1, "ptime_ms": 60, "fec": False, "loss_percent": 0, "dtx": True}})
            await asyncio.sleep(0.5)
            pesq_wb, _ = await say(ana, ben)
            assert pesq_wb >= 3.0
            assert {frame.samples for frame in ben.sink.frames[-20:]} == {60 * 48}
            assert ben.end_reason is None


async def test_a_call_to_nobody_on_the_path_fails_with_a_sentence() -> None:
    wire = Wire(ANA)
    call = Call(wire, "room_1", BEN, ice_policy="all")
    await call.offer()
    await call.handle("bye", {"reason": "declined"})
    with pytest.raises(CallFailedError, match="declined"):
        await call.connected()
    await call.hangup()
