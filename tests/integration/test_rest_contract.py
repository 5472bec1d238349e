"""The REST API against its own OpenAPI document: schemathesis makes requests of it, good and bad, and every answer must be one that the document names.

It asks a stack of its own: what it sends signs people out, changes roles and empties rate limits.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance

from adapters import redis_client
from functions.routes import Http, http_routes
from heliograph_client import make_id
from tests.running import RunningStack, running_stack

Json = dict[str, Any]
CHECKS: Final = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
LOGINS: Final = {"member": "ana", "admin": "olga", "nobody": None}
EXAMPLES: Final = {GenerationMode.POSITIVE: 13, GenerationMode.NEGATIVE: 12}
COSTLY: Final = {GenerationMode.POSITIVE: 3, GenerationMode.NEGATIVE: 6}  # argon2id takes its time for an unknown login too
ROUTES: Final = {route.key: route for _, route in http_routes()}
CONTENT: Final = b"content"


@dataclass(slots=True)
class Rest:
    """The running product, what its document says, and what was answered so far."""

    stack: RunningStack
    operations: dict[str, Any]  # label -> schemathesis' operation
    base_url: str
    redis: Any
    answered: dict[tuple[str, str], Counter[int]] = field(default_factory=lambda: defaultdict(Counter))  # (operation, identity) -> statuses
    findings: dict[tuple[str, int, str], str] = field(default_factory=dict)  # (operation, status, what) -> the first such answer
    room_id: str = ""
    media_id: str = ""

    def ask(self, case: Case[Any], identity: str, headers: dict[str, str]) -> requests.Response | Any:
        """One request; what its answer has wrong is noted."""
        answer = case.call(base_url=self.base_url, headers=headers)
        self.answered[case.operation.label, identity][answer.status_code] += 1
        try:
            case.validate_response(answer, checks=CHECKS)
        except FailureGroup as failed:
            for failure in failed.exceptions:
                said = f"{identity}: {answer.content[:200]!r}: {failure.message.partition(chr(10))[0]}"
                self.findings.setdefault((case.operation.label, answer.status_code, type(failure).__name__), said)
        return answer


class Caller:
    """Somebody with a token that works, as long as nobody ended its session."""

    def __init__(self, rest: Rest, login: str | None) -> None:
        self._rest, self._user, self.pair = rest, rest.stack.user(login) if login else None, dict[str, str]()

    def headers(self) -> dict[str, str]:
        """Signs in again when the last session was ended."""
        if self._user is None:
            return {}
        found = {"Authorization": f"Bearer {self.pair.get('access_token')}"}
        if not self.pair or requests.get(f"{self._rest.base_url}/v1/presence", headers=found, timeout=10).status_code == 401:
            body = self.sign_in_body()
            answer = requests.post(f"{self._rest.base_url}/v1/tokens", json=body, headers={"Idempotency-Key": secrets.token_hex(8)}, timeout=10)
            assert answer.status_code == 201, answer.text
            self.pair = answer.json()
        return {"Authorization": f"Bearer {self.pair['access_token']}"}

    def sign_in_body(self) -> Json:
        user = self._user or self._rest.stack.user("ana")
        return {name: user[name] for name in ("tenant_id", "login", "password")} | {"device_id": make_id("dev")}


# A good request of each operation that one can make without the world outside: path parameters, query, body. Others have random ones only.
GOOD: Final[dict[str, Callable[[Rest, Caller], Json]]] = {
    "GET /v1/presence": lambda rest, caller: {},
    "POST /v1/tokens": lambda rest, caller: {"body": caller.sign_in_body()},
    "POST /v1/tokens/refresh": lambda rest, caller: {"body": {"refresh_token": _another(rest, caller)["refresh_token"]}},
    "POST /v1/tickets": lambda rest, caller: {},
    "GET /v1/jwks.json": lambda rest, caller: {},
    "GET /v1/sessions": lambda rest, caller: {},
    "DELETE /v1/sessions": lambda rest, caller: {},
    "DELETE /v1/sessions/{sid}": lambda rest, caller: {"path_parameters": {"sid": _another_sid(rest, caller)}},
    "DELETE /v1/accounts/{account_id}/sessions": lambda rest, caller: {"path_parameters": _ben(rest)},
    "PUT /v1/accounts/{account_id}/role": lambda rest, caller: {"path_parameters": _ben(rest), "body": {"role": "moderator"}},
    "GET /v1/audit": lambda rest, caller: {"query": {"after": "0", "limit": "10"}},
    "POST /v1/rooms": lambda rest, caller: {"body": {"room_id": make_id("room"), "name": "Depot", "member_ids": [_ben(rest)["account_id"]]}},
    "GET /v1/rooms": lambda rest, caller: {"query": {"limit": "2"}},
    "GET /v1/rooms/{room_id}": lambda rest, caller: {"path_parameters": {"room_id": rest.room_id}},
    "GET /v1/rooms/{room_id}/events": lambda rest, caller: {"path_parameters": {"room_id": rest.room_id}, "query": {"after": "0"}},
    "PUT /v1/devices/{device_id}/push-target": lambda rest, caller: {
        "path_parameters": {"device_id": caller.pair.get("device_id", make_id("dev"))},
        "body": {"target_kind": "token", "target": "t"},
    },
    "GET /v1/ice-servers": lambda rest, caller: {},
    "POST /v1/media": lambda rest, caller: {"body": _file(rest)},
    "POST /v1/media/{media_id}/complete": lambda rest, caller: {"path_parameters": {"media_id": rest.media_id}},
    "POST /v1/media/{media_id}/links": lambda rest, caller: {"path_parameters": {"media_id": rest.media_id}, "body": {"expires_s": 60}},
    "GET /v1/openapi.json": lambda rest, caller: {},
    "GET /v1/asyncapi.json": lambda rest, caller: {},
}


def _ben(rest: Rest) -> Json:
    return {"account_id": rest.stack.user("ben")["account_id"]}


def _file(rest: Rest) -> Json:
    about = {"file_name": "a.txt", "content_type": "text/plain", "length_bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    return {"media_id": make_id("med"), "room_id": rest.room_id, **about}


def _another(rest: Rest, caller: Caller) -> Json:
    """A session more, whose tokens may be used up."""
    answer = requests.post(f"{rest.base_url}/v1/tokens", json=caller.sign_in_body(), headers={"Idempotency-Key": secrets.token_hex(8)}, timeout=10)
    pair: Json = answer.json()
    return pair


def _another_sid(rest: Rest, caller: Caller) -> str:
    headers = caller.headers()
    if not headers:
        return make_id("ses")
    device_id = _another(rest, caller)["device_id"]
    listed = requests.get(f"{rest.base_url}/v1/sessions", headers=headers, timeout=10).json()["sessions"]
    return next(str(session["sid"]) for session in listed if session["device_id"] == device_id)


def _prepare(rest: Rest, caller: Caller) -> None:
    """A room of the caller's and a file that was uploaded into it."""
    rest.room_id, rest.media_id = make_id("room"), make_id("med")
    headers = caller.headers()
    if not headers:
        return

    def post(path: str, body: Json) -> Json:
        answer = requests.post(rest.base_url + path, json=body, headers=headers | {"Idempotency-Key": secrets.token_hex(8)}, timeout=10)
        assert answer.status_code == 201, answer.text
        made: Json = answer.json()
        return made

    post("/v1/rooms", {"room_id": rest.room_id, "name": "Depot", "member_ids": []})
    upload = post("/v1/media", _file(rest) | {"media_id": rest.media_id})["upload"]
    assert requests.put(upload["url"], data=CONTENT, headers=upload["headers"], timeout=10).status_code == 200


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rest]:
    with running_stack(tmp_path_factory.mktemp("contract")) as stack:
        document = requests.get(stack.endpoints()["rest_url"] + "/v1/openapi.json", timeout=10).json()
        client = redis_client.connect(stack.endpoints()["redis_url"], "single")
        yield Rest(stack, _operations(document), document["servers"][0]["url"], client)
        client.close()


