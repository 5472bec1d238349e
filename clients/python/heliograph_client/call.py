"""One call: SDP, ICE and media over aiortc, signaled through whatever can send a frame.

Knows WebRTC and the five signaling actions; must not know sockets, tokens or REST. Imported only when somebody calls (aiortc costs about half a second).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from aiortc import RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.rtcconfiguration import RTCIceTransportPolicy
from aiortc.sdp import candidate_from_sdp

from .errors import HeliographError, TimedOutError
from .ice_restart import Paths, rtc_servers
from .ice_servers import Draining, IceServers
from .ids import make_id, now_ms
from .opus import SAMPLE_RATE, AudioProfile, OpusTrack, Source
from .path import PathMeter, Sample
from .receive import AudioSink
from .restarts import Restarts

IcePolicy = Literal["relay", "all"]
Reason = Literal["hangup", "declined", "busy", "failed"]


class Signaling(Protocol):
    """What a call needs of a client."""

    async def request(self, action: str, room_id: str | None = None, body: Mapping[str, Any] | None = None, *, trace_id: str | None = None) -> Any:
        """Send a frame and wait for its acknowledgement."""
        ...


class CallFailedError(HeliographError):
    """No path to the peer was found, or it was lost."""

    code = "call_failed"


class CalleeAbsentError(HeliographError):
    """The callee has no live device; a push was sent."""

    code = "callee_absent"


class Call:
    """A call with one peer. Made by `Client.call` and `IncomingCall.answer`."""

    def __init__(
        self,
        signaling: Signaling,
        room_id: str,
        peer: Mapping[str, str],
        *,
        call_id: str | None = None,
        ice_servers: IceServers | Sequence[Mapping[str, Any]] = (),
        ice_policy: IcePolicy = "all",
        source: Source | None = None,
        profile: AudioProfile | None = None,
        report_every_s: float | None = 1.0,
        fetch_servers: Callable[[], Awaitable[IceServers]] | None = None,
        server_ms: Callable[[], int] = now_ms,
    ) -> None:
        """`peer` is `{account_id, device_id?}`, `ice_servers` are those of `GET /v1/ice-servers`; `report_every_s` None reports no statistics by itself.

        `fetch_servers` gets fresh ones when theirs grow old by `server_ms`, the server's time; without it the call keeps those that it has.
        """
        self.room_id = room_id
        self.call_id = call_id or make_id("call")
        self.trace_id = secrets.token_hex(16)  # one for the whole call
        self.peer = dict(peer)
        self.track = OpusTrack(source, profile)
        self.sink = AudioSink()
        self.rungs: list[dict[str, Any]] = []  # every `rung` event applied, oldest first
        self.end_reason: str | None = None
        self._signaling = signaling
        self._negotiation_id = make_id("neg")  # of the first offer; restarts have their own
        self._connected = asyncio.Event()
        self._ended = asyncio.Event()
        self._report_every_s = report_every_s
        self._reporting: asyncio.Task[None] | None = None
        self.reports: list[dict[str, Any]] = []  # every `stats` frame sent, oldest first
        self._end_callbacks: list[Callable[[], object]] = []
        self._failure: HeliographError | None = None
        self._meter = PathMeter()
        self._reported: tuple[object, int] = (None, 0)
        self._is_described = False  # the peer's description is known
        self._early_candidates: list[Mapping[str, Any]] = []
        servers = ice_servers if isinstance(ice_servers, IceServers) else IceServers(tuple(ice_servers))
        policy = RTCIceTransportPolicy.RELAY if ice_policy == "relay" else RTCIceTransportPolicy.ALL
        self._peer_connection = RTCPeerConnection(RTCConfiguration(iceServers=rtc_servers(servers), iceTransportPolicy=policy))
        self._paths = Paths(self._peer_connection, policy)
        self._restarts = Restarts(self._paths, servers, fetch_servers, server_ms, self._send, self.hangup)
        self._peer_connection.on("track", self._on_track)
        self._peer_connection.on("connectionstatechange", self._on_state)

    # signaling

    async def offer(self) -> None:
        """Gather candidates, then send the offer with all of them in it."""
        self._peer_connection.addTrack(self.track)
        self._paths.attach()
        self._only_opus()
        await self._paths.current.gather()
        await self._peer_connection.setLocalDescription(await self._peer_connection.createOffer())
        await self._send("offer", {"negotiation_id": self._negotiation_id, "sdp": self._peer_connection.localDescription.sdp})

    async def answer(self, offer: Mapping[str, Any], candidates: Sequence[Mapping[str, Any]] = ()) -> None:
        """Answer the body of an `offer` event; `candidates` are bodies of `candidate` events that came meanwhile."""
        self._negotiation_id = offer["negotiation_id"]
        await self._peer_connection.setRemoteDescription(RTCSessionDescription(offer["sdp"], "offer"))
        self._is_described = True
        self._peer_connection.addTrack(self.track)
        self._paths.attach()
        self._only_opus()
        for candidate in candidates:
            await self._add_candidate(candidate)
        await self._paths.current.gather()
        await self._peer_connection.setLocalDescription(await self._peer_connection.createAnswer())
        await self._send("answer", {"negotiation_id": self._negotiation_id, "sdp": self._peer_connection.localDescription.sdp})

    async def handle(self, event: str, body: Mapping[str, Any]) -> None:
        """An event of this call: offer (an ICE restart), answer, candidate, bye, rung or callee_absent; others are ignored."""
        if event == "offer":
            await self._restarts.offered(body)
        elif event == "answer":
            await self._on_answer(body)
        elif event == "candidate":
            await self._on_candidate(body)
        elif event == "bye":
            await self._end(str(body.get("reason", "hangup")))
        elif event == "rung":
            self._apply_rung(body)
        elif event == "callee_absent" and self._is_described:
            self._restarts.absent()
        elif event == "callee_absent":
            self._fail(CalleeAbsentError("The callee has no live device; a push was sent."))
            await self._end("absent")

    def _apply_rung(self, body: Mapping[str, Any]) -> None:
        profile = AudioProfile.parse(body["audio"])
        if profile != self.track.profile:
            self.track.apply(profile)
            self._meter.restart(len(self.track.sent))
        self.rungs.append(dict(body))

    async def _on_answer(self, body: Mapping[str, Any]) -> None:
        if self._is_described:
            self._restarts.answer(body)
            return
        if body.get("negotiation_id") != self._negotiation_id or self._peer_connection.signalingState != "have-local-offer":
            return  # late, or from a second device: the first answer won
        self.peer = dict(body.get("from", self.peer))  # from now on this device, not every device of the account
        await self._peer_connection.setRemoteDescription(RTCSessionDescription(body["sdp"], "answer"))
        self._is_described = True
        early, self._early_candidates = self._early_candidates, []
        for candidate in early:
            await self._add_candidate(candidate)

    async def _on_candidate(self, body: Mapping[str, Any]) -> None:
        if body.get("negotiation_id", self._negotiation_id) != self._negotiation_id:
            await self._restarts.add_candidate(body)
        elif not self._is_described:
            self._early_candidates.append(body)
        elif not self._restarts.done:  # else it is of a path that is left
            await self._add_candidate(body)

    async def _add_candidate(self, body: Mapping[str, Any]) -> None:
        text = str(body.get("candidate", ""))
        if not text:
            await self._peer_connection.addIceCandidate(None)
            return
        candidate = candidate_from_sdp(text.removeprefix("candidate:"))
        candidate.sdpMid, candidate.sdpMLineIndex = body.get("sdp_mid"), body.get("sdp_m_line_index")
        await self._peer_connection.addIceCandidate(candidate)

    async def _send(self, action: str, body: Mapping[str, Any]) -> None:
        await self._signaling.request(action, self.room_id, {"call_id": self.call_id, "to": self.peer, **body}, trace_id=self.trace_id)

    def _only_opus(self) -> None:
        """Offer no other audio codec: the track sends Opus packets whatever was negotiated."""
        opus = [codec for codec in RTCRtpSender.getCapabilities("audio").codecs if codec.mimeType.lower() == "audio/opus"]
        for transceiver in self._peer_connection.getTransceivers():
            if transceiver.kind == "audio":
                transceiver.setCodecPreferences(opus)

    # another path

    def restart(self) -> None:
        """Move to another path now (an ICE restart), as after a change of network; the call does so by itself when it must, and audio goes on meanwhile."""
        self._restarts.ask()

    def drain(self, draining: Draining) -> None:
        """Relays go away: move, if this call is on one of them."""
        self._restarts.drain(draining)

    @property
    def restarts(self) -> list[str]:
        """Why the call moved to another path, each time it did: renewal, draining, lost, asked, or peer (who began it). Oldest first."""
        return [*self._restarts.done]

    # state

    def _on_track(self, track: Any) -> None:
        for transceiver in self._peer_connection.getTransceivers():
            if transceiver.kind == "audio" and transceiver.receiver.track is track:
                self.sink.attach(transceiver.receiver)

    async def _on_state(self) -> None:
        state = self._peer_connection.connectionState
        if state == "connected":
            self._connected.set()
            self._restarts.start()
            if self._report_every_s is not None and self._reporting is None:
                self._reporting = asyncio.create_task(self._report(self._report_every_s), name="heliograph call statistics")
        elif state == "failed" and self._connected.is_set():
            self._restarts.look()
        elif state == "failed":
            self._fail(CallFailedError("No path to the peer works; check that its network lets UDP or the relay through."))

    def _fail(self, failure: HeliographError) -> None:
        self._failure = self._failure or failure
        self._connected.set()

    async def connected(self, timeout_s: float = 15.0) -> None:
        """Wait until media flows; raises CallFailedError, CalleeAbsentError or TimedOutError."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError:
            raise TimedOutError(f"The call is {self._peer_connection.connectionState} after {timeout_s:g} s.") from None
        if self._failure is not None:
            raise self._failure

    async def ended(self) -> str:
        """Wait until the call is over; the reason is hangup, declined, busy, failed or absent."""
        await self._ended.wait()
        return str(self.end_reason)

    async def hangup(self, reason: Reason = "hangup") -> None:
        """End the call and tell the peer; harmless when it is over already."""
        if not self._ended.is_set():
            with contextlib.suppress(HeliographError):
                await self._send("bye", {"reason": reason})
            await self._end(reason)

    def on_end(self, callback: Callable[[], object]) -> None:
        """Call back once when the call is over."""
        self._end_callbacks.append(callback)

    async def _end(self, reason: str) -> None:
        if self._ended.is_set():
            return
        self.end_reason = reason
        self._ended.set()
        self._fail(CallFailedError(f"The call ended: {reason}."))
        if self._reporting is not None:
            self._reporting.cancel()
        self.sink.stop()
        await self._restarts.stop()
        await self._paths.close()
        await self._peer_connection.close()
        for callback in self._end_callbacks:
            callback()

    # measurement

    def selected_path(self) -> dict[str, str] | None:
        """`{local, remote, protocol}`: candidate types of the nominated pair; None before there is one."""
        return self._paths.selected()

    async def stats(self) -> dict[str, Any]:
        """The body of a `stats` frame, measured since about two seconds ago."""
        report = await self._peer_connection.getStats()
        rows = {row.type: row for row in report.values() if getattr(row, "kind", "audio") == "audio"}
        out, remote = rows.get("outbound-rtp"), rows.get("remote-inbound-rtp")
        sent, length = (out.packetsSent, out.bytesSent) if out else (0, 0)
        if remote is not None and remote.timestamp != self._reported[0]:
            self._reported = (remote.timestamp, remote.packetsReceived + remote.packetsLost)
        sample = Sample(
            asyncio.get_running_loop().time(),
            sent,
            length,
            packets_lost=remote.packetsLost if remote else None,
            packets_reported=self._reported[1] if remote else None,
            rtt_average_s=remote.roundTripTime if remote else None,
            jitter_s=remote.jitter / SAMPLE_RATE if remote else None,
        )
        return {"call_id": self.call_id, **self._meter.report(sample)}

    async def send_stats(self) -> dict[str, Any]:
        """Report to the server, whose `rung` event follows when its decision changed; answers what was reported."""
        body = await self.stats()
        await self._signaling.request("stats", self.room_id, body, trace_id=self.trace_id)
        self.reports.append(body)
        return body

    async def _report(self, every_s: float) -> None:
        """Report until the call ends; one that did not get through is not worth repeating."""
        while True:
            with contextlib.suppress(HeliographError):
                await self.send_stats()
            await asyncio.sleep(every_s)
