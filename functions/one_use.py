"""What may be used once: tickets and assertions. Redis says whether it is the first time, or MongoDB while Redis is away: nobody is locked out."""

from __future__ import annotations

from adapters.settings import now_ms
from functions import wiring
from heliograph.errors import Unavailable


def is_first_use(tenant_id: str, account_id: str, jti: str, kept_s: int) -> bool:
    """Whether nobody used this before; remembered for `kept_s`, which must outlive the thing itself."""
    try:
        return wiring.one_use().take(tenant_id, account_id, jti, kept_s)
    except Unavailable:
        return wiring.spare_one_use().take(tenant_id, account_id, jti, kept_s, now_ms())
