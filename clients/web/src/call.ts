/**
 * One call: SDP, trickled ICE and audio over the browser's WebRTC, signaled through whatever can send a frame.
 * Knows WebRTC and the five signaling actions; must not know sockets, tokens or REST.
 */

import { HeliographError, type Json, ours, text, whole } from "./errors";
import type { HeliographEvent } from "./frames";
import { makeId, newTraceId } from "./ids";
import { PathMeter, type Row, type SelectedPath, type StatsBody, type Totals, selectedPath, totals } from "./path";
import { type AudioProfile, asking, describedPart } from "./sdp";

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
  #negotiationId = makeId("neg");
  #meter = new PathMeter();
  #connected: Promise<void>;
  #settle!: { connected: () => void; failed: (error: Error) => void; ended: (reason: string) => void };
  #handling: Promise<void> = Promise.resolve(); // one event after the other, so that a candidate never overtakes its description
  #outgoing: Promise<void>; // candidates follow the description: frames of one socket may be handled out of order
  #describe!: () => void;
  #early: Json[] = []; // candidates that came before the peer's description
  #reporting: ReturnType<typeof setInterval> | undefined;
  #ownStream: MediaStream | undefined;
  #described = ""; // the described part of the profile in force
  #startedAtMs = performance.now();

  constructor(
    private signaling: Signaling,
    readonly roomId: string,
    public peer: Peer,
    private options: CallOptions,
    callId?: string,
  ) {
    this.callId = callId ?? makeId("call");
    this.#pc = new RTCPeerConnection({ iceServers: options.iceServers ?? [], iceTransportPolicy: options.icePolicy ?? "all" });
    this.#connected = new Promise((connected, failed) => (this.#settle = { connected, failed, ended: () => undefined }));
    this.#connected.catch(() => undefined); // nobody may be waiting
    this.ended = new Promise((resolve) => (this.#settle.ended = resolve));
    this.#outgoing = new Promise((resolve) => (this.#describe = resolve));
    this.#pc.onicecandidate = ({ candidate }) => this.#trickle(candidate);
    this.#pc.ontrack = ({ track }) => this.remoteStream.addTrack(track);
    this.#pc.onconnectionstatechange = () => this.#onState();
  }

  /** Send the offer; candidates follow it. */
  async offer(): Promise<void> {
    await this.#speak();
    await this.#pc.setLocalDescription(await this.#pc.createOffer());
    await this.#sendDescription("offer");
  }

  /** Answer the body of an `offer` event. */
  async answer(offer: Json): Promise<void> {
    this.#negotiationId = String(offer["negotiation_id"]);
    await this.#pc.setRemoteDescription({ type: "offer", sdp: String(offer["sdp"]) });
    await this.#speak();
    await this.#addEarly();
    await this.#pc.setLocalDescription(await this.#pc.createAnswer());
    await this.#sendDescription("answer");
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

  async #sendDescription(action: "offer" | "answer"): Promise<void> {
    this.#startedAtMs = performance.now();
    try {
      await this.#send(action, { negotiation_id: this.#negotiationId, sdp: this.#pc.localDescription?.sdp });
    } catch (error) {
      this.#end("failed", error instanceof HeliographError ? error : undefined); // refused: there is no call to say bye to
      throw error;
    }
    this.#describe();
  }

  #trickle(candidate: RTCIceCandidate | null): void {
    if (candidate?.candidate === "") return; // one component's end; null is the end of all
    const body = { candidate: candidate?.candidate ?? "", sdp_mid: candidate?.sdpMid ?? "0", sdp_m_line_index: candidate?.sdpMLineIndex ?? 0 };
    this.#outgoing = this.#outgoing
      .then(() => (this.endReason === undefined ? this.#send("candidate", { negotiation_id: this.#negotiationId, ...body }) : undefined))
      .catch((error: unknown) => console.warn("heliograph: a candidate was not sent", error));
  }

  async #handle({ event, body }: HeliographEvent): Promise<void> {
    if (this.endReason !== undefined || !this.#isFromPeer(body["from"] as Peer | undefined)) return;
    if (event === "answer") await this.#onAnswer(body);
    else if (event === "candidate") await this.#onCandidate(body);
    else if (event === "bye") this.#end(text(body["reason"]) ?? "hangup");
    else if (event === "rung") await this.#applyRung(body as unknown as Rung);
    else if (event === "callee_absent") this.#end("absent", ours("callee_absent", "The callee has no live device; a push was sent."));
  }

  /** Whoever else is in the room, or another device of the peer once one has answered, has no say in this call; what comes without `from` is the server's. */
  #isFromPeer(from: Peer | undefined): boolean {
    if (from === undefined) return true;
    return from.account_id === this.peer.account_id && (this.peer.device_id === undefined || from.device_id === this.peer.device_id);
  }

  async #onAnswer(body: Json): Promise<void> {
    if (body["negotiation_id"] !== this.#negotiationId || this.#pc.signalingState !== "have-local-offer") return; // late, or from a second device
    this.peer = { ...this.peer, ...(body["from"] as Peer) }; // from now on this device, not every device of the account
    await this.#pc.setRemoteDescription({ type: "answer", sdp: String(body["sdp"]) });
    await this.#addEarly();
  }

  async #onCandidate(body: Json): Promise<void> {
    if (!this.#pc.remoteDescription) this.#early.push(body);
    else await this.#addCandidate(body);
  }

  async #addEarly(): Promise<void> {
    for (const body of this.#early.splice(0)) await this.#addCandidate(body);
  }

  async #addCandidate(body: Json): Promise<void> {
    if (body["negotiation_id"] !== this.#negotiationId) return;
    const [sdpMid, sdpMLineIndex] = [text(body["sdp_mid"]) ?? null, whole(body["sdp_m_line_index"]) ?? null];
    await this.#pc.addIceCandidate({ candidate: text(body["candidate"]) ?? "", sdpMid, sdpMLineIndex });
  }

  async #applyRung(rung: Rung): Promise<void> {
    const before = this.rungs.at(-1)?.audio;
    await this.#setBitrate(rung.audio.bitrate_bps);
    await this.#describeAnew(rung.audio);
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
    if (!remote || this.#pc.signalingState !== "stable" || this.#described === describedPart(audio)) return;
    const asked = { type: remote.type, sdp: asking(remote.sdp, audio) };
    try {
      if (remote.type === "answer") await this.#pc.setLocalDescription(await this.#pc.createOffer());
      await this.#pc.setRemoteDescription(asked);
      if (remote.type === "offer") await this.#pc.setLocalDescription(await this.#pc.createAnswer());
      this.#described = describedPart(audio);
    } catch (error) {
      console.warn("heliograph: only the bitrate of the rung is in force", error);
      await this.#rollBack();
    }
  }

  async #rollBack(): Promise<void> {
    if (this.#pc.signalingState === "have-local-offer") await this.#pc.setLocalDescription({ type: "rollback" });
    if (this.#pc.signalingState === "have-remote-offer") await this.#pc.setRemoteDescription({ type: "rollback" });
  }

  #onState(): void {
    if (this.state === "connected") {
      this.connectMs ??= Math.round(performance.now() - this.#startedAtMs);
      this.#settle.connected();
      this.#reporting ??= setInterval(() => void this.sendStats().catch(() => undefined), REPORT_EVERY_MS); // one that did not get through is not worth repeating
    } else if (this.state === "failed") {
      void this.hangup("failed");
    }
    this.onChange();
  }

  #end(reason: string, error: HeliographError = ours("call_failed", `The call ended: ${reason}.`)): void {
    if (this.endReason !== undefined) return;
    this.endReason = reason;
    clearInterval(this.#reporting);
    this.#pc.close();
    for (const track of this.#ownStream?.getTracks() ?? []) track.stop();
    this.#settle.failed(error);
    this.#settle.ended(reason);
    this.onChange();
  }

  async #send(action: string, body: Json): Promise<void> {
    await this.signaling.request(action, this.roomId, { call_id: this.callId, to: this.peer, ...body }, this.traceId);
  }
}
