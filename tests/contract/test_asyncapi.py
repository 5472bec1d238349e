"""The AsyncAPI document: of the form that AsyncAPI 3.0 asks for, and saying what the route table, the code and the golden frames say.

The specification's JSON schema comes in no package of ours. The rules here are those of https://www.asyncapi.com/docs/reference/specification/v3.0.0
for the objects that the document uses; the schema of @asyncapi/specs 6.11.1 found nothing else in it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, get_args

import jsonschema  # type: ignore[import-untyped]
import pytest

from adapters.settings import PREFIX, Settings, load
from bench._signal_world import LINE, SDP, Person, as_function, new_id, world
from functions import wiring
from functions.asyncapi_document import document
from functions.openapi.handler import handler
from functions.openapi_document import document as openapi_document
from functions.presence.handler import handler as presence
from functions.routes import socket_routes
from functions.signal.handler import handler as signal
from heliograph.negotiation import Action
from heliograph.shapes import EVENTS, SHAPES, JsonObject
from tests.conftest import Stores

ROOT: Final = Path(__file__).resolve().parents[2]
DOCUMENT: Final = document("https://abc.execute-api.eu-west-1.amazonaws.com/dev")
ACTIONS: Final = {route.key for _, route in socket_routes() if not route.key.startswith("$")}
GOLDEN: Final = {name: json.loads((ROOT / f"clients/protocol/{name}_frames.json").read_text()) for name in ("client", "server")}
RELAYED: Final[set[str]] = set(get_args(Action))  # under their own names
OF_RELAYS: Final = {"relay_draining"}  # posted by the media fleet
PASSED_ON: Final = {"e['event']", "effect.event", "name"}  # read back from the stream; relayed; the one line of _event itself
FIELDS: Final = {  # object -> (required fields, all fields that we use)
    "document": ({"asyncapi", "info"}, {"defaultContentType", "servers", "channels", "operations", "components"}),
    "info": ({"title", "version"}, {"description", "license"}),
    "server": ({"host", "protocol"}, {"pathname", "security"}),
    "channel": ({"address"}, {"summary", "servers", "messages", "bindings"}),
    "operation": ({"action", "channel"}, {"summary", "messages", "reply", "x-scope"}),
    "message": ({"name", "payload"}, {"summary", "contentType"}),
    "security": ({"type", "in", "name"}, {"description"}),
}


def golden(side: str, group: str) -> list[Any]:
    return [pytest.param(case["frame"], id=case["name"]) for case in GOLDEN[side][group]]


def fits(message: str, frame: JsonObject) -> bool:
    """Whether the frame is one by the payload that the document gives this message."""
    schema = {"components": DOCUMENT["components"], **DOCUMENT["components"]["messages"][message]["payload"]}
    return bool(jsonschema.Draft7Validator(schema).is_valid(frame))


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (each for key, item in value.items() for each in ([item] if key == "$ref" else references(item)))
    elif isinstance(value, list):
        yield from (each for item in value for each in references(item))


def found(reference: str) -> Any:
    value: Any = DOCUMENT
    for key in reference.removeprefix("#/").split("/"):
        value = value[key]
    return value


# Of the form


def test_every_object_has_the_fields_it_must_have_and_no_unknown_ones() -> None:
    parts = DOCUMENT["components"]
    objects = [("document", DOCUMENT), ("info", DOCUMENT["info"])]
    objects += [("server", each) for each in DOCUMENT["servers"].values()]
    objects += [("channel", each) for each in DOCUMENT["channels"].values()]
    objects += [("operation", each) for each in DOCUMENT["operations"].values()]
    objects += [("message", each) for each in parts["messages"].values()]
    objects += [("security", each) for each in parts["securitySchemes"].values()]
    for kind, item in objects:
        required, optional = FIELDS[kind]
        assert required <= set(item) <= required | optional, (kind, item)
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert all(re.fullmatch(r"[\w.-]+", name) for group in parts.values() for name in group)


def test_every_reference_leads_somewhere_and_operations_name_messages_of_their_channel() -> None:
    for reference in references(DOCUMENT):
        assert found(reference) is not None, reference
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] in ("send", "receive")
        asked = [*operation["messages"], *operation.get("reply", {"messages": []})["messages"]]
        assert all(each["$ref"].startswith(operation["channel"]["$ref"] + "/messages/") for each in asked)


def test_every_schema_is_a_json_schema() -> None:
    for schema in [*DOCUMENT["components"]["schemas"].values(), *(each["payload"] for each in DOCUMENT["components"]["messages"].values())]:
        jsonschema.Draft7Validator.check_schema(schema)


def test_nothing_stands_in_the_document_that_nothing_refers_to() -> None:
    referred = set(references(DOCUMENT))
    parts = DOCUMENT["components"]
    assert {f"#/components/{group}/{name}" for group in parts for name in parts[group]} <= referred


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("https://abc.execute-api.eu-west-1.amazonaws.com/dev", ("wss", "abc.execute-api.eu-west-1.amazonaws.com", "/dev")),
        ("http://127.0.0.1:8080/local", ("ws", "127.0.0.1:8080", "/local")),
        ("https://socket.example.com", ("wss", "socket.example.com", "/")),
    ],
)
def test_the_server_is_where_the_connections_are(url: str, server: tuple[str, str, str]) -> None:
    where = document(url)["servers"]["socket"]
    assert (where["protocol"], where["host"], where["pathname"]) == server


def test_the_socket_asks_for_its_subprotocol_and_a_ticket() -> None:
    headers = DOCUMENT["channels"]["socket"]["bindings"]["ws"]["headers"]
    name = found(DOCUMENT["servers"]["socket"]["security"][0]["$ref"])["name"]
    validator = jsonschema.Draft7Validator(headers)
    assert validator.is_valid({name: "heliograph.v1, ticket.abc"})
    assert not validator.is_valid({name: "heliograph.v1"})
    assert not validator.is_valid({})


def test_it_is_served_to_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = load({PREFIX + item.name.upper(): "http://127.0.0.1:1/local" for item in fields(Settings) if item.default is MISSING})
    monkeypatch.setattr("functions.openapi.handler.settings", lambda: chosen)
    monkeypatch.setattr("functions.wiring.settings", lambda: chosen)
    monkeypatch.setattr("functions.admission.settings", lambda: chosen)
    context = SimpleNamespace(function_name="openapi", aws_request_id="r")
    answer = handler({"headers": {}, "routeKey": "GET /v1/asyncapi.json", "requestContext": {"http": {"sourceIp": "127.0.0.1"}}}, context)
    assert answer["statusCode"] == 200
    assert json.loads(answer["body"]) == document("http://127.0.0.1:1/local")


# Saying what the code says


def test_every_action_of_the_route_table_is_sent_and_answered() -> None:
    sent = {name: each for name, each in DOCUMENT["operations"].items() if each["action"] == "send"}
    assert set(sent) == {f"send_{action}" for action in ACTIONS}
    for operation in sent.values():
        assert [each["$ref"].rpartition("/")[2] for each in operation["reply"]["messages"]] == ["acknowledgement", "refusal"]
    assert {name.removeprefix("send_"): each.get("x-scope") for name, each in sent.items()} == {
        route.key: route.scope for _, route in socket_routes() if route.key in ACTIONS
    }


def test_every_event_that_the_code_makes_has_a_shape_and_every_shape_an_event() -> None:
    made = RELAYED | OF_RELAYS | {name for folder in ("functions", "heliograph") for path in (ROOT / folder).rglob("*.py") for name in events_made_in(path)}
    assert made == set(EVENTS)
    assert {name.removeprefix("receive_") for name, each in DOCUMENT["operations"].items() if each["action"] == "receive"} == made


def events_made_in(path: Path) -> Iterator[str]:
    """The literal names in Event("name", …) and _event(received, "name", …); another expression than a literal, `e["event"]` or a relayed name fails."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Event", "_event"):
            name = node.args[0 if node.func.id == "Event" else 1]
            if isinstance(name, ast.Constant):
                yield str(name.value)
            else:
                assert ast.unparse(name) in PASSED_ON, f"{path}:{node.lineno} makes an event of a name that nobody can read: {ast.unparse(name)}"


