"""What the ledger's database must be like, and the steps from what is there to that. Running it again changes nothing.

Every unique index starts with the collection's shard key, and that with tenant_id: a sharded cluster accepts them unchanged. Why each key: `Collection.why`,
and docs/decisions/0014-shard-keys-and-migrations.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from adapters import mongo_client

REACHED_S: Final = 10.0
_TEXT, _WHOLE = {"bsonType": "string"}, {"bsonType": ["int", "long"]}
_OPTIONS: Final = ("unique", "expireAfterSeconds", "partialFilterExpression", "sparse", "collation")
_MAJORITY: Final = {"w": "majority"}
_EXISTS, _UNAUTHORISED, _BAD_LOGIN, _DUPLICATE = 48, 13, (18, 8000), 11000  # 8000: Atlas' own word for a bad login


@dataclass(frozen=True, slots=True)
class Collection:
    """What one collection must be like. `why` says why its documents are divided among shards by `shard_key`.

    `fields` are required, beside schema_version; `is_expiring`: MongoDB removes a document at its `expires_at`. `version` is what the adapters write;
    `upgrades` says what becomes of documents of an older version: these fields are set, or with None the document is removed.
    """

    fields: Mapping[str, Any]
    shard_key: tuple[str, ...]
    why: str
    unique: tuple[tuple[str, ...], ...]
    plain: tuple[tuple[str, ...], ...] = ()
    is_expiring: bool = False
    version: int = 1
    upgrades: Mapping[int, Mapping[str, Any] | None] = field(default_factory=dict)

    @property
    def validator(self) -> dict[str, Any]:
        return {"$jsonSchema": {"bsonType": "object", "required": [*self.fields, "schema_version"], "properties": {**self.fields, "schema_version": _WHOLE}}}

    @property
    def indexes(self) -> list[dict[str, Any]]:
        """Each as `createIndexes` takes it."""
        expiring = [{**_index(("expires_at",)), "expireAfterSeconds": 0}] if self.is_expiring else []
        return [*({**_index(keys), "unique": True} for keys in self.unique), *map(_index, self.plain), *expiring]


def _index(keys: tuple[str, ...]) -> dict[str, Any]:
    return {"key": dict.fromkeys(keys, 1), "name": "_".join(f"{key}_1" for key in keys)}


COLLECTIONS: Final[dict[str, Collection]] = {
    "accounts": Collection(
        {"tenant_id": _TEXT, "account_id": _TEXT, "login": _TEXT, "role": _TEXT},
        ("tenant_id",),
        "An account is unique by id and by login, and both must start with the key. A tenant's accounts fit one shard: a million are about 1 GB.",
        unique=(("tenant_id", "account_id"), ("tenant_id", "login")),
        version=2,
        upgrades={1: {"service_keys": [], "schema_version": 2}},
    ),
    "sessions": Collection(
        {"tenant_id": _TEXT, "account_id": _TEXT, "device_id": _TEXT, "sid": _TEXT, "refresh_hash": _TEXT, "salt": _TEXT, "n": _WHOLE, "expires_at_ms": _WHOLE},
        ("tenant_id", "account_id"),
        "Every question is about one account; what an account has lies together.",
        unique=(("tenant_id", "account_id", "sid"),),
        is_expiring=True,
        version=2,
        upgrades={1: None},  # their refresh tokens are of another form: these devices sign in again
    ),
    "identity_providers": Collection(
        {"tenant_id": _TEXT, "issuer": _TEXT, "audience": _TEXT, "kind": _TEXT, "jwks_uri": _TEXT, "provisioning": _TEXT},
        ("tenant_id",),
        "A handful for each tenant, listed together.",
        unique=(("tenant_id", "issuer"),),
    ),
    "identities": Collection(
        {"tenant_id": _TEXT, "issuer": _TEXT, "subject": _TEXT, "account_id": _TEXT},
        ("tenant_id", "issuer", "subject"),
        "A sign-in asks for one subject of one issuer.",
        unique=(("tenant_id", "issuer", "subject"),),
        plain=(("tenant_id", "account_id"),),
    ),
    "devices": Collection(
        {"tenant_id": _TEXT, "account_id": _TEXT, "device_id": _TEXT},
        ("tenant_id", "account_id"),
        "A push asks for all devices of one account.",
        unique=(("tenant_id", "account_id", "device_id"),),
    ),
    "rooms": Collection(
        {"tenant_id": _TEXT, "room_id": _TEXT, "name": _TEXT, "epoch": _TEXT},
        ("tenant_id", "room_id"),
        "Every frame asks for one room; the list of a member's rooms asks only the shards that hold the tenant.",
        unique=(("tenant_id", "room_id"),),
        plain=(("tenant_id", "members.account_id"),),
    ),
    "room_events": Collection(
        {"tenant_id": _TEXT, "room_id": _TEXT, "epoch": _TEXT, "offset": _WHOLE, "device_id": _TEXT, "message_id": _TEXT},
        ("tenant_id", "room_id"),
        "A room's stream has two unique rules, on offsets and on messages, and both share only the room: its order is decided on one shard.",
        unique=(("tenant_id", "room_id", "epoch", "offset"), ("tenant_id", "room_id", "device_id", "message_id")),
    ),
    "media": Collection(
        {"tenant_id": _TEXT, "media_id": _TEXT, "room_id": _TEXT, "sha256": _TEXT, "state": _TEXT},
        ("tenant_id", "media_id"),
        "Always asked for by id.",
        unique=(("tenant_id", "media_id"),),
    ),
    "ledger": Collection(
        {"tenant_id": _TEXT, "seq": _WHOLE, "hash": _TEXT, "prev_hash": _TEXT},
        ("tenant_id", "seq"),
        "A tenant's chain grows at one end and is read in order: ranges keep neighbours together and let the old part move to another shard.",
        unique=(("tenant_id", "seq"),),
    ),
    "relay_usage": Collection(
        {
            **dict.fromkeys(("tenant_id", "account_id", "device_id", "allocation_id", "node_id", "relayed_address"), _TEXT),
            **dict.fromkeys(("from_client_bytes", "to_client_bytes", "from_client_packets", "to_client_packets"), _WHOLE),
            **dict.fromkeys(("started_at_ms", "updated_at_ms"), _WHOLE),
        },
        ("tenant_id", "account_id"),
        "Usage is written and summed account by account; a tenant's sum asks only the shards that hold the tenant.",
        unique=(("tenant_id", "account_id", "allocation_id"),),
        plain=(("tenant_id", "started_at_ms"),),
    ),
    "room_live": Collection(
        {"tenant_id": _TEXT, "room_id": _TEXT, "connection_id": _TEXT},
        ("tenant_id", "room_id"),
        "Who is live is asked for one room at a time.",
        unique=(("tenant_id", "room_id", "connection_id"),),
        is_expiring=True,
    ),
    "used_tickets": Collection(
        {"tenant_id": _TEXT, "account_id": _TEXT, "jti": _TEXT},
        ("tenant_id", "account_id"),
        "The first use is marked once, for one account.",
        unique=(("tenant_id", "account_id", "jti"),),
        is_expiring=True,
    ),
    "pushes": Collection(
        {"tenant_id": _TEXT, "notification_id": _TEXT, "device_id": _TEXT, "state": _TEXT},
        ("tenant_id", "notification_id"),
        "A queue message asks for one notification.",
        unique=(("tenant_id", "notification_id", "device_id"),),
    ),
    "idempotency": Collection(
        {"tenant_id": _TEXT, "status": _TEXT},
        ("tenant_id", "_id"),
        "The key of a request is the document's _id; a cluster keeps an _id unique only within a shard, so it is part of the key.",
        unique=(("tenant_id", "_id"),),
        is_expiring=True,
        version=2,
        upgrades={1: None},  # without a tenant: kept for a day at most, and never deployed
    ),
}


class MigrationRefused(Exception):
    """The migration stopped; the text is one sentence that says what to do. `done` is what had been done before: it stays, and the next run goes on."""

    def __init__(self, sentence: str, done: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.done = done


@dataclass(frozen=True, slots=True)
class Found:
    """What there is: validators and indexes by collection, (collection, version) of documents that are to be upgraded, and on a mongos the shard keys."""

    validators: Mapping[str, Any] = field(default_factory=dict)
    indexes: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    outdated: frozenset[tuple[str, int]] = frozenset()
    shard_keys: Mapping[str, tuple[str, ...]] | None = None  # None: this is not a mongos


@dataclass(frozen=True, slots=True)
class Step:
    """One command and what it does, in words. `about` is the collection; commands of sharding go to the database `admin`."""

    says: str
    command: Mapping[str, Any]
    about: str
    is_admin: bool = False


def fingerprint() -> str:
    """Changes when what `migrate` makes changes."""
    table = {name: asdict(collection) for name, collection in COLLECTIONS.items()}
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def plan(database: str, found: Found) -> list[Step]:
    """The steps that are missing; the next run goes on after any of them. MigrationRefused, before anything is done, for what a person must decide."""
    steps = [step for name in COLLECTIONS for step in _steps_of(name, found)]
    return steps + (_sharding(database, found.shard_keys) if found.shard_keys is not None else [])


def run(uri: str, database: str, *, within_s: float, is_rehearsal: bool = False) -> list[str]:
    """`migrate` on a connection of its own."""
    try:
        with _refusals("connect", []):
            connected = mongo_client.connect(uri, database)
    except ValueError:  # PyMongo's word for a port that is no number
        raise MigrationRefused("The URI is not one that MongoDB's driver takes: put the right one into the secret and run migrate again.") from None
    try:
        return migrate(connected, within_s=within_s, is_rehearsal=is_rehearsal)
    finally:
        connected.client.close()


def migrate(database: Any, *, within_s: float | None = None, is_rehearsal: bool = False) -> list[str]:
    """Does what is missing, or with `is_rehearsal` only says it; returns it in words. MigrationRefused when it had to stop, also after `within_s` seconds."""
    import pymongo

    done: list[str] = []
    with pymongo.timeout(within_s):
        with _refusals("look at what there is", done):
            with pymongo.timeout(min(within_s or REACHED_S, REACHED_S)):  # PyMongo would look for a server for as long as the whole may take
                database.client.admin.command("ping")
            steps = plan(database.name, _look(database))
        for step in [] if is_rehearsal else steps:
            with _refusals(step.says, done):
                _do(database, step)
            done.append(step.says)
    return [step.says for step in steps]


def _steps_of(name: str, found: Found) -> Iterator[Step]:
    """Documents are upgraded before the rules that they must meet are set."""
    wanted = COLLECTIONS[name]
    if name not in found.validators:
        yield Step(f"create collection {name}", {"create": name, "validator": wanted.validator}, name)
    for version, fields in wanted.upgrades.items():
        if (name, version) in found.outdated:
            yield _upgrade(name, version, fields)
    for index in wanted.indexes:
        if not _is_there(name, index, found.indexes.get(name, [])):
            words = ", ".join(index["key"]) + (" unique" if index.get("unique") else "")
            yield Step(f"create index {name} ({words})", {"createIndexes": name, "indexes": [index]}, name)
    if found.validators.get(name, wanted.validator) != wanted.validator:
        yield Step(f"change validator of {name}", {"collMod": name, "validator": wanted.validator}, name)


def _upgrade(name: str, version: int, fields: Mapping[str, Any] | None) -> Step:
    query = {"schema_version": version}
    if fields is None:
        return Step(f"remove documents of version {version} from {name}", {"delete": name, "deletes": [{"q": query, "limit": 0}]}, name)
    change = {"q": query, "u": {"$set": dict(fields)}, "multi": True}
    return Step(f"bring documents of version {version} in {name} to version {fields['schema_version']}", {"update": name, "updates": [change]}, name)


def _is_there(name: str, wanted: Mapping[str, Any], existing: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the index exists, under whatever name. MigrationRefused for one that stands in its way."""
    for index in existing:
        is_same = list(index["key"].items()) == list(wanted["key"].items())
        if is_same and _options(index) == _options(wanted):
            return True
        if is_same or index["name"] == wanted["name"]:
            raise MigrationRefused(
                f"The index {index['name']} of {name} has other keys or options ({_words(index)}) than it must have ({_words(wanted)}): drop it in mongosh "
                f'with db.{name}.dropIndex("{index["name"]}") and run migrate again at once.'
            )
    return False


