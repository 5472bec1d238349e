"""The whole product on one machine: every service in parallel, then the functions, then one file that says where everything is.

`async with Stack(data_dir) as stack: stack.endpoints`. Knows the order and the wiring; each service knows itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal, Self

from adapters.settings import PREFIX
from adapters.sigv4 import Credentials
from functions.routes import FUNCTIONS
from heliograph.identities import FIREBASE_ISSUER, Provider
from local import demo, identity_stub, service_aws, service_mongo, service_redis
from local.aws_gate import AwsGate
from local.gateway import Gateway
from local.gateway_limits import Limits
from local.identity_stub import IdentityStub
from local.lambdas import Lambdas
from local.push_stub import PushStub
from local.queues import QueuePoller
from local.schedules import Schedules
from local.seed import SAMPLE_TENANT, seed
from local.services import HOST, LocalError, choose_ports, ping_http, ping_stun, read_json, write_private_json
from local.supervisor import Child, Supervisor, end_stale

STAGE: Final = "local"
DATABASE: Final = "heliograph"
REALM: Final = "heliograph"
ONE_MACHINE: Final = "address=5000/1000,sign_in=5000/1000,password=5000/1000"  # everybody has one address here, and few names
_PORTS: Final = ("rest", "socket", "admin", "gate", "moto", "redis", "mongo", "relay", "relay_stats", "hub_stats", "push_stub", "identity", "demo")
_WARM: Final = ("authorizer", "tokens", "ws_connect", "signal")
_ROOT: Final = Path(__file__).resolve().parent.parent
_OURS: Final = ("HELIOGRAPH_REDIS_URL", "HELIOGRAPH_REDIS_SERVER", service_mongo.URI_ENVIRONMENT)

Report = Callable[[str, str], None]


class Stack:
    """One data folder, one stack. `report` hears (service, state); states start with "starting", end with "ready".

    `redis_mode` cluster starts three nodes, or says that the server named in HELIOGRAPH_REDIS_URL is a cluster. `limits` are the gateway's,
    `settings` (name without prefix -> text) replace those that the laptop gives the functions.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        in_process: bool = False,
        redis_mode: Literal["single", "cluster"] = "single",
        limits: Limits | None = None,
        settings: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        report: Report = lambda name, state: None,
    ) -> None:
        self.data_dir, self.in_process, self.report, self.redis_mode, self.limits = data_dir.resolve(), in_process, report, redis_mode, limits
        self._environ = dict(os.environ if environ is None else environ)
        self._settings = {PREFIX + name: value for name, value in (settings or {}).items()}
        self._cleanup = contextlib.AsyncExitStack()
        self.endpoints: dict[str, Any] = {}
        self.environment: dict[str, str] = {}
        self.started_in_s = 0.0
        self.supervisor: Supervisor
        self.lambdas: Lambdas

    async def __aenter__(self) -> Self:
        started = time.monotonic()
        try:
            await self._start()
        except BaseException:
            await self._cleanup.aclose()
            raise
        self.started_in_s = time.monotonic() - started
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._cleanup.aclose()

    @property
    def endpoints_file(self) -> Path:
        """Where the endpoints are written for other processes (mode 0600: sample passwords and keys stand in it)."""
        return self.data_dir / "endpoints.json"

    async def _start(self) -> None:
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._cleanup.enter_context(_only_one(self.data_dir / "lock"))
        for name in await asyncio.to_thread(end_stale, self.data_dir / "pids.json"):
            self.report(name, "ended: left over from a run that was killed")
        self.redis = service_redis.resolve(self._environ)
        self.ports = self._choose_ports()
        self.redis_cluster = self._redis_cluster()
        self.redis_url = self.redis.url or (self.redis_cluster.url if self.redis_cluster else service_redis.url(self.ports["redis"]))
        self.mongodb_uri = self._environ.get(service_mongo.URI_ENVIRONMENT) or service_mongo.uri(self.ports["mongo"])
        self.secrets = await asyncio.to_thread(self._load_secrets)
        self.supervisor = Supervisor(self.data_dir / "logs", self.data_dir / "pids.json", report=self.report)
        self._cleanup.push_async_callback(self.supervisor.stop)
        await self._start_doors()
        self.environment = self._build_environment()
        async with _first_failure(), asyncio.TaskGroup() as group:
            group.create_task(self._start_redis())
            users = group.create_task(self._start_mongo())
            aws = group.create_task(self._start_aws())
            group.create_task(self._start_relay())
            group.create_task(self._start_hub())
            group.create_task(self._start_lambdas(aws))
        await self._start_poller()
        schedules = Schedules(FUNCTIONS, self._invoke, region=service_aws.REGION)
        self._cleanup.push_async_callback(schedules.close)
        await schedules.start()
        self.endpoints = self._build_endpoints([asdict(user) for user in users.result()])
        if demo.is_built():
            page = await demo.serve(demo.application(self.endpoints), HOST, self.ports["demo"])
            self._cleanup.push_async_callback(page.cleanup)
            self.endpoints["demo_url"] = f"http://{HOST}:{self.ports['demo']}/demo/"
        self._cleanup.callback(self.endpoints_file.unlink, missing_ok=True)
        self._publish()
        self._cleanup.push_async_callback(_ended, asyncio.create_task(self._keep_published()))

    def _choose_ports(self) -> dict[str, int]:
        earlier = read_json(self.data_dir / "ports.json")
        ports = choose_ports(_PORTS, earlier)
        if self.redis_mode == "cluster" and self.redis.binary is not None:
            ports |= service_redis.choose_cluster_ports(earlier)
        write_private_json(self.data_dir / "ports.json", earlier | ports)
        return ports

    def _redis_cluster(self) -> service_redis.Cluster | None:
        if self.redis_mode == "single" or self.redis.binary is None:
            return None
        return service_redis.Cluster(self.redis.binary, [self.ports[name] for name in service_redis.CLUSTER_NODES], self.data_dir / "redis")

    def _load_secrets(self) -> dict[str, Any]:
        push_stub_url = f"http://{HOST}:{self.ports['push_stub']}"
        return service_aws.load_secrets(self.data_dir / "secrets.json", mongodb_uri=self.mongodb_uri, push_stub_url=push_stub_url)

    async def _start_doors(self) -> None:
        """What listens in this process: the gate, the stub, the gateway. Their addresses stand in everybody's settings."""
        keys = self.secrets["aws"]
        known = {keys["access_key_id"]: keys["secret_access_key"]}
        self.gate = AwsGate(self.data_dir / "aws", known, region=service_aws.REGION, upstream=f"http://{HOST}:{self.ports['moto']}")
        self._cleanup.push_async_callback(self.gate.close)
        await self.gate.start(HOST, self.ports["gate"])
        self.push_stub = PushStub(self.secrets["fcm"])
        self._cleanup.push_async_callback(self.push_stub.close)
        await self.push_stub.start(HOST, self.ports["push_stub"])
        self.identity = IdentityStub()
        self._cleanup.push_async_callback(self.identity.close)
        await self.identity.start(HOST, self.ports["identity"])
        credentials = Credentials(keys["access_key_id"], keys["secret_access_key"])
        self._cleanup.push_async_callback(self._close_lambdas)  # after the gateway: a closed socket still has its $disconnect
        self.gateway = Gateway(
            FUNCTIONS, self._invoke, stage=STAGE, region=service_aws.REGION, credentials=credentials, limits=self.limits, allow_origins=("*",)
        )
        self._cleanup.push_async_callback(self.gateway.close)
        await self.gateway.start(HOST, self.ports["rest"], self.ports["socket"], self.ports["admin"])

    async def _invoke(self, name: str, event: object) -> object:
        return await self.lambdas.invoke(name, event)

    async def _close_lambdas(self) -> None:
        if hasattr(self, "lambdas"):
            await self.lambdas.close()

    async def _start_redis(self) -> None:
        if self.redis_cluster is not None:
            await asyncio.gather(*(self.supervisor.start(node) for node in self.redis_cluster.children()))
            self.report("redis cluster", "starting")
            await self.redis_cluster.form()
            self.report("redis cluster", "ready")
        elif self.redis.binary is not None:
            await self.supervisor.start(service_redis.child(self.redis.binary, self.ports["redis"], self.data_dir / "redis"))

    async def _start_mongo(self) -> Any:
        if service_mongo.URI_ENVIRONMENT not in self._environ:
            await self.supervisor.start(service_mongo.child(self.ports["mongo"], self.data_dir / "mongo"))
        self.report("sample data", "starting")
        users = await asyncio.to_thread(seed, self.mongodb_uri, DATABASE, self._providers())
        self.report("sample data", "ready")
        return users

    def _providers(self) -> list[Provider]:
        """Whom the sample tenant trusts: the identity provider of this laptop, as one of OpenID Connect and as a Firebase project."""
        oidc = Provider(SAMPLE_TENANT, self.identity.url, identity_stub.AUDIENCE, "oidc", self.identity.jwks_uri, "create")
        firebase = Provider(SAMPLE_TENANT, FIREBASE_ISSUER + identity_stub.PROJECT, identity_stub.PROJECT, "firebase", self.identity.certificates_url, "create")
        return [oidc, firebase]

    async def _start_aws(self) -> None:
        queues = service_aws.queues_of(FUNCTIONS)
        await self.supervisor.start(service_aws.child(self.gate, self.ports["moto"], queues, self.secrets))

    async def _start_relay(self) -> None:
        relay, stats = f"{HOST}:{self.ports['relay']}", f"{HOST}:{self.ports['relay_stats']}"
        argv = (sys.executable, "-m", "local.relay", "--listen", relay, "--stats", stats, "--realm", REALM, "--secret-env", "HELIOGRAPH_LOCAL_TURN_SECRET")
        secret = {"HELIOGRAPH_LOCAL_TURN_SECRET": self.secrets["turn"]["current"], "PYTHONPATH": str(_ROOT)}
        await self.supervisor.start(Child("relay", argv, lambda: ping_stun(self.ports["relay"]), environment=secret))

    async def _start_hub(self) -> None:
        own = ("HELIOGRAPH_REDIS_URL", "HELIOGRAPH_REDIS_MODE", "HELIOGRAPH_CONNECTIONS_URL")
        settings = {name: value for name, value in self.environment.items() if name in own or name.startswith("AWS_")}
        settings |= {"HELIOGRAPH_HUB_STATS_LISTEN": f"{HOST}:{self.ports['hub_stats']}", "PYTHONPATH": str(_ROOT)}
        environment = {name: "" for name in os.environ if name.startswith("HELIOGRAPH_")} | settings  # an empty one is none
        argv = (sys.executable, "-m", "media_fleet", "hub")
        await self.supervisor.start(Child("hub", argv, lambda: ping_http(self.ports["hub_stats"], "/healthz"), environment=environment))

    async def _start_lambdas(self, aws: Awaitable[None]) -> None:
        self.report("functions", "starting")
        if self.in_process:
            for name in _OURS:
                os.environ.pop(name, None)  # the functions' settings refuse what they do not know
        self.lambdas = Lambdas(FUNCTIONS, environment=self.environment, log_dir=self.data_dir / "logs" / "functions", in_process=self.in_process)
        await self.lambdas.start()
        await aws  # a function may read its secrets while it starts
        await self.lambdas.warm(_WARM)
        self.report("functions", "ready")

    async def _start_poller(self) -> None:
        keys = self.secrets["aws"]
        credentials = Credentials(keys["access_key_id"], keys["secret_access_key"])
        urls = {queue.name: self._queue_url(queue.name) for queue in service_aws.queues_of(FUNCTIONS)}
        poller = QueuePoller(FUNCTIONS, self._invoke, endpoint_url=self.gate.url, queue_urls=urls, region=service_aws.REGION, credentials=credentials)
        self._cleanup.push_async_callback(poller.close)
        await poller.start()

    def _queue_url(self, name: str) -> str:
        return f"{self.gate.url}/{service_aws.ACCOUNT}/{name}"

    def _build_environment(self) -> dict[str, str]:
        """What every function sees: its settings, and AWS's own variables."""
        keys = self.secrets["aws"]
        return {
            "HELIOGRAPH_STAGE": STAGE,
            "HELIOGRAPH_REDIS_URL": self.redis_url,
            "HELIOGRAPH_REDIS_MODE": self.redis_mode,
            "HELIOGRAPH_MONGODB_SECRET_ID": service_aws.SECRET_IDS["mongodb"],
            "HELIOGRAPH_MONGODB_DATABASE": DATABASE,
            "HELIOGRAPH_TOKEN_KEYS_SECRET_ID": service_aws.SECRET_IDS["token_keys"],
            "HELIOGRAPH_TURN_SECRET_ID": service_aws.SECRET_IDS["turn"],
            "HELIOGRAPH_FCM_SECRET_ID": service_aws.SECRET_IDS["fcm"],
            "HELIOGRAPH_FCM_URL": self.push_stub.url,
            "HELIOGRAPH_ISSUER": self.gateway.http_url,
            "HELIOGRAPH_AUDIENCE": "heliograph",
            "HELIOGRAPH_CONNECTIONS_URL": self.gateway.connections_url,
            "HELIOGRAPH_MEDIA_BUCKET": service_aws.BUCKET,
            "HELIOGRAPH_MEDIA_KMS_KEY_ID": service_aws.KEY_ALIAS,
            **{f"HELIOGRAPH_{queue.name.upper()}_QUEUE_URL": self._queue_url(queue.name) for queue in service_aws.queues_of(FUNCTIONS)},
            "HELIOGRAPH_TURN_URLS": f"turn:{HOST}:{self.ports['relay']}?transport=udp",
            "HELIOGRAPH_TURN_REALM": REALM,
            "HELIOGRAPH_PRIVATE_CANDIDATES": "pass",  # everybody is on this machine
            "HELIOGRAPH_LIMITS": ONE_MACHINE,
            "AWS_REGION": service_aws.REGION,
            "AWS_ACCESS_KEY_ID": keys["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": keys["secret_access_key"],
            **{f"AWS_ENDPOINT_URL_{name}": self.gate.url for name in ("S3", "SQS", "SECRETS_MANAGER", "KMS")},
            **self._settings,
        }

    def _build_endpoints(self, users: list[dict[str, str]]) -> dict[str, Any]:
        relay = {"url": f"turn:{HOST}:{self.ports['relay']}", "host": HOST, "port": self.ports["relay"], "realm": REALM}
        return {
            "rest_url": self.gateway.http_url,
            "socket_url": self.gateway.socket_url,
            "connections_url": self.gateway.connections_url,
            "admin_url": self.gateway.admin_url,
            **{f"{name}_url": self.gate.url for name in ("s3", "sqs", "secrets_manager", "kms")},
            "notifications_queue_url": self._queue_url("notifications"),
            "dead_letter_queue_url": self._queue_url("notifications-dead"),
            "media_bucket": service_aws.BUCKET,
            "aws": {"region": service_aws.REGION, **self.secrets["aws"]},
            "relay": {**relay, "stats_url": f"http://{HOST}:{self.ports['relay_stats']}/allocations"},
            "hub_stats_url": f"http://{HOST}:{self.ports['hub_stats']}/hub",
            "push_stub_url": self.push_stub.url,
            "identity_url": self.identity.url,
            "redis_url": self.redis_url,
            "redis_mode": self.redis_mode,
            "mongodb_uri": self.mongodb_uri,
            "mongodb_database": DATABASE,
            "log_dir": str(self.data_dir / "logs"),
            "users": users,
        }

    def pids(self) -> dict[str, Any]:
        """This process, its children by name, and the living workers of each function."""
        return {"stack": os.getpid(), **self.supervisor.pids(), "functions": {} if self.in_process else self.lambdas.pids()}

    def _publish(self) -> None:
        self.endpoints["pids"] = self.pids()
        write_private_json(self.endpoints_file, self.endpoints)

    async def _keep_published(self) -> None:
        """Workers come and go; the file follows within a second."""
        while True:
            await asyncio.sleep(1)
            if self.endpoints["pids"] != self.pids():
                self._publish()


@contextlib.contextmanager
def _only_one(path: Path) -> Any:
    """Hold the folder: the lock goes with the process, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalError(f"Heliograph already runs in {path.parent}; end it, or choose another folder with --data.") from None
        yield


@contextlib.asynccontextmanager
async def _first_failure() -> AsyncIterator[None]:
    """One sentence instead of an exception group."""
    try:
        yield
    except BaseExceptionGroup as group:
        failure: BaseException = group
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure from None


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
