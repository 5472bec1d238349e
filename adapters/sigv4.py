"""AWS Signature Version 4 as a codec: signs a request, verifies a signed one. No I/O; the clock is an argument.

Source: IAM user guide, "Signature Version 4 for API requests".
Written by hand because importing botocore's signer costs a cold start about 170 ms; a contract test holds the two byte-equal.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from calendar import timegm
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final
from urllib.parse import quote, urlsplit

ALGORITHM: Final = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
MAX_SKEW_S: Final = 300  # what execute-api tolerates; S3 tolerates 900
_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
_NEVER_SIGNED: Final = frozenset({"authorization", "expect", "transfer-encoding", "user-agent", "x-amzn-trace-id"})
_DEFAULT_PORT: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Credentials:
    """One key pair; `session_token` belongs to temporary credentials, as Lambda's are."""

    access_key_id: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


class SignatureRefused(Exception):
    """A request is not signed as it must be. `code` is the error name AWS answers with."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


def sign(method: str, url: str, headers: Mapping[str, str], body: bytes, *, credentials: Credentials, region: str, service: str, now: float) -> dict[str, str]:
    """The headers to send: those given, then `X-Amz-Date`, the session token and `Authorization`. `now` is in seconds since the epoch.

    The `Host` header is signed as HTTP sends it for this URL; every given header is signed except those proxies change.
    """
    parts = urlsplit(url)
    stamp = timestamp(now)
    sent = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    sent["X-Amz-Date"] = stamp
    if credentials.session_token:
        sent["X-Amz-Security-Token"] = credentials.session_token
    payload_hash = hashlib.sha256(body).hexdigest() if body else _EMPTY_SHA256
    if service == "s3":
        sent["X-Amz-Content-SHA256"] = payload_hash
    lowered = {name.lower(): value for name, value in sent.items()}
    lowered.setdefault("host", host_of(url))
    signed = sorted(lowered.keys() - _NEVER_SIGNED)
    canonical = canonical_request(method, parts.path, parts.query, lowered, signed, payload_hash, service)
    scope = scope_of(stamp, region, service)
    signature = _signature(credentials.secret_key, scope, string_to_sign(stamp, scope, canonical))
    sent["Authorization"] = f"{ALGORITHM} Credential={credentials.access_key_id}/{scope}, SignedHeaders={';'.join(signed)}, Signature={signature}"
    return sent


def presign(url: str, *, credentials: Credentials, region: str, service: str, expires_s: int, now: float) -> str:
    """The URL with a signature in its query: whoever has it may GET it for `expires_s` seconds. Not for S3, which signs paths and bodies in another way."""
    parts = urlsplit(url)
    stamp = timestamp(now)
    scope = scope_of(stamp, region, service)
    signed = {
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{credentials.access_key_id}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": "host",
    }
    if credentials.session_token:
        signed["X-Amz-Security-Token"] = credentials.session_token
    query = "&".join([*([parts.query] if parts.query else []), *(f"{name}={quote(value, safe='-_.~')}" for name, value in signed.items())])
    canonical = canonical_request("GET", parts.path, query, {"host": host_of(url)}, ["host"], _EMPTY_SHA256, service)
    signature = _signature(credentials.secret_key, scope, string_to_sign(stamp, scope, canonical))
    return parts._replace(query=f"{query}&X-Amz-Signature={signature}").geturl()


def verify_header(
    method: str, target: str, headers: Mapping[str, str], body: bytes, *, credentials: Iterable[Credentials], region: str, service: str, now: float
) -> Credentials:
    """Whose request this is; raises SignatureRefused. `target` is the path and query as they stood on the wire, `headers` have lower-case names."""
    authorization = headers.get("authorization")
    if not authorization:
        raise SignatureRefused("MissingAuthenticationTokenException", "Missing Authentication Token")
    algorithm, _, rest = authorization.partition(" ")
    claim = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    if algorithm != ALGORITHM or not claim.keys() >= {"Credential", "SignedHeaders", "Signature"}:
        raise SignatureRefused("IncompleteSignatureException", "Authorization header requires 'Credential', 'SignedHeaders' and 'Signature'.")
    stamp = headers.get("x-amz-date", "")
    if abs(now - seconds_of(stamp)) > MAX_SKEW_S:
        raise SignatureRefused("InvalidSignatureException", f"Signature expired or not yet current: {stamp}")
    signed = claim["SignedHeaders"].split(";")
    if "host" not in signed or "x-amz-date" not in signed:
        raise SignatureRefused("InvalidSignatureException", "'Host' and 'X-Amz-Date' must be signed.")
    known, scope = _owner(claim["Credential"], credentials, stamp, region, service)
    if known.session_token and headers.get("x-amz-security-token") != known.session_token:
        raise SignatureRefused("UnrecognizedClientException", "The security token included in the request is invalid.")
    path, _, query = target.partition("?")
    payload_hash = headers.get("x-amz-content-sha256") if service == "s3" else None
    if payload_hash != UNSIGNED_PAYLOAD:
        payload_hash = hashlib.sha256(body).hexdigest()
    canonical = canonical_request(method, path, query, headers, signed, payload_hash, service)
    _compare(known, scope, stamp, canonical, claim["Signature"])
    return known


def canonical_request(method: str, path: str, query: str, headers: Mapping[str, str], signed: Iterable[str], payload_hash: str, service: str) -> str:
    """The text both sides hash. `path` and `query` are as on the wire; S3 alone takes the path without a second encoding."""
    names = list(signed)
    lines = "".join(f"{name}:{' '.join(headers.get(name, '').split())}\n" for name in names)
    canonical_path = path if service == "s3" else quote(_without_dots(path), safe="/~")
    pairs = sorted(part.partition("=")[::2] for part in query.split("&")) if query else []
    canonical_query = "&".join(f"{name}={value}" for name, value in pairs)
    return f"{method}\n{canonical_path or '/'}\n{canonical_query}\n{lines}\n{';'.join(names)}\n{payload_hash}"


def string_to_sign(stamp: str, scope: str, canonical: str) -> str:
    """What the key signs: the time, the scope and the hash of the canonical request."""
    return f"{ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"


@lru_cache(maxsize=64)
def signing_key(secret_key: str, date: str, region: str, service: str) -> bytes:
    """The key of one day, region and service."""
    key = ("AWS4" + secret_key).encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def scope_of(stamp: str, region: str, service: str) -> str:
    """The credential scope, without the key id."""
    return f"{stamp[:8]}/{region}/{service}/aws4_request"


def timestamp(now: float) -> str:
    """Seconds since the epoch as `20260102T030405Z`."""
    return _timestamp(int(now))


@lru_cache(maxsize=16)
def _timestamp(now_s: int) -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))


def seconds_of(stamp: str) -> int:
    """The other way; raises SignatureRefused for anything else."""
    try:
        return timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))
    except ValueError:
        raise SignatureRefused("IncompleteSignatureException", "Date must be in ISO-8601 'basic format'.") from None


@lru_cache(maxsize=64)
def _host(scheme: str, netloc: str) -> str:
    host, colon, port = netloc.rpartition("@")[2].rpartition(":")
    return host if colon and port == str(_DEFAULT_PORT.get(scheme)) else netloc.rpartition("@")[2]


def host_of(url: str) -> str:
    """The Host header of a URL: the port is left out when it is the scheme's own."""
    parts = urlsplit(url)
    return _host(parts.scheme, parts.netloc)


