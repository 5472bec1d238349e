"""The authorisation matrix: every route and every frame, asked by everybody, for everything that it can name. And what is foreign is as what is unknown.

What is expected stands here a second time, written by hand from the documentation: who may, by which scope, and the answer for each thing. Nothing of it is
derived from the product's scopes or decisions. Cells run the real path on Lambda events: access_world.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import argon2
import jwt
import pytest

from adapters import passwords_argon2
from adapters.settings import now_ms
from functions import wiring
from heliograph.auth import Identity
from local.gateway_events import HttpAnswer
from tests.conftest import Stores
from tests.integration.access_world import (
    FRAMES,
    HTTP,
    REST,
    SOCKETS,
    AccessWorld,
    Asked,
    Footprint,
    OpenSocket,
    Person,
    access_world,
    changed,
    commands,
    stores_asked,
)

Json = dict[str, Any]
Cell = tuple[str, str, str]  # route or frame, who asks, what for

# --- the statement: roles and their scopes

MEMBER: Final = frozenset(
    {
        *("signal:connect", "presence:read", "presence:write", "rooms:read", "rooms:write", "messages:write"),
        *("calls:write", "devices:write", "media:read", "media:write", "sessions:read", "sessions:write"),
    }
)
MODERATOR: Final = MEMBER | {"rooms:moderate"}
ADMIN: Final = MODERATOR | {"evidence:read", "accounts:write", "audit:read"}
SERVICE: Final = frozenset({"rooms:read", "notifications:send"})
SCOPES_OF: Final = {"member": MEMBER, "moderator": MODERATOR, "admin": ADMIN, "service": SERVICE}
EVERY_SCOPE: Final = ADMIN | SERVICE

PEOPLE: Final = frozenset({"member", "moderator", "admin"})
ADMINS: Final = frozenset({"admin"})
EVERYONE: Final = PEOPLE | {"service"}


@dataclass(frozen=True, slots=True)
class Row:
    """Who may do this, by which scope, and what they are answered for each thing that the request can name.

    Public routes have no scope and answer everybody. `quiet`: things for which the answer is a yes that must do nothing. `also`: things that need another scope
    beside the first.
    """

    who: frozenset[str]
    scope: str | None
    answers: Mapping[str, str]
    quiet: frozenset[str] = frozenset()
    also: Mapping[str, str] = field(default_factory=dict)


# --- the statement: REST

HIDDEN: Final = {"not_mine": "404 not_found", "other_tenant": "404 not_found", "unknown": "404 not_found"}


def reads(who: frozenset[str], scope: str | None, **answers: str) -> Row:
    """A route that changes nothing."""
    found = answers or {"own": "200"}
    return Row(who, scope, found, quiet=frozenset(found))


ROUTES: Final[dict[str, Row]] = {
    "GET /v1/presence": reads(PEOPLE, "presence:read"),
    "POST /v1/tokens": Row(
        EVERYONE,
        None,
        {"mine": "201", **dict.fromkeys(("wrong_password", "no_password", "other_tenant", "no_such_tenant", "unknown"), "401 credentials_invalid")},
    ),
    "POST /v1/tokens/identity": Row(
        EVERYONE,
        None,
        {"mine": "201", "not_linked": "401 identity_refused", "other_tenant": "401 identity_refused", "unknown": "401 identity_refused"},
    ),
    "POST /v1/tokens/service": Row(
        EVERYONE,
        None,
        {"mine": "201", "not_a_service": "401 identity_refused", "other_tenant": "401 identity_refused", "unknown": "401 identity_refused"},
    ),
    "POST /v1/tokens/refresh": Row(
        EVERYONE, None, {"mine": "201", "not_mine": "401 token_invalid", "other_tenant": "401 token_invalid", "unknown": "401 token_invalid"}
    ),
    "POST /v1/tickets": Row(PEOPLE, "signal:connect", {"own": "201"}, quiet=frozenset({"own"})),
    "GET /v1/jwks.json": reads(EVERYONE, None),
    "GET /v1/openapi.json": reads(EVERYONE, None),
    "GET /v1/asyncapi.json": reads(EVERYONE, None),
    "GET /v1/sessions": reads(PEOPLE, "sessions:read"),
    "DELETE /v1/sessions": Row(PEOPLE, "sessions:write", {"own": "200"}),
    "DELETE /v1/sessions/{sid}": Row(PEOPLE, "sessions:write", {"mine": "200", "this_one": "200", **HIDDEN}),
    "DELETE /v1/accounts/{account_id}/sessions": Row(
        ADMINS,
        "accounts:write",
        {"in_my_tenant": "200", "myself": "200", "a_service": "200", "other_tenant": "404 not_found", "unknown": "404 not_found"},
    ),
    "PUT /v1/accounts/{account_id}/role": Row(
        ADMINS,
        "accounts:write",
        {"in_my_tenant": "200", "myself": "409 conflict", "a_service": "409 conflict", "other_tenant": "404 not_found", "unknown": "404 not_found"},
    ),
    "GET /v1/audit": reads(ADMINS, "audit:read"),
    "POST /v1/rooms": Row(
        PEOPLE,
        "rooms:write",
        {
            "mine": "201",
            "with_other_tenant": "404 not_found",
            "with_unknown": "404 not_found",
            "with_both": "404 not_found",
            "id_of_not_mine": "409 id_taken",
            "id_of_other_tenant": "201",
        },
    ),
    "GET /v1/rooms": reads(EVERYONE, "rooms:read"),
    "GET /v1/rooms/{room_id}": reads(EVERYONE, "rooms:read", mine="200", **HIDDEN),
    "GET /v1/rooms/{room_id}/events": reads(EVERYONE, "rooms:read", mine="200", **HIDDEN),
    "PUT /v1/devices/{device_id}/push-target": Row(PEOPLE, "devices:write", {"mine": "200", "my_other": "404 not_found", **HIDDEN}),
    "GET /v1/ice-servers": Row(PEOPLE, "calls:write", {"own": "200"}),  # not quiet: relays are told whose account it is
    "POST /v1/media": Row(PEOPLE, "media:write", {"mine": "201", **HIDDEN}),
    "POST /v1/media/{media_id}/complete": Row(PEOPLE, "media:write", {"mine": "200", "of_a_member": "404 not_found", **HIDDEN}),
    "POST /v1/media/{media_id}/links": Row(PEOPLE, "media:read", {"mine": "201", "of_a_member": "201", **HIDDEN}),
}

# --- the statement: frames

YES: Final = "acknowledged"
HIDDEN_ROOM: Final = {"not_mine": "not_found", "other_tenant": "not_found", "unknown": "not_found"}
HIDDEN_CALLEE: Final = {"to_not_mine": "not_found", "to_other_tenant": "not_found", "to_unknown": "not_found", "others_call": "not_found"}


def in_a_room(who: frozenset[str], scope: str, **more: str) -> Row:
    return Row(who, scope, {"mine": YES, **HIDDEN_ROOM, **more})


FRAME_ROWS: Final[dict[str, Row]] = {
    "$connect": Row(PEOPLE, "signal:connect", {"own": "open"}),
    "$disconnect": Row(EVERYONE, None, {"own": "200"}),
    "$default": Row(EVERYONE, None, {"own": "unknown_action"}),
    "hello": Row(PEOPLE, "signal:connect", {"own": YES}),
    "ping": Row(
        PEOPLE,
        "signal:connect",
        {"no_room": YES, "mine": YES, "not_mine": YES, "other_tenant": YES, "unknown": YES},
        quiet=frozenset({"no_room", "not_mine", "other_tenant", "unknown"}),
        also=dict.fromkeys(("mine", "not_mine", "other_tenant", "unknown"), "rooms:read"),
    ),
    "reauth": Row(
        PEOPLE,
        "signal:connect",
        {
            "own": YES,
            "narrower": "forbidden",
            "my_other_device": "token_invalid",
            "not_mine": "token_invalid",
            "other_tenant": "token_invalid",
            "unknown": "token_invalid",
        },
    ),
    "join": in_a_room(EVERYONE, "rooms:read"),
    "leave": in_a_room(EVERYONE, "rooms:read"),
    "message": in_a_room(PEOPLE, "messages:write"),
    "offer": in_a_room(PEOPLE, "calls:write", **HIDDEN_CALLEE),
    "answer": in_a_room(PEOPLE, "calls:write", **HIDDEN_CALLEE),
    "candidate": in_a_room(PEOPLE, "calls:write", **HIDDEN_CALLEE),
    "bye": in_a_room(PEOPLE, "calls:write", **HIDDEN_CALLEE),
    "stats": in_a_room(PEOPLE, "calls:write"),
    "presence": Row(PEOPLE, "presence:write", {"own": YES}),
    "watch": Row(
        PEOPLE,
        "presence:read",
        {"mine": YES, "not_mine": YES, "other_tenant": YES, "unknown": YES},
        quiet=frozenset({"mine", "not_mine", "other_tenant", "unknown"}),
    ),
}

# --- the statement: who asks

Claims = Literal["own", "every", "member's", "all but this", "only this"]
Life = Literal["live", "signed out", "role changed", "expired"]
Way = Literal["by ticket", "as if", "then narrowed"]


@dataclass(frozen=True, slots=True)
class Column:
    """Somebody with a role and a token that claims scopes; without a role, nobody, with `garbage` or with nothing in the token's place.

    `way`: how they came to a socket. `as if`: what a function sees if nobody looked at the opening. `then narrowed`: by a `reauth` without this scope.
    """

    role: str | None = None
    claims: Claims = "own"
    life: Life = "live"
    way: Way = "by ticket"
    garbage: str | None = None

    def scopes(self, row: Row) -> frozenset[str]:
        """What the token claims. "only this" has what opens a socket, too, where it is needed for one."""
        own = SCOPES_OF[self.role or "member"]
        this = frozenset() if row.scope is None else frozenset({row.scope})
        return {"own": own, "every": EVERY_SCOPE, "member's": MEMBER, "all but this": own - this, "only this": this}[self.claims]

    def may(self, row: Row, relation: str) -> bool:
        """The token claims the scope, and the role has it."""
        needed = {row.scope, row.also.get(relation)} - {None}
        return not needed or (self.role in row.who and needed <= self.scopes(row))


REST_COLUMNS: Final[dict[str, Column]] = {
    "anonymous": Column(),
    "garbage token": Column(garbage="garbage"),
    "member": Column("member"),
    "moderator": Column("moderator"),
    "admin": Column("admin"),
    "service": Column("service"),
    "member who claims every scope": Column("member", "every"),
    "service who claims every scope": Column("service", "every"),
    "admin with a member's scopes": Column("admin", "member's"),
    "admin without this scope": Column("admin", "all but this"),
    "admin with this scope only": Column("admin", "only this"),
    "signed out": Column("admin", life="signed out"),
    "role changed": Column("admin", life="role changed"),
    "expired": Column("admin", life="expired"),
}
PUBLIC_COLUMNS: Final = ("anonymous", "garbage token", "member", "moderator", "admin", "service")
FRAME_COLUMNS: Final[dict[str, Column]] = REST_COLUMNS | {
    "service, let in": Column("service", way="as if"),
    "service who claims every scope, let in": Column("service", "every", way="as if"),
    "admin without this scope, let in": Column("admin", "all but this", way="as if"),
    "admin, then narrowed": Column("admin", way="then narrowed"),
}
OVER: Final = {"signed out": "token_invalid", "role changed": "token_expired", "expired": "token_expired"}
"""What everything answers whose token is over. On a socket `reauth` is the way back, as long as its session lives."""


def stated_rest(row: Row, column: Column, relation: str) -> str:
    if row.scope is None:
        return row.answers[relation]
    if column.role is None:
        return "401 token_invalid" if column.garbage else "401"
    if column.life != "live":
        return f"401 {OVER[column.life]}"
    return row.answers[relation] if column.may(row, relation) else "403 forbidden"


def stated_frame(key: str, row: Row, column: Column, relation: str) -> str:
    opens = FRAME_ROWS["$connect"]
    has_socket = column.role in opens.who and (column.claims != "all but this" or row.scope != opens.scope)
    if key == "$connect":
        return "open" if has_socket and column.life == "live" else "no socket"
    if column.role is None or (column.way != "as if" and not has_socket):
        return "no socket"
    if key == "$disconnect":
        return row.answers[relation]
    if column.life != "live" and (key != "reauth" or column.life == "signed out"):
        return OVER[column.life]
    if column.way == "then narrowed":
        return row.answers[relation] if row.scope in (None, opens.scope) else "forbidden"
    return row.answers[relation] if column.may(row, relation) else "forbidden"


def stated() -> dict[Cell, str]:
    """Every cell and its answer."""
    cells = {
        (key, name, relation): stated_rest(row, REST_COLUMNS[name], relation)
        for key, row in ROUTES.items()
        for name in (PUBLIC_COLUMNS if row.scope is None else REST_COLUMNS)
        for relation in row.answers
    }
    for key, row in FRAME_ROWS.items():
        columns = {name: column for name, column in FRAME_COLUMNS.items() if key not in ("$connect", "$disconnect") or column.way == "by ticket"}
        cells |= {(key, name, relation): stated_frame(key, row, column, relation) for name, column in columns.items() for relation in row.answers}
    return cells


# --- playing it


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of a cell. `audited`: refusals of this caller that were noted for the ledger; `leaked`: foreign ids in the answer that nobody asked for."""

    outcome: str
    answer: bytes = b""
    changed: tuple[str, ...] = ()
    audited: int = 0
    leaked: tuple[str, ...] = ()


