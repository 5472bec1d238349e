"""The AsyncAPI 3.0 document of the WebSocket, generated from the route table, the frames and the shapes; seen from a client."""

from __future__ import annotations

from urllib.parse import urlsplit

from functions import openapi_document
from functions.routes import Socket, socket_routes
from heliograph.messages import MAX_FRAME_BYTES, ROOM_ACTIONS, SUBPROTOCOL, TICKET_PREFIX
from heliograph.shapes import EVENTS, SHAPES, TRACE_ID, EventKind, JsonObject, Text, Whole, id_of

_FRAME_ID, _ROOM_ID, _TRACE_ID = id_of("msg").schema(), id_of("room").schema(), TRACE_ID.schema()
_EPOCH, _OFFSET = Text(max=64).schema(), Whole().schema()
_CHANNEL: JsonObject = {"$ref": "#/channels/socket"}
_ANSWERS = ("acknowledgement", "refusal")
_ABOUT = f"""Open the socket with `Sec-WebSocket-Protocol: {SUBPROTOCOL}, {TICKET_PREFIX}<ticket>`, with a ticket of
POST /v1/tickets: one use, at most 30 s.
Send `hello` first. One JSON object a message, at most {MAX_FRAME_BYTES} bytes. Every frame is answered by an acknowledgement or a refusal;
answers and events may come in either order. Ignore what you do not know."""


def document(connections_url: str) -> JsonObject:
    """The document for the WebSocket API whose @connections are served at this URL: socket and @connections share host and stage."""
    url = urlsplit(connections_url)
    actions = [route for _, route in socket_routes() if not route.key.startswith("$")]
    messages = _frames(actions) | _answers() | {f"{name}_event": _posted(name, kind) for name, kind in EVENTS.items()}
    bodies = {*(route.body for route in actions if route.body), *(kind.body for kind in EVENTS.values())}
    sends = {f"send_{route.key}": _send(route) for route in actions}
    receives = {f"receive_{name}": _receive(name, kind) for name, kind in EVENTS.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Heliograph",
            "version": openapi_document.VERSION,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"socket": _server(url.netloc, url.path or "/", "wss" if url.scheme == "https" else "ws")},
        "channels": {"socket": _channel(messages)},
        "operations": sends | receives,
        "components": {
            "messages": messages,
            "schemas": {name: SHAPES[name].schema() for name in sorted(bodies)} | {"Error": _error()},
            "securitySchemes": {"ticket": _ticket()},
        },
    }


def _server(host: str, pathname: str, protocol: str) -> JsonObject:
    return {"host": host, "pathname": pathname, "protocol": protocol, "security": [{"$ref": "#/components/securitySchemes/ticket"}]}


def _ticket() -> JsonObject:
    about = f"The subprotocol {SUBPROTOCOL} and, after a comma, {TICKET_PREFIX}<ticket>."
    return {"type": "httpApiKey", "in": "header", "name": "Sec-WebSocket-Protocol", "description": about}


def _channel(messages: JsonObject) -> JsonObject:
    pattern = f"^{SUBPROTOCOL}, ?{TICKET_PREFIX}.+$".replace(".v1", r"\.v1").replace("ticket.", r"ticket\.")
    headers = {"type": "object", "required": ["Sec-WebSocket-Protocol"], "properties": {"Sec-WebSocket-Protocol": {"type": "string", "pattern": pattern}}}
    return {
        "address": None,  # the server's path is all there is
        "summary": "One socket of one device.",
        "servers": [{"$ref": "#/servers/socket"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {"ws": {"method": "GET", "headers": headers, "bindingVersion": "0.1.0"}},
    }


def _send(route: Socket) -> JsonObject:
    operation = {"action": "send", "channel": _CHANNEL, "summary": route.summary, "messages": _named(f"{route.key}_frame")}
    return operation | {"reply": {"channel": _CHANNEL, "messages": _named(*_ANSWERS)}} | ({"x-scope": route.scope} if route.scope else {})


def _receive(name: str, kind: EventKind) -> JsonObject:
    return {"action": "receive", "channel": _CHANNEL, "summary": kind.summary, "messages": _named(f"{name}_event")}


def _named(*names: str) -> list[JsonObject]:
    return [{"$ref": f"#/channels/socket/messages/{name}"} for name in names]


def _frames(actions: list[Socket]) -> dict[str, JsonObject]:
    return {f"{route.key}_frame": _message(route.key, route.summary, _frame(route)) for route in actions}


def _frame(route: Socket) -> JsonObject:
    required = ["action", "client_seq", "id", "trace_id"]
    required += ["room_id"] if route.key in ROOM_ACTIONS else []
    required += ["body"] if route.body and SHAPES[route.body].required else []
    head = {"action": {"const": route.key}, "id": _FRAME_ID, "client_seq": Whole(min=1).schema(), "trace_id": _TRACE_ID, "room_id": _ROOM_ID}
    return {"type": "object", "required": required, "properties": head | {"body": _body(route.body)}, "additionalProperties": False}


def _posted(name: str, kind: EventKind) -> JsonObject:
    required = ["event", "at_ms", "trace_id", "body", *(["room_id"] if kind.has_room else []), *(["epoch", "offset"] if kind.has_position else [])]
    head = {"event": {"const": name}, "at_ms": Whole().schema(), "trace_id": _TRACE_ID, "room_id": _ROOM_ID, "epoch": _EPOCH, "offset": _OFFSET}
    return _message(name, kind.summary, {"type": "object", "required": required, "properties": head | {"body": _body(kind.body)}})


def _answers() -> dict[str, JsonObject]:
    accepted = {
        "type": "object",
        "required": ["re"],
        "properties": {"re": _FRAME_ID, "epoch": _EPOCH, "offset": _OFFSET},
        "dependencies": {"epoch": ["offset"], "offset": ["epoch"]},
    }
    return {
        "acknowledgement": _message("acknowledgement", "Accepted; with an offset the frame is durable.", accepted),
        "refusal": _message("refusal", "Refused; without `re` its id could not be read.", {"$ref": "#/components/schemas/Error"}),
    }


def _message(name: str, summary: str, payload: JsonObject) -> JsonObject:
    return {"name": name, "summary": summary, "contentType": "application/json", "payload": payload}


def _body(shape: str | None) -> JsonObject:
    return {"$ref": f"#/components/schemas/{shape}"} if shape else {"type": "object"}


def _error() -> JsonObject:
    """One refusal for both documents."""
    found: JsonObject = openapi_document.document("")["components"]["schemas"]["Error"]
    return found
