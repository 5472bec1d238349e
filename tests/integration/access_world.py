"""The world of the authorisation matrix: two tenants, people of every role with things of their own, and API Gateway around the functions of this process.

Everything that is called is the product's: the authorizer decides on a signed token, its context goes to the function that the route table names. Stores are
real servers. AWS is a stub in this process, so that a test sees every post and every queued message.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import jwt
from argon2 import PasswordHasher
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pymongo import monitoring

from adapters import migrations_mongo, mongo_client, redis_client
from adapters.accounts_mongo import Account, Accounts
from adapters.identities_mongo import Identities
from adapters.media_mongo import MediaRecords
from adapters.rooms_mongo import Rooms
from adapters.sessions_mongo import Sessions
from adapters.settings import PREFIX, now_ms, settings
from bench._signal_world import LINE, SDP, World, as_function, new_id
from functions import wiring
from functions.routes import FUNCTIONS, Http, http_routes, socket_routes
from heliograph.auth import ACCESS_TOKEN_S, ACCESS_TYP, TICKET_S, TICKET_TYP, Identity, claims_for
from heliograph.identities import Provider, Subject
from heliograph.links import Media
from heliograph.rooms import new_room
from heliograph.sessions import SECRET_BYTES, begun
from local import gateway_events as events
from local.gateway_sockets import new_connection_id

Json = dict[str, Any]
Handler = Callable[[Json, Any], Json]
ISSUER: Final = "https://api.heliograph.example"
PROVIDER_AUDIENCE: Final = "heliograph-web"
REGION, STAGE, SOURCE_IP, USER_AGENT = "eu-west-1", "dev", "198.51.100.7", "matrix/1"
REDIS_NUMBER: Final = 7
"""A logical database of its own: what other tests keep in the same server is not looked at."""
CONTENT: Final = b"what every file of this world holds"
COUNTERS: Final = ("limit:", "seq:", "ticket:", "presence_gate", "presence_pending")
"""What moves with refused requests too, or ends by itself within seconds: buckets, numbers of frames, marks of used tickets, throttles of presence."""
REFUSALS: Final = ("access_refused", "sign_in_refused", "ticket_refused")
HTTP: Final = {route.key: (function, route) for function, route in http_routes()}
SOCKETS: Final = {route.key: (function, route) for function, route in socket_routes()}
CONTEXT: Final = SimpleNamespace(
    function_name="matrix", aws_request_id="00000000-0000-0000-0000-000000000000", get_remaining_time_in_millis=lambda: 10_000, function_version="1"
)


def handler_of(name: str) -> Handler:
    """The Lambda handler of a function, by the handler string of the route table."""
    module, _, attribute = next(function for function in FUNCTIONS if function.name == name).handler.rpartition(".")
    found: Handler = getattr(importlib.import_module(module), attribute)
    return found


# --- AWS


class Cloud(ThreadingHTTPServer):
    """Secrets Manager, SQS, `/@connections`, one S3 object under every key, and an identity provider's keys: whatever the functions ask for."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self, mongodb_uri: str) -> None:
        super().__init__(("127.0.0.1", 0), _CloudRequest)
        self.provider_key, self.service_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        current = {"kid": "key-1", "private_pem": _private_pem(ec.generate_private_key(ec.SECP256R1()))}
        self.secrets = {"mongodb": {"uri": mongodb_uri}, "token-keys": {"current": current}, "turn": {"current": "a shared secret"}}
        self.read = Counter[str]()  # reads by secret
        self.posted = Counter[str]()  # posts and closes by connection
        self.queued, self.audited = list[Json](), list[Json]()  # messages of both queues; those that only note a refusal stand apart
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def jwks(self) -> Json:
        public = jwt.algorithms.ECAlgorithm.to_jwk(self.provider_key.public_key(), as_dict=True)
        return {"keys": [public | {"kid": "idp-1", "use": "sig", "alg": "ES256"}]}


