"""The fleet's image: the one that is named, or one that CodeBuild makes of `media_fleet/Dockerfile` while the stack is deployed.

The engineer's machine needs no Docker: what the Dockerfile copies is uploaded like the functions' code. The tag is the content's hash, so what did
not change is not built again, and a rollback finds the image of its time.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Final

from aws_cdk import ArnFormat, CfnResource, Duration, RemovalPolicy, Stack
from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3_assets as s3_assets
from constructs import Construct

from infra.cdk import lambdas
from infra.cdk.context import Deployment
from infra.cdk.nag import acknowledge, acknowledge_wildcards
from infra.cdk.retention import kept

ROOT: Final = Path(__file__).resolve().parents[2]
DOCKERFILE: Final = "media_fleet/Dockerfile"
BUILDER: Final = Path(__file__).with_name("image_builder.py")
FILES: Final = ("pyproject.toml", "constraints.txt", DOCKERFILE)
PACKAGES: Final = ("heliograph", "adapters", "media_fleet")
IMAGES_KEPT: Final = 10
BUILD_TIMEOUT: Final = Duration.minutes(12)  # shorter than the function that waits for it
_ECR_URI: Final = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/(?P<name>[^:@]+)(:(?P<tag>[\w.-]+)|@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_BUILDSPEC: Final = {
    "version": "0.2",
    "phases": {
        "build": {
            "commands": [
                'if aws ecr describe-images --repository-name "$REPOSITORY" --image-ids "imageTag=$TAG" > /dev/null 2>&1; then echo "$TAG is there"; else'
                ' aws ecr get-login-password | docker login --username AWS --password-stdin "${REPOSITORY_URI%%/*}"'
                f' && docker build --file {DOCKERFILE} --tag "$REPOSITORY_URI:$TAG" .'
                ' && docker push "$REPOSITORY_URI:$TAG"; fi',
            ]
        }
    },
}


SOURCES = (".py", ".c", ".h")


def stage_context(target: Path) -> Path:
    """Copies what the Dockerfile copies below `target`, sources only, and returns it."""
    sources = [ROOT / name for name in FILES]
    sources += [source for package in PACKAGES for source in sorted((ROOT / package).rglob("*")) if source.suffix in SOURCES]
    for source in sources:
        copy = target / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return target


class FleetImage(Construct):
    """`image` for a task definition. `built` is what a service must wait for, None where the image is there already."""

    def __init__(self, scope: Construct, deployment: Deployment) -> None:
        super().__init__(scope, "Image")
        self.built: CfnResource | None = None
        self.repository: ecr.Repository | None = None
        if deployment.own["image_uri"]:
            self.image = self._named(deployment.own["image_uri"])
            return
        self.repository = self._repository(deployment.stage)
        with tempfile.TemporaryDirectory() as folder:
            source = s3_assets.Asset(self, "Source", path=str(stage_context(Path(folder))))
        tag = f"{source.asset_hash[:32]}-{deployment.own['architecture']}"
        project = self._project(deployment, self.repository, source)
        self.built = self._build(deployment, project, tag)
        self.image = ecs.ContainerImage.from_ecr_repository(self.repository, tag)

    def _named(self, uri: str) -> ecs.ContainerImage:
        """An image in ECR needs the right to pull it; any other registry must let everybody."""
        found = _ECR_URI.fullmatch(uri)
        if found is None:
            return ecs.ContainerImage.from_registry(uri)
        arn = Stack.of(self).format_arn(
            service="ecr",
            account=found["account"],
            region=found["region"],
            resource="repository",
            resource_name=found["name"],
            arn_format=ArnFormat.SLASH_RESOURCE_NAME,
        )
        repository = ecr.Repository.from_repository_attributes(self, "Repository", repository_arn=arn, repository_name=found["name"])
        return ecs.ContainerImage.from_ecr_repository(repository, found["digest"] or found["tag"])

    def _repository(self, stage: str) -> ecr.Repository:
        return ecr.Repository(
            self,
            "Repository",
            repository_name=f"heliograph-{stage}-fleet",
            image_scan_on_push=True,
            image_tag_mutability=ecr.TagMutability.IMMUTABLE,
            lifecycle_rules=[ecr.LifecycleRule(max_image_count=IMAGES_KEPT, description="what a rollback may need")],
            encryption=ecr.RepositoryEncryption.AES_256,
            empty_on_delete=True,
            removal_policy=RemovalPolicy.DESTROY,  # an image can be built again
        )

    def _project(self, deployment: Deployment, repository: ecr.Repository, source: s3_assets.Asset) -> codebuild.Project:
        is_arm = deployment.own["architecture"] == "arm64"
        log_group = logs.LogGroup(self, "BuildLog", retention=kept(deployment), removal_policy=RemovalPolicy.DESTROY)
        role = self._build_role(repository, source, log_group)
        project = codebuild.Project(
            self,
            "Build",
            description="Makes the image of Heliograph's media fleet",
            source=codebuild.Source.s3(bucket=source.bucket, path=source.s3_object_key),
            build_spec=codebuild.BuildSpec.from_object(_BUILDSPEC),
            environment=codebuild.BuildEnvironment(
                build_image=codebuild.LinuxArmBuildImage.AMAZON_LINUX_2023_STANDARD_3_0 if is_arm else codebuild.LinuxBuildImage.AMAZON_LINUX_2023_5,
                compute_type=codebuild.ComputeType.SMALL,
                privileged=True,
                environment_variables={
                    "REPOSITORY": codebuild.BuildEnvironmentVariable(value=repository.repository_name),
                    "REPOSITORY_URI": codebuild.BuildEnvironmentVariable(value=repository.repository_uri),
                },
            ),
            role=role.without_policy_updates(),  # what it may is written out above
            grant_report_group_permissions=False,
            timeout=BUILD_TIMEOUT,
            queued_timeout=Duration.minutes(5),
            logging=codebuild.LoggingOptions(cloud_watch=codebuild.CloudWatchLoggingOptions(log_group=log_group)),
        )
        project.node.add_dependency(role)
        acknowledge(project, "AwsSolutions-CB3", "Docker builds an image inside the build's own throw-away machine, which only this stack starts.")
        acknowledge(project, "AwsSolutions-CB4", "The build keeps no artifact: its only result is an image in ECR, which is encrypted.")
        return project

    def _build_role(self, repository: ecr.Repository, source: s3_assets.Asset, log_group: logs.LogGroup) -> iam.Role:
        pushing = (
            "BatchCheckLayerAvailability",
            "InitiateLayerUpload",
            "UploadLayerPart",
            "CompleteLayerUpload",
            "PutImage",
            "BatchGetImage",
            "DescribeImages",
        )
        statements = [
            iam.PolicyStatement(actions=["s3:GetObject", "s3:GetObjectVersion"], resources=[source.bucket.arn_for_objects(source.s3_object_key)]),
            iam.PolicyStatement(actions=[f"ecr:{action}" for action in pushing], resources=[repository.repository_arn]),
            iam.PolicyStatement(actions=["ecr:GetAuthorizationToken"], resources=["*"]),
            iam.PolicyStatement(actions=["logs:CreateLogStream", "logs:PutLogEvents"], resources=[log_group.log_group_arn]),
        ]
        principal, policy = iam.ServicePrincipal("codebuild.amazonaws.com"), iam.PolicyDocument(statements=statements)
        role = iam.Role(self, "BuildRole", assumed_by=principal, description="Builds the fleet's image", inline_policies={"rights": policy})
        acknowledge_wildcards(role, ["*"], "ecr:GetAuthorizationToken knows no resource; what the token opens is the other statements' matter.")
        return role

    def _build(self, deployment: Deployment, project: codebuild.Project, tag: str) -> CfnResource:
        """The function waits for the build: minutes of a small function are cheaper and plainer than a framework of states around it."""
        log_group = logs.LogGroup(self, "BuilderLog", retention=kept(deployment), removal_policy=RemovalPolicy.DESTROY)
        statements = [
            iam.PolicyStatement(actions=["codebuild:StartBuild", "codebuild:BatchGetBuilds", "codebuild:StopBuild"], resources=[project.project_arn]),
            iam.PolicyStatement(actions=["logs:CreateLogStream", "logs:PutLogEvents"], resources=[log_group.log_group_arn]),
        ]
        principal, policy = iam.ServicePrincipal("lambda.amazonaws.com"), iam.PolicyDocument(statements=statements)
        role = iam.Role(self, "BuilderRole", assumed_by=principal, description="Starts the build of the fleet's image", inline_policies={"rights": policy})
        builder = lambda_.Function(
            self,
            "Builder",
            description="Builds the fleet's image while CloudFormation waits",
            runtime=lambdas.RUNTIME,
            architecture=lambdas.processor(deployment),
            code=lambda_.Code.from_inline(BUILDER.read_text()),
            handler="index.handler",
            memory_size=256,
            timeout=Duration.minutes(15),
            retry_attempts=0,  # a second try would build twice
            role=role,
            log_group=log_group,
        )
        why = {
            "AwsSolutions-L1": "Python 3.13 is the version that the product is tested with.",
            "Serverless-LambdaLatestVersion": "Python 3.13 is the version that the product is tested with.",
            "Serverless-LambdaAsyncFailureDestination": "CloudFormation waits for the answer: what fails here fails the deployment in sight.",
            "Serverless-LambdaDLQ": "CloudFormation waits for the answer: what fails here fails the deployment in sight.",
            "Serverless-LambdaTracing": "It runs once per deployment and writes what it did into the build's log.",
        }
        for finding, reason in why.items():
            acknowledge(builder, finding, reason)
        properties = {"ServiceToken": builder.function_arn, "ServiceTimeout": 960, "Project": project.project_name, "Tag": tag}
        return CfnResource(self, "Built", type="Custom::HeliographFleetImage", properties=properties)