def _options(index: Mapping[str, Any]) -> dict[str, Any]:
    return {name: index[name] for name in _OPTIONS if index.get(name) not in (None, False)}


def _words(index: Mapping[str, Any]) -> str:
    return json.dumps({"key": dict(index["key"]), **_options(index)}, default=str)


def _sharding(database: str, existing: Mapping[str, tuple[str, ...]]) -> list[Step]:
    """`enableSharding` and one `shardCollection` for each collection that is not sharded yet. Ranged keys: a hashed one could not hold a unique rule."""
    steps = []
    for name, wanted in COLLECTIONS.items():
        if (key := existing.get(name)) is None:
            command = {"shardCollection": f"{database}.{name}", "key": dict.fromkeys(wanted.shard_key, 1)}
            steps.append(Step(f"shard {name} by {', '.join(wanted.shard_key)}", command, name, is_admin=True))
        elif key != wanted.shard_key:
            raise MigrationRefused(
                f"{name} is sharded by {', '.join(key)} and must be by {', '.join(wanted.shard_key)}: change it in mongosh with sh.reshardCollection, "
                "which copies the collection, and run migrate again."
            )
    return [Step(f"allow sharding of {database}", {"enableSharding": database}, database, is_admin=True), *steps] if steps else []


def _look(database: Any) -> Found:
    there = {each["name"]: each.get("options", {}).get("validator", {}) for each in database.list_collections()}
    validators = {name: there[name] for name in COLLECTIONS if name in there}
    indexes = {name: [dict(index) for index in database[name].list_indexes()] for name in validators}
    outdated = {
        (name, version)
        for name in validators
        for version in COLLECTIONS[name].upgrades
        if database[name].find_one({"schema_version": version}, {"_id": 1}) is not None
    }
    return Found(validators, indexes, frozenset(outdated), _shard_keys(database))


