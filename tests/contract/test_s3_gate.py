"""The gate in front of moto refuses what S3 refuses: every refusal beside a twin that passes. Expected answers are S3's documented ones.

Sources: S3 API reference, "Error responses" and "Authenticating requests: using query parameters"; the requests are signed by botocore, not by us.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import pytest
import pytest_asyncio
import yarl
from botocore.config import Config

from functions.routes import FUNCTIONS
from local import service_aws
from local.aws_gate import AwsGate
from local.services import choose_ports
from local.supervisor import Supervisor

pytestmark = pytest.mark.asyncio(loop_scope="module")
BUCKET, REGION = service_aws.BUCKET, service_aws.REGION
KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
TEXT = b"signal fires along the coast"
SECRET_VALUES = {"token_keys": {"current": {}}, "turn": {"current": "t"}, "mongodb": {"uri": "mongodb://x"}, "fcm": {"type": "service_account"}}


class Clock:
    """The gate's clock: real time plus what a test adds."""

    ahead_s = 0.0

    def __call__(self) -> float:
        return datetime.now(UTC).timestamp() + self.ahead_s


@dataclass
class Laptop:
    """A gate, a moto behind it, and the supervisor that keeps moto alive."""

    gate: AwsGate
    supervisor: Supervisor
    clock: Clock

    def client(self, service: str, *, secret: str = SECRET, key_id: str = KEY_ID, retries: int = 1) -> Any:
        config = Config(signature_version="s3v4" if service == "s3" else None, retries={"total_max_attempts": retries}, s3={"addressing_style": "virtual"})
        credentials = {"aws_access_key_id": key_id, "aws_secret_access_key": secret}
        return boto3.client(service, endpoint_url=self.gate.url, region_name=REGION, config=config, **credentials)  # type: ignore[call-overload]

    def queue_url(self, name: str = "notifications") -> str:
        return f"{self.gate.url}/{service_aws.ACCOUNT}/{name}"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def laptop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Laptop]:
    folder = tmp_path_factory.mktemp("aws")
    async with started(folder) as laptop:
        yield laptop


class started:  # noqa: N801 - reads as a verb where it is used
    """A laptop over one data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def __aenter__(self) -> Laptop:
        ports = choose_ports(("gate", "moto"), {})
        clock = Clock()
        gate = AwsGate(self.folder / "aws", {KEY_ID: SECRET}, region=REGION, upstream=f"http://127.0.0.1:{ports['moto']}", now_s=clock)
        await gate.start(port=ports["gate"])
        supervisor = Supervisor(self.folder / "logs", self.folder / "pids.json")
        self.laptop = Laptop(gate, supervisor, clock)
        await supervisor.start(service_aws.child(gate, ports["moto"], service_aws.queues_of(FUNCTIONS), SECRET_VALUES))
        return self.laptop

    async def __aexit__(self, *_: object) -> None:
        await self.laptop.supervisor.stop()
        await self.laptop.gate.close()


@dataclass(frozen=True)
class Request:
    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None


async def answer(request: Request) -> tuple[int, str, bytes]:
    """Status, S3's error code if any, body."""
    skip = ("Content-Type", "User-Agent", "Accept", "Accept-Encoding")
    async with (
        aiohttp.ClientSession() as session,
        session.request(request.method, yarl.URL(request.url, encoded=True), headers=request.headers, data=request.body, skip_auto_headers=skip) as got,
    ):
        data = await got.read()
        code = re.search(rb"<Code>(.*?)</Code>", data)
        return got.status, code.group(1).decode() if code else "", data


def key(name: str) -> str:
    return f"{name}-{os.urandom(4).hex()}"


def read(client: Any, name: str) -> tuple[dict[str, Any], bytes]:
    got = client.get_object(Bucket=BUCKET, Key=name)
    return got, got["Body"].read()


def put(laptop: Laptop, expires_s: int = 60) -> Request:
    """An upload ticket as the product makes it: type, length, checksum, encryption and "not there yet" are signed."""
    checksum = base64.b64encode(hashlib.sha256(TEXT).digest()).decode()
    bound = {
        "Bucket": BUCKET, "Key": key("put"), "ContentLength": len(TEXT), "ContentType": "text/plain", "ChecksumSHA256": checksum,
        "ServerSideEncryption": "aws:kms", "SSEKMSKeyId": service_aws.KEY_ALIAS, "IfNoneMatch": "*",
    }  # fmt: skip
    url = laptop.client("s3").generate_presigned_url("put_object", Params=bound, ExpiresIn=expires_s)
    headers = {
        "Content-Length": str(len(TEXT)), "Content-Type": "text/plain", "x-amz-checksum-sha256": checksum, "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": service_aws.KEY_ALIAS, "If-None-Match": "*",
    }  # fmt: skip
    return Request("PUT", url, headers, TEXT)


