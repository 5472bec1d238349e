"""The one route table: which function answers what, with which scope, rights, memory and time.

The local cloud, the OpenAPI document, the CDK stacks and the authorisation matrix read it; nobody writes a route twice.
It knows names only (shapes are named, not imported) and imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Action = Literal["read", "write", "send", "receive", "post", "close", "put", "get", "decrypt", "encrypt"]
About = Literal["nothing", "room", "media", "device", "session", "account"]
Resource = Literal[
    "redis",
    "mongo",
    "connections",
    "notifications",
    "timers",
    "media",
    "media_key",
    "token_keys",
    "turn_secret",
    "origin_secret",
    "mongo_uri",
    "fcm_credentials",
]


@dataclass(frozen=True, slots=True)
class Right:
    """One permission of one function: an action on one named resource. The CDK stacks turn it into an IAM statement."""

    resource: Resource
    action: Action


@dataclass(frozen=True, slots=True)
class Http:
    """A route of the HTTP API. `scope` is what the access token must carry; None means the route is public.

    `limit` names its rate limit in heliograph.limits, beside those of the account and the device; only documents that never change have none.
    `about` says what the id in its path or body names: the authorisation matrix asks for it as a member, as a stranger, from another tenant.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str  # API Gateway's form: /v1/rooms/{room_id}
    summary: str
    scope: str | None
    limit: str | None = None
    about: About = "nothing"
    body: str | None = None  # the name of a shape in heliograph.shapes
    answer: str | None = None  # likewise
    query: str | None = None  # likewise; every field arrives as text
    status: int = 200
    errors: tuple[str, ...] = ()  # codes beyond those every route may answer
    replay: Literal["stored", "natural"] = "natural"  # how an Idempotency-Key sent twice is honoured (POST only)

    @property
    def key(self) -> str:
        """The route key as API Gateway writes it, e.g. `GET /v1/rooms`."""
        return f"{self.method} {self.path}"


