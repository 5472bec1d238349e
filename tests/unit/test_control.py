"""What the parent of a relay's workers and they say to each other: each side gets what the other one meant."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heliograph.ice import TurnSecrets, turn_username
from media_fleet import control
from media_fleet.control import Start
from media_fleet.readings import RelayReading
from media_fleet.relay import RelayConfig
from media_fleet.tls import TlsFiles
from media_fleet.turn import Usage, shared_secrets, static_users
from media_fleet.turn.connections import StreamLimits
from media_fleet.workers import summed

USERS = static_users({"ann": "pass"}, "north")
PLAIN = RelayConfig(realm="north", credentials=USERS)
OTHERWISE: dict[str, Any] = {
    "listen": (("127.0.0.1", 1), ("::1", 2)),
    "listen_tcp": (("127.0.0.1", 3),),
    "listen_tls": (("127.0.0.1", 4),),
    "tls": TlsFiles("certificate", "key"),
    "data_path": "python",
    "relay_addresses": ("192.0.2.1", "2001:db8::1"),
    "unasked_family": "client",
    "allow_peers": ("127.0.0.0/8",),
    "tls_name": "relay.example.com",
    "urls": ("turn:192.0.2.1:3478?transport=udp",),
    "no_peers": (("127.0.0.1", 5),),
    "stats_listen": ("127.0.0.1", 6),
    "streams": StreamLimits(max_connections=7, idle_s=8.5),
}


def over_the_wire(content: Any) -> Any:
    return control.parse(control.line("kind", content))[1]


@pytest.mark.parametrize("config", [PLAIN, RelayConfig(realm="north", credentials=USERS, **OTHERWISE)], ids=["plain", "otherwise"])
def test_a_worker_has_the_configuration_that_its_parent_was_told(config: RelayConfig) -> None:
    assert control.config_of(over_the_wire(control.told_config(config)), USERS) == config


def test_every_number_of_the_configuration_arrives() -> None:
    numbers = {item.name: number for number, item in enumerate(fields(RelayConfig), 1) if isinstance(getattr(PLAIN, item.name), int | float)}
    assert len(numbers) > 10
    config = RelayConfig(realm="north", credentials=USERS, **numbers)  # type: ignore[arg-type]
    assert control.config_of(over_the_wire(control.told_config(config)), USERS) == config


def test_credentials_are_told_and_not_with_the_configuration() -> None:
    config = RelayConfig(realm="north", credentials=static_users({"ann": "open sesame"}, "north"))
    assert "sesame" not in json.dumps(control.told_config(config))
    told = over_the_wire(control.told_credentials(config.credentials))
    credentials = control.credentials_of(lambda: told, "north")
    assert credentials("ann", 0) == config.credentials("ann", 0) is not None
    assert credentials("bob", 0) is None


def test_secrets_that_are_told_anew_count_from_then_on() -> None:
    secrets = [TurnSecrets("first")]
    ours = shared_secrets(lambda: secrets[-1], "north")
    told = [over_the_wire(control.told_credentials(ours))]
    credentials = control.credentials_of(lambda: told[-1], "north")
    name = turn_username(100, "acc_1", "dev_1")
    for secret in (TurnSecrets("second", "first"), TurnSecrets("third")):
        assert credentials(name, 99) == ours(name, 99)
        secrets.append(secret)
        assert credentials(name, 99) != ours(name, 99)
        told.append(over_the_wire(control.told_credentials(ours)))
        assert credentials(name, 99) == ours(name, 99) is not None
        assert credentials(name, 100) is None


def test_credentials_that_only_one_process_can_judge_are_refused() -> None:
    with pytest.raises(ValueError, match="fixed users or shared secrets"):
        control.told_credentials(lambda username, now: None)


def test_a_start_arrives_and_each_file_is_inherited_once() -> None:
    start = Start({"realm": "north"}, {"users": {}}, 1, 3, {"udp": [7], "tcp": [8], "tls": [8]}, 9, {0: 10, 2: 11})
    assert Start.of(over_the_wire(start.told())) == start
    assert start.files() == (7, 8, 9, 10, 11)


def test_usage_arrives() -> None:
    for ended_at_ms in (None, 2_000):
        usage = Usage("1f", "100:acc_1:dev_1", "acc_1", "192.0.2.1:50000", "198.51.100.7:9", "udp", 1, 2, 3, 4, 1_000, ended_at_ms)
        assert control.usage_of(over_the_wire({"usage": control.told_usage(usage)})["usage"]) == usage


def test_readings_arrive_and_add_up() -> None:
    numbers = ("allocations", "capacity", "from_client_bytes", "to_client_bytes", "from_client_packets", "to_client_packets", "auth_failures", "cpu_s")
    one = RelayReading(**dict.fromkeys(numbers, 1), refusals={401: 2, 437: 1}, dropped={"network": 0})  # type: ignore[arg-type]
    other = RelayReading(**dict.fromkeys(numbers, 2), is_draining=True, refusals={401: 3}, dropped={"network": 1, "over_rate": 5})
    assert {item.name for item in fields(RelayReading)} == {*numbers, "is_draining", "refusals", "dropped"}
    arrived = [control.reading_of(over_the_wire(control.told_reading(reading))) for reading in (one, other)]
    assert arrived == [one, other]
    both = RelayReading(**dict.fromkeys(numbers, 3), is_draining=True, refusals={401: 5, 437: 1}, dropped={"network": 1, "over_rate": 5})
    assert summed(*arrived) == both
    assert summed() == RelayReading(allocations=0, capacity=0)


@pytest.mark.parametrize("data", [b"", b"\n", b"{}", b"[]", b'["start"]', b'["start", 1]', b"[1, {}]", b'["start", {}', b"\xff", b"[" * 10_000])
def test_a_line_that_is_none_of_ours_is_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        control.parse(data)


@given(st.binary(max_size=40))
def test_no_line_raises_anything_else(data: bytes) -> None:
    try:
        kind, content = control.parse(data)
    except ValueError:
        return
    assert isinstance(kind, str)
    assert isinstance(content, dict)
