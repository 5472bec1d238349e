import assert from "node:assert/strict";
import { test } from "node:test";
import { type IceServers, hostOf, leftMs, moveAfterMs, parseDraining, parseIceServers, renewAfterMs, retryAfterMs, retryLostAfterMs } from "../src/iceServers";

const TURN = { urls: ["turn:relay.example:3478?transport=udp"], username: "u", credential: "c" };
const STUN = { urls: ["stun:relay.example:3478"] };
const [LIFE_S, BEGAN_MS] = [14_400, 1_735_689_600_000];
const answer = (servers: RTCIceServer[], ttl_s = LIFE_S): IceServers => parseIceServers({ ice_servers: servers, ttl_s, expires_at_ms: BEGAN_MS + ttl_s * 1_000 });

test("new credentials are fetched at 80 to 85 % of the life, by the server's clock", () => {
  for (const lifeS of [4, 600, LIFE_S]) {
    for (const fraction of [0, 0.5, 1]) {
      const afterMs = renewAfterMs(answer([STUN, TURN], lifeS), BEGAN_MS, fraction);
      assert.ok(Math.abs((afterMs ?? 0) - lifeS * 1_000 * (0.8 + 0.05 * fraction)) < 1, `${lifeS} s, ${fraction}: ${afterMs}`);
    }
  }
  assert.equal(Math.round(renewAfterMs(answer([TURN]), BEGAN_MS + 3_600_000, 0) ?? 0), LIFE_S * 800 - 3_600_000);
});

test("credentials that seem old when they come are not asked for without pause", () => {
  for (const lateMs of [LIFE_S * 900, LIFE_S * 2_000, 1e15]) assert.equal(renewAfterMs(answer([TURN]), BEGAN_MS + lateMs, 1), LIFE_S * 200);
  assert.ok((renewAfterMs(answer([TURN], 0), BEGAN_MS, 1) ?? 0) > 100);
});

test("calls without a relay, or whose credentials have no end, are never renewed", () => {
  assert.notEqual(renewAfterMs(answer([TURN]), BEGAN_MS), undefined);
  assert.notEqual(renewAfterMs(answer([{ ...TURN, urls: "turns:relay.example" }]), BEGAN_MS), undefined);
  for (const servers of [answer([STUN]), answer([]), { servers: [TURN] }]) assert.equal(renewAfterMs(servers, BEGAN_MS), undefined);
});

test("a fetch that fails is repeated several times before the credentials end, and a minute apart at most after it", () => {
  for (const lifeS of [5, LIFE_S]) {
    const servers = answer([TURN], lifeS);
    let [nowMs, attempts] = [renewAfterMs(servers, BEGAN_MS, 1) ?? 0, 0];
    for (; nowMs < lifeS * 1_000; attempts += 1) nowMs += retryAfterMs(attempts, leftMs(servers, BEGAN_MS + nowMs), 0.7) + 50;
    assert.ok(attempts >= 5, `${attempts} in a life of ${lifeS} s`);
  }
  assert.deepEqual([retryAfterMs(40, -1, 1), retryAfterMs(40, undefined, 1), retryLostAfterMs(40, 1)], [60_000, 60_000, 4_000]);
});

test("calls leave a draining relay within seconds and not all at once", () => {
  const draining = parseDraining({ relay_hosts: ["203.0.113.7"], ends_at_ms: BEGAN_MS + 60_000, of_a_newer_server: 1 });
  assert.deepEqual(draining, { relayHosts: ["203.0.113.7"], endsAtMs: BEGAN_MS + 60_000 });
  const after = (nowMs: number, fraction: number): number => moveAfterMs(draining!, nowMs, fraction);
  assert.deepEqual([after(BEGAN_MS, 0), after(BEGAN_MS, 0.5), after(BEGAN_MS, 1)], [0, 1_500, 3_000]);
  assert.deepEqual([after(BEGAN_MS + 58_000, 1), after(BEGAN_MS + 61_000, 1)], [1_000, 0]);
});

test("a draining event that cannot be read is none", () => {
  const good = { relay_hosts: ["203.0.113.7"], ends_at_ms: 123 };
  assert.notEqual(parseDraining(good), undefined);
  for (const bad of [{}, { ...good, relay_hosts: "203.0.113.7" }, { ...good, relay_hosts: [7] }, { ...good, ends_at_ms: "soon" }]) assert.equal(parseDraining(bad), undefined);
});

test("the host of a URL", () => {
  const urls = ["turn:203.0.113.7:3478?transport=udp", "turns:relay.example?transport=tcp", "turn:[2001:db8::7]:3478", "stun:relay.example:3478", ""];
  assert.deepEqual(urls.map(hostOf), ["203.0.113.7", "relay.example", "2001:db8::7", "relay.example", ""]);
});
