/** Ids: a prefix and a UUIDv7 (RFC 9562 5.7) in 32 hex digits, so that ids sort by creation time. */

/** 48 bits of time, version 7, 12 random bits, variant 10, 62 random bits; `random` has 10 bytes. */
export function uuid7Hex(atMs: number, random: Uint8Array): string {
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, Math.floor(atMs / 0x1_0000));
  view.setUint16(4, atMs % 0x1_0000);
  bytes.set(random.subarray(0, 10), 6);
  view.setUint8(6, 0x70 | (view.getUint8(6) & 0x0f));
  view.setUint8(8, 0x80 | (view.getUint8(8) & 0x3f));
  return toHex(bytes);
}

/** A new id, e.g. `msg_018f…`. */
export function makeId(prefix: string): string {
  return `${prefix}_${uuid7Hex(Date.now(), randomBytes(10))}`;
}

/** 32 hex digits that follow a request through the server's logs; also good as an Idempotency-Key. */
export function newTraceId(): string {
  return toHex(randomBytes(16));
}

export function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function randomBytes(count: number): Uint8Array {
  return crypto.getRandomValues(new Uint8Array(count));
}