def _shard_keys(database: Any) -> dict[str, tuple[str, ...]] | None:
    """The keys by collection, None where nothing can be sharded. Since MongoDB 8.0 collections that are not sharded may be listed too, as unsplittable."""
    if database.client.admin.command("hello").get("msg") != "isdbgrid":
        return None
    names = [f"{database.name}.{name}" for name in COLLECTIONS]
    listed = database.client.config.collections.find({"_id": {"$in": names}, "dropped": {"$ne": True}, "unsplittable": {"$ne": True}})
    return {each["_id"].removeprefix(f"{database.name}."): tuple(each["key"]) for each in listed}


def _do(database: Any, step: Step) -> None:
    from pymongo.errors import OperationFailure

    if "collMod" in step.command:
        _must_hold(database, step.about, step.command["validator"])
    try:
        if step.is_admin:
            database.client.admin.command(dict(step.command))
            return
        answer = database.command({**step.command, "writeConcern": _MAJORITY})
    except OperationFailure as failure:
        if failure.code == _EXISTS and "create" in step.command:
            return  # another run made it a moment ago, with the same validator
        raise
    for error in answer.get("writeErrors", ()):
        raise OperationFailure(error["errmsg"], error["code"])


def _must_hold(database: Any, name: str, validator: Mapping[str, Any]) -> None:
    """A validator does not look at what is stored, but the next change of such a document would be refused: better now, and to a person."""
    stray = database[name].find_one({"$nor": [validator]}, {"_id": 1})
    if stray is not None:
        raise MigrationRefused(
            f"{name} holds documents that its new validator refuses, one with _id {stray['_id']!r}: mend or remove them (in mongosh "
            f"db.{name}.find({{$nor: [validator]}}); the validator stands in adapters/migrations_mongo.py) and run migrate again."
        )