def _owner(credential: str, credentials: Iterable[Credentials], stamp: str, region: str, service: str) -> tuple[Credentials, str]:
    access_key_id, _, scope = credential.partition("/")
    if scope != scope_of(stamp, region, service):
        raise SignatureRefused("InvalidSignatureException", f"Credential should be scoped to {scope_of(stamp, region, service)}.")
    for known in credentials:
        if hmac.compare_digest(known.access_key_id.encode(), access_key_id.encode()):
            return known, scope
    raise SignatureRefused("UnrecognizedClientException", "The security token included in the request is invalid.")


def _compare(known: Credentials, scope: str, stamp: str, canonical: str, signature: str) -> None:
    if not hmac.compare_digest(_signature(known.secret_key, scope, string_to_sign(stamp, scope, canonical)).encode(), signature.encode()):
        message = "The request signature we calculated does not match the signature you provided."
        raise SignatureRefused("InvalidSignatureException", message)


def _signature(secret_key: str, scope: str, text: str) -> str:
    date, region, service, _ = scope.split("/")
    return hmac.digest(signing_key(secret_key, date, region, service), text.encode(), "sha256").hex()


def _without_dots(path: str) -> str:
    """RFC 3986, 5.2.4, and runs of slashes made one, as every service but S3 wants it."""
    if "//" not in path and "/." not in path:
        return path
    kept: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    tail = "/" if kept and path.endswith(("/", "/.", "/..")) else ""
    return "/" + "/".join(kept) + tail