class _CloudRequest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, 65_536  # an answer is one packet
    server: Cloud

    def do_POST(self) -> None:
        body, target = self.rfile.read(int(self.headers.get("content-length", 0))), self.headers.get("x-amz-target", "")
        if target.endswith("GetSecretValue"):
            secret_id = json.loads(body)["SecretId"]
            self.server.read[secret_id] += 1
            self._send({"SecretString": json.dumps(self.server.secrets[secret_id])})
        elif target.endswith("SendMessage"):
            message = json.loads(json.loads(body)["MessageBody"])
            (self.server.audited if message["kind"] == "audit_refusal" else self.server.queued).append(message)
            self._send({"MessageId": "1"})
        else:
            self._note()

    def do_DELETE(self) -> None:
        self._note()

    def _note(self) -> None:
        self.server.posted[unquote(self.path.rpartition("/")[2])] += 1
        self._send({})

    def do_GET(self) -> None:
        self._send(self.server.jwks())

    def do_HEAD(self) -> None:
        """The file that was announced, as S3 would have it."""
        self.send_response(200)
        self.send_header("content-length", str(len(CONTENT)))
        self.send_header("x-amz-checksum-sha256", base64.b64encode(hashlib.sha256(CONTENT).digest()).decode())
        self.send_header("x-amz-server-side-encryption", "aws:kms")
        self.end_headers()

    def _send(self, answer: Json) -> None:
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


def _private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


# --- API Gateway


@dataclass(frozen=True, slots=True)
class Asked:
    """A request's path parameters, query and body; or a frame's body and room."""

    path: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    body: Json | None = None
    room_id: str | None = None


@dataclass(slots=True)
class OpenSocket:
    """A socket as API Gateway keeps it: its handshake with what the authorizer said, and how many frames were sent."""

    handshake: events.Handshake
    sent: int = 0

    @property
    def connection_id(self) -> str:
        return self.handshake.connection_id


class Gateway:
    """What API Gateway does around the functions, on its own events; no network between. `added`: headers by whoever stands before it."""

    added: Sequence[tuple[str, str]] = ()

    def rest(self, key: str, asked: Asked, token: str | None, trace_id: str = "0" * 32) -> events.HttpAnswer:
        """A request: the authorizer where the route has a scope, then the function."""
        _, route = HTTP[key]
        request, authorizer = self._request(route, asked, token, trace_id), None
        if route.scope is not None:
            if token is None:
                return events.http_refusal(401, "Unauthorized")  # the identity source is missing: nobody is asked
            authorizer = self._authorized(request, route, asked)
        return self._answer(request, route, asked, authorizer)

    def behind(self, key: str, asked: Asked) -> tuple[events.HttpAnswer, events.HttpAnswer]:
        """What a guarded route answers nobody, were the gateway to ask the authorizer all the same, or not to ask it at all."""
        _, route = HTTP[key]
        request = self._request(route, asked, None, "0" * 32)
        return self._answer(request, route, asked, self._authorized(request, route, asked)), self._answer(request, route, asked, None)

    def open(self, ticket: str | None) -> OpenSocket | None:
        """The opening handshake: the authorizer's policy, then `$connect`; None when no socket came of it."""
        protocols = "heliograph.v1" + (f", ticket.{ticket}" if ticket is not None else "")
        headers = [("Host", "ws.heliograph.example"), ("Sec-WebSocket-Protocol", protocols), ("User-Agent", USER_AGENT), *self.added]
        handshake = events.Handshake(new_connection_id(), STAGE, headers, "", SOURCE_IP, now_ms())
        policy = handler_of("authorizer")(_sent(events.socket_authorizer_event(handshake, "request", REGION)), CONTEXT)
        is_allowed, context = events.parse_policy(policy, events.method_arn(STAGE, REGION))
        if not is_allowed:
            return None
        handshake = replace(handshake, authorizer=context)
        answer = events.parse_socket_answer(handler_of(SOCKETS["$connect"][0].name)(_sent(events.connect_event(handshake, "request")), CONTEXT))
        return OpenSocket(handshake) if answer.status == 200 else None

    def as_if(self, who: Identity) -> OpenSocket:
        """A socket that nobody let in: what the functions would see if the authorizer did not look."""
        context = {"principalId": who.account_id, "integrationLatency": 0, **who.as_context()}
        return OpenSocket(events.Handshake(new_connection_id(), STAGE, [], "", SOURCE_IP, now_ms(), context))

    def frame(self, socket: OpenSocket, action: str, asked: Asked, trace_id: str = "0" * 32) -> bytes:
        """A frame; what the function answers."""
        socket.sent += 1
        frame = {"action": action, "id": f"msg_{trace_id}", "client_seq": socket.sent, "trace_id": trace_id, "body": asked.body or {}}
        body = json.dumps(frame | ({"room_id": asked.room_id} if asked.room_id else {}))
        key = events.select_route(body, SOCKETS)
        if key is None:
            raise LookupError("the route table has no $default")
        event = events.message_event(socket.handshake, key, "request", "message", body, now_ms())
        return events.parse_socket_answer(handler_of(SOCKETS[key][0].name)(_sent(event), CONTEXT)).body

    def disconnect(self, socket: OpenSocket) -> int:
        """The gateway's own last event; the function's status."""
        event = events.disconnect_event(socket.handshake, "request", 1000, "", now_ms())
        return events.parse_socket_answer(handler_of(SOCKETS["$disconnect"][0].name)(_sent(event), CONTEXT)).status

    def _request(self, route: Http, asked: Asked, token: str | None, trace_id: str) -> events.HttpRequest:
        request = _http_request(route, asked, token, trace_id)
        return replace(request, headers=[*request.headers, *self.added])

    def _authorized(self, request: events.HttpRequest, route: Http, asked: Asked) -> Mapping[str, object]:
        identity = next((value for name, value in request.headers if name == "authorization"), "")
        event = events.http_authorizer_event(request, route.key, asked.path, identity, REGION)
        is_authorized, context = events.parse_simple_response(handler_of("authorizer")(_sent(event), CONTEXT))
        if not is_authorized:
            raise PermissionError("the authorizer lets everybody through and has the edge refuse; API Gateway's own 403 has no code")
        return {"lambda": context}

    def _answer(self, request: events.HttpRequest, route: Http, asked: Asked, authorizer: Mapping[str, object] | None) -> events.HttpAnswer:
        event = events.http_event(request, route.key, asked.path, authorizer)
        return events.parse_http_answer(handler_of(HTTP[route.key][0].name)(_sent(event), CONTEXT))