@dataclass(slots=True)
class Caller:
    """Who asks in a cell, with a token; `sockets` were opened while that was still good."""

    person: Person
    identity: Identity
    token: str | None
    sockets: list[OpenSocket] = field(default_factory=list)


ENDS_ITSELF: Final = {("DELETE /v1/sessions", "own"), ("DELETE /v1/sessions/{sid}", "this_one"), ("DELETE /v1/accounts/{account_id}/sessions", "myself")}
"""Who asks for this is signed out afterwards: somebody new each time."""
USE_UP: Final = ("reauth", "$disconnect")
"""Frames that each have a socket for themselves: a `reauth` that is taken brings one back to life, or changes who speaks on it."""
SPARE_SOCKETS: Final = 1 + sum(len(FRAME_ROWS[key].answers) for key in USE_UP)
SOON_MS: Final = 5_000


class Play:
    """Plays cells in a world."""

    def __init__(self, world: AccessWorld) -> None:
        self.world, self.gateway, self.footprint = world, world.gateway, Footprint(world)
        self._people: dict[str, Person] = {}
        self._open: tuple[str, OpenSocket] | None = None
        self._over = {"signed out": self._signed_out(), "role changed": self._role_changed(), "expired": self._expired()}
        self._over_at_ms = now_ms() + SOON_MS

    def cell(self, cell: Cell) -> Seen:
        key = cell[0]
        return self._request(cell) if key in ROUTES else self._frame(cell)

    # who asks

    def caller(self, key: str, name: str, relation: str = "") -> Caller:
        row, column = {**ROUTES, **FRAME_ROWS}[key], FRAME_COLUMNS[name]
        if column.life != "live":
            return self._over[column.life]
        if (key, relation) in ENDS_ITSELF and column.role is not None:
            person = self.world.person(column.role)
        else:
            if name not in self._people:
                self._people[name] = self.world.person(column.role or "member")
            person = self._people[name]
        opens = {"signal:connect"} if key in FRAME_ROWS and column.claims == "only this" else set()
        identity = replace(person.identity, scope=" ".join(sorted(column.scopes(row) | opens)))
        token = column.garbage if column.role is None else self.world.access_token(identity)
        return Caller(replace(person, identity=identity), identity, token)

    def _admin(self) -> tuple[Person, Identity]:
        person = self.world.person("admin")
        return person, replace(person.identity, scope=" ".join(sorted(ADMIN)))

    def _signed_out(self) -> Caller:
        person, identity = self._admin()
        caller = Caller(replace(person, identity=identity), identity, self.world.access_token(identity))
        caller.sockets = [self.world.opened(identity) for _ in range(SPARE_SOCKETS)]
        assert self.gateway.rest("DELETE /v1/sessions", Asked(), caller.token).status == 200
        return caller

    def _role_changed(self) -> Caller:
        """The token says admin; what it would be refreshed into says member."""
        (person, identity), (_, other_admin) = self._admin(), self._admin()
        sockets = [self.world.opened(identity) for _ in range(SPARE_SOCKETS)]
        asked = Asked({"account_id": identity.account_id}, body={"role": "member"})
        assert self.gateway.rest("PUT /v1/accounts/{account_id}/role", asked, self.world.access_token(other_admin)).status == 200
        fresh = replace(identity, role="member", scope=" ".join(sorted(MEMBER)))
        return Caller(replace(person, identity=fresh), identity, self.world.access_token(identity), sockets)

    def _expired(self) -> Caller:
        """Sockets whose authentication is over SOON_MS from now, leeway included; a token that is over."""
        person, identity = self._admin()
        until_ms = now_ms() - 30_000 + SOON_MS
        soon = replace(identity, issued_at_ms=until_ms - 900_000, expires_at_ms=until_ms)
        sockets = [self.world.opened(soon) for _ in range(SPARE_SOCKETS)]
        over = replace(identity, issued_at_ms=until_ms - 960_000, expires_at_ms=until_ms - 60_000)
        return Caller(replace(person, identity=identity), over, self.world.access_token(over), sockets)

    # a request

    def _request(self, cell: Cell) -> Seen:
        key, name, relation = cell
        caller = self.caller(key, name, relation)
        asked = REST[key](self.world, caller.person, relation)
        before, queued, entries = self.footprint.take(), len(self.world.cloud.audited), self._sign_ins_refused(key)
        answer = self.gateway.rest(key, asked, caller.token, trace_of(cell))
        after, audited = self.footprint.take(), self._audited(caller, queued) + self._sign_ins_refused(key) - entries
        outcome = outcome_of(answer)
        if caller.token is None and ROUTES[key].scope is not None:
            behind = {outcome_of(each) for each in self.gateway.behind(key, asked)}
            outcome += "" if behind == {"401 token_invalid"} else f", but behind the gateway {sorted(behind)}"
        raw = f"{answer.status} {sorted(answer.headers.items())}\n".encode() + answer.body
        return Seen(outcome, raw, changed(before, after), audited, self._leaked(key, answer.body, asked))

    def _sign_ins_refused(self, key: str) -> int:
        if not key.startswith("POST /v1/tokens"):
            return 0
        return int(self.world.database.ledger.count_documents({"kind": "sign_in_refused"}))

    # a frame

    def _frame(self, cell: Cell) -> Seen:
        key, name, relation = cell
        caller, column = self.caller(key, name), FRAME_COLUMNS[name]
        if column.life == "expired":
            self._wait_until_expired()
        self._leave(f"{key}/{name}")
        before = {} if self._open else self.footprint.take()
        if key == "$connect":
            return Seen(self._connect(column, caller), changed=changed(before, self.footprint.take()))
        socket = self._socket(key, name, caller)
        if socket is None:
            return Seen("no socket", changed=changed(before, self.footprint.take()))
        asked = FRAMES[key](self.world, caller.person, relation)
        if key == "$disconnect":
            return Seen(str(self.gateway.disconnect(socket)))
        before, queued = self.footprint.take(), len(self.world.cloud.audited)
        said = self.gateway.frame(socket, "explode" if key == "$default" else key, asked, trace_of(cell))
        after, audited = self.footprint.take(), self._audited(caller, queued)
        self.footprint.forget_calls()
        done = tuple(OWN_SOCKET if each == f"posts to {socket.connection_id}" else each for each in changed(before, after))
        return Seen(str(json.loads(said).get("code", YES)), said, done, audited, self._leaked(key, said, asked))

    def _connect(self, column: Column, caller: Caller) -> str:
        """By the ticket that this token buys. Who gets none must not come in with a genuine one either, whoever signed it."""
        if column.role is None:
            return "no socket" if self.gateway.open(column.garbage) is None else "open, by no ticket"
        bought = self.world.ticket_bought(caller.token or "")
        if bought is not None:
            return "no socket, by a ticket that was sold" if self.gateway.open(bought) is None else "open"
        return "no socket" if self.gateway.open(self.world.ticket(caller.identity)) is None else "open, by a ticket that was not sold"

    def _socket(self, key: str, name: str, caller: Caller) -> OpenSocket | None:
        """A socket for all that somebody asks by one frame, opened by a ticket; or one that was opened in time."""
        column = FRAME_COLUMNS[name]
        if column.life != "live":
            return caller.sockets.pop() if key in USE_UP else caller.sockets[0]
        if column.way == "as if":
            return self.gateway.as_if(caller.identity)
        if self._open is not None:
            return self._open[1]
        socket = self.gateway.open(column.garbage if column.role is None else self.world.ticket_bought(caller.token or ""))
        if socket is not None and column.way == "then narrowed":
            left = " ".join(sorted(ADMIN - {FRAME_ROWS[key].scope}))
            self.gateway.frame(socket, "reauth", Asked(body={"access_token": self.world.access_token(replace(caller.identity, scope=left))}))
        if socket is not None and key not in USE_UP:
            self._open = (f"{key}/{name}", socket)
        return socket

    def _leave(self, what: str) -> None:
        """Closes the socket of another frame or caller."""
        if self._open is not None and self._open[0] != what:
            self.gateway.disconnect(self._open[1])
            self._open = None

    def _wait_until_expired(self) -> None:
        time.sleep(max(0.0, (self._over_at_ms - now_ms()) / 1000))

    # what there is to see

    def _audited(self, caller: Caller, since: int) -> int:
        return sum(message["account_id"] == caller.identity.account_id for message in self.world.cloud.audited[since:])

    def _leaked(self, key: str, answer: bytes, asked: Asked) -> tuple[str, ...]:
        """An admin reads of everybody in the tenant's audit log; nobody reads of anything in another tenant."""
        secret = self.world.foreigner.ids() | (set() if key == "GET /v1/audit" else self.world.stranger.ids())
        said, known = answer.decode(), json.dumps([dict(asked.path), asked.body, asked.room_id])
        return tuple(sorted(each for each in secret if each in said and each not in known))


