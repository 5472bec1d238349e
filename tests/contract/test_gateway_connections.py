"""The local callback API against boto3's own client and the service model apigatewaymanagementapi-2018-11-29."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from adapters import sigv4
from functions.routes import Function, Socket
from local.gateway_limits import Limits
from tests.contract.gateways import Gateway

LOCAL = sigv4.Credentials("local", "secret", "session")
FUNCTIONS = (Function("talk", "Answers with the connection id.", (Socket("$default", "All."),), ()),)
NEVER_EXISTED = "AAAAAAAAAAAAAAA="


async def _tell_id(_: str, event: Any) -> object:
    return {"statusCode": 200, "body": event["requestContext"]["connectionId"]}


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    gateway = Gateway(FUNCTIONS, _tell_id, region="eu-central-1", credentials=LOCAL, limits=Limits(client_buffer_bytes=65_536))
    await gateway.start()
    yield gateway
    await gateway.close()


@pytest.fixture
async def socket(gateway: Gateway) -> AsyncIterator[ClientConnection]:
    async with connect(gateway.socket_url, user_agent_header="toy/1", max_queue=1) as socket:
        yield socket


async def _id_of(socket: ClientConnection) -> str:
    await socket.send("who am I")
    return str(await socket.recv())


def _client(gateway: Gateway, secret: str = LOCAL.secret_key) -> Any:
    return boto3.client(
        "apigatewaymanagementapi",
        endpoint_url=gateway.connections_url,
        region_name="eu-central-1",
        aws_access_key_id=LOCAL.access_key_id,
        aws_secret_access_key=secret,
        aws_session_token=LOCAL.session_token,
        config=Config(retries={"total_max_attempts": 1}),
    )


async def _error(call: Any, **arguments: object) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        await asyncio.to_thread(call, **arguments)
    response: Any = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


async def test_post_reaches_the_client_as_text(gateway: Gateway, socket: ClientConnection) -> None:
    """Service model: PostToConnection, 200; what arrives is a text message."""
    connection_id = await _id_of(socket)
    answer = await asyncio.to_thread(_client(gateway).post_to_connection, ConnectionId=connection_id, Data="grüß".encode())
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert await socket.recv() == "grüß"


async def test_get_describes_the_connection(gateway: Gateway, socket: ClientConnection) -> None:
    """Service model: GetConnection, ConnectedAt, LastActiveAt, Identity."""
    connection_id = await _id_of(socket)
    found = await asyncio.to_thread(_client(gateway).get_connection, ConnectionId=connection_id)
    assert found["Identity"] == {"SourceIp": "127.0.0.1", "UserAgent": "toy/1"}
    assert found["ConnectedAt"] <= found["LastActiveAt"] <= datetime.now(UTC)


async def test_delete_closes_the_connection(gateway: Gateway, socket: ClientConnection) -> None:
    """Service model: DeleteConnection, 204; afterwards every call is 410."""
    connection_id, client = await _id_of(socket), _client(gateway)
    answer = await asyncio.to_thread(client.delete_connection, ConnectionId=connection_id)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert await _error(client.post_to_connection, ConnectionId=connection_id, Data=b"x") == (410, "GoneException")
    with pytest.raises(ConnectionClosed):
        await socket.recv()


async def test_a_connection_that_closed_or_never_was_is_gone(gateway: Gateway, socket: ClientConnection) -> None:
    """Service model: GoneException, 410; for an id of the right form that was never given out as well."""
    connection_id, client = await _id_of(socket), _client(gateway)
    await socket.close()
    for call, more in ((client.post_to_connection, {"Data": b"x"}), (client.get_connection, {}), (client.delete_connection, {})):
        for gone in (connection_id, NEVER_EXISTED):
            assert await _error(call, ConnectionId=gone, **more) == (410, "GoneException")


async def test_a_malformed_id_is_400(gateway: Gateway) -> None:
    """Observed of AWS: BadRequestException, "Invalid connectionId"."""
    assert await _error(_client(gateway).post_to_connection, ConnectionId="nonsense", Data=b"x") == (400, "BadRequestException")


async def test_more_than_128_kb_is_413(gateway: Gateway, socket: ClientConnection) -> None:
    """Service model: PayloadTooLargeException; quotas: 128 KB."""
    connection_id, client = await _id_of(socket), _client(gateway)
    await asyncio.to_thread(client.post_to_connection, ConnectionId=connection_id, Data=b"x" * 131_072)
    assert len(await socket.recv()) == 131_072
    assert await _error(client.post_to_connection, ConnectionId=connection_id, Data=b"x" * 131_073) == (413, "PayloadTooLargeException")


async def test_a_wrong_or_missing_signature_is_403(gateway: Gateway, socket: ClientConnection) -> None:
    """Service model: ForbiddenException; the callback API takes IAM-signed requests only."""
    connection_id = await _id_of(socket)
    assert await _error(_client(gateway, "wrong").post_to_connection, ConnectionId=connection_id, Data=b"x") == (403, "ForbiddenException")
    async with aiohttp.ClientSession() as session, session.post(f"{gateway.connections_url}/@connections/{connection_id}", data=b"x") as response:
        assert (response.status, response.headers["x-amzn-ErrorType"]) == (403, "ForbiddenException")


async def test_a_client_that_does_not_read_is_429(gateway: Gateway, socket: ClientConnection) -> None:
    """Service model: LimitExceededException, 429; also when the buffer of that client is full."""
    connection_id, client = await _id_of(socket), _client(gateway)
    socket.transport.pause_reading()
    for _ in range(500):
        try:
            await asyncio.wait_for(asyncio.to_thread(client.post_to_connection, ConnectionId=connection_id, Data=b"x" * 131_072), 1)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "LimitExceededException"
            break
    else:
        pytest.fail("500 posts of 128 KB to a client that does not read, and none was refused")
    socket.transport.abort()
