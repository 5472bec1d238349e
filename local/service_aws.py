"""AWS on the laptop: moto's server behind the gate, and what must stand in it before anybody calls: bucket, key, queues, secrets.

moto keeps everything in memory. Each start seeds the same names again (this file), then the gate gives back objects and messages. The KMS key gets a new id
each time, so only its alias is ever named. Secrets come from one private file, made at the first start.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from functions.routes import Function, Queue
from local.aws_gate import AwsGate
from local.services import HOST, ping_http, read_json, write_private_json
from local.supervisor import Child

REGION: Final = "eu-west-1"
ACCOUNT: Final = "123456789012"
BUCKET: Final = "heliograph-media"
KEY_ALIAS: Final = "alias/heliograph-media"
SECRET_IDS: Final = {"token_keys": "heliograph/token-keys", "turn": "heliograph/turn", "mongodb": "heliograph/mongodb", "fcm": "heliograph/fcm"}
_ENCRYPTION: Final = (
    "<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault>"
    f"<SSEAlgorithm>aws:kms</SSEAlgorithm><KMSMasterKeyID>{KEY_ALIAS}</KMSMasterKeyID>"
    "</ApplyServerSideEncryptionByDefault><BucketKeyEnabled>true</BucketKeyEnabled></Rule></ServerSideEncryptionConfiguration>"
)
_JSON: Final = {"sqs": ("AmazonSQS", "1.0"), "kms": ("TrentService", "1.1"), "secretsmanager": ("secretsmanager", "1.1")}


def child(gate: AwsGate, port: int, queues: Iterable[Queue], secret_values: Mapping[str, Any]) -> Child:
    """moto as a child process; ready when it holds the seed and everything the gate kept."""
    wanted = tuple(queues)

    async def restored() -> None:
        await seed(gate, wanted, secret_values)
        await gate.restore()

    return Child(
        "moto",
        (sys.executable, "-m", "local.moto_server", "-H", HOST, "-p", str(port)),
        lambda: ping_http(port, "/moto-api/data.json"),
        environment={"AWS_ACCESS_KEY_ID": "LOCAL", "AWS_SECRET_ACCESS_KEY": "LOCAL", "AWS_EC2_METADATA_DISABLED": "true"},
        restored=restored,
        died=gate.upstream_is_up.clear,
    )


def queues_of(functions: Iterable[Function]) -> list[Queue]:
    """The queues of the route table."""
    return [route for function in functions for route in function.routes if isinstance(route, Queue)]


async def seed(gate: AwsGate, queues: Iterable[Queue], secret_values: Mapping[str, Any]) -> None:
    """Bucket with SSE-KMS by default, key with alias, queues with their dead-letter queues, secrets."""
    key = await _call(gate, "kms", "CreateKey", Description="Heliograph media")
    await _call(gate, "kms", "CreateAlias", AliasName=KEY_ALIAS, TargetKeyId=key["KeyMetadata"]["KeyId"])
    where = f"<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
    await gate.call_upstream("s3", "PUT", f"/{BUCKET}", {}, where.encode())
    await gate.call_upstream("s3", "PUT", f"/{BUCKET}?encryption", {}, _ENCRYPTION.encode())
    for queue in queues:
        await _call(gate, "sqs", "CreateQueue", QueueName=f"{queue.name}-dead", Attributes={"MessageRetentionPeriod": "1209600"})
        redrive = {"deadLetterTargetArn": f"arn:aws:sqs:{REGION}:{ACCOUNT}:{queue.name}-dead", "maxReceiveCount": queue.max_receives}
        attributes = {"VisibilityTimeout": str(queue.visibility_s), "RedrivePolicy": json.dumps(redrive)}
        await _call(gate, "sqs", "CreateQueue", QueueName=queue.name, Attributes=attributes)
    for name, secret_id in SECRET_IDS.items():
        await _call(gate, "secretsmanager", "CreateSecret", Name=secret_id, SecretString=json.dumps(secret_values[name]), ClientRequestToken=str(uuid.uuid4()))


async def _call(gate: AwsGate, service: str, action: str, **fields: Any) -> dict[str, Any]:
    prefix, version = _JSON[service]
    headers = {"X-Amz-Target": f"{prefix}.{action}", "Content-Type": f"application/x-amz-json-{version}"}
    answer: dict[str, Any] = json.loads(await gate.call_upstream(service, "POST", "/", headers, json.dumps(fields).encode()) or b"{}")
    return answer


def load_secrets(path: Path, *, mongodb_uri: str, push_stub_url: str) -> dict[str, Any]:
    """The secrets of this data folder: made once and kept in `path` (mode 0600); where services listen is filled in anew."""
    kept = read_json(path)
    if not kept:
        kept = {
            "aws": {"access_key_id": f"AKIA{base64.b32encode(os.urandom(10)).decode()}", "secret_access_key": secrets.token_urlsafe(30)},
            "token_keys": {"current": {"kid": f"local-{secrets.token_hex(4)}", "private_pem": _ec_pem()}, "previous": None},
            "turn": {"current": secrets.token_urlsafe(32), "previous": None},
            "fcm": {
                "type": "service_account",
                "project_id": "heliograph-local",
                "private_key_id": secrets.token_hex(20),
                "private_key": _rsa_pem(),
                "client_email": "push@heliograph-local.iam.gserviceaccount.com",
                "client_id": "100000000000000000001",
            },
        }
        write_private_json(path, kept)
    kept["fcm"]["token_uri"] = f"{push_stub_url}/token"
    return kept | {"mongodb": {"uri": mongodb_uri}}


def _ec_pem() -> str:
    from cryptography.hazmat.primitives.asymmetric import ec

    return _pem(ec.generate_private_key(ec.SECP256R1()))


def _rsa_pem() -> str:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return _pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))


def _pem(key: Any) -> str:
    from cryptography.hazmat.primitives import serialization as form

    return str(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()).decode())
