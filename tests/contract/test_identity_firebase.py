"""Firebase ID tokens through the real firebase-admin: what is refused, each beside the token that passes, and the private names that the adapter uses.

Google publishes the certificates by key id with a max-age of some hours and rotates ahead of use (firebase.google.com/docs/auth/admin/verify-id-tokens), so an
unknown key id costs no fetch while they are fresh.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any, get_args

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adapters.identity_firebase import FirebaseTokens, _client
from adapters.settings import SettingsError, load, now_ms
from heliograph.errors import IdentityRefused, Unavailable
from heliograph.identities import FIREBASE_ISSUER, MAX_TOKEN_CHARS, Provider, Subject
from local.identity_stub import PROJECT, Fault, IdentityStub
from tests.running import ROOT

warnings.filterwarnings("ignore", category=DeprecationWarning, module="firebase_admin")

OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CERTS = "/certs"


@pytest.fixture
async def stub() -> AsyncIterator[IdentityStub]:
    stub = IdentityStub()
    await stub.start()
    yield stub
    await stub.close()


def provider_at(stub: IdentityStub) -> Provider:
    return Provider("acme", FIREBASE_ISSUER + PROJECT, PROJECT, "firebase", stub.certificates_url, "create")


async def verified(tokens: FirebaseTokens, stub: IdentityStub, id_token: str) -> Subject:
    return await asyncio.to_thread(tokens.verify, id_token, provider_at(stub), now_ms())


async def refused(tokens: FirebaseTokens, stub: IdentityStub, id_token: str) -> str:
    with pytest.raises(IdentityRefused) as caught:
        await verified(tokens, stub, id_token)
    return caught.value.__notes__[0]


def now_s() -> int:
    return now_ms() // 1000


def good(stub: IdentityStub, **claims: Any) -> str:
    return stub.firebase_token(PROJECT, "ana-uid", **claims)


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=").decode()


def with_header(stub: IdentityStub, header: object) -> str:
    return ".".join([segment(header), *good(stub).split(".")[1:]])


def claims_of(id_token: str) -> dict[str, Any]:
    return jwt.decode(id_token, options={"verify_signature": False})


def by_another_key(stub: IdentityStub, **header: Any) -> str:
    return jwt.encode(claims_of(good(stub)), OTHER, algorithm="RS256", headers={"kid": stub.signing_key.kid} | header)


def hmac_by_public_key(stub: IdentityStub) -> str:
    import hashlib
    import hmac

    public = stub.signing_key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = segment({"alg": "HS256", "kid": stub.signing_key.kid, "typ": "JWT"}) + "." + good(stub).split(".")[1]
    return f"{signed}.{segment(hmac.digest(public, signed.encode(), hashlib.sha256))}"


def unsigned(stub: IdentityStub) -> str:
    """What the emulator issues."""
    return f"{segment({'alg': 'none', 'typ': 'JWT'})}.{segment(claims_of(good(stub)))}."


INVALID = "InvalidIdTokenError"
# what is done -> (why it is refused, the token)
ATTACKS: dict[str, tuple[str, Callable[[IdentityStub], str]]] = {
    "alg none, as the emulator issues": ("not a token", unsigned),
    "alg none with a signature": ("alg", lambda stub: with_header(stub, {"alg": "none", "kid": stub.signing_key.kid})),
    "HS256 with the public key": ("alg", hmac_by_public_key),
    "another key": (INVALID, by_another_key),
    "unknown kid": (INVALID, lambda stub: by_another_key(stub, kid="nobody")),
    "no kid": ("kid", lambda stub: with_header(stub, {"alg": "RS256"})),
    "kid that is not text": ("kid", lambda stub: with_header(stub, {"alg": "RS256", "kid": {}})),
    "a key by jku": ("header", lambda stub: by_another_key(stub, jku="https://evil.example/jwks.json")),
    "crit": ("header", lambda stub: stub.signed(claims_of(good(stub)), crit=["exp"], exp=1)),
    "another kind of token": ("typ", lambda stub: stub.signed(claims_of(good(stub)), typ="at+jwt")),
    "another project": (INVALID, lambda stub: stub.firebase_token("somebody-else", "ana-uid")),
    "another issuer": (INVALID, lambda stub: good(stub, iss="https://evil.example")),
    "another audience": (INVALID, lambda stub: good(stub, aud="somebody-else")),
    "a session cookie's issuer": (INVALID, lambda stub: good(stub, iss=f"https://session.firebase.google.com/{PROJECT}")),
    "expired": ("ExpiredIdTokenError", lambda stub: good(stub, exp=now_s() - 65)),
    "no exp": (INVALID, lambda stub: good(stub, exp=None)),
    "exp that is text": ("TypeError", lambda stub: good(stub, exp=str(now_s() + 60))),
    "no iat": (INVALID, lambda stub: good(stub, iat=None)),
    "issued in the future": (INVALID, lambda stub: good(stub, iat=now_s() + 75)),
    "issued two days ago, with a far exp": ("iat", lambda stub: good(stub, iat=now_s() - 2 * 86_400, exp=now_s() + 10**8)),
    "no sub": (INVALID, lambda stub: stub.signed({**claims_of(good(stub)), "sub": None})),
    "sub of 129 characters": (INVALID, lambda stub: stub.firebase_token(PROJECT, "x" * 129)),
    "sub with NUL": ("sub", lambda stub: stub.firebase_token(PROJECT, "a\0b")),
    "a user of an Identity Platform tenant": ("firebase.tenant", lambda stub: good(stub, firebase={"tenant": "customer-7"})),
    "oversized": ("too long", lambda stub: good(stub, groups="g" * MAX_TOKEN_CHARS)),
    "claims 5,000 deep": ("not a token", lambda stub: f"{segment({'alg': 'RS256', 'kid': 'k'})}.{segment(b'[' * 5000)}.AAAA"),
    "a legacy custom token of a strange form": (INVALID, lambda stub: f"{segment({'alg': 'RS256', 'kid': 'k'})}.{segment({'v': 0, 'd': 5})}.AAAA"),
    "not a token": ("not a token", lambda stub: "garbage"),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_forged_id_token_is_refused_and_its_twin_passes(name: str, stub: IdentityStub) -> None:
    tokens = FirebaseTokens()
    assert await verified(tokens, stub, good(stub)) == Subject(FIREBASE_ISSUER + PROJECT, "ana-uid")
    reason, attack = ATTACKS[name]
    assert await refused(tokens, stub, attack(stub)) == reason
    assert stub.requests[CERTS] == 1, "nothing that a caller sends makes us fetch while the certificates are fresh"


@pytest.mark.parametrize(("name", "by_s"), [("iat", 50), ("exp", -50)])
async def test_clocks_may_be_a_minute_apart(name: str, by_s: int, stub: IdentityStub) -> None:
    assert (await verified(FirebaseTokens(), stub, good(stub, **{name: now_s() + by_s}))).subject == "ana-uid"


async def test_the_certificates_are_fetched_once_within_their_max_age_and_again_after_it(stub: IdentityStub) -> None:
    tokens = FirebaseTokens()
    for _ in range(5):
        await verified(tokens, stub, good(stub))
    assert stub.requests[CERTS] == 1
    brief = FirebaseTokens()
    stub.certificates_max_age_s = 0
    old = good(stub)
    await verified(brief, stub, old)
    stub.rotate()
    assert await verified(brief, stub, good(stub))
    assert await verified(brief, stub, old)
    stub.forget_old()
    assert await refused(brief, stub, old) == INVALID
    assert await verified(brief, stub, good(stub))


@pytest.mark.parametrize("fault", get_args(Fault))
async def test_certificates_out_of_reach_refuse_nobody_and_are_asked_for_again_after_a_rest(fault: Fault, stub: IdentityStub) -> None:
    tokens = FirebaseTokens(rest_s=0.3)
    stub.fault = fault
    for _ in range(5):
        with pytest.raises(Unavailable):
            await verified(tokens, stub, good(stub))
    assert stub.requests[CERTS] == 1
    stub.fault = None
    await asyncio.sleep(0.4)
    assert await verified(tokens, stub, good(stub))
    stub.fault = fault
    assert await verified(tokens, stub, good(stub)), "fresh certificates go on verifying"


async def test_slow_certificates_are_out_of_reach_after_the_timeout(stub: IdentityStub) -> None:
    stub.delay_s = 1.0
    with pytest.raises(Unavailable):
        await verified(FirebaseTokens(timeout_s=0.2), stub, good(stub))
    assert await verified(FirebaseTokens(timeout_s=5), stub, good(stub))


async def test_two_projects_do_not_take_each_others_tokens(stub: IdentityStub) -> None:
    tokens = FirebaseTokens()
    other = Provider("globex", FIREBASE_ISSUER + "globex-calls", "globex-calls", "firebase", stub.certificates_url, "create")
    theirs = stub.firebase_token("globex-calls", "ana-uid")
    assert (await asyncio.to_thread(tokens.verify, theirs, other, now_ms())).issuer == other.issuer
    assert await refused(tokens, stub, theirs) == INVALID
    assert await verified(tokens, stub, good(stub))


def test_the_private_names_exist_and_without_a_url_of_ours_the_certificates_are_googles() -> None:
    """Nothing is fetched here, and no credential is looked for: neither in the environment nor at a metadata server."""
    google = "https://www.googleapis.com/robot/v1/metadata/x509/securetoken@system.gserviceaccount.com"
    default, ours = (_client(PROJECT, url, 5) for url in ("", "https://certificates.example"))
    assert default._token_verifier.id_token_verifier.cert_url == google
    assert ours._token_verifier.id_token_verifier.cert_url == "https://certificates.example"
    assert (default._token_verifier.request.timeout_seconds, default.emulated) == (5, False)
    assert ours._token_verifier.request.session.max_redirects == 0


EMULATED = """
import json, os, sys
import firebase_admin
from firebase_admin import auth
from google.auth.credentials import AnonymousCredentials

