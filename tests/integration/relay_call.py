"""A call inside one page: two relay-only peer connections, each with an allocation of its own. Any browser runs it; how one is started, it does not know."""

from __future__ import annotations

import json
from typing import Any

_CALL = """
async (server, sound) => {
  const settings = {iceServers: [server], iceTransportPolicy: 'relay'};
  const caller = new RTCPeerConnection(settings), callee = new RTCPeerConnection(settings);
  const candidates = [], errors = [];
  for (const [here, there] of [[caller, callee], [callee, caller]]) {
    here.onicecandidate = event => {
      if (event.candidate && event.candidate.candidate) { candidates.push(event.candidate.candidate); there.addIceCandidate(event.candidate); }
    };
    here.onicecandidateerror = event => errors.push(event.errorCode);
  }
  const track = await sound(), channel = caller.createDataChannel('words');
  caller.addTrack(track);
  const heard = new Promise(done => { channel.onmessage = event => done(event.data); });
  callee.ondatachannel = event => { event.channel.onmessage = message => event.channel.send('heard ' + message.data); };
  channel.onopen = () => channel.send('hello');
  const refused = new Promise(done => {
    caller.onicegatheringstatechange = () => { if (caller.iceGatheringState == 'complete' && !candidates.length) done('no candidate'); };
  });
  await caller.setLocalDescription(await caller.createOffer());
  await callee.setRemoteDescription(caller.localDescription);
  await callee.setLocalDescription(await callee.createAnswer());
  await caller.setRemoteDescription(callee.localDescription);
  const answer = await Promise.race([heard, refused, new Promise(done => setTimeout(() => done('nothing within 20 s'), 20000))]);
  const rows = async peer => [...(await peer.getStats()).values()];
  const packets = async () => (await rows(callee)).filter(row => row.type == 'inbound-rtp').map(row => row.packetsReceived)[0] || 0;
  for (let tries = 0; answer == 'heard hello' && tries < 500 && await packets() < 10; tries++) await new Promise(done => setTimeout(done, 20));
  const found = await rows(caller), row = id => found.find(row => row.id == id) || {};
  const pair = found.find(row => row.type == 'candidate-pair' && row.nominated && row.state == 'succeeded') || {};
  const ends = {local: row(pair.localCandidateId), remote: row(pair.remoteCandidateId), sent: pair.bytesSent, received: pair.bytesReceived};
  const result = {answer, candidates, errors, packets: await packets(), ...ends};
  track.stop(); caller.close(); callee.close();
  return JSON.stringify(result);
}
"""
TONE = """async () => {
  const audio = new AudioContext(), tone = audio.createOscillator(), out = audio.createMediaStreamDestination();
  tone.connect(out); tone.start();
  return out.stream.getTracks()[0];
}"""
MICROPHONE = "async () => (await navigator.mediaDevices.getUserMedia({audio: true})).getTracks()[0]"


def expression(server: dict[str, str], sound: str) -> str:
    """What a browser evaluates: a call by this RTCIceServer with this sound; a promise of JSON for `crossed` or `refused`."""
    return f"({_CALL})({json.dumps(server)}, {sound})"


def crossed(text: str, transport: str, relayed: str) -> None:
    """Asserts that words went both ways and sound one way, from relayed address to relayed address of host `relayed`, reached over `transport`."""
    found: dict[str, Any] = json.loads(text)
    assert found["answer"] == "heard hello", found
    assert found["packets"] >= 10
    assert found["sent"] > 1_000
    assert found["received"] > 500
    assert (found["local"]["candidateType"], found["local"]["relayProtocol"]) == ("relay", transport)
    gathered = {" ".join(candidate.split()[4:8]) for candidate in found["candidates"]}
    assert all(candidate.startswith(f"{relayed} ") and candidate.endswith(" typ relay") for candidate in gathered), gathered
    for end in (found["local"], found["remote"]):  # a check may come before the candidate is told, and `remote` is then peer-reflexive: the address says all
        assert f"{end['address']} {end['port']} typ relay" in gathered


def refused(text: str, code: int) -> None:
    """Asserts that no candidate was had, for this reason: 701 where no server was reached, else the server's error code (W3C webrtc-pc s5.7.2)."""
    found = json.loads(text)
    assert (found["answer"], found["candidates"], set(found["errors"])) == ("no candidate", [], {code})
