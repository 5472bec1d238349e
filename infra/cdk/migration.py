"""The stack between what is kept and what answers: a custom resource that migrates the ledger, so that functions only change after it did.

A stack of its own: a migration that is refused stops the deployment before the APIs, and takes nothing back there. It runs when the table of
collections changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from aws_cdk import CustomResource, Duration, RemovalPolicy, Stack
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from adapters import migrations_mongo
from infra.cdk import assets, lambdas
from infra.cdk.context import Deployment
from infra.cdk.nag import acknowledge
from infra.cdk.network import Network
from infra.cdk.retention import kept
from infra.cdk.state import State

HANDLER: Final = "functions.migration.handler.handler"
TIMEOUT: Final = Duration.minutes(15)  # the longest Lambda allows: an index of a large collection takes its time
ANSWERED_WITHIN: Final = Duration.minutes(20)  # CloudFormation waits an hour unless it is told; Lambda may begin an event a little late
MEMORY_MB: Final = 256


class Migration(Stack):
    """The function and the resource that runs it; `api` must depend on this stack. `code` is the staged asset root; `bundle` makes the folder of a layer."""

    def __init__(
        self,
        scope: Construct,
        deployment: Deployment,
        network: Network | None,
        state: State,
        code: Path,
        bundle: Callable[[str], Path],
    ) -> None:
        words = "Heliograph: migrates the ledger before the functions change"
        super().__init__(scope, f"heliograph-{deployment.stage}-migration", description=words, env=deployment.env)
        self._deployment, self._network = deployment, network
        self._secret_arn = state.secrets["mongo_uri"].ref
        self.function = self._function(lambda_.Code.from_asset(str(code)), bundle)
        CustomResource(
            self,
            "Ledger",
            resource_type="Custom::HeliographMigration",
            service_token=self.function.function_arn,
            service_timeout=ANSWERED_WITHIN,
            removal_policy=RemovalPolicy.DESTROY,  # of the resource: at its end the function leaves the ledger as it is
            properties={"SecretId": self._secret_arn, "Database": deployment.settings["mongodb_database"], "Table": migrations_mongo.fingerprint()},
        )

    def _function(self, code: lambda_.Code, bundle: Callable[[str], Path]) -> lambda_.Function:
        log_group = logs.LogGroup(self, "Log", retention=kept(self._deployment), removal_policy=RemovalPolicy.DESTROY)
        is_bundled = self._deployment.has("bundle") and self.bundling_required
        layers = lambdas.layers(self, self._deployment, assets.layers_of(HANDLER), bundle) if is_bundled else {}
        made = lambda_.Function(
            self,
            "Function",
            description="Migrates the ledger when CloudFormation asks.",
            runtime=lambdas.RUNTIME,
            architecture=lambdas.processor(self._deployment),
            code=code,
            layers=list(layers.values()),
            handler=HANDLER,
            memory_size=MEMORY_MB,
            timeout=TIMEOUT,
            role=self._role(log_group),
            log_group=log_group,
            # In the VPC where there is one: what it cannot reach from there, the functions cannot either. Answers go to S3, which has an endpoint.
            **(lambdas.inside(self._network) if self._network else {}),
        )
        lambdas.trace(made)
        acknowledge(made, "Serverless-LambdaDLQ", "CloudFormation waits for its answer, and the deployment fails when none comes.")
        return made

    def _role(self, log_group: logs.LogGroup) -> iam.Role:
        """A role of its own: one secret, its own log, its traces. The policy is part of the role, so nothing runs before it may."""
        statements = [
            iam.PolicyStatement(actions=["secretsmanager:GetSecretValue"], resources=[self._secret_arn]),
            iam.PolicyStatement(actions=["logs:CreateLogStream", "logs:PutLogEvents"], resources=[log_group.log_group_arn]),
            *lambdas.rights_of_all(is_inside=self._network is not None),
        ]
        principal, rights = iam.ServicePrincipal("lambda.amazonaws.com"), {"rights": iam.PolicyDocument(statements=statements)}
        role = iam.Role(self, "Role", assumed_by=principal, description="Migrates the ledger", inline_policies=rights)
        lambdas.explain_rights_of_all(role, is_inside=self._network is not None)
        return role
