"""The gate's verification against botocore's signer as an independent peer, and against anything at all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from local.aws_gate_signature import ALGORITHM, UNSIGNED_PAYLOAD, Incoming, Refused, check

REGION, KEY_ID, SECRET = "eu-west-1", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
CLIENT: Any = boto3.client(
    "s3", endpoint_url="http://127.0.0.1:9", region_name=REGION, aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET, config=Config(signature_version="s3v4")
)


def now_s() -> float:
    return datetime.now(UTC).timestamp()


@settings(max_examples=60, deadline=None)
@given(
    key=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30).filter(
        lambda key: not set(key.split("/")) & {"", ".", ".."}
    ),
    disposition=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20),
)
def test_what_botocore_presigned_passes_and_with_another_secret_does_not(key: str, disposition: str) -> None:
    bound = {"Bucket": "b", "Key": key, "ResponseContentDisposition": disposition}
    parts = urlsplit(CLIENT.generate_presigned_url("get_object", Params=bound, ExpiresIn=60))
    incoming = Incoming("GET", parts.path, parts.query, [("Host", parts.netloc), ("Accept", "*/*")])
    signed = check(incoming, {KEY_ID: SECRET}, region=REGION, now_s=now_s())
    assert (signed.access_key_id, signed.service, signed.payload_hash, signed.is_presigned) == (KEY_ID, "s3", UNSIGNED_PAYLOAD, True)
    with pytest.raises(Refused, match="SignatureDoesNotMatch"):
        check(incoming, {KEY_ID: SECRET + "!"}, region=REGION, now_s=now_s())


@pytest.mark.parametrize("body", [b"", b'{"QueueName": "q"}'])
def test_what_botocore_signed_in_the_header_passes_and_with_another_body_does_not(body: bytes) -> None:
    import hashlib

    headers = {"X-Amz-Target": "AmazonSQS.CreateQueue", "Content-Type": "application/x-amz-json-1.0", "Host": "127.0.0.1:9"}
    request = AWSRequest("POST", "http://127.0.0.1:9/", headers, body)
    SigV4Auth(Credentials(KEY_ID, SECRET), "sqs", REGION).add_auth(request)
    incoming = Incoming("POST", "/", "", list(request.headers.items()))
    digest = hashlib.sha256(body).hexdigest()
    assert check(incoming, {KEY_ID: SECRET}, region=REGION, now_s=now_s(), body_sha256=digest).service == "sqs"
    with pytest.raises(Refused, match="SignatureDoesNotMatch"):
        check(incoming, {KEY_ID: SECRET}, region=REGION, now_s=now_s(), body_sha256=hashlib.sha256(b"other").hexdigest())


TEXT = st.one_of(st.text(max_size=20), st.just("\udcff\udc80"))  # the last is what a header that is not UTF-8 becomes
NAMES = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Expires")
DATES = st.sampled_from(["20260102T030405Z", "99991231T235959Z", "00010101T000000Z", "2026"])
PLAUSIBLE = (
    st.just(ALGORITHM), st.just(f"{KEY_ID}/20260102/{REGION}/s3/aws4_request"), st.text("0123456789abcdef\u00e9", max_size=64), DATES, st.just("host"),
    st.sampled_from(["60", "-1", "604801", "1e3", "9" * 5000]),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(values=st.tuples(*(st.one_of(likely, TEXT) for likely in PLAUSIBLE)), authorization=st.one_of(st.none(), TEXT), headers=st.lists(st.tuples(TEXT, TEXT)))
def test_anything_at_all_is_refused_with_a_code_and_nothing_else_happens(
    values: tuple[str, ...], authorization: str | None, headers: list[tuple[str, str]]
) -> None:
    algorithm, credential, mark, at, signed, _ = values
    query = "&".join(f"{name}={value}" for name, value in zip(NAMES, values, strict=True))
    in_header = [("authorization", f"{algorithm} Credential={credential}, SignedHeaders={signed}, Signature={mark}"), ("x-amz-date", at)]
    attempts = [
        Incoming("GET", "/b/k", query, [*headers, ("host", "h")]),
        Incoming("GET", "/b/k", "", [*headers, *in_header, ("x-amz-content-sha256", UNSIGNED_PAYLOAD), ("host", "h")]),
        Incoming("GET", "/b/k", "", [*headers, *([("authorization", authorization)] if authorization else [])]),
    ]
    for attempt in attempts:
        with pytest.raises(Refused) as refused:
            check(attempt, {KEY_ID: SECRET}, region=REGION, now_s=1_767_323_045.0)
        assert refused.value.status in (400, 403)
