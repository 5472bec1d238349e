"""What really exists at a stand-in, per CloudFormation type, asked of each service itself and not of CloudFormation: moto answers CREATE_COMPLETE for
types that it skips."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

# CloudFormation type -> (service, operation, where the items stand in its answer)
LISTED: Final = {
    "AWS::ApiGatewayV2::Api": ("apigatewayv2", "get_apis", "Items"),
    "AWS::AutoScaling::AutoScalingGroup": ("autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups"),
    "AWS::CloudFront::Distribution": ("cloudfront", "list_distributions", "DistributionList.Items"),
    "AWS::CloudWatch::Alarm": ("cloudwatch", "describe_alarms", "MetricAlarms"),
    "AWS::CloudWatch::Dashboard": ("cloudwatch", "list_dashboards", "DashboardEntries"),
    "AWS::CodeBuild::Project": ("codebuild", "list_projects", "projects"),
    "AWS::EC2::EIP": ("ec2", "describe_addresses", "Addresses"),
    "AWS::EC2::EgressOnlyInternetGateway": ("ec2", "describe_egress_only_internet_gateways", "EgressOnlyInternetGateways"),
    "AWS::EC2::FlowLog": ("ec2", "describe_flow_logs", "FlowLogs"),
    "AWS::EC2::InternetGateway": ("ec2", "describe_internet_gateways", "InternetGateways"),
    "AWS::EC2::LaunchTemplate": ("ec2", "describe_launch_templates", "LaunchTemplates"),
    "AWS::EC2::NatGateway": ("ec2", "describe_nat_gateways", "NatGateways"),
    "AWS::EC2::RouteTable": ("ec2", "describe_route_tables", "RouteTables"),
    "AWS::EC2::SecurityGroup": ("ec2", "describe_security_groups", "SecurityGroups"),
    "AWS::EC2::Subnet": ("ec2", "describe_subnets", "Subnets"),
    "AWS::EC2::VPC": ("ec2", "describe_vpcs", "Vpcs"),
    "AWS::EC2::VPCEndpoint": ("ec2", "describe_vpc_endpoints", "VpcEndpoints"),
    "AWS::ECR::Repository": ("ecr", "describe_repositories", "repositories"),
    "AWS::ECS::Cluster": ("ecs", "list_clusters", "clusterArns"),
    "AWS::ECS::TaskDefinition": ("ecs", "list_task_definitions", "taskDefinitionArns"),
    "AWS::ElastiCache::ServerlessCache": ("elasticache", "describe_serverless_caches", "ServerlessCaches"),
    "AWS::ElastiCache::User": ("elasticache", "describe_users", "Users"),
    "AWS::ElastiCache::UserGroup": ("elasticache", "describe_user_groups", "UserGroups"),
    "AWS::ElasticLoadBalancingV2::LoadBalancer": ("elbv2", "describe_load_balancers", "LoadBalancers"),
    "AWS::ElasticLoadBalancingV2::TargetGroup": ("elbv2", "describe_target_groups", "TargetGroups"),
    "AWS::Events::Rule": ("events", "list_rules", "Rules"),
    "AWS::IAM::Role": ("iam", "list_roles", "Roles"),
    "AWS::KMS::Key": ("kms", "list_keys", "Keys"),
    "AWS::Lambda::EventSourceMapping": ("lambda", "list_event_source_mappings", "EventSourceMappings"),
    "AWS::Lambda::Function": ("lambda", "list_functions", "Functions"),
    "AWS::Lambda::LayerVersion": ("lambda", "list_layers", "Layers"),
    "AWS::Logs::LogGroup": ("logs", "describe_log_groups", "logGroups"),
    "AWS::S3::Bucket": ("s3", "list_buckets", "Buckets"),
    "AWS::SNS::Topic": ("sns", "list_topics", "Topics"),
    "AWS::SQS::Queue": ("sqs", "list_queues", "QueueUrls"),
    "AWS::SecretsManager::Secret": ("secretsmanager", "list_secrets", "SecretList"),
}
NO_RESOURCE: Final = frozenset({"AWS::CDK::Metadata"})  # a note for AWS, which nothing lists


def items(session: Any, service: str, operation: str, where: str, **arguments: Any) -> list[Any]:
    """Every item of a list operation, all its pages."""
    client = session.client(service)
    pages = client.get_paginator(operation).paginate(**arguments) if client.can_paginate(operation) else [getattr(client, operation)(**arguments)]
    found: list[Any] = []
    for page in pages:
        for part in where.split("."):
            page = page.get(part) or {}
        found += list(page)
    return found


def _of_apis(operation: str) -> Callable[[Any], int]:
    def count(session: Any) -> int:
        return sum(len(items(session, "apigatewayv2", operation, "Items", ApiId=api["ApiId"])) for api in items(session, *LISTED["AWS::ApiGatewayV2::Api"]))

    return count


def _route_responses(session: Any) -> int:
    client, found = session.client("apigatewayv2"), 0
    for api in items(session, *LISTED["AWS::ApiGatewayV2::Api"]):
        for route in items(session, "apigatewayv2", "get_routes", "Items", ApiId=api["ApiId"]):
            found += len(client.get_route_responses(ApiId=api["ApiId"], RouteId=route["RouteId"])["Items"])
    return found


def _policies(session: Any, names: Iterator[str], ask: Callable[[str], str | None]) -> int:
    found = 0
    for name in names:
        try:
            found += bool(ask(name))
        except ClientError:
            continue  # there is none
    return found


def _bucket_policies(session: Any) -> int:
    client = session.client("s3")
    names = (bucket["Name"] for bucket in items(session, *LISTED["AWS::S3::Bucket"]))
    return _policies(session, names, lambda name: client.get_bucket_policy(Bucket=name)["Policy"])


def _queue_policies(session: Any) -> int:
    client = session.client("sqs")
    queues = iter(items(session, *LISTED["AWS::SQS::Queue"]))
    return _policies(session, queues, lambda url: client.get_queue_attributes(QueueUrl=url, AttributeNames=["Policy"]).get("Attributes", {}).get("Policy"))


def _lambda_permissions(session: Any) -> int:
    client, found = session.client("lambda"), 0
    for function in items(session, *LISTED["AWS::Lambda::Function"]):
        for qualifier in (None, *_aliases_of(session, function["FunctionName"])):
            try:
                policy = client.get_policy(FunctionName=function["FunctionName"], **({"Qualifier": qualifier} if qualifier else {}))["Policy"]
            except ClientError:
                continue  # nobody may call it
            found += len(json.loads(policy)["Statement"])
    return found


def _aliases_of(session: Any, function: str) -> list[str]:
    return [alias["Name"] for alias in items(session, "lambda", "list_aliases", "Aliases", FunctionName=function)]


def _aliases(session: Any) -> int:
    return sum(len(_aliases_of(session, function["FunctionName"])) for function in items(session, *LISTED["AWS::Lambda::Function"]))


def _versions(session: Any) -> int:
    functions = items(session, *LISTED["AWS::Lambda::Function"])
    return sum(len(items(session, "lambda", "list_versions_by_function", "Versions", FunctionName=each["FunctionName"])) - 1 for each in functions)


NESTED: Final[dict[str, Callable[[Any], int]]] = {
    "AWS::ApiGatewayV2::Authorizer": _of_apis("get_authorizers"),
    "AWS::ApiGatewayV2::Integration": _of_apis("get_integrations"),
    "AWS::ApiGatewayV2::Route": _of_apis("get_routes"),
    "AWS::ApiGatewayV2::RouteResponse": _route_responses,
    "AWS::ApiGatewayV2::Stage": _of_apis("get_stages"),
    "AWS::Lambda::Alias": _aliases,
    "AWS::Lambda::Permission": _lambda_permissions,
    "AWS::Lambda::Version": _versions,
    "AWS::S3::BucketPolicy": _bucket_policies,
    "AWS::SQS::QueuePolicy": _queue_policies,
}


def count(session: Any, kind: str) -> int | None:
    """How many of this type there are; None when the stand-in cannot be asked, or we do not know how."""
    try:
        if kind in NESTED:
            return NESTED[kind](session)
        return len(items(session, *LISTED[kind])) if kind in LISTED else None
    except (ClientError, BotoCoreError, ResponseParserError):
        return None  # the last: a page of HTML from a server that failed


def snapshot(session: Any, kinds: Iterator[str] | Counter[str]) -> dict[str, int | None]:
    """How many there are of each of these types."""
    return {kind: count(session, kind) for kind in sorted(kinds)}


def compare(wanted: Counter[str], before: dict[str, int | None], after: dict[str, int | None]) -> dict[str, dict[str, Any]]:
    """Per type what the templates hold and what was made: `made` is None where nobody can be asked."""
    rows = {}
    for kind, number in sorted(wanted.items()):
        now, then = after.get(kind), before.get(kind)
        rows[kind] = {"in_templates": number, "made": None if now is None or then is None else now - then}
    return rows


def not_made(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Types of which fewer exist than the templates hold."""
    return [kind for kind, row in rows.items() if row["made"] is not None and row["made"] < row["in_templates"]]


def not_asked(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Types whose existence could not be asked."""
    return [kind for kind, row in rows.items() if row["made"] is None and kind not in NO_RESOURCE]
