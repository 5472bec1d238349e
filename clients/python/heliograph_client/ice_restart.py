"""ICE restarts for aiortc, which has none: another aioice connection takes over beneath the same DTLS association, and with it the same SRTP keys.

Make before break (RFC 8445 s9): the new path is gathered and checked while the old one carries audio; then packets leave by the new one and are taken from
both, until the old one has fallen silent and is closed, which releases its TURN allocation. All that is reached for in aiortc and aioice stands here;
tests/contract/test_aiortc_internals.py says what that is. Knows nothing of signaling, credentials or when to restart.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Literal

from aioice import stun
from aiortc import RTCIceGatherer, RTCIceServer, RTCPeerConnection
from aiortc.rtcconfiguration import RTCIceTransportPolicy
from aiortc.rtcicetransport import candidate_to_aioice
from aiortc.sdp import SessionDescription, candidate_from_sdp

from .errors import HeliographError
from .ice_servers import IceServers

CONNECT_S = 10.0
QUIET_S, LONGEST_OVERLAP_S = 2.0, 10.0  # an old path is closed when nothing came by it for so long, at the latest after so long
SILENT_S = 3.0  # after so long without a packet the path is asked whether it still is one
ASKED_TIMES = 3  # over 3.5 s
CLOSE_S = 1.0


class RestartFailedError(HeliographError):
    """No new path was found; the old one, if it still works, goes on."""

    code = "restart_failed"
    retryable = True


def rtc_servers(servers: IceServers) -> list[RTCIceServer]:
    """As aiortc wants them."""
    return [RTCIceServer(urls=list(s["urls"]), username=s.get("username"), credential=s.get("credential")) for s in servers.servers]


class Remote:
    """The peer's description of a path: its ICE credentials and the candidates in it. Raises RestartFailedError for what is no restart of this call."""

    def __init__(self, sdp: str, known: str) -> None:
        """`known` is the peer's description before."""
        try:
            medium, before = _audio(sdp), _audio(known)
            are_same = (_fingerprints(medium), medium.rtp.muxId) == (_fingerprints(before), before.rtp.muxId)
        except (AssertionError, AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
            raise RestartFailedError(f"The peer's description cannot be read: {error!r}") from None
        if not are_same:
            raise RestartFailedError("The peer describes another DTLS association or other media: that is no ICE restart.")
        if medium.ice.usernameFragment is None or medium.ice.password is None:
            raise RestartFailedError("The peer's description has no ICE credentials.")
        self.ice, self.candidates, self.is_complete = medium.ice, medium.ice_candidates, medium.ice_candidates_complete


class Path:
    """One way to the peer, from its gathering to its end. Made by `Paths.gather`."""

    def __init__(self, gatherer: Any) -> None:
        """An aiortc gatherer that has not begun."""
        self.gatherer, self.connection = gatherer, gatherer._connection
        self.is_described = self._is_complete = False
        self._gathering: asyncio.Task[None] | None = None

    async def gather(self) -> None:
        """Find our candidates, and allocate at the relay. Who is cancelled meanwhile closes the path."""
        self._gathering = asyncio.ensure_future(self.gatherer.gather())
        await asyncio.shield(self._gathering)

    async def close(self) -> None:
        """Give back what it has at the relay. Gathering is heard out (aioice ends it after 5 s): an allocation that comes later, aioice would forget."""
        if self._gathering is not None:
            await asyncio.gather(asyncio.shield(self._gathering), return_exceptions=True)
        await self.connection.close()

    @property
    def is_gathering(self) -> bool:
        """Whether an allocation may still come."""
        return self._gathering is not None and not self._gathering.done()

    async def describe(self, remote: Remote) -> None:
        """The peer's half is known."""
        self.connection.remote_username, self.connection.remote_password = remote.ice.usernameFragment, remote.ice.password
        self.connection.remote_is_lite = remote.ice.iceLite
        self.is_described = True
        for candidate in remote.candidates:
            await self._add(candidate)
        if remote.is_complete:
            await self._add(None)

    async def add_candidate(self, line: str) -> None:
        """A candidate of the peer; "" is the end of them. One that cannot be read raises ValueError."""
        try:
            await self._add(candidate_from_sdp(line.removeprefix("candidate:")) if line else None)
        except (AssertionError, IndexError) as error:
            raise ValueError(f"no candidate: {error!r}") from None

    async def _add(self, candidate: Any) -> None:
        if not self._is_complete:
            self._is_complete = candidate is None
            await self.connection.add_remote_candidate(candidate and candidate_to_aioice(candidate))

    async def connect(self) -> None:
        """Check until a pair is nominated; raises RestartFailedError."""
        try:
            async with asyncio.timeout(CONNECT_S):
                await self.connection.connect()
        except (ConnectionError, TimeoutError) as error:
            raise RestartFailedError(f"The new path does not work: {error or 'not in time'}") from None

    @property
    def relay_hosts(self) -> frozenset[str]:
        """The relay that carries the path on our side, by its address and by the host of its URL; none when the path needs none."""
        pair = self.connection._nominated.get(1)
        return frozenset({pair.local_candidate.host, self.turn_host}) if pair is not None and pair.local_candidate.type == "relay" else frozenset()

    @property
    def turn_host(self) -> str:
        """The host of the TURN URL that was used; empty without one."""
        return str((self.connection.turn_server or ("", 0))[0])


class Paths:
    """The ways beneath the one ICE transport of a peer connection: the one in use, and older ones until they are closed."""

    def __init__(self, peer_connection: RTCPeerConnection, policy: RTCIceTransportPolicy) -> None:
        """`attach` once the connection has its transport, before it starts."""
        self._peer_connection, self._policy = peer_connection, policy
        self._packets: asyncio.Queue[bytes] = asyncio.Queue()
        self._open: set[Path] = set()
        self._heard_s: dict[Path, float] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._version = 0

    def attach(self) -> None:
        """From now on the DTLS transport sends and receives by whatever path is in use, and a path that breaks does not end it."""
        self._dtls: Any = self._peer_connection.getTransceivers()[0].receiver.transport
        self._ice: Any = self._dtls.transport
        self.current = Path(self._ice.iceGatherer)
        self._listen(self.current)
        self._ice._send, self._ice._recv = self._send, self._packets.get

    async def _send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # to aiortc it would be the end of the call; to us it is a lost packet
            await self.current.connection.send(data)

    def _listen(self, path: Path) -> None:
        loop = asyncio.get_running_loop()

        def received(data: bytes, _: int) -> None:
            self._heard_s[path] = loop.time()
            self._packets.put_nowait(data)

        path.connection.data_received = received
        self._open.add(path)

    async def gather(self, servers: IceServers) -> Path:
        """A new path with candidates of its own, at whose far end nobody is yet; raises RestartFailedError when it has none."""
        path = Path(RTCIceGatherer(iceServers=rtc_servers(servers), iceTransportPolicy=self._policy))
        path.connection.ice_controlling = self.current.connection.ice_controlling  # roles last as long as the call, RFC 8445 s6.1.1
        self._listen(path)
        try:
            await path.gather()
            if not path.gatherer.getLocalCandidates():
                raise RestartFailedError("No candidates: the relay does not answer, or refused.")
        except BaseException:
            self.drop(path)
            raise
        return path

    def remote(self, sdp: str) -> Remote:
        """The peer's half of a new path; raises RestartFailedError."""
        return Remote(sdp, self._peer_connection.remoteDescription.sdp)

    def description(self, path: Path, kind: Literal["offer", "answer"]) -> str:
        """Our half of a new path: what we said before, with this path's ICE credentials and candidates. Says nothing new of media."""
        description: Any = SessionDescription.parse(self._peer_connection.localDescription.sdp)
        parameters, candidates = path.gatherer.getLocalParameters(), path.gatherer.getLocalCandidates()
        self._version += 1
        user, number, version, *rest = description.origin.split()
        description.origin = " ".join([user, number, str(int(version) + self._version), *rest])
        for medium in description.media:
            medium.ice, medium.ice_candidates, medium.ice_candidates_complete = parameters, candidates, True
            medium.host, medium.port = candidates[0].ip, candidates[0].port
            medium.dtls.role = "auto" if kind == "offer" else self._dtls._role
        return str(description)

    def use(self, path: Path) -> None:
        """Packets leave by this path from now on; the one before it is closed when nothing comes by it any more."""
        ice, old, self.current = self._ice, self.current, path
        self._heard_s[path] = asyncio.get_running_loop().time()  # its checks were answered just now
        ice._RTCIceTransport__monitor_task.cancel()  # it would take the end of the old path for the end of the call
        ice._connection, ice._RTCIceTransport__iceGatherer = path.connection, path.gatherer
        ice._RTCIceTransport__monitor_task = asyncio.ensure_future(ice._monitor())
        if ice.state == "failed":
            ice._RTCIceTransport__setState("completed")
        self._spawn(self._retire(old))

    def drop(self, path: Path) -> None:
        """A path that we will not use. The peer may think otherwise, for a moment."""
        self._spawn(self._retire(path) if path.is_described else self._close(path))

    async def _retire(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while (wait_s := min(began_s + LONGEST_OVERLAP_S, max(began_s, self._heard_s.get(path, 0.0)) + QUIET_S) - loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(wait_s)  # the end moves with every packet
        await self._close(path)

    async def _close(self, path: Path) -> None:
        await path.close()
        self._open.discard(path)
        self._heard_s.pop(path, None)

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work, name="heliograph path")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return task

    def is_heard(self) -> bool:
        """Whether something came by the path in use lately."""
        return asyncio.get_running_loop().time() - self._heard_s.get(self.current, 0.0) < SILENT_S

    async def answers(self) -> bool:
        """Whether the peer answers a check on the path in use (RFC 7675, sooner than aioice's 30 s)."""
        connection = self.current.connection
        pair = connection._nominated.get(1)
        if pair is None:
            return False
        request, key = connection.build_request(pair, nominate=False), connection.remote_password.encode()
        try:
            await pair.protocol.request(request, pair.remote_addr, integrity_key=key, retransmissions=ASKED_TIMES - 1)
        except stun.TransactionFailed:
            return True  # a refusal is an answer
        except stun.TransactionError:
            return False
        return True

    def selected(self) -> dict[str, str] | None:
        """`{local, remote, protocol}`: candidate types of the nominated pair; None before there is one."""
        pair = self.current.connection._nominated.get(1)  # aiortc has no candidate-pair stats; this is aioice's own record
        if pair is None:
            return None
        return {"local": pair.local_candidate.type, "remote": pair.remote_candidate.type, "protocol": pair.local_candidate.transport}

    async def close(self) -> None:
        """Close what the peer connection does not: every path but the one in use, and that one too when it is still gathering.

        A relay that does not answer any more is not waited for; giving back goes on beside.
        """
        for task in (waiting := [*self._retiring]):
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        closing = [self._spawn(self._close(path)) for path in self._open if path is not self.current or path.is_gathering]
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_S)


def _audio(sdp: str) -> Any:
    return next(medium for medium in SessionDescription.parse(sdp).media if medium.kind == "audio")


def _fingerprints(medium: Any) -> set[tuple[str, str]]:
    return {(each.algorithm.lower(), each.value.upper()) for each in medium.dtls.fingerprints}
