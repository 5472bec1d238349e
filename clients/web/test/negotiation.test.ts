/** Descriptions and candidates of a call against a peer connection of this process: what `RTCPeerConnection` does with states, ICE credentials and rollback. */

import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { HeliographError, type Json } from "../src/errors";
import { Negotiations } from "../src/negotiation";

const NEW = [{ urls: "turn:relay.example", username: "new", credential: "c" }];
const code = (expected: string) => (error: unknown) => error instanceof HeliographError && error.code === expected;
const soon = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Whatever was begun is done. */
async function settled(): Promise<void> {
  for (let turn = 0; turn < 20; turn += 1) await soon();
}

/** The browser's, as far as it matters here: a candidate of other ICE credentials than those of the description in force is an error. */
class FakeConnection {
  signalingState = "stable";
  configurations: RTCConfiguration[] = [];
  candidates: string[] = [];
  onicecandidate: (event: { candidate: Json | null }) => void = () => undefined;
  #generation = 0;
  #local: RTCSessionDescriptionInit[] = [];
  #remote: RTCSessionDescriptionInit[] = [];

  get localDescription(): RTCSessionDescriptionInit | undefined {
    return this.#local.at(-1);
  }

  get remoteDescription(): RTCSessionDescriptionInit | undefined {
    return this.#remote.at(-1);
  }

  setConfiguration(configuration: RTCConfiguration): void {
    this.configurations.push(configuration);
  }

