"""A secret that two sides share and that is changed while both run."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.secrets_aws import ASKED_AGAIN_S, FRESH_S, SharedSecret
from heliograph.errors import Unavailable


class Vault:
    """Secrets Manager with a clock."""

    def __init__(self, secret: dict[str, Any] | None) -> None:
        self.secret, self.reads, self.at_ms = secret, 0, 1_000_000

    def read(self) -> dict[str, Any]:
        self.reads += 1
        if self.secret is None:
            raise Unavailable
        return self.secret

    def shared(self) -> SharedSecret:
        return SharedSecret(self.read, lambda: self.at_ms)

    def after(self, seconds: float) -> None:
        self.at_ms += round(seconds * 1000) + 1


def test_both_are_taken_and_the_current_one_is_sent() -> None:
    secret = Vault({"current": "b", "previous": "a"}).shared()
    assert (secret.current, secret.accepts("b"), secret.accepts("a")) == ("b", True, True)
    assert not any(secret.accepts(wrong) for wrong in ("", "c", "ab", "None", "null"))


def test_a_secret_without_a_previous_one_takes_only_the_current_one() -> None:
    for only in ({"current": "b"}, {"current": "b", "previous": None}, {"current": "b", "previous": ""}):
        secret = Vault(only).shared()
        assert (secret.accepts("b"), secret.accepts(""), secret.accepts("None")) == (True, False, False)


def test_a_new_secret_is_learned_from_the_first_request_that_has_it() -> None:
    vault = Vault({"current": "a", "previous": None})
    secret = vault.shared()
    vault.secret = {"current": "b", "previous": "a"}
    vault.after(ASKED_AGAIN_S)
    assert secret.accepts("b")
    assert secret.accepts("a")
    assert (secret.current, vault.reads) == ("b", 2)


def test_a_withdrawn_secret_is_forgotten_within_five_minutes() -> None:
    vault = Vault({"current": "b", "previous": "a"})
    secret = vault.shared()
    vault.secret = {"current": "b", "previous": None}
    assert secret.accepts("a")
    vault.after(FRESH_S)
    assert not secret.accepts("a")
    assert secret.accepts("b")


def test_guesses_make_a_process_ask_at_most_once_in_five_seconds_and_an_empty_one_never() -> None:
    vault = Vault({"current": "b", "previous": None})
    secret = vault.shared()
    for _ in range(50):
        assert not secret.accepts("guess")
    assert vault.reads == 1
    vault.after(ASKED_AGAIN_S)
    for _ in range(50):
        assert not secret.accepts("")
    assert vault.reads == 1
    for _ in range(50):
        assert not secret.accepts("guess")
    assert vault.reads == 2


def test_while_it_cannot_be_read_the_one_at_hand_goes_on_and_without_one_nobody_comes_in() -> None:
    vault = Vault({"current": "b", "previous": None})
    secret = vault.shared()
    vault.secret = None
    vault.after(FRESH_S)
    assert secret.accepts("b")
    assert not secret.accepts("a")
    with pytest.raises(Unavailable):
        vault.shared()