def get(laptop: Laptop, expires_s: int = 60) -> Request:
    client, name = laptop.client("s3"), key("get")
    client.put_object(Bucket=BUCKET, Key=name, Body=TEXT)
    return Request("GET", client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": name}, ExpiresIn=expires_s))


def with_query(request: Request, pattern: str, text: str) -> Request:
    url = re.sub(pattern, text, request.url)
    assert url != request.url, "the mutation changed nothing"
    return replace(request, url=url)


def with_header(request: Request, name: str, value: str | None) -> Request:
    headers = {each: old for each, old in request.headers.items() if each != name}
    return replace(request, headers=headers if value is None else headers | {name: value})


def tampered(request: Request) -> Request:
    last = request.url[-1]
    return replace(request, url=request.url[:-1] + ("0" if last != "0" else "1"))


def anonymous(request: Request) -> Request:
    return replace(request, url=request.url.partition("?")[0])


def signed_by_another(request: Request) -> Request:
    other = boto3.client(
        "s3", endpoint_url=request.url[: request.url.index("/", 8)], region_name=REGION, aws_access_key_id=KEY_ID, aws_secret_access_key="not-the-secret",
        config=Config(signature_version="s3v4"),
    )  # fmt: skip
    name = request.url.partition("?")[0].rpartition("/")[2]
    return replace(request, url=other.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": name}, ExpiresIn=60))


# name, the request that passes, what is done to it, what S3 answers
REFUSALS: list[tuple[str, Callable[[Laptop], Request], Callable[[Request], Request], int, str]] = [
    ("a tampered signature", get, tampered, 403, "SignatureDoesNotMatch"),
    ("a stretched X-Amz-Expires", get, lambda r: with_query(r, "X-Amz-Expires=60", "X-Amz-Expires=6000"), 403, "SignatureDoesNotMatch"),
    ("more than a week", get, lambda r: with_query(r, "X-Amz-Expires=60", "X-Amz-Expires=604801"), 400, "AuthorizationQueryParametersError"),
    ("another secret", get, signed_by_another, 403, "SignatureDoesNotMatch"),
    ("an unknown access key", get, lambda r: with_query(r, KEY_ID, "AKIAUNKNOWNUNKNOWN00"), 403, "InvalidAccessKeyId"),
    ("another region", get, lambda r: with_query(r, REGION, "us-east-1"), 400, "AuthorizationQueryParametersError"),
    ("another object", get, lambda r: with_query(r, r"/get-", "/got-"), 403, "SignatureDoesNotMatch"),
    ("another method", get, lambda r: replace(r, method="DELETE"), 403, "SignatureDoesNotMatch"),
    ("a HEAD with a GET's link", get, lambda r: replace(r, method="HEAD"), 403, ""),
    ("a parameter left out", get, lambda r: with_query(r, r"&X-Amz-Date=[^&]*", ""), 400, "AuthorizationQueryParametersError"),
    ("a parameter put in", get, lambda r: replace(r, url=f"{r.url}&response-content-type=text%2Fhtml"), 403, "SignatureDoesNotMatch"),
    ("anonymous", get, anonymous, 403, "AccessDenied"),
    ("another content type", put, lambda r: with_header(r, "Content-Type", "text/html"), 403, "SignatureDoesNotMatch"),
    ("another length", put, lambda r: with_header(replace(r, body=TEXT + b"!"), "Content-Length", str(len(TEXT) + 1)), 403, "SignatureDoesNotMatch"),
    ("a signed header left out", put, lambda r: with_header(r, "If-None-Match", None), 403, "SignatureDoesNotMatch"),
    ("an x-amz header put in", put, lambda r: with_header(r, "x-amz-meta-mine", "1"), 403, "AccessDenied"),
    ("another checksum", put, lambda r: with_header(r, "x-amz-checksum-sha256", base64.b64encode(bytes(32)).decode()), 403, "SignatureDoesNotMatch"),
    ("other bytes of the same length", put, lambda r: replace(r, body=TEXT[::-1]), 400, "BadDigest"),
    ("anonymous upload", put, anonymous, 403, "AccessDenied"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "spoil", "status", "code"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
async def test_a_presigned_request_that_is_not_what_was_signed_is_refused(
    laptop: Laptop, make: Callable[[Laptop], Request], spoil: Callable[[Request], Request], status: int, code: str
) -> None:
    request = await asyncio.to_thread(make, laptop)
    assert (await answer(spoil(request)))[:2] == (status, code)
    good_status, _, body = await answer(request)
    assert good_status == 200, body


@pytest.mark.parametrize("make", [get, put])
async def test_a_link_lives_until_its_expiry_and_no_longer(laptop: Laptop, make: Callable[[Laptop], Request]) -> None:
    request, late = await asyncio.to_thread(make, laptop), await asyncio.to_thread(make, laptop)
    try:
        laptop.clock.ahead_s = 58
        assert (await answer(request))[0] == 200
        laptop.clock.ahead_s = 62
        status, code, body = await answer(late)
    finally:
        laptop.clock.ahead_s = 0
    assert (status, code) == (403, "AccessDenied")
    assert b"<Message>Request has expired</Message><X-Amz-Expires>60</X-Amz-Expires>" in body


async def test_a_link_from_the_future_is_not_valid_yet(laptop: Laptop) -> None:
    request = await asyncio.to_thread(get, laptop)
    try:
        laptop.clock.ahead_s = -1000
        status, code, body = await answer(request)
    finally:
        laptop.clock.ahead_s = 0
    assert (status, code) == (403, "AccessDenied")
    assert b"not valid yet" in body


@pytest.mark.parametrize(
    ("options", "ahead_s", "code"),
    [({"secret": "wrong"}, 0, "SignatureDoesNotMatch"), ({"key_id": "AKIAUNKNOWNUNKNOWN00"}, 0, "InvalidAccessKeyId"), ({}, 1000, "RequestTimeTooSkewed")],
)
@pytest.mark.parametrize("service", ["s3", "sqs", "secretsmanager", "kms"])
async def test_a_header_signed_request_is_verified_for_every_service(laptop: Laptop, service: str, options: dict[str, Any], ahead_s: int, code: str) -> None:
    calls = {"s3": "list_buckets", "sqs": "list_queues", "secretsmanager": "list_secrets", "kms": "list_keys"}
    await asyncio.to_thread(getattr(laptop.client(service), calls[service]))
    laptop.clock.ahead_s = ahead_s
    try:
        with pytest.raises(laptop.client(service).exceptions.ClientError) as refused:
            await asyncio.to_thread(getattr(laptop.client(service, **options), calls[service]))
    finally:
        laptop.clock.ahead_s = 0
    assert refused.value.response["Error"]["Code"] == code
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


TODAY = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
SCOPE = f"{KEY_ID}/{TODAY[:8]}/{REGION}/s3/aws4_request"


@pytest.mark.parametrize(
    ("authorization", "query", "status", "code"),
    [
        (f"AWS4-HMAC-SHA256 Credential={SCOPE}, SignedHeaders=host, Signature=0", "", 400, "MissingSecurityHeader"),
        ("AWS4-HMAC-SHA256 Credential=mine, SignedHeaders=host, Signature=0", "", 400, "AuthorizationHeaderMalformed"),
        ("AWS4-HMAC-SHA256", "", 400, "AuthorizationHeaderMalformed"),
        (f"AWS4-HMAC-SHA256 Credential={SCOPE}, SignedHeaders=host, Signature=0", "?X-Amz-Signature=0", 400, "InvalidArgument"),
        ("AWS AKIAIOSFODNN7EXAMPLE:c2lnbmVkIGJ5IHZlcnNpb24gMg==", "", 400, "InvalidRequest"),
        ("Bearer token", "", 400, "InvalidRequest"),
    ],
)
async def test_a_malformed_authorization_is_named(laptop: Laptop, authorization: str, query: str, status: int, code: str) -> None:
    headers = {"Authorization": authorization, "X-Amz-Date": TODAY}
    assert (await answer(Request("GET", f"{laptop.gate.url}/{BUCKET}/k{query}", headers)))[:2] == (status, code)


async def test_what_moto_alone_would_accept(laptop: Laptop) -> None:
    """The reason for the gate, kept honest: the day moto checks signatures itself this fails, and the gate may shrink."""
    request = await asyncio.to_thread(get, laptop)
    behind = replace(tampered(request), url=tampered(request).url.replace(laptop.gate.url, laptop.gate._upstream))
    assert (await answer(behind))[0] == 200
    assert (await answer(tampered(request)))[0] == 403


async def test_an_object_is_written_once_and_read_back_as_it_was_announced(laptop: Laptop) -> None:
    request = await asyncio.to_thread(put, laptop)
    assert (await answer(request))[0] == 200
    assert (await answer(request))[:2] == (412, "PreconditionFailed")
    name = request.url.partition("?")[0].rpartition("/")[2]
    client = laptop.client("s3")
    head = await asyncio.to_thread(client.head_object, Bucket=BUCKET, Key=name, ChecksumMode="ENABLED")
    assert (head["ContentLength"], head["ContentType"], head["ServerSideEncryption"]) == (len(TEXT), "text/plain", "aws:kms")
    assert head["ChecksumSHA256"] == request.headers["x-amz-checksum-sha256"]
    bound = {"Bucket": BUCKET, "Key": name, "ResponseContentDisposition": "attachment; filename*=UTF-8''a%20b.txt", "ResponseContentType": "text/plain"}
    link = client.generate_presigned_url("get_object", Params=bound, ExpiresIn=60)
    async with aiohttp.ClientSession() as session, session.get(yarl.URL(link, encoded=True), headers={"Range": "bytes=0-5"}) as got:
        assert (got.status, await got.read()) == (206, TEXT[:6])
        assert got.headers["Content-Disposition"] == "attachment; filename*=UTF-8''a%20b.txt"


async def test_a_page_may_upload_and_read_the_checksum(laptop: Laptop) -> None:
    request = await asyncio.to_thread(put, laptop)
    wants = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "content-type,x-amz-checksum-sha256"}
    async with aiohttp.ClientSession() as session:
        async with session.options(yarl.URL(request.url, encoded=True), headers=wants) as preflight:
            assert preflight.status == 200
            assert preflight.headers["Access-Control-Allow-Origin"] == "*"
            assert preflight.headers["Access-Control-Allow-Headers"] == wants["Access-Control-Request-Headers"]
        async with session.put(yarl.URL(request.url, encoded=True), headers=request.headers | {"Origin": wants["Origin"]}, data=request.body) as got:
            assert (got.status, got.headers["Access-Control-Allow-Origin"]) == (200, "*")


async def test_a_header_signed_body_must_be_the_signed_one(laptop: Laptop) -> None:
    client = laptop.client("s3")
    client.meta.events.register("before-send.s3.PutObject", lambda request, **_: setattr(request, "body", TEXT[::-1]))
    with pytest.raises(client.exceptions.ClientError) as refused:
        await asyncio.to_thread(client.put_object, Bucket=BUCKET, Key=key("put"), Body=TEXT)
    assert refused.value.response["Error"]["Code"] == "XAmzContentSHA256Mismatch"


async def test_everything_acknowledged_is_there_after_moto_was_killed(laptop: Laptop) -> None:
    s3, sqs = laptop.client("s3"), laptop.client("sqs", retries=3)
    await asyncio.to_thread(sqs.purge_queue, QueueUrl=laptop.queue_url())
    kept, gone, joined, large = key("kept"), key("gone"), key("joined"), os.urandom(6 << 20)

    def fill() -> tuple[str, str, str]:
        s3.put_object(Bucket=BUCKET, Key=kept, Body=TEXT, ContentType="text/plain", Metadata={"who": "ana"})
        s3.put_object(Bucket=BUCKET, Key=gone, Body=TEXT)
        s3.delete_object(Bucket=BUCKET, Key=gone)
        upload = s3.create_multipart_upload(Bucket=BUCKET, Key=joined, ContentType="audio/ogg")["UploadId"]
        parts = [s3.upload_part(Bucket=BUCKET, Key=joined, UploadId=upload, PartNumber=n, Body=body)["ETag"] for n, body in ((1, large), (2, TEXT))]
        wanted = {"Parts": [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(parts, 1)]}
        s3.complete_multipart_upload(Bucket=BUCKET, Key=joined, UploadId=upload, MultipartUpload=wanted)
        s3.put_object_tagging(Bucket=BUCKET, Key=kept, Tagging={"TagSet": [{"Key": "scanned", "Value": "yes"}]})
        done, held, waiting = (str(sqs.send_message(QueueUrl=laptop.queue_url(), MessageBody=body)["MessageId"]) for body in ("done", "held", "waiting"))
        return done, held, waiting

    done, held, waiting = await asyncio.to_thread(fill)
    received = (await asyncio.to_thread(sqs.receive_message, QueueUrl=laptop.queue_url(), MaxNumberOfMessages=2))["Messages"]
    handles = {message["MessageId"]: message["ReceiptHandle"] for message in received}
    assert set(handles) == {done, held}
    await asyncio.to_thread(sqs.delete_message, QueueUrl=laptop.queue_url(), ReceiptHandle=handles[done])

    os.kill(laptop.supervisor.pids()["moto"], 9)
    await asyncio.to_thread(sqs.delete_message, QueueUrl=laptop.queue_url(), ReceiptHandle=handles[held])  # the handle outlives its moto
    await laptop.supervisor.wait_until_ready("moto", 10)

    got, body = await asyncio.to_thread(read, s3, kept)
    assert (body, got["ContentType"], got["Metadata"]) == (TEXT, "text/plain", {"who": "ana"})
    assert (await asyncio.to_thread(s3.get_object_tagging, Bucket=BUCKET, Key=kept))["TagSet"] == [{"Key": "scanned", "Value": "yes"}]
    got, body = await asyncio.to_thread(read, s3, joined)
    assert (body == large + TEXT, got["ContentType"]) == (True, "audio/ogg")
    assert gone not in {each["Key"] for each in (await asyncio.to_thread(s3.list_objects_v2, Bucket=BUCKET))["Contents"]}
    again = (await asyncio.to_thread(sqs.receive_message, QueueUrl=laptop.queue_url(), MaxNumberOfMessages=10)).get("Messages", [])
    assert [(message["MessageId"], message["Body"]) for message in again] == [(waiting, "waiting")]
    attributes = await asyncio.to_thread(sqs.get_queue_attributes, QueueUrl=laptop.queue_url(), AttributeNames=["All"])
    assert '"maxReceiveCount": 5' in attributes["Attributes"]["RedrivePolicy"]
    secret = await asyncio.to_thread(laptop.client("secretsmanager").get_secret_value, SecretId="heliograph/turn")
    assert secret["SecretString"] == '{"current": "t"}'
    described = await asyncio.to_thread(laptop.client("kms").describe_key, KeyId=service_aws.KEY_ALIAS)
    assert described["KeyMetadata"]["Enabled"]


async def test_a_kill_under_load_loses_nothing_that_was_acknowledged(laptop: Laptop) -> None:
    s3, sqs, prefix = laptop.client("s3"), laptop.client("sqs"), key("load")
    objects: set[str] = set()
    messages: set[str] = set()

    def write(worker: int) -> None:
        for number in range(40):
            with contextlib.suppress(s3.exceptions.ClientError):
                s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{worker}-{number}", Body=f"{worker}-{number}".encode())
                objects.add(f"{worker}-{number}")
            with contextlib.suppress(sqs.exceptions.ClientError):
                messages.add(sqs.send_message(QueueUrl=laptop.queue_url(), MessageBody=f"{worker}-{number}")["MessageId"])

    writers = asyncio.gather(*(asyncio.to_thread(write, worker) for worker in range(4)))
    await asyncio.sleep(0.3)
    os.kill(laptop.supervisor.pids()["moto"], 9)
    await writers
    await laptop.supervisor.wait_until_ready("moto", 10)

    def read_all() -> tuple[set[str], set[str]]:
        listed = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix)["Contents"]
        bodies = {s3.get_object(Bucket=BUCKET, Key=each["Key"])["Body"].read().decode() for each in listed}
        received: set[str] = set()
        while batch := sqs.receive_message(QueueUrl=laptop.queue_url(), MaxNumberOfMessages=10).get("Messages"):
            received |= {each["MessageId"] for each in batch}
        return bodies, received

    found_objects, found_messages = await asyncio.to_thread(read_all)
    assert len(objects) > 100
    assert objects <= found_objects
    assert messages <= found_messages


async def test_a_download_that_moto_does_not_survive_is_cut_off_and_works_again(laptop: Laptop) -> None:
    s3, name, large = laptop.client("s3"), key("cut"), os.urandom(24 << 20)
    await asyncio.to_thread(s3.put_object, Bucket=BUCKET, Key=name, Body=large)
    link = s3.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": name}, ExpiresIn=60)
    async with aiohttp.ClientSession() as session:
        async with session.get(yarl.URL(link, encoded=True)) as got:
            await got.content.readexactly(1000)
            os.kill(laptop.supervisor.pids()["moto"], 9)
            with pytest.raises(aiohttp.ClientPayloadError):
                await got.read()
        await asyncio.sleep(0.2)
        await laptop.supervisor.wait_until_ready("moto", 10)
        async with session.get(yarl.URL(link, encoded=True)) as got:
            assert await got.read() == large


async def test_batches_and_dead_letters_keep_their_place_over_a_kill(laptop: Laptop) -> None:
    sqs, url, dead_url = laptop.client("sqs", retries=3), laptop.queue_url(), laptop.queue_url("notifications-dead")

    def fill() -> dict[str, str]:
        sqs.purge_queue(QueueUrl=url)
        sent = sqs.send_message_batch(QueueUrl=url, Entries=[{"Id": name, "MessageBody": name} for name in ("dead", "done", "open")])["Successful"]
        ids = {each["Id"]: each["MessageId"] for each in sent}
        first = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=0)["Messages"]
        handles = {each["Body"]: each["ReceiptHandle"] for each in first}
        sqs.delete_message_batch(QueueUrl=url, Entries=[{"Id": "1", "ReceiptHandle": handles["done"]}])
        sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=handles["open"], VisibilityTimeout=60)
        for _ in range(6):  # the sixth receive finds it dead-lettered
            sqs.receive_message(QueueUrl=url, VisibilityTimeout=0)
        assert [each["MessageId"] for each in sqs.receive_message(QueueUrl=dead_url, VisibilityTimeout=0)["Messages"]] == [ids["dead"]]
        return ids

    ids = await asyncio.to_thread(fill)
    os.kill(laptop.supervisor.pids()["moto"], 9)
    await asyncio.sleep(0.2)
    await laptop.supervisor.wait_until_ready("moto", 10)
    living = (await asyncio.to_thread(sqs.receive_message, QueueUrl=url, MaxNumberOfMessages=10)).get("Messages", [])
    dead = (await asyncio.to_thread(sqs.receive_message, QueueUrl=dead_url, MaxNumberOfMessages=10)).get("Messages", [])
    assert [each["MessageId"] for each in living] == [ids["open"]]
    assert [each["MessageId"] for each in dead] == [ids["dead"]]
    await asyncio.to_thread(sqs.purge_queue, QueueUrl=url)
    await asyncio.to_thread(sqs.purge_queue, QueueUrl=dead_url)
    assert not laptop.gate.messages.messages


