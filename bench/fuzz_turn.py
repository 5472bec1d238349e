"""Fuzzes the TURN server: programs of datagrams, waits and closed ports, played in the world of bench/_turn_world.py, whose judge looks at every step.

    python -m bench.fuzz_turn [--seconds 600] [--seed 6] [--workers 2] [--replay HEX]

Most messages are signed with fresh nonces after their attributes were mutated, so that they pass authentication. atheris steers by coverage of
`media_fleet.stun` and `media_fleet.turn`; where it has no wheel, what a program made the server do steers. `--seconds` are CPU seconds of all workers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench._turn_world import World

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "corpus" / "turn.txt"
FOUND = ROOT / "build" / "fuzz_turn"
# What an Allocate asks for beside its transport: nothing, IPv4, IPv6, both, an even port, the next one too, and that one by its token.
WISHES = (b"", b"\x00\x17\x04\x01\0\0\0", b"\x00\x17\x04\x02\0\0\0", b"\x80\x00\x04\x02\0\0\0", b"\x00\x18\x01\0", b"\x00\x18\x01\x80", b"\x00\x22\x01\0")
LONGEST, STEPS = 2_048, 48  # bytes and steps of a program

# A program is one byte that chooses the server, then steps: kind, who, flags, length of the body, body.
RAW, ASK, PEER, WAIT, SWITCH, ICMP, LOSE = range(7)
NAMES_OF_KINDS = ("raw", "ask", "peer", "wait", "switch", "icmp", "lose")
FIRST = (0x00, 0x40, 0x80, 0xC0)  # IPv4, both families, IPv6, both with a second worker
WRONG_KEY, STALE, FINGERPRINTED, AGAIN, INDICATION, PLAIN = 0x04, 0x08, 0x10, 0x20, 0x40, 0x80  # flags of ASK; the two lowest bits choose the user
USERS = ("ann", "bob", "old", "eve")
WAITS = (0.0, 0.4, 1.0, 29.0, 31.0, 299.0, 300.0, 301.0, 599.0, 600.0, 601.0, 1800.0, 3599.0, 3600.0, 3601.0, 86_400.0)
PEERS = (
    ("8.8.8.8", 5000), ("8.8.8.8", 5001), ("9.9.9.9", 5000), ("1.1.1.1", 1), ("52.1.2.4", 65_535), ("8.8.8.8", 0), ("192.31.196.1", 53), ("11.0.0.1", 9),
    ("127.0.0.1", 80), ("0.0.0.0", 80), ("10.0.0.1", 3478), ("169.254.169.254", 80), ("169.254.170.2", 80), ("168.63.129.16", 80), ("100.100.100.200", 80),
    ("224.0.0.1", 9), ("255.255.255.255", 9), ("192.168.1.1", 53), ("52.1.2.3", 3478), ("52.1.2.3", 22), ("52.1.2.3", 50_000), ("52.1.2.3", 49_999),
    ("2606:4700::1111", 5000), ("2606:4700::1111", 5001), ("2001:4860:4860::8888", 53), ("::1", 80), ("::", 80), ("::ffff:127.0.0.1", 80),
    ("::ffff:8.8.8.8", 80), ("2001::1", 80), ("2002:7f00:1::", 80), ("64:ff9b::7f00:1", 80), ("fd00:ec2::254", 80), ("fe80::1", 80), ("ff02::1", 80),
    ("::127.0.0.1", 80), ("2a05:d018::1", 3478), ("2a05:d018::1", 50_000), ("2606:4700::5efe:7f00:1", 80), ("3fff::1", 80),
)  # fmt: skip
OF_A_CLIENT = 0xF0  # a peer of 0xF0 + n is the relayed address of client n, with 8 more the other one of two
METHODS = (1, 3, 3, 4, 6, 8, 8, 9, 9)
TYPES = (0x0C, 0x0D, 0x12, 0x12, 0x13, 0x17, 0x18, 0x19, 0x1A, 0x22, 0x8000, 0x06, 0x14, 0x15, 0x01, 0x08, 0x20, 0x8022, 0x8028, 0x7FFE, 0xFFFE)
VALUES = (b"", b"\0", b"\x80", b"\0\0\0\0", b"\x11\0\0\0", b"\x06\0\0\0", b"\x01\0\0\0", b"\x02\0\0\0", b"\0\0\x02\x58", b"\0\0\x0e\x10", b"\xff" * 4,
          b"\x40\0\0\0", b"\x40\x01\0\0", b"\x4f\xff\0\0", b"\x50\0\0\0", b"8 bytes!")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens."""

    kind: int
    who: int
    flags: int = 0
    body: bytes = b""


