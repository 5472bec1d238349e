"""API Gateway of a stand-in, behind the interface of `local.gateway.Gateway`: the contract tests of the local gateway ask it with the same words.

The functions of a test live in the test's process. At the stand-in each is a Lambda that passes its event back here and returns the answer.
"""

from __future__ import annotations

import asyncio
import io
import os
import zipfile
from collections.abc import Sequence
from functools import cache
from typing import Any, Final

from aiohttp import web

from adapters import sigv4
from functions.routes import Authorizer, Function, Http, Socket
from infra.rehearsal.stand_ins import Asker
from local.gateway_limits import Invoke, Limits
from local.lambdas import FunctionError
from local.services import HOST

ENDPOINT_ENVIRONMENT: Final = "REHEARSAL_GATEWAY"  # the stand-in's URL; where it is set, the contract tests ask that gateway
PORT_ENVIRONMENT: Final = "REHEARSAL_PORT"  # where the Lambdas find this process
_SOURCE: Final = """
import json, os, urllib.request

def handler(event, context):
    asked = urllib.request.Request(os.environ["ASK"], json.dumps(event).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=30) as answer:
        told = json.load(answer)
    if "error" in told:
        raise RuntimeError(told["error"])
    return told["answer"]
"""
_ROLE: Final = "arn:aws:iam::000000000000:role/probe"


@cache
def _asker(endpoint_url: str, region: str) -> Asker:
    """Kept for all tests: making boto3's clients costs more than most of them."""
    return Asker(endpoint_url, region)