def test_shapes_of_events_are_open_because_a_server_may_grow() -> None:
    assert not [kind.body for kind in EVENTS.values() if not SHAPES[kind.body].is_open]


def test_both_documents_describe_a_shape_in_the_same_words() -> None:
    rest, socket = openapi_document("")["components"]["schemas"], DOCUMENT["components"]["schemas"]
    assert all(rest[name] == schema for name, schema in socket.items())


# Saying what the golden frames say


@pytest.mark.parametrize("frame", golden("client", "valid"))
def test_a_valid_frame_fits(frame: JsonObject) -> None:
    assert fits(f"{frame['action']}_frame", frame)


@pytest.mark.parametrize("frame", [each for each in golden("client", "invalid") if each.values[0].get("action") in ACTIONS and "NUL" not in str(each.id)])
def test_an_invalid_frame_does_not(frame: JsonObject) -> None:
    assert not fits(f"{frame['action']}_frame", frame)


@pytest.mark.parametrize("frame", [each for each in golden("server", "events") if each.values[0]["event"] in EVENTS])
def test_an_event_fits_and_its_body_the_shape(frame: JsonObject) -> None:
    assert fits(f"{frame['event']}_event", frame)
    assert set(SHAPES[EVENTS[frame["event"]].body].check(frame["body"], "body")) == set(frame["body"]), "a field is missing in the shape"
    for stored in frame["body"].get("events", []):
        assert fits(f"{stored['event']}_event", stored)


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_an_event_that_lacks_something_does_not_fit(name: str) -> None:
    frame = next(case["frame"] for case in GOLDEN["server"]["events"] if case["frame"]["event"] == name)
    for field in DOCUMENT["components"]["messages"][f"{name}_event"]["payload"]["required"]:
        assert not fits(f"{name}_event", {key: value for key, value in frame.items() if key != field}), field
    for field in SHAPES[EVENTS[name].body].required:
        assert not fits(f"{name}_event", frame | {"body": {key: value for key, value in frame["body"].items() if key != field}}), field