def steps_of(program: bytes) -> Iterator[Step]:
    """The steps of any bytes."""
    at = 1
    for _ in range(STEPS):
        if at >= len(program):
            return
        kind, who, flags, length = program[at : at + 4].ljust(4, b"\0")
        yield Step(kind % len(NAMES_OF_KINDS), who, flags, program[at + 4 : at + 4 + length])
        at += 4 + length


def program_of(first: int, steps: list[Step]) -> bytes:
    """The bytes of these steps."""
    return bytes((first,)) + b"".join(bytes((step.kind, step.who, step.flags, len(step.body))) + step.body for step in steps)


# Playing


def play(program: bytes) -> Counter[str]:
    """Plays it in a new world; a Finding, or whatever the server raised, if something is wrong. What happened, counted."""
    from bench._turn_world import World

    families, workers = ((4,), (4, 6), (6,), (4, 6))[program[0] >> 6 if program else 0], 1 + (program[:1] >= b"\xc0")
    world = World(*families, workers=workers)
    for step in steps_of(program):
        PLAYS[step.kind](world, step)
        world.tally["steps"] += 1
    world.finish()
    return world.tally


def _play_raw(world: World, step: Step) -> None:
    from media_fleet.stun import Malformed, parse

    try:
        parse(step.body)
    except Malformed:
        world.tally["raw: not a message"] += 1
    world.receive(step.who % len(world.clients), step.body)


def _play_ask(world: World, step: Step) -> None:
    from bench import _turn_world

    who, username, flags = step.who % len(world.clients), USERS[step.flags & 3], step.flags
    method = step.body[0] if step.body else 3
    transaction_id = world.last_transaction if flags & AGAIN else world.transaction()
    values = _values(world, step.body[1:], transaction_id)
    if flags & INDICATION:
        world.receive(who, _turn_world.message(method, _turn_world.INDICATION, transaction_id, values, None, bool(flags & FINGERPRINTED)))
        return
    world.ask(
        who, method, values, username, key=b"guess" if flags & WRONG_KEY else None, stale=bool(flags & STALE),
        fingerprint=bool(flags & FINGERPRINTED), transaction_id=transaction_id, plain=bool(flags & PLAIN),
    )  # fmt: skip


def _values(world: World, body: bytes, transaction_id: bytes) -> list[tuple[int, bytes]]:
    """Attributes: type, length, value. Two bytes as XOR-PEER-ADDRESS choose one of PEERS and change its port, one as RESERVATION-TOKEN a token given out."""
    from bench import _turn_world

    values, at = [], 0
    while at + 3 <= len(body):
        number, length = body[at] << 8 | body[at + 1], body[at + 2]
        value = body[at + 3 : at + 3 + length]
        if number == _turn_world.PEER_ADDRESS and len(value) == 2:
            host, port = _peer(world, value[0])
            value = _turn_world.xor((host, (port + value[1]) & 0xFFFF), transaction_id)
        elif number == _turn_world.RESERVATION_TOKEN and len(value) == 1 and world.tokens:
            value = world.tokens[-1 - value[0] % len(world.tokens)]
        values.append((number, value))
        at += 3 + length
    return values


def _peer(world: World, index: int) -> tuple[str, int]:
    if index < OF_A_CLIENT:
        return PEERS[index % len(PEERS)]
    holding = world.holdings.get(world.clients[(index & 7) % len(world.clients)])
    relay_id = 50_001 if holding is None else list(holding.relays)[index >> 3 & 1 and -1]
    return next((host for host in world.hosts if (":" in host) == (relay_id > 0xFFFF)), world.hosts[0]), relay_id & 0xFFFF


def _play_peer(world: World, step: Step) -> None:
    """`who` chooses an open relay socket, `flags` the peer; an empty body stands for the largest datagrams."""
    world.receive_from_peer(_relay(world, step.who), _peer(world, step.flags), step.body or bytes(65_395 + step.who % 113))


