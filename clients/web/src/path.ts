/** What a call's path measured: `getStats()` in, the body of a `stats` frame out. Pure; knows the W3C statistics, nothing of sockets. */

import { hostOf } from "./iceServers";

export type Row = Record<string, unknown> & { type: string; id: string };

/** The candidate types of the selected pair (RFC 8445) and the transport to the peer or the relay. */
export interface SelectedPath {
  local: string;
  remote: string;
  protocol: string;
}

/** Totals since the start of the call. */
export interface Totals {
  sentBytes: number;
  receivedBytes: number;
  receivedPackets: number;
  receivedEnergy: number;
}

export interface StatsBody {
  available_bps?: number;
  sent_bps?: number;
  rtt_ms?: number;
  loss?: number;
  jitter_ms?: number;
  queue_ms?: number;
  has_video: boolean;
}

const PACKET_OVERHEAD_BYTES = 38; // IPv4 20, UDP 8, SRTP tag 10; RTP's own header is counted in headerBytesSent
const WINDOW_MS = 2_500;
const CONGESTED_LOSS = 0.02;
const CONGESTED_QUEUE_MS = 100;

/** The pair ICE selected; null before there is one. */
export function selectedPath(rows: Row[]): SelectedPath | null {
  const pair = selectedPair(rows);
  const local = rows.find((row) => row.id === pair?.["localCandidateId"]);
  const remote = rows.find((row) => row.id === pair?.["remoteCandidateId"]);
  if (!local || !remote) return null;
  return { local: String(local["candidateType"]), remote: String(remote["candidateType"]), protocol: String(local["relayProtocol"] ?? local["protocol"]) };
}

/** The relay that carries the selected pair on our side, by its address and by the host of its URL; none when the pair needs none. */
export function relayHosts(rows: Row[]): string[] {
  const local = rows.find((row) => row.id === selectedPair(rows)?.["localCandidateId"]);
  if (local?.["candidateType"] !== "relay") return [];
  return [local["address"] ?? local["ip"], hostOf(String(local["url"] ?? ""))].filter((host): host is string => typeof host === "string" && host !== "");
}

function selectedPair(rows: Row[]): Row | undefined {
  const chosen = rows.find((row) => row.type === "transport")?.["selectedCandidatePairId"];
  return rows.find((row) => row.type === "candidate-pair" && (chosen === undefined ? row["nominated"] === true : row.id === chosen));
}

/** Audio bytes and packets of both directions. */
export function totals(rows: Row[]): Totals {
  const [sent, received] = [audio(rows, "outbound-rtp"), audio(rows, "inbound-rtp")];
  return {
    sentBytes: number(sent, "bytesSent") ?? 0,
    receivedBytes: number(received, "bytesReceived") ?? 0,
    receivedPackets: number(received, "packetsReceived") ?? 0,
    receivedEnergy: number(received, "totalAudioEnergy") ?? 0,
  };
}

/** Turns successive statistics into reports. */
export class PathMeter {
  #window: { atMs: number; wireBytes: number }[] = [];
  #leastRttS: number | undefined;
  #newestReport: unknown; // when the peer's last receiver report came
  #isSkipping: "newest" | "next" | "none" = "none";

  /** The sender changed its rate: the receiver report at hand is about the old one, and the next is about both. */
  restart(): void {
    this.#isSkipping = "newest";
    this.#window = [];
  }

  /** The report since about two seconds ago. `hasFeedback`: transport-wide feedback was negotiated, so the browser's bandwidth estimate means something. */
  report(rows: Row[], nowMs: number, hasFeedback: boolean): StatsBody {
    const remote = this.#fresh(audio(rows, "remote-inbound-rtp"));
    const pair = selectedPair(rows);
    const rttS = number(remote, "roundTripTime") ?? number(pair, "currentRoundTripTime");
    if (rttS !== undefined) this.#leastRttS = Math.min(rttS, this.#leastRttS ?? rttS);
    const body: StatsBody = { has_video: false };
    put(body, "sent_bps", this.#sentBps(rows, nowMs));
    put(body, "rtt_ms", milliseconds(rttS));
    put(body, "queue_ms", rttS === undefined ? undefined : milliseconds(rttS - (this.#leastRttS ?? rttS)));
    put(body, "jitter_ms", milliseconds(number(remote, "jitter")));
    put(body, "loss", rounded(number(remote, "fractionLost"), 4));
    const isCongested = (body.loss ?? 0) > CONGESTED_LOSS || (body.queue_ms ?? 0) > CONGESTED_QUEUE_MS;
    if (hasFeedback && isCongested) put(body, "available_bps", rounded(number(pair, "availableOutgoingBitrate"), 0)); // else audio alone never shows the path's limit
    return body;
  }

  /** The peer's receiver report, if it is about the present rate. */
  #fresh(remote: Row | undefined): Row | undefined {
    const isNew = remote?.["timestamp"] !== this.#newestReport;
    this.#newestReport = remote?.["timestamp"];
    if (isNew && this.#isSkipping !== "none") this.#isSkipping = this.#isSkipping === "newest" ? "next" : "none";
    return this.#isSkipping === "none" ? remote : undefined;
  }

  #sentBps(rows: Row[], nowMs: number): number | undefined {
    const sent = audio(rows, "outbound-rtp");
    if (!sent) return undefined;
    const packets = number(sent, "packetsSent") ?? 0;
    const wireBytes = (number(sent, "bytesSent") ?? 0) + (number(sent, "headerBytesSent") ?? 12 * packets) + PACKET_OVERHEAD_BYTES * packets;
    this.#window = [...this.#window.filter((old) => nowMs - old.atMs <= WINDOW_MS), { atMs: nowMs, wireBytes }];
    const first = this.#window[0];
    return first && nowMs > first.atMs ? Math.round(((wireBytes - first.wireBytes) * 8_000) / (nowMs - first.atMs)) : undefined;
  }
}

function audio(rows: Row[], type: string): Row | undefined {
  return rows.find((row) => row.type === type && row["kind"] === "audio");
}

function number(row: Row | undefined, name: string): number | undefined {
  const value = row?.[name];
  return typeof value === "number" && Number.isFinite(value) && value >= 0 ? value : undefined;
}

function milliseconds(seconds: number | undefined): number | undefined {
  return seconds === undefined ? undefined : rounded(seconds * 1_000, 1);
}

function rounded(value: number | undefined, digits: number): number | undefined {
  return value === undefined ? undefined : Number(value.toFixed(digits));
}

function put(body: StatsBody, name: Exclude<keyof StatsBody, "has_video">, value: number | undefined): void {
  if (value !== undefined) body[name] = value;
}