def trace_of(cell: Cell) -> str:
    """One for all things that somebody asks a route for: then equal answers are equal to the byte."""
    return hashlib.sha256(f"{cell[0]}/{cell[1]}".encode()).hexdigest()[:32]


def outcome_of(answer: HttpAnswer) -> str:
    """The status and, of a refusal of ours, the code."""
    code = json.loads(answer.body).get("code") if answer.status >= 400 else None
    return f"{answer.status} {code}" if code else str(answer.status)


# --- judging it

_REFUSED: Final = ("forbidden", "not_found", "invalid", "expired", "refused", "conflict", "taken", "unknown_action", "no socket")
_ALIKE: Final = ("forbidden", "not_found", "invalid", "expired", "refused")
OWN_SOCKET: Final = "own socket"
_BOOKKEEPING: Final = (":connections", ":last_seen", ":head:e1")
"""What a yes that does nothing may touch: the sender's own entry, and the hint where a stream ends."""


def is_refusal(outcome: str) -> bool:
    return outcome == "401" or any(word in outcome for word in _REFUSED)


def wrong(expected: Mapping[Cell, str], seen: Mapping[Cell, Seen]) -> list[str]:
    """A sentence for each cell that is not as stated."""
    found = [f"{' / '.join(cell)}: was not played" for cell in expected.keys() - seen.keys()]
    found += [f"{' / '.join(cell)}: is not stated" for cell in seen.keys() - expected.keys()]
    for cell in expected.keys() & seen.keys():
        found += [f"{' / '.join(cell)}: {fault}" for fault in _faults(cell, expected[cell], seen[cell])]
    return sorted(found + _unlike(seen))


