"""The ledger's password changes under a running function: it asks Secrets Manager again and goes on, and does not ask at every request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from adapters import migrations_mongo, mongo_client, settings
from adapters.settings import PREFIX, Settings
from functions import wiring
from heliograph.errors import Unavailable
from tests.contract.secrets_stub import Secrets, secrets_stub
from tests.mongo_with_login import MongoWithLogin, mongo_with_login


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoWithLogin]:
    with mongo_with_login(tmp_path_factory.mktemp("guarded")) as running:
        yield running


@pytest.fixture
def secret() -> Iterator[Secrets]:
    with secrets_stub() as server:
        yield server


@pytest.fixture
def name(guarded: MongoWithLogin, tmp_path: Path) -> str:
    """A database and a user of this test's own, by one name."""
    return "own-" + tmp_path.name[:20].replace("_", "-")


@pytest.fixture
def function(guarded: MongoWithLogin, secret: Secrets, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as a Lambda environment that has just answered a request."""
    for item in fields(Settings):
        if item.default is MISSING:
            monkeypatch.setenv(PREFIX + item.name.upper(), "x")
    monkeypatch.setenv("HELIOGRAPH_MONGODB_DATABASE", name)
    for variable, value in (("AWS_REGION", "eu-west-1"), ("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "x")):
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://127.0.0.1:{secret.server_port}")
    monkeypatch.setattr(mongo_client, "_refused", mongo_client._Refused())
    for each in (settings.settings, wiring.database, wiring.accounts):
        each.cache_clear()
    secret.uri = guarded.add_user(name, "one", name)
    migrations_mongo.run(secret.uri, name, within_s=20)
    assert not ask()
    yield
    for each in (settings.settings, wiring.database, wiring.accounts):
        each.cache_clear()
    guarded.root.drop_database(name)


def ask() -> bool:
    """A question to the ledger, on a connection that was not there before: the pool gives one up after a minute."""
    wiring.database().client._topology.open()
    for server in wiring.database().client._topology._servers.values():
        server.pool.reset()
    return wiring.accounts().has_tenant("t")


def test_another_password_costs_one_refusal_and_no_restart(guarded: MongoWithLogin, secret: Secrets, name: str, function: None) -> None:
    guarded.root.admin.command("updateUser", name, pwd="two")
    secret.uri = guarded.uri(name, "two")
    with pytest.raises(Unavailable) as refused:
        ask()
    assert refused.value.retryable
    assert not ask()
    assert secret.reads == 2


def test_a_secret_that_is_still_the_old_one_is_not_read_at_every_request(
    guarded: MongoWithLogin, secret: Secrets, name: str, function: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded.root.admin.command("updateUser", name, pwd="two")
    for _ in range(4):
        with pytest.raises(Unavailable):
            ask()
    assert secret.reads == 2, "the second read found the old password; the next one waits"
    secret.uri = guarded.uri(name, "two")
    monkeypatch.setattr(mongo_client, "COUNTED_AGAIN_S", 0.0)
    assert not ask()
    assert secret.reads == 3


def test_another_user_takes_over_without_a_refusal_where_both_are_good(guarded: MongoWithLogin, secret: Secrets, name: str, function: None) -> None:
    """The way docs/operations.md names: the new user is there before the old one goes."""
    secret.uri = guarded.add_user(f"{name}-b", "b", name)
    assert not ask(), "the old user is still good"
    assert secret.reads == 1
    for each in (wiring.database, wiring.accounts):  # a new process
        each.cache_clear()
    guarded.root.admin.command("dropUser", name)
    assert not ask()


def test_an_unreachable_secret_is_an_outage_that_ends(guarded: MongoWithLogin, secret: Secrets, name: str, function: None) -> None:
    guarded.root.admin.command("updateUser", name, pwd="two")
    with pytest.raises(Unavailable):
        ask()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", "http://127.0.0.1:1")
        with pytest.raises(Unavailable):
            ask()
    secret.uri = guarded.uri(name, "two")
    assert not ask()
