"""Nothing secret is written down: after a whole life on the running product its logs, files, keys, documents and messages are searched for every secret in it.

Where secrets live by design, `endpoints.json` and `secrets.json` of the laptop, is readable by its owner only. AWS writes access logs of its own: their format
is looked at in the source of the stacks.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import hashlib
import json
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, quote, urlsplit

import aiohttp
import pytest
import requests

from adapters import redis_client
from adapters.accounts_mongo import Account
from adapters.passwords_argon2 import hashed
from heliograph_client import make_id
from tests.integration.test_attacks import (
    PERSON,
    Answer,
    Member,
    World,
    assert_identity,
    attacker,
    bearing,
    claims_of,
    id_body,
    jws,
    key,
    new_service,
    providers,
    sign_in,
    unsigned,
    with_claims,
)
from tests.integration.test_bad_input import Wire
from tests.running import ROOT, RunningStack, wait_until

Json = dict[str, Any]
BY_DESIGN: Final = ("endpoints.json", "secrets.json")
SIGNED: Final = "signature"
KEPT_FOR_REPEATS: Final = "MongoDB idempotency"
"""Where signed URLs stand: a repeated request gets the first one's answer. Their signatures may stand there, in MongoDB's own files, and nowhere else."""
LONGEST_LINK_S: Final = 900
SHORTEST: Final = 8
CREDENTIALS: Final = {
    "a JWT": rb"eyJ[\w-]{8,}\.eyJ[\w-]{8,}",
    "a refresh token": rb"acc_[0-9a-f]{32}\.ses_[0-9a-f]{32}\.\d+\.",
    "an Authorization header": rb"(?i)\bbearer [\w.-]{8,}|\bbasic [\w+/=]{8,}",
    "a signed URL": rb"(?i)x-amz-(signature|security-token)",
    "a private key": rb"PRIVATE KEY-----",
    "a password hash": rb"\$argon2",
}


# --- the judge


def forms(value: str) -> set[bytes]:
    """How a secret may be written: as it is, half of it, escaped for a URL, in hex, in base64 at any offset."""
    half = len(value) // 2
    pieces = [value] if half < 2 * SHORTEST else [value[:half], value[half:]]
    return {written for piece in pieces for written in _written(piece.encode())}


def _written(piece: bytes) -> Iterator[bytes]:
    assert len(piece) >= SHORTEST
    yield piece
    yield quote(piece, safe="").encode()
    yield piece.hex().encode()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + piece)
        inner = encoded[4 if offset else 0 : len(encoded) - 4]  # the first and the last group depend on what stands beside it
        yield from (inner, inner.translate(bytes.maketrans(b"+/", b"-_")))


def secret_part(token: str) -> str:
    """What makes a token one: the signature of a JWT, the secret of a refresh token; the rest is no secret."""
    return token.rpartition(".")[2]


class Judge:
    """Finds secrets in bytes."""

    def __init__(self, kept: Mapping[str, str]) -> None:
        self._forms = {name: forms(value) for name, value in kept.items()}

    def find(self, where: str, data: bytes) -> list[str]:
        return [f"{name} in {where}: …{_around(data, form)!r}…" for name, written in self._forms.items() for form in written if form in data]


def _around(data: bytes, form: bytes) -> bytes:
    """What stands before it: enough to find the place, and not the secret."""
    at = data.index(form)
    return data[max(0, at - 80) : at]


@pytest.mark.parametrize(
    "value", ["ana-on-a-hill", secrets.token_urlsafe(32), secrets.token_urlsafe(64), "p4$$ wörd/+? of mine"], ids=["word", "token", "key", "odd"]
)
def test_the_judge_finds_a_secret_in_every_form_and_nothing_where_none_is(value: str) -> None:
    judge, data = Judge({"it": value}), value.encode()
    for before in range(4):
        noise = secrets.token_bytes(before)
        for written in (
            data,
            base64.b64encode(noise + data + b"xyz"),
            base64.urlsafe_b64encode(noise + data + b"xyz"),
            quote(value, safe="").encode(),
            data.hex().encode(),
        ):
            assert judge.find("here", b'{"text":"' + written + b'"}'), written
    assert judge.find("here", f'{{"text":"{value[: len(value) // 2 + 1] if len(value) > 40 else value}…"}}'.encode()), "cut short"
    assert not judge.find("here", secrets.token_urlsafe(4096).encode())


# --- a life


class Life:
    """Everything that somebody can do with a secret. `kept` is what nobody may write down, `refusals` what was answered to whoever was refused."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kept: dict[str, str] = {}
        self.refusals: list[Answer] = []
        self.passwords: dict[str, str] = {}  # account id -> password
        self.examples: dict[str, str] = {}  # a form of credential -> a real one
        self.trace_id, self.hello_trace_id, self.room_name = secrets.token_hex(16), secrets.token_hex(16), f"Depot {secrets.token_hex(8)}"
        self.jti, self.device_id = "", make_id("dev")

    async def live(self) -> None:
        me, admin = self.newcomer("member"), self.newcomer("admin")
        await self.mistype(me)
        member = await self.refresh(await self.sign_in(me))
        boss = await self.sign_in(admin)
        await self.talk(member)
        await self.share(member)
        await self.misplace(member)
        await self.attack(member)
        await self.come_from_elsewhere()
        await self.reuse(me)
        await self.be_administered(me, boss)

    def keep(self, what: str, value: str) -> str:
        self.kept[f"{what} {len(self.kept)}"] = value
        return value

    def keep_token(self, what: str, token: str) -> str:
        self.keep(what, secret_part(token))
        return token

    def keep_pair(self, answer: Answer) -> Answer:
        assert answer.status == 201, answer
        for name in ("access_token", "refresh_token"):
            if name in answer.body:
                self.keep_token(name, answer.body[name])
        return answer

    async def refused(self, method: str, path: str, body: Any = None, headers: Any = None) -> Answer:
        answer = await self.world.ask(method, path, body, headers)
        assert str(answer.status)[0] in "45", answer
        self.refusals.append(answer)
        return answer

    def newcomer(self, role: str) -> Account:
        password = self.keep("password", secrets.token_urlsafe(18))
        account = self.world.account(role, password_hash=hashed(password))
        self.passwords[account.account_id] = password
        return account

    def body(self, account: Account, **changes: Any) -> Json:
        good = {"password": self.passwords[account.account_id], "device_id": self.device_id}
        return sign_in(account.tenant_id, account.login, **good | changes)

    async def sign_in(self, account: Account, **changes: Any) -> Member:
        body = self.body(account, **changes)
        pair = self.keep_pair(await self.world.ask("POST", "/v1/tokens", body, key())).body
        return Member(pair["access_token"], pair["account_id"], pair["device_id"], account.tenant_id, account.login, pair["refresh_token"])

    async def mistype(self, account: Account) -> None:
        """Wrong passwords, and right ones in bodies that are refused."""
        good = self.body(account)
        await self.refused("POST", "/v1/tokens", good | {"password": self.keep("wrong password", secrets.token_urlsafe(18))}, key())
        await self.refused("POST", "/v1/tokens", good | {"login": good["password"]}, key())
        await self.refused("POST", "/v1/tokens", good | {"tenant_id": good["password"]}, key())
        await self.refused("POST", "/v1/tokens", good | {"device_id": good["password"]}, key())
        await self.refused("POST", "/v1/tokens", good | {good["password"]: 1}, key())
        await self.refused("POST", "/v1/tokens", good | {"password": [good["password"]]}, key())
        await self.refused("POST", "/v1/tokens", good | {"password": good["password"] * 20}, key())
        await self.refused("POST", "/v1/tokens", json.dumps(good).encode()[:-1], key())
        await self.refused("POST", "/v1/tokens", json.dumps(good).encode()[:-1] + b',"login":"x"}', key())
        await self.refused("POST", "/v1/tokens", json.dumps(good).encode() + b" " * 70_000, key())
        await self.refused("POST", "/v1/tokens", json.dumps(good).encode())
        await self.refused("POST", f"/v1/tokens?password={good['password']}", {}, key())
        await self.refused("GET", f"/v1/tokens/{good['password']}")

    async def refresh(self, member: Member) -> Member:
        pair = self.keep_pair(await self.world.refresh(member.refresh_token)).body
        again = self.keep_pair(await self.world.refresh(member.refresh_token)).body
        assert again["refresh_token"] == pair["refresh_token"]
        return replace(member, token=pair["access_token"], refresh_token=pair["refresh_token"])

    async def reuse(self, account: Account) -> None:
        member = await self.sign_in(account)
        newest = await self.refresh(await self.refresh(member))
        for token in (member.refresh_token, newest.refresh_token):
            await self.refused("POST", "/v1/tokens/refresh", {"refresh_token": token}, key())

    async def talk(self, member: Member) -> None:
        """A socket, its frames, a proof, and proofs in the wrong place."""
        room: Json = {"room_id": make_id("room"), "name": self.room_name, "member_ids": []}
        assert (await self.world.ask("POST", "/v1/rooms", room, member.headers | {"X-Trace-Id": self.trace_id})).status == 201
        ticket = self.keep_token("ticket", await self.world.ticket(member))
        self.jti = claims_of(ticket)["jti"]
        async with self.world.opened(ticket) as socket:
            assert (await socket.send("hello", trace_id=self.hello_trace_id)).code == "acknowledged"
            assert (await socket.send("join", room["room_id"])).code == "acknowledged"
            assert (await socket.reauth(member.token)).code == "acknowledged"
            self.refusals += [
                await socket.reauth(self.keep_token("forged token", with_claims(member.token, role="admin")[:-4] + "AAAA")),
                await socket.reauth(member.refresh_token),
                await socket.send("reauth", body={"token": member.token}),
                await socket.send("join", room["room_id"], {"epoch": member.token}),
                await socket.send(member.refresh_token[-32:]),
                await socket.send("ping", trace_id=member.token),
            ]
            assert all("code" in answer.body for answer in self.refusals[-6:])
        assert (await self.world.knock_with(ticket)).status == 403
        spare = self.keep_token("ticket", await self.world.ticket(member))
        assert (await self.world.knock("heliograph.v1", query=f"?ticket={spare}", headers={"Cookie": spare})).status == 403
        assert (await self.world.knock(f"ticket.{spare}")).status == 400
        assert (await self.world.ask("GET", "/v1/ice-servers", headers=member.headers)).status == 200

    async def share(self, member: Member) -> None:
        """A file up and down, and relay credentials."""
        ice = await self.world.ask("GET", "/v1/ice-servers", headers=member.headers)
        self.keep("relay credential", ice.body["ice_servers"][0]["credential"])
        room_id, content = await self.world.room(member), b"content"
        about: Json = {"media_id": make_id("med"), "room_id": room_id, "file_name": "a.txt", "content_type": "text/plain"}
        about |= {"length_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        headers = member.headers
        upload = (await self.world.ask("POST", "/v1/media", about, headers)).body["upload"]
        self.keep(f"upload {SIGNED}", signature_of(upload["url"]))
        async with self.world.http.put(upload["url"] + "0", data=content, headers=upload["headers"]) as tampered:
            assert tampered.status == 403
        async with self.world.http.put(upload["url"], data=content, headers=upload["headers"]) as sent:
            assert sent.status == 200
        assert (await self.world.ask("POST", f"/v1/media/{about['media_id']}/complete", headers=member.headers)).status == 200
        self.examples |= {"a JWT": member.token, "a refresh token": member.refresh_token, "an Authorization header": str(member.headers)}
        self.examples |= {"a signed URL": upload["url"]}
        link = (await self.world.ask("POST", f"/v1/media/{about['media_id']}/links", {}, member.headers)).body
        self.keep(f"link {SIGNED}", signature_of(link["url"]))
        async with self.world.http.get(link["url"]) as got:
            assert await got.read() == content

    async def misplace(self, member: Member) -> None:
        """Secrets where none belongs."""
        token, secret = member.token, secret_part(member.refresh_token)
        room: Json = {"room_id": make_id("room"), "name": "x", "member_ids": []}
        await self.refused("GET", f"/v1/rooms/{token}", headers=member.headers)
        await self.refused("GET", f"/v1/{token}", headers=member.headers)
        await self.refused("GET", f"/v1/rooms?access_token={token}")
        await self.refused("GET", f"/v1/rooms?cursor={token}", headers=member.headers)
        await self.refused("DELETE", f"/v1/sessions/{member.refresh_token}", headers=member.headers)
        await self.refused("DELETE", f"/v1/accounts/{token}/sessions", headers=member.headers)
        await self.refused("PUT", f"/v1/devices/{token}/push-target", {"target_kind": token, "target": "t"}, member.headers)
        await self.refused("POST", "/v1/rooms", room, bearing(token) | {"Idempotency-Key": token})
        await self.refused("POST", "/v1/rooms", room | {"room_id": token}, member.headers)
        await self.refused("POST", "/v1/rooms", room | {"member_ids": [token]}, member.headers)
        await self.refused("GET", "/v1/rooms", headers={"Authorization": f"Basic {token}"})
        await self.refused("GET", "/v1/rooms", headers={"Cookie": f"token={token}"})
        await self.refused("GET", "/v1/rooms", headers=bearing(f"{token},Bearer {token}"))
        await self.refused("POST", "/v1/tokens/refresh", {"refresh_token": token}, key())
        await self.refused("GET", f"/local/@connections/{token}", headers=member.headers)
        passed = [
            await self.world.ask("GET", "/v1/rooms", headers=member.headers | {"X-Trace-Id": token, "User-Agent": token, "Referer": f"https://x/?{token}"}),
            await self.world.ask("GET", f"/v1/rooms?cursor={member.refresh_token}", headers=member.headers),
            await self.world.ask("POST", "/v1/rooms", room, bearing(token) | {"Idempotency-Key": secret}),
        ]
        assert [answer.status for answer in passed] == [200, 200, 201]

    async def attack(self, member: Member) -> None:
        """Forged tokens are no secrets of ours, but what they are made of may be."""
        world = self.world
        forged = [
            world.forge(member, {"alg": "none"}),
            world.forge(member, {"jku": "https://attacker.example"}),
            world.forge(member, sign=attacker),
            world.forge(member, claims={"exp": 1}),
            world.forge(member, claims={"note": "x" * 4096}),
            world.forge(member, claims={"exp": [1]}),
        ]
        for token in forged:
            self.keep_token("forged token", token)
            await self.refused("GET", "/v1/rooms", headers=bearing(token))
            assert (await world.knock_with(token)).status == 403
        await self.refused("GET", "/v1/audit", headers=member.headers)
        await self.refused("POST", "/v1/tokens/refresh", {"refresh_token": self.keep_token("forged refresh token", member.refresh_token[:-4] + "AAAA")}, key())

    async def come_from_elsewhere(self) -> None:
        """An identity provider's token, a service's assertion, and bad ones of both."""
        async with providers(self.world) as (stub, rogue):
            for token in (
                stub.id_token(PERSON),
                rogue.id_token(PERSON),
                stub.id_token("stranger"),
                stub.id_token(PERSON, exp=1),
                stub.signed({"iss": stub.url}),
            ):
                self.keep_token("ID token", token)
                answer = await self.world.ask("POST", "/v1/tokens/identity", id_body(self.world.tenant_id, token), key())
                if answer.status == 201:
                    self.keep_pair(answer)
                else:
                    self.refusals.append(answer)
            stub.fault, away = "down", jws({"alg": "ES256", "kid": "unknown", "typ": "JWT"}, claims_of(stub.id_token(PERSON)), attacker)
            await self.refused("POST", "/v1/tokens/identity", id_body(self.world.tenant_id, self.keep_token("ID token", away)), key())
        service = new_service(self.world)
        good = self.keep_token("assertion", service.assertion())
        self.keep_pair(await assert_identity(self.world, good))
        others = [self.keep_token("assertion", service.assertion(claims={"aud": "x"})), service.assertion({"alg": "none"}, sign=unsigned)]
        for assertion in (good, *others):
            await self.refused("POST", "/v1/tokens/service", {"assertion": assertion, "device_id": make_id("dev")}, key())

    async def be_administered(self, account: Account, boss: Member) -> None:
        member = await self.sign_in(account)
        path = f"/v1/accounts/{member.account_id}"
        assert (await self.world.ask("PUT", f"{path}/role", {"role": "moderator"}, boss.headers)).status == 200
        await self.refused("GET", "/v1/rooms", headers=member.headers)
        promoted = await self.refresh(member)
        assert (await self.world.ask("DELETE", f"{path}/sessions", headers=boss.headers)).status == 200
        await self.refused("GET", "/v1/rooms", headers=promoted.headers)
        await self.refused("POST", "/v1/tokens/refresh", {"refresh_token": promoted.refresh_token}, key())


def signature_of(url: str) -> str:
    return parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]


