import assert from "node:assert/strict";
import { test } from "node:test";
import { PathMeter, type Row, relayHosts, selectedPath, totals } from "../src/path";

/** Statistics as Chromium reports them, cut to what is read. */
function rows(change: { packets?: number; bytes?: number; rtcpAt?: number; loss?: number; rttS?: number; estimate?: number } = {}): Row[] {
  const { packets = 0, bytes = 0, rtcpAt = 1, loss = 0, rttS = 0.02, estimate = 300_000 } = change;
  return [
    { type: "transport", id: "T", selectedCandidatePairId: "P" },
    { type: "candidate-pair", id: "Q", nominated: true, localCandidateId: "H", remoteCandidateId: "R" },
    { type: "candidate-pair", id: "P", nominated: true, localCandidateId: "L", remoteCandidateId: "R", availableOutgoingBitrate: estimate, currentRoundTripTime: 0.001 },
    { type: "local-candidate", id: "L", candidateType: "relay", protocol: "udp", relayProtocol: "tls" },
    { type: "local-candidate", id: "H", candidateType: "host", protocol: "udp" },
    { type: "remote-candidate", id: "R", candidateType: "prflx", protocol: "udp" },
    { type: "outbound-rtp", id: "O", kind: "audio", packetsSent: packets, bytesSent: bytes, headerBytesSent: 20 * packets },
    { type: "remote-inbound-rtp", id: "I", kind: "audio", timestamp: rtcpAt, fractionLost: loss, roundTripTime: rttS, jitter: 0.0031 },
    { type: "inbound-rtp", id: "N", kind: "audio", packetsReceived: 7, bytesReceived: 700, totalAudioEnergy: 0.5 },
  ];
}

test("the selected path is the transport's pair, with the protocol to the relay", () => {
  assert.deepEqual(selectedPath(rows()), { local: "relay", remote: "prflx", protocol: "tls" });
  assert.equal(selectedPath([]), null);
  const withoutTransport = rows().filter((row) => row.type !== "transport");
  assert.deepEqual(selectedPath(withoutTransport), { local: "host", remote: "prflx", protocol: "udp" });
});

test("totals are the audio streams' and zero before there are any", () => {
  assert.deepEqual(totals(rows({ bytes: 9 })), { sentBytes: 9, receivedBytes: 700, receivedPackets: 7, receivedEnergy: 0.5 });
  assert.deepEqual(totals([]), { sentBytes: 0, receivedBytes: 0, receivedPackets: 0, receivedEnergy: 0 });
});

test("a clean path claims no available bandwidth, because audio alone never shows its limit", () => {
  const meter = new PathMeter();
  meter.report(rows(), 0, true);
  const report = meter.report(rows({ packets: 50, bytes: 4_000, rtcpAt: 2 }), 1_000, true);
  assert.deepEqual(report, { has_video: false, sent_bps: 55_200, rtt_ms: 20, queue_ms: 0, jitter_ms: 3.1, loss: 0 });
});

test("a congested path reports the browser's estimate, if feedback was negotiated", () => {
  const meter = new PathMeter();
  meter.report(rows(), 0, true);
  const congested = rows({ packets: 50, bytes: 4_000, rtcpAt: 2, loss: 0.25, rttS: 0.32, estimate: 38_000 });
  assert.deepEqual(meter.report(congested, 1_000, true), { has_video: false, sent_bps: 55_200, rtt_ms: 320, queue_ms: 300, jitter_ms: 3.1, loss: 0.25, available_bps: 38_000 });
  assert.equal(meter.report(congested, 2_000, false).available_bps, undefined);
});

test("after a change of rate the report at hand and the next one, which straddles the change, are passed over", () => {
  const meter = new PathMeter();
  const lossy = rows({ rtcpAt: 2, loss: 0.25 });
  assert.equal(meter.report(lossy, 0, true).loss, 0.25);
  meter.restart();
  assert.deepEqual(meter.report(lossy, 1_000, true), { has_video: false, rtt_ms: 1, queue_ms: 0 });
  assert.equal(meter.report(rows({ rtcpAt: 3, loss: 0.2 }), 2_000, true).loss, undefined);
  assert.equal(meter.report(rows({ rtcpAt: 3, loss: 0.2 }), 3_000, true).loss, undefined);
  assert.equal(meter.report(rows({ rtcpAt: 4, loss: 0.01 }), 4_000, true).loss, 0.01);
});

test("the rate is that of the last two seconds, so that a pause between words is not read as a slow path", () => {
  const meter = new PathMeter();
  const totalBytes = [0, 4_000, 8_000, 8_000, 8_000, 8_000];
  const rates = totalBytes.map((bytes, second) => meter.report(rows({ bytes }), second * 1_000, true).sent_bps);
  assert.deepEqual(rates, [undefined, 32_000, 32_000, 16_000, 0, 0]);
});

test("statistics of a call that has not begun make an empty report", () => {
  assert.deepEqual(new PathMeter().report([], 0, false), { has_video: false });
  assert.deepEqual(new PathMeter().report([{ type: "outbound-rtp", id: "O", kind: "audio", packetsSent: Number.NaN }], 0, false), { has_video: false });
});

test("the relay in use is told by its address and its URL, and only when the path needs one", () => {
  const relayed = rows().map((row) => (row.id === "L" ? { ...row, address: "203.0.113.7", url: "turn:relay.example:3478?transport=udp" } : row));
  assert.deepEqual(relayHosts(relayed), ["203.0.113.7", "relay.example"]);
  assert.deepEqual(relayHosts(rows()), [], "an address that is not told");
  assert.deepEqual(relayHosts(rows().filter((row) => row.type !== "transport")), [], "a direct path");
});
