"""Our SigV4 codec against botocore's signer, which stands for AWS here, and against tampering."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import botocore.auth
import botocore.credentials
import pytest
from botocore.awsrequest import AWSRequest

from adapters import sigv4

NOW = 1_790_000_000.0
PLAIN = sigv4.Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
TEMPORARY = sigv4.Credentials("ASIAEXAMPLE", "secret", "token/with+signs==")
POST_URL = "https://abc123.execute-api.eu-central-1.amazonaws.com/live/@connections/Zk0cdeZ4FiACJTQ%3D"


@pytest.fixture(autouse=True)
def botocore_at_now() -> Iterator[None]:
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    with patch("botocore.auth.get_current_datetime", return_value=moment.replace(tzinfo=None)):
        yield


def _theirs(signer: Callable[..., Any], method: str, url: str, headers: dict[str, str], body: bytes, who: sigv4.Credentials, **more: Any) -> AWSRequest:
    request = AWSRequest(method=method, url=url, headers=dict(headers), data=body)
    service = "s3" if "S3" in signer.__name__ else "execute-api"
    signer(botocore.credentials.Credentials(who.access_key_id, who.secret_key, who.session_token), service, "eu-central-1", **more).add_auth(request)
    return request


CASES = [
    ("POST", POST_URL, {}, b'{"event":"message"}'),
    ("POST", POST_URL, {"Content-Type": "application/octet-stream"}, "Grüße".encode()),
    ("GET", POST_URL, {"User-Agent": "x", "X-Amzn-Trace-Id": "y"}, b""),
    ("DELETE", "http://127.0.0.1:8001/local/@connections/abc%3D", {}, b""),
    ("GET", "http://example.com:80/a//b/./c/../d/?z=1&a=2&a=1&e=", {"X-Two": "  a   b "}, b""),
    ("GET", "https://example.com:443", {}, b""),
]


@pytest.mark.parametrize("who", [PLAIN, TEMPORARY], ids=["plain", "temporary"])
@pytest.mark.parametrize(("method", "url", "headers", "body"), CASES)
def test_headers_are_byte_equal_to_botocores(method: str, url: str, headers: dict[str, str], body: bytes, who: sigv4.Credentials) -> None:
    theirs = _theirs(botocore.auth.SigV4Auth, method, url, headers, body, who)
    ours = sigv4.sign(method, url, headers, body, credentials=who, region="eu-central-1", service="execute-api", now=NOW)
    assert ours == dict(theirs.headers.items())


def test_s3_headers_are_byte_equal_to_botocores() -> None:
    url = "https://bucket.s3.eu-central-1.amazonaws.com/media/a%20b/../%C3%BC?versionId=1"
    theirs = _theirs(botocore.auth.S3SigV4Auth, "PUT", url, {}, b"x", PLAIN)
    ours = sigv4.sign("PUT", url, {}, b"x", credentials=PLAIN, region="eu-central-1", service="s3", now=NOW)
    assert ours["Authorization"] == theirs.headers["Authorization"]


def _received(url: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    return target, {name.lower(): value for name, value in headers.items()} | {"host": sigv4.host_of(url)}


def _verify(url: str, headers: dict[str, str], body: bytes = b"hi", *, method: str = "POST", region: str = "eu-central-1", now: float = NOW) -> str:
    target, received = _received(url, headers)
    known = (PLAIN, TEMPORARY)
    return sigv4.verify_header(method, target, received, body, credentials=known, region=region, service="execute-api", now=now).access_key_id


@pytest.mark.parametrize("who", [PLAIN, TEMPORARY], ids=["plain", "temporary"])
def test_a_signed_request_is_recognised(who: sigv4.Credentials) -> None:
    signed = sigv4.sign("POST", POST_URL, {}, b"hi", credentials=who, region="eu-central-1", service="execute-api", now=NOW)
    assert _verify(POST_URL, signed) == who.access_key_id


def test_a_request_that_is_not_the_signed_one_is_refused() -> None:
    signed = sigv4.sign("POST", POST_URL, {"X-Mine": "1"}, b"hi", credentials=PLAIN, region="eu-central-1", service="execute-api", now=NOW)
    tampered: list[Callable[[], str]] = [
        lambda: _verify(POST_URL, signed, b"ho"),
        lambda: _verify(POST_URL, signed, method="DELETE"),
        lambda: _verify(POST_URL.replace("Zk0", "Zk1"), signed),
        lambda: _verify(POST_URL, signed | {"X-Mine": "2"}),
        lambda: _verify(POST_URL, signed, region="eu-west-1"),
        lambda: _verify(POST_URL, signed, now=NOW + 301),
        lambda: _verify(POST_URL, signed, now=NOW - 301),
        lambda: _verify(POST_URL, signed | {"Authorization": "Bearer x"}),
        lambda: _verify(POST_URL, signed | {"Authorization": signed["Authorization"].replace("AKIDEXAMPLE", "AKIDOTHER")}),
        lambda: _verify(POST_URL, signed | {"X-Amz-Date": "yesterday"}),
        lambda: _verify(POST_URL, {}),
    ]
    for attempt in tampered:
        with pytest.raises(sigv4.SignatureRefused):
            attempt()


def test_temporary_credentials_without_their_token_are_refused() -> None:
    bare = sigv4.Credentials(TEMPORARY.access_key_id, TEMPORARY.secret_key)
    signed = sigv4.sign("POST", POST_URL, {}, b"hi", credentials=bare, region="eu-central-1", service="execute-api", now=NOW)
    with pytest.raises(sigv4.SignatureRefused):
        _verify(POST_URL, signed)


@pytest.mark.parametrize("who", [PLAIN, TEMPORARY], ids=["plain", "temporary"])
@pytest.mark.parametrize("url", ["http://heliograph-live/?Action=connect&User=heliograph-live&ResourceType=ServerlessCache", "https://example.com:8443/a/b"])
def test_a_signed_url_is_byte_equal_to_botocores(url: str, who: sigv4.Credentials) -> None:
    request = AWSRequest(method="GET", url=url)
    theirs = botocore.credentials.Credentials(who.access_key_id, who.secret_key, who.session_token)
    botocore.auth.SigV4QueryAuth(theirs, "elasticache", "eu-central-1", expires=900).add_auth(request)
    assert sigv4.presign(url, credentials=who, region="eu-central-1", service="elasticache", expires_s=900, now=NOW) == request.url
