"""What is watched: every alarm reaches somebody and names a section of the runbook that is there; nothing asynchronous fails unseen; dev stays cheap."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest

from functions.routes import FUNCTIONS, Queue
from infra.cdk.context import OWN
from media_fleet import meters
from tests.infra.conftest import Synthesise
from tests.infra.presets import ROOT, Presets, Properties, Template, most_allocations, text

QUEUES = [route.name for function in FUNCTIONS for route in function.routes if isinstance(route, Queue)]
RUNBOOK = (ROOT / "docs/operations.md").read_text()


@pytest.fixture(scope="module")
def presets(deployed: Synthesise) -> Presets:
    return Presets(deployed)


@pytest.fixture(params=["dev", "prod", "fargate"])
def watch(request: pytest.FixtureRequest, presets: Presets) -> Template:
    return presets[request.param]["watch"]


def alarms(watch: Template) -> dict[str, Properties]:
    """By the name's end."""
    return {alarm["AlarmName"].removeprefix("heliograph-test-"): alarm for alarm in watch.of_type("AWS::CloudWatch::Alarm").values()}


def metrics(alarm: Properties) -> list[Properties]:
    """Every metric that the alarm reads, in one form."""
    stats = [item["MetricStat"] for item in alarm.get("Metrics", []) if "MetricStat" in item]
    return [{**stat["Metric"], "Statistic": stat["Stat"]} for stat in stats] or [
        {
            "Statistic": alarm.get("Statistic", alarm.get("ExtendedStatistic")),
            **{key: alarm[key] for key in ("Namespace", "MetricName")},
            **dimensions_of(alarm),
        }
    ]


def dimensions_of(alarm: Properties) -> Properties:
    return {"Dimensions": alarm["Dimensions"]} if "Dimensions" in alarm else {}


def anchors(markdown: str) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Every alarm


def test_every_alarm_reaches_the_topic_when_it_rings_and_when_it_ends(watch: Template) -> None:
    ((topic, _),) = watch.of_type("AWS::SNS::Topic").items()
    for name, alarm in alarms(watch).items():
        assert (alarm["AlarmActions"], alarm["OKActions"]) == ([{"Ref": topic}], [{"Ref": topic}]), name


def test_every_alarm_names_a_section_of_the_runbook_that_is_there(watch: Template) -> None:
    for name, alarm in alarms(watch).items():
        found = re.search(r" What to do: docs/operations\.md#([a-z-]+)$", alarm["AlarmDescription"])
        assert found is not None, name
        assert found[1] in anchors(RUNBOOK), name


def test_every_section_about_an_alarm_belongs_to_one(presets: Presets) -> None:
    chapter = re.split(r"^## ", RUNBOOK, flags=re.MULTILINE)
    (ours,) = [part for part in chapter if part.startswith("When an alarm rings")]
    told = {alarm["AlarmDescription"].rpartition("#")[2] for name in ("dev", "prod") for alarm in alarms(presets[name]["watch"]).values()}
    assert anchors(re.sub(r"^When.*", "", ours)) == told | {"the-budget"}


def test_silence_is_no_alarm_but_for_relays_that_must_speak(watch: Template) -> None:
    assert {name for name, alarm in alarms(watch).items() if alarm["TreatMissingData"] == "breaching"} == {"no-relay"}


def test_dev_has_few_alarms_because_each_metric_of_one_costs(presets: Presets) -> None:
    found = alarms(presets["dev"]["watch"])
    assert len(found) <= 20
    assert sum(len(metrics(alarm)) for alarm in found.values()) <= 20


# Nothing fails unseen


def test_each_dead_letter_and_each_message_that_waits_too_long_rings(watch: Template, presets: Presets) -> None:
    state, found = presets["dev"]["state"], alarms(watch)
    dead = {name for name in state.of_type("AWS::SQS::Queue") if "dead" in name}
    assert len(dead) == len(QUEUES)
    for queue in QUEUES:
        letters, age = found[f"{queue}-dead-letters"], found[f"{queue}-age"]
        assert (letters["MetricName"], letters["Threshold"], letters["ComparisonOperator"]) == ("ApproximateNumberOfMessagesVisible", 0, "GreaterThanThreshold")
        assert (age["MetricName"], age["Threshold"]) == ("ApproximateAgeOfOldestMessage", 1_800)
        (watched,) = [text(item["Value"]) for item in letters["Dimensions"]]
        assert any(f"GetAtt{name}QueueName" in watched for name in dead)
        assert f"GetAtt{queue}" in text(age["Dimensions"][0]["Value"])
        assert "dead" not in text(age["Dimensions"][0]["Value"])


