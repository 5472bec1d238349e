"""What RFC 8656 and RFC 8489 ask of a TURN server, rule by rule, and the worlds in which our relay is asked.

`tests/integration/test_turn_conformance.py` proves each rule in each world; `docs/generate.py` writes them into docs/turn-conformance.md.
"""

from __future__ import annotations

from tests.integration.conformance import allocations, channels, messages, relaying
from tests.integration.conformance.rule import Rule
from tests.integration.conformance.world import WORLDS, World

RULES: tuple[Rule, ...] = (*messages.RULES, *allocations.RULES, *relaying.RULES, *channels.RULES)

__all__ = ["RULES", "WORLDS", "Rule", "World"]
