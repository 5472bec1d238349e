"""The stores of the laptop: which Redis is taken, and what survives a kill."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from local import service_mongo, service_redis
from local.service_redis import RedisChoice
from local.services import FILES_NEEDED, LocalError, choose_ports, files_note, ping_mongo, read_json, write_private_json
from local.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
ON_PATH = {"valkey-server": "/usr/bin/valkey-server", "redis-server": "/usr/bin/redis-server", "/opt/redis": "/opt/redis"}


@pytest.mark.parametrize(
    ("environ", "on_path", "bundled", "expected"),
    [
        ({"HELIOGRAPH_REDIS_URL": "redis://db", "HELIOGRAPH_REDIS_SERVER": "/opt/redis"}, ON_PATH, "/wheel/redis", RedisChoice(url="redis://db")),
        ({"HELIOGRAPH_REDIS_SERVER": "/opt/redis"}, ON_PATH, "/wheel/redis", RedisChoice(binary="/opt/redis")),
        ({}, ON_PATH, "/wheel/redis", RedisChoice(binary="/usr/bin/valkey-server")),
        ({}, {"redis-server": "/usr/bin/redis-server"}, "/wheel/redis", RedisChoice(binary="/usr/bin/redis-server")),
        ({}, {}, "/wheel/redis", RedisChoice(binary="/wheel/redis")),
    ],
)
def test_redis_is_the_url_then_the_named_binary_then_path_then_the_wheel(
    environ: dict[str, str], on_path: dict[str, str], bundled: str, expected: RedisChoice
) -> None:
    assert service_redis.resolve(environ, on_path.get, lambda: bundled) == expected


def test_no_redis_at_all_names_the_command_that_installs_one() -> None:
    with pytest.raises(LocalError, match="apt-get install redis-server"):
        service_redis.resolve({}, lambda name: None, lambda: None)
    with pytest.raises(LocalError, match="HELIOGRAPH_REDIS_SERVER names /nowhere"):
        service_redis.resolve({"HELIOGRAPH_REDIS_SERVER": "/nowhere"}, lambda name: None, lambda: "/wheel/redis")


def test_private_files_are_private_and_a_torn_one_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    write_private_json(path, {"a": 1})
    assert (path.stat().st_mode & 0o777, read_json(path)) == (0o600, {"a": 1})
    path.write_text('{"a"')
    assert read_json(path) == {}


def limits_after(soft: int, call: str) -> str:
    """What a fresh process that starts with this soft limit of open files prints."""
    code = f"import resource; from local.services import raise_file_limit; print({call}, *resource.getrlimit(resource.RLIMIT_NOFILE))"
    shell = f"ulimit -Sn {soft} && exec {sys.executable} -c '{code}'"
    return subprocess.run(["/bin/sh", "-c", shell], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_the_limit_of_open_files_is_raised_as_far_as_the_system_lets_us() -> None:
    """Each socket of the gateway is an open file; many systems start processes with 256 or 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1024:
        pytest.skip("this system grants too little to tell")
    assert limits_after(256, "raise_file_limit(512)") == f"512 512 {hard}", "the hard limit must stay"
    granted = int(limits_after(256, "raise_file_limit(10**9)").split()[0])
    assert granted >= min(hard, 10_240), "what nobody grants is taken as far as it goes"
    assert limits_after(256, "raise_file_limit(100)").split()[1] == "256", "enough is left alone"


def test_too_few_open_files_is_a_sentence_with_the_way_out() -> None:
    assert files_note(FILES_NEEDED) is None
    assert "may open 1024 files" in (files_note(1024) or "")
    assert "ulimit" in (files_note(1024) or "")


@pytest.mark.parametrize("wanted", ["first found", "bundled"])
async def test_redis_comes_back_empty_on_the_same_port(tmp_path: Path, wanted: str) -> None:
    import redis

    port = choose_ports(("redis",), {})["redis"]
    binary = service_redis.bundled_binary() if wanted == "bundled" else service_redis.resolve({}).binary
    if binary is None:
        pytest.skip("no wheel bundles a server for this platform")
    supervisor = Supervisor(tmp_path / "logs", tmp_path / "pids.json")
    await supervisor.start(service_redis.child(binary, port, tmp_path / "redis"))
    client: Any = redis.Redis.from_url(service_redis.url(port))
    try:
        await asyncio.to_thread(client.set, "k", "v")
        os.kill(supervisor.pids()["redis"], signal.SIGKILL)
        await asyncio.sleep(0.2)
        await supervisor.wait_until_ready("redis", 3)
        assert await asyncio.to_thread(client.get, "k") is None
    finally:
        client.close()
        await supervisor.stop()


async def test_an_acknowledged_insert_survives_a_killed_and_a_stopped_ledger(tmp_path: Path) -> None:
    from pymongo import MongoClient

    port = choose_ports(("mongo",), {})["mongo"]
    supervisor = Supervisor(tmp_path / "logs", tmp_path / "pids.json")
    await supervisor.start(service_mongo.child(port, tmp_path / "mongo"))
    acknowledged: list[int] = []
    enough = threading.Event()

    def write() -> None:
        client: Any = MongoClient(service_mongo.uri(port), serverSelectionTimeoutMS=500)
        try:
            for number in range(1_000_000):
                client.ledger.log.insert_one({"_id": number})
                acknowledged.append(number)
                if number == 300:
                    enough.set()
        except Exception:  # the kill
            client.close()

    writer = threading.Thread(target=write)
    writer.start()
    assert await asyncio.to_thread(enough.wait, 10)
    os.kill(supervisor.pids()["mongo"], signal.SIGKILL)
    await asyncio.to_thread(writer.join)
    await supervisor.wait_until_ready("mongo", 10)
    assert set(acknowledged) <= await asyncio.to_thread(numbers, port)

    await supervisor.stop()  # returns only when the folder is free again
    again = Supervisor(tmp_path / "logs", tmp_path / "pids.json")
    await again.start(service_mongo.child(port, tmp_path / "mongo"))
    try:
        await ping_mongo(port)
        assert set(acknowledged) <= await asyncio.to_thread(numbers, port)
    finally:
        await again.stop()


def numbers(port: int) -> set[int]:
    from pymongo import MongoClient

    with MongoClient[dict[str, Any]](service_mongo.uri(port)) as client:
        return {each["_id"] for each in client.ledger.log.find()}
