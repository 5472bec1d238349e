"""What one call's path measured: the `stats` frame's body, from RTP and RTCP counters alone. No I/O; time is an argument.

Available bandwidth is claimed only when the path shows its limit (loss, or a standing queue);
otherwise the field is left out and the server decides from the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PACKET_OVERHEAD_BYTES = 58  # IPv4 20, UDP 8, RTP 12 + extensions 8, SRTP tag 10: the ladder's wire-level figures count it
CONGESTED_LOSS = 0.02
CONGESTED_QUEUE_MS = 100.0
_RTT_SMOOTHING = 0.85  # aiortc publishes only an average: new = 0.85 * old + 0.15 * sample


@dataclass(frozen=True, slots=True)
class Sample:
    """Counters at one moment; totals since the start of the call."""

    at_s: float
    packets_sent: int
    bytes_sent: int  # payload
    packets_lost: int | None = None  # by the peer's last receiver report
    packets_reported: int | None = None  # packets_sent when that report came
    rtt_average_s: float | None = None
    jitter_s: float | None = None


@dataclass(slots=True)
class PathMeter:
    """Turns successive samples into reports."""

    _rtt_average_s: float | None = None
    _least_rtt_s: float | None = None
    _rtt_s: float | None = None
    _window: list[Sample] = field(default_factory=list)
    _from_packet: int = 0  # what is reported about earlier packets says nothing about the present profile

    def restart(self, packets_sent: int) -> None:
        """The sender changed its rate after this many packets: measure anew, so that losses of the old rate are not read as the new one's."""
        self._from_packet = packets_sent
        self._window.clear()
        self._rtt_s = None

    def report(self, sample: Sample, has_video: bool = False) -> dict[str, Any]:
        """The report since about two seconds before `sample`: loss 0-1, milliseconds, bit/s on the wire."""
        self._learn_rtt(sample)
        if self._from_packet and (sample.packets_reported or 0) < self._from_packet:
            return {"has_video": has_video}
        self._window = [old for old in self._window if sample.at_s - old.at_s <= 2.5] or self._window[-1:]
        first = self._window[0] if self._window else sample
        self._window.append(sample)
        loss, queue_ms, sent_bps = _loss(first, sample), self._queue_ms(), _wire_bps(first, sample)
        report = {
            "has_video": has_video,
            "loss": loss,
            "rtt_ms": _ms(self._rtt_s),
            "queue_ms": queue_ms,
            "jitter_ms": _ms(sample.jitter_s),
            "sent_bps": sent_bps,
        }
        if sent_bps is not None and ((loss or 0.0) > CONGESTED_LOSS or (queue_ms or 0.0) > CONGESTED_QUEUE_MS):
            report["available_bps"] = round(sent_bps * (1 - (loss or 0.0)))
        return {name: value for name, value in report.items() if value is not None}

    def _learn_rtt(self, sample: Sample) -> None:
        """Recover the newest round trip from the published average; least seen = the empty path."""
        average, before = sample.rtt_average_s, self._rtt_average_s
        if average is None or average == before:
            return
        self._rtt_average_s = average
        newest = average if before is None else (average - _RTT_SMOOTHING * before) / (1 - _RTT_SMOOTHING)
        self._rtt_s = max(0.0, newest)
        self._least_rtt_s = min(self._rtt_s, self._least_rtt_s if self._least_rtt_s is not None else self._rtt_s)

    def _queue_ms(self) -> float | None:
        return None if self._rtt_s is None or self._least_rtt_s is None else _ms(self._rtt_s - self._least_rtt_s)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1_000, 1)


def _loss(first: Sample, last: Sample) -> float | None:
    if last.packets_lost is None or last.packets_reported is None:
        return None
    lost = last.packets_lost - (first.packets_lost or 0)
    expected = last.packets_reported - (first.packets_reported or 0)
    return round(min(1.0, max(0.0, lost / expected)), 4) if expected > 0 else None


def _wire_bps(first: Sample, last: Sample) -> int | None:
    seconds = last.at_s - first.at_s
    if seconds <= 0:
        return None
    length = last.bytes_sent - first.bytes_sent + PACKET_OVERHEAD_BYTES * (last.packets_sent - first.packets_sent)
    return round(length * 8 / seconds)
