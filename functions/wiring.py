"""Each adapter, built once per process and only when it is asked for: a function pays for what it uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from adapters import mongo_client, secrets_aws
from adapters.settings import aws_credentials, aws_region, now_ms, settings
from functions import snapshots
from heliograph.limits import Limit, overridden
from heliograph.presence import Heartbeat

if TYPE_CHECKING:
    from aws_lambda_powertools import Logger

    from adapters.accounts_mongo import Accounts
    from adapters.admissions_redis import Admissions
    from adapters.board_redis import Boards
    from adapters.calls_redis import Calls
    from adapters.connections_redis import Connections
    from adapters.hub_redis import Hubs
    from adapters.identities_mongo import Identities
    from adapters.identity_firebase import FirebaseTokens
    from adapters.identity_oidc import OidcTokens
    from adapters.ledger_mongo import Ledger
    from adapters.links_s3 import Links
    from adapters.live_mongo import SpareLive
    from adapters.media_mongo import MediaRecords
    from adapters.one_use_mongo import OneUse as SpareOneUse
    from adapters.one_use_redis import OneUse
    from adapters.outbox_apigateway import SyncOutbox
    from adapters.push_fcm import Fcm
    from adapters.pushes_mongo import Pushes
    from adapters.queues_sqs import Queue
    from adapters.relays_redis import Relays
    from adapters.rooms_mongo import Rooms
    from adapters.sessions_mongo import Sessions
    from adapters.streams_mongo import Streams
    from adapters.tokens_jwt import Tokens


T = TypeVar("T")


class of_ledger(Generic[T]):  # noqa: N801 - a decorator
    """Like `cache`, but built anew after MongoDB refused its user: the secret has another URI by then, or soon."""

    def __init__(self, build: Callable[[], T]) -> None:
        self._built = lru_cache(maxsize=1)(lambda refusals: build())
        self.cache_clear = self._built.cache_clear

    def __call__(self) -> T:
        return self._built(mongo_client.refusals())


@cache
def logger() -> Logger:
    from aws_lambda_powertools import Logger

    return Logger(service="heliograph", level=settings().log_level, log_uncaught_exceptions=False)


@cache
def heartbeat() -> Heartbeat:
    return Heartbeat(settings().heartbeat_s, settings().heartbeat_call_s)


@cache
def redis() -> Any:
    from adapters import redis_client

    chosen = settings()
    signed_in = redis_client.sign_in(chosen.redis_user, chosen.redis_cache, credentials=aws_credentials, region=aws_region()) if chosen.redis_user else None
    return redis_client.connect(chosen.redis_url, chosen.redis_mode, signed_in)


@of_ledger
def database() -> Any:
    return mongo_client.connect(secrets_aws.read_secret_now(settings().mongodb_secret_id)["uri"], settings().mongodb_database)


@cache
def connections() -> Connections:
    from adapters.connections_redis import Connections

    return Connections(redis())


@cache
def limits() -> Mapping[str, Limit]:
    return overridden(settings().limits)


@cache
def admissions() -> Admissions:
    from adapters.admissions_redis import Admissions

    return Admissions(redis())


@cache
def boards() -> Boards:
    from adapters.board_redis import Boards

    return Boards(redis())


@cache
def hubs() -> Hubs:
    from adapters.hub_redis import Hubs

    return Hubs(redis(), is_cluster=settings().redis_mode == "cluster")


@cache
def relays() -> Relays:
    from adapters.relays_redis import Relays

    return Relays(redis())


@cache
def one_use() -> OneUse:
    from adapters.one_use_redis import OneUse

    return OneUse(redis())


@of_ledger
def spare_one_use() -> SpareOneUse:
    """Where the first use is marked while Redis is away."""
    from adapters.one_use_mongo import OneUse

    return OneUse(database())


@of_ledger
def spare_live() -> SpareLive:
    """Who is live in a room, for when Redis is away or lost it."""
    from adapters.live_mongo import SpareLive

    return SpareLive(database())


@cache
def calls() -> Calls:
    from adapters.calls_redis import Calls

    return Calls(redis())


@of_ledger
def accounts() -> Accounts:
    from adapters.accounts_mongo import Accounts

    return Accounts(database())


@of_ledger
def sessions() -> Sessions:
    from adapters.sessions_mongo import Sessions

    return Sessions(database())


@of_ledger
def identities() -> Identities:
    from adapters.identities_mongo import Identities

    return Identities(database())


@cache
def oidc_tokens() -> OidcTokens:
    from adapters.identity_oidc import OidcTokens

    return OidcTokens()


@cache
def firebase_tokens() -> FirebaseTokens:
    from adapters.identity_firebase import FirebaseTokens

    return FirebaseTokens()


@of_ledger
def rooms() -> Rooms:
    from adapters.rooms_mongo import Rooms

    return Rooms(database())


@of_ledger
def streams() -> Streams:
    from adapters.streams_mongo import Streams

    return Streams(database(), redis())


@of_ledger
def ledger() -> Ledger:
    from adapters.ledger_mongo import Ledger

    return Ledger(database())


@of_ledger
def media() -> MediaRecords:
    from adapters.media_mongo import MediaRecords

    return MediaRecords(database())


@of_ledger
def pushes() -> Pushes:
    from adapters.pushes_mongo import Pushes

    return Pushes(database())


@cache
def links() -> Links:
    from adapters.links_s3 import Links

    return Links(settings().media_bucket, settings().media_kms_key_id, aws_region())


@cache
def notifications() -> Queue:
    from adapters.queues_sqs import Queue

    return Queue(settings().notifications_queue_url)


@cache
def timers() -> Queue:
    from adapters.queues_sqs import Queue

    return Queue(settings().timers_queue_url)


@cache
def fcm() -> Fcm:
    from adapters.push_fcm import Fcm

    return Fcm(secrets_aws.read_secret(settings().fcm_secret_id), settings().fcm_url)


@cache
def tokens() -> Tokens:
    from adapters.tokens_jwt import Tokens

    secret_id = settings().token_keys_secret_id
    return Tokens(lambda: secrets_aws.read_secret_now(secret_id), now_ms, issuer=settings().issuer, audience=settings().audience)


@cache
def turn_secret() -> secrets_aws.SharedSecret:
    return _shared(settings().turn_secret_id)


@cache
def origin_secret() -> secrets_aws.SharedSecret:
    """What CloudFront adds to a request."""
    return _shared(settings().origin_secret_id)


def _shared(secret_id: str) -> secrets_aws.SharedSecret:
    return secrets_aws.SharedSecret(lambda: secrets_aws.read_secret_now(secret_id), now_ms)


@cache
def outbox() -> SyncOutbox:
    from adapters.outbox_apigateway import SyncOutbox

    return SyncOutbox(settings().connections_url, credentials=aws_credentials, region=aws_region())


def forget() -> None:
    """Every adapter is built anew when it is next asked for: what was built holds sockets. The logger has none."""
    if outbox.cache_info().currsize:
        outbox().close()
    for made in list(globals().values()):
        if hasattr(made, "cache_clear") and made is not logger:
            made.cache_clear()


snapshots.register(forget)
