"""Real calls with headless Chromium through the whole local stack: page to page by the demo page, page to Python client by the web SDK."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import jwt
import numpy as np
import pytest
from playwright.async_api import Browser, Page, WebSocketRoute, expect

from adapters.settings import now_ms
from adapters.tokens_jwt import Tokens
from heliograph.auth import TICKET_TYP
from heliograph_client import Client, make_id
from heliograph_client.opus import SAMPLE_RATE, PcmSource
from local import demo, voice
from local.shaped_link import ShapedLink
from tests.e2e.browser import AS_RECORDED, chromium, faults, find_chromium, served, write_microphone
from tests.integration.clients import allocations, until
from tests.running import ROOT, RunningStack

pytestmark = pytest.mark.browser
LEAD_S, SPEECH_S, TAIL_S = 4.0, 5.0, 1.0
LEAST_PESQ = 3.8
THROTTLED_BPS = 40_000

SIGN_IN = """
async ([endpoints, user]) => {
  const { Client } = await import("/dist/heliograph.js");
  window.client = new Client(endpoints.rest_url, endpoints.socket_url);
  await client.signIn(user.tenant_id, user.login, user.password);
  return (await client.connect()).account_id;
}
"""
CALL = """
async ([room_id, account_id, audio]) => {
  await client.join(room_id);
  window.call = await client.call(room_id, account_id, { icePolicy: "relay", audio });
  window.player = Object.assign(new Audio(), { autoplay: true, srcObject: call.remoteStream });
  await call.connected();
  return { path: await call.selectedPath(), ms: call.connectMs };
}
"""
ANSWER_WHAT_COMES = """
async ([room_id, audio]) => {
  await client.join(room_id);
  window.answered = new Promise((resolve) => {
    client.onIncomingCall = async (incoming) => {
      window.call = await incoming.answer({ icePolicy: "relay", audio });
      window.player = Object.assign(new Audio(), { autoplay: true, srcObject: call.remoteStream });
      await call.connected();
      resolve({ path: await call.selectedPath(), ms: call.connectMs });
    };
  });
}
"""
NARROW = """
async (port) => {
  const fetched = await client.fetchIceServers();
  const relay = fetched.servers.find((server) => server.username);
  client.fetchIceServers = async () => ({ ...fetched, servers: [{ ...relay, urls: [`turn:127.0.0.1:${port}?transport=udp`] }] });
}
"""
KEEP_CONNECTIONS = """
() => {
  window.connections = [];
  window.RTCPeerConnection = class extends RTCPeerConnection {
    constructor(configuration) {
      super(configuration);
      connections.push(this);
    }
  };
}
"""
PACKETS_LOST = """
async () => [...(await connections[0].getStats()).values()].filter((row) => row.type === "inbound-rtp").map((row) => row.packetsLost)
"""
REFUSE_AN_OFFER = """
async () => {
  const { HeliographError } = await import("/dist/heliograph.js");
  client.request = async (action, ...rest) => {
    if (action !== "offer") return Object.getPrototypeOf(client).request.call(client, action, ...rest);
    delete client.request;
    throw new HeliographError("glare", "The other side has offered too.");
  };
}
"""
FORTY_MS = """
async () => {
  const rung = structuredClone(call.rungs.at(-1));
  rung.audio.ptime_ms = 40;
  await call.handle({ kind: "event", event: "rung", body: rung });
}
"""
OPEN = """
async ([socket_url, ticket]) => {
  const { openSocket } = await import("/dist/heliograph.js");
  try {
    const socket = await openSocket(socket_url, ticket);
    socket.close();
    return "open";
  } catch (error) {
    return error.code;
  }
}
"""


def speech() -> voice.Samples:
    return voice.speech(0)[: int(SPEECH_S * SAMPLE_RATE)]


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    microphone = write_microphone(tmp_path / "microphone.wav", voice.joined(np.zeros(int(LEAD_S * SAMPLE_RATE)), speech()))
    async with chromium(microphone) as running:
        yield running


@pytest.fixture
async def talkative(tmp_path: Path) -> AsyncIterator[Browser]:
    """A browser whose microphone never falls silent, at least for as long as a test takes."""
    async with chromium(write_microphone(tmp_path / "microphone.wav", np.tile(speech(), 8))) as running:
        yield running


@pytest.fixture
async def origin(stack: RunningStack) -> AsyncIterator[str]:
    async with served(stack.endpoints()) as url:
        yield url


async def opened(browser: Browser, url: str) -> Page:
    """A page with a profile of its own."""
    page = await (await browser.new_context(viewport={"width": 1100, "height": 720})).new_page()
    await page.goto(url)
    return page


@asynccontextmanager
async def python_client(stack: RunningStack, login: str) -> AsyncIterator[Client]:
    endpoints, user = stack.endpoints(), stack.user(login)
    async with Client(endpoints["rest_url"], endpoints["socket_url"]) as client:
        await client.sign_in(user["tenant_id"], user["login"], user["password"])
        await client.connect()
        yield client


async def relayed_bytes(stack: RunningStack, account_id: str) -> int:
    """Bytes the relay took from this account so far."""
    return sum(int(row["from_client_bytes"]) for row in await allocations(stack) if account_id in row["username"])


def note(request: pytest.FixtureRequest, **figures: object) -> None:
    """Figures for the test report (junit) and for whoever runs with -s."""
    for name, value in figures.items():
        request.node.user_properties.append((name, value))
    print(request.node.name, figures)


async def sign_in(page: Page, stack: RunningStack, login: str) -> None:
    """By the demo page's form."""
    user = stack.user(login)
    await page.get_by_label("Tenant").fill(user["tenant_id"])
    await page.get_by_label("Login").fill(user["login"])
    await page.get_by_label("Password").fill(user["password"])
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("#me")).to_have_text(f"{login} of {user['tenant_id']}")