def _relay(world: World, index: int) -> int:
    relays = sorted(world.sockets)
    return relays[index % len(relays)] if relays and index != 0xFF else 49_152 + index


def _play_icmp(world: World, step: Step) -> None:
    from media_fleet.stun import Icmp

    kind, code = step.body[:2].ljust(2, b"\0")
    world.receive_icmp(_relay(world, step.who), _peer(world, step.flags), Icmp(kind & 0x7F, code, int.from_bytes(step.body[2:6], "big")))


def _play_lose(world: World, step: Step) -> None:
    world.lose(step.who % len(world.clients))


def _play_wait(world: World, step: Step) -> None:
    world.wait(WAITS[step.who % len(WAITS)], does_tick=not step.flags & 1)


def _play_switch(world: World, step: Step) -> None:
    """Relay sockets can be opened or not, IPv6 ones apart; new allocations are taken or not."""
    if step.who & 4:
        world.opens_ipv6 = not step.who & 1
    elif step.who & 2:
        world.server.is_draining = bool(step.who & 1)
    else:
        world.does_open = not step.who & 1


PLAYS: tuple[Callable[[World, Step], None], ...] = (_play_raw, _play_ask, _play_peer, _play_wait, _play_switch, _play_icmp, _play_lose)


# Mutating


def mutated(program: bytes, draw: random.Random, other: bytes = b"") -> bytes:
    """Another program near this one: steps come, go and change places, attributes change, now and then a byte."""
    first, steps = program[:1] or b"\0", list(steps_of(program))
    for _ in range(1 + draw.randrange(4)):
        at, choice = draw.randrange(len(steps) + 1), draw.randrange(10)
        if choice < 4 or not steps:
            steps.insert(at, _drawn_step(draw))
        elif choice == 4:
            del steps[draw.randrange(len(steps))]
        elif choice == 5:
            steps.insert(at, draw.choice(steps))
        elif choice == 6:
            one, two = draw.randrange(len(steps)), draw.randrange(len(steps))
            steps[one], steps[two] = steps[two], steps[one]
        elif choice == 7 and other:
            steps[at:at] = list(steps_of(other))[: draw.randrange(1, 8)]
        else:
            at = draw.randrange(len(steps))
            steps[at] = _changed(steps[at], draw)
    if draw.randrange(64) == 0:
        first = bytes((draw.choice(FIRST),))
    return program_of(first[0], steps[:STEPS])[:LONGEST]


