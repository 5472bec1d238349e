/**
 * One call: SDP, trickled ICE and audio over the browser's WebRTC, signaled through whatever can send a frame.
 * Knows WebRTC and the five signaling actions; must not know sockets, tokens or REST.
 */

import { HeliographError, type Json, ours, text } from "./errors";
import type { HeliographEvent } from "./frames";
import { makeId, newTraceId } from "./ids";
import type { Draining } from "./iceServers";
import { Negotiations } from "./negotiation";
import { PathMeter, type Row, type SelectedPath, type StatsBody, type Totals, relayHosts, selectedPath, totals } from "./path";
import { Restarts, type Supply, type Why } from "./restarts";
import { type AudioProfile, asking, describedPart, ufragOf } from "./sdp";

export type IcePolicy = "relay" | "all";
export type Reason = "hangup" | "declined" | "busy" | "failed";

/** What a call needs of a client. */
export interface Signaling {
  request(action: string, roomId?: string, body?: Json, traceId?: string): Promise<unknown>;
}

export interface CallOptions {
  icePolicy?: IcePolicy;
  iceServers?: RTCIceServer[]; // otherwise those of GET /v1/ice-servers
  audio?: MediaTrackConstraints | boolean; // what to ask the microphone for; true is the browser's own taste
  stream?: MediaStream; // speak this instead of the microphone
}

export interface Peer {
  account_id: string;
  device_id?: string;
}

/** The body of a `rung` event. */
export interface Rung {
  call_id: string;
  rung: number;
  name: string;
  audio: AudioProfile;
  video: { is_on: boolean; max_height: number; max_fps: number; max_bps: number };
  action: string;
  reason: { rule: string; inputs: Record<string, number | boolean>; to_step_up: string };
}

const REPORT_EVERY_MS = 1_000;

/** A call with one peer. Made by `Client.call` and `IncomingCall.answer`. */
export class Call {
  readonly callId: string;
  readonly remoteStream = new MediaStream(); // attach it to an <audio autoplay>
  readonly rungs: Rung[] = []; // every `rung` event applied, oldest first
  readonly ended: Promise<string>; // with the reason: hangup, declined, busy, failed or absent
  readonly traceId = newTraceId(); // one for the whole call
  endReason: string | undefined;
  connectMs: number | undefined; // from the first description to media flowing
  onChange: () => void = () => undefined; // state, rung or end changed

  #pc: RTCPeerConnection;
  #negotiations: Negotiations;
  #restarts: Restarts;
  #meter = new PathMeter();
  #connected: Promise<void>;
  #settle!: { connected: () => void; failed: (error: Error) => void; ended: (reason: string) => void };
  #handling: Promise<void> = Promise.resolve(); // one event after the other
  #reporting: ReturnType<typeof setInterval> | undefined;
  #ownStream: MediaStream | undefined;
  #asks: AudioProfile | undefined; // what the peer's descriptions are made to ask for
  #described = ""; // the described part of the profile in force
  #isDescribed = false; // both descriptions are known
  #startedAtMs = performance.now();

