"""The main job, run against the local stack through its endpoints only: two people meet, talk over the relay and directly, send a file, miss a call.

Everything is measured where it happens and written to build/call.json (docs/call-json.md). It knows clients, never the server's insides.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from heliograph_client import Client, HeliographError, NotFoundError, make_id
from heliograph_client.call import Call, CalleeAbsentError
from heliograph_client.opus import SAMPLE_RATE, PcmSource
from local import voice
from local.shaped_link import ShapedLink

SCHEMA_VERSION = 1
LEAST_PESQ = 4.0
LEAST_PESQ_THROTTLED = 3.0
LEAD_S, TAIL_S = 0.4, 0.6
THROTTLED_BPS = 40_000
LINK_S = 3
PUSH_TARGET_PREFIX = "scenario-"
TIMEOUT_S = 90.0


class StepFailedError(Exception):
    """A step could not be done; the text says what was missing."""


@dataclass(slots=True)
class Record:
    """What happened so far: steps for the table, findings for call.json, failures as sentences."""

    steps: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    findings: dict[str, Any] = field(default_factory=lambda: {"calls": []})

    def require(self, holds: bool, failure: str) -> None:
        """Note a requirement that does not hold; the run goes on."""
        if not holds:
            self.failures.append(failure)

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[dict[str, Any]]:
        """Time one step; put what is worth showing into the yielded dict's `note`."""
        loop = asyncio.get_running_loop()
        started_s, failures = loop.time(), len(self.failures)
        step: dict[str, Any] = {"name": name, "ms": None, "ok": None}
        self.steps.append(step)
        try:
            yield step
        except (HeliographError, voice.NoSpeechError, aiohttp.ClientError, OSError, TimeoutError) as error:
            raise StepFailedError(f"{name}: {error or type(error).__name__}") from error
        finally:
            step["ms"] = round((loop.time() - started_s) * 1_000, 1)
        step["ok"] = len(self.failures) == failures

    def table(self) -> Table:
        """The progress table."""
        table = Table(box=None, pad_edge=False)
        for title, justify in (("", "left"), ("step", "left"), ("ms", "right"), ("", "left")):
            table.add_column(title, justify="right" if justify == "right" else "left")
        for step in self.steps:
            mark = {True: "[green]ok[/]", False: "[red]failed[/]", None: "…"}[step["ok"]]
            table.add_row(mark, step["name"], "" if step["ms"] is None else f"{step['ms']:.0f}", str(step.get("note", "")))
        return table


@dataclass(slots=True)
class Cast:
    """Who takes part, and where they meet."""

    endpoints: Mapping[str, Any]
    record: Record
    ana: Client
    ben: Client
    mallory: Client
    room_id: str = field(default_factory=lambda: make_id("room"))
    push_target: str = field(default_factory=lambda: PUSH_TARGET_PREFIX + secrets.token_hex(8))


@dataclass(frozen=True, slots=True)
class Take:
    """One speech on its way from one call's track to another's sink, kept for scoring after the call."""

    reference: voice.Samples
    talker: Call
    listener: Call
    captured_at_s: float
    first_frame: int
    last_frame: int

    def measure(self) -> dict[str, float]:
        """PESQ-WB and mouth-to-ear delay; takes a moment of CPU."""
        frames = self.listener.sink.frames[self.first_frame : self.last_frame]
        if not frames:
            return {"pesq_wb": voice.SILENCE_SCORE, "latency_ms": 0.0, "heard_s": 0.0}
        received = voice.from_pcm(self.listener.sink.pcm(self.first_frame, self.last_frame))
        arrivals = [(frame.pts - frames[0].pts, frame.at_s) for frame in frames]
        return {
            "pesq_wb": round(voice.score(self.reference, received), 3),
            "latency_ms": round(voice.latency_ms(self.reference, received, self.captured_at_s, arrivals), 1),
            "heard_s": round(sum(frame.samples for frame in frames) / SAMPLE_RATE, 2),
        }


