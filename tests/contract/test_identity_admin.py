"""The operator's commands for sign-in, on real stores and against a provider behind TLS; and what MongoDB must hold for them."""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from adapters.accounts_mongo import Account, Accounts
from adapters.assertions_jwt import TYP, named, verify
from adapters.identities_mongo import Identities
from adapters.identity_oidc import OidcTokens
from adapters.ledger_mongo import Ledger
from adapters.settings import now_ms, random_bytes
from admin import identity
from heliograph.errors import Conflict
from heliograph.identities import Provider, Subject
from heliograph.ids import new_id
from heliograph.ledger import first_broken
from local.identity_stub import AUDIENCE, IdentityStub, SigningKey
from tests.certificates import make_certificates

ISSUER = "https://login.example"


def made(prefix: str) -> str:
    return new_id(prefix, now_ms(), random_bytes())


def an_account(database: Any, tenant_id: str, role: str = "member") -> str:
    account_id = made("acc")
    Accounts(database).put(Account(tenant_id, account_id, account_id, None, role))
    return account_id


def a_provider(tenant_id: str) -> Provider:
    return Provider(tenant_id, ISSUER, AUDIENCE, "oidc", f"{ISSUER}/keys", "linked")


def a_key(folder: Path, name: str = "key") -> tuple[Path, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    path = folder / f"{name}.pem"
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path, key


async def admin(database: Any, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int | None, Any]:
    """What `heliograph-admin` does with these words: (exit code, the answer or the complaint)."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate")
    identity.register(commands)
    code = await asyncio.to_thread(identity.run, parser.parse_args(argv), database)
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else said.err


@pytest.fixture
async def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[IdentityStub]:
    """A provider behind TLS, its certificate trusted as the machine's others are."""
    certificates = make_certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificates.chain, certificates.key)
    stub = IdentityStub()
    await stub.start(tls=tls)
    yield stub
    await stub.close()