def _faults(cell: Cell, outcome: str, seen: Seen) -> Iterator[str]:
    key, name, relation = cell
    row = {**ROUTES, **FRAME_ROWS}[key]
    if seen.outcome != outcome:
        yield f"stated {outcome}, seen {seen.outcome}"
    if seen.leaked:
        yield f"told of {', '.join(seen.leaked)}"
    may_change = {OWN_SOCKET} if (key in FRAME_ROWS and seen.outcome == OVER["signed out"] and name == "signed out") else set()
    if is_refusal(seen.outcome) and set(seen.changed) != may_change:
        yield f"refused, and changed {', '.join(seen.changed) or 'nothing'}"
    loud = [each for each in seen.changed if not each.endswith(_BOOKKEEPING)]
    if relation in row.quiet and not is_refusal(seen.outcome) and loud:
        yield f"must do nothing, and changed {', '.join(loud)}"
    should_be_audited = ("forbidden" in seen.outcome or "credentials_invalid" in seen.outcome) and relation != "no_such_tenant"  # which has no ledger
    if (should_be_audited or relation == "no_such_tenant") and seen.audited != should_be_audited:
        yield f"refused, and {seen.audited} entries go to the ledger"


def _unlike(seen: Mapping[Cell, Seen]) -> list[str]:
    """Refusals of one kind that one can tell from each other."""
    groups: dict[tuple[str, str, str], dict[bytes, list[str]]] = {}
    for (key, name, relation), found in seen.items():
        if any(word in found.outcome for word in _ALIKE):
            groups.setdefault((key, name, found.outcome), {}).setdefault(found.answer, []).append(relation)
    return [f"{key} / {name}: {outcome} differs between {list(kinds.values())}" for (key, name, outcome), kinds in groups.items() if len(kinds) > 1]


