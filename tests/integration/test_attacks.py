"""The table of attacks over the real wire: each gets its refusal, its twin (the same request, valid) passes right after, and nothing dies.

Every attack has accounts of its own in tenants of its own: no limit that one uses up and no session that one ends is met by another. Who guesses passwords
is stopped in test_sessions_stack, on a stack whose limits are tight.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import argon2
import jwt
import pytest
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from adapters.accounts_mongo import Account, Accounts
from adapters.identities_mongo import Identities
from adapters.settings import now_ms
from heliograph.auth import ACCESS_TYP, LEEWAY_S, TICKET_TYP
from heliograph.identities import MAX_ASSERTION_S, Provider, Subject
from heliograph_client import make_id
from local.identity_stub import AUDIENCE, IdentityStub
from tests.integration.test_bad_input import Person, Wire, frame, is_refusal
from tests.running import RunningStack

Json = dict[str, Any]
Sign = Callable[[bytes], bytes]
PASSWORD: Final = secrets.token_urlsafe(12)
ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order of P-256's group."""
PERSON: Final = "person-at-the-provider"
ASSERTION_TYP: Final = "client-authentication+jwt"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request got. `code` is ours, or what the gateway says; a frame has no status, a handshake that opened has 101."""

    status: int | str
    code: str = ""
    body: Json = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Member(Person):
    """Somebody who signed in over the wire."""

    tenant_id: str
    login: str
    refresh_token: str

    @property
    def claims(self) -> Json:
        return claims_of(self.token)


class World(Wire):
    """The wire, accounts made for one attack, and the stack's own key to forge with."""

    def __init__(self, stack: RunningStack, http: aiohttp.ClientSession, database: Any, jwks: Json) -> None:
        super().__init__(stack, http)
        self.database, self.jwks = database, jwks
        self.tenant_id, self.other_tenant_id = "t-" + secrets.token_hex(6), "o-" + secrets.token_hex(6)
        self.issuer = self.endpoints["rest_url"]
        key = json.loads((stack.data_dir / "secrets.json").read_text())["token_keys"]["current"]
        self.kid, self.sign = str(key["kid"]), es256(key["private_pem"])

    def account(self, role: str = "member", tenant_id: str | None = None, **changes: Any) -> Account:
        login = f"ines-{secrets.token_hex(4)}"
        made: Json = {"tenant_id": tenant_id or self.tenant_id, "account_id": make_id("acc"), "login": login, "password_hash": password_hash(), "role": role}
        account = Account(**made | changes)
        Accounts(self.database).put(account)
        return account

    async def join(self, role: str = "member", tenant_id: str | None = None) -> Member:
        account = self.account(role, tenant_id)
        return await self.sign_in_again(account.tenant_id, account.login)

    async def sign_in_again(self, tenant_id: str, login: str, device_id: str | None = None) -> Member:
        status, pair = await self.rest("POST", "/v1/tokens", sign_in(tenant_id, login, device_id=device_id or make_id("dev")), key())
        assert status == 201, pair
        return Member(pair["access_token"], pair["account_id"], pair["device_id"], tenant_id, login, pair["refresh_token"])

    async def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | aiohttp.typedefs.LooseHeaders | None = None) -> Answer:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        async with self.http.request(method, self.issuer + path, data=data, headers=headers) as answer:
            return answer_of(answer.status, await answer.read(), answer.headers)

    async def get(self, token: str, path: str = "/v1/rooms") -> Answer:
        return await self.ask("GET", path, headers=bearing(token))

    async def refresh(self, token: str) -> Answer:
        return await self.ask("POST", "/v1/tokens/refresh", {"refresh_token": token}, key())

    async def knock(self, *protocols: str, query: str = "", headers: Mapping[str, str] | None = None) -> Answer:
        """An opening handshake; 101 when the socket opened."""
        try:
            async with self.http.ws_connect(self.endpoints["socket_url"] + query, protocols=protocols, headers=headers):
                return Answer(101, "opened")
        except aiohttp.WSServerHandshakeError as refused:
            return Answer(refused.status, HTTPStatus(refused.status).phrase)

    async def knock_with(self, *tickets: str) -> Answer:
        return await self.knock("heliograph.v1", *(f"ticket.{each}" for each in tickets))

    @asynccontextmanager
    async def opened(self, ticket: str) -> AsyncIterator[Socket]:
        async with self.http.ws_connect(self.endpoints["socket_url"], protocols=["heliograph.v1", f"ticket.{ticket}"]) as ws:
            yield Socket(self, ws)

    async def raw(self, request: bytes) -> Answer:
        """What no HTTP library would send; the answer to its first request."""
        host, port = self.issuer.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        head, _, body = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")
        writer.close()
        lines = head.decode("latin-1").split("\r\n")
        return answer_of(int(lines[0].split()[1]), body, dict(line.lower().split(": ", 1) for line in lines[1:]))

    def forge(self, who: Member, header: Json | bytes | None = None, claims: Json | None = None, sign: Sign | None = None) -> str:
        """The member's access token with these changes (None takes one out), signed by the stack's own key unless told otherwise."""
        own = {"alg": "ES256", "kid": self.kid, "typ": ACCESS_TYP}
        return jws(header if isinstance(header, bytes) else own | (header or {}), who.claims | (claims or {}), sign or self.sign)

    def forge_ticket(self, who: Member, header: Json | None = None, claims: Json | None = None, lifetime_s: int = 30, age_s: int = 0) -> str:
        now_s = now_ms() // 1000 - age_s
        own = {"jti": secrets.token_urlsafe(16), "iat": now_s, "exp": now_s + lifetime_s}
        return self.forge(who, {"typ": TICKET_TYP} | (header or {}), own | (claims or {}))


@dataclass(slots=True)
class Socket:
    """An open socket that counts its frames."""

    world: World
    ws: aiohttp.ClientWebSocketResponse
    seq: int = 0

    async def send(self, action: str, room_id: str | None = None, body: Json | None = None, **changes: Any) -> Answer:
        self.seq += 1
        sent = frame(action, room_id, body, **{"client_seq": self.seq} | changes)
        return said(await self.world.answer(self.ws, json.dumps(sent), sent.get("id")))

    async def reauth(self, token: str) -> Answer:
        return await self.send("reauth", body={"access_token": token})

    async def closed(self) -> str | None:
        """Waits until the server closes; the reason that it gave."""
        reason = None
        async with asyncio.timeout(30):
            async for message in self.ws:
                event = json.loads(message.data)
                reason = event["body"]["reason"] if event.get("event") == "closed" else reason
        return reason


def said(answer: Json) -> Answer:
    return Answer("frame", str(answer.get("code", "acknowledged")), answer)


def answer_of(status: int, data: bytes, headers: Mapping[str, str]) -> Answer:
    try:
        body = json.loads(data)
    except ValueError:
        body = {}
    return Answer(status, str(body.get("code") or body.get("message") or HTTPStatus(status).phrase), body, headers)


def key() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(8)}


def bearing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def sign_in(tenant_id: str, login: str, **changes: Any) -> Json:
    return {"tenant_id": tenant_id, "login": login, "password": PASSWORD, "device_id": make_id("dev")} | changes


@cache
def password_hash() -> str:
    """Argon2id that costs next to nothing: hundreds of sign-ins would measure it and nothing else."""
    return argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)


# --- tokens by hand: no library would make these


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def claims_of(token: str) -> Json:
    return dict(json.loads(unb64(token.split(".")[1])))


def jws(header: Json | bytes, claims: Json, sign: Sign) -> str:
    """A compact JWS; fields that are None are left out, bytes are a header as it stands."""
    head, body = (part if isinstance(part, bytes) else json.dumps({k: v for k, v in part.items() if v is not None}).encode() for part in (header, claims))
    signed = f"{b64(head)}.{b64(body)}"
    return f"{signed}.{b64(sign(signed.encode()))}"


def es256(private_pem: str) -> Sign:
    private, algorithm = form.load_pem_private_key(private_pem.encode(), None), jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return lambda data: algorithm.sign(data, private)


def private_pem_of(private: ec.EllipticCurvePrivateKey) -> str:
    return private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()).decode()


def rs256(private: rsa.RSAPrivateKey) -> Sign:
    algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
    return lambda data: algorithm.sign(data, private)


def hs256(secret: bytes) -> Sign:
    return lambda data: hmac.digest(secret, data, hashlib.sha256)


def unsigned(_: bytes) -> bytes:
    return b""


