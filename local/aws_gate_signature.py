"""What AWS checks before it looks at a request: SigV4 in the query (presigned) and in the Authorization header.

Pure: takes the request as it stood on the wire and the clock. Written from the "Authenticating Requests (AWS Signature Version 4)" pages of the S3 API
reference, on purpose without the product's own signer: a mistake made twice would hide itself. Codes and texts are those of S3's error list.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, unquote

ALGORITHM: Final = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
MAX_EXPIRES_S: Final = 604_800
MAX_SKEW_S: Final = 900
_QUERY_NAMES: Final = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Expires")
_MAY_STAY_UNSIGNED: Final = frozenset({"x-amz-content-sha256", "x-amz-date"})  # carried by the canonical request or the string to sign itself


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request as it was sent: undecoded path and query, headers in order."""

    method: str
    path: str
    query: str
    headers: Sequence[tuple[str, str]]

    def header(self, name: str) -> str | None:
        """The value of a header, several of one name joined as HTTP joins them."""
        values = [" ".join(value.split()) for key, value in self.headers if key.lower() == name]
        return ",".join(values) if values else None

    def pairs(self) -> list[tuple[str, str]]:
        """The decoded query, in order."""
        parts = (part.partition("=") for part in self.query.split("&") if part)
        return [(unquote(name), unquote(value)) for name, _, value in parts]


@dataclass(frozen=True, slots=True)
class Signed:
    """The request is what the owner of the key signed. `payload_hash` still has to be compared with the bytes."""

    access_key_id: str
    service: str
    region: str
    payload_hash: str
    is_presigned: bool


