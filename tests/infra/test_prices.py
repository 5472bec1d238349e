"""The sum of list prices: what counts, what does not, and that the developers' preset stays under a dollar a day."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from infra.cdk import prices
from tests.infra.conftest import ROOT, Synthesise
from tests.infra.test_network import OTHERWISE


def template(**resources: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"Resources": {name: {"Type": kind, "Properties": properties} for name, (kind, properties) in resources.items()}}


def counted(*templates: dict[str, Any]) -> dict[str, float]:
    return {line.name: line.amount for line in prices.lines(templates)}


def test_the_preset_of_developers_costs_at_most_a_dollar_a_day(deployed: Synthesise) -> None:
    lines = prices.lines(deployed("dev").templates.values())
    assert 0.3 < prices.total(lines) <= 1.0, prices.table("dev", lines)
    assert not {"NAT gateway", "web ACL", "SnapStart cache, GB", "Network Load Balancer"} & {line.name for line in lines}


def test_what_a_zone_more_costs_is_seen(deployed: Synthesise) -> None:
    lines = {line.name: line.amount for line in prices.lines(deployed("prod-multi-az").templates.values())}
    assert (lines["NAT gateway"], lines["Network Load Balancer"]) == (3, 1)
    assert lines["public IPv4 address"] >= 6  # of the gateways and of the load balancer


def test_a_nat_instance_is_a_machine_a_disk_and_an_address(deployed: Synthesise) -> None:
    with_it, without = (counted(*deployed("dev", **chosen).templates.values()) for chosen in (OTHERWISE, {}))
    assert with_it["t4g.nano"] == 1
    assert with_it["disk of gp3, GB"] - without.get("disk of gp3, GB", 0) >= 8
    assert with_it["public IPv4 address"] - without["public IPv4 address"] == 2  # its own, and that of a second relay


def machines(least: str, *, fixed: int) -> dict[str, Any]:
    data = {"InstanceType": "t4g.micro", "BlockDeviceMappings": [{"Ebs": {"VolumeSize": 30}}], "NetworkInterfaces": [{"AssociatePublicIpAddress": True}]}
    addresses = {f"Address{number}": ("AWS::EC2::EIP", {"Tags": [{"Key": "heliograph:relay", "Value": "test"}]}) for number in range(fixed)}
    return template(
        Machine=("AWS::EC2::LaunchTemplate", {"LaunchTemplateData": data}),
        Group=("AWS::AutoScaling::AutoScalingGroup", {"MinSize": least, "LaunchTemplate": {"LaunchTemplateId": {"Ref": "Machine"}}}),
        **addresses,
    )


def test_a_relay_with_a_fixed_address_pays_for_one_and_a_relay_without_for_its_own() -> None:
    assert counted(machines("2", fixed=2)) == {"t4g.micro": 2, "disk of gp3, GB": 60, "public IPv4 address": 2}
    assert counted(machines("3", fixed=0)) == {"t4g.micro": 3, "disk of gp3, GB": 90, "public IPv4 address": 3}


def test_tasks_of_fargate_are_paid_for_by_size_and_number() -> None:
    task = {"Cpu": "512", "Memory": "1024", "RuntimePlatform": {"CpuArchitecture": "ARM64"}}
    network = {"AwsvpcConfiguration": {"AssignPublicIp": "ENABLED"}}
    service = {"LaunchType": "FARGATE", "DesiredCount": 2, "TaskDefinition": {"Ref": "Task"}, "NetworkConfiguration": network}
    made = template(Task=("AWS::ECS::TaskDefinition", task), Service=("AWS::ECS::Service", service))
    assert counted(made) == {"Fargate vCPU, arm64": 1, "Fargate GB, arm64": 2, "public IPv4 address": 2}


def test_a_snapshot_is_paid_for_by_its_memory_and_a_plain_version_is_not() -> None:
    def version(**more: Any) -> dict[str, Any]:
        return template(F=("AWS::Lambda::Function", {"MemorySize": 512, **more}), V=("AWS::Lambda::Version", {"FunctionName": {"Ref": "F"}}))

    assert counted(version(SnapStart={"ApplyOn": "PublishedVersions"})) == {"SnapStart cache, GB": 0.5}
    assert counted(version()) == {}


def test_an_alarm_counts_by_its_metrics_and_a_metric_of_our_own_once() -> None:
    ours = {"Namespace": "Heliograph/Fleet", "MetricName": "Allocations"}
    several = {"Metrics": [{"MetricStat": {"Metric": ours}}, {"MetricStat": {"Metric": {"Namespace": "AWS/SQS", "MetricName": "X"}}}, {"Expression": "a+b"}]}
    made = template(One=("AWS::CloudWatch::Alarm", ours), Two=("AWS::CloudWatch::Alarm", several))
    assert counted(made) == {"alarm": 3, "metric of our own": 1}


def test_nothing_that_may_cost_money_is_passed_over() -> None:
    with pytest.raises(SystemExit, match=r"No price is known for AWS::RDS::DBCluster: add it to infra/cdk/prices.py"):
        prices.lines([template(Db=("AWS::RDS::DBCluster", {}))])
    with pytest.raises(SystemExit, match=r"No price is known for p5.48xlarge"):
        prices.lines([template(Machine=("AWS::EC2::Instance", {"InstanceType": "p5.48xlarge"}))])


def test_prices_are_dated_and_each_names_the_vendors_page() -> None:
    assert all(price.usd > 0 and price.page.startswith("aws.amazon.com/") for price in prices.PRICES.values())
    assert prices.Price(365 / 12, "month", "aws.amazon.com/").a_day == pytest.approx(1)
    assert prices.Price(1, "hour", "aws.amazon.com/").a_day == 24


def test_the_command_prints_the_sum_its_date_and_what_it_leaves_out() -> None:
    command = [sys.executable, "-m", "infra.cdk.prices", "--preset", "dev"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert ended.returncode == 0, ended.stderr
    assert f"dev, us-east-1, list prices of {prices.DATED}: " in ended.stdout
    assert "USD a day" in ended.stdout
    assert "Left out: what is used" in ended.stdout
