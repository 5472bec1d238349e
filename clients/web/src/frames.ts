/** Frames of `heliograph.v1`: building the client's, reading the server's. Pure; the golden frames in clients/protocol test it against the server and the other clients. */

import { type HeliographError, type Json, ours, parseError, text, whole } from "./errors";

export const SUBPROTOCOL = "heliograph.v1";
export const TICKET_PREFIX = "ticket.";
export const MAX_FRAME_BYTES = 32 * 1024;

/** The server accepted a frame; with an offset it is durable and stands in the room's stream. */
export interface Ack {
  kind: "ack";
  re: string;
  epoch?: string | undefined;
  offset?: number | undefined;
}

/** The server refused a frame; `re` is missing when it could not read the frame's id. */
export interface Refusal {
  kind: "refusal";
  re?: string | undefined;
  error: HeliographError;
}

/** Something happened; with `epoch` and `offset` it stands in the room's stream. */
export interface HeliographEvent {
  kind: "event";
  event: string;
  body: Json;
  room_id?: string | undefined;
  epoch?: string | undefined;
  offset?: number | undefined;
  at_ms?: number | undefined;
  trace_id?: string | undefined;
}

/** A client's frame as JSON text; throws `too_large` above what the server takes. */
export function buildFrame(action: string, id: string, clientSeq: number, traceId: string, roomId?: string, body: Json = {}): string {
  const frame = { action, id, client_seq: clientSeq, trace_id: traceId, ...(roomId === undefined ? {} : { room_id: roomId }), body };
  const built = JSON.stringify(frame);
  if (new TextEncoder().encode(built).length > MAX_FRAME_BYTES) {
    throw ours("too_large", `the ${action} frame has more than ${MAX_FRAME_BYTES} bytes`);
  }
  return built;
}

/** What the server said; null for anything this version does not know, among them API Gateway's own messages. */
export function parseFrame(raw: string): Ack | Refusal | HeliographEvent | null {
  let frame: unknown;
  try {
    frame = JSON.parse(raw);
  } catch {
    return null;
  }
  if (!isObject(frame)) return null;
  if (text(frame["code"]) !== undefined) return { kind: "refusal", re: text(frame["re"]), error: parseError(frame) };
  const re = text(frame["re"]);
  if (re !== undefined) return { kind: "ack", re, epoch: text(frame["epoch"]), offset: whole(frame["offset"]) };
  return parseEvent(frame);
}

/** An event from its JSON object; null when it is not one. */
export function parseEvent(frame: Json): HeliographEvent | null {
  const name = text(frame["event"]);
  const body = frame["body"] ?? {};
  if (name === undefined || !isObject(body)) return null;
  return {
    kind: "event",
    event: name,
    body,
    room_id: text(frame["room_id"]),
    epoch: text(frame["epoch"]),
    offset: whole(frame["offset"]),
    at_ms: whole(frame["at_ms"]),
    trace_id: text(frame["trace_id"]),
  };
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
