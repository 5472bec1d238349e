"""ID tokens of an OpenID Connect provider: what is refused, each beside the token that passes, and what its keys cost to know.

The stand-in publishes as real providers do: OpenID Connect Discovery 1.0 (3), a JWK Set (RFC 7517) with a `kid` for each key, old keys for a while after a
rotation (OpenID Connect Core 1.0, 10.1.1). Real ones also send `Cache-Control`; PyJWKClient does not read it, so our own lifespan holds.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, get_args

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from adapters.identity_oidc import OidcTokens
from adapters.settings import now_ms
from heliograph.errors import IdentityRefused, Unavailable
from heliograph.identities import MAX_TOKEN_CHARS, Provider, Subject
from local.identity_stub import AUDIENCE, Algorithm, Fault, IdentityStub, SigningKey

OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
JWKS = "/jwks.json"


@pytest.fixture
async def stub() -> AsyncIterator[IdentityStub]:
    stub = IdentityStub()
    await stub.start()
    yield stub
    await stub.close()


def provider_at(stub: IdentityStub) -> Provider:
    return Provider("acme", stub.url, AUDIENCE, "oidc", stub.jwks_uri, "linked")


async def verified(tokens: OidcTokens, stub: IdentityStub, id_token: str) -> Subject:
    return await asyncio.to_thread(tokens.verify, id_token, provider_at(stub), now_ms())


async def refused(tokens: OidcTokens, stub: IdentityStub, id_token: str) -> str:
    with pytest.raises(IdentityRefused) as caught:
        await verified(tokens, stub, id_token)
    return caught.value.__notes__[0]


def segment(value: object) -> str:
    return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=").decode()


def with_header(stub: IdentityStub, header: object) -> str:
    return ".".join([segment(header), *stub.id_token("ana").split(".")[1:]])


def hmac_by(secret: bytes, stub: IdentityStub) -> str:
    """The classic confusion: HS256 with what is public about the key. PyJWT refuses to make one, so it is made by hand."""
    signed = segment({"alg": "HS256", "kid": stub.signing_key.kid, "typ": "JWT"}) + "." + stub.id_token("ana").split(".")[1]
    return f"{signed}.{segment(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


def public_pem(stub: IdentityStub) -> bytes:
    pem: bytes = stub.signing_key.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def claims_of(id_token: str) -> dict[str, Any]:
    return jwt.decode(id_token, options={"verify_signature": False})


def by_another_key(stub: IdentityStub, **header: Any) -> str:
    return jwt.encode(claims_of(stub.id_token("ana")), OTHER, algorithm="RS256", headers={"kid": stub.signing_key.kid} | header)


def by_another_algorithm(stub: IdentityStub, algorithm: str) -> str:
    return jwt.encode(claims_of(stub.id_token("ana")), stub.signing_key.private, algorithm=algorithm, headers={"kid": stub.signing_key.kid})


def with_own_header(stub: IdentityStub, **header: Any) -> str:
    return stub.signed(claims_of(stub.id_token("ana")), **header)


def tampered(id_token: str) -> str:
    head, body, signature = id_token.split(".")
    other = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).replace(b'"ana"', b'"olga"')
    return ".".join([head, segment(other), signature])


def now_s() -> int:
    return now_ms() // 1000


# what is done -> (why it is refused, the token)
ATTACKS: dict[str, tuple[str, Callable[[IdentityStub], str]]] = {
    "alg none": ("not a token", lambda stub: with_header(stub, {"alg": "none", "kid": stub.signing_key.kid}).rpartition(".")[0] + "."),
    "alg none with a signature": ("alg", lambda stub: with_header(stub, {"alg": "none", "kid": stub.signing_key.kid})),
    "HS256 with the public key": ("alg", lambda stub: hmac_by(public_pem(stub), stub)),
    "HS256 with the empty key": ("alg", lambda stub: hmac_by(b"", stub)),
    "RS384": ("alg", lambda stub: by_another_algorithm(stub, "RS384")),
    "PS256 though the key is published for RS256": ("InvalidAlgorithmError", lambda stub: by_another_algorithm(stub, "PS256")),
    "another key": ("InvalidSignatureError", by_another_key),
    "a key by jku": ("header", lambda stub: by_another_key(stub, jku="https://evil.example/jwks.json")),
    "a key in the header": ("header", lambda stub: by_another_key(stub, jwk=jwt.algorithms.RSAAlgorithm.to_jwk(OTHER.public_key(), as_dict=True))),
    "a certificate by x5u": ("header", lambda stub: by_another_key(stub, x5u="https://evil.example/cert")),
    "a certificate in the header": ("header", lambda stub: by_another_key(stub, x5c=["MII"])),
    "jku beside the right key": ("header", lambda stub: with_own_header(stub, jku=stub.jwks_uri)),
    "crit": ("header", lambda stub: with_own_header(stub, crit=["exp"], exp=1)),
    "unknown kid": ("kid", lambda stub: by_another_key(stub, kid="nobody")),
    "kid that is a path": ("kid", lambda stub: by_another_key(stub, kid="../../dev/null")),
    "kid that is not text": ("kid", lambda stub: with_header(stub, {"alg": "RS256", "kid": [stub.signing_key.kid]})),
    "no kid": ("kid", lambda stub: with_header(stub, {"alg": "RS256"})),
    "an access token of the same provider": ("typ", lambda stub: with_own_header(stub, typ="at+jwt")),
    "changed payload": ("InvalidSignatureError", lambda stub: tampered(stub.id_token("ana"))),
    "cut short": ("InvalidSignatureError", lambda stub: stub.id_token("ana")[:-2]),
    "other issuer": ("InvalidIssuerError", lambda stub: stub.id_token("ana", iss="https://evil.example")),
    "other audience": ("InvalidAudienceError", lambda stub: stub.id_token("ana", aud="other")),
    "for several, issued to another": ("azp", lambda stub: stub.id_token("ana", aud=[AUDIENCE, "other"], azp="other")),
    "expired": ("ExpiredSignatureError", lambda stub: stub.id_token("ana", exp=now_s() - 61)),
    "no exp": ("MissingRequiredClaimError", lambda stub: stub.id_token("ana", exp=None)),
    "exp that is text": ("exp", lambda stub: stub.id_token("ana", exp=str(now_s() + 60))),
    "no iat": ("MissingRequiredClaimError", lambda stub: stub.id_token("ana", iat=None)),
    "issued in the future": ("ImmatureSignatureError", lambda stub: stub.id_token("ana", iat=now_s() + 70)),
    "not valid yet": ("ImmatureSignatureError", lambda stub: stub.id_token("ana", nbf=now_s() + 70)),
    "issued two days ago, with a far exp": ("iat", lambda stub: stub.id_token("ana", iat=now_s() - 2 * 86_400, exp=now_s() + 10**8)),
    "no sub": ("MissingRequiredClaimError", lambda stub: stub.signed({**claims_of(stub.id_token("ana")), "sub": None})),
    "empty sub": ("sub", lambda stub: stub.id_token("")),
    "sub of 256 characters": ("sub", lambda stub: stub.id_token("x" * 256)),
    "sub with NUL": ("sub", lambda stub: stub.id_token("a\0b")),
    "sub that is half a character": ("sub", lambda stub: stub.id_token("\ud800")),
    "oversized": ("too long", lambda stub: stub.id_token("ana", groups="g" * MAX_TOKEN_CHARS)),
    "claims 5,000 deep": ("not a token", lambda stub: f"{segment({'alg': 'RS256', 'kid': stub.signing_key.kid})}.{segment(b'[' * 5000)}.AAAA"),
    "not a token": ("not a token", lambda stub: "garbage"),
    "empty": ("not a token", lambda stub: ""),
}

GOOD: dict[str, Callable[[IdentityStub], str]] = {
    "plain": lambda stub: stub.id_token("ana"),
    "for several, issued to us": lambda stub: stub.id_token("ana", aud=["other", AUDIENCE], azp=AUDIENCE),
    "clocks a minute apart": lambda stub: stub.id_token("ana", iat=now_s() + 50, exp=now_s() + 60),
    "expired within the leeway": lambda stub: stub.id_token("ana", exp=now_s() - 50),
    "no typ, a thumbprint": lambda stub: with_own_header(stub, typ=None, x5t="thumbprint"),
    "large but allowed": lambda stub: stub.id_token("ana", groups="g" * 5000),
}


@pytest.mark.parametrize("name", ATTACKS)
async def test_a_forged_id_token_is_refused_and_its_twin_passes(name: str, stub: IdentityStub) -> None:
    tokens = OidcTokens()
    assert await verified(tokens, stub, stub.id_token("ana")) == Subject(stub.url, "ana")
    reason, attack = ATTACKS[name]
    assert await refused(tokens, stub, attack(stub)) == reason
    assert stub.requests[JWKS] == 1


@pytest.mark.parametrize("name", GOOD)
async def test_an_id_token_that_a_provider_may_issue_passes(name: str, stub: IdentityStub) -> None:
    assert await verified(OidcTokens(), stub, GOOD[name](stub)) == Subject(stub.url, "ana")


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
async def test_each_allowed_algorithm_passes_with_its_key_and_no_other(algorithm: Algorithm, stub: IdentityStub) -> None:
    stub.rotate(algorithm)
    tokens = OidcTokens()
    assert await verified(tokens, stub, stub.id_token("ana"))
    assert await refused(tokens, stub, by_another_key(stub)) in ("InvalidAlgorithmError", "InvalidSignatureError")


async def test_a_key_below_2048_bits_proves_nothing(stub: IdentityStub) -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
    stub._keys.append(SigningKey("weak", "RS256", weak))
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = stub.id_token("ana")
    assert await refused(OidcTokens(), stub, token) == "InvalidKeyError"
    stub._keys.pop()
    assert await verified(OidcTokens(), stub, stub.id_token("ana"))


async def test_the_keys_are_fetched_once_for_many_sign_ins(stub: IdentityStub) -> None:
    tokens = OidcTokens()
    for number in range(20):
        assert (await verified(tokens, stub, stub.id_token(f"user-{number}"))).subject == f"user-{number}"
    assert stub.requests[JWKS] == 1


async def test_unknown_kids_cost_at_most_one_fetch_per_cooldown(stub: IdentityStub) -> None:
    tokens = OidcTokens(cooldown_s=0.5)
    assert await verified(tokens, stub, stub.id_token("ana"))
    for number in range(20):
        assert await refused(tokens, stub, by_another_key(stub, kid=f"k{number}")) == "kid"
    assert stub.requests[JWKS] == 1
    await asyncio.sleep(0.6)
    for number in range(20):
        assert await refused(tokens, stub, by_another_key(stub, kid=f"k{number}")) == "kid"
    assert stub.requests[JWKS] == 2


async def test_a_token_refused_for_its_form_costs_no_fetch_at_all(stub: IdentityStub) -> None:
    await refused(OidcTokens(), stub, hmac_by(public_pem(stub), stub))
    assert stub.requests[JWKS] == 0


async def test_a_rotated_key_is_found_after_the_cooldown_and_the_old_one_verifies_until_it_is_forgotten(stub: IdentityStub) -> None:
    tokens = OidcTokens(cooldown_s=0.4, lifespan_s=1.0)
    old = stub.id_token("ana")
    assert await verified(tokens, stub, old)
    stub.rotate()
    new = stub.id_token("ana")
    assert await refused(tokens, stub, new) == "kid"
    await asyncio.sleep(0.5)
    assert await verified(tokens, stub, new)
    assert await verified(tokens, stub, old)
    stub.forget_old()
    await asyncio.sleep(1.1)
    assert await verified(tokens, stub, new)
    assert await refused(tokens, stub, old) == "kid"


@pytest.mark.parametrize("fault", get_args(Fault))
async def test_a_provider_that_is_away_refuses_nobody_and_is_asked_again_after_a_rest(fault: Fault, stub: IdentityStub) -> None:
    tokens = OidcTokens(rest_s=0.3)
    stub.fault = fault
    for _ in range(5):
        with pytest.raises(Unavailable):
            await verified(tokens, stub, stub.id_token("ana"))
    assert stub.requests[JWKS] == 1, "a redirect is not followed, and a failed fetch is not repeated at once"
    stub.fault = None
    await asyncio.sleep(0.4)
    assert await verified(tokens, stub, stub.id_token("ana"))


async def test_a_slow_provider_is_away_after_the_timeout(stub: IdentityStub) -> None:
    stub.delay_s = 1.0
    with pytest.raises(Unavailable):
        await verified(OidcTokens(timeout_s=0.2), stub, stub.id_token("ana"))
    assert await verified(OidcTokens(timeout_s=3), stub, stub.id_token("ana"))


async def test_nobody_listening_is_a_provider_that_is_away(stub: IdentityStub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}/jwks.json"
    provider = Provider("acme", stub.url, AUDIENCE, "oidc", nowhere, "linked")
    with pytest.raises(Unavailable):
        await asyncio.to_thread(OidcTokens().verify, stub.id_token("ana"), provider, now_ms())


async def test_while_the_provider_is_away_known_keys_go_on_verifying_for_a_while(stub: IdentityStub) -> None:
    tokens = OidcTokens(lifespan_s=0.2, rest_s=0.1, cooldown_s=0.1, stale_s=1.0)
    known = stub.id_token("ana")
    assert await verified(tokens, stub, known)
    stub.fault = "down"
    stub.rotate()
    await asyncio.sleep(0.3)
    assert await verified(tokens, stub, known), "the set has expired, and is used all the same"
    with pytest.raises(Unavailable):
        await verified(tokens, stub, stub.id_token("ana"))
    assert await refused(tokens, stub, tampered(known)) == "InvalidSignatureError"
    await asyncio.sleep(0.8)
    with pytest.raises(Unavailable):
        await verified(tokens, stub, known)
    stub.fault = None
    await asyncio.sleep(0.2)
    assert await verified(tokens, stub, known)
    assert await verified(tokens, stub, stub.id_token("ana"))


async def test_the_stub_publishes_what_discovery_asks_for_and_nothing_private(stub: IdentityStub) -> None:
    import aiohttp

    async with aiohttp.ClientSession() as session:
        async with session.get(f"{stub.url}/.well-known/openid-configuration") as answer:
            document = await answer.json()
        async with session.get(document["jwks_uri"]) as answer:
            (key,) = (await answer.json())["keys"]
        async with session.post(f"{stub.url}/tokens", json={"subject": "ben", "claims": {"name": "Ben"}}) as answer:
            issued = (await answer.json())["id_token"]
    assert document["issuer"] == stub.url
    assert set(key) == {"kty", "n", "e", "kid", "use", "alg"}
    assert (await verified(OidcTokens(), stub, issued)).subject == "ben"
