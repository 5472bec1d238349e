"""`heliograph-admin migrate | verify | add-account | add-provider | link-identity | add-service | revoke | rotate-keys | rotate-secret | redrive |
relay-usage | restore-relay-usage`: what an operator does.

MongoDB's URI comes from Secrets Manager (`--mongodb-secret`) or from HELIOGRAPH_MONGODB_URI; a password is read from standard input. Neither stands in argv.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from typing import Any

from adapters import aws_json, migrations_mongo, mongo_client
from adapters.accounts_mongo import Account, Accounts
from adapters.ledger_mongo import Ledger
from adapters.passwords_argon2 import hashed
from adapters.secrets_aws import read_secret
from adapters.settings import now_ms, random_bytes
from admin import identity, relay_usage, sessions
from heliograph.auth import PEOPLE
from heliograph.errors import Unavailable
from heliograph.ids import new_id
from heliograph.ledger import first_broken

LEAST_PASSWORD = 12
MIGRATION_S = 3600.0
"""How long `migrate` waits in all: an index of a large collection takes its time."""


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="heliograph-admin", description="Operate a deployment of Heliograph.")
    parser.add_argument("--mongodb-secret", help="Secrets Manager id of {uri}; without it HELIOGRAPH_MONGODB_URI is read")
    parser.add_argument("--database", default="heliograph")
    commands = parser.add_subparsers(dest="command", required=True)
    migrate = commands.add_parser("migrate", help="create collections, validators, indexes and on a mongos shard keys; running it again changes nothing")
    migrate.add_argument("--dry-run", action="store_true", help="only say what is missing")
    verify = commands.add_parser("verify", help="check a tenant's transaction log; exit code 1 when its chain is broken")
    verify.add_argument("--tenant", required=True)
    account = commands.add_parser("add-account", help="create an account; its password is read from standard input")
    account.add_argument("--tenant", required=True)
    account.add_argument("--login", required=True)
    account.add_argument("--role", choices=PEOPLE, default="member")
    identity.register(commands)
    sessions.register(commands)
    relay_usage.register(commands)
    redrive = commands.add_parser("redrive", help="put the messages of a dead-letter queue back into the queue they came from")
    redrive.add_argument("--dead-letter-queue-url", required=True)
    redrive.add_argument("--queue-url", required=True)
    return parser


def run(options: argparse.Namespace) -> int:
    """Does one command; prints what it did as one JSON line."""
    if options.command == "redrive":
        return _print({"moved": redrive(options.dead_letter_queue_url, options.queue_url)})
    if options.command == "rotate-keys":
        return _print(sessions.rotate_keys(options.token_keys_secret, forget_previous=options.forget_previous))
    if options.command == "rotate-secret":
        return _rotate_secret(options)
    if options.command == "migrate":
        return _migrate(_uri(options), options.database, is_rehearsal=options.dry_run)
    database = mongo_client.connect(_uri(options), options.database)
    if options.command == "verify":
        return _verify(database, options.tenant)
    if options.command == "revoke":
        return _print(sessions.revoke(database, options))
    if options.command in ("relay-usage", "restore-relay-usage"):
        return _relay_usage(database, options)
    if (code := identity.run(options, database)) is not None:
        return code
    return _add_account(database, options)


def redrive(dead_letter_queue_url: str, queue_url: str) -> int:
    """Moves every message; one that was sent but could not be deleted is sent again, which the consumers take."""
    moved = 0
    while messages := aws_json.call("sqs", "AmazonSQS.ReceiveMessage", {"QueueUrl": dead_letter_queue_url, "MaxNumberOfMessages": 10}).get("Messages"):
        for message in messages:
            aws_json.call("sqs", "AmazonSQS.SendMessage", {"QueueUrl": queue_url, "MessageBody": message["Body"]})
            aws_json.call("sqs", "AmazonSQS.DeleteMessage", {"QueueUrl": dead_letter_queue_url, "ReceiptHandle": message["ReceiptHandle"]})
            moved += 1
    return moved


def _migrate(uri: str, database: str, *, is_rehearsal: bool) -> int:
    try:
        steps = migrations_mongo.run(uri, database, within_s=MIGRATION_S, is_rehearsal=is_rehearsal)
    except migrations_mongo.MigrationRefused as refused:
        _print({"database": database, "done": refused.done})
        print(refused, file=sys.stderr)
        return 1
    return _print({"database": database, "missing" if is_rehearsal else "done": steps})


def _rotate_secret(options: argparse.Namespace) -> int:
    try:
        return _print(sessions.rotate_secret(options.secret, forget_previous=options.forget_previous))
    except ValueError as refused:
        print(refused, file=sys.stderr)
        return 1


def _relay_usage(database: Any, options: argparse.Namespace) -> int:
    try:
        return _print(relay_usage.run(options, database))
    except (ValueError, OSError) as refused:
        print(refused, file=sys.stderr)
        return 1


def _verify(database: Any, tenant_id: str) -> int:
    entries = list(Ledger(database).entries(tenant_id))
    broken = first_broken(entries)
    _print({"tenant_id": tenant_id, "entries": len(entries), "first_broken": broken, "head": entries[-1]["hash"] if entries else None})
    return 0 if broken is None else 1


def _add_account(database: Any, options: argparse.Namespace) -> int:
    accounts = Accounts(database)
    if accounts.by_login(options.tenant, options.login) is not None:
        print(f"{options.login} exists in {options.tenant} already.", file=sys.stderr)
        return 1
    password = getpass.getpass("Password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    if len(password) < LEAST_PASSWORD:
        print(f"A password has at least {LEAST_PASSWORD} characters.", file=sys.stderr)
        return 1
    account_id = new_id("acc", now_ms(), random_bytes())
    accounts.put(Account(options.tenant, account_id, options.login, hashed(password), options.role))
    return _print({"tenant_id": options.tenant, "account_id": account_id, "login": options.login, "role": options.role})


def _uri(options: argparse.Namespace) -> str:
    if options.mongodb_secret:
        return _from_secret(options.mongodb_secret)
    uri = os.environ.get("HELIOGRAPH_MONGODB_URI")
    if not uri:
        raise SystemExit("Name the secret with MongoDB's URI: --mongodb-secret ID, or set HELIOGRAPH_MONGODB_URI.")
    return uri


def _from_secret(secret_id: str) -> str:
    try:
        return str(read_secret(secret_id)["uri"])
    except aws_json.AwsRefusal as refusal:
        raise SystemExit(f"The secret {secret_id} cannot be read ({refusal.code}): it has no value yet, or these credentials may not read it.") from None
    except (KeyError, TypeError, ValueError):
        raise SystemExit(f'The secret {secret_id} must be the JSON object {{"uri": "mongodb+srv://…"}}.') from None
    except Unavailable as away:
        raise SystemExit(str(away)) from None


def _print(answer: dict[str, Any]) -> int:
    print(json.dumps(answer))
    return 0


def main() -> int:
    """The console script."""
    return run(command_line().parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
