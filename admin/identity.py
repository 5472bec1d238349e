"""What an operator decides about sign-in: which identity providers a tenant trusts, who belongs to which account, and which services may sign in.

Each change stands in the tenant's transaction log.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.accounts_mongo import Account, Accounts
from adapters.assertions_jwt import check_public_key
from adapters.identities_mongo import Identities
from adapters.identity_oidc import ALGORITHMS
from adapters.ledger_mongo import Ledger
from adapters.settings import now_ms, random_bytes
from heliograph.errors import HeliographError
from heliograph.identities import FIREBASE_ISSUER, KINDS, PROVISIONINGS, Provider, Provisioning, Subject
from heliograph.ids import new_id
from heliograph.shapes import JsonObject, parse_json

DISCOVERY_TIMEOUT_S = 5
MAX_DOCUMENT_BYTES = 64 * 1024
MOST_SERVICE_KEYS = 4
_ACTOR = "operator"


def register(commands: Any) -> None:
    """Adds `add-provider`, `link-identity` and `add-service` to the command line."""
    provider = commands.add_parser("add-provider", help="trust an identity provider's ID tokens in a tenant; again replaces its settings")
    provider.add_argument("--tenant", required=True)
    provider.add_argument("--kind", choices=KINDS, required=True)
    provider.add_argument("--issuer", help="oidc: the issuer URL, exactly as in its tokens; its keys are found from there")
    provider.add_argument("--audience", help="oidc: our client id there")
    provider.add_argument("--project", help="firebase: the project id")
    provider.add_argument(
        "--provisioning", choices=PROVISIONINGS, default="linked", help="create: whoever signs in there gets an account; linked: only the linked"
    )
    link = commands.add_parser("link-identity", help="let somebody of an identity provider sign in to an account")
    link.add_argument("--tenant", required=True)
    link.add_argument("--issuer", required=True)
    link.add_argument("--subject", required=True, help="`sub` of their ID tokens; for Firebase the uid")
    link.add_argument("--account", required=True)
    service = commands.add_parser("add-service", help="create a service account that signs in with its own key, or give one another key")
    service.add_argument("--tenant", required=True)
    service.add_argument("--public-key", required=True, type=Path, help="PEM file: EC P-256, Ed25519, or RSA of at least 2048 bits")
    service.add_argument("--account", help="an existing service account: the key is added to its keys")


def run(options: argparse.Namespace, database: Any) -> int | None:
    """Does one of the three commands and prints what it did as one JSON line; None when it is another one."""
    try:
        match options.command:
            case "add-provider":
                answer = add_provider(database, _provider(options))
            case "link-identity":
                answer = link_identity(database, options.tenant, Subject(options.issuer, options.subject), options.account)
            case "add-service":
                answer = add_service(database, options.tenant, _text(options.public_key), options.account)
            case _:
                return None
    except (ValueError, HeliographError) as refused:
        print(refused, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


def add_provider(database: Any, provider: Provider) -> JsonObject:
    """Stores the provider; the one of the same issuer is replaced."""
    Identities(database).put_provider(provider)
    detail: JsonObject = {name: getattr(provider, name) for name in ("audience", "kind", "jwks_uri", "provisioning")}
    Ledger(database).record(provider.tenant_id, now_ms(), "provider_added", _ACTOR, provider.issuer, detail)
    return {"tenant_id": provider.tenant_id, "issuer": provider.issuer} | detail


def link_identity(database: Any, tenant_id: str, subject: Subject, account_id: str) -> JsonObject:
    """Links somebody to an account; ValueError when the tenant knows no such provider or person's account, Conflict when they are another account's."""
    if Identities(database).provider(tenant_id, subject.issuer) is None:
        raise ValueError(f"{tenant_id} does not trust {subject.issuer}; add-provider comes first.")
    account = Accounts(database).by_id(tenant_id, account_id)
    if account is None or account.role == "service":  # a service signs in with its own key: a person must not become one
        raise ValueError(f"{tenant_id} has no account {account_id} of a person.")
    Identities(database).link(tenant_id, subject, account_id)
    detail: JsonObject = {"issuer": subject.issuer, "subject": subject.subject}
    Ledger(database).record(tenant_id, now_ms(), "identity_linked", _ACTOR, account_id, detail)
    return {"tenant_id": tenant_id, "account_id": account_id} | detail


def add_service(database: Any, tenant_id: str, public_pem: str, account_id: str | None = None) -> JsonObject:
    """A new account of role service with this key, or one more key of an existing one: that is how a key is changed without a pause.

    ValueError for a key or an account that is not taken. The key's `kid` is the SHA-256 of its DER form: two services cannot quarrel about names.
    """
    accounts, key = Accounts(database), _key(public_pem)
    account = _new_service(tenant_id) if account_id is None else accounts.by_id(tenant_id, account_id)
    if account is None or account.role != "service":
        raise ValueError(f"{tenant_id} has no service account {account_id}.")
    others = tuple(known for known in account.service_keys if known["kid"] != key["kid"])
    if len(others) >= MOST_SERVICE_KEYS:
        raise ValueError(f"A service account has at most {MOST_SERVICE_KEYS} keys.")
    accounts.put(replace(account, service_keys=(*others, key)))
    Ledger(database).record(tenant_id, now_ms(), "service_key_added", _ACTOR, account.account_id, {"kid": key["kid"]})
    return {"tenant_id": tenant_id, "account_id": account.account_id, "role": account.role, "kid": key["kid"]}


def oidc_provider(tenant_id: str, issuer: str, audience: str, provisioning: Provisioning) -> Provider:
    """The provider at this issuer, its keys found by OpenID Connect Discovery 1.0 (4); ValueError says what is wrong with it."""
    _check_https("The issuer", issuer)
    document = _fetched(issuer.removesuffix("/") + "/.well-known/openid-configuration")
    if document.get("issuer") != issuer:
        raise ValueError(f"{issuer} says that its issuer is {document.get('issuer')!r}; name it exactly so.")
    jwks_uri = document.get("jwks_uri")
    _check_https("jwks_uri", jwks_uri)
    offered = document.get("id_token_signing_alg_values_supported")
    if isinstance(offered, list) and not set(ALGORITHMS) & {item for item in offered if isinstance(item, str)}:
        raise ValueError(f"{issuer} signs ID tokens with none of {', '.join(ALGORITHMS)}.")
    return Provider(tenant_id, issuer, audience, "oidc", str(jwks_uri), provisioning)


def firebase_provider(tenant_id: str, project: str, provisioning: Provisioning) -> Provider:
    """A Firebase project, its tokens proven by Google's certificates."""
    return Provider(tenant_id, FIREBASE_ISSUER + project, project, "firebase", "", provisioning)