def test_each_function_is_watched_by_itself_where_people_work(presets: Presets) -> None:
    found = alarms(presets["prod"]["watch"])
    for prefix, metric in (("errors-", "Errors"), ("slow-", "Duration")):
        groups = [alarm for name, alarm in found.items() if name.startswith(prefix)]
        assert all(len(metrics(alarm)) <= 10 for alarm in groups)  # CloudWatch's most
        watched = Counter(text(item["Dimensions"][0]["Value"]) for alarm in groups for item in metrics(alarm))
        assert len(watched) == len(FUNCTIONS) == sum(watched.values())
        assert {item["MetricName"] for alarm in groups for item in metrics(alarm)} == {metric}


def test_a_slow_function_is_measured_against_its_own_time_out(presets: Presets) -> None:
    shares: dict[str, int] = {}
    for name, alarm in alarms(presets["prod"]["watch"]).items():
        if name.startswith("slow-"):
            (expression,) = [item["Expression"] for item in alarm["Metrics"] if "Expression" in item]
            ids = {item["Id"]: text(item["MetricStat"]["Metric"]["Dimensions"][0]["Value"]) for item in alarm["Metrics"] if "MetricStat" in item}
            shares |= {ids[found[0]]: int(found[1]) for found in re.findall(r"FILL\((d\d+), 0\)/(\d+)", expression)}
            assert (alarm["Threshold"], {item["Statistic"] for item in metrics(alarm)}) == (80, {"p99"})
    assert sorted(shares.values()) == sorted(function.timeout_s * 1000 for function in FUNCTIONS)
    for function in FUNCTIONS:
        assert any(re.search(rf"Ref{function.name.replace('_', '')}[0-9A-F]", name) and most == function.timeout_s * 1000 for name, most in shares.items())


def test_in_dev_one_alarm_watches_the_functions_of_the_region(presets: Presets) -> None:
    for name, metric in (("errors", "Errors"), ("throttles", "Throttles")):
        alarm = alarms(presets["dev"]["watch"])[name]
        assert metrics(alarm) == [{"Namespace": "AWS/Lambda", "MetricName": metric, "Statistic": "Sum"}]


def test_both_apis_are_watched_at_their_stages(watch: Template) -> None:
    found = alarms(watch)
    stages = {
        name: {(item["MetricName"], {pair["Name"]: text(pair["Value"]) for pair in item["Dimensions"]}["Stage"]) for item in metrics(found[name])}
        for name in ("rest-errors", "socket-errors")
    }
    assert stages == {"rest-errors": {("5xx", "$default")}, "socket-errors": {("IntegrationError", "test"), ("ExecutionError", "test")}}


def test_refused_sockets_and_full_relays_are_told_of_where_people_work(presets: Presets) -> None:
    found = alarms(presets["prod"]["watch"])
    assert {item["MetricName"] for item in metrics(found["sockets-refused"])} == {"ClientError", "ConnectCount"}
    assert found["relay-allocations"]["Threshold"] == 0.8 * most_allocations()


def test_the_session_store_rings_before_it_is_full(presets: Presets) -> None:
    for name in ("dev", "prod"):
        found = alarms(presets[name]["watch"])
        most = int(OWN["redis_max_gb"].default(name))
        assert found["redis-fills-up"]["Threshold"] == 0.6 * most * 10**9
        (cache,) = presets[name]["state"].of_type("AWS::ElastiCache::ServerlessCache").values()
        assert found["redis-fills-up"]["Dimensions"] == [{"Name": "clusterId", "Value": cache["ServerlessCacheName"]}]
        assert (found["redis-evicts"]["MetricName"], found["redis-throttles"]["MetricName"]) == ("Evictions", "ThrottledCmds")


def test_relays_and_hubs_are_watched_by_what_they_tell(watch: Template, presets: Presets) -> None:
    told = [item for alarm in alarms(watch).values() for item in metrics(alarm) if item["Namespace"] == meters.NAMESPACE]
    usage = {"UsageLogged"} if watch == presets["prod"]["watch"] else set()
    assert {item["MetricName"] for item in told} == {"Allocations", "HubHasLease", "HubBacklog"} | usage
    assert {item["MetricName"] for item in told} <= set(meters.METRICS)
    assert all(item["Dimensions"] == [{"Name": meters.DIMENSION, "Value": "test"}] for item in told)
    silent = alarms(watch)["no-relay"]
    assert (silent["Statistic"], silent["Threshold"], silent["ComparisonOperator"]) == ("SampleCount", 1, "LessThanThreshold")


