/** One WebSocket: opened with a ticket, frames numbered, acknowledgements handed to whoever waits. It does not come back; the client opens the next one. */

import { type HeliographError, type Json, ours } from "./errors";
import { type Ack, type HeliographEvent, SUBPROTOCOL, TICKET_PREFIX, buildFrame, parseFrame } from "./frames";

interface Waiting {
  resolve: (ack: Ack) => void;
  reject: (error: Error) => void;
}

/** Open a WebSocket; a refused ticket, too, is `connection_lost`, because browsers do not tell why a handshake failed. */
export function openSocket(socketUrl: string, ticket: string, onEvent: (event: HeliographEvent) => void = () => undefined): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(socketUrl, [SUBPROTOCOL, TICKET_PREFIX + ticket]);
    socket.onopen = () => resolve(new Socket(socket, onEvent));
    socket.onclose = (event) => reject(ours("connection_lost", `The socket did not open: the ticket was refused, or the server cannot be reached (${event.code}).`));
  });
}

export class Socket {
  readonly closed: Promise<number>; // with the close code
  token = ""; // the access token by which the server knows whose socket it is
  proveAtMs = Infinity; // when a fresh one is due, by performance.now()
  proving: Promise<HeliographError | undefined> | undefined;
  #socket: WebSocket;
  #clientSeq = 0;
  #waiting = new Map<string, Waiting>();

  constructor(socket: WebSocket, onEvent: (event: HeliographEvent) => void) {
    this.#socket = socket;
    socket.onmessage = (message) => this.#receive(String(message.data), onEvent);
    this.closed = new Promise((resolve) => {
      socket.onclose = (event) => {
        for (const { reject } of this.#waiting.values()) reject(ours("connection_lost", `The socket closed with code ${event.code}.`));
        resolve(event.code);
      };
    });
  }

  /** Send a frame and wait for its acknowledgement; throws HeliographError. */
  exchange(action: string, id: string, traceId: string, roomId: string | undefined, body: Json, timeoutMs: number): Promise<Ack> {
    const frame = buildFrame(action, id, this.#clientSeq + 1, traceId, roomId, body);
    if (this.#socket.readyState !== WebSocket.OPEN) return Promise.reject(ours("connection_lost", `${action}: the socket is closed.`));
    this.#clientSeq += 1;
    return new Promise<Ack>((resolve, reject) => {
      const timer = setTimeout(() => reject(ours("timed_out", `${action}: no acknowledgement within ${timeoutMs} ms.`)), timeoutMs);
      this.#waiting.set(id, { resolve: (ack) => (clearTimeout(timer), resolve(ack)), reject: (error) => (clearTimeout(timer), reject(error)) });
      this.#socket.send(frame);
    }).finally(() => this.#waiting.delete(id));
  }

  get isOpen(): boolean {
    return this.#socket.readyState === WebSocket.OPEN;
  }

  close(): void {
    this.#socket.close(1000);
  }

  #receive(raw: string, onEvent: (event: HeliographEvent) => void): void {
    const frame = parseFrame(raw);
    if (frame?.kind === "event") onEvent(frame);
    else if (frame?.kind === "ack") this.#waiting.get(frame.re)?.resolve(frame);
    else if (frame?.kind === "refusal" && frame.re !== undefined) this.#waiting.get(frame.re)?.reject(frame.error);
  }
}