  async createOffer({ iceRestart = false } = {}): Promise<RTCSessionDescriptionInit> {
    return { type: "offer", sdp: this.#sdp(iceRestart || this.#generation === 0) };
  }

  async createAnswer(): Promise<RTCSessionDescriptionInit> {
    assert.equal(this.signalingState, "have-remote-offer");
    return { type: "answer", sdp: this.#sdp(true) };
  }

  #sdp(isNew: boolean): string {
    return `v=0\r\na=ice-ufrag:own${(this.#generation += isNew ? 1 : 0)}\r\n`;
  }

  async setLocalDescription(description: RTCSessionDescriptionInit): Promise<void> {
    if (description.type === "rollback") {
      assert.equal(this.signalingState, "have-local-offer");
      this.#local.pop();
      this.signalingState = "stable";
      return;
    }
    assert.equal(this.signalingState, description.type === "offer" ? "stable" : "have-remote-offer");
    this.#local.push(description);
    this.signalingState = description.type === "offer" ? "have-local-offer" : "stable";
    this.gathered(String(description.sdp?.match(/own\d+/)));
  }

  async setRemoteDescription(description: RTCSessionDescriptionInit): Promise<void> {
    assert.equal(this.signalingState, description.type === "offer" ? "stable" : "have-local-offer");
    this.#remote.push(description);
    this.signalingState = description.type === "offer" ? "have-remote-offer" : "stable";
  }

  async addIceCandidate({ candidate = "" }: RTCIceCandidateInit): Promise<void> {
    const ufrag = / ufrag (\S+)/.exec(candidate)?.[1];
    if (ufrag && !this.remoteDescription?.sdp?.includes(`ice-ufrag:${ufrag}\r\n`)) throw new Error(`unknown ufrag ${ufrag}`);
    this.candidates.push(candidate);
  }

  /** A local candidate of these credentials, and the end. */
  gathered(ufrag: string): void {
    setImmediate(() => {
      this.onicecandidate({ candidate: line(ufrag) });
      this.onicecandidate({ candidate: null });
    });
  }
}

const line = (ufrag: string): Json => ({ candidate: `candidate:1 1 udp 1 203.0.113.7 9 typ relay ufrag ${ufrag}`, sdpMid: "0", sdpMLineIndex: 0 });
const theirs = (id: string, ufrag: string, more: Json = {}): Json => ({ negotiation_id: id, sdp: `v=0\r\na=ice-ufrag:${ufrag}\r\n`, ...more });
const candidate = (id: string, ufrag?: string): Json => ({ negotiation_id: id, candidate: ufrag === undefined ? "" : line(ufrag)["candidate"], sdp_mid: "0" });

/** One side of a call whose first offer was answered. `refuse` may refuse what it says. */
async function connected(): Promise<{ pc: FakeConnection; negotiations: Negotiations; said: [string, Json][]; refuse: { with: HeliographError | undefined } }> {
  const [pc, said, refuse] = [new FakeConnection(), [] as [string, Json][], { with: undefined as HeliographError | undefined }];
  const say = async (action: string, body: Json): Promise<void> => {
    said.push([action, body]);
    await soon();
    if (action !== "candidate" && refuse.with) throw refuse.with;
  };
  const negotiations = new Negotiations(pc as unknown as RTCPeerConnection, { iceServers: [], iceTransportPolicy: "relay" }, say, () => false, (sdp) => sdp);
  await negotiations.offer();
  await negotiations.hearAnswer(theirs(String(said[0]?.[1]["negotiation_id"]), "their1"));
  await settled();
  said.length = 0;
  return { pc, negotiations, said, refuse };
}

async function offered(said: [string, Json][]): Promise<string> {
  while (!said.some(([action]) => action === "offer")) await soon();
  return String(said.find(([action]) => action === "offer")?.[1]["negotiation_id"]);
}

test("a restart has fresh servers, new ICE credentials and a new negotiation, and its candidates follow the offer", async () => {
  const { pc, negotiations, said } = await connected();
  const restarting = negotiations.restart(NEW);
  const id = await offered(said);
  await negotiations.hearCandidate(candidate(id, "their2")); // it overtakes its description
  await negotiations.hearAnswer(theirs(id, "their2"));
  await restarting;
  await settled();
  assert.deepEqual(pc.configurations, [{ iceServers: NEW, iceTransportPolicy: "relay" }]);
  assert.match(String(said[0]?.[1]["sdp"]), /own2/);
  assert.deepEqual(said.map(([action, body]) => [action, body["negotiation_id"]]), [["offer", id], ["candidate", id], ["candidate", id]]);
  assert.match(String(pc.candidates.at(-1)), /their2/);
  assert.equal(pc.signalingState, "stable");
});

test("candidates of an older generation are ignored without an error, in both directions", async () => {
  const { pc, negotiations, said } = await connected();
  const restarting = negotiations.restart(NEW);
  const id = await offered(said);
  await negotiations.hearAnswer(theirs(id, "their2"));
  await restarting;
  const before = pc.candidates.length;
  await negotiations.hearCandidate(candidate(id, "their1"));
  await negotiations.hearCandidate(candidate("neg_of_another_life", "their2"));
  assert.equal(pc.candidates.length, before);
  await negotiations.hearCandidate(candidate(id, "their2"));
  await negotiations.hearCandidate(candidate(id));
  assert.equal(pc.candidates.length, before + 2, "the twins, and the end of all");
  await settled();
  said.length = 0;
  pc.gathered("own1");
  await settled();
  assert.deepEqual(said.map(([, body]) => body["candidate"]), [""], "a late one of our own old path is not told");
});

test("a refused offer is rolled back, its candidates are never sent, and the peer's offer is answered", async () => {
  const { pc, negotiations, said, refuse } = await connected();
  refuse.with = new HeliographError("glare", "the other side has offered too");
  await assert.rejects(negotiations.restart(NEW), code("glare"));
  refuse.with = undefined;
  assert.equal(pc.signalingState, "stable");
  assert.match(String(pc.localDescription?.sdp), /own1/, "the path before");
  assert.equal(await negotiations.hearOffer(theirs("neg_theirs", "their2", { polite: true }), async () => NEW), true);
  await settled();
  assert.deepEqual(said.map(([action]) => action), ["offer", "answer", "candidate", "candidate"]);
  assert.deepEqual(new Set(said.slice(1).map(([, body]) => body["negotiation_id"])), new Set(["neg_theirs"]));
});

test("both offer: the polite side gives way and answers", async () => {
  const { pc, negotiations, said } = await connected();
  const restarting = negotiations.restart(NEW);
  const own = await offered(said);
  const gaveWay = assert.rejects(restarting, code("glare"));
  assert.equal(await negotiations.hearOffer(theirs("neg_theirs", "their2", { polite: true }), async () => NEW), true);
  await gaveWay;
  assert.equal(await negotiations.hearAnswer(theirs(own, "their3")), false, "an answer to what we gave up");
  assert.deepEqual([pc.signalingState, pc.remoteDescription?.sdp], ["stable", theirs("", "their2")["sdp"]]);
});

test("both offer: the impolite side ignores the other's offer and its candidates", async () => {
  const { pc, negotiations, said } = await connected();
  const restarting = negotiations.restart(NEW);
  const own = await offered(said);
  assert.equal(await negotiations.hearOffer(theirs("neg_theirs", "their2", { polite: false }), async () => NEW), false);
  await negotiations.hearCandidate(candidate("neg_theirs", "their2"));
  await negotiations.hearAnswer(theirs(own, "their3"));
  await restarting;
  assert.deepEqual([pc.signalingState, pc.remoteDescription?.sdp, pc.candidates], ["stable", theirs("", "their3")["sdp"], []]);
});

test("while the peer's offer is being answered we do not offer", async () => {
  const { negotiations, said } = await connected();
  const answering = negotiations.hearOffer(theirs("neg_theirs", "their2"), async () => (await soon(), NEW));
  await assert.rejects(negotiations.restart(NEW), code("glare"));
  assert.equal(await answering, true);
  const restarting = negotiations.restart(NEW);
  await negotiations.hearAnswer(theirs(await offered(said), "their3"));
  await restarting;
});

test("of two offers of the peer the newer one is answered; one that comes again gets the same answer", async () => {
  const { pc, negotiations, said } = await connected();
  const first = negotiations.hearOffer(theirs("neg_1", "their2"), async () => (await soon(), await soon(), NEW));
  assert.equal(await negotiations.hearOffer(theirs("neg_2", "their3"), async () => NEW), true);
  assert.equal(await first, false);
  assert.equal(await negotiations.hearOffer(theirs("neg_2", "their3"), async () => NEW), false);
  const answers = said.filter(([action]) => action === "answer").map(([, body]) => body);
  assert.deepEqual(answers.map((body) => body["negotiation_id"]), ["neg_2", "neg_2"]);
  assert.equal(answers[0]?.["sdp"], answers[1]?.["sdp"]);
  assert.match(String(pc.remoteDescription?.sdp), /their3/);
});

test("without a socket of the peer the offer is given up, and a later one passes", async () => {
  const { pc, negotiations, said } = await connected();
  const restarting = negotiations.restart(NEW);
  await offered(said);
  negotiations.absent();
  await assert.rejects(restarting, code("timed_out"));
  assert.equal(pc.signalingState, "stable");
  said.length = 0;
  const again = negotiations.restart(NEW);
  await negotiations.hearAnswer(theirs(await offered(said), "their2"));
  await again;
});

test("an offer without an answer is said twice, then rolled back", async () => {
  const { pc, negotiations, said } = await connected();
  mock.timers.enable({ apis: ["setTimeout"] });
  try {
    const late = assert.rejects(negotiations.restart(NEW), code("timed_out"));
    const id = await offered(said);
    for (const passedMs of [4_000, 6_000]) {
      mock.timers.tick(passedMs);
      await soon();
    }
    await late;
    const offers = said.filter(([action]) => action === "offer").map(([, body]) => body["negotiation_id"]);
    assert.deepEqual([offers, pc.signalingState], [[id, id], "stable"]);
  } finally {
    mock.timers.reset();
  }
});
