"""The only reader of the environment: one frozen object, every field documented. Unknown or missing settings stop the start with one sentence."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any

from adapters.sigv4 import Credentials
from heliograph.limits import overridden

if TYPE_CHECKING:
    from adapters.aws_credentials import ContainerCredentials

PREFIX = "HELIOGRAPH_"
UNCHECKED_IDENTITIES = "FIREBASE_AUTH_EMULATOR_HOST"


class SettingsError(SystemExit):
    """A setting is missing, unknown or of the wrong form; the message is one sentence for the person who deploys."""


def _setting(doc: str, default: Any = MISSING) -> Any:
    metadata = {"doc": doc}
    return field(metadata=metadata) if default is MISSING else field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a deployment chooses. Each field is the environment variable HELIOGRAPH_<NAME>."""

    stage: str = _setting("Name of the deployment; stands in every log line.")
    redis_url: str = _setting("redis:// or rediss:// URL of the session store.")
    mongodb_secret_id: str = _setting("Secrets Manager id of {uri}: the ledger's connection string.")
    token_keys_secret_id: str = _setting("Secrets Manager id of {current: {kid, private_pem}, previous}: the keys of access tokens.")
    turn_secret_id: str = _setting("Secrets Manager id of {current, previous}: the relay's shared secret.")
    fcm_secret_id: str = _setting("Secrets Manager id of the Firebase service account.")
    issuer: str = _setting("`iss` of our tokens: the public base URL of the REST API.")
    connections_url: str = _setting("Base URL of the WebSocket API's @connections, stage included.")
    media_bucket: str = _setting("Bucket of uploads.")
    media_kms_key_id: str = _setting("KMS key that encrypts uploads.")
    notifications_queue_url: str = _setting("Queue of pushes to send.")
    timers_queue_url: str = _setting("Queue of what was put off: sockets to look after, presence to tell a second later.")
    turn_urls: str = _setting("Comma-separated turn: and turns: URLs handed to clients.")
    origin_secret_id: str = _setting(
        "Secrets Manager id of {current, previous}: what CloudFront adds to a request; empty when nobody stands before the APIs.", ""
    )
    redis_mode: str = _setting("`single` or `cluster`.", "single")
    redis_user: str = _setting("User of ElastiCache who signs in by IAM; empty where the URL says all.", "")
    redis_cache: str = _setting("Name of the ElastiCache Serverless cache that `redis_user` signs in to.", "")
    mongodb_database: str = _setting("Database of the ledger.", "heliograph")
    audience: str = _setting("`aud` of our tokens.", "heliograph")
    private_candidates: str = _setting("`drop` hides host candidates with private addresses; `pass` lets peers in one network talk directly.", "drop")
    turn_realm: str = _setting("Realm of the relay.", "heliograph")
    stun_urls: str = _setting("Comma-separated stun: URLs handed to clients; empty for none.", "")
    fcm_url: str = _setting("Base URL of FCM.", "https://fcm.googleapis.com")
    access_token_s: int = _setting("Life of an access token in seconds (at most 900).", 900)
    refresh_grace_s: int = _setting("How long the predecessor of a refresh token still gets the same successor, in seconds (0 to 120).", 30)
    reauth_grace_s: int = _setting("How long a socket whose access token expired stays open for `reauth`, in seconds (1 to 300).", 60)
    limits: str = _setting("Rate limits that differ from docs/limits.md: `name=burst/per_s`, comma-separated.", "")
    turn_credential_s: int = _setting("Life of a relay credential in seconds.", 4 * 3600)
    heartbeat_s: int = _setting("How often an idle client sends `ping`, in seconds (20 to 240).", 60)
    heartbeat_call_s: int = _setting("How often a client on a call sends `ping`, in seconds (5 to 60).", 20)
    direct_recipients: int = _setting("An event for more sockets than this is posted by the media fleet's hub, while one is live.", 32)
    log_level: str = _setting("DEBUG, INFO, WARNING or ERROR.", "INFO")


