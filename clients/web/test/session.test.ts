/** The session of a device: refreshes whose answer is lost, sockets whose token runs out, signing out. Against a server behind `fetch` and `WebSocket` of this process. */

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { Client } from "../src/client";
import { HeliographError, type Json } from "../src/errors";
import type { HeliographEvent } from "../src/frames";
import { proveAfterMs, sleep } from "../src/rest";

type Frame = { action: string; id: string; client_seq: number; body: Json };
const HOUR_MS = 3_600_000;

/** The browser's WebSocket, with the server at its other end. */
class FakeSocket {
  static readonly OPEN = 1;
  readyState = 0;
  onopen: () => void = () => undefined;
  onmessage: (message: { data: string }) => void = () => undefined;
  onclose: (event: { code: number }) => void = () => undefined;
  sid = "";

  constructor(_: string, protocols: string[]) {
    setImmediate(() => {
      this.sid = server.tickets.get(String(protocols[1]).replace("ticket.", "")) ?? "";
      this.readyState = 1;
      server.sockets.push(this);
      this.onopen();
    });
  }

  send(raw: string): void {
    const frame = JSON.parse(raw) as Frame;
    server.frames.push(frame);
    setImmediate(() => server.take(this, frame));
  }

  close(): void {
    if (this.readyState > 1) return;
    this.readyState = 2;
    server.sockets = server.sockets.filter((each) => each !== this);
    setTimeout(() => ((this.readyState = 3), this.onclose({ code: 1000 })), server.closeMs);
  }

  tell(frame: Json): void {
    if (this.readyState === 1) this.onmessage({ data: JSON.stringify(frame) });
  }
}

/** Sessions, each with the newest refresh token; the one before it gets the same successor. */
class FakeServer {
  sessions = new Map<string, { n: number; account: string }>();
  tickets = new Map<string, string>();
  sockets: FakeSocket[] = [];
  frames: Frame[] = [];
  asked: string[] = [];
  presented: string[] = [];
  lostAnswers = 0;
  refreshMs = 1;
  closeMs = 1; // for the closing handshake
  tokenLifeMs = 900_000;
  aheadMs = 0;
  limited: number[] = []; // retry_after_ms of the next answers
  isStale = (_: string): boolean => false; // of an access token
  refuse = (_: Frame): Json | undefined => undefined;

  now = (): number => Date.now() + this.aheadMs;
  of = (action: string): Frame[] => this.frames.filter((frame) => frame.action === action);

  fetch = async (url: string, { method, headers, body }: { method: string; headers: Record<string, string>; body: string | null }): Promise<Response> => {
    const path = new URL(url).pathname;
    this.asked.push(`${method} ${path}`);
    await sleep(path.endsWith("/refresh") ? this.refreshMs : 1);
    const [status, answer] = this.#answer(`${method} ${path}`, headers["Authorization"]?.replace("Bearer ", "") ?? "", JSON.parse(body ?? "{}") as Record<string, string>);
    if (path.endsWith("/refresh") && this.lostAnswers-- > 0) throw new TypeError("fetch failed");
    return new Response(JSON.stringify(answer), { status });
  };