async def kilobytes(page: Page, direction: str) -> float:
    """What the demo page says has flowed."""
    said = re.match(r"[\d.]+", await page.locator(f"#{direction}").inner_text())
    return float(said[0]) if said else 0.0


async def test_two_pages_talk_through_the_relay(stack: RunningStack, talkative: Browser, origin: str, request: pytest.FixtureRequest) -> None:
    ana, ben = await opened(talkative, f"{origin}/demo/"), await opened(talkative, f"{origin}/demo/")
    heard = [faults(ana), faults(ben)]
    await sign_in(ana, stack, "ana")
    await ana.get_by_label("Meet").select_option("ben")
    await ana.get_by_role("button", name="Open a room").click()
    await expect(ana.locator("#room-name")).to_have_text("ana and ben")
    await sign_in(ben, stack, "ben")
    await expect(ana.locator("#people li[data-login=ben]")).to_have_attribute("data-status", "online")
    before = {login: await relayed_bytes(stack, stack.user(login)["account_id"]) for login in ("ana", "ben")}

    await ana.locator("#people li[data-login=ben]").get_by_role("button", name="Call").click()
    await expect(ben.locator("#call-state")).to_have_text("ana is calling")
    await ben.get_by_role("button", name="Answer").click()
    for page, peer in ((ana, "ben"), (ben, "ana")):
        await expect(page.locator("#call-state")).to_have_text(f"talking with {peer}", timeout=10_000)
        await expect(page.locator("#path")).to_have_text("relay to relay over udp")
        await expect(page.locator("#rung")).to_have_text(re.compile(r"^4 good: 32 kbit/s"), timeout=10_000)
        await expect(page.locator("#reason")).to_contain_text("good holds")
    await expect(ana.locator("#people li[data-login=ben]")).to_have_attribute("data-status", "on_a_call")

    await ben.get_by_placeholder("Write to the room").fill("Can you hear me?")
    await ben.get_by_role("button", name="Send").click()
    await expect(ana.locator("#texts li")).to_contain_text("Can you hear me?")
    first = {page: (await kilobytes(page, "sent"), await kilobytes(page, "received")) for page in (ana, ben)}
    await asyncio.sleep(3)
    for page, (sent, received) in first.items():
        assert await kilobytes(page, "sent") > sent
        assert await kilobytes(page, "received") > received + 3, "audio stopped flowing"
    await ana.get_by_role("button", name="Mute").click()
    await expect(ana.locator("#call-state")).to_have_text("talking with ben, muted")
    (ROOT / "build").mkdir(exist_ok=True)
    await ana.screenshot(path=ROOT / "build" / "demo.png")
    note(request, connect_ms=await ana.locator("#connect-ms").inner_text())

    relayed = {login: await relayed_bytes(stack, stack.user(login)["account_id"]) - before[login] for login in ("ana", "ben")}
    assert all(grown > 10_000 for grown in relayed.values()), relayed
    await ana.get_by_role("button", name="Hang up").click()
    for page in (ana, ben):
        await expect(page.locator("#call-state")).to_have_text("no call")
    assert heard == [[], []]


