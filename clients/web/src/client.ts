/** The client: one signed-in device, its socket kept open, its rooms, files and calls. */

import { Call, type CallOptions, type Peer } from "./call";
import { HeliographError, type Json, ours, text } from "./errors";
import type { Ack, HeliographEvent } from "./frames";
import { makeId, newTraceId, toHex } from "./ids";
import { Recovery } from "./recovery";
import { Rest, type Session, backoffMs, sleep } from "./rest";
import { type Socket, openSocket } from "./socket";

export const CLIENT_NAME = "heliograph-web/0.1.0";
const REMEMBERED = 2_048;

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
  presence: Presence[];
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
  #isClosing = false;
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

  /** Sign in; keep `deviceId` between visits so that the device stays the same one. */
  signIn(tenantId: string, login: string, password: string, deviceId = makeId("dev")): Promise<Session> {
    return this.rest.signIn(tenantId, login, password, deviceId);
  }

  /** A one-time ticket for the socket, good for half a minute. */
  async ticket(): Promise<string> {
    return (await this.rest.call<{ ticket: string }>("POST", "/v1/tickets")).ticket;
  }

  /** Open the socket; from then on it is opened again whenever it closes. */
  async connect(): Promise<Welcome> {
    const welcome = await this.#open();
    void this.#keepOpen();
    return welcome;
  }

  /** Hang up what is still talking and go offline. */
  async close(): Promise<void> {
    this.#isClosing = true;
    await Promise.all([...this.#calls.values()].map((call) => call.hangup()));
    this.#socket?.close();
  }

  async #open(): Promise<Welcome> {
    let arrive: (event: HeliographEvent) => void;
    const arrived = new Promise<HeliographEvent>((resolve) => (arrive = resolve));
    const socket: Socket = await openSocket(this.socketUrl, await this.ticket(), (event) => {
      if (event.event === "welcome") arrive(event);
      if (event.event === "closed" && socket === this.#retiring) return;
      if (event.event === "closed") this.#isClosing = true; // this device opened another socket elsewhere: coming back would only fight it
      this.#recovery.receive(event);
    });
    try {
      await socket.exchange("hello", makeId("msg"), newTraceId(), undefined, { client: CLIENT_NAME }, this.timeoutMs);
      const welcome = await Promise.race([arrived, sleep(this.timeoutMs).then(() => Promise.reject(ours("timed_out", "The server sent no welcome.")))]);
      this.welcome = welcome.body as unknown as Welcome;
      this.#socketLifeMs = this.welcome.reconnect_by_ms - (welcome.at_ms ?? Date.now());
    } catch (error) {
      socket.close();
      throw error;
    }
    this.#socket = socket;
    return this.welcome;
  }

  /** Ping while open; open the next socket before the server must end this one, or when it closed. */
  async #keepOpen(): Promise<void> {
    while (this.#socket) {
      const socket = this.#socket;
      const isDue = await this.#tended(socket);
      if (this.#isClosing) return;
      if (isDue) this.#retiring = socket;
      else this.#socket = undefined;
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
      timer = setTimeout(tick, 1_000);
    };
    timer = setTimeout(tick, 1_000);
    return { stop: () => clearTimeout(timer) };
  }

  /** With full jitter, until there is a new socket (true) or no reason for one. */
  async #openAgain(old: Socket): Promise<boolean> {
    for (let attempt = 0; !this.#isClosing; attempt += 1) {
      await sleep(backoffMs(attempt));
      try {
        await this.#open();
        await Promise.all([...this.#joined].map((roomId) => this.join(roomId)));
      } catch (error) {
        if (error instanceof HeliographError && error.status === 401) return false; // signed out
      }
      if (this.#socket && this.#socket !== old) return true;
    }
    return false;
  }

  async #ping(): Promise<void> {
    const rooms = [...this.#joined].slice(0, 50).map((room_id) => ({ room_id, ...this.#recovery.position(room_id) }));
    await this.request("ping", undefined, { rooms });
  }

  // frames and events

  /** Send a frame and wait for its acknowledgement; sent again with the same id while that may help. Throws HeliographError. */
  async request(action: string, roomId?: string, body: Json = {}, traceId = newTraceId()): Promise<Ack> {
    const [id, deadlineMs] = [makeId("msg"), performance.now() + this.timeoutMs];
    for (let attempt = 0; ; attempt += 1) {
      try {
        if (!this.#socket) throw ours("connection_lost", `${action}: not connected.`);
        return await this.#socket.exchange(action, id, traceId, roomId, body, this.timeoutMs / 2);
      } catch (error) {
        if (!(error instanceof HeliographError) || !error.retryable) throw error;
        const afterMs = error.retryAfterMs ?? backoffMs(attempt);
        if (performance.now() + afterMs >= deadlineMs) throw error;
        await sleep(afterMs);
      }
    }
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
    const callId = text(event.body["call_id"]);
    if (callId === undefined || event.room_id === undefined) return;
    const [call, ringing] = [this.#calls.get(callId), this.#ringing.get(callId)];
    if (call) void call.handle(event);
    else if (ringing && event.event === "candidate") ringing.candidates.push(event);
    else if (ringing && event.event === "bye") this.#stopRinging(ringing);
    else if (!ringing && event.event === "offer") this.#ring(event.room_id, event.body);
    else if (!ringing && event.event === "candidate") this.#early = [...this.#early.slice(-63), event];
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
    return (await this.rest.call<{ ice_servers: RTCIceServer[] }>("GET", "/v1/ice-servers")).ice_servers;
  }

  /** Call a member of the room: the offer is out when this resolves; `await call.connected()` next. */
  async call(roomId: string, accountId: string, options: CallOptions = {}): Promise<Call> {
    const call = await this.newCall(roomId, { account_id: accountId }, options);
    return begun(call, call.offer());
  }

  /** A call that hears its events; `call` and `IncomingCall.answer` are what applications use. */
  async newCall(roomId: string, peer: Peer, options: CallOptions, callId?: string): Promise<Call> {
    const call = new Call(this, roomId, peer, { ...options, iceServers: options.iceServers ?? (await this.iceServers()) }, callId);
    this.#calls.set(call.callId, call);
    this.#ringing.delete(call.callId);
    void call.ended.then(() => this.#calls.delete(call.callId));
    return call;
  }
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