@dataclass(frozen=True, slots=True)
class Socket:
    """A route of the WebSocket API: one per action, and `$connect`, `$disconnect`, `$default`."""

    key: str
    summary: str
    scope: str | None = None
    body: str | None = None  # the name of a shape in heliograph.shapes
    limit: str | None = None  # as for Http; only what the gateway itself sends has none
    about: About = "nothing"
    answers: bool = True  # a route response: what the function returns reaches the client


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue the function consumes in batches; failures are reported one by one, then dead-lettered after `max_receives`."""

    name: str
    batch_size: int = 10
    max_receives: int = 5
    visibility_s: int = 60  # at least 6 x the function's timeout


@dataclass(frozen=True, slots=True)
class Schedule:
    """A rule that invokes the function every `every_s` seconds."""

    name: str
    every_s: int


@dataclass(frozen=True, slots=True)
class Authorizer:
    """The function decides for others: REQUEST on `$connect`, simple responses on HTTP routes."""

    identity_header: str


@dataclass(frozen=True, slots=True)
class Function:
    """One Lambda: its name is its folder under `functions/`."""

    name: str
    summary: str
    routes: tuple[Http | Socket | Queue | Schedule | Authorizer, ...]
    rights: tuple[Right, ...]
    memory_mb: int = 512
    timeout_s: int = 10

    @property
    def handler(self) -> str:
        """The handler string; `functions.` stands first so that `functions/` itself never is on `sys.path`."""
        return f"functions.{self.name}.handler.handler"


_REDIS = (Right("redis", "read"), Right("redis", "write"))
_MONGO = (Right("mongo_uri", "get"), Right("mongo", "read"), Right("mongo", "write"))
_SOCKETS = (Right("connections", "post"), Right("connections", "close"))

FUNCTIONS: tuple[Function, ...] = (
    Function(
        "authorizer",
        "Verifies access tokens on HTTP routes and one-time tickets on $connect.",
        (Authorizer("authorization"), Authorizer("sec-websocket-protocol")),
        (*_REDIS, *_MONGO, Right("token_keys", "get"), Right("origin_secret", "get")),
        timeout_s=5,
    ),
    Function(
        "ws_connect",
        "Registers the connection; the welcome follows the client's hello, because $connect cannot post to its own connection.",
        (Socket("$connect", "Open a socket with a one-time ticket.", "signal:connect", answers=False),),
        _REDIS,
    ),
    Function(
        "ws_disconnect",
        "Removes the connection. Best effort: correctness rests on TTLs.",
        (Socket("$disconnect", "The socket closed.", answers=False),),
        (*_REDIS, *_MONGO, *_SOCKETS, Right("timers", "send")),
    ),
    Function(
        "signal",
        "Validates, acknowledges and routes every frame of a live socket.",
        (
            Socket("hello", "First frame of a socket; the welcome event follows.", "signal:connect", "Hello", "live"),
            Socket("join", "Enter a room live; the missed events and the roster follow.", "rooms:read", "Join", "live", "room"),
            Socket("leave", "Leave a room live.", "rooms:read", "Leave", "live", "room"),
            Socket("message", "Append a text to the room's stream.", "messages:write", "Text", "messages", "room"),
            Socket("offer", "Send an SDP offer to a member of the room.", "calls:write", "Description", "signaling", "room"),
            Socket("answer", "Send an SDP answer.", "calls:write", "Description", "signaling", "room"),
            Socket("candidate", "Send an ICE candidate.", "calls:write", "Candidate", "signaling", "room"),
            Socket("bye", "End a call.", "calls:write", "Bye", "signaling", "room"),
            Socket("stats", "Report network statistics; a changed rung comes back as an event.", "calls:write", "Stats", "signaling", "room"),
            Socket("ping", "Keep the connection, its rooms and its presence alive.", "signal:connect", "Ping", "live"),
            Socket("$default", "Anything else: answered with an error frame.", limit="live"),
        ),
        (*_REDIS, *_MONGO, *_SOCKETS, Right("notifications", "send"), Right("timers", "send")),
    ),
    Function(
        "presence",
        "Sets and reads presence.",
        (
            Socket("presence", "Set the status of this device.", "presence:write", "PresenceStatus", "presence"),
            Socket("watch", "Choose whose presence this socket is told of; without it, everybody who shares a room.", "presence:read", "Watch", "presence"),
            Http("GET", "/v1/presence", "Presence of everybody who shares a room with the caller.", "presence:read", "reads", answer="PresenceList"),
        ),
        (*_REDIS, *_MONGO, *_SOCKETS, Right("timers", "send")),
    ),
    Function(
        "timers",
        "What was put off: a look at sockets that may have gone silent, presence to be told a second later, sockets of ended sessions, audited refusals.",
        (Queue("timers", batch_size=10, max_receives=5, visibility_s=60),),
        (*_REDIS, *_MONGO, *_SOCKETS, Right("timers", "send"), Right("timers", "receive")),
    ),
    Function(
        "tokens",
        "Signs in, refreshes, hands out socket tickets, publishes keys.",
        (
            Http(
                "POST",
                "/v1/tokens",
                "Sign in with a password.",
                None,
                "sign_in",
                body="SignIn",
                answer="TokenPair",
                status=201,
                errors=("credentials_invalid",),
            ),
            Http(
                "POST",
                "/v1/tokens/identity",
                "Sign in with the ID token of a Firebase project or an OIDC provider.",
                None,
                "address",
                body="IdentitySignIn",
                answer="TokenPair",
                status=201,
                errors=("identity_refused",),
            ),
            Http(
                "POST",
                "/v1/tokens/service",
                "Sign in as a service account with a signed assertion (RFC 7523).",
                None,
                "address",
                body="ServiceSignIn",
                answer="AccessToken",
                status=201,
                errors=("identity_refused",),
            ),
            Http(
                "POST",
                "/v1/tokens/refresh",
                "Rotate a refresh token.",
                None,
                "address",
                body="Refresh",
                answer="TokenPair",
                status=201,
                errors=("token_invalid",),
            ),
            Http("POST", "/v1/tickets", "A one-time ticket for the WebSocket.", "signal:connect", "tickets", answer="Ticket", status=201),
            Http("GET", "/v1/jwks.json", "The public keys of access tokens.", None, answer="KeySet"),
            Socket("reauth", "Prove again who speaks on this socket, before its access token expires.", "signal:connect", "Reauth", "live"),
        ),
        (*_REDIS, *_MONGO, *_SOCKETS, Right("token_keys", "get"), Right("origin_secret", "get"), Right("timers", "send")),
        memory_mb=1024,  # argon2id is CPU and memory on purpose
    ),
    Function(
        "accounts",
        "Sessions, roles and the audit log.",
        (
            Http("GET", "/v1/sessions", "The caller's sessions, one a device.", "sessions:read", "reads", answer="SessionList"),
            Http("DELETE", "/v1/sessions", "Sign out everywhere, here too.", "sessions:write", "writes", answer="SessionsEnded"),
            Http(
                "DELETE",
                "/v1/sessions/{sid}",
                "Sign out one device.",
                "sessions:write",
                "writes",
                "session",
                answer="SessionsEnded",
                errors=("not_found",),
            ),
            Http(
                "DELETE",
                "/v1/accounts/{account_id}/sessions",
                "Sign an account out, everywhere or on one device.",
                "accounts:write",
                "accounts",
                "account",
                query="OneDevice",
                answer="SessionsEnded",
                errors=("not_found",),
            ),
            Http(
                "PUT",
                "/v1/accounts/{account_id}/role",
                "Give a person another role.",
                "accounts:write",
                "accounts",
                "account",
                body="NewRole",
                answer="AccountRole",
                errors=("not_found", "conflict"),
            ),
            Http("GET", "/v1/audit", "The tenant's audit log after a position.", "audit:read", "reads", query="AuditPosition", answer="AuditPage"),
        ),
        (*_REDIS, *_MONGO, *_SOCKETS, Right("timers", "send")),
    ),
    Function(
        "rooms",
        "Creates and reads rooms and their streams.",
        (
            Http(
                "POST",
                "/v1/rooms",
                "Create a room.",
                "rooms:write",
                "writes",
                body="NewRoom",
                answer="Room",
                status=201,
                errors=("id_taken", "not_found"),
                replay="stored",
            ),
            Http("GET", "/v1/rooms", "The caller's rooms.", "rooms:read", "reads", query="Page", answer="RoomList"),
            Http("GET", "/v1/rooms/{room_id}", "One room.", "rooms:read", "reads", "room", answer="Room", errors=("not_found",)),
            Http(
                "GET",
                "/v1/rooms/{room_id}/events",
                "Events after a position.",
                "rooms:read",
                "reads",
                "room",
                query="Position",
                answer="EventList",
                errors=("not_found",),
            ),
        ),
        (*_REDIS, *_MONGO, Right("timers", "send")),
    ),
    Function(
        "devices",
        "Registers where pushes of a device go.",
        (
            Http(
                "PUT",
                "/v1/devices/{device_id}/push-target",
                "Register the push target of the calling device.",
                "devices:write",
                "writes",
                "device",
                body="PushTarget",
                answer="PushTargetStored",
                errors=("not_found",),
            ),
        ),
        (*_REDIS, *_MONGO, Right("timers", "send")),
    ),
    Function(
        "ice_servers",
        "Time-limited relay credentials.",
        (Http("GET", "/v1/ice-servers", "STUN and TURN servers with credentials for this device.", "calls:write", "relay_credentials", answer="IceServers"),),
        (*_REDIS, *_MONGO, Right("turn_secret", "get"), Right("timers", "send")),
        memory_mb=256,
        timeout_s=5,
    ),
    Function(
        "media_link",
        "Upload tickets and expiring download links.",
        (
            Http(
                "POST",
                "/v1/media",
                "A ticket to upload one known file.",
                "media:write",
                "links",
                "room",
                body="NewMedia",
                answer="UploadTicket",
                status=201,
                errors=("id_taken", "not_found", "too_large"),
                replay="stored",
            ),
            Http(
                "POST",
                "/v1/media/{media_id}/complete",
                "Verify the upload and make it visible to the room.",
                "media:write",
                "links",
                "media",
                answer="Media",
                errors=("not_found", "upload_missing", "checksum_mismatch"),
            ),
            Http(
                "POST",
                "/v1/media/{media_id}/links",
                "An expiring download link.",
                "media:read",
                "links",
                "media",
                body="NewLink",
                answer="Link",
                status=201,
                errors=("not_found", "upload_missing"),
                replay="stored",
            ),
        ),
        (
            *_REDIS,
            *_MONGO,
            *_SOCKETS,
            Right("media", "put"),
            Right("media", "get"),
            Right("media_key", "encrypt"),
            Right("media_key", "decrypt"),
            Right("timers", "send"),
        ),
        memory_mb=1024,
    ),
    Function(
        "push_dispatch",
        "Sends the pushes of the notifications queue.",
        (Queue("notifications", batch_size=10, max_receives=5, visibility_s=90),),
        (*_MONGO, Right("notifications", "receive"), Right("fcm_credentials", "get")),
        timeout_s=15,
    ),
    Function(
        "openapi",
        "The OpenAPI and AsyncAPI documents, generated from this table.",
        (
            Http("GET", "/v1/openapi.json", "The REST routes as an OpenAPI 3.1 document.", None, answer="Document"),
            Http("GET", "/v1/asyncapi.json", "The WebSocket as an AsyncAPI 3.0 document.", None, answer="Document"),
        ),
        (Right("origin_secret", "get"),),
        memory_mb=256,
        timeout_s=5,
    ),
)


def http_routes() -> Iterator[tuple[Function, Http]]:
    """Every HTTP route with its function."""
    return ((function, route) for function in FUNCTIONS for route in function.routes if isinstance(route, Http))


def socket_routes() -> Iterator[tuple[Function, Socket]]:
    """Every WebSocket route with its function."""
    return ((function, route) for function in FUNCTIONS for route in function.routes if isinstance(route, Socket))
