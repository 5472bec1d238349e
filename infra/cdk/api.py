"""The stack of everything that answers: both APIs and one Lambda per entry of the route table, each with a role of its own.

Nothing here knows a route, a right, a size or a setting by name that the route table or the settings do not have; what it knows is AWS.
What answers is always the alias `live` of a published version, so that a deployment changes a function at once or not at all.
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
from infra.cdk import assets, lambdas
from infra.cdk.concurrency import QUEUE_CONCURRENCY, reserved
from infra.cdk.context import Deployment
from infra.cdk.edge import Edge, Firewall
from infra.cdk.nag import acknowledge, acknowledge_wildcards
from infra.cdk.network import Network
from infra.cdk.retention import kept
from infra.cdk.state import SECRETS, State

SOCKET_IDENTITY: Final = "Sec-WebSocket-Protocol"
CORS_HEADERS: Final = ("authorization", "content-type", "idempotency-key", "traceparent", "x-trace-id")
CORS_EXPOSED: Final = ("apigw-requestid", "retry-after")
# An account has 10,000 requests a second in a Region, which posts to sockets share: half of them is left to the posts.
HTTP_THROTTLE: Final = gateway.ThrottleSettings(rate_limit=1_000, burst_limit=500)
SOCKET_THROTTLE: Final = gateway.ThrottleSettings(rate_limit=4_000, burst_limit=2_000)
_LOGGED: Final = ("requestId", "requestTime", "routeKey", "status", "responseLength", "integrationErrorMessage", "error.message", "authorizer.error")
_LOGGED_HTTP: Final = ("identity.sourceIp", "responseLatency")
_LOGGED_SOCKET: Final = ("identity.sourceIp", "connectionId", "eventType", "integrationLatency")
_CALLER: Final = "authorizer.address"  # whose request it is, where the source is CloudFront

ALIAS: Final = "live"
Permission = tuple[str, str]  # IAM action, ARN


class Api(Stack):
    """The two APIs and their functions, by route table, and what stands before them.

    `code` is the staged asset root; `bundle` makes the folder of a layer of dependencies. For alarms: `functions`, `aliases`, `http`, `socket`, `http_stage`,
    `socket_stage`, `edge` (None where nobody stands before the APIs). `rest_url` and `socket_url` are what clients are told.
    """

    def __init__(
        self,
        scope: Construct,
        deployment: Deployment,
        network: Network | None,
        state: State,
        code: Path,
        bundle: Callable[[str], Path],
        *,
        firewall: Firewall | None = None,
    ) -> None:
        super().__init__(
            scope,
            f"heliograph-{deployment.stage}-api",
            description="Heliograph: REST and WebSocket APIs and their functions",
            cross_region_references=True if firewall else None,
            env=deployment.env,
        )
        self._deployment, self._network, self._state, self._stage = deployment, network, state, deployment.stage
        self._reserved = reserved(deployment.own["reserved_concurrency"])
        self._code = lambda_.Code.from_asset(str(code))
        self._layers = lambdas.layers(self, deployment, assets.LAYERS, bundle) if deployment.has("bundle") and self.bundling_required else {}
        both = gateway.IpAddressType.DUAL_STACK
        self.http = gateway.HttpApi(
            self, "Http", api_name=f"heliograph-{self._stage}-http", create_default_stage=False, cors_preflight=self._cors(), ip_address_type=both
        )
        self.socket = gateway.WebSocketApi(
            self, "Socket", api_name=f"heliograph-{self._stage}-socket", route_selection_expression="$request.body.action", ip_address_type=both
        )
        self.connections_url = f"https://{self.socket.api_id}.execute-api.{self.region}.{self.url_suffix}/{self._stage}"
        self.edge = Edge(self, deployment, self.http, self.socket, firewall.arn if firewall else None) if deployment.has_edge else None
        self.rest_url = f"https://{self.edge.domain}" if self.edge else self.http.api_endpoint
        self.socket_url = f"wss://{self.edge.domain}/{self._stage}" if self.edge else f"{self.socket.api_endpoint}/{self._stage}"
        self._environment = self._settings()
        self._permissions = self._translations()
        self.functions = {function.name: self._function(function) for function in FUNCTIONS}
        self.aliases = {name: self._alias(name, function) for name, function in self.functions.items()}
        self._add_stages()
        self._add_routes()
        CfnOutput(self, "RestUrl", value=self.rest_url)
        CfnOutput(self, "SocketUrl", value=self.socket_url)

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
            "issuer": self.rest_url,
            "connections_url": self.connections_url,
            "media_bucket": self._state.media.bucket_name,
            "media_kms_key_id": self._state.media_key.key_arn,
            **{f"{name}_queue_url": queue.queue_url for name, queue in self._state.queues.items()},
            "redis_url": self._state.redis_url,
            "redis_user": self._state.redis_user,
            "redis_cache": self._state.redis_cache,
            "turn_urls": self._deployment.settings["turn_urls"] or (self._network.turn_urls if self._network else ""),
            "origin_secret_id": "",
            **{spec.setting: self._state.secrets[spec.resource].ref for spec in SECRETS if spec.resource in self._state.secrets},
        }
        values = dict(self._deployment.settings) | computed
        return {PREFIX + item.name.upper(): values[item.name] for item in fields(Settings) if values[item.name]}

    def _translations(self) -> dict[tuple[Resource, Action], tuple[Permission, ...]]:
        """Each right of the route table as IAM says it. MongoDB knows its users by other means, and so does a Redis that is not ours: no IAM at all."""
        bucket, key = self._state.media, self._state.media_key.key_arn
        objects, sockets = bucket.arn_for_objects("*"), self.format_arn(service="execute-api", resource=self.socket.api_id, resource_name=self._stage)
        connecting = tuple(("elasticache:Connect", arn) for arn in self._state.redis_connect_arns)
        reading = ("sqs:ReceiveMessage", "sqs:DeleteMessage", "sqs:ChangeMessageVisibility", "sqs:GetQueueAttributes")
        return {
            ("redis", "read"): connecting,
            ("redis", "write"): connecting,
            ("mongo", "read"): (),
            ("mongo", "write"): (),
            ("connections", "post"): (("execute-api:ManageConnections", f"{sockets}/POST/@connections/*"),),
            ("connections", "close"): (("execute-api:ManageConnections", f"{sockets}/DELETE/@connections/*"),),
            **{(cast(Resource, name), "send"): (("sqs:SendMessage", queue.queue_arn),) for name, queue in self._state.queues.items()},
            **{(cast(Resource, name), "receive"): tuple((action, queue.queue_arn) for action in reading) for name, queue in self._state.queues.items()},
            ("media", "put"): (("s3:PutObject", objects),),
            ("media", "get"): (("s3:GetObject", objects), ("s3:ListBucket", bucket.bucket_arn)),  # without the second S3 answers 403 for a missing object
            ("media_key", "encrypt"): (("kms:GenerateDataKey", key),),
            ("media_key", "decrypt"): (("kms:Decrypt", key),),
            **{(spec.resource, "get"): self._reading(spec.resource) for spec in SECRETS},
        }

    def _reading(self, resource: Resource) -> tuple[Permission, ...]:
        """Of a secret; none of the one that only a deployment with CloudFront has."""
        return (("secretsmanager:GetSecretValue", self._state.secrets[resource].ref),) if resource in self._state.secrets else ()

    def _function(self, function: Function) -> lambda_.Function:
        log_group = logs.LogGroup(self, f"{function.name}-log", retention=kept(self._deployment), removal_policy=RemovalPolicy.DESTROY)
        is_inside, is_waited_for = self._is_inside(function), any(isinstance(route, Http | Socket | Authorizer) for route in function.routes)
        made = lambda_.Function(
            self,
            function.name,
            description=function.summary,
            runtime=lambdas.RUNTIME,
            architecture=lambdas.processor(self._deployment),
            code=self._code,
            layers=[self._layers[name] for name in assets.layers_of(function.handler) if name in self._layers],
            handler=function.handler,
            memory_size=function.memory_mb,
            timeout=Duration.seconds(function.timeout_s),
            environment=self._environment | (self._network.endpoints if self._network and is_inside else {}),
            role=self._role(function, log_group, is_inside=is_inside),
            log_group=log_group,
            reserved_concurrent_executions=self._reserved.get(function.name),
            snap_start=lambda_.SnapStartConf.ON_PUBLISHED_VERSIONS if is_waited_for and self._deployment.has("snap_start") else None,
            **(lambdas.inside(self._network) if self._network and is_inside else {}),
        )
        lambdas.trace(made)
        acknowledge(
            made, "Serverless-LambdaDLQ", "Nobody invokes it asynchronously: a gateway waits for it, or it reads a queue that has dead letters of its own."
        )
        return made

    def _alias(self, name: str, function: lambda_.Function) -> lambda_.Alias:
        return lambda_.Alias(self, f"{name}-live", alias_name=ALIAS, version=function.current_version)

    def _is_inside(self, function: Function) -> bool:
        """Whether the function stands in the VPC: there are Redis and, where Atlas is ours, its private endpoint. The others need no way out of it."""
        needs = {"redis"} | ({"mongo"} if self._deployment.makes_atlas else set())
        return self._network is not None and any(right.resource in needs for right in function.rights)

    def _role(self, function: Function, log_group: logs.LogGroup, *, is_inside: bool) -> iam.Role:
        """A role of its own: what the table grants, its own log, its traces. The policy is part of the role, so nothing runs before it may."""
        wanted: dict[str, dict[str, None]] = {}
        for action, resource in (permission for right in function.rights for permission in self._permissions[right.resource, right.action]):
            wanted.setdefault(resource, {})[action] = None
        wanted[log_group.log_group_arn] = dict.fromkeys(("logs:CreateLogStream", "logs:PutLogEvents"))
        statements = [iam.PolicyStatement(actions=list(actions), resources=[resource]) for resource, actions in wanted.items()]
        policy = iam.PolicyDocument(statements=[*statements, *lambdas.rights_of_all(is_inside=is_inside)])
        principal = iam.ServicePrincipal("lambda.amazonaws.com")
        role = iam.Role(self, f"{function.name}-role", assumed_by=principal, description=function.summary, inline_policies={"rights": policy})
        self._explain(function, role, is_inside=is_inside)
        return role

    def _explain(self, function: Function, role: iam.Role, *, is_inside: bool) -> None:
        rights = {(right.resource, right.action) for right in function.rights}
        lambdas.explain_rights_of_all(role, is_inside=is_inside)
        sockets = self.format_arn(service="execute-api", resource=self.socket.api_id, resource_name=self._stage)
        posts = [f"{sockets}/{method}/@connections/*" for action, method in (("post", "POST"), ("close", "DELETE")) if ("connections", action) in rights]
        acknowledge_wildcards(role, posts, "Ids of connections are known at run time only.")
        if rights & {("media", "put"), ("media", "get")}:
            objects = f"{self._state.export_value(self._state.media.bucket_arn)}/*"
            acknowledge_wildcards(role, [objects], "Names of objects are known at run time only.")

    def _add_routes(self) -> None:
        guards = {route.identity_header: function for function in FUNCTIONS for route in function.routes if isinstance(route, Authorizer)}
        on_http, on_socket = (self.aliases[guards[header].name] for header in ("authorization", SOCKET_IDENTITY.lower()))
        simple = [authorizers.HttpLambdaResponseType.SIMPLE]
        bearer = authorizers.HttpLambdaAuthorizer(
            "Bearer", on_http, identity_source=["$request.header.Authorization"], response_types=simple, results_cache_ttl=Duration.seconds(0)
        )
        ticket = authorizers.WebSocketLambdaAuthorizer("Ticket", on_socket, identity_source=[f"route.request.header.{SOCKET_IDENTITY}"])
        for function in FUNCTIONS:
            self._add_routes_of(function, bearer, ticket)

    def _add_routes_of(self, function: Function, bearer: gateway.IHttpRouteAuthorizer, ticket: gateway.IWebSocketRouteAuthorizer) -> None:
        target = self.aliases[function.name]
        on_http = integrations.HttpLambdaIntegration(f"{function.name}-http", target, scope_permission_to_route=False)
        on_socket = integrations.WebSocketLambdaIntegration(f"{function.name}-socket", target)
        for route in function.routes:
            match route:
                case Http():
                    guard = bearer if route.scope is not None else None
                    (made,) = self.http.add_routes(path=route.path, methods=[gateway.HttpMethod[route.method]], integration=on_http, authorizer=guard)
                    if guard is None:
                        acknowledge(made, "AwsSolutions-APIG4", "A public route: it is where somebody signs in, or a document that is no secret.")
                case Socket():
                    entry = ticket if route.key == "$connect" else None  # the decision holds for the life of the socket
                    opened = self.socket.add_route(route.key, integration=on_socket, authorizer=entry, return_response=route.answers)
                    if entry is None:
                        acknowledge(opened, "AwsSolutions-APIG4", "API Gateway knows authorizers on $connect alone; the function looks at each frame.")
                case Queue():
                    self._consume(target, route)
                case Authorizer():
                    pass  # made above
                case _:
                    raise ValueError(f"{route} has no translation yet")

    def _consume(self, target: lambda_.IFunction, queue: Queue) -> None:
        """Not the convenient event source: it would grant rights that the table does not know."""
        source = lambda_.EventSourceMapping(
            self,
            f"{queue.name}-source",
            target=target,
            event_source_arn=self._state.queues[queue.name].queue_arn,
            batch_size=queue.batch_size,
            report_batch_item_failures=True,
            max_concurrency=QUEUE_CONCURRENCY,
        )
        acknowledge(source, "Serverless-LambdaEventSourceMappingDestination", "A queue's failures go to its own dead-letter queue.")

    def _add_stages(self) -> None:
        self.http_stage = gateway.HttpStage(
            self, "HttpStage", http_api=self.http, stage_name="$default", throttle=HTTP_THROTTLE, auto_deploy=True, detailed_metrics_enabled=True
        )
        self.socket_stage = gateway.WebSocketStage(
            self, "SocketStage", web_socket_api=self.socket, stage_name=self._stage, throttle=SOCKET_THROTTLE, auto_deploy=True, detailed_metrics_enabled=True
        )
        self._log_access(self.http_stage, "http-access", _LOGGED_HTTP)
        self._log_access(self.socket_stage, "socket-access", _LOGGED_SOCKET)

    def _log_access(self, stage: gateway.HttpStage | gateway.WebSocketStage, name: str, also: tuple[str, ...]) -> None:
        log_group = logs.LogGroup(self, name, retention=kept(self._deployment), removal_policy=RemovalPolicy.DESTROY)
        line = json.dumps({field: f"$context.{field}" for field in (*_LOGGED, *also, *([_CALLER] if self.edge else []))})
        plain = cast(gateway.CfnStage, stage.node.default_child)
        plain.access_log_settings = gateway.CfnStage.AccessLogSettingsProperty(destination_arn=log_group.log_group_arn, format=line)
