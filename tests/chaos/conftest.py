"""Options of the chaos tests."""

from __future__ import annotations

import pytest

OUTAGE_S = 10.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outage-s", type=float, default=OUTAGE_S, help="how long a store stays away in tests/chaos/test_outages.py (%(default)s)")


@pytest.fixture
def outage_s(request: pytest.FixtureRequest) -> float:
    """How long a store stays away."""
    return float(request.config.getoption("--outage-s", OUTAGE_S))
