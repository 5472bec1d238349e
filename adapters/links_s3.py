"""Signed links to S3, and what S3 says of a stored object.

Always SigV4 and a regional endpoint: boto3 still signs SigV2 in the older regions, which fails with KMS.
"""

from __future__ import annotations

import base64
from typing import Any
from urllib.parse import quote

from heliograph.errors import ChecksumMismatch, Unavailable, UploadMissing
from heliograph.links import Media


class Links:
    def __init__(self, bucket: str, kms_key_id: str, region: str) -> None:
        import boto3
        from botocore.config import Config

        config = Config(signature_version="s3v4", s3={"addressing_style": "virtual"}, connect_timeout=1, read_timeout=5, retries={"total_max_attempts": 3})
        self._s3: Any = boto3.client("s3", region_name=region, config=config)
        self._bucket, self._kms_key_id = bucket, kms_key_id

    def upload(self, media: Media, expires_s: int) -> tuple[str, dict[str, str]]:
        """(URL, headers to send unchanged): bound to length, type, checksum, encryption and to a key that has no object yet."""
        checksum = base64.b64encode(bytes.fromhex(media.sha256)).decode()
        bound: dict[str, Any] = {
            "Bucket": self._bucket,
            "Key": media.key,
            "ContentLength": media.length_bytes,
            "ContentType": media.content_type,
            "ChecksumSHA256": checksum,
            "ServerSideEncryption": "aws:kms",
            "SSEKMSKeyId": self._kms_key_id,
            "IfNoneMatch": "*",
        }
        url = self._s3.generate_presigned_url("put_object", Params=bound, ExpiresIn=expires_s)
        headers = {
            "Content-Length": str(media.length_bytes),
            "Content-Type": media.content_type,
            "x-amz-checksum-sha256": checksum,
            "x-amz-server-side-encryption": "aws:kms",
            "x-amz-server-side-encryption-aws-kms-key-id": self._kms_key_id,
            "If-None-Match": "*",
        }
        return url, headers

    def download(self, media: Media, expires_s: int) -> str:
        """A link that saves the file under its name; never shown inline, so that no stored page runs as ours."""
        disposition = f"attachment; filename*=UTF-8''{quote(media.file_name, safe='')}"
        bound = {"Bucket": self._bucket, "Key": media.key, "ResponseContentDisposition": disposition, "ResponseContentType": media.content_type}
        return str(self._s3.generate_presigned_url("get_object", Params=bound, ExpiresIn=expires_s))

    def must_hold(self, media: Media) -> None:
        """Raises UploadMissing or ChecksumMismatch unless S3 holds exactly the announced bytes, encrypted."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            head = self._s3.head_object(Bucket=self._bucket, Key=media.key, ChecksumMode="ENABLED")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                raise UploadMissing from None
            raise Unavailable("The object store is out of reach for a moment; try again.") from None
        except BotoCoreError:
            raise Unavailable("The object store is out of reach for a moment; try again.") from None
        stored = base64.b64decode(head.get("ChecksumSHA256", "")).hex()
        if stored != media.sha256 or head["ContentLength"] != media.length_bytes or head.get("ServerSideEncryption") != "aws:kms":
            raise ChecksumMismatch
