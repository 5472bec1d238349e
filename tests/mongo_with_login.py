"""A MongoDB server that asks who is there: the laptop's, with authentication switched on, for tests of users and passwords."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from local import service_mongo
from local.services import choose_ports
from local.supervisor import NotReady
from tests.running import wait_until

ROOT_USER: Final = "root"


@dataclass(frozen=True, slots=True)
class MongoWithLogin:
    """`root` may do everything; `uri` is how another user comes in."""

    port: int
    root: Any

    def uri(self, user: str, password: str) -> str:
        return f"mongodb://{user}:{password}@127.0.0.1:{self.port}/?authSource=admin&retryWrites=false"

    def add_user(self, user: str, password: str, database: str) -> str:
        """A user who may read and write one database; its URI."""
        self.root.admin.command("createUser", user, pwd=password, roles=[{"role": "readWrite", "db": database}, {"role": "dbAdmin", "db": database}])
        return self.uri(user, password)


@contextmanager
def mongo_with_login(folder: Path) -> Iterator[MongoWithLogin]:
    """Makes the first user while nobody is asked, then starts the server anew with `--auth`."""
    from pymongo import MongoClient

    port = choose_ports(("mongo",), {})["mongo"]
    child = service_mongo.child(port, folder / "mongo")
    anybody: Any = MongoClient(service_mongo.uri(port))
    with _running(child.argv, port, folder), anybody:
        anybody.admin.command("createUser", ROOT_USER, pwd=ROOT_USER, roles=["root"])
    with _running((*child.argv, "--auth"), port, folder):
        made = MongoWithLogin(port, None)
        root: Any = MongoClient(made.uri(ROOT_USER, ROOT_USER))
        with root:
            yield MongoWithLogin(port, root)


@contextmanager
def _running(argv: tuple[str, ...], port: int, folder: Path) -> Iterator[None]:
    with (folder / "mongo.log").open("ab") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        wait_until(f"MongoDB on port {port} (log: {folder / 'mongo.log'})", lambda: process.poll() is None and _answers(port), 30)
        yield
    finally:
        process.terminate()
        process.wait(20)


def _answers(port: int) -> bool:
    from local.services import ping_mongo

    try:
        asyncio.run(ping_mongo(port))
    except NotReady:
        return False
    return True
