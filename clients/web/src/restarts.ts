/**
 * When the ICE of a call is restarted: the relay credentials grow old, a relay drains, the path is dead, the application asks. One attempt at a time; after one that
 * failed the next waits; a call that finds no path for LOST_MS ends. How an attempt goes is the hands' matter.
 */

import { HeliographError } from "./errors";
import { type Draining, type IceServers, leftMs, moveAfterMs, renewAfterMs, retryAfterMs, retryLostAfterMs } from "./iceServers";
import { sleep } from "./rest";

export type Why = "asked" | "lost" | "draining" | "renewal" | "peer";

/** What restarts need of a call. */
export interface Hands {
  restart: (servers: RTCIceServer[]) => Promise<void>; // resolves when the peer has answered
  giveUp: (reason: "failed" | "hangup") => void;
}

/** Where a call's servers come from. Without `fetch` there are no others. */
export interface Supply {
  current: IceServers;
  nowMs: () => number; // the server's time
  fetch?: (() => Promise<IceServers>) | undefined;
}

const LOOK_EVERY_MS = 30_000; // timers of a page sleep with the machine, the server's clock does not
const LOST_MS = 30_000;
const SETTLING_MS = 8_000; // a new path has so long to come up before the next one is tried
const GAVE_WAY_MS = 2_000;
const FETCH_MS = 10_000;

export class Restarts {
  readonly done: Why[] = []; // why the call moved, each time it did, oldest first
  #dueMs = Infinity; // by the server's clock, as the others
  #drainMs = Infinity;
  #notBeforeMs = 0;
  #lostMs: number | undefined;
  #isAsked = false;
  #attempt = 0;
  #isTrying = false;
  #isRunning = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private supply: Supply,
    private hands: Hands,
  ) {}

  /** The call is connected, for the first time or again. */
  connected(): void {
    this.#lostMs = undefined;
    if (this.#isRunning) return;
    this.#isRunning = true;
    this.#settle(this.supply.current);
  }

  /** The call was connected, and is not any more. */
  lost(): void {
    if (!this.#isRunning || this.#lostMs !== undefined) return;
    this.#lostMs = this.supply.nowMs();
    this.#attempt = 0;
    this.#hurry();
  }

  /** Restart now. */
  ask(): void {
    this.#isAsked = true;
    this.#hurry();
  }

  /** The relay in use goes away. */
  drain(draining: Draining): void {
    const nowMs = this.supply.nowMs();
    this.#drainMs = Math.min(this.#drainMs, nowMs + moveAfterMs(draining, nowMs));
    this.#hurry();
  }

  /** The peer's offer was answered with these servers. */
  answered(servers: IceServers): void {
    this.#moved(servers, "peer");
  }

  stop(): void {
    this.#isRunning = false;
    clearTimeout(this.#timer);
  }

  /** Servers to gather with. Throws when there are only old ones, and they will not do. */
  async fresh(mustBeNew = false): Promise<IceServers> {
    const { current, fetch, nowMs } = this.supply;
    if (!fetch) return current;
    try {
      return await Promise.race([fetch(), sleep(FETCH_MS).then(() => Promise.reject(new HeliographError("timed_out", "No fresh relay credentials in time.", { retryable: true })))]);
    } catch (error) {
      if (mustBeNew || (leftMs(current, nowMs()) ?? 1) <= 0) throw error;
      return current;
    }
  }

  #settle(servers: IceServers): void {
    this.supply.current = servers;
    const nowMs = this.supply.nowMs();
    this.#dueMs = nowMs + ((this.supply.fetch && renewAfterMs(servers, nowMs)) ?? Infinity);
    this.#drainMs = Infinity;
    this.#isAsked = false;
    this.#attempt = 0;
    this.#notBeforeMs = this.#lostMs === undefined ? 0 : nowMs + SETTLING_MS;
    this.#plan();
  }

  #moved(servers: IceServers, why: Why): void {
    this.done.push(why);
    this.#settle(servers);
  }

  #hurry(): void {
    this.#notBeforeMs = 0;
    this.#plan();
  }

  #wanted(): [number, Why] {
    let wanted: [number, Why] = this.#drainMs < this.#dueMs ? [this.#drainMs, "draining"] : [this.#dueMs, "renewal"];
    if (this.#isAsked) wanted = [0, "asked"];
    if (this.#lostMs !== undefined) wanted = [0, "lost"];
    return [Math.max(wanted[0], this.#notBeforeMs), wanted[1]];
  }

  #plan(): void {
    clearTimeout(this.#timer);
    if (!this.#isRunning || this.#isTrying) return;
    const endMs = this.#lostMs === undefined ? Infinity : this.#lostMs + LOST_MS;
    const waitMs = Math.min(this.#wanted()[0], endMs) - this.supply.nowMs();
    this.#timer = setTimeout(() => void this.#tick(), Math.min(LOOK_EVERY_MS, Math.max(0, waitMs)));
  }

  async #tick(): Promise<void> {
    const nowMs = this.supply.nowMs();
    const [atMs, why] = this.#wanted();
    if (this.#lostMs !== undefined && nowMs >= this.#lostMs + LOST_MS) return this.hands.giveUp("failed");
    if (nowMs >= atMs) await this.#try(why);
    this.#plan();
  }

  async #try(why: Why): Promise<void> {
    this.#isTrying = true;
    try {
      const servers = await this.fresh(why === "renewal");
      await this.hands.restart(servers.servers);
      this.#moved(servers, why);
    } catch (error) {
      this.#failed(why, error);
    } finally {
      this.#isTrying = false;
    }
  }

  #failed(why: Why, error: unknown): void {
    if (!this.#isRunning) return;
    const [code, nowMs] = [error instanceof HeliographError ? error.code : "", this.supply.nowMs()];
    if (code === "call_ended" || code === "call_answered") this.hands.giveUp("hangup");
    else if (code === "glare" || code === "negotiation_stale") this.#notBeforeMs = nowMs + GAVE_WAY_MS; // the peer's offer is on its way
    else {
      console.info(`heliograph: an ICE restart (${why}) failed:`, String(error));
      const pauseMs = why === "lost" ? retryLostAfterMs(this.#attempt) : retryAfterMs(this.#attempt, leftMs(this.supply.current, nowMs));
      this.#notBeforeMs = nowMs + pauseMs;
      this.#attempt += 1;
    }
  }
}
