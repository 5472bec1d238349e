/** One room's stream on this side: events handed out in the order of their offsets, each once; a gap is noticed. Pure. */

import type { HeliographEvent } from "./frames";

export class Stream {
  #ahead = new Map<number, HeliographEvent | null>(); // beyond a gap; null: our own message, which nobody needs to be told

  constructor(
    public epoch: string,
    public offset: number,
  ) {}

  get hasGap(): boolean {
    return this.#ahead.size > 0;
  }

  /** An event (or our own message) stands at this offset; answers what may be handed out now. */
  take(offset: number, event: HeliographEvent | null): HeliographEvent[] {
    if (offset > this.offset) this.#ahead.set(offset, event);
    return this.#drain();
  }

  /** Everything up to `offset` is known. */
  advance(offset: number): HeliographEvent[] {
    this.offset = Math.max(this.offset, offset);
    for (const known of [...this.#ahead.keys()]) if (known <= this.offset) this.#ahead.delete(known);
    return this.#drain();
  }

  #drain(): HeliographEvent[] {
    const ready: HeliographEvent[] = [];
    for (let event = this.#ahead.get(this.offset + 1); event !== undefined; event = this.#ahead.get(this.offset + 1)) {
      this.offset += 1;
      this.#ahead.delete(this.offset);
      if (event) ready.push(event);
    }
    return ready;
  }
}
