"""Golden frames: what the Python client builds and reads is what the server reads and sends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from functions.routes import socket_routes
from heliograph import effects, errors, messages
from heliograph.shapes import EVENTS
from heliograph_client import frames as client_frames
from heliograph_client.errors import RefusedError, parse_error

FOLDER = Path(__file__).parents[2] / "clients" / "protocol"
CLIENT: dict[str, list[dict[str, Any]]] = json.loads((FOLDER / "client_frames.json").read_text())
SERVER: dict[str, list[dict[str, Any]]] = json.loads((FOLDER / "server_frames.json").read_text())
BODY_SHAPES = {route.key: route.body for _, route in socket_routes() if not route.key.startswith("$")}
CODES = {kind.code: kind for kind in errors.catalogue()}


def cases(rows: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", rows, ids=[row["name"] for row in rows])


@cases(CLIENT["valid"])
def test_the_client_builds_the_golden_frame_and_the_server_reads_it(case: dict[str, Any]) -> None:
    golden = case["frame"]
    text = client_frames.build_frame(golden["action"], golden["id"], golden["client_seq"], golden["trace_id"], golden.get("room_id"), golden["body"])
    assert json.loads(text) == golden
    frame = messages.parse_frame(text, BODY_SHAPES)
    assert (frame.action, frame.id, frame.client_seq, frame.trace_id, frame.room_id) == (
        golden["action"],
        golden["id"],
        golden["client_seq"],
        golden["trace_id"],
        golden.get("room_id"),
    )
    assert frame.body == golden["body"]


def test_every_action_has_a_golden_frame_and_a_refused_twin() -> None:
    assert {case["frame"]["action"] for case in CLIENT["valid"]} == set(BODY_SHAPES)
    assert {case["frame"].get("action") for case in CLIENT["invalid"]} >= set(BODY_SHAPES)


def test_every_event_has_a_golden_frame() -> None:
    assert {case["frame"]["event"] for case in SERVER["events"]} >= set(EVENTS)


def test_every_reason_to_close_a_socket_has_a_golden_frame() -> None:
    reasons = {case["frame"]["body"]["reason"] for case in SERVER["events"] if case["frame"]["event"] == "closed"}
    assert reasons == set(get_args(get_type_hints(effects.Close)["reason"]))


@pytest.mark.parametrize("file", [CLIENT, SERVER], ids=["client", "server"])
def test_names_of_golden_frames_are_unique(file: dict[str, list[dict[str, Any]]]) -> None:
    for group in file.values():
        names = [case["name"] for case in group]
        assert len(names) == len(set(names))


@cases(CLIENT["invalid"])
def test_the_server_refuses_the_invalid_frame_with_its_code(case: dict[str, Any]) -> None:
    with pytest.raises(errors.HeliographError) as refusal:
        messages.parse_frame(json.dumps(case["frame"]), BODY_SHAPES)
    assert refusal.value.code == case["code"]


@cases(CLIENT["invalid_text"])
def test_the_server_refuses_the_invalid_text_with_its_code(case: dict[str, Any]) -> None:
    with pytest.raises(errors.HeliographError) as refusal:
        messages.parse_frame(case["text"], BODY_SHAPES)
    assert refusal.value.code == case["code"]


@cases(SERVER["acknowledgements"])
def test_the_client_reads_what_the_server_acknowledges(case: dict[str, Any]) -> None:
    golden = case["frame"]
    ack = client_frames.parse_frame(json.dumps(golden))
    assert isinstance(ack, client_frames.Ack)
    assert messages.acknowledgement(ack.re, ack.epoch, ack.offset) == golden


@cases(SERVER["refusals"])
def test_the_client_reads_what_the_server_refuses(case: dict[str, Any]) -> None:
    golden = case["frame"]
    refusal = client_frames.parse_frame(json.dumps(golden))
    assert isinstance(refusal, client_frames.Refusal)
    error = refusal.error
    assert (refusal.re, error.code, error.message, error.retryable, error.trace_id) == (
        golden.get("re"),
        golden["code"],
        golden["message"],
        golden["retryable"],
        golden["trace_id"],
    )
    assert error.retry_after_s == (golden["retry_after_ms"] / 1_000 if "retry_after_ms" in golden else None)


@cases([case for case in SERVER["refusals"] if case["frame"]["code"] in CODES])
def test_a_golden_refusal_says_what_the_server_says_of_its_code(case: dict[str, Any]) -> None:
    kind = CODES[case["frame"]["code"]]
    assert case["frame"]["retryable"] == kind.retryable
    assert set(case["frame"]) <= {*kind().body("", "msg_1"), "retry_after_ms"}


@pytest.mark.parametrize("kind", list(errors.catalogue()), ids=lambda kind: kind.code)
def test_every_code_of_the_server_becomes_a_class_of_its_own_in_the_client(kind: type[errors.HeliographError]) -> None:
    error = parse_error(kind().body("4bf92f3577b34da6a3ce929d0e0e4736"))
    assert type(error) is not RefusedError
    assert (error.code, error.retryable) == (kind.code, kind.retryable)
    assert type(parse_error({}, kind.status)) is type(error), "with a code or by the status alone, the class is the same"


@cases(SERVER["events"])
def test_the_client_reads_what_the_server_posts(case: dict[str, Any]) -> None:
    golden = case["frame"]
    event = client_frames.parse_frame(json.dumps(golden))
    assert isinstance(event, client_frames.Event)
    assert event.at_ms is not None
    assert event.trace_id is not None
    posted = messages.Event(event.event, event.at_ms, event.trace_id, event.body, event.room_id, event.epoch, event.offset)
    assert json.loads(posted.serialize()) == golden


@cases(SERVER["ignored"])
def test_the_client_skips_what_it_does_not_know(case: dict[str, Any]) -> None:
    read = client_frames.parse_frame(json.dumps(case["frame"]))
    assert read is None or isinstance(read, client_frames.GatewayMessage), "neither acknowledgement nor refusal nor event"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"re"', '{"event": 7}', '{"event": "x", "body": []}'])
def test_the_client_survives_text_that_is_no_frame(text: str) -> None:
    assert client_frames.parse_frame(text) is None
