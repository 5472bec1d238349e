/** The client: one signed-in device, its socket kept open, its rooms, files and calls. */

import { Call, type CallOptions, type Peer } from "./call";
import { HeliographError, type Json, ours, text } from "./errors";
import type { Ack, HeliographEvent } from "./frames";
import { type IceServers, parseDraining, parseIceServers } from "./iceServers";
import { makeId, newTraceId, toHex } from "./ids";
import { Recovery } from "./recovery";
import { Rest, type Session, backoffMs, proveAfterMs, sleep } from "./rest";
import { type Socket, openSocket } from "./socket";

export const CLIENT_NAME = "heliograph-web/0.1.0";
const REMEMBERED = 2_048;
const PROVE_AGAIN_MS = 5_000;
const MOST_PATIENCE = 4;

export type Status = "online" | "away" | "busy" | "on_a_call";

export interface Presence {
  account_id: string;
  status: Status | "offline";
  devices: number;
  last_seen_at_ms: number;
}

export interface Welcome {
  connection_id: string;
  tenant_id: string;
  account_id: string;
  device_id: string;
  generation: number;
  heartbeat_s: number;
  heartbeat_call_s?: number; // while on a call
  reconnect_by_ms: number;
  auth_expires_at_ms?: number; // the socket has a fresh token by then
  presence: Presence[];
}

/** Where the account is signed in. */
export interface SessionInfo {
  sid: string;
  device_id: string;
  signed_in_at_ms: number;
  refreshed_at_ms: number;
  is_current: boolean;
}

export interface Member {
  account_id: string;
  role: string;
}

export interface Room {
  room_id: string;
  name: string;
  members: Member[];
  epoch: string;
  head: number;
}

type Listener = (event: HeliographEvent) => void;

/** Somebody calls; `answer` or `decline`. */
export class IncomingCall {
  readonly callId: string;
  readonly peer: Peer;
  isOver = false;
  onOver: () => void = () => undefined; // the caller hung up meanwhile
  readonly candidates: HeliographEvent[] = []; // those that came before the answer

  constructor(
    private client: Client,
    readonly roomId: string,
    readonly offer: Json,
  ) {
    this.callId = String(offer["call_id"]);
    this.peer = offer["from"] as Peer;
  }

  /** Take the call; `await call.connected()` next. */
  async answer(options: CallOptions = {}): Promise<Call> {
    const call = await this.client.newCall(this.roomId, this.peer, options, this.callId);
    for (const event of this.candidates) void call.handle(event);
    return begun(call, call.answer(this.offer));
  }

  /** Refuse the call. */
  async decline(reason: "declined" | "busy" = "declined"): Promise<void> {
    this.isOver = true;
    await this.client.request("bye", this.roomId, { call_id: this.callId, to: this.peer, reason });
  }
}

/** A signed-in device: REST, one WebSocket that comes back by itself, rooms, presence, files, calls. */
export class Client {
  readonly rest: Rest;
  welcome: Welcome | undefined; // body of the last `welcome` event
  onIncomingCall: (incoming: IncomingCall) => void = () => undefined; // another device of the account may answer

