"""Fuzzed frames through the real handlers, a small run of bench/fuzz_frames.py; and its judges find what they look for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench import fuzz_frames
from bench._fuzzed_frames import MUTATIONS
from bench._signal_world import SDP, World, new_id, stores, world
from bench.fuzz_frames import Handler, fuzz, handlers
from functions.routes import socket_routes

Event = dict[str, Any]
Wrap = Callable[[Handler], Handler]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Stores of its own: the judges look at every key and document."""
    with stores(tmp_path_factory.mktemp("fuzz")) as (redis_url, mongodb_uri), world(redis_url, mongodb_uri) as made:
        yield made


def test_2_000_fuzzed_frames_crash_nothing_and_refused_ones_change_nothing(made: World) -> None:
    tally = fuzz(made, 2_000, seed=1)
    assert tally.findings == []
    assert tally.changes == 0
    assert tally.frames == 2_000
    assert sum(tally.refused.values()) + sum(tally.accepted.values()) == 2_000
    assert {"malformed", "too_large", "unknown_action", "not_found", "sdp_invalid", "out_of_order", "forbidden", "token_invalid"} <= tally.refused.keys()
    assert tally.refused["rate_limited"] < 100, "limits must not hide the rest"
    assert {"hello", "join", "message", "offer", "candidate", "ping", "presence", "watch"} <= tally.accepted.keys(), "twins pass"


def test_every_action_of_the_route_table_has_a_handler_and_is_fuzzed(made: World) -> None:
    assert handlers().keys() == {route.key for _, route in socket_routes() if route.answers}
    assert len(MUTATIONS) > 15


def refusing(answer: dict[str, Any]) -> dict[str, Any]:
    """A refusal in the place of an acknowledgement: whatever the frame did, it did as a refused one."""
    said = json.loads(answer["body"])
    refusal = {"code": "malformed", "message": "No.", "retryable": False, "trace_id": "0" * 32, "re": said["re"]}
    return answer if "code" in said else answer | {"body": json.dumps(refusal)}


def acts_and_refuses(real: Handler) -> Handler:
    return lambda event, context: refusing(real(event, context))


def raises(real: Handler) -> Handler:
    def handler(event: Event, context: Any) -> Event:
        raise RecursionError("too deep")

    return handler


def says_internal(real: Handler) -> Handler:
    return lambda event, context: {"statusCode": 200, "body": '{"code":"internal","message":"Oh.","retryable":true,"trace_id":"0"}'}


def says_nothing(real: Handler) -> Handler:
    return lambda event, context: {"statusCode": 200}


def acknowledges_everything(real: Handler) -> Handler:
    return lambda event, context: {"statusCode": 200, "body": '{"re":"msg_0"}'}


@pytest.mark.parametrize(
    ("action", "wrap", "finding"),
    [
        ("message", acts_and_refuses, "a refused frame wrote mongo room_events"),
        ("message", acts_and_refuses, "a refused frame posted"),
        ("message", acts_and_refuses, "acknowledged frames make"),
        ("presence", acts_and_refuses, "a refused frame wrote redis"),
        ("stats", acts_and_refuses, "changed by no acknowledged frame: redis"),
        ("offer", acts_and_refuses, "a refused frame queued"),
        ("ping", raises, "the handler raised"),
        ("ping", says_internal, "not a refusal that may be"),
        ("ping", says_nothing, "no JSON"),
        ("ping", acknowledges_everything, "not an acknowledgement of this frame"),
    ],
)
def test_the_judges_find(made: World, action: str, wrap: Wrap, finding: str) -> None:
    real = handlers()
    tally = fuzz(made, 400, seed=2, answering=real | {action: wrap(real[action])})
    assert [found for found in tally.findings if finding in found], tally.findings[:3]


def test_the_judges_find_what_is_slow(made: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz_frames, "SLOW_S", 0.0)
    assert len(fuzz(made, 50, seed=3).findings) == 50


def test_the_offer_that_loses_a_glare_is_told_so(made: World) -> None:
    """Its sender rolls back and answers the other one; `negotiation_stale` would have it offer again."""
    call_id, codes = new_id("call"), set()
    made.room_id = new_id("room")  # the runs above emptied the stores
    made.make_room()
    with fuzz_frames.opened(made):
        for person in (made.ana, made.ben):
            handlers()["hello"](person.frame("hello", {}), fuzz_frames.CONTEXT)
        for person, other, negotiation_id in ((made.ana, made.ben, "n1"), (made.ben, made.ana, "n2"), (made.ana, made.ben, "n3")):
            to = {"account_id": other.account_id, "device_id": other.device_id}
            body = {"call_id": call_id, "to": to, "negotiation_id": negotiation_id, "sdp": SDP}
            answer = handlers()["offer"](person.frame("offer", body, made.room_id), fuzz_frames.CONTEXT)
            codes.add(json.loads(answer["body"]).get("code"))
    assert codes == {None, "glare"}