def _http_request(route: Http, asked: Asked, token: str | None, trace_id: str) -> events.HttpRequest:
    headers = [("host", "api.heliograph.example"), ("user-agent", USER_AGENT), ("content-type", "application/json"), ("x-trace-id", trace_id)]
    headers += [("idempotency-key", secrets.token_hex(16))] if route.method == "POST" else []
    headers += [("authorization", f"Bearer {token}")] if token is not None else []
    body = b"" if asked.body is None else json.dumps(asked.body).encode()
    path = route.path.format(**{name: quote(value) for name, value in asked.path.items()})
    return events.HttpRequest(route.method, path, asked.query, headers, body, SOURCE_IP, "request", now_ms())


def _sent(event: Json) -> Json:
    """As Lambda gets it: JSON."""
    sent: Json = json.loads(json.dumps(event))
    return sent


# --- who is there, and what is theirs


@dataclass(frozen=True, slots=True)
class Person:
    """An account that is signed in on two devices. `media`: files in its room, its own (`pending`, `ready`) and those of somebody else who is in it."""

    identity: Identity
    other_device: Identity
    login: str
    refresh_token: str
    room_id: str
    media: Mapping[str, str]

    def ids(self) -> set[str]:
        """Every id by which somebody could learn that there is something."""
        devices = {value for who in (self.identity, self.other_device) for value in (who.account_id, who.device_id, who.sid)}
        return devices | {self.room_id, self.login, *self.media.values()}


