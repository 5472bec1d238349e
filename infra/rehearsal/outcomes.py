"""A pytest plugin (`-p infra.rehearsal.outcomes`): what each test says of AWS, and how it ended, as JSON in the file that REHEARSAL_OUTCOMES names."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

FILE_ENVIRONMENT: Final = "REHEARSAL_OUTCOMES"
_rows: dict[str, dict[str, Any]] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    row = _rows.setdefault(item.nodeid, {"test": item.nodeid, "aws": _documented(item), "passed": True, "seconds": 0.0, "said": ""})
    row["seconds"] = round(row["seconds"] + report.duration, 2)
    if report.failed and row["passed"]:
        row["passed"] = False
        row["said"] = str(call.excinfo.value).strip()[:500] if call.excinfo else ""
    return report


def _documented(item: pytest.Item) -> str:
    """The first paragraph of the test's docstring: the page of AWS and what it says."""
    text = getattr(getattr(item, "function", None), "__doc__", None) or ""
    return " ".join(text.split("\n\n")[0].split())


def pytest_sessionfinish() -> None:
    Path(os.environ[FILE_ENVIRONMENT]).write_text(json.dumps(list(_rows.values()), indent=2))
