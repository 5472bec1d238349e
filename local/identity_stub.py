"""An identity provider on the laptop: OpenID Connect's discovery and key set, Firebase's certificates, and tokens for whoever asks.

Shapes from OpenID Connect Discovery 1.0 (3), RFC 7517, and firebase.google.com/docs/auth/admin/verify-id-tokens (certificates by key id, with a max-age).
It signs in anybody as anybody: it exists only here.
"""

from __future__ import annotations

import asyncio
import datetime
import secrets
import ssl
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, Literal

from aiohttp import web

from adapters.settings import now_ms
from heliograph.identities import FIREBASE_ISSUER

AUDIENCE: Final = "heliograph-web"
PROJECT: Final = "heliograph-local"
_TOKEN_LIFE_S: Final = 3600

Algorithm = Literal["RS256", "PS256", "ES256", "EdDSA"]
Fault = Literal["down", "cut", "nonsense", "elsewhere"]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key of the provider, with the name and the algorithm it is published under."""

    kid: str
    algorithm: Algorithm
    private: Any


class IdentityStub:
    """An HTTP server on loopback that publishes its keys as an OpenID Connect provider and as Firebase do.

    `requests` counts what was fetched, by path. `delay_s` makes every answer late; `fault` is what the next fetches meet until it is None again: 503, a cut
    connection, a page that is no JSON, or a redirect.
    """

    def __init__(self, algorithm: Algorithm = "RS256") -> None:
        self._keys = [_new_key(algorithm)]
        self._runner: web.AppRunner | None = None
        self.requests: Counter[str] = Counter()
        self.fault: Fault | None = None
        self.delay_s = 0.0
        self.certificates_max_age_s = 3600
        self.url = self.jwks_uri = self.certificates_url = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        """Listen; `url`, which is the issuer, and the two other URLs are known afterwards."""
        app = web.Application(client_max_size=1 << 16)
        app.router.add_get("/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/jwks.json", self._jwks)
        app.router.add_get("/certs", self._certs)
        app.router.add_post("/tokens", self._issue)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=tls).start()
        self.url = f"{'https' if tls else 'http'}://{host}:{self._runner.addresses[0][1]}"
        self.jwks_uri, self.certificates_url = f"{self.url}/jwks.json", f"{self.url}/certs"

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def signing_key(self) -> SigningKey:
        """The key that signs now."""
        return self._keys[-1]

    def rotate(self, algorithm: Algorithm = "RS256") -> None:
        """Signs with a new key from now on; the old one stays published."""
        self._keys.append(_new_key(algorithm))

    def forget_old(self) -> None:
        """Publishes nothing but the key that signs."""
        del self._keys[:-1]

    def id_token(self, subject: str, **claims: Any) -> str:
        """An OpenID Connect ID token; a claim given as None is left out."""
        now_s = now_ms() // 1000
        return self.signed({"iss": self.url, "sub": subject, "aud": AUDIENCE, "iat": now_s, "exp": now_s + _TOKEN_LIFE_S} | claims)

    def firebase_token(self, project: str, subject: str, **claims: Any) -> str:
        """A Firebase ID token; a claim given as None is left out."""
        now_s = now_ms() // 1000
        own = {"iss": f"{FIREBASE_ISSUER}{project}", "aud": project, "sub": subject, "user_id": subject, "iat": now_s, "exp": now_s + _TOKEN_LIFE_S}
        return self.signed(own | {"auth_time": now_s, "firebase": {"identities": {}, "sign_in_provider": "custom"}} | claims)

    def signed(self, claims: dict[str, Any], **header: Any) -> str:
        """These claims, signed by the key that signs now."""
        import jwt

        key, present = self.signing_key, {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(present, key.private, algorithm=key.algorithm, headers={"kid": key.kid} | header)

    async def _discovery(self, request: web.Request) -> web.StreamResponse:
        document = {
            "issuer": self.url,
            "jwks_uri": self.jwks_uri,
            "authorization_endpoint": f"{self.url}/authorize",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": sorted({key.algorithm for key in self._keys}),
        }
        return await self._answer(request, document)

    async def _jwks(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, {"keys": [_jwk(key) for key in self._keys]})

    async def _certs(self, request: web.Request) -> web.StreamResponse:
        certificates = {key.kid: _certificate(key) for key in self._keys if key.algorithm == "RS256"}
        return await self._answer(request, certificates, {"Cache-Control": f"public, max-age={self.certificates_max_age_s}, must-revalidate, no-transform"})

    async def _answer(self, request: web.Request, document: object, headers: dict[str, str] | None = None) -> web.StreamResponse:
        self.requests[request.path] += 1
        await asyncio.sleep(self.delay_s)
        match self.fault:
            case "down":
                return web.Response(status=503)
            case "cut":
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()
            case "nonsense":
                return web.Response(text="<html>We will be back soon.</html>", content_type="text/html")
            case "elsewhere" if not request.query_string:
                raise web.HTTPFound(f"{request.path}?moved")
        return web.json_response(document, headers=headers)

    async def _issue(self, request: web.Request) -> web.Response:
        """`{subject, project?, claims?}` -> `{id_token}`: a token for somebody, from the provider or, with a project, from Firebase."""
        order = await request.json()
        subject, claims = str(order["subject"]), dict(order.get("claims") or {})
        token = self.firebase_token(str(order["project"]), subject, **claims) if order.get("project") else self.id_token(subject, **claims)
        return web.json_response({"id_token": token}, status=201)


def _new_key(algorithm: Algorithm) -> SigningKey:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    private: Any
    match algorithm:
        case "ES256":
            private = ec.generate_private_key(ec.SECP256R1())
        case "EdDSA":
            private = ed25519.Ed25519PrivateKey.generate()
        case _:
            private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return SigningKey(secrets.token_hex(20), algorithm, private)


def _jwk(key: SigningKey) -> dict[str, Any]:
    from jwt import algorithms

    public = key.private.public_key()
    match key.algorithm:
        case "ES256":
            own = algorithms.ECAlgorithm.to_jwk(public, as_dict=True)
        case "EdDSA":
            own = algorithms.OKPAlgorithm.to_jwk(public, as_dict=True)
        case _:
            own = algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
    return {name: value for name, value in own.items() if name != "key_ops"} | {"kid": key.kid, "use": "sig", "alg": key.algorithm}


def _certificate(key: SigningKey) -> str:
    """A self-signed certificate, as Google publishes them."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "securetoken.system.gserviceaccount.com")])
    now = datetime.datetime.fromtimestamp(now_ms() // 1000, datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=16))
        .sign(key.private, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM).decode()