def own_secrets(stack: RunningStack) -> dict[str, str]:
    """What the stack itself keeps: private keys by their middle, which no public key shares."""
    stored = json.loads((stack.data_dir / "secrets.json").read_text())
    found = {"the AWS key": stored["aws"]["secret_access_key"], "the relay's secret": stored["turn"]["current"]}
    pems = {"the token key": stored["token_keys"]["current"]["private_pem"], "the push key": stored["fcm"]["private_key"]}
    for name, pem in pems.items():
        lines = pem.splitlines()[1:-1]
        found |= {f"{name}, first": lines[0][-16:], f"{name}, second": lines[1][:24]}
    return found | {f"the sample password of {user['login']}": user["password"] for user in stack.endpoints()["users"]}


@pytest.fixture(scope="module")
def life(stack: RunningStack, ledger: Any) -> Life:
    """Lived once; what was put off is done too."""

    async def live() -> Life:
        async with aiohttp.ClientSession() as http:
            _, jwks = await Wire(stack, http).rest("GET", "/v1/jwks.json")
            lived = Life(World(stack, http, ledger, jwks))
            await lived.live()
            return lived

    lived = asyncio.run(live())
    lived.kept |= own_secrets(stack)
    tenant = {"tenant_id": lived.world.tenant_id}
    for kind in ("access_refused", "sign_in_refused", "ticket_refused", "session_ended", "role_changed"):
        wait_until(f"{kind} in the ledger", lambda kind=kind: ledger.ledger.find_one(tenant | {"kind": kind}), 20)  # type: ignore[misc]
    return lived


