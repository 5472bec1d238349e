"""When a call moves onto new relay credentials, and onto which relay."""

from __future__ import annotations

import random
from typing import Any

import pytest

from heliograph_client.ice_servers import DRAIN_SPREAD_S, Draining, IceServers, host_of, retry_after_s, retry_lost_after_s

TURN = {"urls": ["turn:relay.example:3478?transport=udp", "turns:relay.example:443?transport=tcp"], "username": "u", "credential": "c"}
STUN = {"urls": ["stun:relay.example:3478"]}
LIFE_S, BEGAN_MS = 14_400, 1_735_689_600_000
FRACTIONS = [0.0, 0.5, 1.0]


def answer(*servers: dict[str, Any], ttl_s: float = LIFE_S) -> IceServers:
    return IceServers.parse({"ice_servers": list(servers), "ttl_s": ttl_s, "expires_at_ms": BEGAN_MS + int(ttl_s * 1_000)})


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("life_s", [4, 600, LIFE_S])
def test_new_credentials_are_fetched_at_80_to_85_percent_of_the_life(life_s: int, fraction: float) -> None:
    assert answer(STUN, TURN, ttl_s=life_s).renew_after_s(BEGAN_MS, fraction) == pytest.approx(life_s * (0.8 + 0.05 * fraction))


def test_what_passed_of_the_life_by_the_servers_clock_counts() -> None:
    assert answer(TURN).renew_after_s(BEGAN_MS + 3_600_000, 0.0) == pytest.approx(LIFE_S * 0.8 - 3_600)


@pytest.mark.parametrize("late_ms", [LIFE_S * 900, LIFE_S * 2_000, 10**15])
def test_credentials_that_seem_old_when_they_come_are_not_asked_for_without_pause(late_ms: int) -> None:
    assert answer(TURN).renew_after_s(BEGAN_MS + late_ms, 1.0) == pytest.approx(LIFE_S / 5)
    assert (answer(TURN, ttl_s=0).renew_after_s(BEGAN_MS, 1.0) or 0) > 0.1


@pytest.mark.parametrize(
    ("servers", "is_renewed"),
    [
        (answer(TURN), True),
        (answer(STUN), False),
        (answer(), False),
        (IceServers((TURN,)), False),  # an application's own
    ],
)
def test_calls_without_a_relay_or_without_an_end_of_credentials_are_never_renewed(servers: IceServers, is_renewed: bool) -> None:
    assert (servers.renew_after_s(BEGAN_MS, 0.5) is not None) == is_renewed


def test_a_fetch_that_fails_is_repeated_many_times_before_the_credentials_end() -> None:
    for life_s in (5, LIFE_S):
        dice, servers = random.Random(life_s), answer(TURN, ttl_s=life_s)
        now_s, attempts = servers.renew_after_s(BEGAN_MS, 1.0) or 0.0, 0
        while now_s < life_s:
            pause_s = retry_after_s(attempts, dice.random(), servers.left_s(BEGAN_MS + int(now_s * 1_000)))
            assert 0 <= pause_s <= 60
            now_s, attempts = now_s + pause_s + 0.05, attempts + 1
        assert attempts >= 5, f"a life of {life_s} s"


def test_after_their_end_the_attempts_go_on_a_minute_apart_at_most() -> None:
    assert retry_after_s(40, 1.0, -3.0) == 60
    assert retry_after_s(40, 1.0, None) == 60
    assert retry_lost_after_s(40, 1.0) == 4, "somebody listens to silence"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("turn:203.0.113.7:3478?transport=udp", "203.0.113.7"),
        ("turns:relay.example?transport=tcp", "relay.example"),
        ("turn:[2001:db8::7]:3478", "2001:db8::7"),
        ("stun:relay.example:3478", "relay.example"),
    ],
)
def test_the_host_of_a_url(url: str, host: str) -> None:
    assert host_of(url) == host


def urls(servers: IceServers) -> list[str]:
    return [url for server in servers.servers for url in server["urls"]]


def test_relays_that_go_away_are_asked_last_and_each_attempt_asks_another_first() -> None:
    one, two = ({**TURN, "urls": [f"turn:203.0.113.{n}:3478"]} for n in (7, 8))
    servers = answer(STUN, one, two)
    stun, first, second = urls(servers)
    assert urls(servers.avoiding(())) == [stun, first, second]
    assert urls(servers.avoiding({"203.0.113.7"})) == [stun, second, first]
    assert urls(servers.avoiding((), 1)) == [stun, second, first]
    assert urls(servers.avoiding((), 2)) == [stun, first, second]
    assert servers.avoiding({"203.0.113.7"}).servers[1] == two
    assert servers.avoiding({"203.0.113.7"}, 3).renew_after_s(BEGAN_MS, 0.0) == servers.renew_after_s(BEGAN_MS, 0.0)
    assert urls(answer(STUN).avoiding({"relay.example"}, 5)) == [stun], "nothing else is there"


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_calls_leave_a_draining_relay_within_seconds_and_not_all_at_once(fraction: float) -> None:
    draining = Draining.parse({"relay_hosts": ["203.0.113.7"], "ends_at_ms": BEGAN_MS + 60_000, "of_a_newer_server": 1})
    assert draining is not None
    assert draining.move_after_s(BEGAN_MS, fraction) == pytest.approx(DRAIN_SPREAD_S * fraction)
    assert draining.move_after_s(BEGAN_MS + 58_000, fraction) == pytest.approx(1.0 * fraction)
    assert draining.move_after_s(BEGAN_MS + 61_000, fraction) == 0


GOOD: dict[str, Any] = {"relay_hosts": ["203.0.113.7"], "ends_at_ms": 123}


@pytest.mark.parametrize(
    ("body", "is_read"),
    [
        (GOOD, True),
        ({}, False),
        (GOOD | {"relay_hosts": "203.0.113.7"}, False),
        (GOOD | {"relay_hosts": [7]}, False),
        (GOOD | {"ends_at_ms": "soon"}, False),
        (GOOD | {"ends_at_ms": True}, False),
    ],
)
def test_a_draining_event_is_read_or_not(body: dict[str, Any], is_read: bool) -> None:
    assert (Draining.parse(body) is not None) == is_read