token, certificates_url = sys.argv[1:]
app = firebase_admin.initialize_app(AnonymousCredentials(), {"projectId": "heliograph-local"})
taken = auth.verify_id_token(token, app=app)["sub"]
from adapters.identity_firebase import FirebaseTokens
from heliograph.identities import Provider
provider = Provider("acme", "https://securetoken.google.com/heliograph-local", "heliograph-local", "firebase", certificates_url, "create")
try:
    FirebaseTokens().verify(sys.argv[1], provider, 0)
except Exception as error:
    print(json.dumps({"firebase-admin takes": taken, "we": type(error).__name__}))
"""


def under_the_emulator(id_token: str, stub: IdentityStub) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FIREBASE_AUTH_EMULATOR_HOST": "127.0.0.1:1"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EMULATED, id_token, stub.certificates_url], cwd=ROOT, env=environment, capture_output=True, text=True
    )


async def test_with_the_emulators_variable_firebase_admin_takes_a_forged_token_and_we_refuse_to_run(stub: IdentityStub) -> None:
    """A fact of the SDK that this test pins: the variable alone switches the signature check off. That is why the settings refuse to load beside it."""
    ended = await asyncio.to_thread(under_the_emulator, by_another_key(stub), stub)
    assert json.loads(ended.stdout or "{}") == {"firebase-admin takes": "ana-uid", "we": "RuntimeError"}, ended.stderr
    with pytest.raises(SettingsError, match="FIREBASE_AUTH_EMULATOR_HOST"):
        load(SETTINGS | {"FIREBASE_AUTH_EMULATOR_HOST": "127.0.0.1:1"})
    assert load(SETTINGS).stage == "x"


REQUIRED = "stage redis_url mongodb_secret_id token_keys_secret_id turn_secret_id fcm_secret_id issuer connections_url media_bucket media_kms_key_id"
SETTINGS = {f"HELIOGRAPH_{name.upper()}": "x" for name in f"{REQUIRED} notifications_queue_url timers_queue_url turn_urls".split()}
