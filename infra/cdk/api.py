"""The stack of everything that answers: both APIs and one Lambda per entry of the route table, each with a role of its own.

Nothing here knows a route, a right, a size or a setting by name that the route table or the settings do not have; what it knows is AWS.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Final, cast

from aws_cdk import CfnOutput, Duration, RemovalPolicy, Stack
from aws_cdk import aws_apigatewayv2 as gateway
from aws_cdk import aws_apigatewayv2_authorizers as authorizers
from aws_cdk import aws_apigatewayv2_integrations as integrations
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from adapters.settings import PREFIX, Settings
from functions.routes import FUNCTIONS, Action, Authorizer, Function, Http, Queue, Resource, Socket
from infra.cdk.context import Deployment
from infra.cdk.state import SECRETS, State

SOCKET_IDENTITY: Final = "Sec-WebSocket-Protocol"
CORS_HEADERS: Final = ("authorization", "content-type", "idempotency-key", "traceparent", "x-trace-id")
CORS_EXPOSED: Final = ("apigw-requestid", "retry-after")
LOGS_KEPT: Final = logs.RetentionDays.ONE_MONTH
# An account has 10,000 requests a second in a Region, which posts to sockets share: half of them is left to the posts.
HTTP_THROTTLE: Final = gateway.ThrottleSettings(rate_limit=1_000, burst_limit=500)
SOCKET_THROTTLE: Final = gateway.ThrottleSettings(rate_limit=4_000, burst_limit=2_000)
QUEUE_CONCURRENCY: Final = 10
_LOGGED: Final = ("requestId", "requestTime", "routeKey", "status", "responseLength", "integrationErrorMessage", "error.message", "authorizer.error")
_LOGGED_HTTP: Final = ("identity.sourceIp", "responseLatency")
_LOGGED_SOCKET: Final = ("identity.sourceIp", "connectionId", "eventType", "integrationLatency")

Permission = tuple[str, str]  # IAM action, ARN


class Api(Stack):
    """The two APIs and their functions. `code` is the staged asset root; `layer` the folder of dependencies, None for a template only."""

    def __init__(self, scope: Construct, deployment: Deployment, state: State, code: Path, bundle: Callable[[], Path]) -> None:
        super().__init__(scope, f"heliograph-{deployment.stage}-api", description="Heliograph: REST and WebSocket APIs and their functions")
        self._deployment, self._state, self._stage = deployment, state, deployment.stage
        self._code = lambda_.Code.from_asset(str(code))
        self._layers = self._dependencies(bundle) if deployment.has("bundle") and self.bundling_required else []
        self._http = gateway.HttpApi(self, "Http", api_name=f"heliograph-{self._stage}-http", create_default_stage=False, cors_preflight=self._cors())
        self._socket = gateway.WebSocketApi(self, "Socket", api_name=f"heliograph-{self._stage}-socket", route_selection_expression="$request.body.action")
        self._environment = self._settings()
        self._permissions = self._translations()
        self.functions = {function.name: self._function(function) for function in FUNCTIONS}
        self._add_stages()
        self._add_routes()
        CfnOutput(self, "RestUrl", value=self._http.api_endpoint)
        CfnOutput(self, "SocketUrl", value=f"{self._socket.api_endpoint}/{self._stage}")

    def _dependencies(self, bundle: Callable[[], Path]) -> list[lambda_.LayerVersion]:
        arm, python = [lambda_.Architecture.ARM_64], [lambda_.Runtime.PYTHON_3_13]
        asset = lambda_.Code.from_asset(str(bundle()))
        return [lambda_.LayerVersion(self, "Dependencies", code=asset, compatible_architectures=arm, compatible_runtimes=python)]

    def _cors(self) -> gateway.CorsPreflightOptions | None:
        if not self._deployment.allow_origins:
            return None
        methods = {route.method for function in FUNCTIONS for route in function.routes if isinstance(route, Http)}
        return gateway.CorsPreflightOptions(
            allow_origins=list(self._deployment.allow_origins),
            allow_methods=[gateway.CorsHttpMethod[method] for method in sorted(methods)],
            allow_headers=list(CORS_HEADERS),
            expose_headers=list(CORS_EXPOSED),
            max_age=Duration.seconds(300),
        )

    def _settings(self) -> dict[str, str]:
        """The environment of every function: each setting of adapters.settings that has a value, and nothing else."""
        computed = {
            "issuer": self._http.api_endpoint,
            "connections_url": f"https://{self._socket.api_id}.execute-api.{self.region}.{self.url_suffix}/{self._stage}",
            "media_bucket": self._state.media.bucket_name,
            "media_kms_key_id": self._state.media_key.key_arn,
            **{f"{name}_queue_url": queue.queue_url for name, queue in self._state.queues.items()},
            **{spec.setting: self._state.secrets[spec.resource].ref for spec in SECRETS},
        }
        values = computed | dict(self._deployment.settings)
        return {PREFIX + item.name.upper(): values[item.name] for item in fields(Settings) if values[item.name]}

    def _translations(self) -> dict[tuple[Resource, Action], tuple[Permission, ...]]:
        """Each right of the route table as IAM says it. Redis and MongoDB know their users by other means: no IAM at all."""
        bucket, key = self._state.media, self._state.media_key.key_arn
        objects, sockets = bucket.arn_for_objects("*"), self.format_arn(service="execute-api", resource=self._socket.api_id, resource_name=self._stage)
        reading = ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes")
        return {
            ("redis", "read"): (),
            ("redis", "write"): (),
            ("mongo", "read"): (),
            ("mongo", "write"): (),
            ("connections", "post"): (("execute-api:ManageConnections", f"{sockets}/POST/@connections/*"),),
            ("connections", "close"): (("execute-api:ManageConnections", f"{sockets}/DELETE/@connections/*"),),
            **{(name, "send"): (("sqs:SendMessage", queue.queue_arn),) for name, queue in self._state.queues.items()},
            **{(name, "receive"): tuple((action, queue.queue_arn) for action in reading) for name, queue in self._state.queues.items()},
            ("media", "put"): (("s3:PutObject", objects),),
            ("media", "get"): (("s3:GetObject", objects), ("s3:ListBucket", bucket.bucket_arn)),  # without the second S3 answers 403 for a missing object
            ("media_key", "encrypt"): (("kms:GenerateDataKey", key),),
            ("media_key", "decrypt"): (("kms:Decrypt", key),),
            **{(spec.resource, "get"): (("secretsmanager:GetSecretValue", self._state.secrets[spec.resource].ref),) for spec in SECRETS},
        }

    def _function(self, function: Function) -> lambda_.Function:
        log_group = logs.LogGroup(self, f"{function.name}-log", retention=LOGS_KEPT, removal_policy=RemovalPolicy.DESTROY)
        return lambda_.Function(
            self,
            function.name,
            description=function.summary,
            runtime=lambda_.Runtime.PYTHON_3_13,
            architecture=lambda_.Architecture.ARM_64,
            code=self._code,
            layers=self._layers,
            handler=function.handler,
            memory_size=function.memory_mb,
            timeout=Duration.seconds(function.timeout_s),
            environment=self._environment,
            role=self._role(function, log_group),
            log_group=log_group,
        )

    def _role(self, function: Function, log_group: logs.LogGroup) -> iam.Role:
        """A role of its own: what the table grants, and its own log. The policy is part of the role, so nothing runs before it may."""
        wanted: dict[str, list[str]] = {}
        for action, resource in (permission for right in function.rights for permission in self._permissions[right.resource, right.action]):
            wanted.setdefault(resource, []).append(action)
        wanted[log_group.log_group_arn] = ["logs:CreateLogStream", "logs:PutLogEvents"]
        statements = [iam.PolicyStatement(actions=actions, resources=[resource]) for resource, actions in wanted.items()]
        policy = iam.PolicyDocument(statements=statements)
        principal = iam.ServicePrincipal("lambda.amazonaws.com")
        return iam.Role(self, f"{function.name}-role", assumed_by=principal, description=function.summary, inline_policies={"rights": policy})

    def _add_routes(self) -> None:
        guards = {route.identity_header: function for function in FUNCTIONS for route in function.routes if isinstance(route, Authorizer)}
        on_http, on_socket = (self.functions[guards[header].name] for header in ("authorization", SOCKET_IDENTITY.lower()))
        simple = [authorizers.HttpLambdaResponseType.SIMPLE]
        bearer = authorizers.HttpLambdaAuthorizer(
            "Bearer", on_http, identity_source=["$request.header.Authorization"], response_types=simple, results_cache_ttl=Duration.seconds(0)
        )
        ticket = authorizers.WebSocketLambdaAuthorizer("Ticket", on_socket, identity_source=[f"route.request.header.{SOCKET_IDENTITY}"])
        for function in FUNCTIONS:
            self._add_routes_of(function, bearer, ticket)

    def _add_routes_of(self, function: Function, bearer: gateway.IHttpRouteAuthorizer, ticket: gateway.IWebSocketRouteAuthorizer) -> None:
        target = self.functions[function.name]
        on_http = integrations.HttpLambdaIntegration(f"{function.name}-http", target, scope_permission_to_route=False)
        on_socket = integrations.WebSocketLambdaIntegration(f"{function.name}-socket", target)
        for route in function.routes:
            match route:
                case Http():
                    guard = bearer if route.scope is not None else None
                    self._http.add_routes(path=route.path, methods=[gateway.HttpMethod[route.method]], integration=on_http, authorizer=guard)
                case Socket():
                    entry = ticket if route.key == "$connect" else None  # the decision holds for the life of the socket
                    self._socket.add_route(route.key, integration=on_socket, authorizer=entry, return_response=route.answers)
                case Queue():
                    self._consume(target, route)
                case Authorizer():
                    pass  # made above
                case _:
                    raise ValueError(f"{route} has no translation yet")

    def _consume(self, target: lambda_.Function, queue: Queue) -> None:
        """Not the convenient event source: it would grant rights that the table does not know."""
        lambda_.EventSourceMapping(
            self,
            f"{queue.name}-source",
            target=target,
            event_source_arn=self._state.queues[queue.name].queue_arn,
            batch_size=queue.batch_size,
            report_batch_item_failures=True,
            max_concurrency=QUEUE_CONCURRENCY,
        )

    def _add_stages(self) -> None:
        http = gateway.HttpStage(self, "HttpStage", http_api=self._http, stage_name="$default", auto_deploy=True, throttle=HTTP_THROTTLE)
        socket = gateway.WebSocketStage(self, "SocketStage", web_socket_api=self._socket, stage_name=self._stage, auto_deploy=True, throttle=SOCKET_THROTTLE)
        self._log_access(http, "http-access", _LOGGED_HTTP)
        self._log_access(socket, "socket-access", _LOGGED_SOCKET)

    def _log_access(self, stage: gateway.HttpStage | gateway.WebSocketStage, name: str, also: tuple[str, ...]) -> None:
        log_group = logs.LogGroup(self, name, retention=LOGS_KEPT, removal_policy=RemovalPolicy.DESTROY)
        line = json.dumps({field: f"$context.{field}" for field in (*_LOGGED, *also)})
        plain = cast(gateway.CfnStage, stage.node.default_child)
        plain.access_log_settings = gateway.CfnStage.AccessLogSettingsProperty(destination_arn=log_group.log_group_arn, format=line)
