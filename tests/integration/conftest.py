"""What several integration tests look into."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from adapters import mongo_client
from tests.running import RunningStack


@pytest.fixture(scope="module")
def ledger(stack: RunningStack) -> Iterator[Any]:
    """The database of the running product."""
    endpoints = stack.endpoints()
    database = mongo_client.connect(endpoints["mongodb_uri"], endpoints["mongodb_database"])
    yield database
    database.client.close()
