"""The stack of everything that keeps something: media and evidence with their keys, queues with their dead-letter queues, secrets, the session store.

The ledger is MongoDB's: its URI stands in a secret, put there by hand or by the stack's own Atlas cluster (ledger.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from aws_cdk import ArnFormat, CfnDeletionPolicy, Duration, RemovalPolicy, Stack
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
from infra.cdk.ledger import Ledger
from infra.cdk.nag import acknowledge
from infra.cdk.network import Network
from infra.cdk.retention import access_log_bucket

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
RELAY_MONGODB: Final = "relay-mongodb"  # no function's: relays alone read it
_RELAY_MONGODB_FORM: Final = "{uri}: the ledger's connection string, of a user who may read and write the collection relay_usage and nothing else."
RELAY_TLS: Final = "relay-tls"
_RELAY_TLS_FORM: Final = "{certificate, key}: the relays' TLS certificate with its chain, leaf first, and its key, both as PEM text."


class State(Stack):
    """What outlives a deployment of the functions. `redis_user` and `redis_cache` are empty where nobody signs in by IAM.

    `relay_mongodb` is None where relays tell no usage, `relay_tls` where they do not speak TLS.
    """

    def __init__(self, scope: Construct, deployment: Deployment, network: Network | None) -> None:
        name = f"heliograph-{deployment.stage}-state"
        words = "Heliograph: media, evidence, queues, secrets, session store"
        super().__init__(scope, name, description=words, termination_protection=True, env=deployment.env)
        self._stage, self._deployment = deployment.stage, deployment
        self._access_log = access_log_bucket(self, "AccessLog", deployment, s3.ObjectOwnership.BUCKET_OWNER_ENFORCED)
        self.media_key = self._key("MediaKey", "Encrypts uploads of Heliograph")
        self.media = self._bucket("Media", self.media_key, cors=self._cors(), lifecycle_rules=self._lifecycle())
        self.evidence_key = self._key("EvidenceKey", "Encrypts evidence of Heliograph")
        self.evidence = self._bucket("Evidence", self.evidence_key, object_lock_enabled=True, object_lock_default_retention=self._retention())
        self.queues = {queue.name: self._queue(queue) for function in FUNCTIONS for queue in function.routes if isinstance(queue, Queue)}
        self.ledger = Ledger(self, deployment, network) if deployment.makes_atlas and network is not None else None
        self.secrets: dict[Resource, secretsmanager.CfnSecret] = {
            spec.resource: self._secret(spec.name, spec.form, spec.generated) for spec in SECRETS if spec.resource != "origin_secret" or deployment.has_edge
        }
        self.relay_mongodb = self._secret(RELAY_MONGODB, _RELAY_MONGODB_FORM) if deployment.has_relay_usage else None
        self.relay_tls = self._secret(RELAY_TLS, _RELAY_TLS_FORM) if deployment.turn_tls_name else None
        self.redis_url, self.redis_user, self.redis_cache = deployment.settings["redis_url"], "", ""
        self.redis_connect_arns: list[str] = []
        if network is not None and deployment.makes_redis:
            self._add_redis(network)

    def _key(self, name: str, description: str) -> kms.Key:
        return kms.Key(self, name, description=description, enable_key_rotation=True, removal_policy=RemovalPolicy.RETAIN)

    def _bucket(self, name: str, key: kms.Key, **more: Any) -> s3.Bucket:
        """Encrypted, private, versioned, kept, and with a log of who asked for what."""
        return s3.Bucket(
            self,
            name,
            encryption=s3.BucketEncryption.KMS,
            encryption_key=key,
            bucket_key_enabled=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            enforce_ssl=True,
            minimum_tls_version=1.2,
            versioned=True,
            server_access_logs_bucket=self._access_log,
            server_access_logs_prefix=f"{name.lower()}/",
            removal_policy=RemovalPolicy.RETAIN,
            **more,
        )

    def _cors(self) -> list[s3.CorsRule] | None:
        if not self._deployment.allow_origins:
            return None
        methods, origins = [s3.HttpMethods.GET, s3.HttpMethods.PUT], list(self._deployment.allow_origins)
        return [s3.CorsRule(allowed_methods=methods, allowed_origins=origins, allowed_headers=["*"], max_age=300)]

    def _lifecycle(self) -> list[s3.LifecycleRule]:
        return [s3.LifecycleRule(abort_incomplete_multipart_upload_after=Duration.days(1), noncurrent_version_expiration=Duration.days(30))]

    def _retention(self) -> s3.ObjectLockRetention:
        """Write-once: no version is overwritten or deleted before its day."""
        days = Duration.days(self._deployment.number("evidence_days"))
        is_strict = self._deployment.own["evidence_lock"] == "compliance"
        return s3.ObjectLockRetention.compliance(days) if is_strict else s3.ObjectLockRetention.governance(days)

    def _queue(self, queue: Queue) -> sqs.Queue:
        dead = sqs.Queue(self, f"{queue.name}-dead", retention_period=DEAD_LETTERS_KEPT, enforce_ssl=True, encryption=sqs.QueueEncryption.SQS_MANAGED)
        acknowledge(dead, "Serverless-SQSRedrivePolicy", "This is where messages end that could not be handled; an alarm watches it, `redrive` empties it.")
        return sqs.Queue(
            self,
            queue.name,
            visibility_timeout=Duration.seconds(queue.visibility_s),
            retention_period=MESSAGES_KEPT,
            dead_letter_queue=sqs.DeadLetterQueue(queue=dead, max_receive_count=queue.max_receives),
            enforce_ssl=True,
            encryption=sqs.QueueEncryption.SQS_MANAGED,
        )

    def _secret(self, name: str, form: str, template: str | None = None) -> secretsmanager.CfnSecret:
        """The plain resource: the convenient one would fill every secret with a random text, which reads as a broken key, not as a missing one."""
        generated = secretsmanager.CfnSecret.GenerateSecretStringProperty(
            secret_string_template=template, generate_string_key="current", password_length=48, exclude_punctuation=True
        )
        secret = secretsmanager.CfnSecret(
            self,
            f"secret-{name}",
            name=f"heliograph/{self._stage}/{name}",
            description=form,
            generate_secret_string=generated if template else None,
            secret_string=self.ledger.secret_strings.get(name) if self.ledger is not None else None,
        )
        secret.cfn_options.deletion_policy = secret.cfn_options.update_replace_policy = CfnDeletionPolicy.RETAIN
        reason = "Its issuer rotates it (MongoDB, Google), or heliograph-admin does: relays, functions and CloudFront must know both values for a while."
        acknowledge(secret, "AwsSolutions-SMG4", reason)
        return secret

    def _add_redis(self, network: Network) -> None:
        """ElastiCache Serverless for Valkey: TLS always, one user who signs in by IAM. The names are chosen here, because a token is signed for them."""
        name = f"heliograph-{self._stage}"
        user = elasticache.CfnUser(self, "RedisUser", engine="valkey", user_id=name, user_name=name, access_string=ACCESS, authentication_mode={"Type": "iam"})
        group = elasticache.CfnUserGroup(self, "RedisUsers", engine="valkey", user_group_id=name, user_ids=[user.ref])
        maximum = elasticache.CfnServerlessCache.DataStorageProperty(maximum=self._deployment.number("redis_max_gb"), unit="GB")
        cache = elasticache.CfnServerlessCache(
            self,
            "Redis",
            engine="valkey",
            major_engine_version="8",
            serverless_cache_name=name,
            description="Sessions, presence and rooms of Heliograph: MongoDB has the truth",
            subnet_ids=network.vpc.select_subnets(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS).subnet_ids,
            security_group_ids=[network.cache_group.security_group_id],
            user_group_id=group.ref,
            cache_usage_limits=elasticache.CfnServerlessCache.CacheUsageLimitsProperty(data_storage=maximum),
        )
        self.redis_url = f"rediss://{cache.attr_endpoint_address}:{cache.attr_endpoint_port}"
        self.redis_user = self.redis_cache = name
        self.redis_connect_arns = [self._elasticache_arn(kind, name) for kind in ("serverlesscache", "user")]

    def _elasticache_arn(self, kind: str, name: str) -> str:
        return self.format_arn(service="elasticache", resource=kind, resource_name=name, arn_format=ArnFormat.COLON_RESOURCE_NAME)
