"""Sessions in MongoDB: the truth about who is signed in. An ended or expired session is gone; MongoDB removes the expired ones by itself."""

from __future__ import annotations

import datetime as dt
from typing import Any

from adapters.mongo_client import translated
from heliograph.sessions import Session

_FIELDS = tuple(Session.__slots__)
_ROTATING = ("n", "refresh_hash", "refreshed_at_ms", "expires_at_ms", "expires_at")
_LIVE: dict[str, Any] = {"ended_by": {"$exists": False}}


class Sessions:
    def __init__(self, database: Any) -> None:
        self._sessions = database.sessions

    def start(self, session: Session) -> list[Session]:
        """Stores a new session; returns the earlier ones of its device, which are to be ended."""
        with translated():
            self._sessions.insert_one(_document(session))
        return [found for found in self.of_account(session.tenant_id, session.account_id, session.device_id) if found.sid != session.sid]

    def get(self, tenant_id: str, account_id: str, sid: str) -> Session | None:
        """The session, unless it has ended."""
        with translated():
            found = self._sessions.find_one({"tenant_id": tenant_id, "account_id": account_id, "sid": sid})
        return _session(found) if found and _is_live(found) else None

    def rotate(self, after: Session) -> Session | None:
        """Stores the session's next number and hash, unless somebody did so meanwhile or it has ended; returns it as it is then, with today's role."""
        owner = {"tenant_id": after.tenant_id, "account_id": after.account_id, "sid": after.sid, "n": after.n - 1}
        changed = {name: value for name, value in _document(after).items() if name in _ROTATING}
        with translated():
            found = self._sessions.find_one_and_update(owner | _LIVE, {"$set": changed}, return_document=True)
        return _session(found) if found else None

    def claim_ending(self, tenant_id: str, account_id: str, sid: str, trace_id: str) -> bool:
        """From now on the session has ended; whether it was this trace that ended it and `forget` was not reached yet."""
        owner = {"tenant_id": tenant_id, "account_id": account_id, "sid": sid, "$or": [_LIVE, {"ended_by": trace_id}]}
        with translated():
            return bool(self._sessions.update_one(owner, {"$set": {"ended_by": trace_id}}).matched_count)

    def forget(self, tenant_id: str, account_id: str, sid: str) -> None:
        """Removes a session whose end is in the ledger."""
        with translated():
            self._sessions.delete_one({"tenant_id": tenant_id, "account_id": account_id, "sid": sid})

    def of_account(self, tenant_id: str, account_id: str, device_id: str | None = None) -> list[Session]:
        """The account's sessions, or those of one device, oldest first."""
        with translated():
            found = [_session(each) for each in self._sessions.find({"tenant_id": tenant_id, "account_id": account_id}) if _is_live(each)]
        return sorted((each for each in found if device_id in (None, each.device_id)), key=lambda each: each.signed_in_at_ms)

    def accounts_of(self, tenant_id: str) -> list[str]:
        """The accounts of a tenant that are signed in anywhere."""
        with translated():
            return sorted(self._sessions.distinct("account_id", {"tenant_id": tenant_id} | _LIVE))

    def set_role(self, tenant_id: str, account_id: str, role: str) -> None:
        """What the account's sessions refresh into from now on."""
        with translated():
            self._sessions.update_many({"tenant_id": tenant_id, "account_id": account_id}, {"$set": {"role": role}})


def _is_live(found: dict[str, Any]) -> bool:
    """Read from the document: in the query, where no index has it, it costs a scan on servers that choose an index by all fields (the laptop's does)."""
    return "ended_by" not in found


def _document(session: Session) -> dict[str, Any]:
    expires_at = dt.datetime.fromtimestamp(session.expires_at_ms / 1000, dt.UTC)
    return {name: getattr(session, name) for name in _FIELDS} | {"expires_at": expires_at, "schema_version": 2}


def _session(found: dict[str, Any]) -> Session:
    return Session(**{name: found[name] for name in _FIELDS})
