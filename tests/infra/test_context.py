"""What a deployment is asked for: a wrong answer is one sentence before anything is built."""

from __future__ import annotations

import os
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
    assert (deployment.stage, deployment.settings["heartbeat_s"], deployment.settings["audience"], deployment.has("bundle")) == (
        "test",
        "30",
        "heliograph",
        True,
    )
    assert deployment.allow_origins == ("https://app.example.com", "https://console.example.com")


def test_what_is_missing_is_named_with_the_words_to_type() -> None:
    with pytest.raises(ContextError, match=r"Give the context settings stage: -c heliograph:stage=<value>"):
        context.read({})


@pytest.mark.parametrize("preset", context.PRESETS)
def test_every_preset_needs_no_more_than_a_stage_and_where_its_firewall_must_know_it_a_region(preset: str) -> None:
    deployment = context.read({"heliograph:stage": "test", "heliograph:preset": preset, "heliograph:region": "eu-west-1"})
    assert deployment.own == {name: choice.default(preset) for name, choice in context.OWN.items()} | {"region": "eu-west-1"}
    assert (deployment.makes_redis, deployment.makes_media, deployment.makes_atlas) == (True, True, False)
    assert all(choice.default(preset) in choice.one_of for choice in context.OWN.values() if choice.one_of)


def test_nothing_costly_is_in_the_preset_of_developers() -> None:
    own = context.read({"heliograph:stage": "test"}).own
    assert (own["egress"], own["edge"], own["snap_start"], own["relay_entry"], own["mongodb"]) == ("ipv6", "cloudfront", "false", "address", "secret")


def test_a_session_store_of_ours_is_a_cluster_and_any_other_is_what_it_is_said_to_be() -> None:
    url = {"heliograph:redis_url": "rediss://redis.example.com:6379"}
    assert context.read({"heliograph:stage": "test"}).settings["redis_mode"] == "cluster"
    assert context.read({"heliograph:stage": "test", "heliograph:redis_mode": "single"}).settings["redis_mode"] == "single"
    assert context.read({"heliograph:stage": "test", **url}).settings["redis_mode"] == "single"


def test_a_region_is_one_of_every_stack_or_none_is() -> None:
    assert context.read({"heliograph:stage": "test"}).env is None
    assert context.read({"heliograph:stage": "test", "heliograph:region": "eu-west-1"}).env == {"region": "eu-west-1"}


def test_zones_are_a_number_or_names() -> None:
    assert context.read({"heliograph:stage": "test"}).zones == ()
    named = context.read({"heliograph:stage": "test", "heliograph:availability_zones": "us-east-1a, us-east-1b"})
    assert named.zones == ("us-east-1a", "us-east-1b")