async def test_speech_from_chromium_reaches_the_python_client_and_back(
    stack: RunningStack, browser: Browser, origin: str, request: pytest.FixtureRequest
) -> None:
    page = await opened(browser, f"{origin}/blank")
    heard = faults(page)
    await page.evaluate(KEEP_CONNECTIONS)
    ana_id = await page.evaluate(SIGN_IN, [stack.endpoints(), stack.user("ana")])
    async with python_client(stack, "ben") as ben:
        room_id = make_id("room")
        await ben.create_room("Chromium meets Python", [ana_id], room_id)
        await ben.join(room_id)
        before, began_ms = await relayed_bytes(stack, ana_id), now_ms()
        calling = asyncio.create_task(page.evaluate(CALL, [room_id, ben.session.account_id, AS_RECORDED]))
        incoming = await ben.incoming_call(timeout_s=30)
        answered = await incoming.answer(ice_policy="relay", source=PcmSource(voice.to_pcm(voice.speech(1))))
        connected, _ = await asyncio.gather(calling, answered.connected())
        assert connected["path"] == answered.selected_path() == {"local": "relay", "remote": "relay", "protocol": "udp"}
        await asyncio.sleep(LEAD_S + 0.5)
        await page.evaluate("() => call.restart()")  # amid speech
        await asyncio.sleep(2)
        answered.restart()
        await asyncio.sleep(SPEECH_S + TAIL_S - 2.5)
        assert (await page.evaluate("() => call.restarts"), answered.restarts) == (["asked", "peer"], ["peer", "asked"])
        assert ((await page.evaluate("() => call.selectedPath()"))["local"], (answered.selected_path() or {})["local"]) == ("relay", "relay")
        assert len(answered._paths._open) == 1, "nothing comes by the paths before"
        assert await page.evaluate(PACKETS_LOST) == [0], "nor is one of the Python client's"
        rows = [row for row in await allocations(stack) if ana_id in row["username"] and row["started_at_ms"] >= began_ms]
        note(request, browsers_allocations=[(row["username"].split(":")[0], row["ended_at_ms"] and row["ended_at_ms"] - row["started_at_ms"]) for row in rows])
        assert len({row["username"] for row in rows}) >= 2, "fresh credentials"
        totals, rungs, max_bitrate_bps = await page.evaluate("async () => [await call.totals(), call.rungs, call.maxBitrateBps]")
        assert totals["receivedPackets"] > 300
        assert totals["receivedEnergy"] > 0.01, "the page received packets, but silence"
        assert rungs
        assert max_bitrate_bps == rungs[-1]["audio"]["bitrate_bps"], "the browser's encoder follows the decision board"
        assert await relayed_bytes(stack, ana_id) > before + totals["sentBytes"] / 2
        await page.evaluate("() => call.hangup()")
        assert await asyncio.wait_for(answered.ended(), 30) == "hangup"
    pesq_wb = await asyncio.to_thread(voice.score, speech(), voice.from_pcm(answered.sink.pcm()))
    note(request, connect_ms=connected["ms"], pesq_wb=round(pesq_wb, 3), lost=answered.sink.reorder.lost)
    assert pesq_wb >= LEAST_PESQ
    assert (answered.sink.reorder.lost, answered.sink.reorder.late) == (0, 0), "two restarts, and no packet of the browser is missing"
    assert heard == []


