"""The adaptive decision board: a wire budget in, one rung of the ladder out, with the reason and what would have to change for the next rung.

Down at once, up only after every condition held for the rung's hold time; after a failed step up the hold doubles (at most 30 s).
The ladder is the customer's top row (64 kbit/s stereo, 1080p30) over measured Opus figures: 12 kbit/s is the knee of wideband speech, in-band
FEC gains nothing below 24 kbit/s, and 60 ms frames save 15.5 kbit/s of headers against 20 ms ones (58 bytes of headers a packet).
Pure: `now_ms` is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from heliograph.shapes import JsonObject

HEADER_BYTES = 58  # IP, UDP, TURN ChannelData, RTP and SRTP tag, per packet
MAX_HOLD_MS = 30_000
START_BPS = 400_000.0
_GROWTH_PER_S = 1.08
_DELIVERED_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Audio:
    bitrate_bps: int
    channels: int
    ptime_ms: int
    fec: bool
    loss_percent: int
    dtx: bool

    @property
    def wire_bps(self) -> int:
        """Bits per second on the wire, headers included."""
        return self.bitrate_bps + HEADER_BYTES * 8 * 1000 // self.ptime_ms


@dataclass(frozen=True, slots=True)
class Video:
    is_on: bool
    max_height: int = 0
    max_fps: int = 0
    max_bps: int = 0


@dataclass(frozen=True, slots=True)
class Rung:
    """One row of the ladder. Below `down_bps` it is left at once; it is entered above `up_bps` held for `hold_ms`."""

    number: int
    name: str
    down_bps: int
    up_bps: int
    hold_ms: int
    audio: Audio
    fec_from_loss: float | None  # in-band FEC from this loss on; None: never
    video: Video
    action: str
    up_max_loss: float = 0.02
    up_max_rtt_ms: float = 400


def _audio(bitrate_bps: int, channels: int, ptime_ms: int, *, dtx: bool) -> Audio:
    return Audio(bitrate_bps, channels, ptime_ms, fec=False, loss_percent=0, dtx=dtx)


_FREE, _CAPPED, _ONLY, _STORE = "unrestricted", "video capped", "audio only", "store and forward"
LADDER: tuple[Rung, ...] = (
    Rung(1, "strong", 2_800_000, 3_500_000, 8_000, _audio(64_000, 2, 20, dtx=False), 0.01, Video(True, 1080, 30, 4_000_000), _FREE, 0.01, 200),
    Rung(2, "studio", 1_500_000, 1_900_000, 8_000, _audio(64_000, 2, 20, dtx=False), 0.01, Video(True, 720, 30, 2_400_000), _FREE, 0.01, 200),
    Rung(3, "high", 650_000, 850_000, 6_000, _audio(48_000, 1, 20, dtx=False), 0.01, Video(True, 540, 30, 1_200_000), _FREE),
    Rung(4, "good", 280_000, 360_000, 5_000, _audio(32_000, 1, 20, dtx=True), 0.01, Video(True, 360, 24, 600_000), _FREE),
    Rung(5, "low", 150_000, 190_000, 4_000, _audio(32_000, 1, 20, dtx=True), 0.01, Video(True, 180, 15, 200_000), _CAPPED),
    Rung(6, "thumbnail", 95_000, 125_000, 4_000, _audio(24_000, 1, 40, dtx=True), 0.02, Video(True, 180, 8, 90_000), _CAPPED),
    Rung(7, "audio_only", 38_000, 50_000, 3_000, _audio(24_000, 1, 60, dtx=True), 0.02, Video(False), _ONLY),
    Rung(8, "survival", 16_000, 22_000, 3_000, _audio(12_000, 1, 60, dtx=True), None, Video(False), _ONLY),
    Rung(9, "store_and_forward", 0, 0, 5_000, _audio(16_000, 1, 60, dtx=True), None, Video(False), _STORE),
)


@dataclass(frozen=True, slots=True)
class Report:
    """What one client measured since its last report; None where it cannot tell."""

    available_bps: float | None = None
    sent_bps: float | None = None
    rtt_ms: float | None = None
    loss: float | None = None
    jitter_ms: float | None = None
    queue_ms: float | None = None
    has_video: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What the board remembers of one sender in one call."""

    rung: int = 4
    target_bps: float = START_BPS
    at_ms: int = 0
    better_since_ms: int | None = None
    hold_ms: int = 0  # the hold in force after failed steps up; 0: the rung's own
    stepped_up_at_ms: int | None = None
    choking_since_ms: int | None = None
    told: str = ""  # fingerprint of the decision the client has

    def as_json(self) -> JsonObject:
        return asdict(self)


