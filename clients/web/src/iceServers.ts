/**
 * STUN and TURN servers of a call, and when it moves onto new ones. Pure; the same rule as `ice_servers.py` of the Python client.
 * Relay credentials have an end, and a relay answers 441 to another user name on a living allocation (RFC 8656 5): a call gets new ones by an ICE restart in time.
 */

import { type Json, whole } from "./errors";

export interface IceServers {
  servers: RTCIceServer[];
  ttlS?: number | undefined; // without it, as an application's own have none, nothing is ever due
  expiresAtMs?: number | undefined; // the server's clock
}

/** The event `relay_draining`: these relays go away, and take no new allocations. */
export interface Draining {
  relayHosts: string[];
  endsAtMs: number;
}

const RENEW_AT = 0.8; // of the credentials' life; what is left is for attempts that fail
const RENEW_SPREAD = 0.05;
const SHORTEST_LIFE_MS = 1_000;
const DRAIN_SPREAD_MS = 3_000;

/** The answer of `GET /v1/ice-servers`. */
export function parseIceServers(body: Json): IceServers {
  return { servers: body["ice_servers"] as RTCIceServer[], ttlS: whole(body["ttl_s"]), expiresAtMs: whole(body["expires_at_ms"]) };
}

export function hasRelay({ servers }: IceServers): boolean {
  return servers.some(({ urls }) => [urls].flat().some((url) => /^turns?:/.test(url)));
}

/** Until the credentials end; undefined when they do not. */
export function leftMs(servers: IceServers, nowMs: number): number | undefined {
  return servers.expiresAtMs === undefined || !hasRelay(servers) ? undefined : servers.expiresAtMs - nowMs;
}

/**
 * How long from now until new ones are fetched: 80 to 85 % of the life, so that calls that began together do not ask together; undefined is never.
 * Never at once: credentials that seem over when they come are a mistake of somebody's clock, which asking again does not mend.
 */
export function renewAfterMs(servers: IceServers, nowMs: number, fraction = Math.random()): number | undefined {
  const left = leftMs(servers, nowMs);
  if (left === undefined || servers.ttlS === undefined) return undefined;
  const lifeMs = Math.max(SHORTEST_LIFE_MS, servers.ttlS * 1_000);
  return Math.max(lifeMs / 5, left - lifeMs * (1 - RENEW_AT - RENEW_SPREAD * fraction));
}

/** The pause after an attempt to renew that failed; while the credentials last, at most a quarter of what is left of them. */
export function retryAfterMs(attempt: number, left: number | undefined, fraction = Math.random()): number {
  const pauseMs = fraction * Math.min(60_000, 2_000 * 2 ** attempt);
  return left === undefined || left <= 0 ? pauseMs : Math.min(pauseMs, (fraction * left) / 4);
}

/** The pause after an attempt to find another path that failed, while nobody hears anything. */
export function retryLostAfterMs(attempt: number, fraction = Math.random()): number {
  return fraction * Math.min(4_000, 500 * 2 ** attempt);
}

/** The body of `relay_draining`; undefined when it cannot be read. */
export function parseDraining(body: Json): Draining | undefined {
  const [hosts, endsAtMs] = [body["relay_hosts"], whole(body["ends_at_ms"])];
  if (!Array.isArray(hosts) || !hosts.every((host) => typeof host === "string") || endsAtMs === undefined) return undefined;
  return { relayHosts: hosts, endsAtMs };
}

/** How long a call on one of them waits, so that not all of them move in the same instant: at most three seconds, or half of what is left. */
export function moveAfterMs({ endsAtMs }: Draining, nowMs: number, fraction = Math.random()): number {
  return fraction * Math.min(DRAIN_SPREAD_MS, Math.max(0, (endsAtMs - nowMs) / 2));
}

/** The host of a STUN or TURN URL (RFC 7064, RFC 7065), without the brackets of an IPv6 literal. */
export function hostOf(url: string): string {
  return /^\w+:(?:\[([^\]]*)\]|([^:?]*))/.exec(url)?.slice(1).find(Boolean) ?? "";
}
