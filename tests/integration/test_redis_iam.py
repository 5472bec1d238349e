"""Signing in to the session store by IAM: the token against botocore's signer, then against servers that know it only as a password.

No server here speaks IAM. Redis takes several passwords for one user: it is given the tokens of every second that the test may last.
Source: ElastiCache user guide, "Authenticating with IAM".
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import botocore.session
import pytest
import redis
from botocore.credentials import Credentials
from botocore.model import ServiceId
from botocore.signers import RequestSigner

from adapters import keys, redis_client, sigv4
from adapters.settings import now_ms
from heliograph.errors import Unavailable
from local.supervisor import Supervisor
from media_fleet.hub import Hub
from tests.conftest import Stores
from tests.contract.hub_stub import KEYS, REGION, Server, StubGateway, config, fresh, gateway, hand_over, job, leased, until
from tests.contract.test_stores import (
    test_a_message_sent_again_has_its_first_offset_and_is_not_stored_twice,
    test_a_roster_that_redis_lost_begins_a_new_epoch,
    test_a_socket_that_was_replaced_by_a_newer_one_of_its_device_is_told_so,
    test_a_stream_goes_on_where_it_was_after_redis_lost_everything,
    test_a_ticket_is_taken_once,
    test_connections_come_and_go_per_account_and_every_key_has_a_ttl,
    test_presence_is_told_once_a_second_and_the_last_change_is_queued_once,
    test_the_boards_memory_survives_the_store,
    test_the_handled_sequence_number_of_a_socket_only_rises,
)
from tests.integration.test_hub import three_nodes

__all__ = [  # collected here with this file's `redis_server`, who may do only what our user of ElastiCache may
    "gateway",
    "test_a_message_sent_again_has_its_first_offset_and_is_not_stored_twice",
    "test_a_roster_that_redis_lost_begins_a_new_epoch",
    "test_a_socket_that_was_replaced_by_a_newer_one_of_its_device_is_told_so",
    "test_a_stream_goes_on_where_it_was_after_redis_lost_everything",
    "test_a_ticket_is_taken_once",
    "test_connections_come_and_go_per_account_and_every_key_has_a_ttl",
    "test_presence_is_told_once_a_second_and_the_last_change_is_queued_once",
    "test_the_boards_memory_survives_the_store",
    "test_the_handled_sequence_number_of_a_socket_only_rises",
]
USER: Final = "heliograph-test"
SECONDS: Final = 240
STRANGER: Final = sigv4.Credentials("AKIDOTHER", "another secret")


def admit(server: Any) -> None:
    """Lets our user in on this server, with the rights that the stack gives him."""
    now = now_ms() // 1000
    tokens = [f">{redis_client.token(USER, USER, credentials=KEYS, region=REGION, now=now + second)}" for second in range(SECONDS)]
    server.execute_command("ACL", "SETUSER", USER, "reset", *redis_client.ACCESS.split(), *tokens)


def signed_in(credentials: sigv4.Credentials = KEYS) -> Any:
    return redis_client.sign_in(USER, USER, credentials=lambda: credentials, region=REGION)


@pytest.fixture
def redis_server(stores: Stores) -> Iterator[Any]:
    with redis.Redis.from_url(stores.redis_url) as admin:
        admit(admin)
        client = redis_client.connect(stores.redis_url, "single", signed_in())
        yield client
        client.close()
        admin.execute_command("ACL", "DELUSER", USER)


@pytest.mark.parametrize("who", [KEYS, sigv4.Credentials("ASIAEXAMPLE", "secret", "token/with+signs==")], ids=["plain", "temporary"])
def test_the_token_is_the_one_that_botocores_signer_makes(who: sigv4.Credentials) -> None:
    session = botocore.session.get_session()
    theirs = Credentials(who.access_key_id, who.secret_key, who.session_token)
    signer = RequestSigner(ServiceId("elasticache"), REGION, "elasticache", "v4", theirs, session.get_component("event_emitter"))
    request = {
        "method": "GET",
        "url": f"http://{USER}/?Action=connect&User={USER}&ResourceType=ServerlessCache",
        "body": {},
        "headers": {},
        "context": {},
    }
    signed = signer.generate_presigned_url(request, operation_name="connect", expires_in=900, region_name=REGION)
    stamp = signed.partition("X-Amz-Date=")[2].partition("&")[0]
    ours = redis_client.token(USER, USER, credentials=who, region=REGION, now=sigv4.seconds_of(stamp))
    assert f"http://{ours}" == signed


def test_every_connection_signs_in_with_the_keys_of_that_moment(redis_server: Any, stores: Stores) -> None:
    held = [STRANGER]
    client = redis_client.connect(stores.redis_url, "single", redis_client.sign_in(USER, USER, credentials=lambda: held[0], region=REGION))
    with pytest.raises(Unavailable), redis_client.translated():
        client.get("hg:x")
    redis_client.forget_failure()
    held[0] = KEYS
    with redis_client.translated():
        assert client.get("hg:x") is None
    assert client.acl_whoami() == USER
    client.close()


def test_the_user_reaches_our_keys_and_channels_and_can_empty_nothing(redis_server: Any) -> None:
    redis_server.set("hg:mine", "1", ex=5)
    assert redis_server.get("hg:mine") == "1"
    assert "redis_version" in redis_server.info("server")
    for refused in (("GET", "theirs"), ("FLUSHALL",), ("KEYS", "hg:*"), ("CONFIG", "GET", "*"), ("ACL", "LIST"), ("PUBLISH", "theirs", "x"), ("MONITOR",)):
        with pytest.raises(redis.exceptions.NoPermissionError):
            redis_server.execute_command(*refused)


def test_without_a_user_the_url_says_all(stores: Stores) -> None:
    assert redis_client.sign_in("", "", credentials=lambda: KEYS, region=REGION) is None
    client = redis_client.connect(stores.redis_url, "single", None)
    assert client.ping()
    client.close()


async def test_a_hub_signs_in_on_both_of_its_connections(redis_server: Any, stores: Stores, gateway: StubGateway, tenant_id: str) -> None:
    server = Server(stores.redis_url, redis_server)
    with redis.Redis.from_url(stores.redis_url, decode_responses=True) as admin:
        async with Hub(config(server, gateway, redis_user=USER, redis_cache=USER)) as hub:
            await leased(hub)
            assert await hand_over(fresh(server), job(tenant_id, "told", ("c=",)))
            await until("a delivery", lambda: gateway.posted)
            listening = {item["user"] for item in admin.client_list() if int(item["sub"]) + int(item.get("ssub", 0))}
        assert listening == {USER}
        admin.delete(keys.HUB_LEASES)


async def test_a_cluster_asks_every_connection(tmp_path: Path) -> None:
    binary = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        pytest.skip("no Redis server 7 on this machine")
    supervisor = Supervisor(tmp_path / "logs", tmp_path / "pids.json")
    try:
        async with three_nodes(binary, tmp_path / "redis", supervisor) as server:
            for node in server.client.get_primaries():
                admit(node.redis_connection)
            client = redis_client.connect(server.url, "cluster", signed_in())
            for number in range(12):  # slots on each of the three
                client.set(f"hg:{{{number}}}", number, ex=60)
            assert {node.redis_connection.acl_whoami() for node in client.get_primaries()} == {USER}
            client.close()
    finally:
        await supervisor.stop()


def test_a_stranger_is_out(redis_server: Any, stores: Stores) -> None:
    with pytest.raises(redis.exceptions.AuthenticationError):
        redis_client.connect(stores.redis_url, "single", signed_in(STRANGER)).ping()
