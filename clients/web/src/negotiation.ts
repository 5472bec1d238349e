/**
 * The descriptions and candidates of one call: its first offer, ICE restarts of either side, and what happens when both offer (docs/protocol.md).
 * Knows RTCPeerConnection and three frames; must not know when a restart is due or where servers come from.
 */

import { HeliographError, type Json, ours, text, whole } from "./errors";
import { makeId } from "./ids";
import { isOf } from "./sdp";

const OFFER_MS = 10_000; // for so long the server keeps the polite side from offering beside an open offer
const REPEAT_AFTER_MS = 4_000; // events may be lost

export type Say = (action: "offer" | "answer" | "candidate", body: Json) => Promise<void>;

/** An own offer within the call that waits for its answer. */
interface Open {
  id: string;
  answered: Promise<void>;
  settle: (error?: Error) => void;
}

/** Whether the candidates of a local description may follow it: once it was sent; never, if it was not. */
interface Gate {
  id: string;
  isSent: Promise<boolean>;
  open: (isSent: boolean) => void;
}

export class Negotiations {
  #gate = newGate("");
  #applied = ""; // the negotiation of the peer's description in force
  #open: Open | undefined;
  #answering = "";
  #said = { id: "", sdp: "" }; // the last answer
  #early: Json[] = []; // candidates whose description is not there yet
  #outgoing: Promise<void> = Promise.resolve(); // frames of one socket may be handled out of order
  #working: Promise<unknown> = Promise.resolve(); // one change of descriptions after the other

  /** `say` sends a frame of this call, `isOver` says that it has ended, `adapted` is a description of the peer as it is to be applied. */
  constructor(
    private pc: RTCPeerConnection,
    private configuration: RTCConfiguration,
    private say: Say,
    private isOver: () => boolean,
    private adapted: (sdp: string) => string,
  ) {
    pc.onicecandidate = ({ candidate }) => this.#trickle(candidate);
  }

