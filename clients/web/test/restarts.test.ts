/** When the ICE of a call is restarted, over hours of a clock that this test moves. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { HeliographError } from "../src/errors";
import type { IceServers } from "../src/iceServers";
import { Restarts } from "../src/restarts";

const LIFE_S = 14_400;
const soon = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
let given: string[]; // why the call was given up
let attempts: number[]; // seconds since the beginning
let fetched: number;
let fail: { fetch: boolean; restart: HeliographError | undefined };

beforeEach(() => {
  mock.timers.enable({ apis: ["setTimeout", "Date"], now: 1_735_689_600_000 });
  mock.method(console, "info", () => undefined);
  [given, attempts, fetched, fail] = [[], [], 0, { fetch: false, restart: undefined }];
});
afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

const nowS = (): number => (Date.now() - 1_735_689_600_000) / 1_000;
const relay = (): IceServers => ({ servers: [{ urls: "turn:relay.example" }], ttlS: LIFE_S, expiresAtMs: Date.now() + LIFE_S * 1_000 });

/** A connected call. */
function restarts(current: IceServers = relay(), hasFetch = true): Restarts {
  const fetch = async (): Promise<IceServers> => {
    fetched += 1;
    if (fail.fetch) throw new HeliographError("connection_lost", "no answer");
    return relay();
  };
  const restart = async (): Promise<void> => {
    attempts.push(nowS());
    if (fail.restart) throw fail.restart;
  };
  const made = new Restarts({ current, nowMs: () => Date.now(), fetch: hasFetch ? fetch : undefined }, { restart, giveUp: (reason) => (given.push(reason), made.stop()) });
  made.connected();
  return made;
}

async function pass(seconds: number, stepS = 1): Promise<void> {
  for (const endS = nowS() + seconds; nowS() < endS - 1e-6; ) {
    mock.timers.tick(Math.min(stepS, endS - nowS()) * 1_000);
    for (let turn = 0; turn < 3; turn += 1) await soon();
  }
}

test("at 80 to 85 % of each life the call moves onto fresh credentials", async () => {
  const made = restarts();
  await pass(LIFE_S * 0.8 - 31, 30);
  assert.deepEqual([made.done, fetched], [[], 0]);
  await pass(LIFE_S * 0.05 + 62, 30);
  assert.deepEqual([made.done, fetched], [["renewal"], 1]);
  await pass(LIFE_S * 0.86, 30);
  assert.deepEqual(made.done, ["renewal", "renewal"]);
});

test("a fetch that fails is repeated until it succeeds, before the credentials end", async () => {
  const made = restarts();
  fail.fetch = true;
  await pass(LIFE_S * 0.88, 10);
  assert.ok(fetched > 3, `${fetched} attempts`);
  assert.deepEqual([made.done, attempts], [[], []], "old credentials would not do");
  fail.fetch = false;
  await pass(120);
  assert.deepEqual(made.done, ["renewal"]);
});

test("calls without a relay or with servers of their own are left alone", async () => {
  const calls = [restarts({ ...relay(), servers: [{ urls: "stun:relay.example" }] }), restarts(relay(), false)];
  await pass(LIFE_S * 1.2, 30);
  assert.deepEqual([calls.map((made) => made.done), fetched], [[[], []], 0]);
});

test("who answers the peer's restart is renewed with it", async () => {
  const made = restarts();
  await pass(LIFE_S * 0.7, 30);
  made.answered(relay());
  await pass(LIFE_S * 0.7, 30);
  assert.deepEqual([made.done, fetched], [["peer"], 0]);
});

test("a draining relay is left within three seconds", async () => {
  const made = restarts();
  made.drain({ relayHosts: ["203.0.113.7"], endsAtMs: Date.now() + 60_000 });
  await pass(4, 0.1);
  assert.deepEqual([made.done, attempts.length], [["draining"], 1]);
});

test("a lost path is looked for again and again, and after half a minute the call is given up", async () => {
  const made = restarts();
  fail.restart = new HeliographError("timed_out", "nobody answers");
  made.lost();
  await pass(29, 0.1);
  assert.ok(attempts.length >= 5, `${attempts}`);
  assert.deepEqual(given, []);
  await pass(2, 0.1);
  assert.deepEqual([given, made.done], [["failed"], []]);
  const before = attempts.length;
  await pass(60);
  assert.equal(attempts.length, before, "it is over");
});

test("a lost path that comes back, by itself or by a restart, ends nothing", async () => {
  const made = restarts();
  fail.fetch = true; // what it has is good for hours
  made.lost();
  await pass(1, 0.1);
  assert.deepEqual([made.done, attempts.length], [["lost"], 1]);
  await pass(5, 0.1);
  assert.equal(attempts.length, 1, "the new path has time to come up");
  made.connected();
  await pass(40, 0.5);
  assert.deepEqual([given, attempts.length], [[], 1]);
});

test("glare pauses, the end of the call ends", async () => {
  const made = restarts();
  fail.restart = new HeliographError("glare", "the peer's offer stands");
  made.ask();
  await pass(1.5, 0.1);
  assert.equal(attempts.length, 1);
  fail.restart = undefined;
  await pass(1, 0.1);
  assert.deepEqual(made.done, ["asked"]);
  fail.restart = new HeliographError("call_ended", "over");
  made.ask();
  await pass(1, 0.1);
  assert.deepEqual(given, ["hangup"]);
});