async def test_everything_acknowledged_is_there_for_the_next_run(tmp_path: Path) -> None:
    async with started(tmp_path) as first:
        request = await asyncio.to_thread(put, first)
        assert (await answer(request))[0] == 200
        sent = await asyncio.to_thread(first.client("sqs").send_message, QueueUrl=first.queue_url(), MessageBody="later", DelaySeconds=1)
    async with started(tmp_path) as second:
        name = request.url.partition("?")[0].rpartition("/")[2]
        head = await asyncio.to_thread(second.client("s3").head_object, Bucket=BUCKET, Key=name, ChecksumMode="ENABLED")
        assert head["ChecksumSHA256"] == request.headers["x-amz-checksum-sha256"]
        got = await asyncio.to_thread(second.client("sqs").receive_message, QueueUrl=second.queue_url(), WaitTimeSeconds=3)
        assert [(message["MessageId"], message["Body"]) for message in got["Messages"]] == [(sent["MessageId"], "later")]


async def test_while_moto_is_down_the_gate_says_try_again(tmp_path: Path) -> None:
    gate = AwsGate(tmp_path, {KEY_ID: SECRET}, region=REGION, upstream="http://127.0.0.1:1", wait_s=0.1)
    await gate.start()
    laptop = Laptop(gate, Supervisor(tmp_path, tmp_path / "pids.json"), Clock())
    url = laptop.client("s3").generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "k"}, ExpiresIn=60)
    try:
        assert (await answer(Request("GET", url)))[:2] == (503, "ServiceUnavailable")
    finally:
        await gate.close()
