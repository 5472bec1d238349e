"""What a deployment costs a day when nobody talks: `python -m infra.cdk.prices --preset dev`, by list prices and from the templates themselves.

A resource type without a price here must be one of those that cost nothing while nobody uses them; any other stops the count.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DATED: Final = "2026-11-25"
REGION: Final = "us-east-1"
HOURS_A_DAY: Final = 24
DAYS_A_MONTH: Final = 365 / 12
SECONDS_A_DAY: Final = 86_400
REDIS_LEAST_GB: Final = 0.1  # what an empty cache of Valkey is metered as
ALARMS_OF_TARGET_TRACKING: Final = 2  # AWS makes them for each policy; they stand in no template
OF_CAPACITY: Final = 2  # likewise for a capacity provider that scales its machines
LEFT_OUT: Final = (
    "what is used (requests, traffic, stored bytes, log lines, builds, CPU credits), MongoDB (of Atlas the endpoint is counted, the cluster is not), "
    "taxes, and every free tier"
)


@dataclass(frozen=True, slots=True)
class Price:
    """One list price. `seen` says where the number was found again beside the vendor's own page, which no offline reader can open; empty: nowhere."""

    usd: float
    per: str  # hour, month or second
    page: str
    seen: str = ""

    @property
    def a_day(self) -> float:
        return self.usd * {"hour": HOURS_A_DAY, "month": 1 / DAYS_A_MONTH, "second": SECONDS_A_DAY}[self.per]


