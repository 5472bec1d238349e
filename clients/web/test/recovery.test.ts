import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";
import type { Json } from "../src/errors";
import type { HeliographEvent } from "../src/frames";
import { Recovery } from "../src/recovery";

const ROOM = "room_1";
const message = (offset: number, epoch = "e1"): HeliographEvent => ({ kind: "event", event: "message", body: { text: `${offset}` }, room_id: ROOM, epoch, offset });
const room = (offset: number, body: Json = {}, epoch = "e1"): HeliographEvent => ({ kind: "event", event: "room", body: { recovered: true, events: [], ...body }, room_id: ROOM, epoch, offset });
const joined = (version: number, epoch = "r1"): HeliographEvent => ({ kind: "event", event: "participant_joined", body: { roster_epoch: epoch, roster_version: version }, room_id: ROOM });
const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

let told: (number | undefined)[];
let rejoined: number;
let pages: Json[][];
let recovery: Recovery;

beforeEach(() => {
  [told, rejoined, pages] = [[], 0, []];
  recovery = new Recovery({
    tell: (event) => void (event.event === "message" && told.push(event.offset)),
    rejoin: async () => void (rejoined += 1),
    read: async () => pages.shift() ?? [],
  });
});

test("a snapshot brings what was missed, each once, whatever came live meanwhile", async () => {
  recovery.receive(room(4));
  recovery.receive(message(5));
  recovery.receive(message(8));
  recovery.receive(room(8, { events: [message(6), message(7), message(8)] }));
  await settled();
  assert.deepEqual(told, [5, 6, 7, 8]);
  assert.deepEqual(recovery.position(ROOM), { epoch: "e1", offset: 8 });
});

test("a long absence is read page by page", async () => {
  recovery.receive(room(0));
  pages = [[message(2) as unknown as Json], [message(3) as unknown as Json]];
  recovery.receive(room(3, { events: [message(1)], more: true }));
  await settled();
  assert.deepEqual(told, [1, 2, 3]);
});

test("pages that end early do not go on for ever, and leave the position where it is true", async () => {
  recovery.receive(room(0));
  recovery.receive(room(3, { events: [message(1)], more: true }));
  await settled();
  assert.deepEqual(recovery.position(ROOM), { epoch: "e1", offset: 1 });
});

test("a stream of another life starts anew", () => {
  recovery.receive(room(9));
  recovery.receive(message(3, "e2"));
  assert.equal(rejoined, 1);
  recovery.receive(room(3, { recovered: false }, "e2"));
  recovery.receive(message(4, "e2"));
  assert.deepEqual(told, [4]);
});

test("behind leads to one join, and a gap that stays to another", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  recovery.receive(room(1));
  recovery.receive({ kind: "event", event: "behind", body: {}, room_id: ROOM, epoch: "e1", offset: 2 });
  recovery.receive({ kind: "event", event: "behind", body: {}, room_id: ROOM, epoch: "e1", offset: 2 });
  assert.equal(rejoined, 1);
  await settled();
  recovery.receive(message(3));
  assert.deepEqual(told, []);
  mock.timers.tick(1_000);
  assert.equal(rejoined, 2);
  mock.timers.reset();
});

test("our own message fills its place", () => {
  recovery.receive(room(1));
  recovery.wrote(ROOM, { kind: "ack", re: "msg_1", epoch: "e1", offset: 2 });
  recovery.receive(message(3));
  assert.deepEqual(told, [3]);
});

test("a roster that skipped a version, or is another one, is had anew", async () => {
  recovery.receive(room(0, { roster_epoch: "r1", roster_version: 4 }));
  recovery.receive(joined(5));
  recovery.receive(joined(5));
  assert.equal(rejoined, 0);
  recovery.receive(joined(7));
  assert.equal(rejoined, 1);
  await settled();
  recovery.receive(joined(6, "r2"));
  assert.equal(rejoined, 2);
});