def _operations(document: Json) -> dict[str, Any]:
    """What the document describes; the token is ours to send or not."""
    config = SchemathesisConfig.from_dict({"generation": {"with-security-parameters": False}})
    schema: Any = schemathesis.openapi.from_dict(document, config=config)
    return {result.ok().label: result.ok() for result in schema.get_all_operations()}


def _exercise(rest: Rest, route: Http, identity: str, caller: Caller) -> None:
    """A good request and generated ones; half of those name things that exist, where the path names any. The rate limits are as if nobody had asked before."""
    for name in rest.redis.scan_iter("hg:*:limit:*"):
        rest.redis.delete(name)
    operation = rest.operations[route.key]
    key = {"Idempotency-Key": secrets.token_hex(8)} if route.method == "POST" else {}
    known: Json = {}
    if route.key in GOOD:
        headers, good = caller.headers(), GOOD[route.key](rest, caller)
        known = good.get("path_parameters", {})
        case = operation.Case(**good, headers=key, media_type="application/json" if "body" in good else None)
        rest.ask(case, identity, headers)
    is_costly = route.key == "POST /v1/tokens"
    for mode, count in (COSTLY if is_costly else EXAMPLES).items():
        for path_parameters, share in (({}, count - count // 2), (known, count // 2)) if known else (({}, count),):
            strategy = operation.as_strategy(generation_mode=mode, **({"path_parameters": path_parameters} if path_parameters else {}))
            try:
                _generate(rest, strategy, share, identity, caller.headers())
            except Unsatisfiable:  # nothing in such a request can be wrong
                assert mode == GenerationMode.NEGATIVE, route.key


def _generate(rest: Rest, strategy: SearchStrategy[Case[Any]], count: int, identity: str, headers: dict[str, str]) -> None:
    """So many requests; the same ones in every run."""

    @settings(max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(case=strategy)
    def ask(case: Case[Any]) -> None:
        rest.ask(case, identity, headers)

    ask()


@pytest.mark.parametrize("identity", LOGINS)
def test_every_answer_is_one_that_the_document_names(rest: Rest, identity: str) -> None:
    caller, started = Caller(rest, LOGINS[identity]), time.monotonic()
    _prepare(rest, caller)
    for route in ROUTES.values():
        _exercise(rest, route, identity, caller)
    _print(rest, identity, time.monotonic() - started)
    found = "\n".join(f"{' '.join(map(str, about))}: {said}" for about, said in rest.findings.items())
    assert not found, found
    for key, route in ROUTES.items():
        statuses = rest.answered[key, identity]
        assert statuses.total() - statuses[429] > 0, f"{key} was not exercised"
        if identity == "nobody" and route.scope is not None:
            assert statuses.keys() == {401}, key
        elif key in GOOD and identity == "admin":
            assert statuses[route.status] > 0, f"the good request of {key} did not pass: {dict(statuses)}"


def _print(rest: Rest, identity: str, took_s: float) -> None:
    total = sum(counts.total() for (_, whose), counts in rest.answered.items() if whose == identity)
    print(f"\n{identity}: {total} requests in {took_s:.0f} s")
    for key in ROUTES:
        counts = rest.answered[key, identity]
        print(f"  {key:<45} {counts.total():>4}  " + "  ".join(f"{status}: {count}" for status, count in sorted(counts.items())))


def test_the_checks_find_what_the_document_does_not_name(rest: Rest) -> None:
    """A broken document in the place of ours: the same answers are findings."""
    document = requests.get(f"{rest.base_url}/v1/openapi.json", timeout=10).json()
    document["paths"]["/v1/jwks.json"]["get"]["responses"] = {"404": {"description": "no", "content": {"application/json": {"schema": {}}}}}
    document["components"]["schemas"]["Document"] = {"type": "object", "required": ["nothing"]}
    blind = Rest(rest.stack, _operations(document), rest.base_url, rest.redis)
    for key in ("GET /v1/jwks.json", "GET /v1/openapi.json"):
        blind.ask(blind.operations[key].Case(), "nobody", {})
    assert {(key, status, what) for key, status, what in blind.findings} == {
        ("GET /v1/jwks.json", 200, "UndefinedStatusCode"),
        ("GET /v1/openapi.json", 200, "JsonSchemaError"),
    }