@pytest.mark.parametrize("frame", golden("server", "acknowledgements"))
def test_an_acknowledgement_fits(frame: JsonObject) -> None:
    assert fits("acknowledgement", frame)
    assert not fits("acknowledgement", frame | {"re": "7"})


@pytest.mark.parametrize("frame", golden("server", "refusals"))
def test_a_refusal_fits_unless_its_code_is_of_a_newer_server(frame: JsonObject) -> None:
    assert fits("refusal", frame) == (frame["code"] != "quota_exceeded")


# Saying what the handlers do


@pytest.fixture(scope="module")
def emitted(stores: Stores) -> list[JsonObject]:
    """What sockets are sent by the real handlers, with real stores and a stub of AWS: a story with every event but `media` (S3) and those of relays."""
    with world(stores.redis_url, stores.mongodb_uri) as made, as_function(made):
        ana, ben, room_id, context = made.ana, made.ben, made.room_id, SimpleNamespace(function_name="signal", aws_request_id="r")

        def say(who: Person, action: str, body: JsonObject, room: str | None = None) -> JsonObject:
            answer: JsonObject = json.loads((presence if action == "presence" else signal)(who.frame(action, body, room), context)["body"])
            assert fits("refusal" if "code" in answer else "acknowledgement", answer), answer
            return answer

        for who in (ana, ben):
            say(who, "hello", {})
            say(who, "join", {}, room_id)
        say(ben, "presence", {"status": "away"})
        head = say(ana, "message", {"text": "Grüße 🎧"}, room_id)
        say(ben, "join", {"epoch": head["epoch"], "offset": head["offset"] - 1}, room_id)
        call_id = new_id("call")
        say(ana, "stats", {"call_id": call_id, "available_bps": 38_000, "rtt_ms": 351.5, "loss": 0.06}, room_id)
        say(ana, "offer", made.call(call_id, negotiation_id="neg_1", sdp=SDP), room_id)
        back = {"account_id": ana.account_id, "device_id": ana.device_id}
        say(ben, "answer", {"call_id": call_id, "to": back, "negotiation_id": "neg_1", "sdp": SDP.replace("actpass", "active")}, room_id)
        say(ben, "candidate", {"call_id": call_id, "to": back, "negotiation_id": "neg_1", "candidate": LINE}, room_id)
        say(ben, "bye", {"call_id": call_id, "to": back, "reason": "hangup"}, room_id)
        say(ben, "leave", {}, room_id)
        wiring.connections().remove("bench", ben.account_id, [ben.connection_id])  # as when ben's socket closes
        say(ana, "offer", made.call(new_id("call"), negotiation_id="neg_1", sdp=SDP), room_id)
        say(ana, "ping", {"rooms": [{"room_id": room_id, "epoch": "of-another-life", "offset": 1}]})
        newer = replace(ana, connection_id="newer=", connected_at_ms=ana.connected_at_ms + 1, sent=0)
        say(newer, "hello", {})
        return made.posted()


def test_what_the_handlers_emit_fits_the_document_and_the_shapes(emitted: list[JsonObject]) -> None:
    assert {frame["event"] for frame in emitted} == set(EVENTS) - {"media"} - OF_RELAYS
    for frame in emitted:
        assert fits(f"{frame['event']}_event", frame), frame
        assert set(SHAPES[EVENTS[frame["event"]].body].check(frame["body"], "body")) == set(frame["body"]), "a field is missing in the shape"
        for stored in frame["body"].get("events", []):
            assert fits(f"{stored['event']}_event", stored), stored
