"""Account profiles and the push targets of their devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapters.mongo_client import translated
from heliograph.push import Target


@dataclass(frozen=True, slots=True)
class Account:
    """A person, or a service. Who signs in by an identity provider or an assertion has no `password_hash`, and the account id as `login`.

    `service_keys` are a service's public keys, `{kid, public_pem}` each.
    """

    tenant_id: str
    account_id: str
    login: str
    password_hash: str | None
    role: str
    service_keys: tuple[dict[str, str], ...] = ()


class Accounts:
    def __init__(self, database: Any) -> None:
        self._db = database

    def put(self, account: Account) -> None:
        """Stores or replaces the account of this login."""
        document = {name: getattr(account, name) for name in Account.__slots__} | {"service_keys": list(account.service_keys), "schema_version": 2}
        with translated():
            self._db.accounts.replace_one({"tenant_id": account.tenant_id, "login": account.login}, document, upsert=True)

    def by_login(self, tenant_id: str, login: str) -> Account | None:
        with translated():
            return _account(self._db.accounts.find_one({"tenant_id": tenant_id, "login": login}))

    def by_id(self, tenant_id: str, account_id: str) -> Account | None:
        with translated():
            return _account(self._db.accounts.find_one({"tenant_id": tenant_id, "account_id": account_id}))

    def has_tenant(self, tenant_id: str) -> bool:
        """Whether the tenant has any account."""
        with translated():
            return self._db.accounts.find_one({"tenant_id": tenant_id}, {"_id": 1}) is not None

    def set_role(self, tenant_id: str, account_id: str, role: str) -> None:
        with translated():
            self._db.accounts.update_one({"tenant_id": tenant_id, "account_id": account_id}, {"$set": {"role": role}})

    def known(self, tenant_id: str, account_ids: list[str]) -> set[str]:
        """Which of these accounts exist in the tenant."""
        with translated():
            found = self._db.accounts.find({"tenant_id": tenant_id, "account_id": {"$in": account_ids}}, {"account_id": 1})
            return {item["account_id"] for item in found}

    def put_push_target(self, tenant_id: str, account_id: str, target: Target, now_ms: int) -> None:
        owner = {"tenant_id": tenant_id, "account_id": account_id, "device_id": target.device_id}
        fields = {"target_kind": target.kind, "target": target.value, "target_at_ms": now_ms, "schema_version": 1}
        with translated():
            self._db.devices.update_one(owner, {"$set": fields}, upsert=True)

    def push_targets(self, tenant_id: str, account_id: str) -> list[Target]:
        with translated():
            found = list(self._db.devices.find({"tenant_id": tenant_id, "account_id": account_id, "target": {"$exists": True}}))
        return [Target(item["device_id"], item["target_kind"], item["target"]) for item in found]

    def drop_push_target(self, tenant_id: str, account_id: str, target: Target) -> None:
        """Forgets a dead target, unless the device registered another one meanwhile."""
        owner = {"tenant_id": tenant_id, "account_id": account_id, "device_id": target.device_id, "target": target.value}
        with translated():
            self._db.devices.update_one(owner, {"$unset": {"target": "", "target_kind": ""}})


def _account(found: dict[str, Any] | None) -> Account | None:
    if found is None:
        return None
    known = {name: found[name] for name in Account.__slots__ if name in found}
    return Account(**known | {"service_keys": tuple(found.get("service_keys", ()))})
