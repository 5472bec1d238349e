"""The one decision about access, for REST and frames alike: may this identity do this to that?

Rule 1. An action is named by a scope. The token must carry it, and the caller's role must have it: a token never says more than its role.
Rule 2. Who may not even know that an area exists (evidence) gets the answer of an unknown route's id: NotFound.
Rule 3. A thing of another tenant, of a room without the caller, of another account or device is an unknown thing: NotFound, by the same path.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from heliograph.auth import SCOPES, Identity
from heliograph.errors import Forbidden, NotFound

HIDDEN = frozenset({"evidence:read"})
"""Actions whose refusal looks like an unknown id: their area answers admins only, and nobody else learns that there is something."""


@dataclass(frozen=True, slots=True)
class Resource:
    """What is asked for, as far as the decision needs it. None in a field means that the field does not matter for this kind of thing."""

    tenant_id: str
    member_ids: Set[str] | None = None  # of its room
    account_id: str | None = None  # whose it is
    device_id: str | None = None


def authorise(identity: Identity, action: str, resource: Resource | None) -> None:
    """Returns when the identity may; Forbidden, or NotFound. `resource` is None for a thing that does not exist."""
    if action not in identity.scope.split() or action not in SCOPES[identity.role]:
        raise NotFound if action in HIDDEN else Forbidden(f"The token does not carry the scope {action}.")
    if resource is None or not _is_theirs(identity, resource):
        raise NotFound


def own(identity: Identity) -> Resource:
    """What every caller has: the tenant's things of which nobody in particular is the owner."""
    return Resource(identity.tenant_id)


def _is_theirs(identity: Identity, resource: Resource) -> bool:
    return (
        resource.tenant_id == identity.tenant_id
        and (resource.member_ids is None or identity.account_id in resource.member_ids)
        and resource.account_id in (None, identity.account_id)
        and resource.device_id in (None, identity.device_id)
    )
