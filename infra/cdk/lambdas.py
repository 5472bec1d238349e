"""What the stacks' Lambdas have in common: runtime, processor, layers, the way into the VPC, traces, and what is said to cdk-nag about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, cast

from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from infra.cdk import assets
from infra.cdk.context import Deployment
from infra.cdk.nag import acknowledge
from infra.cdk.network import Network

RUNTIME: Final = lambda_.Runtime.PYTHON_3_13
TRACING: Final = ("xray:PutTraceSegments", "xray:PutTelemetryRecords")
_IN_VPC: Final = (  # what Lambda does with the function's role
    "ec2:CreateNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:DeleteNetworkInterface",
    "ec2:AssignPrivateIpAddresses",
    "ec2:UnassignPrivateIpAddresses",
)


def processor(deployment: Deployment) -> lambda_.Architecture:
    """The one that was chosen; wheels of the layers are for it alone."""
    return {"arm64": lambda_.Architecture.ARM_64, "x86_64": lambda_.Architecture.X86_64}[deployment.own["architecture"]]


def layers(scope: Construct, deployment: Deployment, names: Iterable[str], bundle: Callable[[str], Path]) -> dict[str, lambda_.LayerVersion]:
    """These layers by name; `bundle` makes the folder of one."""
    return {
        name: lambda_.LayerVersion(
            scope,
            f"{name}-layer",
            description=", ".join(assets.LAYERS[name].values()),
            code=lambda_.Code.from_asset(str(bundle(name))),
            compatible_architectures=[processor(deployment)],
            compatible_runtimes=[RUNTIME],
        )
        for name in names
    }


def inside(network: Network) -> dict[str, Any]:
    """Arguments of a function that stands in the VPC."""
    private = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS)
    return {"vpc": network.vpc, "vpc_subnets": private, "security_groups": [network.functions_group], "ipv6_allowed_for_dual_stack": True}


def rights_of_all(*, is_inside: bool) -> list[iam.PolicyStatement]:
    """What every function needs of services that have no resource to name: traces and, in the VPC, network interfaces.

    Lambda makes interfaces with the function's role; the function's code must not (Lambda developer guide, "Giving Lambda functions access to a VPC").
    """
    statements = [iam.PolicyStatement(actions=list(TRACING), resources=["*"])]
    if is_inside:
        from_code = {"Null": {"lambda:SourceFunctionArn": "false"}}
        statements.append(iam.PolicyStatement(actions=list(_IN_VPC), resources=["*"]))
        statements.append(iam.PolicyStatement(effect=iam.Effect.DENY, actions=list(_IN_VPC), resources=["*"], conditions=from_code))
    return statements


def explain_rights_of_all(role: iam.Role, *, is_inside: bool) -> None:
    """Says so to cdk-nag."""
    why = "X-Ray has no resources to name" + (
        ", nor has EC2 for an interface that is not there yet: the function's own code is denied it." if is_inside else "."
    )
    acknowledge(role, "AwsSolutions-IAM5[Resource::*]", why)
    acknowledge(role, "Serverless-LambdaStarPermissions", why)


def trace(function: lambda_.Function) -> None:
    """Not by the convenient property: that would add a policy of its own beside the role's. And why the runtime is not the newest."""
    cast(lambda_.CfnFunction, function.node.default_child).tracing_config = lambda_.CfnFunction.TracingConfigProperty(mode="Active")
    for finding in ("AwsSolutions-L1", "Serverless-LambdaLatestVersion"):
        acknowledge(function, finding, "The layers hold wheels for Python 3.13; a newer one comes with wheels and tests for it.")
