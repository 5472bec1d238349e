"""A headless Chromium with a recording for a microphone, and the web client's pages on loopback. Knows Playwright; nothing of what the pages say."""

from __future__ import annotations

import shutil
import wave
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright

from local import demo, voice

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-sync",
    "--no-pings",
)
AS_RECORDED = {"echoCancellation": False, "noiseSuppression": False, "autoGainControl": False}  # a meter wants what was said, not what sounds nice


def find_chromium() -> str:
    """The browser's path; fails with the command that installs it."""
    path = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert path is not None, "Chromium is missing: apt install chromium"
    return path


def write_microphone(path: Path, samples: voice.Samples) -> Path:
    """A wave file as Chromium's fake microphone wants it: 16-bit mono 48 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(voice.SAMPLE_RATE)
        file.writeframes(voice.to_pcm(samples))
    return path


@asynccontextmanager
async def chromium(microphone: Path) -> AsyncIterator[Browser]:
    """A browser; every microphone it opens plays the file once from its start, then is silent."""
    path = find_chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=[*FLAGS, f"--use-file-for-fake-audio-capture={microphone}%noloop"])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def served(endpoints: dict[str, Any]) -> AsyncIterator[str]:
    """The web client over HTTP on loopback: `/demo/`, `/dist/`, and `/blank` for tests that bring their own script. Yields the origin."""
    assert demo.is_built(), "The web client is not built: make e2e builds it (npm ci && npm run build in clients/web)"
    app = demo.application(endpoints)

    async def send_blank(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><link rel=icon href=data:,><title>blank</title>", content_type="text/html")

    app.router.add_get("/blank", send_blank)
    runner = await demo.serve(app, "127.0.0.1")
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def faults(page: Page) -> list[str]:
    """What the page's script throws or complains about, from now on."""
    heard: list[str] = []
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("console", lambda message: heard.append(message.text) if message.type in ("error", "warning") else None)
    return heard