class StandInGateway:
    """Both APIs at the stand-in. Quotas there cannot be changed: `limits` are taken and not used."""

    def __init__(
        self,
        functions: Sequence[Function],
        invoke: Invoke,
        *,
        stage: str = "local",
        region: str,
        credentials: sigv4.Credentials,
        limits: Limits | None = None,
        allow_origins: Sequence[str] = (),
    ) -> None:
        self._functions, self._invoke, self._stage, self._region, self._allow_origins = functions, invoke, stage, region, allow_origins
        self._base = os.environ[ENDPOINT_ENVIRONMENT]
        self._asker = _asker(self._base, region)
        self._api_ids: set[str] = set()
        self._runner: web.AppRunner | None = None
        self.http_url = self.socket_url = self.connections_url = self.admin_url = ""

    async def start(self) -> None:
        """Listen for the functions' events, then make the APIs that have a route."""
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_post("/{name}", self._ask)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, HOST, int(os.environ[PORT_ENVIRONMENT]), reuse_address=True).start()
        arns = {function.name: await asyncio.to_thread(self._function, function.name) for function in self._functions}
        if self._has(Http):
            self._api_ids.add(http_id := await asyncio.to_thread(self._make_http, arns))
            self.http_url = f"{self._base}/_aws/execute-api/{http_id}/$default"
        if self._has(Socket):
            self._api_ids.add(socket_id := await asyncio.to_thread(self._make_socket, arns))
            self.connections_url = f"{self._base}/_aws/execute-api/{socket_id}/{self._stage}"
            self.socket_url = self.connections_url.replace("http://", "ws://")

    async def close(self) -> None:
        """Delete the APIs and stop listening."""
        api = self._asker.client("apigatewayv2")
        for api_id in self._api_ids:
            await asyncio.to_thread(api.delete_api, ApiId=api_id)
        if self._runner is not None:
            await self._runner.cleanup()

    def _has(self, kind: type) -> bool:
        return any(isinstance(route, kind) for function in self._functions for route in function.routes)

    async def _ask(self, request: web.Request) -> web.Response:
        event = await request.json()
        api_id = event["requestContext"]["apiId"]
        if api_id not in self._api_ids:
            return web.json_response({"answer": {"statusCode": 200}})  # the last socket of an earlier test
        try:
            return web.json_response({"answer": await self._invoke(request.match_info["name"], event)})
        except FunctionError as error:
            return web.json_response({"error": str(error)})

    def _function(self, name: str) -> str:
        """The Lambda that passes on; made once for all tests."""
        client = self._asker.client("lambda")
        try:
            return str(client.get_function_configuration(FunctionName=f"probe-{name}")["FunctionArn"])
        except client.exceptions.ResourceNotFoundException:
            pass
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("probe.py", _SOURCE)
        where = {"ASK": f"http://{HOST}:{os.environ[PORT_ENVIRONMENT]}/{name}"}
        made = client.create_function(
            FunctionName=f"probe-{name}",
            Runtime="python3.13",
            Handler="probe.handler",
            Role=_ROLE,
            Code={"ZipFile": archive.getvalue()},
            Timeout=30,
            Environment={"Variables": where},
        )
        return str(made["FunctionArn"])

    def _uri(self, arn: str) -> str:
        return f"arn:aws:apigateway:{self._region}:lambda:path/2015-03-31/functions/{arn}/invocations"

    def _integrations(self, api_id: str, arns: dict[str, str], version: str) -> dict[str, str]:
        client = self._asker.client("apigatewayv2")
        made = {}
        for name, arn in arns.items():
            answer = client.create_integration(
                ApiId=api_id, IntegrationType="AWS_PROXY", IntegrationMethod="POST", IntegrationUri=self._uri(arn), PayloadFormatVersion=version
            )
            made[name] = f"integrations/{answer['IntegrationId']}"
        return made

    def _authorizer(self, api_id: str, arns: dict[str, str], header: str, **more: Any) -> dict[str, str]:
        """What a guarded route of this API says; nothing when the table has no such authorizer."""
        guard = next(
            (each.name for each in self._functions for route in each.routes if isinstance(route, Authorizer) and route.identity_header == header), None
        )
        if guard is None:
            return {}
        client = self._asker.client("apigatewayv2")
        made = client.create_authorizer(ApiId=api_id, Name="guard", AuthorizerType="REQUEST", AuthorizerUri=self._uri(arns[guard]), **more)
        return {"AuthorizationType": "CUSTOM", "AuthorizerId": made["AuthorizerId"]}

    def _make_http(self, arns: dict[str, str]) -> str:
        client = self._asker.client("apigatewayv2")
        cors: dict[str, Any] = {}
        if self._allow_origins:
            cors = {
                "CorsConfiguration": {
                    "AllowOrigins": list(self._allow_origins),
                    "AllowMethods": ["GET", "POST", "PUT", "DELETE"],
                    "AllowHeaders": ["authorization"],
                }
            }
        api_id = str(client.create_api(Name="probe-http", ProtocolType="HTTP", **cors)["ApiId"])
        integrations = self._integrations(api_id, arns, "2.0")
        guard = self._authorizer(
            api_id,
            arns,
            "authorization",
            AuthorizerPayloadFormatVersion="2.0",
            EnableSimpleResponses=True,
            AuthorizerResultTtlInSeconds=0,
            IdentitySource=["$request.header.Authorization"],
        )
        for function in self._functions:
            for route in function.routes:
                if isinstance(route, Http):
                    client.create_route(ApiId=api_id, RouteKey=route.key, Target=integrations[function.name], **(guard if route.scope else {}))
        client.create_stage(ApiId=api_id, StageName="$default", AutoDeploy=True)
        return api_id

    def _make_socket(self, arns: dict[str, str]) -> str:
        client = self._asker.client("apigatewayv2")
        api_id = str(client.create_api(Name="probe-socket", ProtocolType="WEBSOCKET", RouteSelectionExpression="$request.body.action")["ApiId"])
        integrations = self._integrations(api_id, arns, "1.0")
        guard = self._authorizer(api_id, arns, "sec-websocket-protocol", IdentitySource=["route.request.header.Sec-WebSocket-Protocol"])
        for function in self._functions:
            for route in function.routes:
                if isinstance(route, Socket):
                    entry = guard if route.key == "$connect" else {}
                    made = client.create_route(ApiId=api_id, RouteKey=route.key, Target=integrations[function.name], **entry)
                    if route.answers:
                        client.update_route(ApiId=api_id, RouteId=made["RouteId"], RouteResponseSelectionExpression="$default")
                        client.create_route_response(ApiId=api_id, RouteId=made["RouteId"], RouteResponseKey="$default")
        client.create_stage(ApiId=api_id, StageName=self._stage, AutoDeploy=True)
        return api_id
