"""Every refusal a client can get, on REST and in frames alike.

    HeliographError
      Malformed            400   the bytes are not what the protocol allows
        UnknownAction      400
        TooLarge           413
        SdpInvalid         400   an SDP or a candidate line that must not be passed on
      Unauthenticated      401   who are you
        TokenExpired       401
        TokenInvalid       401
        CredentialsInvalid 401
        IdentityRefused    401   an identity token or a service's assertion that is not accepted
      Forbidden            403   known, but the token lacks the scope
      OriginRefused        403   came past what stands before the API
      NotFound             404   unknown, or not yours: the same answer
      Conflict             409
        IdTaken            409
        UploadMissing      409
        ChecksumMismatch   409
        InProgress         409   the same Idempotency-Key is being handled
        OutOfOrder         409   a later frame of the socket was taken already
        ConnectedElsewhere 409   a newer socket of the same device has taken over
        Glare              409   both sides offered; the other one's offer stands
        NegotiationStale   409   an offer or answer of a negotiation that is over
        CallAnswered       409   another device of the account has the call
        CallEnded          409
      RateLimited          429
      Unavailable          503   a store or service is out of reach: try again
      Internal             500   our fault; the log has the trace_id

Programming mistakes raise ValueError or TypeError and never reach a client as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class HeliographError(Exception):
    """A refusal with a stable `code`, an HTTP `status`, and whether trying again may help."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    sentence: ClassVar[str] = "Something went wrong on our side; try again, and tell us the trace_id if it stays."

    def __init__(self, message: str | None = None, *, retry_after_ms: int | None = None) -> None:
        self.message = message or self.sentence
        self.retry_after_ms = retry_after_ms
        super().__init__(self.message)

    def body(self, trace_id: str, re: str | None = None) -> dict[str, object]:
        """The wire form: `{code, message, retryable, retry_after_ms?, trace_id, re?}`."""
        answer: dict[str, object] = {"code": self.code, "message": self.message, "retryable": self.retryable, "trace_id": trace_id}
        if self.retry_after_ms is not None:
            answer["retry_after_ms"] = self.retry_after_ms
        if re is not None:
            answer["re"] = re
        return answer


class Malformed(HeliographError):
    code, status = "malformed", 400
    sentence = "The request is not of the documented form."


class UnknownAction(Malformed):
    code = "unknown_action"
    sentence = "There is no such action; the protocol page lists them."


class TooLarge(Malformed):
    code, status = "too_large", 413
    sentence = "The request is larger than allowed."


class SdpInvalid(Malformed):
    code = "sdp_invalid"
    sentence = "The session description or the candidate is not of the form that browsers write."


class Unauthenticated(HeliographError):
    code, status = "unauthenticated", 401
    sentence = "Sign in first."


class TokenExpired(Unauthenticated):
    code = "token_expired"
    sentence = "The token has expired; refresh it."


class TokenInvalid(Unauthenticated):
    code = "token_invalid"
    sentence = "The token is not valid; sign in again."


class CredentialsInvalid(Unauthenticated):
    code = "credentials_invalid"
    sentence = "Login or password is wrong."


class IdentityRefused(Unauthenticated):
    code = "identity_refused"
    sentence = "The identity token was not accepted; sign in with your identity provider again."


class Forbidden(HeliographError):
    code, status = "forbidden", 403
    sentence = "The token does not carry the scope this needs."


class OriginRefused(HeliographError):
    code, status = "origin_refused", 403
    sentence = "This address is not the API's public one; use the one that the operator gave you."


class NotFound(HeliographError):
    code, status = "not_found", 404
    sentence = "There is nothing here under that id."


class Conflict(HeliographError):
    code, status = "conflict", 409
    sentence = "The request contradicts what is stored."


class IdTaken(Conflict):
    code = "id_taken"
    sentence = "That id is in use; make a new one."


class UploadMissing(Conflict):
    code = "upload_missing"
    sentence = "The file has not been uploaded yet."


class ChecksumMismatch(Conflict):
    code = "checksum_mismatch"
    sentence = "The stored file is not the one announced; upload it again."


class InProgress(Conflict):
    code, retryable = "in_progress", True
    sentence = "The first request with this Idempotency-Key is still being handled."


class Glare(Conflict):
    code = "glare"
    sentence = "The other side has offered too, and its offer stands: roll yours back and answer that one."


class NegotiationStale(Conflict):
    code = "negotiation_stale"
    sentence = "This negotiation is over or was never begun; roll back, and offer again with a new negotiation_id if you still need to."


class CallAnswered(Conflict):
    code = "call_answered"
    sentence = "Another device of your account has answered this call."


class CallEnded(Conflict):
    code = "call_ended"
    sentence = "The call has ended; a new one needs a new call_id."


class OutOfOrder(Conflict):
    code, retryable = "out_of_order", True
    sentence = "A later frame of this socket was taken before this one; send it again with a fresh client_seq."


class ConnectedElsewhere(Conflict):
    code = "connected_elsewhere"
    sentence = "A newer socket of this device has taken over; this one is closed."


class RateLimited(HeliographError):
    code, status, retryable = "rate_limited", 429, True
    sentence = "Too many requests; wait and try again."


class Unavailable(HeliographError):
    code, status, retryable = "unavailable", 503, True
    sentence = "A part of the service is out of reach for a moment; try again."


class Internal(HeliographError):
    retryable = True


def catalogue() -> Iterator[type[HeliographError]]:
    """Every concrete error class, for the docs and for clients."""

    def below(cls: type[HeliographError]) -> Iterator[type[HeliographError]]:
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    return below(HeliographError)