@contextmanager
def _refusals(what: str, done: list[str]) -> Iterator[None]:
    """PyMongo's exceptions as one sentence, with what had been done before."""
    from pymongo.errors import PyMongoError

    try:
        yield
    except MigrationRefused as refused:
        raise MigrationRefused(str(refused), tuple(done)) from None
    except PyMongoError as error:
        raise MigrationRefused(_sentence(f"It stopped at: {what}", error), tuple(done)) from None


def _sentence(what: str, error: Any) -> str:
    """Never the URI: a connection error of PyMongo names hosts, no user and no password, but the error about a malformed URI may quote a part of it."""
    from pymongo.errors import ConfigurationError

    code = getattr(error, "code", None)
    if code in _BAD_LOGIN:
        return "MongoDB refuses the user or the password of the URI: put the right URI into the secret and run migrate again."
    if code == _UNAUTHORISED:
        return (
            f"{what}; the user of the URI may not do that: give it the roles readWrite and dbAdmin on the database, on a sharded cluster clusterManager too, "
            "and run migrate again."
        )
    if code == _DUPLICATE:
        keys = ", ".join((getattr(error, "details", None) or {}).get("keyPattern", {}))
        return f"{what}; there are documents with the same {keys or 'values'}: keep one of each and run migrate again."
    if getattr(error, "timeout", False):
        return f"{what}; MongoDB did not answer in time: see that it can be reached, then run heliograph-admin migrate, which waits an hour for a large index."
    if isinstance(error, ConfigurationError):
        return f"{what}; the URI is not one that MongoDB's driver takes: put the right one into the secret and run migrate again."
    reason = (getattr(error, "details", None) or {}).get("errmsg") or str(error)
    return f"{what}; MongoDB answered “{reason[:200]}”: mend that and run migrate again, it goes on where it stopped."