class Refused(Exception):
    """The request is refused before anything was done. `code` and `status` are S3's."""

    def __init__(self, status: int, code: str, message: str, **details: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status, self.code, self.message, self.details = status, code, message, details


@dataclass(frozen=True, slots=True)
class _Claim:
    """What the sender says about his signature, wherever it stood."""

    access_key_id: str
    scope: tuple[str, str, str]  # date, region, service
    signed_headers: tuple[str, ...]
    signature: str
    at: str
    payload_hash: str
    expires_s: int | None = None
    pairs: tuple[tuple[str, str], ...] = field(default=())


def check(request: Incoming, secrets: Mapping[str, str], *, region: str, now_s: float, body_sha256: str | None = None) -> Signed:
    """Verify a request as AWS does; `secrets` maps access key ids to secret keys. `body_sha256` (hex) is for all but S3. Raises Refused."""
    is_presigned = any(name in ("X-Amz-Algorithm", "X-Amz-Signature", "X-Amz-Credential") for name, _ in request.pairs())
    authorization = request.header("authorization")
    if authorization and is_presigned:
        raise Refused(400, "InvalidArgument", "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter or the Authorization header")
    if not authorization and not is_presigned:
        raise Refused(403, "AccessDenied", "Access Denied")
    claim = _from_query(request) if is_presigned else _from_header(request, authorization or "", body_sha256)
    _check_scope(claim, region, is_presigned)
    _check_time(claim, now_s)
    _check_unsigned_headers(request, claim)
    secret = secrets.get(claim.access_key_id)
    if secret is None:
        raise Refused(403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.", AWSAccessKeyId=claim.access_key_id)
    _check_signature(request, claim, secret)
    return Signed(claim.access_key_id, claim.scope[2], claim.scope[1], claim.payload_hash, is_presigned)


def _from_query(request: Incoming) -> _Claim:
    pairs = request.pairs()
    values = dict(pairs)
    if any(name not in values for name in _QUERY_NAMES) or values["X-Amz-Algorithm"] != ALGORITHM:
        raise Refused(400, "AuthorizationQueryParametersError", f"Query-string authentication version 4 requires the {', '.join(_QUERY_NAMES)} parameters.")
    key, scope = _credential(values["X-Amz-Credential"], "AuthorizationQueryParametersError")
    return _Claim(
        key,
        scope,
        tuple(values["X-Amz-SignedHeaders"].split(";")),
        values["X-Amz-Signature"],
        values["X-Amz-Date"],
        UNSIGNED_PAYLOAD if scope[2] == "s3" else hashlib.sha256(b"").hexdigest(),
        _expires_s(values["X-Amz-Expires"]),
        tuple(pair for pair in pairs if pair[0] != "X-Amz-Signature"),
    )


def _from_header(request: Incoming, authorization: str, body_sha256: str | None) -> _Claim:
    algorithm, _, rest = authorization.partition(" ")
    fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    if algorithm != ALGORITHM:
        raise Refused(400, "InvalidRequest", "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256.")
    if not {"Credential", "SignedHeaders", "Signature"} <= set(fields):
        raise Refused(400, "AuthorizationHeaderMalformed", "The authorization header that you provided is not valid.")
    key, scope = _credential(fields["Credential"], "AuthorizationHeaderMalformed")
    at, payload_hash = request.header("x-amz-date"), request.header("x-amz-content-sha256")
    if at is None:
        raise Refused(403, "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
    if scope[2] != "s3":
        payload_hash = body_sha256 or payload_hash
    if payload_hash is None:
        raise Refused(400, "MissingSecurityHeader", "Your request was missing a required header", MissingHeaderName="x-amz-content-sha256")
    return _Claim(key, scope, tuple(fields["SignedHeaders"].split(";")), fields["Signature"], at, payload_hash, None, tuple(request.pairs()))


def _credential(text: str, code: str) -> tuple[str, tuple[str, str, str]]:
    parts = text.split("/")
    if len(parts) != 5 or parts[4] != "aws4_request":
        raise Refused(400, code, 'The Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".')
    return parts[0], (parts[1], parts[2], parts[3])


def _expires_s(text: str) -> int:
    code = "AuthorizationQueryParametersError"
    try:
        expires_s = int(text)
    except ValueError:
        raise Refused(400, code, "X-Amz-Expires should be a number") from None
    if expires_s < 0:
        raise Refused(400, code, "X-Amz-Expires must be non-negative")
    if expires_s > MAX_EXPIRES_S:
        raise Refused(400, code, "X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds")
    return expires_s


def _check_scope(claim: _Claim, region: str, is_presigned: bool) -> None:
    code = "AuthorizationQueryParametersError" if is_presigned else "AuthorizationHeaderMalformed"
    if claim.scope[1] != region:
        raise Refused(400, code, f"The credential is mal-formed; the region '{claim.scope[1]}' is wrong; expecting '{region}'", Region=region)
    if claim.scope[0] != claim.at[:8]:
        raise Refused(400, code, f'Invalid credential date "{claim.scope[0]}". This date is not the same as X-Amz-Date: "{claim.at[:8]}".')


def _check_time(claim: _Claim, now_s: float) -> None:
    try:
        at_s = datetime.strptime(claim.at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise Refused(400, "AuthorizationQueryParametersError", "X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"") from None
    if claim.expires_s is None:
        if abs(now_s - at_s) > MAX_SKEW_S:
            raise Refused(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.", ServerTime=_iso(now_s))
        return
    if at_s - now_s > MAX_SKEW_S:
        raise Refused(403, "AccessDenied", "Request is not valid yet", ServerTime=_iso(now_s))
    if now_s > at_s + claim.expires_s:
        details = {"X-Amz-Expires": str(claim.expires_s), "Expires": _iso(at_s + claim.expires_s), "ServerTime": _iso(now_s)}
        raise Refused(403, "AccessDenied", "Request has expired", **details)


def _check_unsigned_headers(request: Incoming, claim: _Claim) -> None:
    signed = set(claim.signed_headers)
    sent = {name.lower() for name, _ in request.headers}
    loose = sorted(name for name in sent if name.startswith("x-amz-") and name not in signed and name not in _MAY_STAY_UNSIGNED)
    if "host" not in signed:
        loose.insert(0, "host")
    if loose:
        raise Refused(403, "AccessDenied", "There were headers present in the request which were not signed", HeadersNotSigned=", ".join(loose))


def _check_signature(request: Incoming, claim: _Claim, secret: str) -> None:
    canonical = canonical_request(request, claim.pairs, claim.signed_headers, claim.payload_hash, claim.scope[2])
    expected = signature(canonical, claim.at, claim.scope, secret)
    if not hmac.compare_digest(expected.encode(), _raw(claim.signature)):
        message = "The request signature we calculated does not match the signature you provided. Check your key and signing method."
        raise Refused(403, "SignatureDoesNotMatch", message, AWSAccessKeyId=claim.access_key_id, SignatureProvided=claim.signature, CanonicalRequest=canonical)


def canonical_request(request: Incoming, pairs: Sequence[tuple[str, str]], signed: Sequence[str], payload_hash: str, service: str) -> str:
    """The text that both sides hash. A signed header that was not sent counts as empty, so that leaving it out breaks the signature."""
    path = _quoted(unquote(request.path) if service == "s3" else request.path, "/-_.~")
    query = "&".join(f"{name}={value}" for name, value in sorted((_quoted(name, "-_.~"), _quoted(value, "-_.~")) for name, value in pairs))
    headers = "".join(f"{name}:{request.header(name) or ''}\n" for name in signed)
    return "\n".join((request.method, path or "/", query, headers, ";".join(signed), payload_hash))


def signature(canonical: str, at: str, scope: tuple[str, str, str], secret: str) -> str:
    """HMAC chain over date, region, service; hex."""
    to_sign = "\n".join((ALGORITHM, at, "/".join((*scope, "aws4_request")), hashlib.sha256(_raw(canonical)).hexdigest()))
    key = b"AWS4" + secret.encode()
    for part in (*scope, "aws4_request", to_sign):
        key = hmac.digest(key, _raw(part), "sha256")
    return key.hex()


def _quoted(text: str, safe: str) -> str:
    return quote(text, safe=safe, errors="surrogateescape")


def _raw(text: str) -> bytes:
    """The bytes as they came: HTTP headers need not be UTF-8."""
    return text.encode("utf-8", "surrogateescape")


def _iso(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
