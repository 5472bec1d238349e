"""A headless Firefox of a test's own, spoken to by WebDriver BiDi (w3c.github.io/webdriver-bidi) with no driver between. Knows nothing of pages."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from tests.certificates import trust
from tests.running import program

START_S, ANSWER_S, STOP_S = 60.0, 60.0, 10.0
PREFERENCES = {
    "media.navigator.streams.fake": True,  # a tone for a microphone
    "media.navigator.permission.disabled": True,  # nobody is there to be asked
    "media.peerconnection.ice.loopback": True,
}


class Page:
    """One tab. Commands go one after another; events are passed over."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._ids, self._context = socket, count(1), ""

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a BiDi command; AssertionError with the browser's own words when it is refused."""
        number = next(self._ids)
        async with asyncio.timeout(ANSWER_S):
            await self._socket.send_json({"id": number, "method": method, "params": params})
            while (answer := await self._socket.receive_json()).get("id") != number:
                pass
        assert answer["type"] == "success", answer
        result: dict[str, Any] = answer["result"]
        return result

    async def open(self, url: str) -> None:
        """Starts the session and opens the page in the tab that is there."""
        await self.command("session.new", capabilities={})
        self._context = (await self.command("browsingContext.getTree"))["contexts"][0]["context"]
        await self.command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> str:
        """The text that the expression's promise is kept with."""
        answer = await self.command("script.evaluate", expression=expression, target={"context": self._context}, awaitPromise=True)
        assert answer["type"] == "success", answer
        text: str = answer["result"]["value"]
        return text


@asynccontextmanager
async def firefox(home: Path, authority: Path) -> AsyncIterator[Page]:
    """A blank page in a browser with a new profile that trusts the authority too."""
    profile, blank = home / "profile", home / "blank.html"
    trust(profile, authority)
    (profile / "user.js").write_text("".join(f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items()))
    blank.write_text("<!doctype html><title>blank</title>")  # a page of a file may have a microphone, about:blank may not
    command = [program("firefox-esr"), "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
    quiet, environment = asyncio.subprocess.DEVNULL, {**os.environ, "HOME": str(home)}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=quiet, stderr=asyncio.subprocess.PIPE, start_new_session=True)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_S):
            url = await _listening(process.stderr)
        reading = asyncio.create_task(_drain(process.stderr))
        async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/session") as socket:
            page = Page(socket)
            await page.open(blank.as_uri())
            yield page
            await page.command("browser.close")
        await asyncio.wait_for(reading, STOP_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what is left of it and of its tabs' processes
        await process.wait()


async def _listening(errors: asyncio.StreamReader) -> str:
    """The URL that Firefox says it listens at."""
    said = ""
    while line := (await errors.readline()).decode():
        said += line
        _, found, url = line.partition("WebDriver BiDi listening on ")
        if found:
            return url.strip()
    raise AssertionError(f"Firefox ended: {said}")


async def _drain(errors: asyncio.StreamReader) -> None:
    while await errors.readline():
        pass
