"""What a deployment is asked for: a wrong answer is one sentence before anything is built."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from adapters.settings import Settings
from infra.cdk import context
from infra.cdk.context import ContextError
from tests.infra.conftest import CONTEXT, ROOT


def test_the_settings_of_the_functions_are_asked_for_or_computed() -> None:
    names = {item.name for item in fields(Settings)}
    assert set(context.asked()) | context.COMPUTED == names
    assert not set(context.asked()) & set(context.OWN)


def test_a_complete_context_gives_every_setting_a_text_and_ignores_the_cdks_own_keys() -> None:
    deployment = context.read({**CONTEXT, "aws:cdk:version-reporting": False, "heliograph:heartbeat_s": 30, "heliograph:bundle": True})
    assert set(deployment.settings) == set(context.asked())
    assert (deployment.stage, deployment.settings["heartbeat_s"], deployment.settings["audience"], deployment.bundle) == ("test", "30", "heliograph", True)
    assert deployment.allow_origins == ("https://app.example.com", "https://console.example.com")


def test_what_is_missing_is_named_with_the_words_to_type() -> None:
    with pytest.raises(ContextError, match=r"redis_url, turn_urls: -c heliograph:redis_url=<value> -c heliograph:turn_urls=<value>"):
        context.read({"heliograph:stage": "test"})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("redis_uri", "x", "heliograph:redis_uri is not a context setting of Heliograph; did you mean heliograph:redis_url?"),
        ("colour", "x", "docs/settings.md lists them"),
        ("media_bucket", "x", "worked out by the stacks; leave it out"),
        ("stage", "Prod_1", "heliograph:stage must be"),
        ("redis_url", "redis.example.com:6379", "heliograph:redis_url must be redis://host:port"),
        ("redis_url", "rediss://user:hunter2@redis.example.com:6379", "heliograph:redis_url holds a password"),
        ("redis_mode", "sentinel", "heliograph:redis_mode must be single or cluster"),
        ("heartbeat_s", "soon", "heliograph:heartbeat_s must be a whole number"),
        ("access_token_s", "901", "heliograph:access_token_s must be between 1 and 900"),
        ("bundle", "yes", "heliograph:bundle must be true or false"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(name: str, value: str, sentence: str) -> None:
    with pytest.raises(ContextError, match=sentence) as refusal:
        context.read({**CONTEXT, f"heliograph:{name}": value})
    assert "hunter2" not in str(refusal.value)


def test_a_redis_url_with_a_password_may_come_from_a_secret() -> None:
    reference = "{{resolve:secretsmanager:heliograph/test/redis:SecretString:url}}"
    assert context.read({**CONTEXT, "heliograph:redis_url": reference}).settings["redis_url"] == reference


def test_the_app_ends_with_the_sentence_and_no_traceback() -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "infra/cdk/app.py"), "-c", "heliograph:stage=test"], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 1
    assert ended.stderr.strip().startswith("Give the context settings redis_url, turn_urls:")
