"""Our relay against RFC 8656 and RFC 8489: each rule in each world, on real sockets. At the end the table is printed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import uvloop

from media_fleet.datapath import build
from media_fleet.tls import TlsFiles
from tests.certificates import make_certificates
from tests.integration.conformance import RULES, WORLDS, Rule, World
from tests.integration.conformance.world import Trust, opened

CELLS = [pytest.param(rule, world, id=f"{rule.name}-{world.name}") for rule in RULES for world in WORLDS if rule.where(world)]
Runners = Callable[[World], asyncio.Runner]
Cells = set[tuple[Rule, World]]


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    made = make_certificates(tmp_path_factory.mktemp("conformance"))
    return Trust(TlsFiles(str(made.chain), str(made.key)), str(made.authority))


@pytest.fixture(scope="module")
def runners() -> Iterator[Runners]:
    """One loop of each kind, for all rules."""
    if not build.LIBRARY.exists():
        build.build()
    with ExitStack() as stack:
        made = {
            "uvloop": stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop)),
            "asyncio": stack.enter_context(asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)),
        }
        yield lambda world: made[world.loop]


@pytest.fixture(scope="module")
def passed(request: pytest.FixtureRequest) -> Iterator[Cells]:
    """What has passed; it is printed at the end."""
    cells: Cells = set()
    yield cells
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print(f"\n{table(cells)}")


def table(passed: Cells) -> str:
    """A line for each rule that ran, a mark for each world."""
    asked = [rule for rule in RULES if any((rule, world) in passed for world in WORLDS)]
    width = max((len(rule.paragraph) for rule in asked), default=0)
    lines = [f"RFC 8656 and RFC 8489 over {' | '.join(world.name for world in WORLDS)} (+ passed, - not, . does not apply):"]
    for rule in asked:
        marks = "".join("+" if (rule, world) in passed else "-" if rule.where(world) else "." for world in WORLDS)
        lines.append(f"{marks}  {rule.paragraph:<{width}}  {rule.sentence}")
    return "\n".join([*lines, f"{len(passed)} of {len(CELLS)}"])


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")  # an old version is refused
@pytest.mark.parametrize(("rule", "world"), CELLS)
def test_the_relay_keeps(rule: Rule, world: World, trust: Trust, runners: Runners, passed: Cells) -> None:
    async def prove() -> None:
        async with asyncio.timeout(60), opened(world, trust, **rule.config) as stage:
            await rule.proof(stage)

    runners(world).run(prove())
    passed.add((rule, world))


def test_no_two_rules_have_one_name() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
