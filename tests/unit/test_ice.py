"""Relay credentials by the TURN REST draft."""

from __future__ import annotations

import pytest

from heliograph.ice import TurnSecrets, TurnUser, parse_turn_username, turn_key, turn_keys, turn_password, turn_username


def test_the_password_is_the_base64_hmac_of_the_user_name() -> None:
    assert turn_password("north", "1433895918:user123") == "dgYwDl67hIsKDnsWeiDhO+J3xtw="


def test_the_long_term_key_is_the_md5_of_name_realm_and_password() -> None:
    assert turn_key("user", "realm", "pass").hex() == "8493fbc53ba582fb4c044c456bdc40eb"  # RFC 8489 s9.2.2


def test_a_user_name_says_until_when_and_for_whom() -> None:
    username = turn_username(1_800_000_000, "acc_1", "dev_2")
    assert username == "1800000000:acc_1:dev_2"
    assert parse_turn_username(username) == TurnUser(1_800_000_000, "acc_1", "dev_2")


@pytest.mark.parametrize("username", ["", "1", "1:a", "1:a:", "1::d", ":a:d", "x:a:d", "-1:a:d", "1:a:d:e", "١:a:d", "9" * 13 + ":a:d", "1433895918:user123"])
def test_any_other_form_is_refused(username: str) -> None:
    with pytest.raises(ValueError, match="expiry:account_id:device_id"):
        parse_turn_username(username)


def test_both_secrets_give_a_key_and_the_current_one_comes_first() -> None:
    name = turn_username(1, "a", "d")
    new, old = (turn_key(name, "r", turn_password(secret, name)) for secret in ("new", "old"))
    assert turn_keys(name, "r", TurnSecrets("new", "old")) == (new, old)
    assert turn_keys(name, "r", TurnSecrets("new")) == (new,)


def test_stored_secrets_need_a_current_one() -> None:
    assert TurnSecrets.of({"current": "a", "previous": None}) == TurnSecrets("a")
    assert TurnSecrets.of({"current": "a", "previous": "b"}) == TurnSecrets("a", "b")
    for stored in ({}, {"current": ""}, {"previous": "b"}, {"current": 7}):
        with pytest.raises(ValueError, match="current"):
            TurnSecrets.of(stored)