def _changed(step: Step, draw: random.Random) -> Step:
    kind, who, flags, body = step.kind, step.who, step.flags, bytearray(step.body)
    choice = draw.randrange(6)
    if choice == 0:
        who = draw.randrange(256) if draw.randrange(2) else draw.randrange(5)
    elif choice == 1:
        flags ^= 1 << draw.randrange(8)
    elif choice == 2 and body:
        body[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
    elif choice == 3:
        at = draw.randrange(len(body) + 1)
        del body[at : at + draw.randrange(1, 5)]
    elif choice == 4 and kind == ASK:
        body += _drawn_value(draw)
    else:
        at = draw.randrange(len(body) + 1)
        body[at:at] = draw.randbytes(draw.randrange(1, 5))
    return Step(kind, who, flags, bytes(body[:255]))


def _drawn_step(draw: random.Random) -> Step:
    kind = draw.choices((RAW, ASK, PEER, WAIT, SWITCH, ICMP, LOSE), (6, 16, 6, 4, 2, 1, 1))[0]
    who = draw.choice((0, 0, 0, 1, 1, 2, 3, 4))
    if kind == ASK:
        return _drawn_ask(who, draw)
    if kind == RAW:
        length = draw.randrange(6)
        number = draw.choice((0x4000, 0x4000, 0x4001, 0x4FFF, 0x5000, 0x7FFF))
        return Step(RAW, who, 0, number.to_bytes(2, "big") + draw.choice((length, length, 0xFFFF)).to_bytes(2, "big") + draw.randbytes(length))
    if kind == PEER:
        return Step(PEER, who, draw.choice((0, 0, 1, 2, draw.randrange(len(PEERS)), OF_A_CLIENT + draw.randrange(13))), draw.randbytes(draw.randrange(6)))
    if kind == ICMP:
        return Step(ICMP, who, draw.choice((0, 22)), bytes((draw.choice((3, 11, 1, 2)), 1)))
    return Step(kind, draw.randrange(len(WAITS)), draw.randrange(2))


def _drawn_ask(who: int, draw: random.Random) -> Step:
    method = draw.choice(METHODS) if draw.randrange(20) else draw.randrange(256)
    user = draw.choice((0, 0, 0, 1, 1, 2, 3))
    flags = user | (draw.choice((WRONG_KEY, STALE, FINGERPRINTED, AGAIN, PLAIN)) if draw.randrange(4) == 0 else 0)
    usual = {
        3: b"\x00\x19\x04\x11\0\0\0" + draw.choice(WISHES),
        4: b"\x00\x0d\x04" + draw.choice((b"\0\0\0\0", b"\0\0\x0e\x10")),
        8: _named(draw),
        9: b"\x00\x0c\x04\x40" + bytes((draw.choice((0, 0, 1, 2)), 0, 0)) + _named(draw),
        6: _named(draw) + b"\x00\x13\x03abc",
    }.get(method, b"")
    body = usual + b"".join(_drawn_value(draw) for _ in range(draw.choice((0, 0, 0, 1, 2))))
    return Step(ASK, who, flags | (INDICATION if method == 6 else 0), bytes((method,)) + body[:254])


def _named(draw: random.Random) -> bytes:
    index = draw.choice((0, 0, 1, 2, 22, draw.randrange(len(PEERS)), OF_A_CLIENT + draw.randrange(13)))
    return bytes((0, 0x12, 2, index, draw.choice((0, 0, 1))))


def _drawn_value(draw: random.Random) -> bytes:
    number = draw.choice(TYPES)
    value = _named(draw)[3:] if number == 0x12 and draw.randrange(4) else draw.choice(VALUES) if draw.randrange(3) else draw.randbytes(draw.randrange(24))
    return number.to_bytes(2, "big") + bytes((len(value),)) + value


# Searching


def corpus() -> dict[str, bytes]:
    """The committed programs by name."""
    lines = (line.split("  # ") for line in CORPUS.read_text(encoding="utf-8").splitlines())
    return {name: bytes.fromhex(text) for text, name in lines}


class Search:
    """Plays programs until its CPU time is used up or something is found; both engines call it."""

    def __init__(self, seconds: float) -> None:
        self.tally: Counter[str] = Counter()
        self._seconds = seconds

    def one(self, program: bytes) -> Counter[str]:
        """Plays one; ends the process after the last one."""
        try:
            seen = play(program)
        except BaseException as error:
            self._end({"program": shortest(program, type(error)).hex(), "error": repr(error)})
            raise
        self.tally += seen
        self.tally["programs"] += 1
        if time.process_time() > self._seconds:
            self._end(None)
        return seen

    def _end(self, finding: dict[str, str] | None) -> None:
        print(json.dumps({"tally": self.tally, "finding": finding, "cpu_s": time.process_time()}), flush=True)
        os._exit(0)


def shortest(program: bytes, error: type[BaseException]) -> bytes:
    """The program without the steps that the error does not need."""

    def fails(steps: list[Step]) -> bool:
        try:
            play(program_of(program[0] if program else 0, steps))
        except error:
            return True
        except BaseException:
            return False
        return False

    steps = list(steps_of(program))
    for at in reversed(range(len(steps))):
        fewer = steps[:at] + steps[at + 1 :]
        if fails(fewer):
            steps = fewer
    return program_of(program[0] if program else 0, steps) if fails(steps) else program


def search_by_coverage(search: Search, seed: int) -> None:
    """atheris: keeps what reaches new code of the server."""
    import atheris

    with atheris.instrument_imports(include=["media_fleet.stun", "media_fleet.turn"]):
        from bench import _turn_world  # noqa: F401

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        draw = random.Random(seed)
        return atheris.Mutate(data, max_size) if draw.randrange(8) == 0 else mutated(data, draw, draw.choice(known))[:max_size]

    known = list(corpus().values())
    with tempfile.TemporaryDirectory() as folder:
        for number, program in enumerate(known):
            (Path(folder) / str(number)).write_bytes(program)
        limits = ["-timeout=1200", "-rss_limit_mb=1024"]  # a busy machine may let a program wait, but no program may make memory grow
        options = [f"-seed={seed}", f"-max_len={LONGEST}", f"-artifact_prefix={FOUND}/", "-verbosity=0", "-len_control=0", *limits, folder]
        atheris.Setup([sys.argv[0], *options], search.one, custom_mutator=mutate)
        atheris.Fuzz()


def search_by_behaviour(search: Search, seed: int) -> None:
    """Without atheris: keeps what makes the server answer or relay in a way not seen before."""
    draw, known, seen = random.Random(seed), list(corpus().values()), set[str]()
    for program in known:
        seen |= search.one(program).keys()
    while True:
        program = mutated(draw.choice(known), draw, draw.choice(known))
        news = search.one(program).keys() - seen
        if news or draw.randrange(200) == 0:
            seen |= news
            known.append(program)


def has_atheris() -> bool:
    """Whether atheris can be used here."""
    from importlib.util import find_spec

    return find_spec("atheris") is not None


# The run


def _stop(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
    sys.exit(143)


def run(seconds: float, seed: int, workers: int) -> tuple[Counter[str], list[dict[str, Any]], float]:
    """What all workers saw, what they found, and the CPU seconds they used."""
    FOUND.mkdir(parents=True, exist_ok=True)
    tally: Counter[str] = Counter()
    findings, cpu_s = [], 0.0
    processes: list[subprocess.Popen[str]] = []
    signal.signal(signal.SIGTERM, lambda *_: _stop(processes))
    for number in range(workers):
        command = [sys.executable, "-m", "bench.fuzz_turn", "--work", "--seconds", str(seconds / workers), "--seed", str(seed + number)]
        log = (FOUND / f"worker{number}.log").open("wb")
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True))
        log.close()
    for number, process in enumerate(processes):
        said = process.communicate()[0].strip().splitlines()
        if not said or not said[-1].startswith("{"):
            findings.append({"error": f"worker {number} ended with {process.returncode}; see {FOUND / f'worker{number}.log'}", "seed": seed + number})
            continue
        told = json.loads(said[-1])
        tally, cpu_s = tally + Counter(told["tally"]), cpu_s + told["cpu_s"]
        if told["finding"]:
            findings.append(told["finding"] | {"seed": seed + number})
    return tally, findings, cpu_s