class AccessWorld:
    """The tenants and their people. `peer` and `third` are in the room of everybody whom `person` makes; `stranger` and `foreigner` are in none of them."""

    def __init__(self, cloud: Cloud, database: Any, redis: Any) -> None:
        self.cloud, self.database, self.redis, self.gateway = cloud, database, redis, Gateway()
        self.tenant_id, self.other_tenant_id = "mine-" + secrets.token_hex(4), "other-" + secrets.token_hex(4)
        self.password = secrets.token_urlsafe(12)
        self._password_hash = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash(self.password)  # quick: this is not about the cost of a password
        self._inside: list[Identity] = []
        self.peer, self.third = (self.person("member") for _ in range(2))
        self.stranger, self.foreigner = self.person("member"), self.person("member", self.other_tenant_id)
        self._inside = [self.peer.identity, self.third.identity]
        self.calling = {who.account_id: self.opened(replace(who, scope="signal:connect calls:write")) for who in self._inside}
        self._trust()

    # making things

    def account(self, role: str, tenant_id: str | None = None) -> Account:
        keys = ({"kid": "svc-1", "public_pem": _public_pem(self.cloud.service_key)},) if role == "service" else ()
        account_id = new_id("acc")
        login = account_id if role == "service" else f"login-{account_id[-8:]}"
        account = Account(tenant_id or self.tenant_id, account_id, login, None if role == "service" else self._password_hash, role, keys)
        Accounts(self.database).put(account)
        return account

    def session(self, account: Account) -> tuple[Identity, str]:
        """Signs the account in on a new device: (who that is, without any scope yet; the refresh token)."""
        at_ms, random = now_ms(), secrets.token_bytes(2 * SECRET_BYTES)
        session, token = begun(account.tenant_id, account.account_id, new_id("dev"), new_id("ses"), account.role, at_ms, random)
        Sessions(self.database).start(session)
        until_ms = at_ms + ACCESS_TOKEN_S * 1000
        return Identity(account.tenant_id, account.account_id, session.device_id, session.sid, account.role, "", at_ms, until_ms), str(token)

    def person(self, role: str, tenant_id: str | None = None) -> Person:
        """A new account with everything that can be its own."""
        account = self.account(role, tenant_id)
        (identity, refresh_token), (other, _) = self.session(account), self.session(account)
        inside = [who.account_id for who in self._inside if tenant_id is None]
        room = new_room(account.tenant_id, new_id("room"), "matrix", "e1", account.account_id, inside)
        Rooms(self.database).create(room, now_ms())
        owners = {"": account.account_id} | ({"of_a_member_": inside[0]} if inside else {})
        media = {f"{whose}{state}": self._file(room.tenant_id, room.room_id, owner, state) for whose, owner in owners.items() for state in ("pending", "ready")}
        return Person(identity, other, account.login, refresh_token, room.room_id, media)

    def _file(self, tenant_id: str, room_id: str, account_id: str, state: str) -> str:
        media = Media(tenant_id, new_id("med"), room_id, account_id, **self.file(), state=state)
        MediaRecords(self.database).create(media, now_ms())
        return media.media_id

    @staticmethod
    def file() -> Json:
        """What is announced of a file: the one that S3 has under every key."""
        return {"file_name": "a.txt", "content_type": "text/plain", "length_bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}

    def _trust(self) -> None:
        """One identity provider for each tenant; the peer is linked to the first one's subject `linked`."""
        identities = Identities(self.database)
        for tenant_id in (self.tenant_id, self.other_tenant_id):
            identities.put_provider(Provider(tenant_id, f"{self.cloud.url}/{tenant_id}", PROVIDER_AUDIENCE, "oidc", f"{self.cloud.url}/jwks.json", "linked"))
        identities.link(self.tenant_id, Subject(f"{self.cloud.url}/{self.tenant_id}", "linked"), self.peer.identity.account_id)

    # proofs

    def access_token(self, who: Identity) -> str:
        """Signed by the world's key: whatever it says, it is genuine."""
        return self._signed(who, ACCESS_TYP, who.issued_at_ms, (who.expires_at_ms - who.issued_at_ms) // 1000)

    def ticket(self, who: Identity) -> str:
        """A genuine ticket that nobody asked POST /v1/tickets for."""
        return self._signed(who, TICKET_TYP, now_ms(), TICKET_S)

    def _signed(self, who: Identity, typ: str, at_ms: int, lifetime_s: int) -> str:
        named = {"issuer": settings().issuer, "audience": settings().audience}
        return wiring.tokens().sign(claims_for(who, **named, now_ms=at_ms, lifetime_s=lifetime_s, jti=secrets.token_hex(8)), typ)

    def ticket_bought(self, token: str) -> str | None:
        """What POST /v1/tickets gives for the token."""
        answer = self.gateway.rest("POST /v1/tickets", Asked(), token)
        return str(json.loads(answer.body)["ticket"]) if answer.status == 201 else None

    def opened(self, who: Identity) -> OpenSocket:
        """A socket the way a client gets one."""
        socket = self.gateway.open(self.ticket_bought(self.access_token(who)))
        if socket is None:
            raise PermissionError(f"{who} gets no socket")
        return socket

    def id_token(self, issuer: str, subject: str) -> str:
        now_s = now_ms() // 1000
        claims = {"iss": f"{self.cloud.url}/{issuer}", "aud": PROVIDER_AUDIENCE, "sub": subject, "iat": now_s, "exp": now_s + 300}
        return jwt.encode(claims, self.cloud.provider_key, algorithm="ES256", headers={"kid": "idp-1"})

    def assertion(self, tenant_id: str, account_id: str) -> str:
        now_s = now_ms() // 1000
        claims = {"iss": account_id, "sub": account_id, "aud": ISSUER, "tenant_id": tenant_id, "iat": now_s, "exp": now_s + 60, "jti": secrets.token_hex(8)}
        return jwt.encode(claims, self.cloud.service_key, algorithm="ES256", headers={"kid": "svc-1", "typ": "client-authentication+jwt"})

    # what is whose

    def whose(self, relation: str, person: Person) -> Person | None:
        """Whose thing the relation names; None for one that does not exist."""
        return {"mine": person, "not_mine": self.stranger, "other_tenant": self.foreigner}.get(relation)

    def room_of(self, relation: str, person: Person) -> str:
        owner = self.whose(relation, person)
        return owner.room_id if owner else new_id("room")

    def account_of(self, relation: str, person: Person) -> str:
        owner = self.whose(relation, person)
        return owner.identity.account_id if owner else new_id("acc")

    def call_between_others(self, person: Person) -> tuple[str, str]:
        """A call in the person's room in which the person has no part: (its id, its negotiation)."""
        call_id = new_id("call")
        self.offer(self.peer, person.room_id, call_id, self.third.identity.account_id)
        return call_id, "neg_1"

    def offer(self, caller: Person, room_id: str, call_id: str, account_id: str) -> None:
        """An offer of somebody who is in everybody's room."""
        body = {"call_id": call_id, "to": {"account_id": account_id}, "negotiation_id": "neg_1", "sdp": SDP}
        said = self.gateway.frame(self.calling[caller.identity.account_id], "offer", Asked(body=body, room_id=room_id), secrets.token_hex(16))
        if b'"code"' in said:
            raise AssertionError(said)


def _public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@contextmanager
def access_world(redis_url: str, mongodb_uri: str) -> Iterator[AccessWorld]:
    """This process as every function, beside these stores, in databases of its own."""
    commands()  # before the clients that it listens to are made
    cloud, name = Cloud(mongodb_uri), "matrix_" + secrets.token_hex(4)
    own_redis = urlsplit(redis_url)._replace(path=f"/{REDIS_NUMBER}").geturl()
    ours = {
        "ISSUER": ISSUER,
        "MONGODB_DATABASE": name,
        "MONGODB_SECRET_ID": "mongodb",
        "TOKEN_KEYS_SECRET_ID": "token-keys",
        "TURN_SECRET_ID": "turn",
        "MEDIA_BUCKET": "media-of-the-matrix",
        "REAUTH_GRACE_S": "300",  # a socket that may still prove anew who speaks on it, however long the matrix takes
    }
    with as_function(World(own_redis, mongodb_uri, cloud.url)):
        os.environ.update({PREFIX + setting: value for setting, value in ours.items()})
        database, redis = mongo_client.connect(mongodb_uri, name), redis_client.connect(own_redis, "single")
        level = wiring.logger().log_level
        try:
            wiring.logger().setLevel("WARNING")  # thousands of lines that nobody reads
            redis.flushdb()
            migrations_mongo.migrate(database)
            yield AccessWorld(cloud, database, redis)
        finally:
            wiring.logger().setLevel(level)
            redis.flushdb()
            database.client.drop_database(name)
            redis.close()
            database.client.close()
            cloud.shutdown()
            cloud.server_close()


# --- how each route and frame is asked, for each thing it can name

AskRest = Callable[[AccessWorld, Person, str], Asked]


def _nothing(world: AccessWorld, person: Person, relation: str) -> Asked:
    return Asked()


def _password(world: AccessWorld, person: Person, relation: str) -> Asked:
    known = {"mine": world.peer.login, "wrong_password": world.peer.login, "other_tenant": world.foreigner.login}
    login = world.account("service").login if relation == "no_password" else known.get(relation, "nobody")
    tenant_id = "nobodys-tenant" if relation == "no_such_tenant" else world.tenant_id
    body = {"tenant_id": tenant_id, "login": login, "device_id": new_id("dev")}
    return Asked(body=body | {"password": "not the right one" if relation == "wrong_password" else world.password})


def _id_token(world: AccessWorld, person: Person, relation: str) -> Asked:
    issuer = {"other_tenant": world.other_tenant_id, "unknown": "unknown"}.get(relation, world.tenant_id)
    token = world.id_token(issuer, "somebody" if relation == "not_linked" else "linked")
    return Asked(body={"tenant_id": world.tenant_id, "id_token": token, "device_id": new_id("dev")})


def _assertion(world: AccessWorld, person: Person, relation: str) -> Asked:
    """`other_tenant`: a service of the other tenant by its id, under the name of ours."""
    owner = {"mine": (world.account, "service", None), "other_tenant": (world.account, "service", world.other_tenant_id)}.get(relation)
    account_id = {"not_a_service": world.peer.identity.account_id}.get(relation, new_id("acc"))
    if owner is not None:
        make, role, tenant_id = owner
        account_id = make(role, tenant_id).account_id
    return Asked(body={"assertion": world.assertion(world.tenant_id, account_id), "device_id": new_id("dev")})


def _refresh(world: AccessWorld, person: Person, relation: str) -> Asked:
    """A genuine secret; whose session it is said to be of, is the question."""
    account = world.account("member")
    who, token = world.session(account)
    secret = token.split(".", 3)[3]
    named = {
        "mine": (who.tenant_id, who.account_id, who.sid),
        "not_mine": (world.tenant_id, world.stranger.identity.account_id, world.stranger.identity.sid),
        "other_tenant": (world.other_tenant_id, world.foreigner.identity.account_id, world.foreigner.identity.sid),
    }.get(relation, (who.tenant_id, who.account_id, new_id("ses")))
    return Asked(body={"refresh_token": ".".join((*named, secret))})


def _session(world: AccessWorld, person: Person, relation: str) -> Asked:
    if relation == "mine":
        account = Accounts(world.database).by_id(person.identity.tenant_id, person.identity.account_id)
        assert account is not None
        return Asked({"sid": world.session(account)[0].sid})
    owner = person if relation == "this_one" else world.whose(relation, person)
    return Asked({"sid": owner.identity.sid if owner else new_id("ses")})


def _account(world: AccessWorld, person: Person, relation: str) -> Asked:
    """`in_my_tenant`: a new one that is signed in."""
    if relation in ("in_my_tenant", "a_service"):
        account = world.account("member" if relation == "in_my_tenant" else "service")
        world.session(account)
        return Asked({"account_id": account.account_id})
    return Asked({"account_id": person.identity.account_id if relation == "myself" else world.account_of(relation, person)})


def _role(world: AccessWorld, person: Person, relation: str) -> Asked:
    return replace(_account(world, person, relation), body={"role": "moderator"})


def _new_room(world: AccessWorld, person: Person, relation: str) -> Asked:
    """Who is invited; or which id the new room is to have."""
    foreign = {"with_other_tenant": ["other_tenant"], "with_unknown": ["unknown"], "with_both": ["other_tenant", "unknown"]}
    members = [world.account("member").account_id, *(world.account_of(each, person) for each in foreign.get(relation, []))]
    room_id = world.stranger.room_id if relation == "id_of_not_mine" else new_id("room")
    if relation == "id_of_other_tenant":
        foreigner = world.foreigner.identity
        Rooms(world.database).create(new_room(foreigner.tenant_id, room_id, "foreign", "e1", foreigner.account_id, []), now_ms())
    return Asked(body={"room_id": room_id, "name": "new", "member_ids": members})


def _room(world: AccessWorld, person: Person, relation: str) -> Asked:
    return Asked({"room_id": world.room_of(relation, person)})


def _device(world: AccessWorld, person: Person, relation: str) -> Asked:
    owner = world.whose(relation, person)
    device_id = person.other_device.device_id if relation == "my_other" else owner.identity.device_id if owner else new_id("dev")
    return Asked({"device_id": device_id}, body={"target_kind": "token", "target": "t"})


def _new_media(world: AccessWorld, person: Person, relation: str) -> Asked:
    return Asked(body={"media_id": new_id("med"), "room_id": world.room_of(relation, person), **world.file()})


def _media(world: AccessWorld, person: Person, relation: str, state: str) -> Asked:
    if relation == "of_a_member":
        return Asked({"media_id": person.media[f"of_a_member_{state}"]})
    owner = world.whose(relation, person)
    return Asked({"media_id": owner.media[state] if owner else new_id("med")})


REST: Final[dict[str, AskRest]] = {
    "GET /v1/presence": _nothing,
    "POST /v1/tokens": _password,
    "POST /v1/tokens/identity": _id_token,
    "POST /v1/tokens/service": _assertion,
    "POST /v1/tokens/refresh": _refresh,
    "POST /v1/tickets": _nothing,
    "GET /v1/jwks.json": _nothing,
    "GET /v1/sessions": _nothing,
    "DELETE /v1/sessions": _nothing,
    "DELETE /v1/sessions/{sid}": _session,
    "DELETE /v1/accounts/{account_id}/sessions": _account,
    "PUT /v1/accounts/{account_id}/role": _role,
    "GET /v1/audit": _nothing,
    "POST /v1/rooms": _new_room,
    "GET /v1/rooms": _nothing,
    "GET /v1/rooms/{room_id}": _room,
    "GET /v1/rooms/{room_id}/events": _room,
    "PUT /v1/devices/{device_id}/push-target": _device,
    "GET /v1/ice-servers": _nothing,
    "POST /v1/media": _new_media,
    "POST /v1/media/{media_id}/complete": lambda world, person, relation: _media(world, person, relation, "pending"),
    "POST /v1/media/{media_id}/links": lambda world, person, relation: replace(_media(world, person, relation, "ready"), body={}),
    "GET /v1/openapi.json": _nothing,
    "GET /v1/asyncapi.json": _nothing,
}


def _in_room(body: Json) -> AskRest:
    return lambda world, person, relation: Asked(body=dict(body), room_id=world.room_of(relation, person))


def _stats(world: AccessWorld, person: Person, relation: str) -> Asked:
    return Asked(body={"call_id": new_id("call"), "loss": 0.01}, room_id=world.room_of(relation, person))


def _signal(action: str) -> AskRest:
    """To the peer in a room, or to somebody who is not in one's own room (`to_…`), or about a call of others (`others_call`)."""

    def ask(world: AccessWorld, person: Person, relation: str) -> Asked:
        call_id, negotiation_id, to = new_id("call"), "neg_1", world.peer.identity.account_id
        room_id = world.room_of(relation, person)
        if relation.startswith("to_") or relation == "others_call":
            room_id = person.room_id
        if relation.startswith("to_"):
            to = world.account_of(relation.removeprefix("to_"), person)
        elif relation == "others_call":
            call_id, negotiation_id = world.call_between_others(person)
        elif relation == "mine" and action == "answer":
            world.offer(world.peer, person.room_id, call_id, person.identity.account_id)
        bodies: dict[str, Json] = {
            "offer": {"negotiation_id": negotiation_id if relation != "others_call" else "neg_2", "sdp": SDP},
            "answer": {"negotiation_id": negotiation_id, "sdp": SDP.replace("actpass", "active")},
            "candidate": {"negotiation_id": negotiation_id, "candidate": LINE, "sdp_mid": "0", "sdp_m_line_index": 0},
            "bye": {"reason": "hangup"},
        }
        return Asked(body={"call_id": call_id, "to": {"account_id": to}, **bodies[action]}, room_id=room_id)

    return ask


def _ping(world: AccessWorld, person: Person, relation: str) -> Asked:
    return Asked(body={} if relation == "no_room" else {"rooms": [{"room_id": world.room_of(relation, person), "epoch": "e1", "offset": 1}]})


def _watch(world: AccessWorld, person: Person, relation: str) -> Asked:
    account_id = world.peer.identity.account_id if relation == "mine" else world.account_of(relation, person)
    return Asked(body={"account_ids": [account_id]})


def _reauth(world: AccessWorld, person: Person, relation: str) -> Asked:
    """Somebody's token of just now, with every scope that its owner may claim here."""
    others = {"my_other_device": person.other_device, "not_mine": world.stranger.identity, "other_tenant": world.foreigner.identity}
    who, at_ms = others.get(relation, person.identity), now_ms()
    scope = "rooms:read" if relation == "narrower" else person.identity.scope
    token = world.access_token(replace(who, scope=scope, issued_at_ms=at_ms, expires_at_ms=at_ms + ACCESS_TOKEN_S * 1000))
    return Asked(body={"access_token": "garbage" if relation == "unknown" else token})


FRAMES: Final[dict[str, AskRest]] = {
    "$connect": _nothing,
    "$disconnect": _nothing,
    "hello": _nothing,
    "join": _in_room({}),
    "leave": _in_room({}),
    "message": _in_room({"text": "hello"}),
    "offer": _signal("offer"),
    "answer": _signal("answer"),
    "candidate": _signal("candidate"),
    "bye": _signal("bye"),
    "stats": _stats,
    "ping": _ping,
    "$default": _nothing,
    "presence": lambda world, person, relation: Asked(body={"status": "away"}),
    "watch": _watch,
    "reauth": _reauth,
}


# --- what was done to the stores


class Commands(monitoring.CommandListener):
    """What the driver of MongoDB sends, in order."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, str]] = []  # database, command, collection

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        self.sent.append((event.database_name, event.command_name, str(event.command.get(event.command_name))))

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """Noted when it started."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Noted when it started."""


_COMMANDS: Final = Commands()
_registered: list[Commands] = []


def commands() -> Commands:
    """One listener a process: the driver knows no way to take one off again."""
    if not _registered:
        monitoring.register(_COMMANDS)  # for clients made from now on
        _registered.append(_COMMANDS)
    return _COMMANDS


_DIGESTS: Final = """
local found = {}
for _, name in ipairs(redis.call('KEYS', '*')) do
  local is_counter = false
  for i = 2, #ARGV do if string.find(name, '}:' .. ARGV[i], 1, true) then is_counter = true end end
  if not is_counter then
    found[#found + 1] = name
    found[#found + 1] = redis.sha1hex(redis.call('DUMP', name))
  end
end
local all = redis.sha1hex(table.concat(found, ' '))
if all == ARGV[1] then return {all} end
return {all, unpack(found)}
"""
"""Every key but counters, with its digest; nothing of it when all of it is as the caller knows it already."""

_FORGET_CALLS: Final = """
for _, kind in ipairs({'call', 'board'}) do
  for _, name in ipairs(redis.call('KEYS', '*}:' .. kind .. ':*')) do redis.call('DEL', name) end
end
"""


class Footprint:
    """What the world looks like: a digest of every collection and every key, and how much was posted and queued. Entries and messages of refusals do not count.

    A collection is read again when the functions wrote to it; `unnoticed` reads all of them, and so finds what was written past the driver.
    """

    def __init__(self, world: AccessWorld) -> None:
        self._world, self._digests = world, dict[str, str]()
        self._keys, self._all_keys = dict[str, str](), ""

    def take(self) -> dict[str, str]:
        """Name of a part of the world -> its digest."""
        flat: Sequence[str] = self._world.redis.eval(_DIGESTS, 0, self._all_keys, *COUNTERS)
        if flat[0] != self._all_keys:
            self._all_keys, self._keys = flat[0], {f"redis {name}": digest for name, digest in zip(flat[1::2], flat[2::2], strict=True)}
        posts = {f"posts to {connection_id}": str(count) for connection_id, count in self._world.cloud.posted.items()}
        return self._collections() | self._keys | posts | {"queue": str(len(self._world.cloud.queued))}

    def forget_calls(self) -> None:
        """Takes the records of calls out of Redis: each is of one cell, and reading them all would take most of the time."""
        self._world.redis.eval(_FORGET_CALLS, 0)

    def unnoticed(self) -> list[str]:
        """The collections that are not as the last digest has them, although nobody was seen writing to them."""
        known = self._collections()
        return sorted(name for name in self._names() if self._digest(name) != known[f"mongodb {name}"])

    def _collections(self) -> dict[str, str]:
        written = {collection for database, command, collection in commands().sent if database == self._world.database.name and command in _WRITES}
        commands().sent.clear()
        for name in self._names():
            if name in written or f"mongodb {name}" not in self._digests:
                self._digests[f"mongodb {name}"] = self._digest(name)
        commands().sent.clear()
        return dict(self._digests)

    def _names(self) -> list[str]:
        return [*migrations_mongo.COLLECTIONS, "idempotency"]

    def _digest(self, name: str) -> str:
        digest = hashlib.sha256()
        raw = self._world.database.get_collection(name, codec_options=CodecOptions(document_class=RawBSONDocument))
        for document in raw.find({"kind": {"$nin": REFUSALS}} if name == "ledger" else {}).sort("_id", 1):
            digest.update(document.raw)
        return digest.hexdigest()


_WRITES: Final = frozenset({"insert", "update", "delete", "findAndModify", "bulkWrite", "drop"})


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """The parts of the world that differ."""
    return tuple(sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name)))


def stores_asked(world: AccessWorld, act: Callable[[], object]) -> tuple[list[str], list[str]]:
    """The commands of Redis (scripts by their name) and of MongoDB that this costs, each in order. What scripts do inside is not counted."""
    from adapters import keys

    scripts = {hashlib.sha1(text.encode()).hexdigest(): name for name, text in vars(keys).items() if isinstance(text, str)}  # noqa: S324  # Redis' own name
    in_redis = []
    commands().sent.clear()
    with world.redis.monitor() as monitor:
        act()
        world.redis.echo("the end")
        for seen in monitor.listen():
            name, _, arguments = seen["command"].partition(" ")
            if name == "ECHO":
                break
            if seen["client_type"] != "lua" and int(seen["db"]) == REDIS_NUMBER and name.lower() not in ("hello", "client", "select"):
                in_redis.append(scripts.get(arguments.partition(" ")[0], name.lower()))
    in_mongodb = [f"{command} {collection}" for database, command, collection in commands().sent if database == world.database.name]
    return in_redis, in_mongodb
