"""Refresh tokens: rotation, the grace for a lost answer, reuse, forgery. Time is an argument."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from heliograph.sessions import LONGEST_CHAIN, LONGEST_SESSION_S, SECRET_BYTES, SESSION_S, RefreshToken, Session, begun, parse_refresh_token, refresh

ACC, DEV, SES = (f"{prefix}_{'0' * 32}" for prefix in ("acc", "dev", "ses"))
GRACE_MS = 30_000


def signed_in(seed: int = 1) -> tuple[Session, RefreshToken]:
    return begun("acme", ACC, DEV, SES, "member", 1_000, random.Random(seed).randbytes(2 * SECRET_BYTES))


def rotated(session: Session, token: RefreshToken, now_ms: int) -> tuple[Session, RefreshToken]:
    outcome, after, successor = refresh(session, token, now_ms, GRACE_MS)
    assert outcome == "rotated"
    assert successor is not None
    return after, successor


def test_a_token_says_whose_it_is_and_survives_its_text() -> None:
    _, token = signed_in()
    assert parse_refresh_token(str(token)) == token
    assert str(token).startswith(f"acme.{ACC}.{SES}.0.")
    assert len(str(token)) <= 256


def test_a_refresh_moves_the_session_on_and_renews_its_life() -> None:
    session, first = signed_in()
    after, second = rotated(session, first, 5_000)
    assert (after.n, after.refreshed_at_ms, after.expires_at_ms) == (1, 5_000, 5_000 + SESSION_S * 1000)
    assert second != first
    assert rotated(after, second, 6_000)[0].n == 2


def test_the_predecessor_gets_the_same_successor_within_the_grace_and_changes_nothing() -> None:
    session, first = signed_in()
    after, second = rotated(session, first, 5_000)
    assert refresh(after, first, 5_000 + GRACE_MS, GRACE_MS) == ("repeated", after, second)


def test_the_predecessor_after_the_grace_is_reuse() -> None:
    session, first = signed_in()
    after, second = rotated(session, first, 5_000)
    assert refresh(after, first, 5_001 + GRACE_MS, GRACE_MS) == ("reused", after, None)
    assert refresh(after, second, 5_001 + GRACE_MS, GRACE_MS)[0] == "rotated", "the twin: the newest one is good at the same moment"


def test_a_predecessor_whose_successor_was_used_is_reuse_even_within_the_grace() -> None:
    session, first = signed_in()
    after, second = rotated(session, first, 5_000)
    later, _ = rotated(after, second, 5_001)
    assert refresh(later, first, 5_002, GRACE_MS) == ("reused", later, None)


def test_a_token_of_a_thousand_refreshes_ago_is_still_told_from_a_forged_one() -> None:
    session, first = signed_in()
    token = first
    for number in range(1_000):
        session, token = rotated(session, token, 5_000 + number)
    assert refresh(session, first, 10**6, GRACE_MS)[0] == "reused"
    assert refresh(session, replace(first, secret="A" * 43), 10**6, GRACE_MS)[0] == "refused"


@pytest.mark.parametrize("change", [{"secret": "A" * 43}, {"n": 1}, {"n": 5}])
def test_a_forged_token_changes_nothing(change: dict[str, object]) -> None:
    session, first = signed_in()
    assert refresh(session, replace(first, **change), 5_000, GRACE_MS) == ("refused", session, None)  # type: ignore[arg-type]
    assert refresh(session, first, 5_000, GRACE_MS)[0] == "rotated"


def test_a_token_of_another_session_is_forged_here() -> None:
    session, _ = signed_in(1)
    assert refresh(session, signed_in(2)[1], 5_000, GRACE_MS)[0] == "refused"


def test_a_session_that_is_over_or_too_long_a_chain_is_refused() -> None:
    session, first = signed_in()
    assert refresh(session, first, session.expires_at_ms, GRACE_MS)[0] == "refused"
    assert refresh(session, first, session.expires_at_ms - 1, GRACE_MS)[0] == "rotated"
    assert refresh(replace(session, n=LONGEST_CHAIN), replace(first, n=LONGEST_CHAIN), 5_000, GRACE_MS)[0] == "refused"


def test_a_session_ends_ninety_days_after_the_sign_in_however_often_it_is_refreshed() -> None:
    session, token = signed_in()
    day_ms = 86_400_000
    for day in range(0, 90, 15):
        session, token = rotated(session, token, 1_000 + day * day_ms)
    assert session.expires_at_ms == 1_000 + LONGEST_SESSION_S * 1000 == 1_000 + 90 * day_ms
    assert refresh(session, token, 1_000 + 90 * day_ms, GRACE_MS)[0] == "refused"
    assert refresh(session, token, 999 + 90 * day_ms, GRACE_MS)[0] == "rotated"


def test_what_the_store_keeps_makes_no_token() -> None:
    session, first = signed_in()
    after, second = rotated(session, first, 5_000)
    for kept in (after.salt, after.refresh_hash):
        assert refresh(after, replace(second, secret=(kept + "A" * 43)[:43]), 5_001, GRACE_MS)[0] == "refused"
    assert second.secret not in repr(after)
    assert first.secret not in repr(after)


def test_random_bytes_must_be_enough_for_both() -> None:
    with pytest.raises(ValueError, match="64 random bytes"):
        begun("acme", ACC, DEV, SES, "member", 1, b"x" * 63)


@pytest.mark.parametrize(
    "text", ["", "garbage", f"acme.{ACC}.{SES}.0", f"ACME.{ACC}.{SES}.0.{'A' * 43}", f"acme.{ACC}.{SES}.-1.{'A' * 43}", f"acme.{ACC}.{SES}.0.{'A' * 44}"]
)
def test_what_is_not_of_the_form_is_no_token(text: str) -> None:
    assert parse_refresh_token(text) is None
    assert parse_refresh_token(f"acme.{ACC}.{SES}.0.{'A' * 43}") is not None


@given(
    st.text(max_size=300)
    | st.from_regex(re.compile(r"[a-z]{1,4}\.acc_[0-9a-f]{32}\.ses_[0-9a-f]{32}\.[0-9]{1,8}\.[A-Za-z0-9_-]{42,44}", re.ASCII), fullmatch=True)
)
def test_any_text_is_a_token_or_none(text: str) -> None:
    token = parse_refresh_token(text)
    assert token is None or str(token).split(".")[4] in text


class Rotations(RuleBasedStateMachine):
    """A client, a thief with any older token, lost answers: the family ends exactly when an older token is used too late or after its successor."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.session, token = signed_in(seed)
        self.tokens, self.now_ms, self.is_over = [token], 2_000, False

    @rule(ms=st.integers(0, 60_000))
    def wait(self, ms: int) -> None:
        self.now_ms += ms

    @precondition(lambda self: not self.is_over)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        n = data.draw(st.integers(0, len(self.tokens) - 1))
        outcome, after, successor = refresh(self.session, self.tokens[n], self.now_ms, GRACE_MS)
        age = len(self.tokens) - 1 - n
        if age == 0:
            assert outcome == "rotated"
            assert successor is not None
            self.tokens.append(successor)
        elif age == 1 and self.now_ms - self.session.refreshed_at_ms <= GRACE_MS:
            assert (outcome, after, successor) == ("repeated", self.session, self.tokens[-1])
        else:
            assert (outcome, after, successor) == ("reused", self.session, None)
            self.is_over = True
        self.session = after

    @invariant()
    def numbers_are_dense(self) -> None:
        if hasattr(self, "tokens"):
            assert [token.n for token in self.tokens] == list(range(self.session.n + 1))


TestRotations = Rotations.TestCase