async def run(endpoints: Mapping[str, Any], *, out: Path = Path("build/call.json"), console: Console | None = None) -> int:
    """Do the main job; 0 when every requirement held, else 1 after a sentence for each that did not. Writes `out` either way."""
    console = console or Console()
    record, started_at = Record(), datetime.now(UTC)
    started_s = asyncio.get_running_loop().time()
    with Live(get_renderable=lambda: Group(record.table()), console=console, refresh_per_second=4):
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await _job(endpoints, record)
        except StepFailedError as failure:
            record.failures.append(str(failure))
        except TimeoutError:
            record.failures.append(
                f"The scenario did not end within {TIMEOUT_S:g} s; its last step was {record.steps[-1]['name'] if record.steps else 'none'}."
            )
    if not console.is_terminal:
        console.line()  # rich ends a live table with a line break only on a terminal
    for step in record.steps:
        step["ok"] = bool(step["ok"])
    result = {
        "schema_version": SCHEMA_VERSION,
        "ok": not record.failures,
        "started_at_ms": int(started_at.timestamp() * 1_000),
        "duration_s": round(asyncio.get_running_loop().time() - started_s, 1),
        "failures": record.failures,
        "steps": [{name: step[name] for name in ("name", "ms", "ok")} for step in record.steps],
        **record.findings,
    }
    await asyncio.to_thread(_write, out, result)
    _summarize(console, result, out)
    return 0 if result["ok"] else 1


