"""What `heliograph_client/ice_restart.py` reaches for inside aiortc and aioice, with the meaning it has there.

A version that moved one of these fails here, with the name of what it moved; tests/integration/test_client_restarts.py says whether restarts still work.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import aioice
import pytest
from aioice import stun
from aioice.ice import StunProtocol
from aiortc import RTCConfiguration, RTCIceGatherer, RTCPeerConnection
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcicetransport import RTCIceTransport
from aiortc.sdp import SessionDescription


async def begun() -> tuple[RTCPeerConnection, Any, Any]:
    """A peer connection with one transceiver, its DTLS and its ICE transport."""
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTransceiver("audio")
    dtls: Any = connection.getTransceivers()[0].receiver.transport
    return connection, dtls, dtls.transport


async def test_an_ice_transport_keeps_what_a_restart_replaces_under_these_names() -> None:
    connection, dtls, ice = await begun()
    assert isinstance(dtls, RTCDtlsTransport)
    assert isinstance(ice, RTCIceTransport)
    assert dtls._role == "auto"
    names = {"_connection", "_send", "_recv", "_RTCIceTransport__iceGatherer", "_RTCIceTransport__monitor_task"}
    assert names <= set(vars(ice)), f"gone: {names - set(vars(ice))}"
    assert ice._connection is ice.iceGatherer._connection
    assert ice._send == ice._connection.send
    assert ice._recv == ice._connection.recv
    await connection.close()


async def test_the_gatherer_and_the_connection_are_looked_up_anew_each_time() -> None:
    """So that after the swap `iceGatherer`, `role` and `stop` are those of the new path."""
    connection, _, ice = await begun()
    other = RTCIceGatherer(iceServers=[])
    ice._RTCIceTransport__iceGatherer, ice._connection = other, other._connection
    other._connection.ice_controlling = True
    assert ice.iceGatherer is other
    assert ice.role == "controlling"
    await ice.stop()
    assert other._connection._closed
    await connection.close()


def test_the_dtls_transport_asks_the_ice_transport_for_its_doors_at_each_packet() -> None:
    for method in ("_recv_next", "_send_rtp", "_write_ssl"):
        source = inspect.getsource(getattr(RTCDtlsTransport, method))
        assert "self.transport._recv(" in source or "self.transport._send(" in source, method


async def test_the_monitor_watches_the_connection_there_is_when_it_begins_and_a_failed_transport_may_be_completed_again() -> None:
    connection, _, ice = await begun()
    seen: list[str] = []
    ice.on("statechange", lambda: seen.append(ice.state))
    ice._RTCIceTransport__setState("completed")
    watching = asyncio.ensure_future(ice._monitor())
    await asyncio.sleep(0)
    await ice._connection.close()
    await asyncio.wait_for(watching, 1)
    ice._RTCIceTransport__setState("completed")
    assert seen == ["completed", "failed", "completed"]
    await connection.close()


async def test_datagrams_reach_the_connection_by_a_method_that_an_instance_may_replace() -> None:
    connection = aioice.Connection(ice_controlling=True)
    heard: list[tuple[bytes, int]] = []
    connection.data_received = lambda data, component: heard.append((data, component))  # type: ignore[method-assign]
    protocol = StunProtocol(connection)
    protocol.local_candidate = aioice.Candidate("1", 1, "udp", 1, "127.0.0.1", 9, "host")
    protocol.datagram_received(b"\x80 an RTP packet", ("127.0.0.1", 9))
    assert heard == [(b"\x80 an RTP packet", 1)]


async def test_a_connection_has_what_a_path_and_a_check_need() -> None:
    connection = aioice.Connection(ice_controlling=True, turn_server=("127.0.0.1", 3478))
    assert connection._nominated == {}
    assert connection.turn_server == ("127.0.0.1", 3478)
    for name in ("remote_username", "remote_password", "remote_is_lite"):
        assert hasattr(connection, name), name
    assert list(inspect.signature(connection.build_request).parameters) == ["pair", "nominate"]
    assert list(inspect.signature(StunProtocol.request).parameters) == ["self", "request", "addr", "integrity_key", "retransmissions"]
    assert issubclass(stun.TransactionFailed, stun.TransactionError)
    with pytest.raises(ConnectionError):
        await connection.send(b"before there is a pair")


async def test_a_description_may_be_read_changed_and_written() -> None:
    connection, _, _ = await begun()
    await connection.setLocalDescription(await connection.createOffer())
    description: Any = SessionDescription.parse(connection.localDescription.sdp)
    medium = description.media[0]
    gatherer = RTCIceGatherer(iceServers=[])
    await gatherer.gather()
    medium.ice, medium.ice_candidates, medium.ice_candidates_complete = gatherer.getLocalParameters(), gatherer.getLocalCandidates(), True
    for role, setup in (("auto", "actpass"), ("client", "active"), ("server", "passive")):
        medium.dtls.role = role
        lines = str(description).split("\r\n")
        assert f"a=setup:{setup}" in lines
    assert f"a=ice-ufrag:{gatherer.getLocalParameters().usernameFragment}" in lines
    assert f"a=ice-pwd:{gatherer.getLocalParameters().password}" in lines
    assert "a=end-of-candidates" in lines
    assert len(description.origin.split()) == 6
    await gatherer._connection.close()
    await connection.close()
