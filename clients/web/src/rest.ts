/** REST: tokens and their refresh, idempotency keys, retries, the error shape. Knows HTTP and nothing of what the routes mean. */

import { HeliographError, type Json, ours, parseError } from "./errors";
import { newTraceId } from "./ids";

const REFRESH_BEFORE_MS = 60_000;
const REFRESH_TIMEOUT_MS = 6_000; // each attempt: all of them must begin within the half minute in which the server gives the same successor again
const ATTEMPTS = 4;
const LONGEST_WAIT_MS = 20_000; // who is told to come back later than that is told so: a person waits for the answer

/** Who is signed in on which device: the answer of `POST /v1/tokens`. */
export interface Session {
  tenant_id: string;
  account_id: string;
  device_id: string;
  access_token: string;
  refresh_token: string;
  expires_at_ms: number;
}

/** Full jitter: anything between nothing and the exponential bound, so that a crowd does not come back at once. */
export function backoffMs(attempt: number, baseMs = 200, capMs = 20_000): number {
  return Math.random() * Math.min(capMs, baseMs * 2 ** attempt);
}

/** How long after a token of this life its socket is given the next one: 60 to 90 s before the end, of a short life at 70 to 80 %; never at once. */
export function proveAfterMs(lifeMs: number, fraction = Math.random()): number {
  return Math.max(1_000, lifeMs - Math.min(60_000 + 30_000 * fraction, lifeMs * (0.2 + 0.1 * fraction)));
}

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** The REST API of one deployment, for one signed-in device. */
export class Rest {
  session: Session | undefined;
  #refreshing: Promise<void> | undefined; // one at a time: using a refresh token twice ends the session
  #refreshBeforeMs = REFRESH_BEFORE_MS;
  #aheadMs = Date.now() - performance.now(); // of the server's clock, once it told its time

  constructor(readonly baseUrl: string) {}

  /** One request, tried again with the same Idempotency-Key while the error says that may help; throws HeliographError. */
  async call<T = Json>(method: string, path: string, body?: Json): Promise<T> {
    return this.#retried(method, path, body, true) as Promise<T>;
  }

  /** The server's time, whatever the clock of this machine says. */
  nowMs(): number {
    return performance.now() + this.#aheadMs;
  }

  /** It is `atMs` on the server. */
  told(atMs: number): void {
    this.#aheadMs = atMs - performance.now();
  }

  async signIn(tenantId: string, login: string, password: string, deviceId: string): Promise<Session> {
    return this.#keep(await this.#retried("POST", "/v1/tokens", { tenant_id: tenantId, login, password, device_id: deviceId }, false));
  }

  async signInWithIdentity(tenantId: string, idToken: string, deviceId: string): Promise<Session> {
    return this.#keep(await this.#retried("POST", "/v1/tokens/identity", { tenant_id: tenantId, id_token: idToken, device_id: deviceId }, false));
  }

  /** An access token that is good for a while, and is not `insteadOf`. */
  async token(insteadOf?: string): Promise<string> {
    const { session } = this;
    if (!session) throw ours("signed_out", "Call signIn first.");
    if (session.expires_at_ms - this.nowMs() >= this.#refreshBeforeMs && session.access_token !== insteadOf) return session.access_token;
    await (this.#refreshing ??= this.#refresh(session).finally(() => (this.#refreshing = undefined)));
    if (!this.session) throw ours("signed_out", "Call signIn first.");
    return this.session.access_token;
  }

  async #retried(method: string, path: string, body: Json | undefined, isAuthorized: boolean, timeoutMs?: number): Promise<Json> {
    const key = newTraceId();
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await (isAuthorized ? this.#authorized(method, path, body, key) : this.#once(method, path, body, key, undefined, timeoutMs));
      } catch (error) {
        if (!(error instanceof HeliographError) || !error.retryable || attempt === ATTEMPTS - 1) throw error;
        if ((error.retryAfterMs ?? 0) > LONGEST_WAIT_MS) throw error;
        await sleep(error.retryAfterMs ?? backoffMs(attempt));
      }
    }
  }

  async #authorized(method: string, path: string, body: Json | undefined, key: string): Promise<Json> {
    const token = await this.token();
    try {
      return await this.#once(method, path, body, key, token);
    } catch (error) {
      if (!(error instanceof HeliographError) || error.status !== 401) throw error;
      return this.#once(method, path, body, key, await this.token(token));
    }
  }

  async #once(method: string, path: string, body: Json | undefined, key: string, token?: string, timeoutMs?: number): Promise<Json> {
    const headers: Record<string, string> = {};
    if (method === "POST") headers["Idempotency-Key"] = key;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (token !== undefined) headers["Authorization"] = `Bearer ${token}`;
    const signal = timeoutMs === undefined ? null : AbortSignal.timeout(timeoutMs);
    let response: Response;
    try {
      response = await fetch(this.baseUrl.replace(/\/$/, "") + path, { method, headers, body: body === undefined ? null : JSON.stringify(body), signal });
    } catch (error) {
      throw ours("connection_lost", `${method} ${path}: ${String(error)}`);
    }
    const answer = (await response.json().catch(() => ({}))) as Json;
    if (!response.ok) throw parseError(answer, response.status);
    return answer;
  }

  #keep(answer: Json): Session {
    this.session = answer as unknown as Session;
    this.#refreshBeforeMs = Math.min(REFRESH_BEFORE_MS, (this.session.expires_at_ms - this.nowMs()) / 5);
    return this.session;
  }

  /** Each attempt presents the same refresh token. What comes for a session that is no longer ours, because somebody signed in or out, is dropped. */
  async #refresh(session: Session): Promise<void> {
    try {
      const answer = await this.#retried("POST", "/v1/tokens/refresh", { refresh_token: session.refresh_token }, false, REFRESH_TIMEOUT_MS);
      if (this.session === session) this.#keep(answer);
    } catch (error) {
      if (this.session === session) throw error;
    }
  }
}