def state_from(data: Mapping[str, Any]) -> State:
    """The state stored by an earlier decision; unknown fields of another version are dropped."""
    return State(**{name: data[name] for name in State.__slots__ if name in data})


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen rung and why."""

    rung: Rung
    audio: Audio
    video: Video
    rule: str
    inputs: JsonObject
    to_step_up: str

    def fingerprint(self) -> str:
        """Equal for decisions that ask the same of a client."""
        return f"{self.rung.number}:{self.audio}:{self.video}"

    def as_json(self) -> JsonObject:
        """The body of a `rung` event."""
        return {
            "rung": self.rung.number,
            "name": self.rung.name,
            "audio": asdict(self.audio),
            "video": asdict(self.video),
            "action": self.rung.action,
            "reason": {"rule": self.rule, "inputs": self.inputs, "to_step_up": self.to_step_up},
        }


def decide(state: State, report: Report, now_ms: int) -> tuple[State, Decision]:
    """The next state and decision after one report."""
    target_bps = estimate(state, report, now_ms)
    loss = report.loss or 0.0
    state = replace(state, target_bps=target_bps, at_ms=now_ms, choking_since_ms=(state.choking_since_ms or now_ms) if loss > 0.35 else None)
    current = LADDER[state.rung - 1]
    if state.choking_since_ms is not None and now_ms - state.choking_since_ms >= 4_000 and target_bps < LADDER[6].down_bps:
        state, rule = _down_to(state, 9, now_ms), "loss stayed above 35 % for 4 s: record now, deliver later"
    elif report.rtt_ms is not None and report.rtt_ms > 2_500:
        state, rule = _down_to(state, 9, now_ms), "round trip above 2.5 s: nobody can talk over that; record now, deliver later"
    elif target_bps < current.down_bps:
        fitting = next(rung for rung in LADDER if target_bps >= rung.down_bps)
        state, rule = _down_to(state, fitting.number, now_ms), f"budget {_kbps(target_bps)} is below {_kbps(current.down_bps)}, the floor of {current.name}"
    else:
        state, rule = _maybe_up(state, report, now_ms)
    rung = LADDER[state.rung - 1]
    video = rung.video if report.has_video else Video(False)
    return state, Decision(rung, _shaped(rung, loss, target_bps), video, rule, _inputs(report, target_bps), _next(state))


def estimate(state: State, report: Report, now_ms: int) -> float:
    """The wire budget in bit/s: the client's own estimate where it has one, else what was delivered, growing 8 % a second while the link is clean."""
    if report.available_bps is not None:
        return report.available_bps
    loss = report.loss or 0.0
    is_congested = loss > 0.10 or (report.queue_ms or 0) > 300
    if is_congested:
        delivered = report.sent_bps * (1 - loss) * _DELIVERED_SHARE if report.sent_bps else state.target_bps * (1 - 0.5 * max(loss, 0.3))
        return min(state.target_bps, delivered)
    elapsed_s = min(max(now_ms - state.at_ms, 0), 5_000) / 1000 if state.at_ms else 0.0
    return state.target_bps * _GROWTH_PER_S**elapsed_s if loss <= 0.02 else state.target_bps


def _down_to(state: State, number: int, now_ms: int) -> State:
    number = max(number, state.rung)
    failed = state.stepped_up_at_ms is not None and now_ms - state.stepped_up_at_ms < 10_000
    own_ms = LADDER[max(number - 2, 0)].hold_ms
    hold_ms = min(MAX_HOLD_MS, 2 * (state.hold_ms or own_ms)) if failed else 0
    return replace(state, rung=number, better_since_ms=None, hold_ms=hold_ms, stepped_up_at_ms=None)


def _maybe_up(state: State, report: Report, now_ms: int) -> tuple[State, str]:
    current = LADDER[state.rung - 1]
    if state.rung == 1:
        return replace(state, better_since_ms=None), "the top rung holds"
    above = LADDER[state.rung - 2]
    blocked = _blocked(above, report, state.target_bps)
    if blocked:
        return replace(state, better_since_ms=None), f"{current.name} holds: {blocked}"
    since_ms = now_ms if state.better_since_ms is None else state.better_since_ms
    hold_ms = state.hold_ms or above.hold_ms
    if now_ms - since_ms < hold_ms:
        return replace(
            state, better_since_ms=since_ms
        ), f"{current.name} holds: {above.name} fits since {(now_ms - since_ms) / 1000:.1f} s of {hold_ms / 1000:.0f} s"
    rule = f"budget {_kbps(state.target_bps)} stayed above {_kbps(above.up_bps)} for {hold_ms / 1000:.0f} s"
    return replace(state, rung=above.number, better_since_ms=None, stepped_up_at_ms=now_ms), rule


def _blocked(above: Rung, report: Report, target_bps: float) -> str | None:
    if target_bps < above.up_bps:
        return f"budget {_kbps(target_bps)} is not yet {_kbps(above.up_bps)}"
    if (report.loss or 0) > above.up_max_loss:
        return f"loss {report.loss:.0%} is above {above.up_max_loss:.0%}"
    if (report.rtt_ms or 0) > above.up_max_rtt_ms:
        return f"round trip {report.rtt_ms:.0f} ms is above {above.up_max_rtt_ms:.0f} ms"
    return None


def _shaped(rung: Rung, loss: float, target_bps: float) -> Audio:
    """The rung's audio, fitted to this loss and budget."""
    has_fec = rung.fec_from_loss is not None and loss >= rung.fec_from_loss
    audio = replace(rung.audio, fec=has_fec, loss_percent=max(10, round(loss * 100)) if has_fec else 0)
    if rung.name == "audio_only":
        audio = replace(audio, ptime_ms=40 if target_bps >= 60_000 else 60, bitrate_bps=24_000 if target_bps >= 45_000 else 16_000)
    if rung.name == "survival" and target_bps < 22_000:
        audio = replace(audio, ptime_ms=120, bitrate_bps=12_000 if target_bps >= 18_000 else 8_000)
    return audio


def _inputs(report: Report, target_bps: float) -> JsonObject:
    return {name: value for name, value in asdict(report).items() if value is not None} | {"target_bps": round(target_bps)}


def _next(state: State) -> str:
    if state.rung == 1:
        return "nothing: this is the top rung"
    above = LADDER[state.rung - 2]
    hold_s = (state.hold_ms or above.hold_ms) / 1000
    return (
        f"{above.name}: above {_kbps(above.up_bps)}, loss at most {above.up_max_loss:.0%}, round trip at most {above.up_max_rtt_ms:.0f} ms, for {hold_s:.0f} s"
    )


def _kbps(bps: float) -> str:
    return f"{bps / 1000:.0f} kbit/s"