@cache
def attackers_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def attackers_rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def attacker(data: bytes) -> bytes:
    return es256(private_pem_of(attackers_key()))(data)


def attackers_jwk() -> Json:
    return {name: value for name, value in jwt.algorithms.ECAlgorithm.to_jwk(attackers_key().public_key(), as_dict=True).items() if name != "key_ops"}


def our_pem(world: World) -> bytes:
    """Our public key as everybody can have it."""
    public: Any = jwt.PyJWK(world.jwks["keys"][0]).key
    return bytes(public.public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))


def with_signature(token: str, change: Callable[[bytes], bytes]) -> str:
    head, body, signature = token.split(".")
    return f"{head}.{body}.{b64(change(unb64(signature)))}"


def with_claims(token: str, **changes: Any) -> str:
    """Other claims under the old signature."""
    head, _, signature = token.split(".")
    return f"{head}.{b64(json.dumps(claims_of(token) | changes).encode())}.{signature}"


def mirrored(signature: bytes) -> bytes:
    """The other signature that verifies: (r, n - s)."""
    return signature[:32] + (ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")


# --- the table

Act = Callable[[World], Awaitable[tuple[Answer, Answer]]]
Make = Callable[[World, Member], str]


@dataclass(frozen=True, slots=True)
class Attack:
    """`act` makes the attack and then its twin: the answers to both. `status` and `code` are the refusal, `twin` is the twin's status or, of a frame, code."""

    act: Act
    status: int | str
    code: str
    twin: int | str = 200


ATTACKS: dict[str, Attack] = {}


def attack(name: str, status: int | str, code: str, twin: int | str = 200) -> Callable[[Act], Act]:
    """Puts an attack into the table."""

    def put(act: Act) -> Act:
        assert name not in ATTACKS
        ATTACKS[name] = Attack(act, status, code, twin)
        return act

    return put


def bearer(make: Make, code: str = "token_invalid", status: int = 401, path: str = "/v1/rooms") -> Attack:
    """A bad access token on REST; the twin is forged likewise, with nothing changed."""

    async def act(world: World) -> tuple[Answer, Answer]:
        who = await world.join()
        return await world.get(make(world, who), path), await world.get(world.forge(who))

    return Attack(act, status, code)


def at(world: World, **claims: int) -> Json:
    """Claims so many seconds from now."""
    return {name: now_ms() // 1000 + seconds for name, seconds in claims.items()}


ATTACKS |= {
    "access token: alg none, no signature": bearer(lambda w, p: w.forge(p, {"alg": "none"}, sign=unsigned)),
    "access token: alg nOnE over our signature": bearer(lambda w, p: w.forge(p, {"alg": "nOnE"})),
    "access token: HS256 with our public key as PEM": bearer(lambda w, p: w.forge(p, {"alg": "HS256"}, sign=hs256(our_pem(w)))),
    "access token: HS256 with our public key as JWK": bearer(lambda w, p: w.forge(p, {"alg": "HS256"}, sign=hs256(json.dumps(w.jwks["keys"][0]).encode()))),
    "access token: an HMAC in an ES256 token": bearer(lambda w, p: w.forge(p, sign=hs256(our_pem(w)))),
    "access token: RS256 by a key of the attacker's": bearer(lambda w, p: w.forge(p, {"alg": "RS256"}, sign=rs256(attackers_rsa_key()))),
    "access token: another key under our kid": bearer(lambda w, p: w.forge(p, sign=attacker)),
    "access token: an unknown kid": bearer(lambda w, p: w.forge(p, {"kid": "local-00000000"})),
    "access token: no kid": bearer(lambda w, p: w.forge(p, {"kid": None})),
    "access token: kid walks to /dev/null, empty HMAC key": bearer(lambda w, p: w.forge(p, {"alg": "HS256", "kid": "../../../dev/null"}, sign=hs256(b""))),
    "access token: kid walks to /dev/null, our signature": bearer(lambda w, p: w.forge(p, {"kid": "../../../dev/null"})),
    "access token: kid is SQL": bearer(lambda w, p: w.forge(p, {"kid": f"{w.kid}' UNION SELECT 'key"})),
    "access token: kid is a MongoDB operator": bearer(lambda w, p: w.forge(p, {"kid": {"$ne": None}})),
    "access token: kid is a number": bearer(lambda w, p: w.forge(p, {"kid": 0})),
    "access token: kid is a list with ours": bearer(lambda w, p: w.forge(p, {"kid": [w.kid]})),
    "access token: jku beside a good signature": bearer(lambda w, p: w.forge(p, {"jku": f"{w.issuer}/v1/jwks.json"})),
    "access token: x5u beside a good signature": bearer(lambda w, p: w.forge(p, {"x5u": "https://attacker.example/chain.pem"})),
    "access token: jwk of the attacker's, signed by it": bearer(lambda w, p: w.forge(p, {"jwk": attackers_jwk()}, sign=attacker)),
    "access token: jwk beside a good signature": bearer(lambda w, p: w.forge(p, {"jwk": w.jwks["keys"][0]})),
    "access token: x5c beside a good signature": bearer(lambda w, p: w.forge(p, {"x5c": ["MIIB"]})),
    "access token: crit names exp": bearer(lambda w, p: w.forge(p, {"crit": ["exp"]})),
    "access token: crit with an unencoded payload": bearer(lambda w, p: w.forge(p, {"crit": ["b64"], "b64": False})),
    "access token: a header nested 1,000 deep": bearer(lambda w, p: w.forge(p, b'{"alg":' + b"[" * 1000 + b"]" * 1000 + b"}")),
    "access token: a header that is no object": bearer(lambda w, p: w.forge(p, b'["ES256"]')),
    "access token: a header with a number of 2,500 digits": bearer(lambda w, p: w.forge(p, b'{"alg":"ES256","kid":' + b"9" * 2500 + b"}")),
    "access token: a header that is not UTF-8": bearer(lambda w, p: w.forge(p, b'{"alg":"ES256","kid":"\xff"}')),
    "access token: no exp": bearer(lambda w, p: w.forge(p, claims={"exp": None})),
    "access token: exp in a year": bearer(lambda w, p: w.forge(p, claims=at(w, exp=365 * 86_400))),
    "access token: exp is text": bearer(lambda w, p: w.forge(p, claims={"exp": str(p.claims["exp"])})),
    "access token: exp is a list": bearer(lambda w, p: w.forge(p, claims={"exp": [p.claims["exp"]]})),
    "access token: exp is Infinity": bearer(lambda w, p: w.forge(p, claims={"exp": float("inf")})),
    "access token: exp is NaN": bearer(lambda w, p: w.forge(p, claims={"exp": float("nan")})),
    "access token: exp over an hour ago": bearer(lambda w, p: w.forge(p, claims=at(w, exp=-3600, iat=-4500)), "token_expired"),
    "access token: expires_at_ms over an hour ago": bearer(lambda w, p: w.forge(p, claims={"expires_at_ms": now_ms() - 3_600_000}), "token_expired"),
    "access token: expires_at_ms is text that is no number": bearer(lambda w, p: w.forge(p, claims={"expires_at_ms": "9" * 400})),
    "access token: nbf in an hour": bearer(lambda w, p: w.forge(p, claims=at(w, nbf=3600))),
    "access token: iat in an hour": bearer(lambda w, p: w.forge(p, claims=at(w, iat=3600, exp=4500))),
    "access token: no iat": bearer(lambda w, p: w.forge(p, claims={"iat": None})),
    "access token: another aud": bearer(lambda w, p: w.forge(p, claims={"aud": "another-api"})),
    "access token: no aud": bearer(lambda w, p: w.forge(p, claims={"aud": None})),
    "access token: another iss": bearer(lambda w, p: w.forge(p, claims={"iss": "https://attacker.example"})),
    "access token: iss with a slash more": bearer(lambda w, p: w.forge(p, claims={"iss": w.issuer + "/"})),
    "access token: another stage's issuer, its key under our kid": bearer(
        lambda w, p: w.forge(p, claims={"iss": "https://heliograph-prod.example"}, sign=attacker)
    ),
    "access token: sub is another kind of id": bearer(lambda w, p: w.forge(p, claims={"sub": p.device_id})),
    "access token: tenant_id is a MongoDB operator": bearer(lambda w, p: w.forge(p, claims={"tenant_id": {"$ne": ""}})),
    "access token: an unknown role": bearer(lambda w, p: w.forge(p, claims={"role": "root"})),
    "access token: typ JWT": bearer(lambda w, p: w.forge(p, {"typ": "JWT"})),
    "access token: typ in capitals": bearer(lambda w, p: w.forge(p, {"typ": ACCESS_TYP.upper()})),
    "access token: no typ": bearer(lambda w, p: w.forge(p, {"typ": None})),
    "access token: a ticket": bearer(lambda w, p: w.forge_ticket(p)),
    "access token: an ID token signed with our key": bearer(lambda w, p: w.forge(p, {"typ": "JWT"}, {"nonce": "n", "azp": "web"})),
    "access token: a refresh token": bearer(lambda w, p: p.refresh_token),
    "access token: role admin under the old signature": bearer(lambda w, p: with_claims(p.token, role="admin"), path="/v1/audit"),
    "access token: more scope under the old signature": bearer(lambda w, p: with_claims(p.token, scope=p.claims["scope"] + " audit:read"), path="/v1/audit"),
    "access token: another tenant under the old signature": bearer(lambda w, p: with_claims(p.token, tenant_id=w.other_tenant_id)),
    "access token: cut short": bearer(lambda w, p: p.token[:-8]),
    "access token: without its signature": bearer(lambda w, p: p.token.rpartition(".")[0] + "."),
    "access token: two of three parts": bearer(lambda w, p: p.token.rpartition(".")[0]),
    "access token: four parts": bearer(lambda w, p: p.token + ".e30"),
    "access token: one bit of the signature changed": bearer(lambda w, p: with_signature(p.token, lambda s: bytes([s[0] ^ 1]) + s[1:])),
    "access token: a signature of zeros": bearer(lambda w, p: with_signature(p.token, lambda s: bytes(64))),
    "access token: r = n, s = n": bearer(lambda w, p: with_signature(p.token, lambda s: ORDER.to_bytes(32, "big") * 2)),
    "access token: a DER signature": bearer(lambda w, p: with_signature(p.token, der)),
    "access token: more than 4 KB, well signed": bearer(lambda w, p: w.forge(p, claims={"note": "x" * 4096})),
    "access token: dots": bearer(lambda w, p: ".." + "." * 100),
}


def der(signature: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    return encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))


@attack("access token: a member's with an admin's scope, signed by our key", 403, "forbidden")
async def _(world: World) -> tuple[Answer, Answer]:
    member, admin = await asyncio.gather(world.join(), world.join("admin"))
    scope = admin.claims["scope"]
    return await world.get(world.forge(member, claims={"scope": scope}), "/v1/audit"), await world.get(admin.token, "/v1/audit")


@attack("access token: of a session that has ended", 401, "token_invalid")
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    assert (await world.ask("DELETE", "/v1/sessions", headers=who.headers)).status == 200
    refused = await world.get(who.token)
    return refused, await world.get((await world.sign_in_again(who.tenant_id, who.login)).token)


@attack("access token: another tenant's, on this tenant's room", 404, "not_found")
async def _(world: World) -> tuple[Answer, Answer]:
    owner, stranger = await asyncio.gather(world.join(), world.join("admin", world.other_tenant_id))
    path = f"/v1/rooms/{await world.room(owner)}"
    return await world.get(stranger.token, path), await world.get(owner.token, path)


@attack("access token: the tenant's, by somebody who is not in the room", 404, "not_found")
async def _(world: World) -> tuple[Answer, Answer]:
    owner, stranger = await asyncio.gather(world.join(), world.join("admin"))
    path = f"/v1/rooms/{await world.room(owner)}/events"
    return await world.get(stranger.token, path), await world.get(owner.token, path)


# --- where the token stands


def carried(headers: Callable[[Member], list[tuple[str, str]]], code: str, query: Callable[[Member], str] = lambda who: "") -> Attack:
    """A good token in another place or form; the twin has it where it belongs, with the scheme in lower case."""

    async def act(world: World) -> tuple[Answer, Answer]:
        who = await world.join()
        refused = await world.ask("GET", "/v1/rooms" + query(who), headers=headers(who))
        return refused, await world.ask("GET", "/v1/rooms", headers={"authorization": f"bearer {who.token}"})

    return Attack(act, 401, code)


ATTACKS |= {
    "header: Basic instead of Bearer": carried(lambda who: [("Authorization", f"Basic {who.token}")], "token_invalid"),
    "header: the token without a scheme": carried(lambda who: [("Authorization", who.token)], "token_invalid"),
    "header: two spaces before the token": carried(lambda who: [("Authorization", f"Bearer  {who.token}")], "token_invalid"),
    "header: two of Authorization, both good": carried(lambda who: [("Authorization", f"Bearer {who.token}")] * 2, "token_invalid"),
    "header: two of Authorization, the first of them bad": carried(
        lambda who: [("Authorization", "Bearer x"), ("Authorization", f"Bearer {who.token}")], "token_invalid"
    ),
    "header: the token in X-Authorization": carried(lambda who: [("X-Authorization", f"Bearer {who.token}")], "Unauthorized"),
    "header: the token in a cookie": carried(lambda who: [("Cookie", f"access_token={who.token}; Authorization=Bearer {who.token}")], "Unauthorized"),
    "query: the token in it": carried(lambda who: [], "Unauthorized", lambda who: f"?access_token={who.token}&authorization=Bearer%20{who.token}"),
    "query: the token in it, a bad one in the header": carried(
        lambda who: [("Authorization", "Bearer x")], "token_invalid", lambda who: f"?access_token={who.token}"
    ),
}


def padded(size: int) -> Act:
    """Header values of so many bytes; the twin is as large as may be."""

    async def act(world: World) -> tuple[Answer, Answer]:
        who = await world.join()
        headers = bearing(who.token)
        refused = await world.ask("GET", "/v1/rooms", headers=headers | {"X-Padding": "x" * size})
        return refused, await world.ask("GET", "/v1/rooms", headers=headers | {"X-Padding": "x" * (9_900 - len(who.token))})

    return act


ATTACKS |= {
    "header: 10,240 bytes beside the request's own": Attack(padded(10_240), 431, "Request Header Fields Too Large"),
    "header: 100 KB": Attack(padded(100 * 1024), 431, "Request Header Fields Too Large"),
}


@attack("header: 100 headers of 1 KB", 431, "Request Header Fields Too Large")
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    refused = await world.ask("GET", "/v1/rooms", headers=bearing(who.token) | {f"X-Padding-{number}": "x" * 1024 for number in range(100)})
    return refused, await world.get(who.token)


@attack("handshake: a header of 100 KB", 431, "Request Header Fields Too Large", 101)
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    refused = await world.knock("heliograph.v1", f"ticket.{await world.ticket(who)}", headers={"X-Padding": "x" * 100 * 1024})
    return refused, await world.knock_with(await world.ticket(who))


def split(value: bytes) -> Act:
    """A header value that would be two headers; the twin's is one."""

    async def act(world: World) -> tuple[Answer, Answer]:
        who = await world.join()

        async def ask(trace_id: bytes) -> Answer:
            lines = b"Host: x", b"Connection: close", f"Authorization: Bearer {who.token}".encode(), b"X-Trace-Id: " + trace_id
            return await world.raw(b"GET /v1/rooms HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n")

        refused = await ask(b"a" * 16 + value)
        assert "x-split" not in refused.headers
        return refused, await ask(b"a" * 16)

    return act


ATTACKS |= {
    "header: a bare CR in its value": Attack(split(b"\rX-Split: 1"), 400, "Bad Request"),
    "header: NUL in its value": Attack(split(b"\0X-Split: 1"), 400, "Bad Request"),
    "header: Content-Length twice": Attack(split(b"\r\nContent-Length: 0\r\nContent-Length: 5"), 400, "Bad Request"),
    "header: Content-Length and Transfer-Encoding": Attack(split(b"\r\nContent-Length: 5\r\nTransfer-Encoding: chunked"), 400, "Bad Request"),
}


@attack("path: CR and LF in it", 404, "not_found")
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    room_id = await world.room(who)
    refused = await world.get(who.token, f"/v1/rooms/{room_id}%0d%0aX-Split:%201")
    assert "x-split" not in {name.lower() for name in refused.headers}
    return refused, await world.get(who.token, f"/v1/rooms/{room_id}")


@attack("path: it walks out of its route", 404, "not_found")
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    refused = await world.raw(
        f"GET /v1/rooms/..%2f..%2fv1%2faudit HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {who.token}\r\n\r\n".encode()
    )
    return refused, await world.get(who.token, f"/v1/rooms/{await world.room(who)}")


@attack("path: NUL, bad UTF-8 and an operator in it", 404, "not_found")
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join("admin")
    room_id, answers = await world.room(who), list[Answer]()
    for bad in ("%00", "%ed%a0%80", "%ff", "%7b%22$ne%22:null%7d", "$ne", "x" * 2000):
        answers += [await world.get(who.token, f"/v1/rooms/{room_id}{bad}"), await world.get(who.token, f"/v1/rooms/{bad}/events")]
        answers += [await world.ask("DELETE", path, headers=who.headers) for path in (f"/v1/sessions/{bad}", f"/v1/accounts/{bad}/sessions")]
    assert {(answer.status, answer.code) for answer in answers} == {(404, "not_found")}
    return answers[0], await world.get(who.token, f"/v1/rooms/{room_id}")


@attack("method: overridden by header and query", 404, "Not Found")
async def _(world: World) -> tuple[Answer, Answer]:
    """A POST that says it is a DELETE has no such route; a GET that says so only reads."""
    who = await world.join()
    headers = who.headers | dict.fromkeys(("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"), "DELETE")
    refused = await world.ask("POST", f"/v1/sessions/{who.claims['sid']}?_method=DELETE", headers=headers)
    listed = await world.ask("GET", "/v1/sessions?_method=DELETE", headers=headers)
    assert [session["sid"] for session in listed.body["sessions"]] == [who.claims["sid"]]
    return refused, await world.ask("DELETE", f"/v1/sessions/{who.claims['sid']}", headers=who.headers)


@attack("address: X-Forwarded-For chooses one", 401, "credentials_invalid", 201)
async def _(world: World) -> tuple[Answer, Answer]:
    """The bucket is that of the address the gateway saw. Here everybody has one address, so what is watched is which bucket Redis is asked for."""
    account, spoofed = world.account(), "203.0.113.7"
    headers = {"X-Forwarded-For": spoofed, "Forwarded": f"for={spoofed}", "X-Real-IP": spoofed, "True-Client-IP": spoofed}
    body = sign_in(account.tenant_id, account.login)
    async with monitored(world.endpoints["redis_url"]) as commands:
        refused = await world.ask("POST", "/v1/tokens", body | {"password": "guess"}, headers | key())
    assert [command for command in commands if "hg:{address/127.0.0.1}:limit:sign_in" in command], commands
    assert not [command for command in commands if spoofed in command]
    return refused, await world.ask("POST", "/v1/tokens", body, key())


@asynccontextmanager
async def monitored(redis_url: str) -> AsyncIterator[list[str]]:
    """Every command that Redis is given meanwhile."""
    host, _, port = redis_url.partition("://")[2].partition("/")[0].rpartition("@")[2].partition(":")
    (reader, writer), (_, marking) = await asyncio.gather(asyncio.open_connection(host, int(port)), asyncio.open_connection(host, int(port)))
    writer.write(b"MONITOR\r\n")
    assert await reader.readline() == b"+OK\r\n"
    commands, mark = list[str](), secrets.token_hex(8)
    yield commands
    marking.write(f"ECHO {mark}\r\n".encode())
    async with asyncio.timeout(30):
        while mark not in (line := (await reader.readline()).decode("utf-8", "replace")):
            commands.append(line)
    for each in (writer, marking):
        each.close()


@attack("trace_id: it would be a log line of its own", 200, "ignored")
async def _(world: World) -> tuple[Answer, Answer]:
    who, mark, good = await world.join(), secrets.token_hex(8), secrets.token_hex(16)
    for bad in (f'{good}","level":"FATAL","mark":"{mark}', f"{good}%0a{mark}", f"${{jndi:ldap://{mark}}}", mark * 10):
        answer = await world.ask("GET", "/v1/rooms", headers=who.headers | {"X-Trace-Id": bad})
        assert mark not in str(answer)
        assert len(answer.headers["x-trace-id"]) == 32
    passed = await world.ask("GET", "/v1/rooms", headers=who.headers | {"X-Trace-Id": good})
    lines = (world.stack.data_dir / "logs/functions/rooms.log").read_text()
    assert mark not in lines
    assert good in lines, "a good one is logged: else nothing could be found there"
    return Answer(answer.status, "ignored"), passed


# --- refresh tokens


@attack("refresh: 20 clients with one token at once", 201, "one successor", 201)
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    answers = await asyncio.gather(*(world.refresh(who.refresh_token) for _ in range(20)))
    assert {answer.status for answer in answers} == {201}, answers
    (successor,) = {answer.body["refresh_token"] for answer in answers}
    assert {(await world.get(answer.body["access_token"])).status for answer in answers} == {200}
    return Answer(201, "one successor"), await world.refresh(successor)


@attack("refresh: an old token again", 401, "token_invalid", 201)
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    second = await world.refresh(who.refresh_token)
    third = await world.refresh(second.body["refresh_token"])
    newest = Member(third.body["access_token"], who.account_id, who.device_id, who.tenant_id, who.login, third.body["refresh_token"])
    async with world.opened(await world.ticket(newest)) as one, world.opened(await world.ticket(newest)) as two:
        assert (await two.send("ping")).code == "acknowledged"
        refused = await world.refresh(who.refresh_token)
        assert {await one.closed(), await two.closed()} == {"signed_out"}
    for token in (newest.refresh_token, second.body["refresh_token"]):
        assert (await world.refresh(token)).code == "token_invalid", "the newest one is dead too"
    for access_token in (who.token, second.body["access_token"], newest.token):
        assert (await world.get(access_token)).code == "token_invalid"
    return refused, await world.refresh((await world.sign_in_again(who.tenant_id, who.login)).refresh_token)


def forged_refresh(change: Callable[[World, list[str]], list[str]]) -> Attack:
    """A refresh token with a part changed: refused, and the session it names is as it was."""

    async def act(world: World) -> tuple[Answer, Answer]:
        who = await world.join()
        one = {"tenant_id": who.tenant_id, "account_id": who.account_id}
        before = list(world.database.sessions.find(one))
        refused = await world.refresh(".".join(change(world, who.refresh_token.split("."))))
        assert list(world.database.sessions.find(one)) == before != []
        return refused, await world.refresh(who.refresh_token)

    return Attack(act, 401, "token_invalid", 201)


ATTACKS |= {
    "refresh: another secret for a session that exists": forged_refresh(lambda w, parts: [*parts[:4], b64(os.urandom(32))]),
    "refresh: a higher number": forged_refresh(lambda w, parts: [*parts[:3], "7", parts[4]]),
    "refresh: the highest number": forged_refresh(lambda w, parts: [*parts[:3], "999999", parts[4]]),
    "refresh: another account": forged_refresh(lambda w, parts: [parts[0], w.account().account_id, *parts[2:]]),
    "refresh: another tenant": forged_refresh(lambda w, parts: [w.other_tenant_id, *parts[1:]]),
    "refresh: another session": forged_refresh(lambda w, parts: [*parts[:2], make_id("ses"), *parts[3:]]),
    "refresh: a sixth part": forged_refresh(lambda w, parts: [*parts, "x"]),
}


@attack("refresh: an access token", 400, "malformed", 201)
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    return await world.refresh(who.token), await world.refresh(who.refresh_token)


# --- tickets


def ticket(make: Make) -> Attack:
    """A bad ticket; the twin is forged likewise, with nothing changed."""

    async def act(world: World) -> tuple[Answer, Answer]:
        who = await world.join()
        return await world.knock_with(make(world, who)), await world.knock_with(world.forge_ticket(who))

    return Attack(act, 403, "Forbidden", 101)


ATTACKS |= {
    "ticket: 31 seconds old": ticket(lambda w, p: w.forge_ticket(p, age_s=31)),
    "ticket: that lives for an hour": ticket(lambda w, p: w.forge_ticket(p, lifetime_s=3600)),
    "ticket: no jti": ticket(lambda w, p: w.forge_ticket(p, claims={"jti": None})),
    "ticket: jti is a list": ticket(lambda w, p: w.forge_ticket(p, claims={"jti": ["x"]})),
    "ticket: no exp": ticket(lambda w, p: w.forge_ticket(p, claims={"exp": None})),
    "ticket: an access token": ticket(lambda w, p: p.token),
    "ticket: typ JWT": ticket(lambda w, p: w.forge_ticket(p, {"typ": "JWT"})),
    "ticket: alg none": ticket(lambda w, p: w.forge(p, {"alg": "none", "typ": TICKET_TYP}, at(w, exp=30, iat=0), unsigned)),
    "ticket: another key under our kid": ticket(lambda w, p: w.forge(p, {"typ": TICKET_TYP}, at(w, exp=30, iat=0), attacker)),
    "ticket: a header nested 1,000 deep": ticket(lambda w, p: w.forge(p, b'{"alg":' + b"[" * 1000 + b"]" * 1000 + b"}")),
    "ticket: of an authentication that has expired": ticket(lambda w, p: w.forge_ticket(p, claims={"expires_at_ms": now_ms() - (LEEWAY_S + 1) * 1000})),
    "ticket: another tenant under the old signature": ticket(lambda w, p: with_claims(w.forge_ticket(p), tenant_id=w.other_tenant_id)),
    "ticket: empty": ticket(lambda w, p: ""),
}


@attack("ticket: a second time", 403, "Forbidden", 101)
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    used = await world.ticket(who)
    assert (await world.knock_with(used)).status == 101
    return await world.knock_with(used), await world.knock_with(await world.ticket(who))


@attack("ticket: a second time, its signature mirrored", 403, "Forbidden", 101)
async def _(world: World) -> tuple[Answer, Answer]:
    """Whoever has a signature of ECDSA has another one that verifies: what is used once is the ticket's id, not its text."""
    who = await world.join()
    used, fresh = await world.ticket(who), await world.ticket(who)
    assert (await world.knock_with(used)).status == 101
    return await world.knock_with(with_signature(used, mirrored)), await world.knock_with(with_signature(fresh, mirrored))


@attack("ticket: 10 sockets with one at once", 403, "Forbidden", 101)
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    one = await world.ticket(who)
    answers = await asyncio.gather(*(world.knock_with(one) for _ in range(10)))
    refused = [answer for answer in answers if answer.status != 101]
    assert len(refused) == 9
    assert len({answer.status for answer in refused}) == 1
    return refused[0], await world.knock_with(await world.ticket(who))


@attack("ticket: of a session that has ended", 403, "Forbidden", 101)
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    bought = await world.ticket(who)
    assert (await world.ask("DELETE", "/v1/sessions", headers=who.headers)).status == 200
    refused = await world.knock_with(bought)
    return refused, await world.knock_with(await world.ticket(await world.sign_in_again(who.tenant_id, who.login)))


@attack("ticket: two in one handshake", 403, "Forbidden", 101)
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    one, two = await world.ticket(who), await world.ticket(who)
    return await world.knock_with(one, two), await world.knock_with(one)


def elsewhere(*protocols: str, status: int, code: str) -> Attack:
    """A good ticket that is not where it belongs."""

    async def act(world: World) -> tuple[Answer, Answer]:
        who = await world.join()
        one = await world.ticket(who)
        query = f"?ticket={one}&Sec-WebSocket-Protocol={quote('heliograph.v1, ticket.' + one)}"
        headers = {"Authorization": f"Bearer {one}", "Cookie": f"ticket={one}"}
        return await world.knock(*protocols, query=query, headers=headers), await world.knock_with(one)

    return Attack(act, status, code, 101)


ATTACKS |= {
    "ticket: in the query, the header and a cookie": elsewhere("heliograph.v1", status=403, code="Forbidden"),
    "ticket: in the query, without a subprotocol": elsewhere(status=401, code="Unauthorized"),
}


# --- frames


def proof(make: Callable[[World, Member], Awaitable[str]], code: str = "token_invalid") -> Attack:
    """A bad proof on a live socket, which goes on as before; the twin is the device's own fresh token."""

    async def act(world: World) -> tuple[Answer, Answer]:
        who = await world.join()
        async with world.opened(await world.ticket(who)) as socket:
            refused = await socket.reauth(await make(world, who))
            assert (await socket.send("ping")).code == "acknowledged", "the socket goes on"
            fresh = await world.refresh(who.refresh_token)
            return refused, await socket.reauth(fresh.body["access_token"])

    return Attack(act, "frame", code, "acknowledged")


async def other_device(world: World, who: Member) -> str:
    return (await world.sign_in_again(who.tenant_id, who.login)).token


async def other_account(world: World, who: Member) -> str:
    return (await world.join("admin")).token


async def same_device_id(world: World, who: Member) -> str:
    account = world.account()
    return (await world.sign_in_again(account.tenant_id, account.login, who.device_id)).token


async def same_ids_elsewhere(world: World, who: Member) -> str:
    """Another tenant's account that has the same id, on a device that has the same id."""
    account = world.account(tenant_id=world.other_tenant_id, account_id=who.account_id)
    return (await world.sign_in_again(account.tenant_id, account.login, who.device_id)).token


def made(make: Make) -> Callable[[World, Member], Awaitable[str]]:
    async def token(world: World, who: Member) -> str:
        return make(world, who)

    return token


ATTACKS |= {
    "reauth: another device's token": proof(other_device),
    "reauth: another account's token": proof(other_account),
    "reauth: another account's token, with the same device id": proof(same_device_id),
    "reauth: another tenant's token, with the same account and device id": proof(same_ids_elsewhere),
    "reauth: a ticket": proof(made(lambda w, p: w.forge_ticket(p))),
    "reauth: role admin under the old signature": proof(made(lambda w, p: with_claims(p.token, role="admin"))),
    "reauth: a header nested 1,000 deep": proof(made(lambda w, p: w.forge(p, b'{"alg":' + b"[" * 1000 + b"]" * 1000 + b"}"))),
    "reauth: an expired token": proof(made(lambda w, p: w.forge(p, claims=at(w, exp=-3600, iat=-4500))), "token_expired"),
    "reauth: more than 4 KB": proof(made(lambda w, p: p.token + "x" * 4096), "malformed"),
}


@attack("frame: after the socket's authentication has expired", "frame", "token_expired", "acknowledged")
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    room_id, over_ms = await world.room(who), now_ms() + 1500
    async with world.opened(world.forge_ticket(who, claims={"expires_at_ms": over_ms - LEEWAY_S * 1000})) as socket:
        assert (await socket.send("message", room_id, {"text": "in time"})).body["offset"] == 1
        await asyncio.sleep(max(0, over_ms + 50 - now_ms()) / 1000)
        refused = await socket.send("message", room_id, {"text": "too late"})
        assert (await socket.reauth(who.token)).code == "acknowledged"
        passed = await socket.send("message", room_id, {"text": "proved anew"})
        assert passed.body["offset"] == 2, "what was refused changed nothing"
        return refused, passed


@attack("frame: a role that changed since", "frame", "token_expired", "acknowledged")
async def _(world: World) -> tuple[Answer, Answer]:
    who, admin = await asyncio.gather(world.join("moderator"), world.join("admin"))
    async with world.opened(await world.ticket(who)) as socket:
        assert (await world.ask("PUT", f"/v1/accounts/{who.account_id}/role", {"role": "member"}, admin.headers)).status == 200
        refused = await socket.send("ping")
        assert (await socket.reauth(who.token)).code == "token_expired", "a token from before proves nothing"
        assert (await socket.reauth((await world.refresh(who.refresh_token)).body["access_token"])).code == "acknowledged"
        return refused, await socket.send("ping")


def framed(change: Callable[[Json], Json | str], code: str, named: bool = True) -> Attack:
    """A bad frame in one's own room; the twin is the same frame without the change."""

    async def act(world: World) -> tuple[Answer, Answer]:
        who = await world.join()
        room_id = await world.room(who)
        async with world.opened(await world.ticket(who)) as socket:
            good = frame("message", room_id, {"text": "hello"})
            changed = change(good)
            text = changed if isinstance(changed, str) else json.dumps(changed)
            refused = said(await world.answer(socket.ws, text, good["id"] if named else None))
            page = await world.get(who.token, f"/v1/rooms/{room_id}/events")
            assert page.body["head"] == 0, "a refused frame changes nothing"
            socket.seq = 1
            return refused, await socket.send("message", room_id, {"text": "hello"}, id=good["id"])

    return Attack(act, "frame", code, "acknowledged")


ATTACKS |= {
    "frame: it says who sent it": framed(lambda f: f | {"from": {"account_id": make_id("acc")}}, "malformed"),
    "frame: its trace_id would be a log line": framed(lambda f: f | {"trace_id": f["trace_id"] + '\n{"level":"FATAL"}'}, "malformed"),
    "frame: a room that does not exist": framed(lambda f: f | {"room_id": make_id("room")}, "not_found"),
    "frame: room_id is a MongoDB operator": framed(lambda f: f | {"room_id": {"$ne": None}}, "malformed"),
    "frame: JSON 10,000 deep": framed(lambda f: '{"action":"message","body":' + "[" * 10_000 + "]" * 10_000 + "}", "malformed", named=False),
    "frame: a key twice": framed(lambda f: json.dumps(f)[:-1] + ',"room_id":"' + make_id("room") + '"}', "malformed", named=False),
    "frame: NUL in the text": framed(lambda f: f | {"body": {"text": "a\0b"}}, "malformed"),
    "frame: a lone surrogate in the text": framed(lambda f: f | {"body": {"text": "\udfff"}}, "malformed"),
    "frame: client_seq of 21 digits": framed(lambda f: json.dumps(f | {"client_seq": 10**20}), "malformed", named=False),
    "frame: client_seq of 1e999": framed(lambda f: json.dumps(f).replace('"client_seq": 1', '"client_seq": 1e999'), "malformed"),
}


@attack("frame: into another tenant's room", "frame", "not_found", "acknowledged")
async def _(world: World) -> tuple[Answer, Answer]:
    owner, stranger = await asyncio.gather(world.join(), world.join("admin", world.other_tenant_id))
    room_id = await world.room(owner)
    async with world.opened(await world.ticket(stranger)) as theirs, world.opened(await world.ticket(owner)) as own:
        refused = await theirs.send("message", room_id, {"text": "hello"})
        return refused, await own.send("message", room_id, {"text": "hello"})


# --- floods


@attack("flood: relay credentials", 429, "rate_limited")
async def _(world: World) -> tuple[Answer, Answer]:
    who, other = await asyncio.gather(world.join(), world.join())
    answers = [await world.get(who.token, "/v1/ice-servers") for _ in range(21)]
    assert {answer.status for answer in answers[:20]} == {200}
    wait_ms = answers[-1].body["retry_after_ms"]
    assert 0 < wait_ms <= 5_000
    assert answers[-1].headers["Retry-After"] == str(-(-wait_ms // 1000))
    return answers[-1], await world.get(other.token, "/v1/ice-servers")


@attack("flood: frames of one socket", "frame", "rate_limited", "acknowledged")
async def _(world: World) -> tuple[Answer, Answer]:
    who = await world.join()
    async with world.opened(await world.ticket(who)) as socket:
        for _ in range(120):
            answer = await socket.send("presence", body={"status": "away"})
            if answer.code != "acknowledged":
                break
        assert 0 < answer.body["retry_after_ms"] <= 500
        await asyncio.sleep(answer.body["retry_after_ms"] / 1000)
        return answer, await socket.send("presence", body={"status": "away"})


# --- what is not theirs


def admins_only(method: str, path: Callable[[Member], str], body: Json | None = None) -> Attack:
    """A member asks for what is an admin's; the twin is the same request of an admin."""

    async def act(world: World) -> tuple[Answer, Answer]:
        member, admin, other = await asyncio.gather(world.join(), world.join("admin"), world.join())
        refused = await world.ask(method, path(other), body, member.headers)
        return refused, await world.ask(method, path(other), body, admin.headers)

    return Attack(act, 403, "forbidden")


ATTACKS |= {
    "admin: a member gives a role": admins_only("PUT", lambda other: f"/v1/accounts/{other.account_id}/role", {"role": "admin"}),
    "admin: a member signs somebody out": admins_only("DELETE", lambda other: f"/v1/accounts/{other.account_id}/sessions"),
    "admin: a member reads the audit log": admins_only("GET", lambda other: "/v1/audit"),
}


@attack("admin: a moderator makes themselves an admin", 403, "forbidden")
async def _(world: World) -> tuple[Answer, Answer]:
    who, admin = await asyncio.gather(world.join("moderator"), world.join("admin"))
    path = f"/v1/accounts/{who.account_id}/role"
    return await world.ask("PUT", path, {"role": "admin"}, who.headers), await world.ask("PUT", path, {"role": "admin"}, admin.headers)


@attack("admin: the own role", 409, "conflict")
async def _(world: World) -> tuple[Answer, Answer]:
    admin, other = await asyncio.gather(world.join("admin"), world.join())
    refused, passed = [await world.ask("PUT", f"/v1/accounts/{who.account_id}/role", {"role": "member"}, admin.headers) for who in (admin, other)]
    return refused, passed


@attack("admin: a service's role", 409, "conflict")
async def _(world: World) -> tuple[Answer, Answer]:
    admin, other = await asyncio.gather(world.join("admin"), world.join())
    service = world.account("service", password_hash=None)
    refused, passed = [await world.ask("PUT", f"/v1/accounts/{who.account_id}/role", {"role": "admin"}, admin.headers) for who in (service, other)]
    return refused, passed


@attack("admin: a role that is no person's", 400, "malformed")
async def _(world: World) -> tuple[Answer, Answer]:
    admin, other = await asyncio.gather(world.join("admin"), world.join())
    refused, passed = [await world.ask("PUT", f"/v1/accounts/{other.account_id}/role", {"role": role}, admin.headers) for role in ("service", "moderator")]
    return refused, passed


def other_tenants(method: str, tail: str, body: Json | None = None) -> Attack:
    """An admin asks for another tenant's account; the twin is the same request of that tenant's admin. An unknown account gets the same answer."""

    async def act(world: World) -> tuple[Answer, Answer]:
        admin, victim = await asyncio.gather(world.join("admin", world.other_tenant_id), world.join())
        theirs = await world.join("admin")
        path = f"/v1/accounts/{victim.account_id}/{tail}"
        refused, unknown = [await world.ask(method, asked, body, admin.headers) for asked in (path, f"/v1/accounts/{make_id('acc')}/{tail}")]
        assert (refused.status, {**refused.body, "trace_id": ""}) == (unknown.status, {**unknown.body, "trace_id": ""})
        return refused, await world.ask(method, path, body, theirs.headers)

    return Attack(act, 404, "not_found")


ATTACKS |= {
    "admin: another tenant's account gets a role": other_tenants("PUT", "role", {"role": "admin"}),
    "admin: another tenant's account is signed out": other_tenants("DELETE", "sessions"),
}


@attack("id: another account's session", 404, "not_found")
async def _(world: World) -> tuple[Answer, Answer]:
    who, victim = await asyncio.gather(world.join(), world.join())
    path = f"/v1/sessions/{victim.claims['sid']}"
    refused = await world.ask("DELETE", path, headers=who.headers)
    assert (await world.get(victim.token)).status == 200
    return refused, await world.ask("DELETE", path, headers=victim.headers)


@attack("id: another account's device", 404, "not_found")
async def _(world: World) -> tuple[Answer, Answer]:
    who, victim = await asyncio.gather(world.join(), world.join())
    body = {"target_kind": "token", "target": "t"}
    refused, passed = [await world.ask("PUT", f"/v1/devices/{victim.device_id}/push-target", body, person.headers) for person in (who, victim)]
    return refused, passed


@attack("id: another account's Idempotency-Key", 409, "id_taken", 201)
async def _(world: World) -> tuple[Answer, Answer]:
    """The stored answer is the victim's alone: who repeats the request word by word is told that the id is taken."""
    who, victim = await asyncio.gather(world.join(), world.join())
    headers, body = victim.headers, {"room_id": make_id("room"), "name": "Depot", "member_ids": []}
    first = await world.ask("POST", "/v1/rooms", body, headers)
    refused = await world.ask("POST", "/v1/rooms", body, headers | bearing(who.token))
    passed = await world.ask("POST", "/v1/rooms", body, headers)
    assert passed.body == first.body
    return refused, passed


# --- sign-in by an identity provider

MakeIdToken = Callable[[IdentityStub, IdentityStub], str]


def identity(make: MakeIdToken, tenant: str = "tenant_id") -> Attack:
    """A bad ID token: the stub is the provider that the tenant trusts, the other one is the attacker's, and nobody asks it for anything."""

    async def act(world: World) -> tuple[Answer, Answer]:
        async with providers(world) as (stub, rogue):
            refused = await world.ask("POST", "/v1/tokens/identity", id_body(getattr(world, tenant), make(stub, rogue)), key())
            assert not rogue.requests
            return refused, await world.ask("POST", "/v1/tokens/identity", id_body(world.tenant_id, stub.id_token(PERSON)), key())

    return Attack(act, 401, "identity_refused", 201)


def id_body(tenant_id: str, id_token: str) -> Json:
    return {"tenant_id": tenant_id, "id_token": id_token, "device_id": make_id("dev")}


@asynccontextmanager
async def providers(world: World) -> AsyncIterator[tuple[IdentityStub, IdentityStub]]:
    stub, rogue = IdentityStub("ES256"), IdentityStub("ES256")
    await asyncio.gather(stub.start(), rogue.start())
    try:
        jwks_uri = f"{stub.jwks_uri}?{world.tenant_id}"  # keys are kept by address: no other test had this one
        Identities(world.database).put_provider(Provider(world.tenant_id, stub.url, AUDIENCE, "oidc", jwks_uri, "linked"))
        Identities(world.database).link(world.tenant_id, Subject(stub.url, PERSON), world.account().account_id)
        yield stub, rogue
    finally:
        await asyncio.gather(stub.close(), rogue.close())


def id_claims(stub: IdentityStub, **changes: Any) -> Json:
    return claims_of(stub.id_token(PERSON)) | changes


def id_header(stub: IdentityStub, **changes: Any) -> Json:
    return {"alg": "ES256", "kid": stub.signing_key.kid, "typ": "JWT"} | changes


def stub_pem(stub: IdentityStub) -> bytes:
    return bytes(stub.signing_key.private.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo))


ATTACKS |= {
    "ID token: of an issuer that nobody trusts": identity(lambda stub, rogue: rogue.id_token(PERSON)),
    "ID token: of an issuer that another tenant trusts": identity(lambda stub, rogue: stub.id_token(PERSON), "other_tenant_id"),
    "ID token: the attacker's key, the trusted issuer": identity(lambda stub, rogue: rogue.id_token(PERSON, iss=stub.url)),
    "ID token: the attacker's key under the provider's kid": identity(lambda stub, rogue: jws(id_header(stub), id_claims(stub), attacker)),
    "ID token: alg none": identity(lambda stub, rogue: jws(id_header(stub, alg="none"), id_claims(stub), unsigned)),
    "ID token: HS256 with the provider's public key": identity(lambda stub, rogue: jws(id_header(stub, alg="HS256"), id_claims(stub), hs256(stub_pem(stub)))),
    "ID token: jku of the attacker's": identity(lambda stub, rogue: rogue.signed(id_claims(stub), jku=rogue.jwks_uri)),
    "ID token: jwk of the attacker's": identity(lambda stub, rogue: jws(id_header(stub, jwk=attackers_jwk()), id_claims(stub), attacker)),
    "ID token: jku beside a good signature": identity(lambda stub, rogue: stub.signed(id_claims(stub), jku=stub.jwks_uri)),
    "ID token: for another client": identity(lambda stub, rogue: stub.id_token(PERSON, aud="another-client")),
    "ID token: for us and another client, issued to that": identity(lambda stub, rogue: stub.id_token(PERSON, aud=[AUDIENCE, "x"], azp="x")),
    "ID token: of yesterday": identity(lambda stub, rogue: stub.id_token(PERSON, iat=now_ms() // 1000 - 90_000)),
    "ID token: expired": identity(lambda stub, rogue: stub.id_token(PERSON, exp=now_ms() // 1000 - 120)),
    "ID token: no exp": identity(lambda stub, rogue: stub.id_token(PERSON, exp=None)),
    "ID token: somebody who is not linked": identity(lambda stub, rogue: stub.id_token("a-stranger", email="ines@example.com", email_verified=True)),
    "ID token: sub is a MongoDB operator": identity(lambda stub, rogue: stub.signed(id_claims(stub, sub={"$ne": None}))),
    "ID token: an access token's typ": identity(lambda stub, rogue: stub.signed(id_claims(stub), typ=ACCESS_TYP)),
    "ID token: a header nested 1,000 deep": identity(lambda stub, rogue: jws(b'{"alg":' + b"[" * 1000 + b"]" * 1000 + b"}", id_claims(stub), attacker)),
}


# --- services

MakeAssertion = Callable[["Service"], str]


@dataclass(frozen=True, slots=True)
class Service:
    """A service account with a key of its own."""

    account: Account
    issuer: str
    sign: Sign

    def assertion(self, header: Json | None = None, claims: Json | None = None, sign: Sign | None = None, lifetime_s: int = 60) -> str:
        now_s, account_id = now_ms() // 1000, self.account.account_id
        own = {"iss": account_id, "sub": account_id, "aud": self.issuer, "iat": now_s, "exp": now_s + lifetime_s}
        own |= {"jti": secrets.token_urlsafe(16), "tenant_id": self.account.tenant_id}
        return jws({"alg": "ES256", "kid": "one", "typ": ASSERTION_TYP} | (header or {}), own | (claims or {}), sign or self.sign)


def new_service(world: World) -> Service:
    private = ec.generate_private_key(ec.SECP256R1())
    public_pem = private.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo).decode()
    account_id = make_id("acc")
    keys = ({"kid": "one", "public_pem": public_pem},)
    account = world.account("service", account_id=account_id, login=account_id, password_hash=None, service_keys=keys)
    return Service(account, world.issuer, es256(private_pem_of(private)))


async def assert_identity(world: World, assertion: str) -> Answer:
    return await world.ask("POST", "/v1/tokens/service", {"assertion": assertion, "device_id": make_id("dev")}, key())


def asserted(make: MakeAssertion) -> Attack:
    """A bad assertion; the twin is the same one, right."""

    async def act(world: World) -> tuple[Answer, Answer]:
        service = new_service(world)
        return await assert_identity(world, make(service)), await assert_identity(world, service.assertion())

    return Attack(act, 401, "identity_refused", 201)


ATTACKS |= {
    "assertion: for another audience": asserted(lambda s: s.assertion(claims={"aud": "https://another.example"})),
    "assertion: for us and another audience": asserted(lambda s: s.assertion(claims={"aud": [s.issuer, "https://another.example"]})),
    "assertion: for the token route": asserted(lambda s: s.assertion(claims={"aud": s.issuer + "/v1/tokens/service"})),
    "assertion: lives longer than 5 minutes": asserted(lambda s: s.assertion(lifetime_s=MAX_ASSERTION_S + 1)),
    "assertion: expired": asserted(lambda s: s.assertion(lifetime_s=-1)),
    "assertion: no jti": asserted(lambda s: s.assertion(claims={"jti": None})),
    "assertion: iss is not sub": asserted(lambda s: s.assertion(claims={"iss": make_id("acc")})),
    "assertion: an unknown account": asserted(lambda s: s.assertion(claims={"iss": (other := make_id("acc")), "sub": other})),
    "assertion: another tenant": asserted(lambda s: s.assertion(claims={"tenant_id": "o-" + s.account.tenant_id})),
    "assertion: another key": asserted(lambda s: s.assertion(sign=attacker)),
    "assertion: an unknown kid": asserted(lambda s: s.assertion({"kid": "two"})),
    "assertion: alg none": asserted(lambda s: s.assertion({"alg": "none"}, sign=unsigned)),
    "assertion: HS256 with the registered key": asserted(lambda s: s.assertion({"alg": "HS256"}, sign=hs256(s.account.service_keys[0]["public_pem"].encode()))),
    "assertion: jwk of the attacker's": asserted(lambda s: s.assertion({"jwk": attackers_jwk()}, sign=attacker)),
    "assertion: typ JWT": asserted(lambda s: s.assertion({"typ": "JWT"})),
}


@attack("assertion: a second time", 401, "identity_refused", 201)
async def _(world: World) -> tuple[Answer, Answer]:
    service = new_service(world)
    used = service.assertion()
    assert (await assert_identity(world, used)).status == 201
    return await assert_identity(world, used), await assert_identity(world, service.assertion())


@attack("assertion: another jti, signed by nobody anew", 401, "identity_refused", 201)
async def _(world: World) -> tuple[Answer, Answer]:
    service = new_service(world)
    return await assert_identity(world, with_claims(service.assertion(), jti="another-one")), await assert_identity(world, service.assertion())


@attack("assertion: a person's account", 401, "identity_refused", 201)
async def _(world: World) -> tuple[Answer, Answer]:
    """Somebody put a key on a person's account: that alone makes nobody a service."""
    service = new_service(world)
    person = world.account("admin", service_keys=service.account.service_keys)
    return await assert_identity(world, Service(person, world.issuer, service.sign).assertion()), await assert_identity(world, service.assertion())


@attack("assertion: the service's token on a person's route", 403, "forbidden")
async def _(world: World) -> tuple[Answer, Answer]:
    token = (await assert_identity(world, new_service(world).assertion())).body["access_token"]
    return await world.get(token, "/v1/sessions"), await world.get(token, "/v1/rooms")


# --- bodies


def body(change: Callable[[Json], Json | bytes], status: int = 400, code: str = "malformed") -> Attack:
    """A bad body to the one route that asks for a password; the twin signs in."""

    async def act(world: World) -> tuple[Answer, Answer]:
        account = world.account()
        good = sign_in(account.tenant_id, account.login)
        refused = await world.ask("POST", "/v1/tokens", change(good), key())
        return refused, await world.ask("POST", "/v1/tokens", good, key())

    return Attack(act, status, code, 201)


def replaced(good: Json, old: str, new: bytes) -> bytes:
    """The body as bytes, with a piece of it replaced by what no serializer writes."""
    data = json.dumps(good).encode()
    assert old.encode() in data
    return data.replace(old.encode(), new)


ATTACKS |= {
    "body: JSON 10,000 deep": body(lambda good: b'{"login":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    "body: objects 10,000 deep": body(lambda good: b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "body: 30,000 brackets that never close": body(lambda good: b"[" * 30_000),
    "body: a key twice": body(lambda good: json.dumps(good).encode()[:-1] + b',"login":"olga"}'),
    "body: a lone surrogate, escaped": body(lambda good: good | {"login": good["login"] + "\ud800"}),
    "body: a lone surrogate in UTF-8": body(lambda good: replaced(good, good["login"], b"\xed\xa0\x80")),
    "body: NUL behind the login": body(lambda good: good | {"login": good["login"] + "\0"}),
    "body: NUL behind the password": body(lambda good: good | {"password": good["password"] + "\0x"}),
    "body: not UTF-8": body(lambda good: replaced(good, good["login"], b"\xff\xfe")),
    "body: overlong UTF-8": body(lambda good: replaced(good, good["login"], b"\xc0\xaf")),
    "body: UTF-16": body(lambda good: json.dumps(good).encode("utf-16")),
    "body: 70 KB": body(lambda good: good | {"password": "x" * 70_000}, 413, "too_large"),
    "body: empty": body(lambda good: b""),
    "body: a form": body(lambda good: f"login={good['login']}&password={good['password']}".encode()),
    "body: XML with an entity": body(lambda good: b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><login>&e;</login>'),
    "body: a role of one's own": body(lambda good: good | {"role": "admin"}),
    "body: __proto__": body(lambda good: good | {"__proto__": {"role": "admin"}}),
    "body: tenant_id with a path": body(lambda good: good | {"tenant_id": f"x/../{good['tenant_id']}"}),
    "body: tenant_id with Redis' braces": body(lambda good: good | {"tenant_id": good["tenant_id"] + "}:x{"}),
    "body: device_id with a path": body(lambda good: good | {"device_id": "dev_../../../../etc/passwd0000000000"}),
    "body: the password of another case": body(lambda good: good | {"password": good["password"].swapcase()}, 401, "credentials_invalid"),
    "body: the login in full-width letters": body(
        lambda good: good | {"login": "".join(chr(ord(c) + 0xFEE0) for c in good["login"])}, 401, "credentials_invalid"
    ),
    "body: the login with a Cyrillic letter": body(lambda good: good | {"login": good["login"].replace("e", "\u0435")}, 401, "credentials_invalid"),
    "body: the login with a zero-width space": body(lambda good: good | {"login": good["login"] + "\u200b"}, 401, "credentials_invalid"),
    "body: the login in capitals": body(lambda good: good | {"login": good["login"].upper()}, 401, "credentials_invalid"),
    "body: the login with a space behind": body(lambda good: good | {"login": good["login"] + " "}, 401, "credentials_invalid"),
    "body: the login is a regular expression": body(lambda good: good | {"login": ".*"}, 401, "credentials_invalid"),
    **{f"body: {name} is a MongoDB operator": body(lambda good, name=name: good | {name: {"$ne": None}}) for name in sign_in("", "")},  # type: ignore[misc]
    "body: login is a regular expression of MongoDB": body(lambda good: good | {"login": {"$regex": ".*"}}),
    "body: password is a list": body(lambda good: good | {"password": [good["password"]]}),
}


def numbered(text: str) -> Attack:
    """A number that is none, where a length is asked for."""

    async def act(world: World) -> tuple[Answer, Answer]:
        who = await world.join()
        room_id = await world.room(who)

        def media(length: str) -> bytes:
            about = {"media_id": make_id("med"), "room_id": room_id, "file_name": "a", "content_type": "text/plain", "sha256": "0" * 64}
            return json.dumps(about).encode()[:-1] + f',"length_bytes":{length}}}'.encode()

        return await world.ask("POST", "/v1/media", media(text), who.headers), await world.ask("POST", "/v1/media", media("7"), who.headers)

    return Attack(act, 400, "malformed", 201)


ATTACKS |= {f"body: the number {name}": numbered(text) for name, text in {
    "of 21 digits": "1" * 21, "of 60,000 digits": "1" * 60_000, "1e999": "1e999", "-1e999": "-1e999", "NaN": "NaN", "Infinity": "Infinity",
    "7.0": "7.0", "-1": "-1", "0x7": "0x7", "07": "07", "true": "true",
}.items()}  # fmt: skip


def keyed(value: str) -> Attack:
    """A bad Idempotency-Key."""

    async def act(world: World) -> tuple[Answer, Answer]:
        who = await world.join()
        room = {"room_id": make_id("room"), "name": "Depot", "member_ids": []}
        refused = await world.ask("POST", "/v1/rooms", room, bearing(who.token) | {"Idempotency-Key": value})
        return refused, await world.ask("POST", "/v1/rooms", room, who.headers)

    return Attack(act, 400, "malformed", 201)


ATTACKS |= {
    "Idempotency-Key: a path": keyed("../../acme/acc/POST"),
    "Idempotency-Key: a MongoDB operator": keyed('{"$gt":""}'),
    "Idempotency-Key: a quote": keyed("x' OR '1'='1"),
    "Idempotency-Key: empty": keyed(""),
    "Idempotency-Key: 65 characters": keyed("x" * 65),
    "Idempotency-Key: CR and LF, escaped": keyed("x%0d%0aX-Split:1"),
    "Idempotency-Key: not ASCII": keyed("xé"),
}


# --- the tests


@dataclass(slots=True)
class Course:
    """What was seen so far, and what the stack was when it began."""

    services: Json
    workers: Json
    log_bytes: dict[Path, int]
    seen: dict[str, tuple[Answer, Answer]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def course(stack: RunningStack) -> Course:
    pids = stack.endpoints()["pids"]
    return Course({name: pid for name, pid in pids.items() if isinstance(pid, int)}, pids["functions"], {path: path.stat().st_size for path in logs(stack)})


@pytest.fixture
async def world(stack: RunningStack, ledger: Any) -> AsyncIterator[World]:
    async with aiohttp.ClientSession() as http:
        _, jwks = await Wire(stack, http).rest("GET", "/v1/jwks.json")
        yield World(stack, http, ledger, jwks)


def logs(stack: RunningStack) -> list[Path]:
    return sorted((stack.data_dir / "logs/functions").glob("*.log"))


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_is_refused_and_its_twin_passes(world: World, course: Course, name: str) -> None:
    planned = ATTACKS[name]
    refused, passed = course.seen[name] = await planned.act(world)
    assert (refused.status, refused.code) == (planned.status, planned.code), refused
    assert "code" not in refused.body or is_refusal(refused.body, planned.code), refused
    assert planned.twin in (passed.status, passed.code), passed


def test_no_attack_ended_a_process_or_was_an_internal_error(stack: RunningStack, course: Course, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{len(course.seen)} of {len(ATTACKS)} attacks: refusal | twin")
        for name, (refused, passed) in course.seen.items():
            print(f"  {name:<72} {refused.status!s:>5} {refused.code:<32} | {passed.status!s:>5} {passed.code if passed.status == 'frame' else ''}".rstrip())
    pids = stack.endpoints()["pids"]
    assert {name: pid for name, pid in pids.items() if isinstance(pid, int)} == course.services
    assert {name: set(workers) - set(pids["functions"][name]) for name, workers in course.workers.items() if set(workers) - set(pids["functions"][name])} == {}
    written = "\n".join(path.read_bytes()[course.log_bytes.get(path, 0) :].decode() for path in logs(stack))
    assert [line for line in written.splitlines() if '"level":"ERROR"' in line or line.startswith(("[ERROR]", "Traceback"))] == []