def load(environ: Mapping[str, str]) -> Settings:
    """The settings in these variables; SettingsError names the first thing that is wrong."""
    known = {PREFIX + item.name.upper(): item for item in fields(Settings)}
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise SettingsError(f"{unknown[0]} is not a setting of Heliograph; docs/settings.md lists them.")
    missing = sorted(name for name, item in known.items() if item.default is MISSING and not environ.get(name))
    if missing:
        raise SettingsError(f"{missing[0]} is not set: {known[missing[0]].metadata['doc']}")
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name in environ:
            values[item.name] = _whole(name, environ[name]) if isinstance(item.default, int) else environ[name]
    if environ.get(UNCHECKED_IDENTITIES):
        raise SettingsError(f"{UNCHECKED_IDENTITIES} is set: with it the Firebase SDK takes ID tokens without checking their signature. Unset it.")
    settings = Settings(**values)
    if settings.redis_mode not in ("single", "cluster"):
        raise SettingsError(f"{PREFIX}REDIS_MODE must be single or cluster.")
    if settings.private_candidates not in ("drop", "pass"):
        raise SettingsError(f"{PREFIX}PRIVATE_CANDIDATES must be drop or pass.")
    if not 1 <= settings.access_token_s <= 900:
        raise SettingsError(f"{PREFIX}ACCESS_TOKEN_S must be between 1 and 900.")
    bounds = (
        ("HEARTBEAT_S", settings.heartbeat_s, 20, 240),
        ("HEARTBEAT_CALL_S", settings.heartbeat_call_s, 5, 60),
        ("REFRESH_GRACE_S", settings.refresh_grace_s, 0, 120),
        ("REAUTH_GRACE_S", settings.reauth_grace_s, 1, 300),
    )
    try:
        overridden(settings.limits)
    except ValueError as error:
        raise SettingsError(f"{PREFIX}LIMITS: {error}.") from None
    for name, value, low, high in bounds:
        if not low <= value <= high:
            raise SettingsError(f"{PREFIX}{name} must be between {low} and {high}.")
    return settings


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SettingsError(f"{name} must be a whole number.") from None


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return load(os.environ)


def aws_credentials() -> Credentials:
    """The keys of this process's role; read at each call, because they are renewed. In an ECS task they come from the container's endpoint, and may block."""
    if "AWS_ACCESS_KEY_ID" not in os.environ and (container := _container()) is not None:
        return container.get()
    return Credentials(_from_aws("AWS_ACCESS_KEY_ID"), _from_aws("AWS_SECRET_ACCESS_KEY"), os.environ.get("AWS_SESSION_TOKEN") or None)


@cache
def _container() -> ContainerCredentials | None:
    from adapters.aws_credentials import of_container

    return of_container(os.environ)


def forget_credentials() -> None:
    """Asks the container for its keys anew: those of a process that slept may have ended, or be another's."""
    _container.cache_clear()


def lambda_handler() -> str:
    """The handler string of the Lambda function that this process is; empty elsewhere."""
    return os.environ.get("_HANDLER", "")


def aws_region() -> str:
    return _from_aws("AWS_REGION")


def aws_endpoint(service: str) -> str | None:
    """The endpoint override of one AWS service (AWS_ENDPOINT_URL_<SERVICE>, as in every AWS SDK), or None for AWS's own."""
    return os.environ.get(f"AWS_ENDPOINT_URL_{service.upper()}") or os.environ.get("AWS_ENDPOINT_URL")


def _from_aws(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise SettingsError(f"{name} is not set; Lambda and ECS set it from the role.")
    return value


def now_ms() -> int:
    """The server's clock: milliseconds UTC."""
    return time.time_ns() // 1_000_000


def random_bytes() -> bytes:
    """The random part of an id."""
    return secrets.token_bytes(10)