@pytest.fixture(scope="module")
def judge(life: Life) -> Judge:
    return Judge(life.kept)


# --- where it is looked for


def files(stack: RunningStack) -> Iterator[tuple[str, bytes]]:
    """Every file of the stack, but for those where secrets live by design; runs of zeros are cut."""
    for path in sorted(stack.data_dir.rglob("*")):
        if path.is_file() and path.name not in BY_DESIGN:
            yield str(path.relative_to(stack.data_dir)), re.sub(rb"\0{64,}", b"\0", path.read_bytes())


def redis_entries(stack: RunningStack) -> Iterator[tuple[str, bytes]]:
    """Every key with its value."""
    client = redis_client.connect(stack.endpoints()["redis_url"], "single")
    reading: dict[str, Any] = {
        "string": client.get,
        "hash": client.hgetall,
        "set": client.smembers,
        "list": lambda name: client.lrange(name, 0, -1),
        "zset": lambda name: client.zrange(name, 0, -1, withscores=True),
        "none": lambda name: None,
    }
    for name in client.scan_iter(count=1000):
        kind = client.type(name)
        yield f"Redis key {name}", f"{name} {reading[kind.decode() if isinstance(kind, bytes) else kind](name)}".encode()
    client.close()


def documents(database: Any) -> Iterator[tuple[str, bytes]]:
    """Every document of every collection."""
    for collection in sorted(database.list_collection_names()):
        for document in database[collection].find({}):
            yield f"MongoDB {collection}", json.dumps(document, default=str, ensure_ascii=False).encode()