def _write(out: Path, result: Mapping[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_suffix(".tmp")
    new.write_text(json.dumps(result, indent=2) + "\n")
    new.replace(out)


def _summarize(console: Console, result: Mapping[str, Any], out: Path) -> None:
    for call in result["calls"]:
        pair, relayed = call["selected_pair"], call["relay_bytes"]["after"] - call["relay_bytes"]["before"]
        path = f"path {pair['local']}/{pair['remote']} over {pair['protocol']}, relay took {relayed:,} bytes for {call['media_bytes']:,} of media"
        console.print(f"{call['path']:>5}: PESQ-WB {call['pesq_wb']:.2f}, mouth to ear {call['latency_ms']:.0f} ms, {path}", highlight=False)
    for failure in result["failures"]:
        console.print(f"[red]failed:[/] {failure}", highlight=False)
    console.print(
        f"{'All requirements held' if result['ok'] else 'Not every requirement held'} in {result['duration_s']:.1f} s; details in {out}.", highlight=False
    )


async def _job(endpoints: Mapping[str, Any], record: Record) -> None:
    urls = endpoints["rest_url"], endpoints["socket_url"]
    async with Client(*urls) as ana, Client(*urls) as ben, Client(*urls) as mallory:
        cast = Cast(endpoints, record, ana, ben, mallory)
        await _arrive(cast)
        await _meet(cast)
        await _write_text(cast)
        takes = [await _relayed_call(cast)]
        takes += (await asyncio.gather(_direct_call(cast), _send_file(cast)))[:1]  # the link's seconds run out while the two talk
        await _refuse_stranger(cast)
        scoring = asyncio.create_task(_score(cast, takes))
        await _miss_call(cast)
        await scoring


# arriving


def _user(endpoints: Mapping[str, Any], login: str) -> Mapping[str, str]:
    for user in endpoints["users"]:
        if user["login"].split("@")[0] == login:
            found: Mapping[str, str] = user
            return found
    raise StepFailedError(f"The stack has no user {login}.")


async def _sign_in(endpoints: Mapping[str, Any], client: Client, login: str) -> None:
    user = _user(endpoints, login)
    await client.sign_in(user["tenant_id"], user["login"], user["password"])


async def _arrive(cast: Cast) -> None:
    people = {"ana": cast.ana, "ben": cast.ben, "mallory": cast.mallory}
    async with cast.record.step("find speech"):
        await asyncio.gather(*(asyncio.to_thread(voice.speech, number) for number in (0, 1)))
    async with cast.record.step("sign in: ana, ben, and mallory of another tenant"):
        await asyncio.gather(*(_sign_in(cast.endpoints, client, login) for login, client in people.items()))
    async with cast.record.step("open three sockets"):
        await asyncio.gather(*(client.connect() for client in people.values()))
    async with cast.record.step("register ben's push target"):
        await cast.ben.register_push_target(cast.push_target)


async def _meet(cast: Cast) -> None:
    ana, ben = cast.ana, cast.ben
    async with cast.record.step("create a room, both join"):
        with ana.subscribe("participant_joined") as joined:
            await ana.create_room("The first room", [ben.session.account_id], cast.room_id)
            await ana.join(cast.room_id)
            await ben.join(cast.room_id)
            await joined.next(lambda event: event.room_id == cast.room_id, timeout_s=5)
    async with cast.record.step("presence, seen by both"):
        seen = await asyncio.gather(_see_presence(ana, ben, "busy"), _see_presence(ben, ana, "away"))
        cast.record.findings["presence"] = {"ana_saw_ben": seen[0], "ben_saw_ana": seen[1]}
        cast.record.require(seen[0]["rest"] == "busy" and seen[1]["rest"] == "away", f"GET /v1/presence tells another status than the events: {seen}.")


async def _see_presence(watcher: Client, other: Client, status: Any) -> dict[str, Any]:
    """The other changes status: what the watcher's socket and REST say, and how long the event took."""
    loop, account_id = asyncio.get_running_loop(), other.session.account_id
    with watcher.subscribe("presence") as events:
        started_s = loop.time()
        await other.set_presence(status)
        event = await events.next(lambda event: event.body["account_id"] == account_id and event.body["status"] == status, timeout_s=5)
        event_ms = round((loop.time() - started_s) * 1_000, 1)
    rows = {row["account_id"]: row["status"] for row in await watcher.presence()}
    return {"event": event.body["status"], "rest": rows.get(account_id), "event_ms": event_ms}


async def _write_text(cast: Cast) -> None:
    async with cast.record.step("send a text") as step:
        with cast.ben.subscribe("message") as messages:
            ack = await cast.ana.send_text(cast.room_id, "Can you hear me?")
            event = await messages.next(lambda event: event.room_id == cast.room_id, timeout_s=5)
        cast.record.require(
            ack.offset is not None and ack.offset == event.offset, f"The text was acknowledged at offset {ack.offset}, and delivered at {event.offset}."
        )
        cast.record.findings["message"] = {"acknowledged_offset": ack.offset, "delivered_offset": event.offset}
        step["note"] = f"offset {ack.offset}"


# talking


async def _call(cast: Cast, policy: Any, ana_servers: Sequence[Mapping[str, Any]], ben_servers: Sequence[Mapping[str, Any]]) -> tuple[Call, Call]:
    """Ana calls, ben answers, media flows."""
    calling = await cast.ana.call(cast.room_id, cast.ben.session.account_id, policy, ice_servers=ana_servers)
    incoming = await cast.ben.incoming_call(timeout_s=10)
    answered = await incoming.answer(ice_policy=policy, ice_servers=ben_servers)
    await asyncio.gather(calling.connected(), answered.connected())
    return calling, answered


def _say(call: Call, samples: voice.Samples) -> float:
    """Let a call's track speak from now on; answers when the first sample is captured, on the loop's clock."""
    call.track.source = PcmSource(voice.to_pcm(samples))
    return call.track.next_capture_at_s()


async def _talk(calling: Call, answered: Call) -> tuple[Take, Take]:
    """Both speak at once, each with another recording."""
    pairs = ((calling, answered, voice.speech(0)), (answered, calling, voice.speech(1)))
    lead = [0.0] * int(LEAD_S * SAMPLE_RATE)
    started = [(talker, listener, speech, _say(talker, voice.joined(lead, speech)), len(listener.sink.frames)) for talker, listener, speech in pairs]
    await asyncio.sleep(LEAD_S + max(len(speech) for *_, speech in pairs) / SAMPLE_RATE + TAIL_S)
    takes = [Take(speech, talker, listener, at_s + LEAD_S, first, len(listener.sink.frames)) for talker, listener, speech, at_s, first in started]
    return takes[0], takes[1]


async def _relay_bytes(endpoints: Mapping[str, Any], servers: Sequence[Mapping[str, Any]]) -> int:
    """Bytes the relay took from the holders of these credentials, by its own counters."""
    usernames = {server.get("username") for server in servers if server.get("username")}
    async with aiohttp.ClientSession() as http, http.get(endpoints["relay"]["stats_url"]) as response:
        rows = await response.json(content_type=None)
    allocations = rows if isinstance(rows, list) else rows["allocations"]
    return sum(int(row["from_client_bytes"]) for row in allocations if row["username"] in usernames)


def _media_bytes(*calls: Call) -> int:
    return sum(packet.length_bytes for call in calls for packet in call.track.sent)


def _through(servers: Sequence[Mapping[str, Any]], port: int) -> list[dict[str, Any]]:
    """The same relay credentials, reached through a proxy on the loopback."""
    relays = [server for server in servers if server.get("username")]
    if not relays:
        raise StepFailedError("The answer of /v1/ice-servers names no relay.")
    return [{**relays[0], "urls": [f"turn:127.0.0.1:{port}?transport=udp"]}]


async def _relayed_call(cast: Cast) -> tuple[dict[str, Any], tuple[Take, Take]]:
    """Call through the relay: speech on a clean link, then a throttled one."""
    relay = cast.endpoints["relay"]
    async with ShapedLink((relay["host"], int(relay["port"]))) as link:
        async with cast.record.step("call through the relay: connect") as step:
            ana_servers, ben_servers = await asyncio.gather(cast.ana.ice_servers(), cast.ben.ice_servers())
            before = await _relay_bytes(cast.endpoints, [*ana_servers, *ben_servers])
            calling, answered = await _call(cast, "relay", _through(ana_servers, link.address[1]), ben_servers)
            step["note"] = _pair_text(calling)
        async with cast.record.step("both speak over the relay"):
            takes = await _talk(calling, answered)
            after, media_bytes = await _relay_bytes(cast.endpoints, [*ana_servers, *ben_servers]), _media_bytes(calling, answered)
        pair = calling.selected_path() or {"local": "none", "remote": "none", "protocol": "none"}
        cast.record.require(pair["local"] == "relay" and pair["remote"] == "relay", f"The relay-only call selected {pair}.")
        cast.record.require(after - before >= media_bytes, f"The relay carried {after - before} bytes of a call with {media_bytes} media bytes.")
        await _throttle(cast, link, calling, answered)
        async with cast.record.step("hang up"):
            await calling.hangup()
            await asyncio.wait_for(answered.ended(), 5)
    return {"path": "relay", "selected_pair": pair, "relay_bytes": {"before": before, "after": after}, "media_bytes": media_bytes}, takes


async def _direct_call(cast: Cast) -> tuple[dict[str, Any], tuple[Take, Take]]:
    """Call with every kind of candidate allowed: ICE must find the direct path by itself."""
    async with cast.record.step("call peer to peer: connect") as step:
        ana_servers, ben_servers = await asyncio.gather(cast.ana.ice_servers(), cast.ben.ice_servers())
        before = await _relay_bytes(cast.endpoints, [*ana_servers, *ben_servers])
        calling, answered = await _call(cast, "all", ana_servers, ben_servers)
        step["note"] = _pair_text(calling)
    async with cast.record.step("both speak peer to peer"):
        takes = await _talk(calling, answered)
        after, media_bytes = await _relay_bytes(cast.endpoints, [*ana_servers, *ben_servers]), _media_bytes(calling, answered)
    pair = calling.selected_path() or {"local": "none", "remote": "none", "protocol": "none"}
    cast.record.require({pair["local"], pair["remote"]} <= {"host", "prflx"}, f"The peer-to-peer call selected {pair}.")
    cast.record.require(after - before < media_bytes // 20, f"The relay carried {after - before} bytes while two peers talked directly.")
    async with cast.record.step("hang up again"):
        await calling.hangup()
        await asyncio.wait_for(answered.ended(), 5)
    return {"path": "p2p", "selected_pair": pair, "relay_bytes": {"before": before, "after": after}, "media_bytes": media_bytes}, takes


def _pair_text(call: Call) -> str:
    pair = call.selected_path()
    return f"{pair['local']}/{pair['remote']} over {pair['protocol']}" if pair else "no pair"


async def _throttle(cast: Cast, link: ShapedLink, calling: Call, answered: Call) -> None:
    """Squeeze the link while ana talks: a rung change must come with its reason, reach the encoder, and be heard on the wire."""
    async with cast.record.step(f"throttle the link to {THROTTLED_BPS // 1_000} kbit/s") as step:
        before, speech = _encoding(calling, answered), voice.speech(0)
        cast.record.require(bool(calling.rungs), "The first statistics brought no rung event.")
        from_rung = calling.rungs[-1]["rung"] if calling.rungs else 0
        _say(calling, voice.joined(speech, speech, speech))
        link.shape.rate_bps = THROTTLED_BPS
        loop = asyncio.get_running_loop()
        throttled_s = loop.time()
        rung = await _lower_rung(calling, from_rung)
        applied_ms = round((loop.time() - throttled_s) * 1_000)
        step["note"] = f"rung {from_rung} to {rung['rung']} after {applied_ms} ms: {rung['reason']['rule']}"
    async with cast.record.step("audio goes on") as step:
        settled_ms = await _settled(calling)
        speech = speech[: 3 * SAMPLE_RATE]
        first, sent = len(answered.sink.frames), len(calling.track.sent)
        captured_at_s = _say(calling, speech)
        await asyncio.sleep(3.0)
        after = _encoding(calling, answered)
        _say(calling, speech)  # what the listener's jitter buffer still holds comes out
        await asyncio.sleep(1.0)
        take = await asyncio.to_thread(Take(speech, calling, answered, captured_at_s, first, len(answered.sink.frames)).measure)
        share = round(min(1.0, take["heard_s"] * SAMPLE_RATE / sum(packet.samples for packet in calling.track.sent[sent:])), 3)
        step["note"] = f"PESQ-WB {take['pesq_wb']:.2f}"
        cast.record.require(share > 0.8, f"Only {share:.0%} of the speech arrived after the rung change.")
        cast.record.require(take["pesq_wb"] >= LEAST_PESQ_THROTTLED, f"After the rung change speech scored PESQ-WB {take['pesq_wb']}.")
        changed = all(after[name] != before[name] for name in ("bitrate_bps", "sent_ptime_ms", "heard_ptime_ms"))
        cast.record.require(changed, f"The rung change did not reach the wire: {before} then {after}.")
    cast.record.findings["rung_change"] = {
        "from": from_rung,
        "to": rung["rung"],
        "name": rung["name"],
        "reason": rung["reason"],
        "applied_ms_after_throttle": applied_ms,
        "link_bps": THROTTLED_BPS,
        "settled_ms": settled_ms,
        "settled_rung": calling.rungs[-1]["rung"],
        "encoder_before": before,
        "encoder_after": after,
        "heard_share_after": share,
        "pesq_wb_after": take["pesq_wb"],
        "latency_ms_after": take["latency_ms"],
        "stats": calling.reports[-3:],
    }


async def _lower_rung(call: Call, than: int, timeout_s: float = 12.0) -> dict[str, Any]:
    """Wait for a rung below (numbered above) `than`, applied to the encoder."""
    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while not call.rungs or call.rungs[-1]["rung"] <= than:
        if asyncio.get_running_loop().time() > deadline_s:
            raise StepFailedError(f"No lower rung came within {timeout_s:g} s of the throttle; last report {call.reports[-1:]}.")
        await asyncio.sleep(0.02)
    return call.rungs[-1]


async def _settled(call: Call, quiet_s: float = 1.5, timeout_s: float = 4.0) -> int:
    """Wait until no rung event came for a while and the last report was free of loss, or time is up; answers how many milliseconds that took."""
    loop = asyncio.get_running_loop()
    started_s = changed_s = loop.time()
    rungs = len(call.rungs)
    while loop.time() < started_s + timeout_s and (loop.time() < changed_s + quiet_s or call.reports[-1].get("loss", 1.0) > 0.02):
        await asyncio.sleep(0.05)
        if len(call.rungs) != rungs:
            rungs, changed_s = len(call.rungs), loop.time()
    return round((loop.time() - started_s) * 1_000)


def _encoding(talker: Call, listener: Call, window_s: float = 2.0) -> dict[str, Any]:
    """What the encoder is set to, and what packets of the last seconds really were on both ends."""
    now_s = asyncio.get_running_loop().time()
    sent = [packet for packet in talker.track.sent if packet.at_s > now_s - window_s]
    heard = [frame.samples * 1_000 // SAMPLE_RATE for frame in listener.sink.frames if frame.at_s > now_s - window_s]
    return {
        "bitrate_bps": talker.track.profile.bitrate_bps,
        "channels": talker.track.profile.channels,
        "ptime_ms": talker.track.profile.ptime_ms,
        "sent_bps": round(sum(packet.length_bytes for packet in sent) * 8 / window_s),
        "sent_ptime_ms": sent[-1].samples * 1_000 // SAMPLE_RATE if sent else 0,
        "heard_ptime_ms": heard[-1] if heard else 0,
    }


async def _score(cast: Cast, calls: Sequence[tuple[dict[str, Any], tuple[Take, Take]]]) -> None:
    async with cast.record.step("score the speech") as step:
        for call, takes in calls:
            there, back = [await asyncio.to_thread(take.measure) for take in takes]
            least = min(there["pesq_wb"], back["pesq_wb"])
            call |= {"speech_s": round(min(len(take.reference) for take in takes) / SAMPLE_RATE, 2), "pesq_wb": least}
            call |= {"latency_ms": max(there["latency_ms"], back["latency_ms"]), "directions": {"ana_to_ben": there, "ben_to_ana": back}}
            cast.record.findings["calls"].append(call)
            cast.record.require(least >= LEAST_PESQ, f"Speech over the {call['path']} call scored PESQ-WB {least}, below {LEAST_PESQ}.")
        step["note"] = ", ".join(f"{call['path']} PESQ-WB {call['pesq_wb']:.2f} {call['latency_ms']:.0f} ms" for call, _ in calls)


# files, strangers, absence


async def _send_file(cast: Cast) -> None:
    async with cast.record.step("upload a file, fetch it by link"):
        content = secrets.token_bytes(200_000)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "plan.bin"
            await asyncio.to_thread(path.write_bytes, content)
            with cast.ben.subscribe("media") as events:
                media_id = await cast.ana.upload_file(cast.room_id, path)
                await events.next(lambda event: event.body["media_id"] == media_id, timeout_s=5)
        signed_s = asyncio.get_running_loop().time()
        url = await cast.ben.download_link(media_id, LINK_S)
        status, data = await _fetch(url)
        cast.record.require(
            status == 200 and hashlib.sha256(data).digest() == hashlib.sha256(content).digest(), f"The link answered {status} with {len(data)} bytes."
        )
    async with cast.record.step(f"the link is refused after {LINK_S} s") as step:
        await asyncio.sleep(signed_s + LINK_S + 1.2 - asyncio.get_running_loop().time())  # signatures count whole seconds
        late_status, _ = await _fetch(url)
        cast.record.require(late_status == 403, f"{LINK_S} s later the link answered {late_status}, not 403.")
        step["note"] = str(late_status)
    cast.record.findings["link"] = {
        "first_status": status,
        "after_expiry_status": late_status,
        "expires_s": LINK_S,
        "media_id": media_id,
        "length_bytes": len(data),
    }


async def _fetch(url: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status, await response.read()


async def _refuse_stranger(cast: Cast) -> None:
    async with cast.record.step("another tenant finds nothing"):
        media_id = cast.record.findings["link"]["media_id"]
        findings = {
            "rest_room": await _code(cast.mallory.rest.call("GET", f"/v1/rooms/{cast.room_id}")),
            "socket_join": await _code(cast.mallory.join(cast.room_id)),
            "media_link": await _code(cast.mallory.download_link(media_id)),
        }
        cast.record.findings["foreign_tenant"] = findings
        cast.record.require(set(findings.values()) == {"not_found"}, f"A foreign tenant was answered {findings}.")


async def _code(attempt: Any) -> str:
    try:
        await attempt
    except NotFoundError as error:
        return error.code
    except HeliographError as error:
        return error.code
    return "allowed"


async def _miss_call(cast: Cast) -> None:
    async with cast.record.step("ben goes offline"):
        account_id = cast.ben.session.account_id
        with cast.ana.subscribe("presence") as events:
            await cast.ben.close()
            await events.next(lambda event: event.body["account_id"] == account_id and event.body["status"] == "offline", timeout_s=10)
    async with cast.record.step("ana calls: absent, and a push goes out") as step:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        call = await cast.ana.call(cast.room_id, account_id, "relay")
        try:
            absent_ms = None
            await call.connected(timeout_s=10)
            cast.record.require(False, "A call to somebody who is offline connected.")
        except CalleeAbsentError:
            absent_ms = round((loop.time() - started_s) * 1_000, 1)
        push = await _push(cast, call.call_id)
        push_ms = round((loop.time() - started_s) * 1_000, 1)
        step["note"] = f"push after {push_ms:.0f} ms"
    cast.record.findings["push"] = {"callee_absent_ms": absent_ms, "push_ms": push_ms, "target": push["target"], "data": push["message"].get("data", {})}


async def _push(cast: Cast, call_id: str, timeout_s: float = 10.0) -> dict[str, Any]:
    """The push about this call, as the push service received it for ben's target."""
    url = f"{cast.endpoints['push_stub_url'].rstrip('/')}/received"
    async with asyncio.timeout(timeout_s), aiohttp.ClientSession() as http:
        while True:
            async with http.get(url) as response:
                received = (await response.json())["received"]
            for push in received:
                found: dict[str, Any] = push
                if push["target"] == cast.push_target and call_id in json.dumps(push["message"]):
                    return found
            await asyncio.sleep(0.05)
    raise StepFailedError("unreachable")
