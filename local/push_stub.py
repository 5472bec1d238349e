"""FCM's two doors on the laptop: the OAuth token exchange and `messages:send` of HTTP v1, with faults that a test can order.

Shapes from firebase.google.com/docs/reference/fcm/rest/v1 (ErrorCode, FcmError, BadRequest); it keeps the last messages in memory and forgets the rest.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from aiohttp import web

MAX_PAYLOAD_BYTES: Final = 4096
GOOGLE_TOKEN_URI: Final = "https://oauth2.googleapis.com/token"  # the audience google-auth writes, whatever the account's token_uri says
_KEPT_MESSAGES: Final = 1000
_KEPT_TOKENS: Final = 1000
_KEPT_DEAD: Final = 10_000
_TOKEN_LIFE_S: Final = 3600
_FCM_ERROR: Final = "type.googleapis.com/google.firebase.fcm.v1.FcmError"

FaultKind = Literal["quota", "internal", "unavailable", "unregistered", "slow", "accept_then_hang"]


@dataclass(slots=True)
class Fault:
    """What the next `count` sends meet. `retry_after_s` goes with quota and unavailable, `delay_s` with slow and accept_then_hang."""

    kind: FaultKind
    count: int
    retry_after_s: int | None = None
    delay_s: float = 2.0


class PushStub:
    """An HTTP server on loopback that behaves as FCM does for one service account."""

    def __init__(self, service_account: Mapping[str, Any]) -> None:
        self._account = service_account
        self._tokens: dict[str, float] = {}
        self._dead: dict[str, None] = {}
        self._faults: deque[Fault] = deque(maxlen=100)
        self.received: deque[dict[str, Any]] = deque(maxlen=_KEPT_MESSAGES)
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; `url` is known afterwards."""
        app = web.Application(client_max_size=1 << 20)
        app.router.add_post("/token", self._token)
        app.router.add_post("/v1/projects/{project}/messages:send", self._send)
        app.router.add_get("/received", self._list)
        app.router.add_delete("/received", self._forget)
        app.router.add_post("/inject", self._inject)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _token(self, request: web.Request) -> web.Response:
        """RFC 7523: a JWT signed by the service account buys an access token."""
        form = await request.post()
        if form.get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer":
            return web.json_response({"error": "unsupported_grant_type", "error_description": "Invalid grant_type"}, status=400)
        if not self._is_ours(str(form.get("assertion", ""))):
            return web.json_response({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}, status=400)
        while len(self._tokens) >= _KEPT_TOKENS:
            self._tokens.pop(next(iter(self._tokens)))
        token = f"ya29.{secrets.token_urlsafe(24)}"
        self._tokens[token] = time.monotonic() + _TOKEN_LIFE_S
        return web.json_response({"access_token": token, "expires_in": _TOKEN_LIFE_S, "token_type": "Bearer"})

    def _is_ours(self, assertion: str) -> bool:
        import jwt
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key: Any = load_pem_private_key(self._account["private_key"].encode(), password=None)
        try:
            audience = [GOOGLE_TOKEN_URI, self._account["token_uri"]]
            jwt.decode(assertion, key.public_key(), algorithms=["RS256"], audience=audience, issuer=self._account["client_email"], leeway=60)
        except jwt.PyJWTError:
            return False
        return True

    async def _send(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self._tokens.get(token, 0) < time.monotonic():
            return _error(401, "UNAUTHENTICATED", "Request had invalid authentication credentials. Expected OAuth 2 access token.", None)
        if request.match_info["project"] != self._account["project_id"]:
            return _error(403, "PERMISSION_DENIED", f"Permission denied on project {request.match_info['project']}.", None)
        try:
            body = json.loads(await request.read())
        except ValueError:
            return _error(400, "INVALID_ARGUMENT", "Invalid JSON payload received.", None)
        message = body.get("message") if isinstance(body, dict) else None
        target = _target(message)
        if not isinstance(message, dict) or target is None:
            return _invalid("message", "Recipient of the message is not set." if isinstance(message, dict) else "Message is not set.")
        if _payload_bytes(message) > MAX_PAYLOAD_BYTES:
            return _invalid("message", "Message is too big. The maximum is 4096 bytes.")
        fault = self._next_fault()
        if fault is not None and fault.kind not in ("slow", "accept_then_hang"):
            return _answer_of(fault)
        if fault is not None and fault.kind == "slow":
            await asyncio.sleep(fault.delay_s)
        if target in self._dead:
            return _error(404, "NOT_FOUND", "Requested entity was not found.", "UNREGISTERED")
        name = f"projects/{self._account['project_id']}/messages/{secrets.token_hex(10)}"
        self.received.append({"name": name, "target": target, "message": message, "received_at": time.monotonic()})
        if fault is not None and fault.kind == "accept_then_hang":
            await asyncio.sleep(fault.delay_s)
            if request.transport is not None:
                request.transport.abort()
        return web.json_response({"name": name})

    def _next_fault(self) -> Fault | None:
        if not self._faults:
            return None
        fault = self._faults[0]
        fault.count -= 1
        if fault.count <= 0:
            self._faults.popleft()
        return fault

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"received": list(self.received)})

    async def _forget(self, request: web.Request) -> web.Response:
        self.received.clear()
        return web.json_response({})

    async def _inject(self, request: web.Request) -> web.Response:
        """`{kind, count?, retry_after_s?, delay_s?}` orders a fault, `{dead: [target]}` registers dead targets, `{clear: true}` forgets both."""
        order = await request.json()
        if order.get("clear"):
            self._faults.clear()
            self._dead.clear()
        for target in order.get("dead", ()):
            self._dead[str(target)] = None
            while len(self._dead) > _KEPT_DEAD:
                self._dead.pop(next(iter(self._dead)))
        kind = order.get("kind")
        if kind is not None and kind not in get_args(FaultKind):
            return web.json_response({"error": f"kind must be one of {', '.join(get_args(FaultKind))}"}, status=400)
        if kind is not None:
            self._faults.append(Fault(kind, int(order.get("count", 1)), order.get("retry_after_s"), float(order.get("delay_s", 2.0))))
        return web.json_response({"faults": len(self._faults), "dead": len(self._dead)})