def unmatched(rows: Mapping[str, object], table: Mapping[str, object], asks: Mapping[str, object]) -> list[str]:
    """Routes without a row, rows without a route, and rows that nobody can ask."""
    lacking = [f"{key} has no row" for key in table.keys() - rows.keys()] + [f"{key} is no route" for key in rows.keys() - table.keys()]
    return sorted(lacking + [f"{key} cannot be asked" for key in rows.keys() ^ asks.keys()])


# --- the tests


@pytest.fixture(scope="module")
def world(stores: Stores) -> Iterator[AccessWorld]:
    with access_world(stores.redis_url, stores.mongodb_uri) as made:
        yield made


@pytest.fixture(scope="module")
def play(world: AccessWorld) -> Play:
    return Play(world)


@pytest.fixture(scope="module")
def seen(play: Play) -> dict[Cell, Seen]:
    """Every cell, played once. What the functions wrote unseen by the driver's listener would be found here."""
    found = {cell: play.cell(cell) for cell in stated()}
    assert play.footprint.unnoticed() == []
    return found


def test_every_route_and_every_frame_has_a_row_and_every_row_a_route() -> None:
    assert unmatched(ROUTES, HTTP, REST) == []
    assert unmatched(FRAME_ROWS, SOCKETS, FRAMES) == []


