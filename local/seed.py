"""Sample data of the laptop: two people of one tenant and one of a foreign tenant. Running it again changes nothing."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from adapters import mongo_client
from adapters.accounts_mongo import Account, Accounts
from adapters.migrations_mongo import migrate
from adapters.passwords_argon2 import hashed
from adapters.settings import now_ms
from heliograph.ids import new_id


@dataclass(frozen=True, slots=True)
class SampleUser:
    login: str
    password: str
    tenant_id: str
    account_id: str
    role: str


_SAMPLES = (("ana", "acme", "member"), ("ben", "acme", "member"), ("olga", "acme", "admin"), ("mallory", "globex", "member"))


def seed(mongodb_uri: str, database: str, passwords: Mapping[str, str] | None = None) -> list[SampleUser]:
    """Creates collections, indexes and the sample accounts; a known account keeps its id. Passwords default to `<login>-on-a-hill`."""
    db = mongo_client.connect(mongodb_uri, database)
    migrate(db)
    accounts, users = Accounts(db), []
    for login, tenant_id, role in _SAMPLES:
        password = (passwords or {}).get(login, f"{login}-on-a-hill")
        known = accounts.by_login(tenant_id, login)
        account_id = known.account_id if known else new_id("acc", now_ms(), secrets.token_bytes(10))
        if known is None:
            accounts.put(Account(tenant_id, account_id, login, hashed(password), role))
        users.append(SampleUser(login, password, tenant_id, account_id, role))
    db.client.close()
    return users
