"""The pages of security and compliance name tests that exist, leave no item of the standards out, and count themselves rightly."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[2]
SECURITY, COMPLIANCE = ((ROOT / f"docs/{name}.md").read_text() for name in ("security", "compliance"))
CITED: Final = re.compile(r"`((?:tests|bench)/[\w/]+\.py)(?:::(\w+))?`")
UNHELD: Final = re.compile(r"\b(open|not ours)\b")
STATES: Final = ("held", "partly", "open", "not ours")


def _numbered(sections: dict[str, int]) -> tuple[str, ...]:
    return tuple(f"{section}.{number}" for section, last in sections.items() for number in range(1, last + 1))


# OWASP ASVS 5.0.0: how many requirements each section has
ASVS_V9: Final = _numbered({"9.1": 3, "9.2": 4})
ASVS_V10: Final = _numbered({"10.1": 2, "10.2": 3, "10.3": 5, "10.4": 16, "10.5": 5, "10.6": 2, "10.7": 3})
ASVS_V17: Final = _numbered({"17.1": 2, "17.2": 8, "17.3": 2})
# OWASP API Security Top 10, 2023
API_TOP_10: Final = {
    "API1:2023": "Broken Object Level Authorization",
    "API2:2023": "Broken Authentication",
    "API3:2023": "Broken Object Property Level Authorization",
    "API4:2023": "Unrestricted Resource Consumption",
    "API5:2023": "Broken Function Level Authorization",
    "API6:2023": "Unrestricted Access to Sensitive Business Flows",
    "API7:2023": "Server Side Request Forgery",
    "API8:2023": "Security Misconfiguration",
    "API9:2023": "Improper Inventory Management",
    "API10:2023": "Unsafe Consumption of APIs",
}
CUSTOMER: Final = (
    "System boundaries",
    "REST service routes",
    "WebSocket Pub/Sub event schemas",
    "TURN fallback",
    "Database sharding",
    "WebRTC codec adjustments",
    "Penetration testing",
    "SOC 2",
    "Throttling simulations",
)


def missing_tests(page: str) -> list[str]:
    """The citations of a page that lead nowhere."""
    return sorted({f"{file}::{name}" if name else file for file, name in CITED.findall(page) if not _exists(file, name)})


def unheld_rows(page: str) -> list[str]:
    """The rows of tables that neither name a test nor say that there is none."""
    return [" | ".join(row) for row in rows(page) if not CITED.search(" ".join(row)) and not any(UNHELD.match(cell) for cell in row)]


def rows(page: str) -> Iterator[list[str]]:
    """The rows of every table of a page, without heads, cell by cell."""
    in_body = False
    for line in page.splitlines():
        if not line.startswith("|"):
            in_body = False
        elif in_body:
            yield [cell.strip() for cell in line.strip("|").split("|")]
        else:
            in_body = set(line) <= set("|- ")


def _exists(file: str, name: str) -> bool:
    return (ROOT / file).is_file() and (not name or name in _functions(file))


@cache
def _functions(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_test_that_the_pages_name_exists() -> None:
    assert not missing_tests(SECURITY + COMPLIANCE)


def test_every_claim_names_a_test_or_says_that_there_is_none() -> None:
    assert not unheld_rows(SECURITY)
    assert not unheld_rows(COMPLIANCE)


def test_every_item_of_the_standards_and_of_the_customers_page_has_one_row() -> None:
    items = Counter(row[0] for row in rows(COMPLIANCE))
    wanted = (*CUSTOMER, *ASVS_V9, *ASVS_V10, *ASVS_V17, *API_TOP_10)
    assert [item for item in wanted if items[item] != 1] == []
    assert {row[0]: row[1] for row in rows(COMPLIANCE) if row[0] in API_TOP_10} == API_TOP_10


def test_a_state_says_no_more_than_its_row_proves() -> None:
    for item, _, state, why, test in rows(COMPLIANCE):
        assert state in STATES, item
        assert bool(CITED.search(test)) == (state in ("held", "partly")), f"{item}: a test stands exactly where something is held"
        assert why or state == "held", f"{item} does not say what is missing, or why"


def test_the_sum_is_that_of_the_rows() -> None:
    states = Counter(row[2] for row in rows(COMPLIANCE))
    assert f"**Sum: {', '.join(f'{states[state]} {state}' for state in STATES)}.**" in COMPLIANCE


def test_the_judge_is_not_blind() -> None:
    here = "tests/contract/test_security_docs.py"
    good = f"| claim | test |\n|---|---|\n| a | `{here}::test_the_judge_is_not_blind` |\n| b | `{here}` |\n| c | open: later |\n| d | not ours: why |\n"
    assert (missing_tests(good), unheld_rows(good)) == ([], [])
    bad = good + f"| e | `{here}::test_made_up` |\n| f | `tests/made_up.py` |\n| an open question | nothing |\n"
    assert missing_tests(bad) == [f"{here}::test_made_up", "tests/made_up.py"]
    assert unheld_rows(bad) == ["an open question | nothing"]
    assert len(list(rows(SECURITY))) > 60, "the tables of the page are seen"
