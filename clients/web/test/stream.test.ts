import assert from "node:assert/strict";
import { test } from "node:test";
import type { HeliographEvent } from "../src/frames";
import { Stream } from "../src/stream";

const at = (offset: number): HeliographEvent => ({ kind: "event", event: "message", body: {}, offset });
const offsets = (events: HeliographEvent[]): (number | undefined)[] => events.map((event) => event.offset);

test("events are handed out in order and once", () => {
  const stream = new Stream("e1", 4);
  assert.deepEqual(offsets(stream.take(5, at(5))), [5]);
  assert.deepEqual(offsets(stream.take(5, at(5))), []);
  assert.deepEqual(offsets(stream.take(3, at(3))), []);
  assert.deepEqual(offsets(stream.take(8, at(8))), []);
  assert.deepEqual(offsets(stream.take(7, at(7))), []);
  assert.ok(stream.hasGap);
  assert.deepEqual(offsets(stream.take(6, at(6))), [6, 7, 8]);
  assert.equal(stream.offset, 8);
  assert.ok(!stream.hasGap);
});

test("our own message fills its place and is not told", () => {
  const stream = new Stream("e1", 0);
  assert.deepEqual(offsets(stream.take(2, null)), []);
  assert.deepEqual(offsets(stream.take(1, at(1))), [1]);
  assert.equal(stream.offset, 2);
});

test("what a recovery covered is not handed out again", () => {
  const stream = new Stream("e1", 1);
  stream.take(3, at(3));
  assert.deepEqual(offsets(stream.take(5, at(5))), []);
  assert.deepEqual(offsets(stream.advance(4)), [5]);
  assert.deepEqual(offsets(stream.advance(2)), []);
  assert.equal(stream.offset, 5);
});
