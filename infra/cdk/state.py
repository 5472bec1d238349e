"""The stack of everything that keeps something: media and evidence with their keys, queues with their dead-letter queues, secrets, the session store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aws_cdk import ArnFormat, CfnDeletionPolicy, Duration, Environment, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_elasticache as elasticache
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_secretsmanager as secretsmanager
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from adapters.redis_client import ACCESS
from functions.routes import FUNCTIONS, Queue, Resource
from infra.cdk.context import Deployment
from infra.cdk.network import Network

DEAD_LETTERS_KEPT: Final = Duration.days(14)  # the longest SQS allows; a message keeps its first date, so its queue must forget sooner
MESSAGES_KEPT: Final = Duration.days(4)


@dataclass(frozen=True, slots=True)
class SecretSpec:
    """A secret by name. `generated` is the template of one that AWS fills in; the others are made empty and filled in by the operator."""

    resource: Resource
    setting: str
    name: str
    form: str
    generated: str | None = None


SECRETS: Final = (
    SecretSpec("token_keys", "token_keys_secret_id", "token-keys", "{current: {kid, private_pem}, previous}: EC P-256 keys of access tokens."),
    SecretSpec("mongo_uri", "mongodb_secret_id", "mongodb", "{uri}: the ledger's connection string."),
    SecretSpec("fcm_credentials", "fcm_secret_id", "fcm", "The Firebase service account, as its console gives it."),
    SecretSpec("turn_secret", "turn_secret_id", "turn", "{current, previous}: the relay's shared secret.", generated='{"previous": null}'),
    SecretSpec("origin_secret", "origin_secret_id", "origin", "{current, previous}: what CloudFront adds to a request.", generated='{"previous": null}'),
)


class State(Stack):
    """What outlives a deployment of the functions."""

    def __init__(self, scope: Construct, deployment: Deployment, network: Network | None, *, env: Environment | None = None) -> None:
        name = f"heliograph-{deployment.stage}-state"
        super().__init__(scope, name, description="Heliograph: media, evidence, queues, secrets, session store", termination_protection=True, env=env)
        self._stage, self._deployment = deployment.stage, deployment
        self.media_key = kms.Key(self, "MediaKey", description="Encrypts uploads of Heliograph", enable_key_rotation=True, removal_policy=RemovalPolicy.RETAIN)
        self.media = self._bucket(deployment.allow_origins)
        self.evidence_key = kms.Key(
            self, "EvidenceKey", description="Encrypts evidence of Heliograph", enable_key_rotation=True, removal_policy=RemovalPolicy.RETAIN
        )
        self.evidence = self._evidence()
        self.queues = {queue.name: self._queue(queue) for function in FUNCTIONS for queue in function.routes if isinstance(queue, Queue)}
        self.secrets: dict[Resource, secretsmanager.CfnSecret] = {
            spec.resource: self._secret(spec) for spec in SECRETS if spec.resource != "origin_secret" or deployment.has_edge
        }
        self.redis_url, self.redis_user, self.redis_cache = deployment.settings["redis_url"], "", ""
        self.redis_connect_arns: list[str] = []
        if network is not None and deployment.makes_redis:
            self._add_redis(network)

    def _evidence(self) -> s3.Bucket:
        """Write-once: a version cannot be deleted or overwritten while its retention runs."""
        own = self._deployment.own
        days = Duration.days(int(own["evidence_days"]))
        retention = s3.ObjectLockRetention.compliance(days) if own["evidence_lock"] == "compliance" else s3.ObjectLockRetention.governance(days)
        return s3.Bucket(
            self,
            "Evidence",
            encryption=s3.BucketEncryption.KMS,
            encryption_key=self.evidence_key,
            bucket_key_enabled=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            versioned=True,
            object_lock_enabled=True,
            object_lock_default_retention=retention,
            removal_policy=RemovalPolicy.RETAIN,
        )

    def _add_redis(self, network: Network) -> None:
        """ElastiCache Serverless for Valkey: TLS always, users by IAM only. The names are fixed, because a token is signed for them."""
        name = f"heliograph-{self._stage}"
        user = elasticache.CfnUser(
            self,
            "RedisUser",
            engine="valkey",
            user_id=name,
            user_name=name,
            access_string=ACCESS,
            authentication_mode={"Type": "iam"},
        )
        group = elasticache.CfnUserGroup(self, "RedisUsers", engine="valkey", user_group_id=name, user_ids=[user.ref])
        maximum = elasticache.CfnServerlessCache.DataStorageProperty(maximum=self._deployment.number("redis_max_gb"), unit="GB")
        cache = elasticache.CfnServerlessCache(
            self,
            "Redis",
            engine="valkey",
            major_engine_version="8",
            serverless_cache_name=name,
            description="Sessions, presence and rooms of Heliograph; MongoDB has the truth",
            subnet_ids=network.vpc.select_subnets(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS).subnet_ids,
            security_group_ids=[network.cache_group.security_group_id],
            user_group_id=group.ref,
            cache_usage_limits=elasticache.CfnServerlessCache.CacheUsageLimitsProperty(data_storage=maximum),
        )
        self.redis_url = f"rediss://{cache.attr_endpoint_address}:{cache.attr_endpoint_port}"
        self.redis_user = self.redis_cache = name
        self.redis_connect_arns = [
            self.format_arn(service="elasticache", resource=kind, resource_name=name, arn_format=ArnFormat.COLON_RESOURCE_NAME)
            for kind in ("serverlesscache", "user")
        ]

    def _bucket(self, allow_origins: tuple[str, ...]) -> s3.Bucket:
        cors = s3.CorsRule(allowed_methods=[s3.HttpMethods.GET, s3.HttpMethods.PUT], allowed_origins=list(allow_origins), allowed_headers=["*"], max_age=300)
        return s3.Bucket(
            self,
            "Media",
            encryption=s3.BucketEncryption.KMS,
            encryption_key=self.media_key,
            bucket_key_enabled=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            versioned=True,
            cors=[cors] if allow_origins else None,
            lifecycle_rules=[s3.LifecycleRule(abort_incomplete_multipart_upload_after=Duration.days(1), noncurrent_version_expiration=Duration.days(30))],
            removal_policy=RemovalPolicy.RETAIN,
        )

    def _queue(self, queue: Queue) -> sqs.Queue:
        dead = sqs.Queue(self, f"{queue.name}-dead", retention_period=DEAD_LETTERS_KEPT, enforce_ssl=True, encryption=sqs.QueueEncryption.SQS_MANAGED)
        return sqs.Queue(
            self,
            queue.name,
            visibility_timeout=Duration.seconds(queue.visibility_s),
            retention_period=MESSAGES_KEPT,
            dead_letter_queue=sqs.DeadLetterQueue(queue=dead, max_receive_count=queue.max_receives),
            enforce_ssl=True,
            encryption=sqs.QueueEncryption.SQS_MANAGED,
        )

    def _secret(self, spec: SecretSpec) -> secretsmanager.CfnSecret:
        """The plain resource: the convenient one would fill every secret with a random text, which reads as a broken key, not as a missing one."""
        generated = secretsmanager.CfnSecret.GenerateSecretStringProperty(
            secret_string_template=spec.generated, generate_string_key="current", password_length=48, exclude_punctuation=True
        )
        secret = secretsmanager.CfnSecret(
            self,
            f"secret-{spec.name}",
            name=f"heliograph/{self._stage}/{spec.name}",
            description=spec.form,
            generate_secret_string=generated if spec.generated else None,
        )
        secret.cfn_options.deletion_policy = secret.cfn_options.update_replace_policy = CfnDeletionPolicy.RETAIN
        return secret
