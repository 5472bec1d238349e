"""Account profiles, their sessions and the push targets of their devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapters.mongo_client import translated
from heliograph.push import Target

KEPT_USED_HASHES = 50


@dataclass(frozen=True, slots=True)
class Account:
    tenant_id: str
    account_id: str
    login: str
    password_hash: str
    role: str


@dataclass(frozen=True, slots=True)
class Session:
    """A sign-in of one device; only the hash of its live refresh token is stored."""

    tenant_id: str
    account_id: str
    device_id: str
    sid: str
    role: str
    refresh_hash: str
    expires_at_ms: int


class Accounts:
    def __init__(self, database: Any) -> None:
        self._db = database

    def put(self, account: Account) -> None:
        """Stores or replaces the account of this login."""
        document = {name: getattr(account, name) for name in Account.__slots__} | {"schema_version": 1}
        with translated():
            self._db.accounts.replace_one({"tenant_id": account.tenant_id, "login": account.login}, document, upsert=True)

    def by_login(self, tenant_id: str, login: str) -> Account | None:
        with translated():
            found = self._db.accounts.find_one({"tenant_id": tenant_id, "login": login})
        return Account(**{name: found[name] for name in Account.__slots__}) if found else None

    def known(self, tenant_id: str, account_ids: list[str]) -> set[str]:
        """Which of these accounts exist in the tenant."""
        with translated():
            found = self._db.accounts.find({"tenant_id": tenant_id, "account_id": {"$in": account_ids}}, {"account_id": 1})
            return {item["account_id"] for item in found}

    def start_session(self, session: Session) -> None:
        """Stores the session; an earlier one of the same device ends."""
        owner = {"tenant_id": session.tenant_id, "account_id": session.account_id}
        document = {name: getattr(session, name) for name in Session.__slots__} | {"used_hashes": [], "schema_version": 1}
        with translated():
            self._db.sessions.insert_one(document)
            self._db.sessions.delete_many(owner | {"device_id": session.device_id, "sid": {"$ne": session.sid}})

    def rotate(self, old_hash: str, new_hash: str, now_ms: int, expires_at_ms: int) -> Session | None:
        """Swaps the live refresh token for its successor, atomically. None when it is unknown, expired or used.

        A used one ends the whole session: somebody else has it (RFC 9700, 4.14).
        """
        with translated():
            found = self._db.sessions.find_one_and_update(
                {"refresh_hash": old_hash, "expires_at_ms": {"$gt": now_ms}},
                {
                    "$set": {"refresh_hash": new_hash, "expires_at_ms": expires_at_ms},
                    "$push": {"used_hashes": {"$each": [old_hash], "$slice": -KEPT_USED_HASHES}},
                },
            )
            if found is None:
                self._db.sessions.delete_many({"used_hashes": old_hash})
                return None
        return Session(**{name: found[name] for name in Session.__slots__})

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