async def test_an_oidc_provider_is_found_by_its_issuer_and_its_people_can_be_linked_and_verified(
    stub: IdentityStub, database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("add-provider", "--tenant", tenant_id, "--kind", "oidc", "--issuer", stub.url, "--audience", AUDIENCE)
    code, answer = await admin(database, capsys, *argv)
    assert (code, answer) == (
        0,
        {"tenant_id": tenant_id, "issuer": stub.url, "audience": AUDIENCE, "kind": "oidc", "jwks_uri": f"{stub.url}/jwks.json", "provisioning": "linked"},
    )
    provider = Identities(database).provider(tenant_id, stub.url)
    assert provider is not None
    subject = await asyncio.to_thread(OidcTokens().verify, stub.id_token("ana"), provider, now_ms())
    account_id = an_account(database, tenant_id)
    code, answer = await admin(database, capsys, "link-identity", "--tenant", tenant_id, "--issuer", stub.url, "--subject", "ana", "--account", account_id)
    assert (code, answer["account_id"]) == (0, account_id)
    assert Identities(database).account_of(tenant_id, subject) == account_id
    entries = list(Ledger(database).entries(tenant_id))
    assert [entry["kind"] for entry in entries] == ["provider_added", "identity_linked"]
    assert first_broken(entries) is None


async def test_adding_a_provider_again_replaces_its_settings(stub: IdentityStub, database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("add-provider", "--tenant", tenant_id, "--kind", "oidc", "--issuer", stub.url, "--audience", AUDIENCE)
    await admin(database, capsys, *argv)
    await admin(database, capsys, *argv, "--provisioning", "create")
    assert [provider.provisioning for provider in Identities(database).providers(tenant_id)] == ["create"]


@pytest.mark.parametrize(("fault", "says"), [("down", "answered 503"), ("cut", "out of reach"), ("nonsense", "not valid JSON"), ("elsewhere", "answered 302")])
async def test_a_provider_without_a_good_discovery_document_is_not_added(
    fault: Any, says: str, stub: IdentityStub, database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.fault = fault
    code, complaint = await admin(database, capsys, "add-provider", "--tenant", tenant_id, "--kind", "oidc", "--issuer", stub.url, "--audience", AUDIENCE)
    assert code == 1
    assert says in complaint
    assert Identities(database).providers(tenant_id) == []


async def test_an_issuer_that_calls_itself_otherwise_is_not_added(
    stub: IdentityStub, database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ("add-provider", "--tenant", tenant_id, "--kind", "oidc", "--audience", AUDIENCE, "--issuer")
    code, complaint = await admin(database, capsys, *argv, stub.url + "/")
    assert (code, "name it exactly so" in complaint) == (1, True)
    assert (await admin(database, capsys, *argv, stub.url))[0] == 0


async def test_a_certificate_that_nobody_vouches_for_is_not_believed(
    stub: IdentityStub, database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    code, complaint = await admin(database, capsys, "add-provider", "--tenant", tenant_id, "--kind", "oidc", "--issuer", stub.url, "--audience", AUDIENCE)
    assert (code, "CERTIFICATE_VERIFY_FAILED" in complaint) == (1, True)
    assert stub.requests.total() == 0


async def test_without_https_nothing_is_believed(stub: IdentityStub, database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("add-provider", "--tenant", tenant_id, "--kind", "oidc", "--audience", AUDIENCE, "--issuer")
    code, complaint = await admin(database, capsys, *argv, stub.url.replace("https://", "http://"))
    assert (code, complaint.startswith("The issuer must be an https:// URL"), stub.requests.total()) == (1, True, 0)
    stub.jwks_uri = stub.jwks_uri.replace("https://", "http://")
    code, complaint = await admin(database, capsys, *argv, stub.url)
    assert (code, complaint.startswith("jwks_uri must be an https:// URL"), stub.requests.total()) == (1, True, 1)
    assert Identities(database).providers(tenant_id) == []


async def test_a_provider_that_signs_with_nothing_we_take_is_not_added(
    stub: IdentityStub, database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithm: Any = "ES384"
    stub._keys = [SigningKey("k", algorithm, None)]
    code, complaint = await admin(database, capsys, "add-provider", "--tenant", tenant_id, "--kind", "oidc", "--issuer", stub.url, "--audience", AUDIENCE)
    assert (code, "signs ID tokens with none of RS256" in complaint) == (1, True)


@pytest.mark.parametrize(
    "issuer", ["https://u:p@127.0.0.1", "https://127.0.0.1?tenant=x", "https://127.0.0.1#x", "https://", "file:///etc/passwd", "login.example"]
)
async def test_an_issuer_is_a_plain_https_url(issuer: str, database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, complaint = await admin(database, capsys, "add-provider", "--tenant", tenant_id, "--kind", "oidc", "--issuer", issuer, "--audience", AUDIENCE)
    assert (code, "must be an https:// URL" in complaint) == (1, True)


async def test_a_firebase_project_is_its_id_and_nothing_is_fetched(database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("add-provider", "--tenant", tenant_id, "--kind", "firebase")
    code, answer = await admin(database, capsys, *argv, "--project", "acme-calls", "--provisioning", "create")
    issuer = "https://securetoken.google.com/acme-calls"
    assert (code, answer["issuer"], answer["audience"], answer["jwks_uri"]) == (0, issuer, "acme-calls", "")
    assert Identities(database).provider(tenant_id, issuer) == Provider(tenant_id, issuer, "acme-calls", "firebase", "", "create")
    for wrong in (("--project", "A/../b"), ("--issuer", issuer), ("--project", "acme-calls", "--audience", "x"), ()):
        assert (await admin(database, capsys, *argv, *wrong))[0] == 1
    assert len(Identities(database).providers(tenant_id)) == 1


@pytest.mark.parametrize("wrong", [("--issuer", ISSUER), ("--audience", AUDIENCE), ("--issuer", ISSUER, "--audience", AUDIENCE, "--project", "acme-calls")])
async def test_an_oidc_provider_needs_its_own_words(wrong: tuple[str, ...], database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, complaint = await admin(database, capsys, "add-provider", "--tenant", tenant_id, "--kind", "oidc", *wrong)
    assert (code, "oidc needs" in complaint) == (1, True)


async def test_somebody_is_linked_once_to_a_persons_account_of_the_tenant(database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = an_account(database, tenant_id), an_account(database, tenant_id)
    service, foreign = an_account(database, tenant_id, "service"), an_account(database, tenant_id + "-x")

    async def link(account_id: str, issuer: str = ISSUER) -> tuple[int | None, Any]:
        return await admin(database, capsys, "link-identity", "--tenant", tenant_id, "--issuer", issuer, "--subject", "ana", "--account", account_id)

    code, complaint = await link(one)
    assert (code, "add-provider comes first" in complaint) == (1, True)
    Identities(database).put_provider(a_provider(tenant_id))
    for nobody in (service, foreign, made("acc")):
        code, complaint = await link(nobody)
        assert (code, "has no account" in complaint) == (1, True)
    assert (await link(one))[0] == 0
    assert (await link(one))[0] == 0
    code, complaint = await link(other)
    assert (code, "another account" in complaint) == (1, True)
    assert Identities(database).account_of(tenant_id, Subject(ISSUER, "ana")) == one


async def test_a_service_signs_in_with_the_key_it_registered_and_changes_it_without_a_pause(
    tmp_path: Path, database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (old_path, old), (new_path, new) = a_key(tmp_path, "old"), a_key(tmp_path, "new")
    code, answer = await admin(database, capsys, "add-service", "--tenant", tenant_id, "--public-key", str(old_path))
    account_id, old_kid = answer["account_id"], answer["kid"]
    assert (code, answer["role"], len(old_kid)) == (0, "service", 32)
    code, answer = await admin(database, capsys, "add-service", "--tenant", tenant_id, "--public-key", str(new_path), "--account", account_id)
    assert (code, answer["account_id"]) == (0, account_id)
    for key, kid in ((old, old_kid), (new, answer["kid"])):
        now = now_ms() // 1000
        claims = {"iss": account_id, "sub": account_id, "aud": ISSUER, "tenant_id": tenant_id, "iat": now, "exp": now + 60, "jti": made("evt")}
        assertion = jwt.encode(claims, key, algorithm="ES256", headers={"kid": kid, "typ": TYP})
        account = Accounts(database).by_id(*named(assertion))
        assert account is not None
        assert account.password_hash is None
        assert verify(assertion, account.service_keys, ISSUER, now_ms())["sub"] == account_id
    assert [entry["kind"] for entry in Ledger(database).entries(tenant_id)] == ["service_key_added"] * 2


async def test_the_same_key_again_changes_nothing_and_a_fifth_is_one_too_many(
    tmp_path: Path, database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [a_key(tmp_path, f"key-{number}")[0] for number in range(5)]
    account_id = (await admin(database, capsys, "add-service", "--tenant", tenant_id, "--public-key", str(paths[0])))[1]["account_id"]
    more = ("add-service", "--tenant", tenant_id, "--account", account_id, "--public-key")
    for path in (*paths[:4], paths[0]):
        assert (await admin(database, capsys, *more, str(path)))[0] == 0
    code, complaint = await admin(database, capsys, *more, str(paths[4]))
    assert (code, "at most 4 keys" in complaint) == (1, True)
    account = Accounts(database).by_id(tenant_id, account_id)
    assert account is not None
    assert len({key["kid"] for key in account.service_keys}) == len(account.service_keys) == 4


async def test_a_bad_key_or_another_kind_of_account_makes_no_service(tmp_path: Path, database: Any, tenant_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    good, key = a_key(tmp_path)
    private = tmp_path / "private.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    binary = tmp_path / "key.der"
    binary.write_bytes(b"\xff\xfe\x00")
    add = ("add-service", "--tenant", tenant_id, "--public-key")
    for path, says in ((private, "private key"), (tmp_path / "nowhere.pem", "cannot be read"), (binary, "not a public key")):
        code, complaint = await admin(database, capsys, *add, str(path))
        assert (code, says in complaint) == (1, True), complaint
    for account_id in (an_account(database, tenant_id), an_account(database, tenant_id + "-x", "service"), made("acc")):
        code, complaint = await admin(database, capsys, *add, str(good), "--account", account_id)
        assert (code, "has no service account" in complaint) == (1, True)
    assert database.accounts.count_documents({"tenant_id": tenant_id, "role": "service"}) == 0
    assert (await admin(database, capsys, *add, str(good)))[0] == 0


async def test_another_command_is_not_ours(database: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert (await admin(database, capsys, "migrate")) == (None, "")


def test_a_person_of_one_tenant_is_nobody_in_another(database: Any, tenant_id: str) -> None:
    identities, account_id = Identities(database), made("acc")
    identities.put_provider(a_provider(tenant_id))
    identities.link(tenant_id, Subject(ISSUER, "ana"), account_id)
    foreign = tenant_id + "-x"
    assert (identities.provider(foreign, ISSUER), identities.providers(foreign), identities.account_of(foreign, Subject(ISSUER, "ana"))) == (None, [], None)
    assert identities.account_of(tenant_id, Subject(ISSUER + "/", "ana")) is None
    assert identities.account_of(tenant_id, Subject(ISSUER, "Ana")) is None
    assert identities.account_of(tenant_id, Subject(ISSUER, "ana")) == account_id


def test_of_eight_links_at_once_one_wins_and_the_others_are_told(database: Any, tenant_id: str) -> None:
    identities, subject = Identities(database), Subject(ISSUER, "ana")

    def link(account_id: str) -> str | None:
        try:
            identities.link(tenant_id, subject, account_id)
        except Conflict:
            return None
        return account_id

    with ThreadPoolExecutor(8) as pool:
        won = [account_id for account_id in pool.map(link, [made("acc") for _ in range(8)]) if account_id]
    assert won == [identities.account_of(tenant_id, subject)]
    documents = list(database.identities.find({"tenant_id": tenant_id}))
    assert [document["schema_version"] for document in documents] == [1]
