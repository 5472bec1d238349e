import assert from "node:assert/strict";
import { test } from "node:test";
import { asking, describedPart, isOf, ufragOf } from "../src/sdp";

const PROFILE = { bitrate_bps: 16_000, channels: 1, ptime_ms: 60, fec: true, loss_percent: 10, dtx: true };
const HEAD = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n";
const AUDIO = "m=audio 9 UDP/TLS/RTP/SAVPF 0 111\r\nc=IN IP4 0.0.0.0\r\na=ptime:20\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:111 opus/48000/2\r\na=fmtp:111 minptime=10;useinbandfec=0\r\na=sendrecv\r\n";
const VIDEO = "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=rtpmap:96 VP8/90000\r\na=fmtp:96 max-fr=30\r\n";

test("the description asks for the profile, and the rest of it stays", () => {
  const asked = AUDIO.replace("a=ptime:20\r\n", "").replace(
    "a=fmtp:111 minptime=10;useinbandfec=0\r\n",
    "a=fmtp:111 minptime=10;useinbandfec=1;stereo=0;usedtx=1\r\na=ptime:60\r\na=maxptime:120\r\n",
  );
  assert.equal(asking(HEAD + AUDIO + VIDEO, PROFILE), HEAD + asked + VIDEO);
});

test("asking twice is asking once, and the last profile wins", () => {
  const once = asking(HEAD + AUDIO, PROFILE);
  assert.equal(asking(once, PROFILE), once);
  const back = asking(once, { ...PROFILE, channels: 2, ptime_ms: 20, fec: false, dtx: false });
  assert.match(back, /a=fmtp:111 minptime=10;useinbandfec=0;stereo=1;usedtx=0\r\na=ptime:20\r\n/);
  assert.equal(back.match(/a=ptime:/g)?.length, 1);
});

test("Opus without parameters gets them, a description without Opus stays as it is", () => {
  assert.match(asking(HEAD + AUDIO.replace(/a=fmtp:111.*\r\n/, ""), PROFILE), /a=rtpmap:111 opus\/48000\/2\r\na=fmtp:111 stereo=0;useinbandfec=1;usedtx=1\r\n/);
  const pcmu = HEAD + AUDIO.replace(/a=(rtpmap|fmtp):111.*\r\n/g, "");
  assert.equal(asking(pcmu, PROFILE), pcmu);
  assert.equal(asking("", PROFILE), "");
});

test("a change of the bitrate alone needs no new description", () => {
  assert.equal(describedPart(PROFILE), describedPart({ ...PROFILE, bitrate_bps: 24_000, loss_percent: 20 }));
  assert.notEqual(describedPart(PROFILE), describedPart({ ...PROFILE, ptime_ms: 40 }));
});

test("a candidate belongs to the description whose ICE credentials it names, or names none", () => {
  const sdp = `${HEAD}${AUDIO}a=ice-ufrag:abcd\r\n`;
  const line = "candidate:1 1 udp 1 203.0.113.7 9 typ host generation 0";
  assert.deepEqual([isOf(`${line} ufrag abcd network-id 1`, sdp), isOf(line, sdp), isOf("", sdp)], [true, true, true]);
  assert.deepEqual([isOf(`${line} ufrag abc`, sdp), isOf(`${line} ufrag abcde network-id 1`, sdp), isOf(`${line} ufrag abcd`, "")], [false, false, false]);
  assert.deepEqual([ufragOf(sdp), ufragOf(HEAD)], ["abcd", undefined]);
});