  #answer(route: string, token: string, body: Record<string, string>): [number, Json] {
    const retry_after_ms = this.limited.shift();
    if (retry_after_ms !== undefined) return [429, { code: "rate_limited", retryable: true, retry_after_ms }];
    if (route === "POST /v1/tokens") return this.#begin(String(body["login"]), String(body["device_id"]));
    if (route === "POST /v1/tokens/identity") return body["id_token"] === "of.ana" ? this.#begin("ana", String(body["device_id"])) : [401, { code: "identity_refused" }];
    if (route === "POST /v1/tokens/refresh") return this.#refresh(String(body["refresh_token"]));
    const session = this.sessions.get(sidOf(token));
    if (!session) return [401, { code: "token_invalid" }];
    if (this.isStale(token)) return [401, { code: "token_expired" }];
    if (route === "POST /v1/tickets") {
      this.tickets.set(`t${this.asked.length}`, sidOf(token));
      return [201, { ticket: `t${this.asked.length}`, expires_at_ms: this.now() + 30_000 }];
    }
    if (route === "GET /v1/sessions") return [200, { sessions: [...this.sessions.keys()].map((sid) => ({ sid, device_id: "dev_1", is_current: sid === sidOf(token) })) }];
    if (route.startsWith("DELETE /v1/sessions/")) return this.end(route.slice("DELETE /v1/sessions/".length)) ? [200, { ended: 1 }] : [404, { code: "not_found" }];
    return [200, { presence: [] }];
  }

  #begin(login: string, deviceId: string): [number, Json] {
    const sid = `ses${this.asked.length}`;
    this.sessions.set(sid, { n: 0, account: `acc_${login}` });
    return this.#tokens(sid, deviceId);
  }

  #refresh(presented: string): [number, Json] {
    this.presented.push(presented);
    const [sid, n] = [sidOf(presented), Number(presented.split(".")[1])];
    const session = this.sessions.get(sid);
    if (!session || n < session.n - 1) return [401, { code: "token_invalid" }];
    session.n = n + 1;
    return this.#tokens(sid, "dev_1");
  }

  #tokens(sid: string, device_id: string): [number, Json] {
    const { n, account } = this.sessions.get(sid)!;
    const names = { tenant_id: "acme", account_id: account, device_id };
    return [201, { ...names, access_token: `${sid}.access${n}`, refresh_token: `${sid}.${n}`, expires_at_ms: this.now() + this.tokenLifeMs }];
  }

  /** Signed out: the sockets of the session are told and closed. */
  end(sid: string): boolean {
    for (const socket of this.sockets.filter((each) => each.sid === sid)) this.close(socket, "signed_out");
    return this.sessions.delete(sid);
  }

  close(socket: FakeSocket, reason: string): void {
    socket.tell({ event: "closed", at_ms: this.now(), body: { reason } });
    socket.close();
  }

  take(socket: FakeSocket, frame: Frame): void {
    const refusal = this.refuse(frame) ?? (this.sessions.has(socket.sid) ? undefined : { code: "token_invalid", message: "", retryable: false });
    socket.tell(refusal ? { ...refusal, re: frame.id } : { re: frame.id });
    if (refusal || frame.action !== "hello") return;
    const body = { account_id: this.sessions.get(socket.sid)?.account, reconnect_by_ms: this.now() + 2 * HOUR_MS, auth_expires_at_ms: this.now() + this.tokenLifeMs, presence: [] };
    socket.tell({ event: "welcome", at_ms: this.now(), body });
  }
}

const sidOf = (token: string): string => token.split(".")[0] ?? "";
const real = { fetch: globalThis.fetch, WebSocket: globalThis.WebSocket };
const expired = { code: "token_expired", message: "The token has expired; refresh it.", retryable: false };
let server: FakeServer;
let client: Client;
let told: HeliographEvent[];

beforeEach(async () => {
  [server, told] = [new FakeServer(), []];
  Object.assign(globalThis, { fetch: server.fetch, WebSocket: FakeSocket });
  client = new Client("https://api.example.org", "wss://socket.example.org", 2_000);
  for (const name of ["closed", "signed_out"]) client.on(name, (event) => told.push(event));
  await client.signIn("acme", "ana", "secret", "dev_1");
});

afterEach(async () => {
  await client.close();
  Object.assign(globalThis, real);
});

async function until(holds: () => boolean, missing: string): Promise<void> {
  for (const end = performance.now() + 5_000; !holds(); await sleep(5)) assert.ok(performance.now() < end, `still missing: ${missing}`);
}

/** The first frame of an action is refused. */
function refuseOnce(action: string, refusal: Json): void {
  let isLeft = true;
  server.refuse = (frame) => (frame.action === action && isLeft ? ((isLeft = false), refusal) : undefined);
}

const code = (expected: string) => (error: unknown) => error instanceof HeliographError && error.code === expected;

test("a socket gets its next token 60 to 90 s before the end, of a short life at 70 to 80 %, and never at once", () => {
  assert.deepEqual([proveAfterMs(900_000, 0), proveAfterMs(900_000, 1)], [840_000, 810_000]);
  assert.deepEqual([proveAfterMs(100_000, 0), proveAfterMs(100_000, 1)], [80_000, 70_000]);
  assert.deepEqual([proveAfterMs(0, 0.5), proveAfterMs(-HOUR_MS, 0.5)], [1_000, 1_000]);
});

