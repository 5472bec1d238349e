"""How long logs are kept, and the bucket of access logs."""

from __future__ import annotations

from typing import Final

from aws_cdk import Duration, RemovalPolicy
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infra.cdk.context import Deployment
from infra.cdk.nag import acknowledge

_DAYS: Final = {
    "1": logs.RetentionDays.ONE_DAY,
    "3": logs.RetentionDays.THREE_DAYS,
    "5": logs.RetentionDays.FIVE_DAYS,
    "7": logs.RetentionDays.ONE_WEEK,
    "14": logs.RetentionDays.TWO_WEEKS,
    "30": logs.RetentionDays.ONE_MONTH,
    "60": logs.RetentionDays.TWO_MONTHS,
    "90": logs.RetentionDays.THREE_MONTHS,
    "180": logs.RetentionDays.SIX_MONTHS,
    "365": logs.RetentionDays.ONE_YEAR,
}


def kept(deployment: Deployment) -> logs.RetentionDays:
    """The setting `log_days` as CloudWatch Logs takes it."""
    return _DAYS[deployment.own["log_days"]]


def access_log_bucket(scope: Construct, name: str, deployment: Deployment, ownership: s3.ObjectOwnership) -> s3.Bucket:
    """Where a service of AWS writes who asked for what; it writes to no bucket that encrypts with a key of KMS."""
    bucket = s3.Bucket(
        scope,
        name,
        encryption=s3.BucketEncryption.S3_MANAGED,
        block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
        object_ownership=ownership,
        enforce_ssl=True,
        minimum_tls_version=1.2,
        lifecycle_rules=[s3.LifecycleRule(expiration=Duration.days(deployment.number("log_days")))],
        removal_policy=RemovalPolicy.RETAIN,
    )
    acknowledge(bucket, "AwsSolutions-S1", "It holds access logs itself, which end by age; a log of its own would grow by itself.")
    return bucket