async def test_a_call_from_the_python_client_is_answered_in_chromium(
    stack: RunningStack, talkative: Browser, origin: str, request: pytest.FixtureRequest
) -> None:
    page = await opened(talkative, f"{origin}/blank")
    heard, sockets = faults(page), list[WebSocketRoute]()

    def pass_through(socket: WebSocketRoute) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    await page.route_web_socket(re.compile(".*"), pass_through)
    ana_id = await page.evaluate(SIGN_IN, [stack.endpoints(), stack.user("ana")])
    async with python_client(stack, "ben") as ben:
        room = await ben.create_room("Python meets Chromium", [ana_id])
        await ben.join(room["room_id"])
        await page.evaluate(ANSWER_WHAT_COMES, [room["room_id"], AS_RECORDED])
        call = await ben.call(room["room_id"], ana_id, "relay", source=PcmSource(voice.to_pcm(voice.speech(1))))
        connected, _ = await asyncio.gather(page.evaluate("() => answered"), call.connected())
        assert connected["path"] == call.selected_path() == {"local": "relay", "remote": "relay", "protocol": "udp"}
        await page.wait_for_function("() => call.rungs.length > 0")

        async def both_hear() -> None:
            ours, theirs = len(call.sink.frames), (await page.evaluate("() => call.totals()"))["receivedPackets"]
            await until(lambda: len(call.sink.frames) > ours + 20, "the browser's speech")
            await page.wait_for_function("(before) => call.totals().then((totals) => totals.receivedPackets > before + 10)", arg=theirs)

        await both_hear()
        assert (await page.evaluate("() => call.totals()"))["receivedEnergy"] > 0.001

        await page.evaluate(REFUSE_AN_OFFER)
        await page.evaluate("() => call.restart()")  # refused: rolled back, and made anew after a pause
        await page.wait_for_function("() => !Object.hasOwn(client, 'request')")
        await page.evaluate(FORTY_MS)
        await both_hear()
        assert call.restarts == []
        await page.wait_for_function("() => call.restarts.length > 0", timeout=20_000)
        await until(lambda: call.restarts == ["peer"], "the Python client on the new path")
        await both_hear()
        assert {frame.samples for frame in call.sink.frames[-10:]} == {1_920}, "what the rung asked for outlives the rollback and the restart"

        call.restart()
        await page.evaluate("() => call.restart()")  # both at once: one of them gives way
        await page.wait_for_function("() => call.restarts.length > 1", timeout=20_000)
        await until(lambda: len(call.restarts) > 1, "the restart of the Python client")
        await both_hear()

        drained = {"relay_hosts": [stack.endpoints()["relay"]["host"]], "ends_at_ms": now_ms() + 1_000}
        for body in ({"relay_hosts": 7}, {"relay_hosts": ["203.0.113.7"], "ends_at_ms": 1}, drained):
            sockets[0].send(json.dumps({"event": "relay_draining", "at_ms": now_ms(), "trace_id": "0" * 32, "body": body}))
        await page.wait_for_function("() => call.restarts.includes('draining')", timeout=20_000)
        await both_hear()
        assert await page.evaluate("() => call.state") == "connected"
        note(request, connect_ms=connected["ms"], restarts=(await page.evaluate("() => call.restarts"), call.restarts), late=call.sink.reorder.late)
        assert call.sink.reorder.lost == 0
        await call.hangup()
        assert await page.evaluate("() => call.ended") == "hangup"
    assert len(heard) == 1, heard
    assert "a relay_draining event could not be read" in heard[0]