  constructor(
    private signaling: Signaling,
    readonly roomId: string,
    public peer: Peer,
    private options: CallOptions,
    callId?: string,
    supply: Supply = { current: { servers: options.iceServers ?? [] }, nowMs: () => performance.now() },
  ) {
    this.callId = callId ?? makeId("call");
    const configuration: RTCConfiguration = { iceServers: supply.current.servers, iceTransportPolicy: options.icePolicy ?? "all" };
    this.#pc = new RTCPeerConnection(configuration);
    this.#negotiations = new Negotiations(this.#pc, configuration, (action, body) => this.#say(action, body), () => this.endReason !== undefined, (sdp) => this.#asked(sdp));
    this.#restarts = new Restarts(supply, { restart: (servers) => this.#negotiations.restart(servers), giveUp: (reason) => void this.hangup(reason) });
    this.#connected = new Promise((connected, failed) => (this.#settle = { connected, failed, ended: () => undefined }));
    this.#connected.catch(() => undefined); // nobody may be waiting
    this.ended = new Promise((resolve) => (this.#settle.ended = resolve));
    this.#pc.ontrack = ({ track }) => this.remoteStream.addTrack(track);
    this.#pc.onconnectionstatechange = () => this.#onState();
  }

  /** Send the offer; candidates follow it. */
  async offer(): Promise<void> {
    await this.#speak();
    await this.#begin(() => this.#negotiations.offer());
  }

  /** Answer the body of an `offer` event. */
  async answer(offer: Json): Promise<void> {
    await this.#begin(() => this.#negotiations.answer(offer, () => this.#speak()));
    this.#isDescribed = true;
  }

  /** An event of this call; others are ignored. */
  handle(event: HeliographEvent): Promise<void> {
    this.#handling = this.#handling.then(() => this.#handle(event)).catch((error: unknown) => console.warn("heliograph: an event of the call could not be handled", error));
    return this.#handling;
  }

  /** Wait until media can flow; throws `call_failed`, `callee_absent` or `timed_out`. */
  async connected(timeoutMs = 15_000): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(ours("timed_out", `The call is ${this.state} after ${timeoutMs} ms.`)), timeoutMs);
    });
    await Promise.race([this.#connected, late]).finally(() => clearTimeout(timer));
  }

  /** End the call and tell the peer; harmless when it is over already. */
  async hangup(reason: Reason = "hangup"): Promise<void> {
    if (this.endReason !== undefined) return;
    this.#end(reason);
    await this.#send("bye", { reason }).catch(() => undefined);
  }

  /** Move to another path now (an ICE restart), as after a change of network; the call does so by itself when it must, and audio goes on meanwhile. */
  restart(): void {
    this.#restarts.ask();
  }

  /** Relays go away: move, if this call is on one of them. */
  async drain(draining: Draining): Promise<void> {
    if (relayHosts(await this.#rows()).some((host) => draining.relayHosts.includes(host))) this.#restarts.drain(draining);
  }

  /** Why the call moved to another path, each time it did: renewal, draining, lost, asked, or peer (who began it). Oldest first. */
  get restarts(): readonly Why[] {
    return this.#restarts.done;
  }

  get state(): RTCPeerConnectionState {
    return this.#pc.connectionState;
  }

  get isMuted(): boolean {
    return this.#pc.getSenders().every((sender) => sender.track?.enabled !== true);
  }

  /** Stop or go on speaking; the microphone stays open. */
  mute(isMuted: boolean): void {
    for (const sender of this.#pc.getSenders()) if (sender.track) sender.track.enabled = !isMuted;
    this.onChange();
  }

  /** The bitrate the sender may use at most, as the last rung set it. */
  get maxBitrateBps(): number | undefined {
    return this.#pc.getSenders()[0]?.getParameters().encodings[0]?.maxBitrate;
  }

  async selectedPath(): Promise<SelectedPath | null> {
    return selectedPath(await this.#rows());
  }

  async totals(): Promise<Totals> {
    return totals(await this.#rows());
  }

  /** Report to the server, whose `rung` event follows when its decision changed; answers what was reported. */
  async sendStats(): Promise<StatsBody> {
    const hasFeedback = this.#pc.remoteDescription?.sdp.includes("transport-cc") ?? false;
    const body = this.#meter.report(await this.#rows(), performance.now(), hasFeedback);
    await this.signaling.request("stats", this.roomId, { call_id: this.callId, ...body }, this.traceId);
    return body;
  }

  async #rows(): Promise<Row[]> {
    const rows: Row[] = [];
    (await this.#pc.getStats()).forEach((row: Row) => rows.push(row));
    return rows;
  }

  async #speak(): Promise<void> {
    const stream = this.options.stream ?? (this.#ownStream = await navigator.mediaDevices.getUserMedia({ audio: this.options.audio ?? true }));
    for (const track of stream.getAudioTracks()) this.#pc.addTrack(track, stream);
  }

  async #begin(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (error instanceof HeliographError) this.#end("failed", error); // refused: there is no call to say bye to
      throw error;
    }
  }

  async #handle({ event, body }: HeliographEvent): Promise<void> {
    if (this.endReason !== undefined || !this.#isFromPeer(body["from"] as Peer | undefined)) return;
    if (event === "offer") void this.#onOffer(body); // not waited for: it asks for servers, and a bye must not wait for that
    else if (event === "answer") await this.#onAnswer(body);
    else if (event === "candidate") await this.#negotiations.hearCandidate(body);
    else if (event === "bye") this.#end(text(body["reason"]) ?? "hangup");
    else if (event === "rung") await this.#applyRung(body as unknown as Rung);
    else if (event === "callee_absent" && this.#isDescribed) this.#negotiations.absent();
    else if (event === "callee_absent") this.#end("absent", ours("callee_absent", "The callee has no live device; a push was sent."));
  }

  /** Whoever else is in the room, or another device of the peer once one has answered, has no say in this call; what comes without `from` is the server's. */
  #isFromPeer(from: Peer | undefined): boolean {
    if (from === undefined) return true;
    return from.account_id === this.peer.account_id && (this.peer.device_id === undefined || from.device_id === this.peer.device_id);
  }

  async #onAnswer(body: Json): Promise<void> {
    if (!(await this.#negotiations.hearAnswer(body))) return;
    this.peer = { ...this.peer, ...(body["from"] as Peer) }; // from now on this device, not every device of the account
    this.#isDescribed = true;
  }

  /** The peer restarts ICE. */
  async #onOffer(body: Json): Promise<void> {
    if (this.connectMs === undefined) return; // the first offer is still on its way through; this one will be repeated
    let servers = { servers: [] as RTCIceServer[] };
    try {
      if (await this.#negotiations.hearOffer(body, async () => (servers = await this.#restarts.fresh()).servers)) this.#restarts.answered(servers);
    } catch (error) {
      console.info("heliograph: the peer's ICE restart failed:", String(error));
    }
  }

  async #applyRung(rung: Rung): Promise<void> {
    const before = this.rungs.at(-1)?.audio;
    await this.#setBitrate(rung.audio.bitrate_bps);
    await this.#negotiations.serially(() => this.#describeAnew(rung.audio));
    if (before?.bitrate_bps !== rung.audio.bitrate_bps || before.ptime_ms !== rung.audio.ptime_ms) this.#meter.restart();
    this.rungs.push(rung);
    this.onChange();
  }

  async #setBitrate(bitrateBps: number): Promise<void> {
    const sender = this.#pc.getSenders()[0];
    const parameters = sender?.getParameters();
    const encoding = parameters?.encodings[0];
    if (!sender || !parameters || !encoding || encoding.maxBitrate === bitrateBps) return;
    encoding.maxBitrate = bitrateBps;
    await sender.setParameters(parameters);
  }

  /** Frame duration, channels, FEC and DTX: the peer's description is applied anew, on this side only; ICE and DTLS go on as they are. */
  async #describeAnew(audio: AudioProfile): Promise<void> {
    const remote = this.#pc.remoteDescription;
    const local = this.#pc.localDescription;
    this.#asks = audio; // of a description that is on its way, too
    if (!remote || !local || this.#pc.signalingState !== "stable" || this.#described === describedPart(audio)) return;
    const asked = { type: remote.type, sdp: asking(remote.sdp, audio) };
    try {
      if (remote.type === "answer") await this.#pc.setLocalDescription(sameIce(await this.#pc.createOffer(), local));
      await this.#pc.setRemoteDescription(asked);
      if (remote.type === "offer") await this.#pc.setLocalDescription(sameIce(await this.#pc.createAnswer(), local));
      this.#described = describedPart(audio);
    } catch (error) {
      console.warn("heliograph: only the bitrate of the rung is in force", error);
      await this.#rollBack();
    }
  }

  /** The peer's description, as if it asked for the rung in force. */
  #asked(sdp: string): string {
    if (!this.#asks) return sdp;
    this.#described = describedPart(this.#asks);
    return asking(sdp, this.#asks);
  }

  async #rollBack(): Promise<void> {
    if (this.#pc.signalingState === "have-local-offer") await this.#pc.setLocalDescription({ type: "rollback" });
    if (this.#pc.signalingState === "have-remote-offer") await this.#pc.setRemoteDescription({ type: "rollback" });
  }

  #onState(): void {
    if (this.state === "connected") {
      this.connectMs ??= Math.round(performance.now() - this.#startedAtMs);
      this.#settle.connected();
      this.#restarts.connected();
      this.#reporting ??= setInterval(() => void this.sendStats().catch(() => undefined), REPORT_EVERY_MS); // one that did not get through is not worth repeating
    } else if ((this.state === "disconnected" || this.state === "failed") && this.connectMs !== undefined) {
      this.#restarts.lost();
    } else if (this.state === "failed") {
      void this.hangup("failed");
    }
    this.onChange();
  }

  #end(reason: string, error: HeliographError = ours("call_failed", `The call ended: ${reason}.`)): void {
    if (this.endReason !== undefined) return;
    this.endReason = reason;
    clearInterval(this.#reporting);
    this.#restarts.stop();
    this.#pc.close();
    for (const track of this.#ownStream?.getTracks() ?? []) track.stop();
    this.#settle.failed(error);
    this.#settle.ended(reason);
    this.onChange();
  }

  async #say(action: string, body: Json): Promise<void> {
    if (action !== "candidate") this.#startedAtMs = performance.now();
    await this.#send(action, body);
  }

  async #send(action: string, body: Json): Promise<void> {
    await this.signaling.request(action, this.roomId, { call_id: this.callId, to: this.peer, ...body }, this.traceId);
  }
}

/** A description made for this side alone; one that would restart ICE, of which the peer knows nothing, is none. */
function sameIce(description: RTCSessionDescriptionInit, local: RTCSessionDescription): RTCSessionDescriptionInit {
  if (ufragOf(description.sdp ?? "") !== ufragOf(local.sdp)) throw new Error("an ICE restart is due first");
  return description;
}
