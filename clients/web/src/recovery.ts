/**
 * Rooms on this side: every stream in order and without gaps, every roster at its newest version. Knows events; must not know sockets or REST.
 * Whatever is missing is had by joining again from where we are; event `room` brings it.
 */

import { type Json } from "./errors";
import { type Ack, type HeliographEvent, parseEvent } from "./frames";
import { Stream } from "./stream";

const GAP_MS = 1_000; // a missing event may still be on its way

/** What recovery needs of a client. */
export interface Hands {
  tell: (event: HeliographEvent) => void;
  rejoin: (roomId: string) => Promise<void>; // with `position`
  read: (roomId: string, after: { epoch: string; after: string }) => Promise<Json[]>; // GET /v1/rooms/{room_id}/events
}

export class Recovery {
  #streams = new Map<string, Stream>();
  #rosters = new Map<string, { epoch: unknown; version: number }>();
  #rejoining = new Set<string>();

  constructor(private hands: Hands) {}

  /** Where we are in the room's stream; undefined before we are anywhere. */
  position(roomId: string): { epoch: string; offset: number } | undefined {
    const stream = this.#streams.get(roomId);
    return stream && { epoch: stream.epoch, offset: stream.offset };
  }

  forget(roomId: string): void {
    this.#streams.delete(roomId);
    this.#rosters.delete(roomId);
  }

  /** Ephemeral events are told as they come, those of a stream in its order. */
  receive(event: HeliographEvent): void {
    const { room_id, epoch, offset } = event;
    if (room_id === undefined) this.hands.tell(event);
    else if (event.event === "room") this.#enter(room_id, event);
    else if (event.event === "behind") this.#recover(room_id);
    else if (epoch !== undefined && offset !== undefined) this.#take(room_id, epoch, offset, event);
    else this.hands.tell(event);
    if (room_id !== undefined && event.event.startsWith("participant_")) this.#checkRoster(room_id, event.body);
  }

  /** Our own message stands in the stream; nobody needs to be told. */
  wrote(roomId: string, { epoch, offset }: Ack): void {
    if (epoch !== undefined && offset !== undefined && this.#streams.has(roomId)) this.#take(roomId, epoch, offset, null);
  }

  #take(roomId: string, epoch: string, offset: number, event: HeliographEvent | null): void {
    const stream = this.#streams.get(roomId);
    if (!stream) {
      this.#streams.set(roomId, new Stream(epoch, offset));
      if (event) this.hands.tell(event);
    } else if (stream.epoch !== epoch) {
      this.#recover(roomId);
    } else {
      for (const ready of stream.take(offset, event)) this.hands.tell(ready);
      if (stream.hasGap) setTimeout(() => stream.hasGap && this.#recover(roomId), GAP_MS);
    }
  }

  /** What cannot be had now, the next ping finds missing again. */
  #recover(roomId: string): void {
    if (this.#rejoining.has(roomId)) return;
    this.#rejoining.add(roomId);
    void this.hands
      .rejoin(roomId)
      .catch(() => undefined)
      .finally(() => this.#rejoining.delete(roomId));
  }

  /** A snapshot: its roster replaces ours, its events are those we missed. With `recovered: false` an application drops what it has and reads anew. */
  #enter(roomId: string, snapshot: HeliographEvent): void {
    const { epoch, offset, body } = snapshot;
    this.#rosters.set(roomId, rosterOf(body));
    this.hands.tell(snapshot);
    if (epoch === undefined || offset === undefined) return;
    const known = this.#streams.get(roomId);
    if (!known || known.epoch !== epoch) this.#streams.set(roomId, new Stream(epoch, offset));
    else if (body["recovered"] === false) for (const ready of known.advance(offset)) this.hands.tell(ready);
    else void this.#catchUp(roomId, known, offset, body).catch(() => undefined);
  }

  async #catchUp(roomId: string, stream: Stream, head: number, snapshot: Json): Promise<void> {
    for (let page = snapshot["events"] as Json[] | undefined; ; page = await this.hands.read(roomId, { epoch: stream.epoch, after: String(stream.offset) })) {
      const before = stream.offset;
      for (const frame of page ?? []) {
        const event = parseEvent(frame);
        if (event?.offset !== undefined) this.#take(roomId, stream.epoch, event.offset, event);
      }
      if (stream.offset >= head || (stream.offset === before && page !== snapshot["events"])) break;
    }
  }

  /** Another roster, or a change that did not reach us: the snapshot of a new join replaces ours. */
  #checkRoster(roomId: string, body: Json): void {
    const [known, told] = [this.#rosters.get(roomId), rosterOf(body)];
    if (!known || told.epoch === undefined || (known.epoch === told.epoch && told.version <= known.version)) return;
    if (known.epoch === told.epoch && told.version === known.version + 1) this.#rosters.set(roomId, told);
    else this.#recover(roomId);
  }
}

function rosterOf(body: Json): { epoch: unknown; version: number } {
  return { epoch: body["roster_epoch"], version: Number(body["roster_version"]) };
}