async def test_two_pages_move_to_another_path_both_at_once_and_one_after_the_other(
    stack: RunningStack, talkative: Browser, origin: str, request: pytest.FixtureRequest
) -> None:
    ana, ben = [await opened(talkative, f"{origin}/blank") for _ in range(2)]
    heard = [faults(ana), faults(ben)]
    for page in (ana, ben):
        await page.evaluate(KEEP_CONNECTIONS)
    ids = [await page.evaluate(SIGN_IN, [stack.endpoints(), stack.user(login)]) for page, login in ((ana, "ana"), (ben, "ben"))]
    room_id = await ana.evaluate("async (other) => (await client.createRoom('Pages', [other])).room_id", ids[1])
    await ben.evaluate(ANSWER_WHAT_COMES, [room_id, AS_RECORDED])
    await asyncio.gather(ana.evaluate(CALL, [room_id, ids[1], AS_RECORDED]), ben.evaluate("() => answered"))
    for asking in ((ana,), (ben,), (ana, ben)):
        before = [await page.evaluate("() => call.restarts.length") for page in (ana, ben)]
        await asyncio.gather(*(page.evaluate("() => call.restart()") for page in asking))
        for page, count in zip((ana, ben), before, strict=True):
            await page.wait_for_function("(count) => call.restarts.length > count", arg=count, timeout=20_000)
            received = (await page.evaluate("() => call.totals()"))["receivedPackets"]
            await page.wait_for_function("(before) => call.totals().then((totals) => totals.receivedPackets > before + 20)", arg=received)
    assert [(await page.evaluate("() => call.selectedPath()"))["local"] for page in (ana, ben)] == ["relay", "relay"]
    note(request, restarts=[await page.evaluate("() => call.restarts") for page in (ana, ben)])
    assert [await page.evaluate(PACKETS_LOST) for page in (ana, ben)] == [[0], [0]]
    await ana.evaluate("() => call.hangup()")
    assert heard == [[], []]


async def test_on_a_narrow_link_the_browser_is_told_a_lower_rung_and_obeys(
    stack: RunningStack, talkative: Browser, origin: str, request: pytest.FixtureRequest
) -> None:
    relay = stack.endpoints()["relay"]
    page = await opened(talkative, f"{origin}/blank")
    heard = faults(page)
    ana_id = await page.evaluate(SIGN_IN, [stack.endpoints(), stack.user("ana")])
    async with ShapedLink((relay["host"], int(relay["port"]))) as link, python_client(stack, "ben") as ben:
        await page.evaluate(NARROW, link.address[1])
        room = await ben.create_room("A narrow link", [ana_id])
        calling = asyncio.create_task(page.evaluate(CALL, [room["room_id"], ben.session.account_id, AS_RECORDED]))
        answered = await (await ben.incoming_call(timeout_s=30)).answer(ice_policy="relay")
        await asyncio.gather(calling, answered.connected())
        await page.wait_for_function("() => call.rungs.length > 0")
        before = await page.evaluate("() => call.rungs.at(-1).rung")
        assert {frame.samples for frame in answered.sink.frames[-20:]} == {960}

        link.shape.rate_bps = THROTTLED_BPS
        asked_ms = now_ms()
        await page.wait_for_function("(rung) => call.rungs.at(-1).rung > rung", arg=before, timeout=20_000)
        note(request, lower_rung_after_ms=now_ms() - asked_ms)
        await asyncio.sleep(4)
        lost, first = answered.sink.reorder.lost, len(answered.sink.frames)
        await asyncio.sleep(2)
        frames = answered.sink.frames[first:]
        rungs, max_bitrate_bps = await page.evaluate("() => [call.rungs, call.maxBitrateBps]")
        note(request, rungs=[(rung["name"], rung["reason"]["rule"]) for rung in rungs], lost_after=answered.sink.reorder.lost - lost)
        assert max_bitrate_bps == rungs[-1]["audio"]["bitrate_bps"] < 32_000
        assert {frame.samples for frame in frames} <= {48 * rung["audio"]["ptime_ms"] for rung in rungs[1:]}, (
            "the wire carries the frame duration that was asked for"
        )
        assert sum(frame.samples for frame in frames) > 1.5 * SAMPLE_RATE, "speech goes on"
        assert answered.sink.reorder.lost - lost <= 3, "the lower rung fits the link"

        await page.evaluate("() => { delete client.fetchIceServers; }")  # fresh servers name the relay itself
        link.shape.loss, asked_ms = 1.0, now_ms()
        await page.wait_for_function("() => call.restarts.length > 0", timeout=30_000)
        await until(lambda: bool(answered.restarts), "the restart of the Python client")
        heard_before = len(answered.sink.frames)
        await until(lambda: len(answered.sink.frames) > heard_before + 10, "speech on the other path")
        note(request, another_path_after_ms=now_ms() - asked_ms, restarts=(await page.evaluate("() => call.restarts"), answered.restarts))
        await page.wait_for_function("() => call.state === 'connected'")
        frames = answered.sink.frames[-10:]
        assert {frame.samples for frame in frames} <= {48 * rung["audio"]["ptime_ms"] for rung in await page.evaluate("() => call.rungs")}
        await page.evaluate("() => call.hangup()")
    assert heard == []


