"""Writes the pages that are generated from the code: `python docs/generate.py`. With `--check` it writes nothing and fails when one is stale."""

from __future__ import annotations

import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Generated from the code by `python docs/generate.py`; change it there. -->\n"


def settings_page() -> str:
    """What a deployment chooses: the functions' environment, and the context of the CDK app."""
    from adapters.settings import Settings
    from infra.cdk import context
    from media_fleet.settings import NodeSettings

    asked = ["| context setting | default | what it is |", "|---|---|---|"]
    docs = {item.name: item.metadata["doc"] for item in fields(Settings)}
    asked += [f"| `{context.PREFIX}{name}` | {_asked(name, value)} | {_cell(docs[name])} |" for name, value in context.asked().items()]
    heads = " | ".join(f"`{preset}`" for preset in context.PRESETS)
    own = [f"| context setting | {heads} | one of | what it is |", "|---|---|---|---|---|---|"]
    for name, choice in context.OWN.items():
        defaults = " | ".join(_code(choice.default(preset)) for preset in context.PRESETS)
        own.append(f"| `{context.PREFIX}{name}` | {defaults} | {', '.join(f'`{value}`' for value in choice.one_of)} | {_cell(choice.doc)} |")
    return "\n".join(
        [
            "# Settings",
            NOTE,
            "The functions read their environment once, at the start. An unknown or a missing setting stops the start with one sentence.",
            "On the laptop `make run` sets all of them; in AWS the stacks do.",
            "",
            *_variables(Settings),
            "",
            "## A node of the media fleet",
            "`python -m media_fleet node` reads these; `python -m media_fleet hub` those of the hub. Beside them AWS_REGION and, outside of ECS, keys of AWS.",
            "",
            *_variables(NodeSettings),
            "",
            "## What a deployment is asked for",
            "Given to the CDK as `-c name=value`. `heliograph:preset` chooses a column of the first table, `dev` where it is left out; every choice may be",
            "given beside it. What is unknown, of the wrong form, without effect or does not go together stops the synthesis with one sentence.",
            "`python -m infra.cdk.prices --preset dev` prints what a preset costs a day.",
            "",
            *own,
            "",
            "The functions' own settings are asked for where the stacks cannot work them out. A Redis URL with a password is refused, because it would",
            "stand in the template: give `{{resolve:secretsmanager:<name>:SecretString:<field>}}` instead.",
            "",
            *asked,
            "",
        ]
    )


def _variables(kind: type[Any]) -> list[str]:
    """A table of environment variables, the required ones first."""
    from adapters.settings import PREFIX

    listed = sorted(fields(kind), key=lambda item: item.default is not MISSING)
    return [
        "| variable | default | what it is |",
        "|---|---|---|",
        *(
            f"| `{PREFIX}{item.name.upper()}` | {'required' if item.default is MISSING else _code(item.default)} | {_cell(item.metadata['doc'])} |"
            for item in listed
        ),
    ]


def errors_page() -> str:
    """Every code a client can get."""
    from heliograph import errors

    table = ["| code | status | try again? | what it says |", "|---|---|---|---|"]
    ours = {error.code: error for error in errors.catalogue() if error.__module__ == errors.__name__}
    for code, error in sorted(ours.items(), key=lambda item: (item[1].status, item[0])):
        table.append(f"| `{code}` | {error.status} | {'yes' if error.retryable else 'no'} | {_cell(error.sentence)} |")
    return "\n".join(
        [
            "# Error codes",
            NOTE,
            "One shape on REST and in frames: `{code, message, retryable, retry_after_ms?, trace_id, re?}`. The status below is REST's; a frame has none.",
            "Go by `code`: it is stable. `message` is for people and may say more than the sentence below. `retryable` means that the same request",
            "may succeed later; wait at least `retry_after_ms` where it is given. API Gateway's own refusals have no code: go by the status there.",
            "",
            *table,
            "",
        ]
    )


def limits_page() -> str:
    """Every rate limit, and which routes and frames it counts."""
    from functions.routes import FUNCTIONS, Http, Socket
    from heliograph.limits import LIMITS

    counted: dict[str, list[str]] = {name: [] for name in LIMITS}
    for route in (route for function in FUNCTIONS for route in function.routes):
        if isinstance(route, Http | Socket) and route.limit is not None:
            counted[route.limit].append(f"`{route.key}`")
    table = ["| limit | of each | burst | a second | without the session store | what it counts |", "|---|---|---|---|---|---|"]
    for limit in LIMITS.values():
        routes = f" {', '.join(counted[limit.name])}" if counted[limit.name] else ""
        fails = "**closed**: it waits" if limit.fails == "closed" else "open: it passes"
        table.append(f"| `{limit.name}` | {limit.per} | {limit.burst} | {limit.per_s:g} | {fails} | {_cell(limit.doc)}{routes} |")
    return "\n".join(
        [
            "# Rate limits",
            NOTE,
            "Token buckets in Redis, by Redis' clock: `burst` tokens at most, so many come back each second; a request takes one of every bucket that counts",
            "it, or none. Who lacks one is answered 429 `rate_limited` with `retry_after_ms` (and `Retry-After` on REST), a frame likewise.",
            "`HELIOGRAPH_LIMITS` overrides them by name: `messages=300/50,tickets=10/1`. An IPv6 address counts with its /64. API Gateway throttles beneath.",
            "",
            "Open or closed: while Redis is away a limit that fails open lets everything pass, because it carries a proof that cannot be guessed; one that",
            "fails closed answers `unavailable` (retryable), because without the count passwords could be guessed or relay credentials collected.",
            "",
            *table,
            "",
            "Every request and frame of somebody known takes from `account` and `device` too; requests of strangers, and new sockets, from `address`.",
            "The documents under `/v1/jwks.json`, `/v1/openapi.json` and `/v1/asyncapi.json` have no limit but API Gateway's.",
            "",
        ]
    )