NAMES = {"1": "Binding", "3": "Allocate", "4": "Refresh", "8": "CreatePermission", "9": "ChannelBind"}


def show(tally: Counter[str], findings: list[dict[str, Any]], cpu_s: float, seed: int) -> None:
    """What the server was made to do, and what was found."""
    engine = "atheris, by coverage" if has_atheris() else "by behaviour; atheris has no wheel here"
    print(f"{tally['programs']:,} programs, {tally['steps']:,} steps in {cpu_s:.0f} CPU seconds, seed {seed} ({engine})")
    groups: dict[str, list[str]] = {}
    for name, count in sorted(tally.items()):
        who, _, what = name.partition(": ")
        if what and (who in NAMES or not who.isdigit()):
            groups.setdefault(NAMES.get(who, who), []).append(f"{what} {count:,}")
    for who, outcomes in groups.items():
        print(f"  {who:18} {', '.join(outcomes)}")
    for finding in findings:
        print(f"FOUND {finding['error']} (seed {finding['seed']})")
        if "program" in finding:
            print(f"  python -m bench.fuzz_turn --replay {finding['program']}")
    print(f"{len(findings)} findings")


def replay(text: str) -> int:
    """Says each step, and what is found."""
    program = bytes.fromhex(Path(text).read_text() if Path(text).exists() else text)
    for step in steps_of(program):
        print(f"{NAMES_OF_KINDS[step.kind]:6} who {step.who} flags {step.flags:#04x} {step.body.hex()}")
    print(dict(play(program)))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz_turn", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="CPU seconds of all workers (%(default)s)")
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--replay", metavar="HEX", help="a program, or a file with one, instead of a search")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.replay:
        return replay(asked.replay)
    if asked.work:
        (search_by_coverage if has_atheris() else search_by_behaviour)(Search(asked.seconds), asked.seed)
    tally, findings, cpu_s = run(asked.seconds, asked.seed, asked.workers)
    show(tally, findings, cpu_s, asked.seed)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
