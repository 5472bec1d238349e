"""Token buckets, ended sessions and proofs of sockets in a real Redis: exact counts, its own clock, one command each."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from adapters import keys
from adapters.admissions_redis import Admissions
from heliograph.auth import SCOPES, Identity
from heliograph.limits import LIMITS, Bucket, Limit


def identity(tenant_id: str) -> Identity:
    made = secrets.token_hex(16)
    return Identity(tenant_id, f"acc_{made}", f"dev_{made}", f"ses_{made}", "member", " ".join(SCOPES["member"]), 1, 2)


def limit(burst: int, per_s: float, name: str = "messages") -> Limit:
    return replace(LIMITS[name], burst=burst, per_s=per_s)


@pytest.fixture
def admissions(redis_server: Any) -> Admissions:
    return Admissions(redis_server)


def test_a_bucket_gives_its_burst_and_then_says_when_the_next_token_is_there(admissions: Admissions, tenant_id: str) -> None:
    who, buckets = identity(tenant_id), [Bucket(limit(5, 0.5), "")]
    answers = [admissions.admit(who, buckets).lacking for _ in range(8)]
    assert answers[:5] == [None] * 5
    for lacking in answers[5:]:
        assert lacking is not None
        assert lacking.limit == "messages"
        assert 0 < lacking.wait_ms <= 2_000


def test_tokens_come_back_at_the_rate_and_no_more_than_the_burst(admissions: Admissions, tenant_id: str) -> None:
    who, buckets = identity(tenant_id), [Bucket(limit(3, 50), "")]
    for _ in range(2):
        given = [admissions.admit(who, buckets).lacking is None for _ in range(3)]
        assert given == [True] * 3
        lacking = admissions.admit(who, buckets).lacking
        assert lacking is None or lacking.wait_ms <= 20
        time.sleep(0.1)  # a full bucket's worth and more: the surplus is not kept


def test_twenty_at_once_get_exactly_the_burst(admissions: Admissions, tenant_id: str) -> None:
    who, buckets = identity(tenant_id), [Bucket(limit(7, 0.01), "")]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: admissions.admit(who, buckets).lacking, range(20)))
    assert sum(lacking is None for lacking in answers) == 7


def test_who_lacks_one_token_takes_none_of_the_others(admissions: Admissions, tenant_id: str) -> None:
    who, scarce, plenty = identity(tenant_id), Bucket(limit(1, 0.01, "writes"), ""), Bucket(limit(2, 0.01), "")
    assert admissions.admit(who, [plenty, scarce]).lacking is None
    for _ in range(5):
        lacking = admissions.admit(who, [plenty, scarce]).lacking
        assert lacking is not None
        assert lacking.limit == "writes"
    assert admissions.admit(who, [plenty]).lacking is None, "the second token is still there"
    assert admissions.admit(who, [plenty]).lacking is not None


def test_devices_of_one_account_and_accounts_of_two_tenants_have_buckets_of_their_own(admissions: Admissions, tenant_id: str) -> None:
    who = identity(tenant_id)
    once = limit(1, 0.01, "tickets")
    assert admissions.admit(who, [Bucket(once, "dev_1")]).lacking is None
    assert admissions.admit(who, [Bucket(once, "dev_1")]).lacking is not None
    assert admissions.admit(who, [Bucket(once, "dev_2")]).lacking is None
    assert admissions.admit(replace(who, tenant_id=tenant_id + "x"), [Bucket(once, "dev_1")]).lacking is None


def test_an_address_is_counted_too(admissions: Admissions, tenant_id: str) -> None:
    buckets = [Bucket(limit(2, 0.01, "address"), ""), Bucket(limit(1, 0.01, "sign_in"), "")]
    assert admissions.take(f"address/{tenant_id}", buckets) is None
    lacking = admissions.take(f"address/{tenant_id}", buckets)
    assert lacking is not None
    assert lacking.limit == "sign_in"
    assert admissions.take(f"address/{tenant_id}x", buckets) is None


def test_a_bucket_is_gone_from_redis_when_it_is_full_again(admissions: Admissions, redis_server: Any, tenant_id: str) -> None:
    who = identity(tenant_id)
    admissions.admit(who, [Bucket(limit(10, 20), "")])
    key = keys.limit_of_account(tenant_id, who.account_id, "messages")
    assert 0 < redis_server.pttl(key) <= 51
    time.sleep(0.08)
    assert not redis_server.exists(key)


def test_an_ended_session_is_seen_with_the_next_request_and_another_one_is_not(admissions: Admissions, redis_server: Any, tenant_id: str) -> None:
    who = identity(tenant_id)
    assert not admissions.admit(who, []).is_ended
    admissions.end_sessions(tenant_id, who.account_id, [who.sid])
    assert admissions.admit(who, []).is_ended
    assert not admissions.admit(replace(who, sid="ses_" + "f" * 32), []).is_ended
    assert keys.ENDED_SESSION_S - 5 <= redis_server.ttl(keys.ended_sessions(tenant_id, who.account_id)) <= keys.ENDED_SESSION_S


def test_a_changed_role_makes_earlier_tokens_stale(admissions: Admissions, tenant_id: str) -> None:
    who = identity(tenant_id)
    admissions.make_stale(tenant_id, who.account_id, 5_000)
    found = admissions.admit(who, [])
    assert (found.stale_before_ms, found.is_ended) == (5_000, False)


def test_what_a_socket_proved_is_its_own(admissions: Admissions, tenant_id: str) -> None:
    who = identity(tenant_id)
    admissions.prove(replace(who, expires_at_ms=9_000), "c1=")
    assert admissions.admit(who, [], "c1=").proved == replace(who, expires_at_ms=9_000).as_context()
    assert admissions.admit(who, [], "c2=").proved is None
    assert admissions.proved(tenant_id, who.account_id, "c1=") == replace(who, expires_at_ms=9_000).as_context()


def test_the_whole_admission_is_one_command(admissions: Admissions, redis_server: Any, tenant_id: str) -> None:
    who = identity(tenant_id)
    buckets = [Bucket(LIMITS[name], "") for name in ("account", "device", "messages")]
    admissions.admit(who, buckets)
    with redis_server.monitor() as monitor:
        admissions.admit(who, buckets, "c1=")
        redis_server.echo("the end")
        seen = []
        for command in monitor.listen():
            if command["command"].startswith("ECHO"):
                break
            if command["client_type"] != "lua":
                seen.append(command["command"].split(" ")[0])
    assert seen == ["EVALSHA"]