async def test_a_cut_socket_comes_back_and_brings_what_was_missed_once(stack: RunningStack, browser: Browser, origin: str) -> None:
    page = await opened(browser, f"{origin}/blank")
    sockets: list[WebSocketRoute] = []

    def pass_through(socket: WebSocketRoute) -> None:
        socket.connect_to_server()
        sockets.append(socket)

    await page.route_web_socket(re.compile(".*"), pass_through)
    async with python_client(stack, "ben") as ben:
        ana_id = await page.evaluate(SIGN_IN, [stack.endpoints(), stack.user("ana")])
        room = await ben.create_room("A cut", [ana_id])
        await page.evaluate(
            "async (room_id) => { window.texts = []; client.on('message', (event) => texts.push(event.body.text)); await client.join(room_id); }",
            room["room_id"],
        )
        await ben.send_text(room["room_id"], "before")
        await page.wait_for_function("() => texts.length === 1")
        await sockets[0].close(code=1001)
        await ben.send_text(room["room_id"], "meanwhile")
        await page.wait_for_function("() => texts.length > 1", timeout=10_000)
        await ben.send_text(room["room_id"], "after")
        await page.wait_for_function("() => texts.length > 2", timeout=10_000)
        assert await page.evaluate("() => texts") == ["before", "meanwhile", "after"]
        assert len(sockets) == 2


async def test_a_page_uploads_a_file_and_downloads_it_by_link(stack: RunningStack, browser: Browser, origin: str) -> None:
    page = await opened(browser, f"{origin}/blank")
    await page.evaluate(SIGN_IN, [stack.endpoints(), stack.user("ana")])
    same = """
    async ([account_id, content]) => {
      const room = await client.createRoom("Files", [account_id]);
      const media_id = await client.uploadFile(room.room_id, new File([content], "plan.txt", { type: "text/plain" }));
      return (await fetch(await client.downloadLink(media_id))).text();
    }
    """
    content = secrets.token_hex(500)
    assert await page.evaluate(same, [stack.user("ben")["account_id"], content]) == content


def signed_again(stack: RunningStack, ticket: str, **changes: object) -> str:
    """The ticket with other claims, signed by the stack's own key."""
    keys = json.loads((stack.data_dir / "secrets.json").read_text())["token_keys"]
    claims = jwt.decode(ticket, options={"verify_signature": False})
    return Tokens(lambda: keys, now_ms, issuer=claims["iss"], audience=claims["aud"]).sign(claims | {"jti": secrets.token_hex(8)} | changes, TICKET_TYP)


