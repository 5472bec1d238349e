"""Chromium, relay-only, against our relay: two peer connections of one page, each with an allocation of its own."""

from __future__ import annotations

import shutil
import time

import pytest
from playwright.async_api import async_playwright

from heliograph.ice import TurnSecrets, turn_password, turn_username
from media_fleet.relay import Relay, RelayConfig
from media_fleet.turn import shared_secrets

CALL = """
async server => {
  const settings = {iceServers: [server], iceTransportPolicy: 'relay'};
  const caller = new RTCPeerConnection(settings), callee = new RTCPeerConnection(settings);
  const candidates = [];
  caller.onicecandidate = event => { if (event.candidate) { candidates.push(event.candidate.candidate); callee.addIceCandidate(event.candidate); } };
  callee.onicecandidate = event => { if (event.candidate) caller.addIceCandidate(event.candidate); };
  const audio = new AudioContext(), tone = audio.createOscillator(), out = audio.createMediaStreamDestination();
  tone.connect(out); tone.start();
  caller.addTrack(out.stream.getTracks()[0], out.stream);
  const channel = caller.createDataChannel('words');
  const heard = new Promise(done => { channel.onmessage = event => done(event.data); });
  callee.ondatachannel = event => { event.channel.onmessage = message => event.channel.send('heard ' + message.data); };
  channel.onopen = () => channel.send('hello');
  await caller.setLocalDescription(await caller.createOffer());
  await callee.setRemoteDescription(caller.localDescription);
  await callee.setLocalDescription(await callee.createAnswer());
  await caller.setRemoteDescription(callee.localDescription);
  const answer = await Promise.race([heard, new Promise(done => setTimeout(() => done('nothing within 15 s'), 15000))]);
  const packets = async () => [...(await callee.getStats()).values()].filter(row => row.type === 'inbound-rtp').map(row => row.packetsReceived)[0] || 0;
  for (let tries = 0; tries < 50 && await packets() < 20; tries++) await new Promise(done => setTimeout(done, 100));
  return {answer, candidates, packets: await packets()};
}
"""


@pytest.mark.browser
async def test_two_relay_only_peers_in_chromium_hear_each_other_without_an_allowed_cidr() -> None:
    chromium = shutil.which("chromium")
    assert chromium, "chromium is not installed: apt-get install chromium (make test does it)"
    realm, username = "heliograph", turn_username(time.time_ns() // 10**9 + 600, "acc_1", "dev_1")
    async with Relay(RelayConfig(realm=realm, credentials=shared_secrets(lambda: TurnSecrets("north"), realm), listen=(("127.0.0.1", 0),))) as relay:
        server = {"urls": [f"turn:127.0.0.1:{relay.address[1]}?transport=udp"], "username": username, "credential": turn_password("north", username)}
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"])
            page = await browser.new_page()
            found = await page.evaluate(CALL, server)
            usages = relay.allocations()
            await browser.close()
    assert found["answer"] == "heard hello"
    assert found["candidates"]
    assert all(" typ relay " in candidate for candidate in found["candidates"])
    assert found["packets"] >= 20
    assert {usage["account_id"] for usage in usages} == {"acc_1"}
    assert all(usage["from_client_packets"] and usage["to_client_packets"] for usage in usages)