def command_lines(stack: RunningStack) -> Iterator[tuple[str, bytes]]:
    """What everybody on the machine can read of our processes."""
    pids = stack.endpoints()["pids"]
    everybody = chain([(name, pid) for name, pid in pids.items() if isinstance(pid, int)], *([(n, pid) for pid in of] for n, of in pids["functions"].items()))
    for name, pid in everybody:
        yield f"command line of {name}", Path(f"/proc/{pid}/cmdline").read_bytes()


def holds(found: Iterator[tuple[str, bytes]], canary: str) -> bool:
    return any(canary.encode() in data for _, data in found)


def is_log(name: str) -> bool:
    return name.startswith("logs/") or name == "stack.log"


def test_no_file_of_the_stack_holds_a_secret(stack: RunningStack, life: Life, judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    found, looked_at = list[str](), dict[str, bytes](files(stack))
    for name, data in looked_at.items():
        found += judge.find(name, data)
    assert [each for each in found if not (SIGNED in each and "in mongo/" in each)] == []
    assert life.trace_id.encode() in looked_at["logs/functions/rooms.log"], "a request is logged with its trace_id: else nothing could be found"
    assert life.hello_trace_id.encode() in looked_at["aws/sqs.jsonl"], "what was queued stands there, dead letters too"
    assert {"logs/moto.log", "logs/redis.log", "logs/hub.log", "logs/relay.log", "stack.log"} <= looked_at.keys()
    with capsys.disabled():
        logged = sum(len(data) for name, data in looked_at.items() if is_log(name))
        print(f"\n{len(life.kept)} secrets, {len(looked_at)} files, {logged / 1e3:.0f} KB of logs, {len(life.refusals)} refusals: no secret written")


def test_nothing_in_a_log_has_the_form_of_a_credential(stack: RunningStack, ledger: Any, life: Life) -> None:
    logs = [(name, data) for name, data in files(stack) if is_log(name)]
    assert [(what, name, match.start()) for what, form in CREDENTIALS.items() for name, data in logs for match in re.finditer(form, data)] == []
    stored = (stack.data_dir / "secrets.json").read_text()
    examples = life.examples | {"a private key": stored, "a password hash": str(ledger.accounts.find_one({"login": "ana"}))}
    assert [what for what, form in CREDENTIALS.items() if not re.search(form, examples[what].encode())] == [], "what is looked for is what they look like"


def test_redis_holds_no_secret(stack: RunningStack, life: Life, judge: Judge) -> None:
    found = [each for name, data in redis_entries(stack) for each in judge.find(name, data)]
    assert found == []
    assert holds(redis_entries(stack), life.jti), "the mark of a used ticket is its id"


def test_mongodb_holds_no_secret_and_passwords_as_argon2id_only(ledger: Any, life: Life, judge: Judge) -> None:
    found = [each for name, data in documents(ledger) for each in judge.find(name, data)]
    assert [each for each in found if not (SIGNED in each and KEPT_FOR_REPEATS in each)] == []
    assert holds(documents(ledger), life.room_name)
    hashes = [account["password_hash"] for account in ledger.accounts.find({"password_hash": {"$ne": None}})]
    assert hashes
    assert all(each.startswith("$argon2id$") for each in hashes)
    assert all(re.fullmatch(r"[0-9a-f]{64}", session["refresh_hash"]) for session in ledger.sessions.find({}))


def test_what_is_kept_for_repeats_holds_no_link_that_lives_longer_than_a_quarter_of_an_hour(ledger: Any, life: Life) -> None:
    kept = " ".join(str(record["response"]) for record in ledger.idempotency.find({}))
    lives = [int(seconds) for seconds in re.findall(r"X-Amz-Expires=(\d+)", kept)]
    assert all(0 < seconds <= LONGEST_LINK_S for seconds in lives)
    assert len(lives) == kept.count("X-Amz-Signature=")
    assert life.room_name in kept


def test_no_answer_to_who_was_refused_says_a_secret_back(life: Life, judge: Judge) -> None:
    answers = [(f"{answer.status} {answer.code}", json.dumps([answer.body, dict(answer.headers)]).encode()) for answer in life.refusals]
    assert [each for name, data in answers for each in judge.find(name, data)] == []
    assert len(answers) > 50


def test_no_push_and_no_command_line_holds_a_secret(stack: RunningStack, judge: Judge) -> None:
    pushed = requests.get(stack.endpoints()["push_stub_url"] + "/received", timeout=10).content
    found = judge.find("pushes", pushed) + [each for name, data in command_lines(stack) for each in judge.find(name, data)]
    assert found == []
    assert holds(command_lines(stack), "-m\0media_fleet\0hub")


def test_files_where_secrets_live_by_design_are_their_owners_alone(stack: RunningStack, life: Life) -> None:
    judge = Judge(own_secrets(stack))
    for name in BY_DESIGN:
        path = stack.data_dir / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, name
        assert judge.find(name, path.read_bytes()), "the judge finds what is there"


def test_access_logs_on_aws_have_no_field_that_could_hold_a_secret() -> None:
    """The fields stand in constants; $context never has a header of its own, and of the authorizer only its error is logged."""
    source = ast.parse((ROOT / "infra/cdk/api.py").read_text())
    constants = {
        node.target.id: ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.startswith("_LOGGED") and node.value is not None
    }
    fields = {field for names in constants.values() for field in names}
    assert constants.keys() == {"_LOGGED", "_LOGGED_HTTP", "_LOGGED_SOCKET"}
    assert {"requestId", "routeKey", "status"} <= fields
    risky = re.compile(r"header|query|token|path|cookie|body|protocol|userAgent|authorizer\.(?!error$)|identity\.(?!sourceIp$)", re.IGNORECASE)
    assert {field for field in fields if risky.search(field)} == set()
    assert all(risky.search(field) for field in ("authorizer.claims.sub", "identity.userArn", "requestOverride.header.authorization", "path"))