def test_routes_are_guarded_by_the_scopes_that_are_stated_and_public_ones_are_few() -> None:
    assert {key: row.scope for key, row in ROUTES.items()} == {key: route.scope for key, (_, route) in HTTP.items()}
    assert {key: row.scope for key, row in FRAME_ROWS.items()} == {key: route.scope for key, (_, route) in SOCKETS.items()}
    assert all(len(row.answers) >= 4 for key, row in ROUTES.items() if HTTP[key][1].about != "nothing"), "mine, not mine, of another tenant, unknown"
    assert all(len(row.answers) >= 4 for key, row in FRAME_ROWS.items() if SOCKETS[key][1].about != "nothing")


def test_every_cell_of_the_matrix_is_as_stated(seen: dict[Cell, Seen], capsys: pytest.CaptureFixture[str]) -> None:
    found = wrong(stated(), seen)
    columns, relations = {name for _, name, _ in seen}, {relation for _, _, relation in seen}
    size = f"{len(ROUTES)} routes and {len(FRAME_ROWS)} frames x {len(columns)} callers x {len(relations)} things = {len(seen)} cells"
    outcomes = Counter("refused" if is_refusal(each.outcome) else "taken" for each in seen.values())
    with capsys.disabled():
        print(f"\nmatrix: {size} ({outcomes['taken']} taken, {outcomes['refused']} refused), {len(found)} wrong")
    assert not found, f"{len(found)} of {size} are wrong:\n" + "\n".join(found)


def test_what_a_sign_in_gives_claims_the_scopes_that_are_stated(world: AccessWorld) -> None:
    for role, scopes in SCOPES_OF.items():
        account, device = world.account(role), {"device_id": world.peer.identity.device_id}
        if role == "service":
            asked, key = Asked(body={"assertion": world.assertion(world.tenant_id, account.account_id), **device}), "POST /v1/tokens/service"
        else:
            asked, key = Asked(body={"tenant_id": world.tenant_id, "login": account.login, "password": world.password, **device}), "POST /v1/tokens"
        answer = json.loads(world.gateway.rest(key, asked, None).body)
        claims = jwt.decode(answer["access_token"], options={"verify_signature": False})
        assert (claims["role"], frozenset(claims["scope"].split())) == (role, scopes)


# --- what is foreign costs the stores what is unknown costs them

ALIKE: Final[dict[str, tuple[str, ...]]] = {  # an unknown thing, and things that must look like it
    "unknown": ("other_tenant", "not_mine", "of_a_member", "my_other", "my_other_device"),
    "to_unknown": ("to_other_tenant", "to_not_mine"),
    "with_unknown": ("with_other_tenant", "with_both"),
}


def lookalikes(row: Row) -> Iterator[tuple[str, list[str]]]:
    """(an unknown thing that the request can name, things that are answered as it is)."""
    for unknown, others in ALIKE.items():
        alike = [each for each in others if row.answers.get(each) == row.answers.get(unknown)]
        if unknown in row.answers and alike:
            yield unknown, alike


def asking(play: Play, key: str, relation: str, socket: OpenSocket | None) -> Callable[[], object]:
    """An admin's request or frame, ready to be sent."""
    caller = play.caller(key, "admin")
    asked = {**REST, **FRAMES}[key](play.world, caller.person, relation)
    if socket is None:
        return lambda: play.gateway.rest(key, asked, caller.token)
    return lambda: play.gateway.frame(socket, key, asked)