for (const lost of [1, 3]) {
  test(`a refresh whose answer is lost ${lost} times presents the same token`, async () => {
    server.isStale = (token) => token.endsWith("access0");
    server.lostAnswers = lost;
    await client.presence();
    const { refresh_token } = client.session;
    assert.deepEqual(server.presented, Array(lost + 1).fill(refresh_token.replace(".1", ".0")));
    assert.equal(client.session.access_token.split(".")[1], "access1");
  });
}

test("several requests share one refresh", async () => {
  server.isStale = (token) => token.endsWith("access0");
  await Promise.all([client.presence(), client.presence(), client.sessions()]);
  assert.equal(server.presented.length, 1);
});

test("a fresh token that is refused too is an error", async () => {
  server.isStale = () => true;
  await assert.rejects(client.presence(), code("token_expired"));
  assert.equal(server.presented.length, 1);
});

test("the answer of a refresh does not replace a session that began meanwhile", async () => {
  server.refreshMs = 50;
  const asking = client.rest.token(client.session.access_token);
  const second = await client.signIn("acme", "ben", "secret", "dev_1");
  await asking;
  assert.equal(client.session, second);
});

for (const [name, aheadMs] of [["that agrees with the server's", 0], ["an hour behind", HOUR_MS], ["an hour ahead", -HOUR_MS]] as const) {
  test(`a socket gets a fresh token before its own runs out, with a clock ${name}`, async () => {
    [server.tokenLifeMs, server.aheadMs] = [1_500, aheadMs];
    await client.signIn("acme", "ana", "secret", "dev_1");
    await client.connect();
    await until(() => server.of("reauth").length === 1, "reauth");
    assert.equal(server.of("reauth")[0]?.body["access_token"], client.session.access_token);
    assert.equal(server.of("hello").length, 1);
  });
}

test("frames refused as expired are sent again after one reauth", async () => {
  await client.connect();
  server.refuse = (frame) => (frame.action === "message" && server.of("reauth").length === 0 ? expired : undefined);
  const acks = await Promise.all(["one", "two", "three"].map((text) => client.sendText("room_1", text)));
  assert.equal(server.of("reauth").length, 1);
  assert.deepEqual(server.of("message").map((frame) => frame.id).slice(3).sort(), acks.map((ack) => ack.re).sort());
  assert.equal(new Set(server.frames.map((frame) => frame.client_seq)).size, server.frames.length);
  assert.deepEqual(told, []);
});

test("a refusal that comes after the reauth leads to no other one", async () => {
  await client.connect();
  const take = server.take.bind(server);
  const refused = new Set<string>();
  server.refuse = ({ action, id }) => (action === "message" && !refused.has(id) ? (refused.add(id), expired) : undefined);
  server.take = (socket, frame) => {
    const isLate = frame.body["text"] === "late" && !refused.has(frame.id);
    void (isLate ? until(() => server.of("reauth").length === 1, "reauth").then(() => sleep(50)) : Promise.resolve()).then(() => take(socket, frame));
  };
  await Promise.all([client.sendText("room_1", "early"), client.sendText("room_1", "late")]);
  assert.deepEqual([server.of("message").length, server.of("reauth").length], [4, 1]);
});

test("a frame refused as expired twice is an error", async () => {
  await client.connect();
  server.refuse = (frame) => (frame.action === "message" ? expired : undefined);
  await assert.rejects(client.sendText("room_1", "hello"), code("token_expired"));
  assert.deepEqual([server.of("message").length, server.of("reauth").length], [2, 1]);
  await client.setPresence("away");
});

test("a socket that takes no fresh token is replaced", async () => {
  await client.connect();
  let isOld = true;
  server.refuse = ({ action }) => {
    if (action === "hello") isOld = false;
    return isOld ? (action === "reauth" ? { code: "unknown_action", message: "", retryable: false } : expired) : undefined;
  };
  await client.sendText("room_1", "hello");
  assert.equal(server.of("hello").length, 2);
});

test("a socket closed because its token expired is opened again, and nobody is told", async () => {
  await client.connect();
  await client.join("room_1");
  server.close(server.sockets[0]!, "token_expired");
  await until(() => server.of("join").length === 2, "the join on the next socket");
  assert.deepEqual(told, []);
});