def test_usage_that_only_the_log_has_rings_at_once_where_relays_tell_usage(presets: Presets) -> None:
    assert "usage-logged" not in alarms(presets["dev"]["watch"])
    found = alarms(presets["prod"]["watch"])["usage-logged"]
    assert (found["Statistic"], found["Threshold"], found["ComparisonOperator"], found["EvaluationPeriods"]) == ("Sum", 0, "GreaterThanThreshold", 1)


def test_a_load_balancer_that_sees_no_relay_rings_and_so_does_a_missing_one_of_several(presets: Presets) -> None:
    assert {"relays-unhealthy", "relays-missing"} & set(alarms(presets["dev"]["watch"])) == set()
    found = alarms(presets["prod"]["watch"])
    assert {pair["Name"] for pair in found["relays-unhealthy"]["Dimensions"]} == {"LoadBalancer", "TargetGroup"}
    assert found["relays-missing"]["Threshold"] == int(OWN["relay_min"].default("prod"))


# Who is told


def test_alarms_are_encrypted_with_a_key_that_cloudwatch_and_budgets_may_use_for_this_account_only(watch: Template) -> None:
    ((key, made),) = watch.of_type("AWS::KMS::Key").items()
    assert watch.one("AWS::SNS::Topic")["KmsMasterKeyId"] == {"Fn::GetAtt": [key, "Arn"]}
    assert made["EnableKeyRotation"] is True
    for statements, action in (
        (made["KeyPolicy"]["Statement"], "kms:GenerateDataKey"),
        (watch.one("AWS::SNS::TopicPolicy")["PolicyDocument"]["Statement"], "sns:Publish"),
    ):
        (lets,) = [item for item in statements if item["Effect"] == "Allow" and action in item["Action"]]
        assert set(lets["Principal"]["Service"]) == {"cloudwatch.amazonaws.com", "budgets.amazonaws.com"}
        assert lets["Condition"] == {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}}


def test_a_person_is_written_to_only_where_an_address_is_given(presets: Presets) -> None:
    subscription = presets["prod"]["watch"].one("AWS::SNS::Subscription")
    assert (subscription["Protocol"], subscription["Endpoint"]) == ("email", "ops@example.com")
    assert not presets["dev"]["watch"].of_type("AWS::SNS::Subscription")


def test_the_budget_rings_by_forecast_and_when_most_of_it_is_spent(presets: Presets) -> None:
    for name in ("dev", "prod"):
        watch = presets[name]["watch"]
        budget = watch.one("AWS::Budgets::Budget")
        assert budget["Budget"]["BudgetLimit"] == {"Amount": int(OWN["monthly_budget_usd"].default(name)), "Unit": "USD"}
        notes = {item["Notification"]["NotificationType"]: item for item in budget["NotificationsWithSubscribers"]}
        assert {kind: item["Notification"]["Threshold"] for kind, item in notes.items()} == {"FORECASTED": 100, "ACTUAL": 80}
        (topic,) = watch.of_type("AWS::SNS::Topic")
        assert all(item["Subscribers"] == [{"SubscriptionType": "SNS", "Address": {"Ref": topic}}] for item in notes.values())
        (made,) = [resource for resource in watch.resources.values() if resource["Type"] == "AWS::Budgets::Budget"]
        assert any(watch.resources[name]["Type"] == "AWS::SNS::TopicPolicy" for name in made["DependsOn"])  # Budgets tries the topic at once


# The picture


def board(watch: Template) -> list[Any]:
    body = text(watch.one("AWS::CloudWatch::Dashboard")["DashboardBody"])
    return list(json.loads(body)["widgets"])


def test_the_dashboard_shows_connections_errors_latency_queues_relays_and_the_store(watch: Template) -> None:
    widgets = board(watch)
    shown = json.dumps(widgets)
    for name in ("ConnectCount", "MessageCount", "5xx", "IntegrationError", "Latency", "Duration", "ApproximateAgeOfOldestMessage", "BytesUsedForCache"):
        assert f'"{name}"' in shown, name
    assert {name for name in meters.METRICS if f'"{name}"' in shown} == set(meters.METRICS) - (set() if "usage-logged" in alarms(watch) else {"UsageLogged"})
    (errors,) = [widget for widget in widgets if widget["properties"]["title"] == "Errors of functions"]
    assert len(errors["properties"]["metrics"]) == len(FUNCTIONS)
    (status,) = [widget for widget in widgets if widget["type"] == "alarm"]
    assert len(status["properties"]["alarms"]) == len(alarms(watch))
    assert all(widget["x"] + widget["width"] <= 24 for widget in widgets)
