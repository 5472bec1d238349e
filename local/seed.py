"""Sample data of the laptop: two people of one tenant and one of a foreign tenant. Running it again changes nothing."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapters import mongo_client
from adapters.accounts_mongo import Account, Accounts
from adapters.identities_mongo import Identities
from adapters.migrations_mongo import migrate
from adapters.passwords_argon2 import hashed
from adapters.settings import now_ms
from heliograph.identities import Provider
from heliograph.ids import new_id


@dataclass(frozen=True, slots=True)
class SampleUser:
    login: str
    password: str
    tenant_id: str
    account_id: str
    role: str


SAMPLE_TENANT = "acme"
_SAMPLES = (("ana", SAMPLE_TENANT, "member"), ("ben", SAMPLE_TENANT, "member"), ("olga", SAMPLE_TENANT, "admin"), ("mallory", "globex", "member"))


def seed(mongodb_uri: str, database: str, providers: Iterable[Provider] = (), passwords: Mapping[str, str] | None = None) -> list[SampleUser]:
    """Creates collections, indexes, the sample accounts and the trust in these providers; a known account keeps its id.

    Passwords default to `<login>-on-a-hill`.
    """
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
    for provider in providers:
        Identities(db).put_provider(provider)
    db.client.close()
    return users