test("a socket closed because of a newer one stays closed until connect", async () => {
  await client.connect();
  server.close(server.sockets[0]!, "connected_elsewhere");
  await sleep(400);
  assert.deepEqual([told.map((event) => event.event), server.of("hello").length], [["closed"], 1]);
  await client.connect();
  server.close(server.sockets[0]!, "token_expired");
  await until(() => server.of("hello").length === 3, "the socket after that");
});

for (const how of ["closed", "refused"]) {
  test(`a device that was signed out says so once and waits for signIn (${how})`, async () => {
    await client.connect();
    const sid = sidOf(client.session.access_token);
    if (how === "closed") server.end(sid);
    else server.sessions.delete(sid);
    await assert.rejects(client.sendText("room_1", "too soon"), code("connection_lost"));
    assert.deepEqual(told.map(({ event, body }) => [event, body["code"]]), [["signed_out", "token_invalid"]]);
    assert.equal(server.asked.filter((route) => route === "POST /v1/tickets").length, 2, "one question, one answer");
    await assert.rejects(client.connect(), code("token_invalid"));
    await client.signIn("acme", "ana", "secret", "dev_1");
    await client.sendText("room_1", "again");
  });
}

test("a frame refused as signed out by mistake goes over the next socket", async () => {
  await client.connect();
  refuseOnce("message", { code: "token_invalid", message: "", retryable: false });
  await client.sendText("room_1", "hello");
  assert.equal(new Set(server.of("message").map((frame) => frame.id)).size, 1);
  assert.deepEqual([server.of("hello").length, told], [2, []]);
});

test("signing in as somebody else brings their own socket, however long the first one takes to close", async () => {
  await client.connect();
  server.closeMs = 300;
  const { account_id } = await client.signIn("acme", "ben", "secret", "dev_1");
  assert.equal((await client.connect()).account_id, account_id);
  await sleep(800);
  assert.deepEqual([server.sockets.length, server.of("hello").length, told], [1, 2, []]);
});

test("an identity provider's token signs in, a refused one does not", async () => {
  await assert.rejects(client.signInWithIdentity("acme", "forged"), code("identity_refused"));
  assert.equal((await client.signInWithIdentity("acme", "of.ana")).account_id, "acc_ana");
});

test("sessions are listed and one is ended", async () => {
  const other = new Client("https://api.example.org", "wss://socket.example.org", 2_000);
  await other.signIn("acme", "ana", "secret", "dev_2");
  const sid = (await client.sessions()).find((session) => !session.is_current)?.sid ?? "";
  await client.endSession(sid);
  await assert.rejects(other.presence(), code("token_invalid"));
  await assert.rejects(client.endSession(sid), code("not_found"));
  assert.equal((await client.sessions()).length, 1);
});

test("signing out ends the session and forgets it", async () => {
  await client.connect();
  await client.join("room_1");
  await client.signOut();
  assert.deepEqual([server.sessions.size, client.rest.session], [0, undefined]);
  await until(() => told.length === 1, "the word that it is signed out");
  assert.deepEqual(told[0]?.body, { code: "signed_out", message: "Call signIn first." });
  await assert.rejects(client.connect(), code("signed_out"));
  await client.signIn("acme", "ben", "secret", "dev_1");
  await client.connect();
  assert.deepEqual([server.of("join").length, server.sockets.length], [1, 1], "rooms of the session that was ended are not joined by the next one");
});

test("signing out of a session that is over is no error", async () => {
  server.sessions.clear();
  await client.signOut();
  assert.equal(client.rest.session, undefined);
});

test("a frame over a limit waits as long as it is told", async () => {
  await client.connect();
  refuseOnce("message", { code: "rate_limited", message: "", retryable: true, retry_after_ms: 200 });
  const before = performance.now();
  await client.sendText("room_1", "hello");
  assert.ok(performance.now() - before >= 195);
});

test("a request over a limit waits as long as it is told, and does not begin to wait for long", async () => {
  server.limited = [200];
  const before = performance.now();
  await client.presence();
  assert.ok(performance.now() - before >= 195);
  server.limited = [100_000];
  await assert.rejects(client.signIn("acme", "ana", "guess"), (error: unknown) => code("rate_limited")(error) && (error as HeliographError).retryAfterMs === 100_000);
  assert.ok(performance.now() - before < 2_000);
});
