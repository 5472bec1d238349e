"""Collections, their validators and indexes. Running it again changes nothing.

Every unique index starts with tenant_id and the document's owner, which is also the shard key: a sharded cluster accepts them unchanged.
"""

from __future__ import annotations

from typing import Any

from adapters.mongo_client import translated

_TEXT, _WHOLE = {"bsonType": "string"}, {"bsonType": ["int", "long"]}

# collection -> (required fields with their types, unique indexes, other indexes)
COLLECTIONS: dict[str, tuple[dict[str, Any], list[list[str]], list[list[str]]]] = {
    "accounts": (
        {"tenant_id": _TEXT, "account_id": _TEXT, "login": _TEXT, "role": _TEXT},
        [["tenant_id", "account_id"], ["tenant_id", "login"]],
        [],
    ),
    "sessions": (
        {"tenant_id": _TEXT, "account_id": _TEXT, "device_id": _TEXT, "sid": _TEXT, "refresh_hash": _TEXT, "salt": _TEXT, "n": _WHOLE, "expires_at_ms": _WHOLE},
        [["tenant_id", "account_id", "sid"]],
        [],
    ),
    "identity_providers": (
        {"tenant_id": _TEXT, "issuer": _TEXT, "audience": _TEXT, "kind": _TEXT, "jwks_uri": _TEXT, "provisioning": _TEXT},
        [["tenant_id", "issuer"]],
        [],
    ),
    "identities": (
        {"tenant_id": _TEXT, "issuer": _TEXT, "subject": _TEXT, "account_id": _TEXT},
        [["tenant_id", "issuer", "subject"]],
        [["tenant_id", "account_id"]],
    ),
    "devices": ({"tenant_id": _TEXT, "account_id": _TEXT, "device_id": _TEXT}, [["tenant_id", "account_id", "device_id"]], []),
    "rooms": ({"tenant_id": _TEXT, "room_id": _TEXT, "name": _TEXT, "epoch": _TEXT}, [["tenant_id", "room_id"]], [["tenant_id", "members.account_id"]]),
    "room_events": (
        {"tenant_id": _TEXT, "room_id": _TEXT, "epoch": _TEXT, "offset": _WHOLE, "device_id": _TEXT, "message_id": _TEXT},
        [["tenant_id", "room_id", "epoch", "offset"], ["tenant_id", "room_id", "device_id", "message_id"]],
        [],
    ),
    "media": ({"tenant_id": _TEXT, "media_id": _TEXT, "room_id": _TEXT, "sha256": _TEXT, "state": _TEXT}, [["tenant_id", "media_id"]], []),
    "ledger": ({"tenant_id": _TEXT, "seq": _WHOLE, "hash": _TEXT, "prev_hash": _TEXT}, [["tenant_id", "seq"]], []),
    "room_live": ({"tenant_id": _TEXT, "room_id": _TEXT, "connection_id": _TEXT}, [["tenant_id", "room_id", "connection_id"]], []),
    "used_tickets": ({"tenant_id": _TEXT, "account_id": _TEXT, "jti": _TEXT}, [["tenant_id", "account_id", "jti"]], []),
    "pushes": ({"tenant_id": _TEXT, "notification_id": _TEXT, "device_id": _TEXT, "state": _TEXT}, [["tenant_id", "notification_id", "device_id"]], []),
}


def migrate(database: Any) -> None:
    """Creates what is missing."""
    from pymongo import ASCENDING

    with translated():
        existing = set(database.list_collection_names())
        for name, (fields, unique, plain) in COLLECTIONS.items():
            validator = {"$jsonSchema": {"bsonType": "object", "required": [*fields, "schema_version"], "properties": fields}}
            if name in existing:
                database.command("collMod", name, validator=validator)
            else:
                database.create_collection(name, validator=validator)
            for keys in unique:
                database[name].create_index([(key, ASCENDING) for key in keys], unique=True)
            for keys in plain:
                database[name].create_index([(key, ASCENDING) for key in keys])
        if "idempotency" not in existing:
            database.create_collection("idempotency")
        for name in ("idempotency", "room_live", "used_tickets", "sessions"):
            database[name].create_index("expires_at", expireAfterSeconds=0)
        database.sessions.delete_many({"schema_version": 1})  # their refresh tokens are of another form: these devices sign in again
