"""A second full call passes after each part was killed (-9), and what was acknowledged before is still there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from heliograph_client import Client, HeliographError, make_id
from tests.running import RunningStack, wait_until

WITHIN_S = 15.0


@dataclass(frozen=True, slots=True)
class Kept:
    """What was acknowledged before the kill."""

    room_id: str
    offset: int
    media_id: str
    content: bytes


@asynccontextmanager
async def signed_in(stack: RunningStack, login: str) -> AsyncIterator[Client]:
    endpoints, user = stack.endpoints(), stack.user(login)
    async with Client(endpoints["rest_url"], endpoints["socket_url"]) as client:
        await client.sign_in(user["tenant_id"], user["login"], user["password"])
        await client.connect()
        yield client


async def full_call(stack: RunningStack) -> Kept:
    """Sign in, meet, write, talk through the relay, send a file."""
    async with signed_in(stack, "ana") as ana, signed_in(stack, "ben") as ben:
        room_id = make_id("room")
        await ana.create_room("Depot", [ben.session.account_id], room_id)
        await asyncio.gather(ana.join(room_id), ben.join(room_id))
        ack = await ana.send_text(room_id, "acknowledged before the kill")
        calling = await ana.call(room_id, ben.session.account_id, "relay", ice_servers=await ana.ice_servers())
        answered = await (await ben.incoming_call(timeout_s=30)).answer(ice_policy="relay", ice_servers=await ben.ice_servers())
        await asyncio.gather(calling.connected(), answered.connected())
        assert (calling.selected_path() or {})["local"] == "relay"
        async with asyncio.timeout(30):
            while not answered.sink.frames:  # noqa: ASYNC110 - the sink has no event
                await asyncio.sleep(0.05)
        await calling.hangup()
        file = stack.data_dir / "clip.bin"
        await asyncio.to_thread(file.write_bytes, content := room_id.encode() * 100)
        media_id = await ana.upload_file(room_id, file)
        assert ack.offset is not None
        return Kept(room_id, ack.offset, media_id, content)


async def is_kept(stack: RunningStack, kept: Kept) -> bool:
    async with signed_in(stack, "ben") as ben, aiohttp.ClientSession() as http:
        page = await ben.rest.call("GET", f"/v1/rooms/{kept.room_id}/events")
        texts = [event["body"]["text"] for event in page["events"] if event["event"] == "message" and event["offset"] == kept.offset]
        async with http.get(await ben.download_link(kept.media_id)) as answer:
            return texts == ["acknowledged before the kill"] and await answer.read() == kept.content


async def call_again(stack: RunningStack, until_s: float) -> tuple[Kept, list[str]]:
    """A full call, tried until the time is over, as a person would; what was refused meanwhile had to be said clearly."""
    refusals: list[str] = []
    while True:
        try:
            return await full_call(stack), refusals
        except (HeliographError, aiohttp.ClientError, TimeoutError) as refusal:
            refusals.append(f"{type(refusal).__name__}: {refusal}")
            if time.monotonic() > until_s:
                raise AssertionError(f"no call within {WITHIN_S:g} s: {refusals}") from refusal
            await asyncio.sleep(0.25)


def pid_of(stack: RunningStack, part: str) -> int:
    pids: dict[str, Any] = stack.endpoints()["pids"]
    return int(pids["functions"]["signal"][0] if part == "worker" else pids[part])


@pytest.mark.timeout(180)
@pytest.mark.parametrize("part", ["worker", "redis", "mongo", "moto", "relay", "hub"])
async def test_a_second_full_call_passes_after_the_part_was_killed(stack: RunningStack, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    kept = await full_call(stack)
    pid = pid_of(stack, part)
    stack.kill(pid)
    killed_s = time.monotonic()
    second, refusals = await call_again(stack, killed_s + WITHIN_S)
    elapsed_s = time.monotonic() - killed_s
    with capsys.disabled():
        print(f"\n{part} killed: second full call after {elapsed_s:.1f} s / {WITHIN_S:g} s, {len(refusals)} refusals meanwhile")
    assert elapsed_s <= WITHIN_S + 5, refusals
    assert await is_kept(stack, kept)
    assert await is_kept(stack, second)
    wait_until(f"a new {part} in the list of pids", lambda: pid_of(stack, part) != pid, 10)


def test_the_folder_of_the_stack_is_for_its_owner_alone(stack: RunningStack) -> None:
    files = [Path(stack.data_dir / name) for name in ("endpoints.json", "secrets.json")]
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
