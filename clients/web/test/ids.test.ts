import assert from "node:assert/strict";
import { test } from "node:test";
import { makeId, newTraceId, uuid7Hex } from "../src/ids";

test("a UUIDv7 carries the time, the version, the variant and the random bits (RFC 9562, appendix A.6)", () => {
  const random = Uint8Array.from([0x0c, 0xc3, 0x18, 0xc4, 0xdc, 0x0c, 0x0c, 0x07, 0x39, 0x8f]);
  assert.equal(uuid7Hex(0x017f22e279b0, random), "017f22e279b07cc398c4dc0c0c07398f");
});

test("ids have their prefix and 32 hex digits, and sort by creation time", async () => {
  const first = makeId("msg");
  await new Promise((resolve) => setTimeout(resolve, 3));
  assert.match(first, /^msg_[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}$/);
  assert.ok(first < makeId("msg"));
  assert.match(newTraceId(), /^[0-9a-f]{32}$/);
});
