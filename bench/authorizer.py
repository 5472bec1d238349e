"""What the authorizer costs: CPU per request beside a bare PyJWT verify of the same token, and its cold start beside importing PyJWT alone.

The HTTP half verifies an access token and touches no store. The socket half takes a ticket: a real Redis, one new ticket each time. CPU is time.process_time of
this process, medians of RUNS rounds side by side; what Lambda bills beyond it is waiting for Redis.
"""

from __future__ import annotations

import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from rich.console import Console
from rich.table import Table

from adapters import secrets_aws, settings
from bench._signal_world import World, as_function, stores, world
from bench.imports import FIRST_CALL, cost
from heliograph.auth import ACCESS_TYP, TICKET_TYP, claims_for

RUNS, CALLS, WARM = 5, 400, 40
CONTEXT: Final = SimpleNamespace(function_name="authorizer", aws_request_id="00000000-0000-0000-0000-000000000000")
_PYJWT: Final = "import jwt; from cryptography.hazmat.primitives.asymmetric import ec"
_LOGGER: Final = "from aws_lambda_powertools import Logger; Logger(service='x')"


def us_each(call: Callable[[Any], object], arguments: list[Any]) -> float:
    """CPU microseconds of one call."""
    started = time.process_time_ns()
    for argument in arguments:
        call(argument)
    return (time.process_time_ns() - started) / 1000 / len(arguments)


class Bench:
    """A key, and events with tokens signed by it."""

    def __init__(self, made: World) -> None:
        from functions import wiring
        from functions.authorizer.handler import handler

        self._who, self._key = made.ana.identity(), ec.generate_private_key(ec.SECP256R1())
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        secrets_aws.write_secret(settings.settings().token_keys_secret_id, {"current": {"kid": "k1", "private_pem": pem}, "previous": None})
        self._tokens, self._handler = wiring.tokens(), handler

    def _signed(self, typ: str, lifetime_s: int) -> str:
        chosen = settings.settings()
        now_ms, jti = settings.now_ms(), secrets.token_urlsafe(16)
        return self._tokens.sign(claims_for(self._who, issuer=chosen.issuer, audience=chosen.audience, now_ms=now_ms, lifetime_s=lifetime_s, jti=jti), typ)

    def bare(self, token: str) -> object:
        """What everybody's authorizer does at least."""
        return jwt.decode(token, self._key.public_key(), algorithms=["ES256"], audience=settings.settings().audience, issuer=settings.settings().issuer)

    def http(self, token: str) -> None:
        about = {"http": {"sourceIp": "127.0.0.1"}}
        answer = self._handler({"headers": {"authorization": f"Bearer {token}"}, "requestContext": about}, CONTEXT)
        if "refusal" in answer["context"]:
            raise AssertionError(answer)

    def socket(self, ticket: str) -> None:
        headers = {"Sec-WebSocket-Protocol": f"heliograph.v1, ticket.{ticket}"}
        about = {"requestId": "r", "identity": {"sourceIp": "127.0.0.1"}}
        answer = self._handler({"methodArn": "arn:aws:execute-api:r:1:a/s/$connect", "headers": headers, "requestContext": about}, CONTEXT)
        if answer["policyDocument"]["Statement"][0]["Effect"] != "Allow":
            raise AssertionError(answer)

    def rounds(self) -> dict[str, float]:
        """One round of each."""
        access, tickets = self._signed(ACCESS_TYP, 900), [self._signed(TICKET_TYP, 30) for _ in range(CALLS)]
        return {"bare": us_each(self.bare, [access] * CALLS), "http": us_each(self.http, [access] * CALLS), "socket": us_each(self.socket, tickets)}


def main() -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder, stores(Path(folder)) as (redis_url, mongodb_uri), world(redis_url, mongodb_uri) as made, as_function(made):
        bench = Bench(made)
        bench.rounds()
        rounds = [bench.rounds() for _ in range(RUNS)]
    us = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    handler = "import functions.authorizer.handler"
    cold = {
        "bare": cost([_PYJWT]).ms,
        "http": cost([handler, _LOGGER, FIRST_CALL["token_keys"]]).ms,
        "socket": cost([handler, _LOGGER, FIRST_CALL["token_keys"], FIRST_CALL["redis"]]).ms,
    }
    table = Table("", "CPU µs", "times bare", "cold, CPU ms", "times bare")
    named = {"bare": "PyJWT verify, ES256", "http": "authorizer, access token", "socket": "authorizer, ticket"}
    for name, title in named.items():
        table.add_row(title, f"{us[name]:.0f}", f"{us[name] / us['bare']:.2f}", f"{cold[name]:.0f}", f"{cold[name] / cold['bare']:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"CPU a request: median of {RUNS} rounds of {CALLS}. A ticket costs three commands of Redis: the address's limit, its one use, the session's admission."
    )
    console.print("cold: fresh interpreters; the handler with the SDKs of its first call (the Logger loads with the first refusal only).")
    os._exit(0)  # drivers' background threads are not waited for


if __name__ == "__main__":
    main()
