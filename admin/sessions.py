"""What an operator does in an emergency: sign a device, an account or a whole tenant out, change the keys of access tokens and the secrets of two sides.

Sessions are ended by the functions, which also know the open sockets: this command only puts the work into their queue, which keeps it until it is done.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Iterator
from typing import Any

from adapters import secrets_aws
from adapters.aws_json import AwsRefusal
from adapters.queues_sqs import Queue
from adapters.sessions_mongo import Sessions
from adapters.settings import now_ms
from heliograph.sessions import Session
from heliograph.shapes import JsonObject

AT_ONCE = 100
"""Sessions in one message: far below SQS' 256 KB."""


def register(commands: Any) -> None:
    """Adds `revoke`, `rotate-keys` and `rotate-secret` to the command line."""
    revoking = commands.add_parser("revoke", help="end sessions: of a device, of an account, or with --all of everybody in a tenant")
    revoking.add_argument("--tenant", required=True)
    revoking.add_argument("--timers-queue-url", required=True, help="the queue of the functions that end them")
    whose = revoking.add_mutually_exclusive_group(required=True)
    whose.add_argument("--account")
    whose.add_argument("--all", action="store_true")
    revoking.add_argument("--device", help="with --account: this device alone")
    rotating = commands.add_parser("rotate-keys", help="make a new key of access tokens; the one before stays good for the tokens it signed")
    rotating.add_argument("--token-keys-secret", required=True, help="Secrets Manager id; an empty secret gets its first key")
    rotating.add_argument("--forget-previous", action="store_true", help="no token of an earlier key is taken any more, after at most five minutes")
    sharing = commands.add_parser("rotate-secret", help="make a new text of a secret {current, previous} that two sides share: the relay's, CloudFront's")
    sharing.add_argument("--secret", required=True, help="Secrets Manager id")
    sharing.add_argument("--forget-previous", action="store_true", help="make none: only the previous one is not taken any more, after at most five minutes")


def revoke(database: Any, options: argparse.Namespace) -> JsonObject:
    """Queues the end of the sessions; says how many."""
    queue, ended = Queue(options.timers_queue_url), 0
    sessions = Sessions(database)
    accounts = sessions.accounts_of(options.tenant) if options.all else [options.account]
    for account_id in accounts:
        for some in _some(sessions.of_account(options.tenant, account_id, options.device)):
            queue.send(_ending(some))
            ended += len(some)
    return {"tenant_id": options.tenant, "queued": ended}


def rotate_keys(secret_id: str, *, forget_previous: bool) -> JsonObject:
    """Puts a new key in the place of the current one."""
    try:
        before = secrets_aws.read_secret_now(secret_id)
    except AwsRefusal as refusal:
        if refusal.code != "ResourceNotFoundException":  # what AWS answers for a secret that has no value yet
            raise
        before = {"current": None}
    fresh = {"kid": f"k-{now_ms():x}-{secrets.token_hex(4)}", "private_pem": _ec_pem()}
    previous = None if forget_previous else before["current"]
    secrets_aws.write_secret(secret_id, {"current": fresh, "previous": previous})
    return {"current": fresh["kid"], "previous": previous["kid"] if previous else None}


def rotate_secret(secret_id: str, *, forget_previous: bool) -> JsonObject:
    """Puts a new text in the place of the current one, or forgets the previous one. ValueError for a secret of another form, such as the keys' own."""
    before = secrets_aws.read_secret_now(secret_id)
    current = before.get("current")
    if not before.keys() <= {"current", "previous"} or not isinstance(current, str) or not current:
        raise ValueError(f"{secret_id} is not a secret {{current, previous}} of two texts.")
    after = {"current": current, "previous": None} if forget_previous else {"current": secrets.token_urlsafe(36), "previous": current}
    return {"secret": secret_id, "version": secrets_aws.write_secret(secret_id, after), "previous": "forgotten" if forget_previous else "kept"}


def _some(sessions: list[Session]) -> Iterator[list[Session]]:
    return (sessions[start : start + AT_ONCE] for start in range(0, len(sessions), AT_ONCE))


def _ending(ended: list[Session]) -> JsonObject:
    """The message that functions/timers takes."""
    owner = {"tenant_id": ended[0].tenant_id, "account_id": ended[0].account_id, "sessions": [[session.sid, session.device_id] for session in ended]}
    return {"kind": "end_sessions", **owner, "actor": "operator", "why": "revoked", "trace_id": secrets.token_hex(16), "at_ms": now_ms()}


def _ec_pem() -> str:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()).decode()