def _target(message: object) -> str | None:
    if not isinstance(message, dict):
        return None
    targets = [message[name] for name in ("token", "fid", "topic", "condition") if message.get(name)]
    return targets[0] if len(targets) == 1 and isinstance(targets[0], str) else None


def _payload_bytes(message: Mapping[str, Any]) -> int:
    """FCM counts the data and the notification, not the target."""
    return len(json.dumps({name: message[name] for name in ("data", "notification") if name in message}, separators=(",", ":"), ensure_ascii=False).encode())


def _answer_of(fault: Fault) -> web.Response:
    headers = {} if fault.retry_after_s is None else {"Retry-After": str(fault.retry_after_s)}
    match fault.kind:
        case "quota":
            return _error(429, "RESOURCE_EXHAUSTED", "Quota exceeded for sending messages.", "QUOTA_EXCEEDED", headers)
        case "unavailable":
            return _error(503, "UNAVAILABLE", "The service is currently unavailable.", "UNAVAILABLE", headers)
        case "unregistered":
            return _error(404, "NOT_FOUND", "Requested entity was not found.", "UNREGISTERED")
        case _:
            return _error(500, "INTERNAL", "Internal error encountered.", "INTERNAL", headers)


def _invalid(field: str, description: str) -> web.Response:
    details = [
        {"@type": _FCM_ERROR, "errorCode": "INVALID_ARGUMENT"},
        {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [{"field": field, "description": description}]},
    ]
    return web.json_response({"error": {"code": 400, "message": description, "status": "INVALID_ARGUMENT", "details": details}}, status=400)


def _error(status: int, name: str, text: str, code: str | None, headers: Mapping[str, str] | None = None) -> web.Response:
    details = [] if code is None else [{"@type": _FCM_ERROR, "errorCode": code}]
    return web.json_response({"error": {"code": status, "message": text, "status": name, "details": details}}, status=status, headers=headers)
