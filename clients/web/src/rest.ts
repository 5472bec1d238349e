/** REST: tokens and their refresh, idempotency keys, retries, the error shape. Knows HTTP and nothing of what the routes mean. */

import { HeliographError, type Json, ours, parseError } from "./errors";
import { newTraceId } from "./ids";

const REFRESH_BEFORE_MS = 60_000;
const ATTEMPTS = 4;

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

export const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** The REST API of one deployment, for one signed-in device. */
export class Rest {
  session: Session | undefined;
  #refreshing: Promise<Session> | undefined; // one at a time: using a refresh token twice ends the session

  constructor(readonly baseUrl: string) {}

  /** One request, tried again with the same Idempotency-Key while the error says that may help; throws HeliographError. */
  async call<T = Json>(method: string, path: string, body?: Json): Promise<T> {
    return this.#retried(method, path, body, true) as Promise<T>;
  }

  async signIn(tenantId: string, login: string, password: string, deviceId: string): Promise<Session> {
    const body = { tenant_id: tenantId, login, password, device_id: deviceId };
    this.session = (await this.#retried("POST", "/v1/tokens", body, false)) as unknown as Session;
    return this.session;
  }

  async #retried(method: string, path: string, body: Json | undefined, isAuthorized: boolean): Promise<Json> {
    const key = newTraceId();
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await (isAuthorized ? this.#authorized(method, path, body, key) : this.#once(method, path, body, key));
      } catch (error) {
        if (!(error instanceof HeliographError) || !error.retryable || attempt === ATTEMPTS - 1) throw error;
        await sleep(error.retryAfterMs ?? backoffMs(attempt));
      }
    }
  }

  async #authorized(method: string, path: string, body: Json | undefined, key: string): Promise<Json> {
    const token = await this.#token();
    try {
      return await this.#once(method, path, body, key, token);
    } catch (error) {
      if (!(error instanceof HeliographError) || error.status !== 401) throw error;
      return this.#once(method, path, body, key, await this.#token(token));
    }
  }

  async #once(method: string, path: string, body: Json | undefined, key: string, token?: string): Promise<Json> {
    const headers: Record<string, string> = {};
    if (method === "POST") headers["Idempotency-Key"] = key;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (token !== undefined) headers["Authorization"] = `Bearer ${token}`;
    let response: Response;
    try {
      response = await fetch(this.baseUrl.replace(/\/$/, "") + path, { method, headers, body: body === undefined ? null : JSON.stringify(body) });
    } catch (error) {
      throw ours("connection_lost", `${method} ${path}: ${String(error)}`);
    }
    const answer = (await response.json().catch(() => ({}))) as Json;
    if (!response.ok) throw parseError(answer, response.status);
    return answer;
  }

  /** A token that is good for a while. */
  async #token(insteadOf?: string): Promise<string> {
    if (!this.session) throw ours("signed_out", "Call signIn first.");
    if (this.session.expires_at_ms - Date.now() >= REFRESH_BEFORE_MS && this.session.access_token !== insteadOf) return this.session.access_token;
    this.#refreshing ??= this.#refresh(this.session.refresh_token).finally(() => (this.#refreshing = undefined));
    return (await this.#refreshing).access_token;
  }

  async #refresh(refreshToken: string): Promise<Session> {
    this.session = (await this.#retried("POST", "/v1/tokens/refresh", { refresh_token: refreshToken }, false)) as unknown as Session;
    return this.session;
  }
}