def test_what_is_foreign_asks_the_stores_for_what_an_unknown_thing_asks_them(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    lines, differing = [], []
    for key, row in {**ROUTES, **FRAME_ROWS}.items():
        if key == "POST /v1/tokens":
            continue  # below, with the work that a password costs
        for unknown, others in lookalikes(row):
            socket = play.world.opened(play.caller(key, "admin").identity) if key in FRAME_ROWS else None
            asking(play, key, unknown, socket)()  # warm
            asked = {relation: stores_asked(play.world, asking(play, key, relation, socket)) for relation in (unknown, *others)}
            differing += [f"{key}: {other} asks {asked[other]}, {unknown} {asked[unknown]}" for other in others if asked[other] != asked[unknown]]
            lines.append(f"  {key:<44} {said_of(asked[unknown])} | {unknown} = {' = '.join(others)}")
    with capsys.disabled():
        print("\nwhat a refusal asks of the stores:", *lines, sep="\n")
    assert differing == []
    about = {key for table in (HTTP, SOCKETS) for key, (_, route) in table.items() if route.about != "nothing"}
    assert about <= {key for key, row in {**ROUTES, **FRAME_ROWS}.items() if list(lookalikes(row))}, "every route about a thing was compared"


def said_of(asked: tuple[Sequence[str], Sequence[str]]) -> str:
    return f"redis: {' '.join(asked[0]) or '-':<14} mongodb: {', '.join(asked[1]) or '-'}"


def test_the_comparison_of_commands_is_not_blind(play: Play) -> None:
    ask = asking(play, "GET /v1/rooms/{room_id}", "unknown", None)
    once = stores_asked(play.world, ask)
    more = stores_asked(play.world, lambda: (ask(), wiring.rooms().get(play.world.tenant_id, "room_x"), wiring.redis().get("hg:{x}:y")))
    assert more == ([*once[0], "get"], [*once[1], "find rooms"])


SIGN_INS: Final = ("unknown", "wrong_password", "other_tenant", "no_password")


def test_a_login_that_nobody_has_costs_what_a_wrong_password_costs(
    world: AccessWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work: Counter[str] = Counter()
    for name in ("verify", "hash"):
        monkeypatch.setattr(argon2.PasswordHasher, name, counted(work, name, getattr(argon2.PasswordHasher, name)))
    signing_in(world, "unknown")()  # warm: the decoy is made once a process
    costs = {}
    for relation in SIGN_INS:
        ask = signing_in(world, relation)
        work.clear()
        costs[relation] = (*stores_asked(world, ask), dict(work))
    with capsys.disabled():
        print(f"\na refused sign-in: {said_of(costs['unknown'][:2])}, argon2: {costs['unknown'][2]} | {' = '.join(SIGN_INS)}")
    assert costs["unknown"][2] == {"verify": 1}
    assert all(cost == costs["unknown"] for cost in costs.values()), costs
    work.clear()
    elsewhere = stores_asked(world, signing_in(world, "no_such_tenant"))
    with capsys.disabled():
        print(f"  of a tenant that nobody has: {said_of(elsewhere)}, argon2: {dict(work)}: no ledger, no entry")
    assert work == {"verify": 1}
    assert elsewhere[0] == costs["unknown"][0]


def signing_in(world: AccessWorld, relation: str) -> Callable[[], HttpAnswer]:
    asked = REST["POST /v1/tokens"](world, world.peer, relation)
    return lambda: world.gateway.rest("POST /v1/tokens", asked, None)


def counted(work: Counter[str], name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, and a note that it was called."""

    def call(*args: Any, **named: Any) -> Any:
        work[name] += 1
        return real(*args, **named)

    return call


def test_the_times_of_foreign_and_unknown_are_printed_side_by_side(world: AccessWorld, play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    """Printed, not asserted: on a busy machine a difference would say nothing. What makes the times is asserted above."""
    real_hash = {"$set": {"password_hash": passwords_argon2.hashed(world.password)}}  # at the cost of the product
    world.database.accounts.update_one({"tenant_id": world.tenant_id, "login": world.peer.login}, real_hash)
    rooms = interleaved({each: asking(play, "GET /v1/rooms/{room_id}", each, None) for each in ("unknown", "other_tenant", "not_mine")}, 60)
    sign_ins = interleaved({each: signing_in(world, each) for each in SIGN_INS[:3]}, 8)
    with capsys.disabled():
        print("\nmilliseconds, median and p90:")
        for key, taken in (("GET /v1/rooms/{room_id}", rooms), ("POST /v1/tokens", sign_ins)):
            print(f"  {key:<25}" + " | ".join(f"{name} {statistics.median(ms):.2f} {p90(ms):.2f}" for name, ms in taken.items()))
    assert [len(ms) for ms in (*rooms.values(), *sign_ins.values())] == [60] * 3 + [8] * 3


def interleaved(acts: Mapping[str, Callable[[], object]], times: int) -> dict[str, list[float]]:
    """How long each took in milliseconds; in turn, so that what disturbs one disturbs all."""
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(times):
        for name, act in acts.items():
            began = time.perf_counter()
            act()
            taken[name].append((time.perf_counter() - began) * 1000)
    return taken


def p90(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=10)[-1]


# --- the judges find what they look for


def judged(seen: Mapping[Cell, Seen], cell: Cell, expected: str | None = None, **instead: Any) -> list[str]:
    """What the judge finds when one cell is stated, or was, otherwise; what it finds anyway is left out."""
    cells = stated() | ({cell: expected} if expected else {})
    return sorted(set(wrong(cells, {**seen, cell: replace(seen[cell], **instead)})) - set(wrong(stated(), seen)))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (("GET /v1/audit", "moderator", "own"), "200"),
        (("GET /v1/rooms/{room_id}", "admin", "other_tenant"), "200"),
        (("POST /v1/media/{media_id}/links", "member", "of_a_member"), "404 not_found"),
        (("GET /v1/jwks.json", "anonymous", "own"), "401"),
        (("message", "member", "not_mine"), YES),
        (("$connect", "service", "own"), "open"),
        (("ping", "expired", "no_room"), YES),
    ],
)
def test_one_wrong_expectation_is_one_wrong_cell(seen: dict[Cell, Seen], cell: Cell, expected: str) -> None:
    assert judged(seen, cell, expected) == [f"{' / '.join(cell)}: stated {expected}, seen {seen[cell].outcome}"]


def test_a_refusal_that_changes_leaks_differs_or_is_not_audited_is_a_wrong_cell(seen: dict[Cell, Seen]) -> None:
    refused, forbidden, quiet = ("GET /v1/rooms/{room_id}", "admin", "other_tenant"), ("GET /v1/audit", "member", "own"), ("watch", "member", "unknown")
    assert judged(seen, refused, changed=("mongodb rooms",)) == [f"{' / '.join(refused)}: refused, and changed mongodb rooms"]
    assert judged(seen, refused, leaked=("room_1",)) == [f"{' / '.join(refused)}: told of room_1"]
    assert judged(seen, refused, answer=seen[refused].answer + b" ") == [
        "GET /v1/rooms/{room_id} / admin: 404 not_found differs between [['not_mine', 'unknown'], ['other_tenant']]"
    ]
    assert judged(seen, forbidden, audited=0) == [f"{' / '.join(forbidden)}: refused, and 0 entries go to the ledger"]
    assert judged(seen, quiet, changed=("posts to a socket",)) == [f"{' / '.join(quiet)}: must do nothing, and changed posts to a socket"]
    closed = ("hello", "signed out", "own")
    assert judged(seen, closed, changed=()) == [f"{' / '.join(closed)}: refused, and changed nothing"]


def test_a_route_without_a_row_a_row_without_a_route_and_a_cell_that_was_not_played_are_found(seen: dict[Cell, Seen]) -> None:
    rows = {key: row for key, row in ROUTES.items() if key != "GET /v1/audit"} | {"GET /v1/nothing": ROUTES["GET /v1/audit"]}
    assert unmatched(rows, HTTP, REST) == [
        "GET /v1/audit cannot be asked",
        "GET /v1/audit has no row",
        "GET /v1/nothing cannot be asked",
        "GET /v1/nothing is no route",
    ]
    cell = ("GET /v1/audit", "member", "own")
    assert set(wrong(stated(), {each: found for each, found in seen.items() if each != cell})) >= {f"{' / '.join(cell)}: was not played"}


def test_the_footprint_sees_each_kind_of_change_and_no_counter_and_no_refusal(world: AccessWorld) -> None:
    footprint, room = Footprint(world), {"room_id": "room_x", "name": "x", "epoch": "e", "schema_version": 1, "tenant_id": "somewhere"}

    def done(act: Callable[[], object]) -> tuple[str, ...]:
        before = footprint.take()
        act()
        return changed(before, footprint.take())

    def record(kind: str) -> Callable[[], object]:
        return lambda: wiring.ledger().record("somewhere", now_ms(), kind, "a", "b", {})

    assert done(lambda: wiring.database().rooms.insert_one(room)) == ("mongodb rooms",)
    assert done(lambda: wiring.redis().set("hg:{a/b}:thing", 1)) == ("redis hg:{a/b}:thing",)
    assert done(lambda: wiring.redis().delete("hg:{a/b}:thing")) == ("redis hg:{a/b}:thing",)
    assert done(lambda: wiring.outbox().delete("somebody=")) == ("posts to somebody=",)
    assert done(lambda: wiring.timers().send({"kind": "look_after"})) == ("queue",)
    assert done(record("signed_in")) == ("mongodb ledger",)
    assert done(record("access_refused")) == done(lambda: wiring.redis().set("hg:{a/b}:limit:reads:", 1)) == ()
    assert done(lambda: wiring.timers().send({"kind": "audit_refusal"})) == ()
    before = footprint.take()
    world.database.rooms.delete_one({"room_id": "room_x"})
    commands().sent.clear()  # as if nobody had been seen
    assert changed(before, footprint.take()) == ()
    assert footprint.unnoticed() == ["rooms"]