_EC2, _VPC, _CLOUDWATCH = "aws.amazon.com/ec2/pricing/on-demand", "aws.amazon.com/vpc/pricing", "aws.amazon.com/cloudwatch/pricing"
PRICES: Final = {
    "t4g.nano": Price(0.0042, "hour", _EC2, "egresscost.com, 2026-03"),
    "t4g.micro": Price(0.0084, "hour", _EC2, "price tables of several public repositories, 2026-01"),
    "t4g.small": Price(0.0168, "hour", _EC2, "price tables of several public repositories, 2026-01"),
    "t3.micro": Price(0.0104, "hour", _EC2, "price tables of several public repositories, 2026-01"),
    "c7gn.medium": Price(0.0624, "hour", _EC2),
    "c7gn.large": Price(0.1248, "hour", _EC2),
    "disk of gp3, GB": Price(0.08, "month", "aws.amazon.com/ebs/pricing", "a price table of a public repository"),
    "public IPv4 address": Price(0.005, "hour", _VPC, "cloudburn.io, 2026-02"),
    "NAT gateway": Price(0.045, "hour", _VPC, "cloudburn.io, 2026-02"),
    "interface endpoint, zone": Price(0.01, "hour", "aws.amazon.com/privatelink/pricing", "egresscost.com, 2026-03 (7.20 USD a month)"),
    "Network Load Balancer": Price(0.0225, "hour", "aws.amazon.com/elasticloadbalancing/pricing", "clustercost.com, 2025"),
    "ElastiCache Serverless for Valkey, GB": Price(0.084, "hour", "aws.amazon.com/elasticache/pricing", "usage.ai, 2026-06; at least 100 MB"),
    "KMS key": Price(1.0, "month", "aws.amazon.com/kms/pricing", "cloudburn.io, 2026-03"),
    "secret": Price(0.40, "month", "aws.amazon.com/secrets-manager/pricing", "hivebook.wiki"),
    "alarm": Price(0.10, "month", _CLOUDWATCH),
    "dashboard": Price(3.0, "month", _CLOUDWATCH, "nishinoshake/aws-rough issue 37, 2022"),
    "metric of our own": Price(0.30, "month", _CLOUDWATCH, "nishinoshake/aws-rough issue 37, 2022"),
    "web ACL": Price(5.0, "month", "aws.amazon.com/waf/pricing", "c3x.dev, 2026"),
    "rule of a web ACL": Price(1.0, "month", "aws.amazon.com/waf/pricing", "c3x.dev, 2026"),
    "SnapStart cache, GB": Price(0.0000015046, "second", "aws.amazon.com/lambda/pricing", "awsnegotiations.com, 2026-05"),
    "Fargate vCPU, arm64": Price(0.03238, "hour", "aws.amazon.com/fargate/pricing"),
    "Fargate GB, arm64": Price(0.00356, "hour", "aws.amazon.com/fargate/pricing"),
    "Fargate vCPU, x86_64": Price(0.04048, "hour", "aws.amazon.com/fargate/pricing"),
    "Fargate GB, x86_64": Price(0.004445, "hour", "aws.amazon.com/fargate/pricing"),
}
FREE: Final = re.compile(  # paid for by use, or by nothing
    r"""AWS::(
    ApiGatewayV2::\w+|ApiGateway::Account|ApplicationAutoScaling::\w+|AutoScaling::(LifecycleHook|WarmPool|ScheduledAction)|Budgets::Budget|CDK::Metadata
    |CloudFormation::\w+|CloudFront::\w+|CodeBuild::\w+|EC2::(VPC|VPCCidrBlock|Subnet|RouteTable|SubnetRouteTableAssociation|Route|InternetGateway
    |VPCGatewayAttachment|EgressOnlyInternetGateway|FlowLog|SecurityGroup|SecurityGroupIngress|SecurityGroupEgress|LaunchTemplate|EIPAssociation)
    |ECR::Repository|ECS::(Cluster|ClusterCapacityProviderAssociations|TaskDefinition)|ElastiCache::(User|UserGroup)
    |ElasticLoadBalancingV2::(Listener|ListenerRule|TargetGroup)|Events::Rule|IAM::\w+|KMS::Alias
    |Lambda::(Alias|EventInvokeConfig|EventSourceMapping|Function|LayerVersion|Permission|Url)|Logs::\w+|S3::\w+|SNS::\w+|SQS::\w+|SSM::Parameter
    |SecretsManager::(ResourcePolicy|RotationSchedule)|WAFv2::(LoggingConfiguration|WebACLAssociation)
    )|Custom::.+|MongoDB::Atlas::.+""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Line:
    """So many of one price."""

    name: str
    amount: float

    @property
    def usd_a_day(self) -> float:
        return PRICES[self.name].a_day * self.amount


class Templates:
    """The resources of every stack of one deployment; a name of one stack may stand in another."""

    def __init__(self, templates: Iterable[Mapping[str, Any]]) -> None:
        self._all = [(number, name, item) for number, template in enumerate(templates) for name, item in template.get("Resources", {}).items()]

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        return [item.get("Properties", {}) for _, _, item in self._all if item["Type"] == kind]

    def referred(self, beside: Mapping[str, Any], reference: Any) -> dict[str, Any]:
        """The resource that a `Ref` beside these properties names."""
        (stack,) = {number for number, _, item in self._all if item.get("Properties", {}) is beside}
        (found,) = [item.get("Properties", {}) for number, name, item in self._all if number == stack and name == reference["Ref"]]
        return dict(found)

    @property
    def types(self) -> set[str]:
        return {item["Type"] for _, _, item in self._all}


def lines(templates: Iterable[Mapping[str, Any]]) -> list[Line]:
    """What these templates make, counted and summed by price. SystemExit names a resource or an instance type that has no price here."""
    made = Templates(templates)
    unknown = sorted(kind for kind in made.types if kind not in _COUNTED and not FREE.fullmatch(kind))
    if unknown:
        raise SystemExit(f"No price is known for {', '.join(unknown)}: add it to infra/cdk/prices.py.")
    summed: dict[str, float] = {}
    for count in dict.fromkeys(_COUNTED.values()):
        for name, amount in count(made):
            if name not in PRICES:
                raise SystemExit(f"No price is known for {name}: add it to infra/cdk/prices.py.")
            summed[name] = summed.get(name, 0) + amount
    return [Line(name, amount) for name, amount in summed.items() if amount]


_Counts = Iterator[tuple[str, float]]


def _machines(made: Templates) -> _Counts:
    """Machines of groups, at their least; those alone; their disks; and the address of each that has no fixed one."""
    relays = fixed = 0
    for group in made.of_type("AWS::AutoScaling::AutoScalingGroup"):
        data = made.referred(group, group["LaunchTemplate"]["LaunchTemplateId"])["LaunchTemplateData"]
        least = int(group["MinSize"])
        yield data["InstanceType"], least
        yield from (("disk of gp3, GB", least * disk["Ebs"]["VolumeSize"]) for disk in data.get("BlockDeviceMappings", []))
        relays += least * any(part.get("AssociatePublicIpAddress") for part in data.get("NetworkInterfaces", []))
    for machine in made.of_type("AWS::EC2::Instance"):
        yield machine["InstanceType"], 1
        yield from (("disk of gp3, GB", disk["Ebs"]["VolumeSize"]) for disk in machine.get("BlockDeviceMappings", []))
        yield "public IPv4 address", any(part.get("AssociatePublicIpAddress") for part in machine.get("NetworkInterfaces", []))
    for address in made.of_type("AWS::EC2::EIP"):
        fixed += any(tag["Key"] == "heliograph:relay" for tag in address.get("Tags", []))
        yield "public IPv4 address", 1
    yield "public IPv4 address", max(0, relays - fixed)  # a relay gives its own back when it takes a fixed one


def _tasks(made: Templates) -> _Counts:
    """Tasks of Fargate, with an address each."""
    for service in made.of_type("AWS::ECS::Service"):
        if service.get("LaunchType") != "FARGATE" and "FARGATE" not in json.dumps(service.get("CapacityProviderStrategy", [])):
            continue
        task, count = made.referred(service, service["TaskDefinition"]), service.get("DesiredCount", 1)
        kind = "x86_64" if task.get("RuntimePlatform", {}).get("CpuArchitecture") == "X86_64" else "arm64"
        yield f"Fargate vCPU, {kind}", count * int(task["Cpu"]) / 1024
        yield f"Fargate GB, {kind}", count * int(task["Memory"]) / 1024
        yield "public IPv4 address", count * ("ENABLED" in json.dumps(service.get("NetworkConfiguration", {})))


def _network(made: Templates) -> _Counts:
    yield "NAT gateway", len(made.of_type("AWS::EC2::NatGateway"))
    for endpoint in made.of_type("AWS::EC2::VPCEndpoint"):
        yield "interface endpoint, zone", len(endpoint["SubnetIds"]) if endpoint["VpcEndpointType"] == "Interface" else 0
    for balancer in made.of_type("AWS::ElasticLoadBalancingV2::LoadBalancer"):
        yield "Network Load Balancer", 1
        yield "public IPv4 address", len(balancer["Subnets"]) * (balancer["Scheme"] == "internet-facing")


def _kept(made: Templates) -> _Counts:
    yield "ElastiCache Serverless for Valkey, GB", REDIS_LEAST_GB * len(made.of_type("AWS::ElastiCache::ServerlessCache"))
    yield "KMS key", len(made.of_type("AWS::KMS::Key"))
    yield "secret", len(made.of_type("AWS::SecretsManager::Secret"))


def _watched(made: Templates) -> _Counts:
    alarms, dashboards = made.of_type("AWS::CloudWatch::Alarm"), made.of_type("AWS::CloudWatch::Dashboard")
    policies = [policy for policy in made.of_type("AWS::ApplicationAutoScaling::ScalingPolicy") if policy["PolicyType"] == "TargetTrackingScaling"]
    scaled = [
        item for item in made.of_type("AWS::ECS::CapacityProvider") if "ENABLED" in json.dumps(item["AutoScalingGroupProvider"].get("ManagedScaling", {}))
    ]
    yield "alarm", sum(map(_metrics_of, alarms)) + ALARMS_OF_TARGET_TRACKING * len(policies) + OF_CAPACITY * len(scaled)
    yield "dashboard", len(dashboards)
    named = {(item["Namespace"], item["MetricName"]) for item in _statistics(alarms) if not item["Namespace"].startswith("AWS/")}
    shown = re.findall(r'\[\\*"([A-Za-z][\w/]*)\\*",\\*"(\w+)\\*"', json.dumps(dashboards))
    yield "metric of our own", len(named | {(space, name) for space, name in shown if not space.startswith("AWS/")})


def _metrics_of(alarm: Mapping[str, Any]) -> int:
    """An alarm over an expression is paid for each metric in it."""
    return max(1, sum("MetricStat" in part for part in alarm.get("Metrics", [])))


def _statistics(alarms: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for alarm in alarms:
        if "MetricName" in alarm:
            yield alarm
        yield from (part["MetricStat"]["Metric"] for part in alarm.get("Metrics", []) if "MetricStat" in part)


def _guarded(made: Templates) -> _Counts:
    for acl in made.of_type("AWS::WAFv2::WebACL"):
        yield "web ACL", 1
        yield "rule of a web ACL", len(acl.get("Rules", []))


def _snapshots(made: Templates) -> _Counts:
    """A published version of a function with SnapStart keeps its memory in a cache."""
    for version in made.of_type("AWS::Lambda::Version"):
        function = made.referred(version, version["FunctionName"])
        yield "SnapStart cache, GB", function.get("MemorySize", 128) / 1024 * ("SnapStart" in function)


_COUNTED: Final[dict[str, Callable[[Templates], _Counts]]] = {
    "AWS::AutoScaling::AutoScalingGroup": _machines,
    "AWS::EC2::Instance": _machines,
    "AWS::EC2::EIP": _machines,
    "AWS::ECS::Service": _tasks,
    "AWS::EC2::NatGateway": _network,
    "AWS::EC2::VPCEndpoint": _network,
    "AWS::ElasticLoadBalancingV2::LoadBalancer": _network,
    "AWS::ElastiCache::ServerlessCache": _kept,
    "AWS::KMS::Key": _kept,
    "AWS::SecretsManager::Secret": _kept,
    "AWS::CloudWatch::Alarm": _watched,
    "AWS::CloudWatch::Dashboard": _watched,
    "AWS::ECS::CapacityProvider": _watched,
    "AWS::WAFv2::WebACL": _guarded,
    "AWS::Lambda::Version": _snapshots,
}


def total(counted: Iterable[Line]) -> float:
    """USD a day."""
    return math.fsum(line.usd_a_day for line in counted)


def table(preset: str, counted: list[Line]) -> str:
    rows = [f"{'what':<40}{'how many':>9}{'USD':>14} {'each':<8}{'USD a day':>10}  price from"]
    for line in sorted(counted, key=lambda line: -line.usd_a_day):
        price = PRICES[line.name]
        number = f"{price.usd:.10f}".rstrip("0").rstrip(".")
        rows.append(f"{line.name:<40}{line.amount:>9g}{number:>14} {price.per:<8}{line.usd_a_day:>10.4f}  {price.page}{'' if price.seen else ' (*)'}")
    rows.append(
        f"{preset}, {REGION}, list prices of {DATED}: {total(counted):.2f} USD a day, {total(counted) * DAYS_A_MONTH:.0f} USD a month, when nobody talks."
    )
    rows.append(f"Left out: {LEFT_OUT}.")
    if any(not PRICES[line.name].seen for line in counted):
        rows.append("(*) found on no second page: look at the vendor's before you rely on it.")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    """Synthesises the deployment and prints what it costs."""
    from infra.cdk import context
    from infra.cdk.app import synthesise

    parser = argparse.ArgumentParser(prog="python -m infra.cdk.prices", description=__doc__)
    parser.add_argument("--preset", default="dev", choices=context.PRESETS)
    parser.add_argument("-c", "--context", action="append", default=[], metavar="heliograph:NAME=VALUE", help="another context setting, as for `cdk`")
    chosen = parser.parse_args(arguments)
    given = {f"{context.PREFIX}stage": "prices", f"{context.PREFIX}preset": chosen.preset, f"{context.PREFIX}region": REGION}
    with tempfile.TemporaryDirectory() as folder:
        assembly = synthesise(given | context.arguments(chosen.context), Path(folder))
        templates = [json.loads(Path(stack.template_full_path).read_text()) for stack in assembly.stacks]
    sys.stdout.write(table(chosen.preset, lines(templates)) + "\n")


if __name__ == "__main__":
    main()