def peers_page() -> str:
    """Where the relay refuses to send, and why."""
    from media_fleet.turn.peers import DENIED, NEVER

    table = ["| addresses | why |", "|---|---|"]
    table += [f"| `{network}`{' (never)' if network in NEVER else ''} | {_cell(reason)} |" for network, reason in DENIED]
    return "\n".join(
        [
            "# Peers that the relay refuses",
            NOTE,
            "A client of the relay may name no peer in these ranges: CreatePermission and ChannelBind answer 403, a Send indication is dropped.",
            "Refused beside them are the relay's own listeners, and at its own relayed address all ports but those of relays.",
            "",
            *table,
            "",
            "What decides is the column Globally Reachable of IANA's registries of special-purpose addresses: a block without a True there is refused,",
            "with the blocks inside it that have one (`192.0.0.9`, `2001:1::1`, `2001:20::/28` …), because no client of a call is there. The blocks of AS112",
            "and AMT (`192.31.196.0/24`, `192.52.193.0/24`, `192.175.48.0/24`, `2620:4f:8000::/48`) are reachable and in no such block: allowed.",
            "",
            "`allow_peers` of a relay (a laptop's, or a measurement's) allows CIDRs in spite of the table. Even there an address that wraps an IPv4 address",
            "(NAT64, IPv4-translated, IPv4-compatible, ISATAP) is allowed only where that one is, and where the table says never it is refused: there the",
            "IPv4 address is not to be found for certain, or RFC 8656 s21.4 forbids the address.",
            "`tests/unit/test_turn_peers.py` tries addresses of each range, and their public neighbours, at each of the three messages.",
            "",
        ]
    )


def conformance_page() -> str:
    """Each rule that the relay is held to, with its paragraph."""
    from tests.integration.conformance import RULES, WORLDS

    heads = " | ".join(world.name for world in WORLDS)
    tables = []
    for section in dict.fromkeys(rule.section for rule in RULES):
        tables += [f"## {section}", f"| paragraph | rule | what passes beside it | {heads} |", "|---" * (3 + len(WORLDS)) + "|"]
        for rule in (rule for rule in RULES if rule.section == section):
            marks = " | ".join("✓" if rule.where(world) else "" for world in WORLDS)
            tables.append(f"| {rule.paragraph} | {_cell(rule.sentence)} | {_cell(rule.twin)} | {marks} |")
        tables.append("")
    return "\n".join(
        [
            "# The TURN relay, rule by rule",
            NOTE,
            f"{len(RULES)} rules of RFC 8656 (TURN), RFC 8489 (STUN) and their kin; in each world with a mark `tests/integration/test_turn_conformance.py`",
            "proves the rule on real sockets, a refusal beside what passes, and prints this table. Where there is no mark the rule does not apply.",
            "",
            "UDP, TCP and TLS are how clients come, over IPv4; behind them Python forwards, under uvloop, and for UDP under asyncio and in C (`compiled`) too.",
            "In `IPv6` clients and relayed addresses are IPv6; in `dual stack` clients come over IPv6 and relayed addresses are of both families.",
            "",
            *tables,
            "## What the RFCs leave open and the relay leaves out",
            "- DTLS to clients (8656 s5, SHOULD): TLS is what passes where UDP does not.",
            "- Third-party authorization (RFC 7635), SHA-256 and hidden user names (8489 s9.2, optional): the nonce says that they are not in use.",
            "- Redirection by 300 (8656 s7.2 (11), MAY): clients learn of another relay from `GET /v1/ice-servers` and by `relay_draining`.",
            "- DSCP and ECN are not copied, TTL starts anew (8656 s13, s14, alternate behavior).",
            "- TCP to peers (RFC 6062), mobility (RFC 8016).",
            "",
            "Requests from Teredo and 6to4 addresses (8656 s21.4), limits of answers to strangers, and what a data path is told are held by",
            "`tests/unit/test_turn.py`; [the peers that are refused](relay-peers.md) by `tests/unit/test_turn_peers.py`.",
            "",
        ]
    )


def _asked(name: str, value: str | None) -> str:
    from infra.cdk import context

    if name == "redis_mode":
        return f"{_code(value)}; `cluster` where the stacks make the session store"
    return "required" if value is None else "made by the stacks" if name in context.MADE else _code(value)


def _code(value: object) -> str:
    return f"`{value}`" if value != "" else "empty"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def main(arguments: list[str]) -> int:
    """Writes the pages, or says which are stale."""
    sys.path.insert(0, str(ROOT))
    pages = {
        "docs/settings.md": settings_page(),
        "docs/errors.md": errors_page(),
        "docs/limits.md": limits_page(),
        "docs/relay-peers.md": peers_page(),
        "docs/turn-conformance.md": conformance_page(),
    }
    if arguments == ["--check"]:
        stale = [name for name, text in pages.items() if not (ROOT / name).exists() or (ROOT / name).read_text(encoding="utf-8") != text]
        if stale:
            print(f"{' and '.join(stale)} do not say what the code says; run: python docs/generate.py", file=sys.stderr)
        return 1 if stale else 0
    for name, text in pages.items():
        (ROOT / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
