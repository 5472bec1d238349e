/** Golden frames: what this client builds and reads is what the server and the other clients read and send. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { HeliographError, type Json } from "../src/errors";
import { MAX_FRAME_BYTES, buildFrame, parseFrame } from "../src/frames";

interface Case {
  name: string;
  frame: Json;
}
type Golden = Record<string, Case[]>;

const read = (name: string): Golden => JSON.parse(readFileSync(`../protocol/${name}`, "utf8")) as Golden;
const [client, server] = [read("client_frames.json"), read("server_frames.json")];
const cases = (golden: Golden, group: string): Case[] => {
  const found = golden[group] ?? [];
  assert.ok(found.length > 0, `no golden frames in ${group}`);
  return found;
};
const known = (frame: object): Json => Object.fromEntries(Object.entries(frame).filter(([name, value]) => value !== undefined && name !== "kind"));

for (const { name, frame } of cases(client, "valid")) {
  test(`the client builds: ${name}`, () => {
    const { action, id, client_seq, trace_id, room_id, body } = frame as { action: string; id: string; client_seq: number; trace_id: string; room_id?: string; body: Json };
    assert.deepEqual(JSON.parse(buildFrame(action, id, client_seq, trace_id, room_id, body)), frame);
  });
}

for (const { name, frame } of cases(server, "acknowledgements")) {
  test(`the client reads the acknowledgement: ${name}`, () => {
    const ack = parseFrame(JSON.stringify(frame));
    assert.equal(ack?.kind, "ack");
    assert.deepEqual(known(ack), frame);
  });
}

for (const { name, frame } of cases(server, "refusals")) {
  test(`the client reads the refusal: ${name}`, () => {
    const refusal = parseFrame(JSON.stringify(frame));
    assert.equal(refusal?.kind, "refusal");
    const { code, message, retryable, retryAfterMs, traceId } = refusal.error;
    const heard = { code, message: message.slice(code.length + 2), retryable, retry_after_ms: retryAfterMs, trace_id: traceId, re: refusal.re };
    assert.deepEqual(known(heard), frame);
  });
}

for (const { name, frame } of cases(server, "events")) {
  test(`the client reads the event: ${name}`, () => {
    const event = parseFrame(JSON.stringify(frame));
    assert.equal(event?.kind, "event");
    assert.deepEqual(known(event), frame);
  });
}

for (const { name, frame } of cases(server, "ignored")) {
  test(`the client skips: ${name}`, () => assert.equal(parseFrame(JSON.stringify(frame)), null));
}

test("text that is no frame is skipped", () => {
  for (const raw of ["", "{", "[]", "null", '"re"', '{"event": 7}', '{"event": "x", "body": []}']) assert.equal(parseFrame(raw), null, raw);
});

test("a frame of 32 KB is built, one byte more is refused before it is sent", () => {
  const empty = buildFrame("message", "msg_1", 1, "t", "room_1", { text: "" }).length;
  const fits = "a".repeat(MAX_FRAME_BYTES - empty);
  assert.equal(buildFrame("message", "msg_1", 1, "t", "room_1", { text: fits }).length, MAX_FRAME_BYTES);
  assert.throws(
    () => buildFrame("message", "msg_1", 1, "t", "room_1", { text: fits + "a" }),
    (error: unknown) => error instanceof HeliographError && error.code === "too_large" && !error.retryable,
  );
});