  #socket: Socket | undefined;
  #socketLifeMs = 0;
  #patience = 1; // times timeoutMs: how long the next attempt waits for a welcome
  #isClosing = false;
  #opening: Promise<Welcome> | undefined;
  #keeping: Promise<void> | undefined;
  #signIns = 0;
  #resume: () => void = () => undefined; // signed out: go on
  #listeners = new Map<string, Set<Listener>>();
  #recovery = new Recovery({
    tell: (event) => this.#tell(event),
    rejoin: async (roomId) => void (this.#joined.has(roomId) && (await this.join(roomId))),
    read: async (roomId, after) => (await this.rest.call<{ events: Json[] }>("GET", `/v1/rooms/${encodeURIComponent(roomId)}/events?${new URLSearchParams(after)}`)).events,
  });
  #isOnCall = false;
  #retiring: Socket | undefined; // our next socket replaces it
  #joined = new Set<string>();
  #calls = new Map<string, Call>();
  #ringing = new Map<string, IncomingCall>();
  #early: HeliographEvent[] = []; // candidates that overtook their offer
  #seen = new Set<string>(); // a frame sent again is relayed again

  /** `restUrl` is what stands before `/v1`, `socketUrl` the WebSocket API's URL; `timeoutMs` bounds each wait for an acknowledgement. */
  constructor(
    restUrl: string,
    private socketUrl: string,
    private timeoutMs = 10_000,
  ) {
    this.rest = new Rest(restUrl);
  }

  // signing in and the socket

  get session(): Session {
    if (!this.rest.session) throw ours("signed_out", "Call signIn first.");
    return this.rest.session;
  }

  /** Sign in; keep `deviceId` between visits so that the device stays the same one. Once connected, the socket comes back by itself, as this account's. */
  async signIn(tenantId: string, login: string, password: string, deviceId = makeId("dev")): Promise<Session> {
    return this.#begin(await this.rest.signIn(tenantId, login, password, deviceId));
  }

  /** Sign in with the ID token of an OIDC provider or a Firebase project that the tenant trusts; throws `identity_refused`. */
  async signInWithIdentity(tenantId: string, idToken: string, deviceId = makeId("dev")): Promise<Session> {
    return this.#begin(await this.rest.signInWithIdentity(tenantId, idToken, deviceId));
  }

  /** A socket of the session before makes way for this one's, and what waited goes on. */
  #begin(session: Session): Session {
    this.#signIns += 1;
    this.#socket?.close();
    this.#resume();
    return session;
  }

  /** Where this account is signed in, oldest first. */
  async sessions(): Promise<SessionInfo[]> {
    return (await this.rest.call<{ sessions: SessionInfo[] }>("GET", "/v1/sessions")).sessions;
  }

  /** Sign out one device of this account: its socket is closed, its tokens are dead. */
  async endSession(sid: string): Promise<void> {
    await this.rest.call("DELETE", `/v1/sessions/${encodeURIComponent(sid)}`);
  }

  /** Hang up, end this device's session, and forget its tokens and rooms; when that cannot be said to the server, nothing is forgotten. */
  async signOut(): Promise<void> {
    await Promise.all([...this.#calls.values()].map((call) => call.hangup()));
    try {
      for (const { sid, is_current } of await this.sessions()) if (is_current) await this.endSession(sid);
    } catch (error) {
      if (!isSignedOut(error) && !(error instanceof HeliographError && error.code === "not_found")) throw error; // else it is over already
    }
    this.rest.session = undefined;
    for (const roomId of this.#joined) this.#recovery.forget(roomId);
    this.#joined.clear();
    this.#isOnCall = false;
    this.#socket?.close();
  }

  /** A one-time ticket for the socket, good for half a minute. */
  async ticket(): Promise<string> {
    return (await this.rest.call<{ ticket: string }>("POST", "/v1/tickets")).ticket;
  }

  /** Open the socket; from then on it is opened again whenever it closes. After `closed` this brings it back. */
  async connect(): Promise<Welcome> {
    this.#isClosing = false;
    const welcome = this.#socket?.isOpen && this.welcome ? this.welcome : await this.#open();
    this.#resume();
    this.#keeping ??= this.#keepOpen().finally(() => (this.#keeping = undefined));
    await Promise.allSettled([...this.#joined].map((roomId) => this.join(roomId)));
    return welcome;
  }

  /** Hang up what is still talking and go offline. */
  async close(): Promise<void> {
    this.#isClosing = true;
    await Promise.all([...this.#calls.values()].map((call) => call.hangup()));
    this.#socket?.close();
    this.#resume();
  }

  #open(): Promise<Welcome> {
    return (this.#opening ??= this.#openOne().finally(() => (this.#opening = undefined)));
  }

  async #openOne(): Promise<Welcome> {
    let arrive: (event: HeliographEvent) => void;
    const arrived = new Promise<HeliographEvent>((resolve) => (arrive = resolve));
    const socket: Socket = await openSocket(this.socketUrl, await this.ticket(), (event) => {
      if (event.event === "welcome") arrive(event);
      if (event.event === "closed" && !this.#isForGood(event, socket)) return;
      this.#recovery.receive(event);
    });
    try {
      socket.token = await this.rest.token();
      const limitMs = this.timeoutMs * this.#patience;
      await socket.exchange("hello", makeId("msg"), newTraceId(), undefined, { client: CLIENT_NAME }, limitMs);
      const welcome = await Promise.race([arrived, sleep(limitMs).then(() => Promise.reject(ours("timed_out", "The server sent no welcome.")))]);
      this.welcome = welcome.body as unknown as Welcome;
      if (this.welcome.account_id !== this.rest.session?.account_id) throw ours("connection_lost", "Somebody signed in or out meanwhile.");
      if (welcome.at_ms !== undefined) this.rest.told(welcome.at_ms);
      this.#socketLifeMs = this.welcome.reconnect_by_ms - this.rest.nowMs();
      this.#planProof(socket, this.welcome.auth_expires_at_ms);
      this.#patience = 1;
    } catch (error) {
      // a server that is late is busy: a crowd that gives up and starts over as impatient as before keeps it so
      if (error instanceof HeliographError && error.code === "timed_out") this.#patience = Math.min(MOST_PATIENCE, 2 * this.#patience);
      socket.close();
      throw error;
    }
    this.#socket = socket;
    return this.welcome;
  }

  /** Whether a `closed` is the end until `connect`: this device opened another socket elsewhere, and coming back would only fight it. */
  #isForGood({ body }: HeliographEvent, socket: Socket): boolean {
    if (socket === this.#retiring) return false;
    if (body["reason"] === "token_expired" || body["reason"] === "signed_out") {
      socket.close(); // a lost socket as any other: the next ticket tells whether this device is still signed in
      return false;
    }
    this.#isClosing = true;
    return true;
  }

  /** Ping while open; open the next socket before the server must end this one, or when it closed. */
  async #keepOpen(): Promise<void> {
    while (this.#socket) {
      const socket = this.#socket;
      const isDue = await this.#tended(socket);
      if (this.#isClosing) return;
      if (isDue) this.#retiring = socket;
      else if (this.#socket === socket) this.#socket = undefined;
      if (!(await this.#openAgain(socket))) return;
      socket.close();
    }
  }

  /** Until the socket closed (false) or its life is nearly over (true). */
  async #tended(socket: Socket): Promise<boolean> {
    const pinging = this.#pingEvery(socket);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const due = new Promise<boolean>((resolve) => (timer = setTimeout(() => resolve(true), Math.max(60_000, this.#socketLifeMs * (0.8 + 0.15 * Math.random())))));
    const isDue = await Promise.race([socket.closed.then(() => false), due]);
    clearTimeout(timer);
    pinging.stop();
    return isDue;
  }

  #pingEvery(socket: Socket): { stop: () => void } {
    let timer: ReturnType<typeof setTimeout>;
    const { heartbeat_s = 20, heartbeat_call_s = heartbeat_s } = this.welcome ?? {};
    let isOnCall = this.#isOnCall;
    let waitedS = 0;
    const tick = (): void => {
      waitedS = this.#isOnCall === isOnCall ? waitedS + 1 : Infinity; // a changed status is told by its own frame, its heartbeat begins at once
      isOnCall = this.#isOnCall;
      if (waitedS >= (isOnCall ? heartbeat_call_s : heartbeat_s)) {
        waitedS = 0;
        void this.#ping().catch(() => socket.close()); // no answer: half-open
      }
      if (performance.now() >= socket.proveAtMs) {
        socket.proveAtMs = performance.now() + PROVE_AGAIN_MS;
        void this.#prove(socket, socket.token);
      }
      timer = setTimeout(tick, 1_000);
    };
    timer = setTimeout(tick, 1_000);
    return { stop: () => clearTimeout(timer) };
  }

  /** With full jitter, until there is a new socket (true) or no reason for one. */
  async #openAgain(old: Socket): Promise<boolean> {
    for (let attempt = 0; !this.#isClosing; attempt += 1) {
      await sleep(backoffMs(attempt));
      const signIns = this.#signIns;
      try {
        if (!this.#socket || this.#socket === old) await this.#open();
        await Promise.all([...this.#joined].map((roomId) => this.join(roomId)));
      } catch (error) {
        if (isSignedOut(error) && signIns === this.#signIns) await this.#signedOut(error, old);
      }
      if (this.#socket && this.#socket !== old) return true;
    }
    return false;
  }

  /** The session is over: says so, and waits for the next one. */
  async #signedOut({ code, message }: HeliographError, old: Socket): Promise<void> {
    this.#socket = undefined;
    old.close();
    const resumed = new Promise<void>((resolve) => (this.#resume = resolve));
    this.#tell({ kind: "event", event: "signed_out", body: { code, message: message.slice(code.length + 2) } });
    await resumed;
  }

  // whose the socket is

  /** Gives a socket a fresh token instead of this one, unless somebody did. Answers what went wrong; a socket that cannot have one is closed. */
  #prove(socket: Socket, token: string): Promise<HeliographError | undefined> {
    if (socket.token !== token) return Promise.resolve(undefined);
    return (socket.proving ??= this.#proveOnce(socket).finally(() => (socket.proving = undefined)));
  }

  async #proveOnce(socket: Socket): Promise<HeliographError | undefined> {
    try {
      const token = await this.rest.token(socket.token);
      await socket.exchange("reauth", makeId("msg"), newTraceId(), undefined, { access_token: token }, this.timeoutMs / 2);
      socket.token = token;
      this.#planProof(socket, this.rest.session?.expires_at_ms);
      return undefined;
    } catch (error) {
      if (error instanceof HeliographError && error.retryable) return error;
      socket.close(); // the next ticket tells what is the matter
      return ours("connection_lost", `The socket got no fresh token: ${String(error)}`);
    }
  }

  #planProof(socket: Socket, expiresAtMs: number | undefined): void {
    if (expiresAtMs !== undefined) socket.proveAtMs = performance.now() + proveAfterMs(expiresAtMs - this.rest.nowMs());
  }

  async #ping(): Promise<void> {
    const rooms = [...this.#joined].slice(0, 50).map((room_id) => ({ room_id, ...this.#recovery.position(room_id) }));
    await this.request("ping", undefined, { rooms });
  }

  // frames and events

  /** Send a frame and wait for its acknowledgement; sent again with the same id while that may help. Throws HeliographError. */
  async request(action: string, roomId?: string, body: Json = {}, traceId = newTraceId()): Promise<Ack> {
    const [id, deadlineMs] = [makeId("msg"), performance.now() + this.timeoutMs];
    let hasProved = false;
    for (let attempt = 0; ; attempt += 1) {
      const socket = this.#socket;
      const token = socket?.token ?? "";
      try {
        if (!socket) throw ours("connection_lost", `${action}: not connected.`);
        return await socket.exchange(action, id, traceId, roomId, body, this.timeoutMs / 2);
      } catch (refused) {
        const isExpired: boolean = refused instanceof HeliographError && refused.code === "token_expired" && !hasProved;
        const error: unknown = isExpired && socket ? await this.#prove(socket, token) : this.#left(refused, socket);
        hasProved ||= error === undefined;
        if (error === undefined) continue;
        if (!(error instanceof HeliographError) || !error.retryable) throw error;
        const afterMs = error.retryAfterMs ?? backoffMs(attempt);
        if (performance.now() + afterMs >= deadlineMs) throw error;
        await sleep(afterMs);
      }
    }
  }

  /** A socket whose session is over is left, and what went over it may go over the next one. */
  #left(error: unknown, socket: Socket | undefined): unknown {
    if (!(error instanceof HeliographError) || error.code !== "token_invalid") return error;
    socket?.close();
    return ours("connection_lost", "The session of the socket is over.");
  }

  /** Call back on each event of this name; answers what ends it. */
  on(name: string, listener: Listener): () => void {
    const listeners = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, listeners.add(listener));
    return () => listeners.delete(listener);
  }

  #tell(event: HeliographEvent): void {
    if (this.#isRepeated(event)) return;
    for (const listener of this.#listeners.get(event.event) ?? []) listener(event);
    this.#signal(event);
  }

  #isRepeated(event: HeliographEvent): boolean {
    const id = text(event.body["id"]);
    const from = event.body["from"] as Peer | undefined;
    if (id === undefined || from === undefined) return false;
    const key = `${from.device_id ?? from.account_id} ${id}`;
    if (this.#seen.has(key)) return true;
    this.#seen.add(key);
    const oldest = this.#seen.values().next();
    if (this.#seen.size > REMEMBERED && !oldest.done) this.#seen.delete(oldest.value);
    return false;
  }

  /** Hand a call's event to the call, or let it ring. */
  #signal(event: HeliographEvent): void {
    if (event.event === "relay_draining") this.#drain(event.body);
    const callId = text(event.body["call_id"]);
    if (callId === undefined || event.room_id === undefined) return;
    const [call, ringing] = [this.#calls.get(callId), this.#ringing.get(callId)];
    if (call) void call.handle(event);
    else if (ringing && event.event === "candidate") ringing.candidates.push(event);
    else if (ringing && event.event === "bye") this.#stopRinging(ringing);
    else if (!ringing && event.event === "offer") this.#ring(event.room_id, event.body);
    else if (!ringing && event.event === "candidate") this.#early = [...this.#early.slice(-63), event];
  }

  #drain(body: Json): void {
    const draining = parseDraining(body);
    if (draining) for (const call of this.#calls.values()) void call.drain(draining).catch(() => undefined);
    else console.warn("heliograph: a relay_draining event could not be read", body);
  }

  #ring(roomId: string, offer: Json): void {
    const incoming = new IncomingCall(this, roomId, offer);
    incoming.candidates.push(...this.#early.filter((event) => event.body["call_id"] === incoming.callId));
    this.#early = this.#early.filter((event) => event.body["call_id"] !== incoming.callId);
    this.#ringing.set(incoming.callId, incoming);
    this.onIncomingCall(incoming);
  }

  #stopRinging(incoming: IncomingCall): void {
    this.#ringing.delete(incoming.callId);
    incoming.isOver = true;
    incoming.onOver();
  }

  // rooms, presence, text

  createRoom(name: string, memberIds: string[], roomId = makeId("room")): Promise<Room> {
    return this.rest.call<Room>("POST", "/v1/rooms", { room_id: roomId, name, member_ids: memberIds });
  }

  async rooms(): Promise<Room[]> {
    return (await this.rest.call<{ rooms: Room[] }>("GET", "/v1/rooms")).rooms;
  }

  /** Enter a room live; event `room` brings who is there. */
  async join(roomId: string): Promise<Ack> {
    this.#joined.add(roomId);
    return this.request("join", roomId, { ...this.#recovery.position(roomId) });
  }

  async leave(roomId: string): Promise<void> {
    this.#joined.delete(roomId);
    this.#recovery.forget(roomId);
    await this.request("leave", roomId);
  }

  /** Write to the room; the acknowledgement's offset says that it is durable. */
  async sendText(roomId: string, body: string): Promise<Ack> {
    const ack = await this.request("message", roomId, { text: body });
    this.#recovery.wrote(roomId, ack);
    return ack;
  }

  async setPresence(status: Status): Promise<void> {
    await this.request("presence", undefined, { status });
    this.#isOnCall = status === "on_a_call";
  }

  /** Everybody who shares a room with this account. */
  async presence(): Promise<Presence[]> {
    return (await this.rest.call<{ presence: Presence[] }>("GET", "/v1/presence")).presence;
  }

  // files

  /** Upload a file to the room; answers its media_id once the server has verified it. */
  async uploadFile(roomId: string, file: File): Promise<string> {
    const content = await file.arrayBuffer();
    const sha256 = toHex(new Uint8Array(await crypto.subtle.digest("SHA-256", content)));
    const announced = { media_id: makeId("med"), room_id: roomId, file_name: file.name, content_type: file.type || "application/octet-stream", length_bytes: file.size, sha256 };
    const { upload } = await this.rest.call<{ upload: { url: string; headers: Record<string, string> } }>("POST", "/v1/media", announced);
    const answer = await fetch(upload.url, { method: "PUT", headers: upload.headers, body: content }).catch((error: unknown) => {
      throw ours("connection_lost", `The upload did not get through: ${String(error)}`);
    });
    if (!answer.ok) throw ours("upload_failed", `The store answered ${answer.status}.`);
    await this.rest.call("POST", `/v1/media/${announced.media_id}/complete`);
    return announced.media_id;
  }

  /** A link to download a file, good for `expiresS` seconds. */
  async downloadLink(mediaId: string, expiresS = 300): Promise<string> {
    return (await this.rest.call<{ url: string }>("POST", `/v1/media/${encodeURIComponent(mediaId)}/links`, { expires_s: expiresS })).url;
  }

  // calls

  /** STUN and TURN servers with time-limited credentials. */
  async iceServers(): Promise<RTCIceServer[]> {
    return (await this.fetchIceServers()).servers;
  }

  /** The same with their end; calls ask for fresh ones by this. */
  async fetchIceServers(): Promise<IceServers> {
    return parseIceServers(await this.rest.call("GET", "/v1/ice-servers"));
  }

  /** Call a member of the room: the offer is out when this resolves; `await call.connected()` next. */
  async call(roomId: string, accountId: string, options: CallOptions = {}): Promise<Call> {
    const call = await this.newCall(roomId, { account_id: accountId }, options);
    return begun(call, call.offer());
  }

  /** A call that hears its events; `call` and `IncomingCall.answer` are what applications use. */
  async newCall(roomId: string, peer: Peer, options: CallOptions, callId?: string): Promise<Call> {
    const own = options.iceServers; // an application's own servers are renewed by nobody
    const supply = { current: own ? { servers: own } : await this.fetchIceServers(), fetch: own ? undefined : () => this.fetchIceServers(), nowMs: () => this.rest.nowMs() };
    const call = new Call(this, roomId, peer, options, callId, supply);
    this.#calls.set(call.callId, call);
    this.#ringing.delete(call.callId);
    void call.ended.then(() => this.#calls.delete(call.callId));
    return call;
  }
}

/** Whether signing in is all that helps. */
function isSignedOut(error: unknown): error is HeliographError {
  return error instanceof HeliographError && (error.status === 401 || error.code === "signed_out");
}

/** The call once its description is out; one that could not begin (no microphone, say) tells the peer. */
async function begun(call: Call, beginning: Promise<void>): Promise<Call> {
  try {
    await beginning;
  } catch (error) {
    await call.hangup("failed");
    throw error;
  }
  return call;
}
