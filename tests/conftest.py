"""Real stores for the tests: one Redis and one MongoDB server for the whole run, started as the laptop starts them."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from adapters import migrations_mongo, mongo_client, redis_client
from local import service_mongo, service_redis
from local.services import choose_ports
from local.supervisor import Supervisor
from tests.running import RunningStack, running_stack

# No test fails for being slow, hypothesis' own examples included.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@dataclass(frozen=True, slots=True)
class Stores:
    """Where the servers listen."""

    redis_url: str
    mongodb_uri: str


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    folder: Path = tmp_path_factory.mktemp("stores")
    ports = choose_ports(("redis", "mongo"), {})
    binary = service_redis.resolve({}).binary
    assert binary is not None
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    supervisor = Supervisor(folder / "logs", folder / "pids.json")
    children = (service_redis.child(binary, ports["redis"], folder / "redis"), service_mongo.child(ports["mongo"], folder / "mongo"))
    try:
        for child in children:
            asyncio.run_coroutine_threadsafe(supervisor.start(child), loop).result(40)
        yield Stores(service_redis.url(ports["redis"]), service_mongo.uri(ports["mongo"]))
    finally:
        asyncio.run_coroutine_threadsafe(supervisor.stop(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.fixture(scope="session")
def database(stores: Stores) -> Iterator[Any]:
    """The ledger's database, migrated."""
    db = mongo_client.connect(stores.mongodb_uri, "heliograph")
    migrations_mongo.migrate(db)
    yield db
    db.client.close()


@pytest.fixture(scope="session")
def redis_server(stores: Stores) -> Iterator[Any]:
    """The session store's client."""
    client = redis_client.connect(stores.redis_url, "single")
    yield client
    client.close()


@pytest.fixture
def tenant_id() -> str:
    """A tenant of this test's own: tests share the servers, not the data."""
    return "t-" + secrets.token_hex(6)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The whole product, up for the whole run."""
    with running_stack(tmp_path_factory.mktemp("stack")) as running:
        yield running
