"""What several integration tests look into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from adapters import mongo_client
from tests.certificates import make_certificates
from tests.running import RunningStack
from tests.turn_server import TurnServer, running_relay


@pytest.fixture(scope="module")
def ledger(stack: RunningStack) -> Iterator[Any]:
    """The database of the running product."""
    endpoints = stack.endpoints()
    database = mongo_client.connect(endpoints["mongodb_uri"], endpoints["mongodb_database"])
    yield database
    database.client.close()


@dataclass(frozen=True, slots=True)
class Relays:
    """Three of our relays: on IPv4 and IPv6, on IPv6 alone, and one whose authority nobody trusts."""

    dual: TurnServer
    only_v6: TurnServer
    distrusted: TurnServer


@pytest.fixture(scope="session")
def relays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relays]:
    folder, other = tmp_path_factory.mktemp("relays"), tmp_path_factory.mktemp("distrusted")
    made, others = make_certificates(folder), make_certificates(other)
    both = ("127.0.0.1", "::1")
    with (
        running_relay(folder, made, *both, allow_peers=("127.0.0.0/8", "::1/128")) as dual,
        running_relay(folder, made, "::1") as only_v6,
        running_relay(other, others, *both) as distrusted,
    ):
        yield Relays(dual, only_v6, distrusted)
