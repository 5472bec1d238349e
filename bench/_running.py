"""The local cloud as a process of its own, devices without passwords, and what each part of it costs.

Hundreds of sign-ins would measure argon2 and nothing else, so devices here sign their own tokens with the stack's key and rooms are written to MongoDB
directly. Everything after that is what a client does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import mongo_client
from adapters.rooms_mongo import Rooms
from adapters.sessions_mongo import Sessions
from adapters.settings import now_ms
from adapters.tokens_jwt import Tokens
from heliograph.auth import ACCESS_TOKEN_S, ACCESS_TYP, SCOPES, TICKET_TYP, Identity, claims_for
from heliograph.rooms import new_room
from heliograph.sessions import SECRET_BYTES, begun
from heliograph_client import make_id

ROOT = Path(__file__).resolve().parent.parent
TENANT = "load"
START_S, STOP_S = 90.0, 30.0


class Running:
    """A stack that is up in another process."""

    def __init__(self, data_dir: Path, process: asyncio.subprocess.Process) -> None:
        self.data_dir, self.process = data_dir, process

    def endpoints(self) -> dict[str, Any]:
        """What its file says now; empty until it is up."""
        try:
            found: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return found if found.get("pids", {}).get("stack") == self.process.pid else {}


@contextlib.asynccontextmanager
async def running(data_dir: Path, *flags: str, environ: Mapping[str, str] | None = None) -> AsyncIterator[Running]:
    """Starts `python -m local` without the scenario, ends it with SIGTERM."""
    log_path = data_dir / "stack.log"
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "local", "--no-scenario", "--quiet", "--data", str(data_dir), *flags,
            cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(environ or {}),
        )  # fmt: skip
        stack = Running(data_dir, process)
        try:
            async with asyncio.timeout(START_S):
                while not stack.endpoints():
                    if process.returncode is not None:
                        raise RuntimeError(f"the stack did not start: {log_path.read_text()[-2000:]}")
                    await asyncio.sleep(0.05)
            yield stack
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_S)
            if process.returncode is None:
                process.kill()
                await process.wait()


@dataclass(frozen=True, slots=True)
class Issuer:
    """Signs tokens as the stack does, and writes rooms."""

    tokens: Tokens
    url: str
    mongodb_uri: str
    mongodb_database: str

    @classmethod
    def of(cls, data_dir: Path, endpoints: Mapping[str, Any]) -> Issuer:
        """With the keys in the stack's own folder."""
        keys = json.loads((data_dir / "secrets.json").read_text())["token_keys"]
        url = endpoints["rest_url"]
        return cls(Tokens(lambda: keys, now_ms, issuer=url, audience="heliograph"), url, endpoints["mongodb_uri"], endpoints["mongodb_database"])

    def ticket(self, who: Identity) -> str:
        """A one-time ticket."""
        return self._sign(who, TICKET_TYP, 30)

    def access_token(self, who: Identity) -> str:
        """An access token."""
        return self._sign(who, ACCESS_TYP, 900)

    def _sign(self, who: Identity, typ: str, lifetime_s: int) -> str:
        claims = claims_for(who, issuer=self.url, audience="heliograph", now_ms=now_ms(), lifetime_s=lifetime_s, jti=secrets.token_urlsafe(16))
        return self.tokens.sign(claims, typ)

    def create_rooms(self, rooms: Mapping[str, Sequence[Identity]]) -> None:
        """Rooms with these members, and a session for each of them, straight into MongoDB."""
        database = mongo_client.connect(self.mongodb_uri, self.mongodb_database)
        for room_id, people in rooms.items():
            for who in people:
                random = secrets.token_bytes(2 * SECRET_BYTES)
                Sessions(database).start(begun(who.tenant_id, who.account_id, who.device_id, who.sid, who.role, now_ms(), random)[0])
            members = [who.account_id for who in people]
            Rooms(database).create(new_room(people[0].tenant_id, room_id, "load", make_id("evt"), members[0], members), now_ms())
        database.client.close()

    def stored(self, room_ids: Sequence[str]) -> dict[str, list[tuple[int, str]]]:
        """room -> its stream in MongoDB: (offset, message id), oldest first."""
        database = mongo_client.connect(self.mongodb_uri, self.mongodb_database)
        found: dict[str, list[tuple[int, str]]] = {}
        for room_id in room_ids:
            events = database.room_events.find({"tenant_id": TENANT, "room_id": room_id}, {"offset": 1, "message_id": 1}).sort("offset", 1)
            found[room_id] = [(event["offset"], event["message_id"]) for event in events]
        database.client.close()
        return found


def new_identity() -> Identity:
    """Somebody new on a device of their own."""
    now = now_ms()
    return Identity(TENANT, make_id("acc"), make_id("dev"), make_id("ses"), "member", " ".join(sorted(SCOPES["member"])), now, now + ACCESS_TOKEN_S * 1000)


class Cpu:
    """CPU used by each part of the stack since it was made, in cores (1.0 is one core)."""

    def __init__(self, stack: Running) -> None:
        self._stack = stack
        self._before, self._at_s = self._read(), asyncio.get_running_loop().time()

    def cores(self) -> dict[str, float]:
        """part -> cores; "everything else" is what the rest of the machine did meanwhile."""
        elapsed_s, ticks = asyncio.get_running_loop().time() - self._at_s, os.sysconf("SC_CLK_TCK")
        now = self._read()
        used = {part: sum(max(0, spent - self._before.get(part, {}).get(pid, 0)) for pid, spent in now[part].items()) / ticks / elapsed_s for part in now}
        used["everything else"] = max(0.0, used.pop("machine") - sum(used.values()))
        return used

    def _read(self) -> dict[str, dict[int, int]]:
        pids = self._stack.endpoints().get("pids", {})
        workers = [pid for of_function in pids.get("functions", {}).values() for pid in of_function]
        named = {
            "stack": "gateway",
            "moto": "aws stand-in",
        }  # sockets that are looked after pass through a queue, and the stand-in's queues cost more than AWS's
        groups = {named.get(name, name): [pid] for name, pid in pids.items() if isinstance(pid, int)} | {"workers": workers, "clients": [os.getpid()]}
        found = {part: {pid: _ticks(pid) for pid in members} for part, members in groups.items()}
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        return found | {"machine": {0: sum(int(word) for word in words) - int(words[3]) - int(words[4])}}


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


def resident_mb(pid: int) -> float:
    """Memory a process holds."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
