/** One error for everything this client refuses or was refused: go by `code`, which is the server's, or one of `ClientCode`. */

export type Json = Record<string, unknown>;
export type ClientCode = "connection_lost" | "timed_out" | "signed_out" | "too_large" | "call_failed" | "callee_absent" | "upload_failed";

/** What the server said beside the code and the message. */
export interface Details {
  retryable?: boolean;
  retryAfterMs?: number | undefined;
  traceId?: string | undefined;
  status?: number | undefined;
}

export class HeliographError extends Error {
  readonly code: string;
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;
  readonly traceId: string | undefined;
  readonly status: number | undefined;

  constructor(code: string, message: string, details: Details = {}) {
    super(`${code}: ${message}`);
    this.name = "HeliographError";
    this.code = code;
    this.retryable = details.retryable ?? false;
    this.retryAfterMs = details.retryAfterMs;
    this.traceId = details.traceId;
    this.status = details.status;
  }
}

/** An error made here; what cannot be reached or does not answer in time is worth another try. */
export function ours(code: ClientCode, message: string): HeliographError {
  return new HeliographError(code, message, { retryable: code === "connection_lost" || code === "timed_out" });
}

/** The error for the server's error shape; a body without a code (API Gateway's own) goes by the status alone. */
export function parseError(body: Json, status?: number): HeliographError {
  const byStatus = status === 401 ? "unauthenticated" : `http_${status ?? "unknown"}`;
  return new HeliographError(text(body["code"]) ?? byStatus, text(body["message"]) ?? "", {
    retryable: typeof body["retryable"] === "boolean" ? body["retryable"] : [429, 502, 503, 504].includes(status ?? 0),
    retryAfterMs: whole(body["retry_after_ms"]),
    traceId: text(body["trace_id"]),
    status,
  });
}

export function text(value: unknown): string | undefined {
  return typeof value === "string" ? value : undefined;
}

export function whole(value: unknown): number | undefined {
  return Number.isInteger(value) ? (value as number) : undefined;
}