def _provider(options: argparse.Namespace) -> Provider:
    if options.kind == "firebase":
        if not options.project or options.issuer or options.audience:
            raise ValueError("firebase needs --project, and neither --issuer nor --audience: they follow from it.")
        return firebase_provider(options.tenant, options.project, options.provisioning)
    if not options.issuer or not options.audience or options.project:
        raise ValueError("oidc needs --issuer and --audience, and no --project.")
    return oidc_provider(options.tenant, options.issuer, options.audience, options.provisioning)


def _new_service(tenant_id: str) -> Account:
    account_id = new_id("acc", now_ms(), random_bytes())
    return Account(tenant_id, account_id, account_id, None, "service")


def _check_https(what: str, url: object) -> None:
    parts = urllib.parse.urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme != "https" or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError(f"{what} must be an https:// URL without credentials, query or fragment; it is {url!r}.")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Where a document stands is part of what it proves."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _fetched(url: str) -> JsonObject:
    opener = urllib.request.build_opener(_NoRedirect())
    try:
        with opener.open(url, timeout=DISCOVERY_TIMEOUT_S) as answer:
            return parse_json(answer.read(MAX_DOCUMENT_BYTES + 1), MAX_DOCUMENT_BYTES)
    except urllib.error.HTTPError as error:
        error.close()
        raise ValueError(f"{url} answered {error.code}.") from None
    except OSError as error:
        raise ValueError(f"{url} is out of reach: {getattr(error, 'reason', error)}.") from None
    except HeliographError as error:
        raise ValueError(f"{url}: {error.message}") from None


def _key(public_pem: str) -> dict[str, str]:
    pem = check_public_key(public_pem)
    der = base64.b64decode("".join(pem.strip().splitlines()[1:-1]))
    return {"kid": hashlib.sha256(der).hexdigest()[:32], "public_pem": pem}


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