  /** Do it when no other change of descriptions is under way. */
  serially<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#working.then(work);
    this.#working = done.catch(() => undefined);
    return done;
  }

  /** The first offer; candidates follow it. */
  async offer(): Promise<void> {
    this.#open = newOpen();
    await this.#gather(this.#open.id, () => this.pc.createOffer());
    await this.#send("offer");
  }

  /** Answer the first offer; `speak` adds what we say, once the peer's description has made a place for it. */
  async answer(offer: Json, speak: () => Promise<void>): Promise<void> {
    const id = String(offer["negotiation_id"]);
    await this.#apply(id, "offer", offer);
    await speak();
    await this.#gather(id, () => this.pc.createAnswer());
    await this.#send("answer");
  }

  /** Offer a new path with these servers; resolves when the peer has answered. Rejects with what was refused, `glare` when the peer's offer took its place. */
  async restart(iceServers: RTCIceServer[]): Promise<void> {
    const open = newOpen();
    const [offer, gate] = await this.serially(async () => {
      if (this.#open || this.#answering || this.pc.signalingState !== "stable") throw glare("The peer's offer is being answered.");
      this.pc.setConfiguration({ ...this.configuration, iceServers });
      await this.#gather(open.id, () => this.pc.createOffer({ iceRestart: true }));
      this.#open = open;
      return [this.#description(), this.#gate] as const;
    });
    try {
      await this.#untilAnswered(open, offer, gate);
    } catch (error) {
      await this.serially(() => this.#giveUp(open));
      throw error;
    }
  }

  async #untilAnswered(open: Open, offer: Json, gate: Gate): Promise<void> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        this.say("offer", offer).catch(() => undefined);
        timer = setTimeout(() => reject(ours("timed_out", `The peer did not answer within ${OFFER_MS} ms.`)), OFFER_MS - REPEAT_AFTER_MS);
      }, REPEAT_AFTER_MS);
    });
    const sent = this.say("offer", offer).then(() => (gate.open(true), open.answered));
    await Promise.race([sent, open.answered, late]).finally(() => clearTimeout(timer));
    gate.open(true);
  }

  /** Back to the description before, unless that happened already. */
  async #giveUp(open: Open): Promise<void> {
    if (this.#open !== open) return;
    this.#open = undefined;
    this.#gate.open(false);
    open.answered.catch(() => undefined);
    open.settle(glare("The peer's offer took its place."));
    if (this.pc.signalingState === "have-local-offer") await this.pc.setLocalDescription({ type: "rollback" });
  }

  /**
   * An `offer` event within the call: answered with servers of our own, unless our open offer stands. Answers whether it was answered;
   * rejects when the answer was refused or could not be made.
   */
  async hearOffer(body: Json, servers: () => Promise<RTCIceServer[]>): Promise<boolean> {
    const id = String(body["negotiation_id"]);
    if (id === this.#said.id) await this.say("answer", { negotiation_id: id, sdp: this.#said.sdp });
    if (id === this.#said.id || id === this.#answering || (this.#open && body["polite"] !== true)) return false;
    this.#answering = id;
    try {
      const iceServers = await servers();
      await this.serially(() => this.#answerRestart(id, body, iceServers));
      if (this.#said.id === id) await this.#send("answer");
      return this.#said.id === id;
    } finally {
      if (this.#answering === id) this.#answering = "";
    }
  }

  async #answerRestart(id: string, body: Json, iceServers: RTCIceServer[]): Promise<void> {
    if (this.#answering !== id || this.isOver()) return; // the peer has offered anew
    if (this.#open) await this.#giveUp(this.#open);
    this.pc.setConfiguration({ ...this.configuration, iceServers });
    await this.#apply(id, "offer", body);
    await this.#gather(id, () => this.pc.createAnswer());
    this.#said = { id, sdp: String(this.pc.localDescription?.sdp) };
  }

  /** An `answer` event; whether it was to our open offer. */
  async hearAnswer(body: Json): Promise<boolean> {
    return this.serially(async () => {
      const open = this.#open;
      if (!open || open.id !== body["negotiation_id"] || this.pc.signalingState !== "have-local-offer") return false; // late, or from a second device
      await this.#apply(open.id, "answer", body);
      this.#open = undefined;
      open.settle();
      return true;
    });
  }

  /** A `candidate` event: of the description in force it is used, of one that may still come it is kept, of any other it is dropped. */
  async hearCandidate(body: Json): Promise<void> {
    await this.serially(async () => {
      if (body["negotiation_id"] === this.#applied) await this.#add(body);
      else this.#early = [...this.#early.slice(-63), body];
    });
  }

  /** The peer has no socket just now: nobody will answer. */
  absent(): void {
    this.#open?.settle(ours("timed_out", "The peer has no socket just now."));
  }

  async #apply(id: string, type: "offer" | "answer", body: Json): Promise<void> {
    await this.pc.setRemoteDescription({ type, sdp: this.adapted(String(body["sdp"])) });
    this.#applied = id;
    const ready = this.#early.filter((early) => early["negotiation_id"] === id);
    this.#early = this.#early.filter((early) => early["negotiation_id"] !== id);
    for (const early of ready) await this.#add(early);
  }

  async #add(body: Json): Promise<void> {
    const candidate = text(body["candidate"]) ?? "";
    if (!isOf(candidate, this.pc.remoteDescription?.sdp ?? "")) return; // of an older generation
    await this.pc.addIceCandidate({ candidate, sdpMid: text(body["sdp_mid"]) ?? null, sdpMLineIndex: whole(body["sdp_m_line_index"]) ?? null });
  }

  async #gather(id: string, create: () => Promise<RTCSessionDescriptionInit>): Promise<void> {
    const description = await create();
    this.#gate.open(false);
    this.#gate = newGate(id);
    await this.pc.setLocalDescription(description);
  }

  #description(): Json {
    return { negotiation_id: this.#gate.id, sdp: this.pc.localDescription?.sdp };
  }

  async #send(action: "offer" | "answer"): Promise<void> {
    const gate = this.#gate;
    await this.say(action, this.#description());
    gate.open(true);
  }

  #trickle(candidate: RTCIceCandidate | null): void {
    if (candidate?.candidate === "") return; // one component's end; null is the end of all
    if (candidate && !isOf(candidate.candidate, this.pc.localDescription?.sdp ?? "")) return;
    const body = { candidate: candidate?.candidate ?? "", sdp_mid: candidate?.sdpMid ?? "0", sdp_m_line_index: candidate?.sdpMLineIndex ?? 0 };
    const { id, isSent } = this.#gate;
    this.#outgoing = this.#outgoing
      .then(() => isSent)
      .then((may) => (may && !this.isOver() ? this.say("candidate", { negotiation_id: id, ...body }) : undefined))
      .catch((error: unknown) => console.warn("heliograph: a candidate was not sent", error));
  }
}

/** As the server refuses it: the peer's offer stands. */
function glare(message: string): HeliographError {
  return new HeliographError("glare", message);
}

function newOpen(): Open {
  let settle!: (error?: Error) => void;
  const answered = new Promise<void>((resolve, reject) => (settle = (error) => (error ? reject(error) : resolve())));
  answered.catch(() => undefined); // nobody may be waiting
  return { id: makeId("neg"), answered, settle };
}

function newGate(id: string): Gate {
  let open!: (isSent: boolean) => void;
  const isSent = new Promise<boolean>((resolve) => (open = resolve));
  return { id, isSent, open };
}
