"""Which identity providers a tenant trusts, and which account belongs to whom there."""

from __future__ import annotations

from typing import Any

from adapters.mongo_client import translated
from heliograph.errors import Conflict
from heliograph.identities import Provider, Subject


class Identities:
    def __init__(self, database: Any) -> None:
        self._db = database

    def provider(self, tenant_id: str, issuer: str) -> Provider | None:
        """The provider of this issuer, if the tenant trusts it."""
        with translated():
            found = self._db.identity_providers.find_one({"tenant_id": tenant_id, "issuer": issuer})
        return _provider(found) if found else None

    def providers(self, tenant_id: str) -> list[Provider]:
        with translated():
            return [_provider(item) for item in self._db.identity_providers.find({"tenant_id": tenant_id}).sort("issuer", 1)]

    def put_provider(self, provider: Provider) -> None:
        """Stores or replaces the tenant's provider of that issuer."""
        document = {name: getattr(provider, name) for name in Provider.__slots__} | {"schema_version": 1}
        with translated():
            self._db.identity_providers.replace_one({"tenant_id": provider.tenant_id, "issuer": provider.issuer}, document, upsert=True)

    def account_of(self, tenant_id: str, subject: Subject) -> str | None:
        """The account that is linked to this person, if one is."""
        with translated():
            found = self._db.identities.find_one(_key(tenant_id, subject), {"account_id": 1})
        return str(found["account_id"]) if found else None

    def link(self, tenant_id: str, subject: Subject, account_id: str) -> None:
        """Links the person to the account; again changes nothing. Conflict when they belong to another account: of two at once, one wins."""
        from pymongo.errors import DuplicateKeyError

        try:
            with translated():
                self._db.identities.insert_one({**_key(tenant_id, subject), "account_id": account_id, "schema_version": 1})
        except DuplicateKeyError:
            if self.account_of(tenant_id, subject) != account_id:
                raise Conflict("This person is linked to another account.") from None


def _key(tenant_id: str, subject: Subject) -> dict[str, Any]:
    return {"tenant_id": tenant_id, "issuer": subject.issuer, "subject": subject.subject}


def _provider(found: dict[str, Any]) -> Provider:
    return Provider(**{name: found[name] for name in Provider.__slots__})