def forged(ticket: str) -> str:
    head, payload, signature = ticket.split(".")
    return f"{head}.{payload}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"


async def test_expired_forged_and_used_tickets_are_refused_and_their_twins_pass(stack: RunningStack, browser: Browser, origin: str) -> None:
    async with AsyncExitStack() as cleanup:
        ana = await cleanup.enter_async_context(python_client(stack, "ana"))
        page = await opened(browser, f"{origin}/blank")
        socket_url = stack.endpoints()["socket_url"]

        async def tried(ticket: str) -> str:
            outcome: str = await page.evaluate(OPEN, [socket_url, ticket])
            return outcome

        ticket: str = (await ana.rest.call("POST", "/v1/tickets"))["ticket"]
        now_s = now_ms() // 1_000
        assert await tried(forged(ticket)) == "connection_lost"
        assert await tried(signed_again(stack, ticket, exp=now_s - 1)) == "connection_lost"
        assert await tried(signed_again(stack, ticket, exp=now_s + 20)) == "open", "the twin of the expired one"
        assert await tried(ana.session.access_token) == "connection_lost", "an access token is no ticket"
        assert await tried("") == "connection_lost"
        assert await tried(ticket) == "open", "the twin of the forged one"
        assert await tried(ticket) == "connection_lost", "a ticket is good once"


async def test_bad_input_through_the_page_is_told_and_the_twin_passes(stack: RunningStack, browser: Browser, origin: str) -> None:
    page = await opened(browser, f"{origin}/demo/")
    await page.get_by_label("Login").fill("ana")
    await page.get_by_label("Password").fill("wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("#notice")).to_contain_text("credentials_invalid")
    await sign_in(page, stack, "ana")
    await expect(page.locator("#notice")).to_be_hidden()
    refused = """
    async ([endpoints, user, room_id]) => {
      const { Client } = await import("/dist/heliograph.js");
      const client = new Client(endpoints.rest_url, endpoints.socket_url);
      await client.signIn(user.tenant_id, user.login, user.password);
      await client.connect();
      const code = (work) => work.then(() => "passed", (error) => error.code);
      const room = await client.createRoom("Twin", []);
      const codes = [
        await code(client.sendText(room_id, "to a room that is not ours")),
        await code(client.sendText(room.room_id, "")),
        await code(client.sendText(room.room_id, "\\u{1f3a7}".repeat(9000))),
        await code(client.request("explode", room.room_id)),
        await code(client.sendText(room.room_id, "twin")),
      ];
      await client.close();
      return codes;
    }
    """
    codes = await page.evaluate(refused, [stack.endpoints(), stack.user("ana"), make_id("room")])
    assert codes == ["not_found", "malformed", "too_large", "unknown_action", "passed"]


async def test_a_call_listens_to_its_peer_alone(browser: Browser, origin: str) -> None:
    page = await opened(browser, f"{origin}/blank")
    told = """
    async (froms) => {
      const { Call } = await import("/dist/heliograph.js");
      const call = new Call({ request: async () => ({}) }, "room_1", { account_id: "acc_ben", device_id: "dev_1" }, {});
      const ends = [];
      for (const from of froms) {
        await call.handle({ kind: "event", event: "bye", body: { reason: "hangup", from } });
        ends.push(call.endReason ?? null);
      }
      return ends;
    }
    """
    strangers = [{"account_id": "acc_mallory", "device_id": "dev_1"}, {"account_id": "acc_ben", "device_id": "dev_2"}]
    assert await page.evaluate(told, [*strangers, {"account_id": "acc_ben", "device_id": "dev_1"}]) == [None, None, "hangup"]


def test_without_a_browser_one_sentence_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_chromium()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AssertionError, match="apt install chromium"):
        find_chromium()
    assert demo.WEB.is_dir()
