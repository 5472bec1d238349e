"""Python clients of the running product, and a wait that says what is missing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import pytest

from heliograph_client import Client
from tests.running import RunningStack


@contextlib.asynccontextmanager
async def online(stack: RunningStack, login: str, **options: Any) -> AsyncIterator[Client]:
    endpoints, user = stack.endpoints(), stack.user(login)
    async with Client(endpoints["rest_url"], endpoints["socket_url"], **options) as client:
        await client.sign_in(user["tenant_id"], user["login"], user["password"])
        await client.connect()
        yield client


async def allocations(stack: RunningStack) -> list[dict[str, Any]]:
    """What the relay says of every allocation it ever gave, those that ended included."""
    async with aiohttp.ClientSession() as http, http.get(stack.endpoints()["relay"]["stats_url"]) as answer:
        rows: list[dict[str, Any]] = await answer.json()
    return rows


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def until(holds: Callable[[], bool], missing: str, timeout_s: float = 30.0) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - what is awaited lives in another process
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"after {timeout_s:g} s still missing: {missing}")