def test_reserved_concurrency_is_read_by_function() -> None:
    deployment = context.read({"heliograph:stage": "test", "heliograph:reserved_concurrency": "signal=50, authorizer=20"})
    assert deployment.reserved == {"signal": 50, "authorizer": 20}
    assert context.read({"heliograph:stage": "test"}).reserved == {}


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
        ("redis_url", "{{resolve:secretsmanager:heliograph/test/redis}}", "heliograph:redis_url names no field of a secret"),
        ("redis_user", "x", "worked out by the stacks; leave it out"),
        ("bundle", "yes", "heliograph:bundle must be false or true"),
        ("preset", "production", r"heliograph:preset must be dev or prod or prod-multi-az \(did you mean prod\?\)"),
        ("presets", "prod", "did you mean heliograph:preset?"),
        ("stage", "prod-", "heliograph:stage must be"),
        ("stage", "a--b", "heliograph:stage must be"),
        ("region", "eu-wst-1", r"Region eu-wst-1 has not what the stacks need \(did you mean eu-west-1\?\)"),
        ("region", "cn-north-1", "give -c heliograph:region="),
        ("egress", "nat-gatway", r"heliograph:egress must be ipv6 or nat-instance or nat-gateway \(did you mean nat-gateway\?\)"),
        ("availability_zones", "4", "heliograph:availability_zones must be 2 or 3, or the names of 2 or 3 zones"),
        ("availability_zones", "", "heliograph:availability_zones must not be empty"),
        ("relay_max", "0", "heliograph:relay_max must be a whole number, at least 1"),
        ("relay_max", "²", "heliograph:relay_max must be a whole number, at least 1"),
        ("relay_max", "3", "relay_min and heliograph:relay_max must be the same with relay_entry=address"),
        ("relay_instance", "large", "heliograph:relay_instance must be an EC2 instance type"),
        ("architecture", "x86_64", "heliograph:relay_instance=t4g.micro does not run x86_64: give an instance type such as t3.micro"),
        ("relay_instance", "c7i.large", "heliograph:relay_instance=c7i.large does not run arm64: give an instance type such as t4g.micro"),
        ("media", "fargate", "heliograph:media=fargate needs heliograph:relay_entry=load-balancer"),
        ("edge", "cloudfront-waf", "heliograph:region is missing: edge=cloudfront-waf must know it"),
        ("mongodb", "atlas", "heliograph:atlas_project_id is missing"),
        ("atlas_project_id", "0123456789abcdef01234567", "heliograph:atlas_project_id has an effect only with mongodb=atlas"),
        ("atlas_project_id", "mine", "heliograph:atlas_project_id must be 24 hexadecimal digits"),
        ("atlas_instance", "M0", "heliograph:atlas_instance must be a dedicated size such as M10"),
        ("redis_max_gb", "2", "heliograph:redis_max_gb has an effect only with vpc=true and without redis_url"),
        ("reserved_concurrency", "signals=5", r"there is no function signals \(did you mean signal\?\)"),
        ("reserved_concurrency", "signal=many", "heliograph:reserved_concurrency must be name=number"),
        ("reserved_concurrency", "signal", "heliograph:reserved_concurrency must be name=number"),
        ("allow_origins", "*", "heliograph:allow_origins must be origins such as"),
        ("allow_origins", "https://app.example.com/", "heliograph:allow_origins must be origins such as"),
        ("alarm_email", "me", "heliograph:alarm_email must be an e-mail address"),
        ("image_uri", "heliograph", "heliograph:image_uri must be the name of an image with its registry"),
        ("log_days", "8", "heliograph:log_days must be 1 or 3"),
        ("vpc", "false", "heliograph:turn_urls is missing"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(name: str, value: str, sentence: str) -> None:
    given = {key: text for key, text in CONTEXT.items() if not (name == "vpc" and key == "heliograph:turn_urls")}
    context.read(CONTEXT)  # without it there is nothing to refuse
    with pytest.raises(ContextError, match=sentence) as refusal:
        context.read({**given, f"heliograph:{name}": value})
    assert "hunter2" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("wrong", "sentence", "right"),
    [
        ({"vpc": "false"}, "redis_url is missing", {"vpc": "false", "redis_url": "rediss://r.example.com:6379", "turn_urls": "turn:t.example.com:3478"}),
        ({"media": "none"}, "turn_urls is missing", {"media": "none", "turn_urls": "turn:t.example.com:3478"}),
        (
            {"mongodb": "atlas", "atlas_project_id": "0123456789abcdef01234567"},
            "region is missing: mongodb=atlas",
            {"mongodb": "atlas", "atlas_project_id": "0123456789abcdef01234567", "region": "eu-west-1"},
        ),
        ({"preset": "prod"}, "region is missing: edge=cloudfront-waf", {"preset": "prod", "edge": "cloudfront"}),
        (
            {"relay_entry": "load-balancer", "relay_min": "3", "relay_max": "2"},
            "relay_min must not be more",
            {"relay_entry": "load-balancer", "relay_max": "2"},
        ),
        ({"relay_min": "2"}, "must be the same", {"relay_min": "2", "relay_max": "2"}),
        (
            {"media": "fargate", "relay_entry": "load-balancer", "relay_instance": "t4g.small"},
            "relay_instance has an effect only with vpc=true and media=ec2",
            {"media": "fargate", "relay_entry": "load-balancer"},
        ),
        (
            {"vpc": "false", "media": "ec2", "redis_url": "rediss://r.example.com:6379", "turn_urls": "turn:t.example.com:3478"},
            "media=ec2 needs heliograph:vpc=true",
            {"vpc": "false", "media": "none", "redis_url": "rediss://r.example.com:6379", "turn_urls": "turn:t.example.com:3478"},
        ),
        ({"architecture": "x86_64"}, "does not run x86_64", {"architecture": "x86_64", "relay_instance": "c6in.large"}),
        (
            {"vpc": "false", "egress": "ipv6", "redis_url": "rediss://r.example.com:6379", "turn_urls": "turn:t.example.com:3478"},
            "egress has an effect only with vpc=true",
            {"vpc": "true", "egress": "ipv6"},
        ),
    ],
)
def test_choices_that_do_not_go_together_are_refused_beside_those_that_do(wrong: dict[str, str], sentence: str, right: dict[str, str]) -> None:
    with pytest.raises(ContextError, match=sentence):
        context.read({"heliograph:stage": "test", **{f"heliograph:{name}": value for name, value in wrong.items()}})
    context.read({"heliograph:stage": "test", **{f"heliograph:{name}": value for name, value in right.items()}})


def test_a_redis_url_with_a_password_may_come_from_a_secret() -> None:
    reference = "{{resolve:secretsmanager:heliograph/test/redis:SecretString:url}}"
    assert context.read({**CONTEXT, "heliograph:redis_url": reference}).settings["redis_url"] == reference


@pytest.mark.parametrize(
    ("given", "environment", "sentence"),
    [
        (["heliograph:preset=dev"], {}, "Give the context settings stage:"),
        (["heliograph:stage=test"], {"CDK_DEFAULT_REGION": "cn-north-1"}, "The Region cn-north-1 has not what the stacks need"),
        (["heliograph:stage=test", "heliograph:egres=ipv6"], {}, "heliograph:egres is not a context setting of Heliograph; did you mean heliograph:egress?"),
    ],
)
def test_the_app_ends_with_the_sentence_and_no_traceback(given: list[str], environment: dict[str, str], sentence: str) -> None:
    command = [sys.executable, str(ROOT / "infra/cdk/app.py"), *(part for text in given for part in ("-c", text))]
    ended = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.strip().startswith(sentence)
    assert len(ended.stderr.strip().splitlines()) == 1
