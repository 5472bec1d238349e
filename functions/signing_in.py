"""Whose account an identity token or an assertion proves. Every reason to refuse one answers alike."""

from __future__ import annotations

from adapters.accounts_mongo import Account
from adapters.settings import now_ms, random_bytes, settings
from functions import wiring
from functions.one_use import is_first_use
from heliograph.errors import Conflict
from heliograph.identities import LEEWAY_S, MAX_ASSERTION_S, Provider, Subject, claimed_issuer, refusal
from heliograph.ids import new_id


def account_of_identity(tenant_id: str, id_token: str, at_ms: int) -> tuple[Account, str]:
    """The account of the person whom a Firebase or OIDC ID token names, and the kind of provider; IdentityRefused, or Unavailable without its keys.

    Only issuers that the tenant trusts are asked, and only at the address that the operator stored: nothing in the token chooses where we look.
    """
    provider = wiring.identities().provider(tenant_id, claimed_issuer(id_token))
    if provider is None:
        raise refusal("issuer")
    verifier = wiring.firebase_tokens() if provider.kind == "firebase" else wiring.oidc_tokens()
    return _account(provider, verifier.verify(id_token, provider, at_ms)), provider.kind


def account_of_assertion(assertion: str, at_ms: int) -> Account:
    """The service account that signed the assertion (RFC 7523), which is good once; IdentityRefused otherwise."""
    from adapters.assertions_jwt import named, verify

    tenant_id, account_id = named(assertion)
    account = wiring.accounts().by_id(tenant_id, account_id)
    claims = verify(assertion, account.service_keys if account else (), settings().issuer, at_ms)
    if account is None or account.role != "service":
        raise refusal("no service")
    if not is_first_use(tenant_id, account_id, f"assertion/{claims['jti']}", MAX_ASSERTION_S + LEEWAY_S):
        raise refusal("jti")
    return account


def _account(provider: Provider, subject: Subject) -> Account:
    """The account linked to this person. Where the provider may create accounts the link is made first: whoever comes twice at once gets one account."""
    identities, tenant_id, may_create = wiring.identities(), provider.tenant_id, provider.provisioning == "create"
    account_id = identities.account_of(tenant_id, subject)
    if account_id is None and may_create:
        account_id = new_id("acc", now_ms(), random_bytes())
        try:
            identities.link(tenant_id, subject, account_id)
        except Conflict:
            account_id = identities.account_of(tenant_id, subject)
    account = wiring.accounts().by_id(tenant_id, account_id) if account_id else None
    if account is None and account_id is not None and may_create:
        account = Account(tenant_id, account_id, account_id, None, "member")
        wiring.accounts().put(account)
        wiring.ledger().record(tenant_id, now_ms(), "account_created", account_id, account_id, {"issuer": subject.issuer})
    if account is None:
        raise refusal("not linked")
    return account
