"""The committed programs of bench/fuzz_turn.py played again, a few mutated ones, and the judge: it finds what it looks for."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from bench import _turn_world as wire
from bench._turn_world import Finding, World
from bench.fuzz_turn import ASK, Step, corpus, mutated, play, program_of, shortest, steps_of
from media_fleet.stun import Malformed, parse
from media_fleet.turn import PeerPolicy, Usage
from media_fleet.turn.effects import Bind, CloseRelay, Ended, OpenRelays, Permit, SendToClient, SendToPeer, SendToSibling

CORPUS = corpus()
Break = Callable[[World], None]


@pytest.mark.parametrize("name", CORPUS)
def test_a_committed_program_is_played_without_a_finding(name: str) -> None:
    play(CORPUS[name])


def test_the_committed_programs_make_the_server_do_everything() -> None:
    tally: Counter[str] = Counter()
    for program in CORPUS.values():
        tally += play(program)
    codes = {
        wire.ALLOCATE: {"success", "400", "420", "437", "440", "442", "486", "508"},
        wire.REFRESH: {"success", "400", "437", "441", "443"},
        wire.CREATE_PERMISSION: {"success", "400", "403", "437", "441", "443", "508"},
        wire.CHANNEL_BIND: {"success", "400", "403", "443", "508"},
        "stranger": {"success", "400", "401", "420", "438", "silence"},
        "from a client": {"dropped", "relayed", "to another client", "to a sibling"},
        "from a peer": {"dropped", "delivered"},
        "icmp": {"dropped", "told"},
    }
    missing = [f"{who}: {what}" for who, outcomes in codes.items() for what in outcomes if f"{who}: {what}" not in tally and who != wire.BINDING]
    assert missing == []


def test_mutated_programs_are_played_without_a_finding() -> None:
    draw, known = random.Random(1), list(CORPUS.values())
    for _ in range(150):
        play(mutated(draw.choice(known), draw, draw.choice(known)))


def test_any_bytes_are_a_program_and_what_was_read_is_written() -> None:
    draw = random.Random(2)
    for length in range(200):
        program = draw.randbytes(length)
        play(program)
        steps = list(steps_of(program))
        assert list(steps_of(program_of(0, steps))) == steps


def test_both_readers_of_the_wire_agree() -> None:
    """Ours of the product and the judge's own: what one signs the other verifies, and they read the same."""
    for program in CORPUS.values():
        for step in steps_of(program):
            said = wire.read(step.body)
            try:
                message = parse(step.body)
            except Malformed:
                continue
            assert said is not None
            assert (said.method, said.kind, said.transaction_id) == (message.method, message.message_class, message.transaction_id)
            if not message.malformed:
                assert [number for number, _ in said.values if number in wire.KNOWN] == [row.type for row, _ in message.attributes if row.type in wire.KNOWN]


# What the judge finds


def _with(change: Callable[[World, list[Any]], list[Any]]) -> Break:
    """A server whose effects are changed."""

    def breaks(world: World) -> None:
        receive = world.server.receive
        world.server.receive = lambda *given: change(world, receive(*given))  # type: ignore[method-assign]

    return breaks


def _each(kind: type[Any], change: Callable[[Any], Any]) -> Break:
    return _with(lambda world, effects: [change(effect) if isinstance(effect, kind) else effect for effect in effects])


def _without(kind: type[Any]) -> Break:
    return _with(lambda world, effects: [effect for effect in effects if not isinstance(effect, kind)])


def _taken(effect: OpenRelays) -> OpenRelays:
    """The first ports that there are, whoever has them."""
    return replace(effect, choices=(tuple((relay_id & ~0xFFFF) + 50_000 + at for at, relay_id in enumerate(effect.choices[0])),))


def _padded(effect: SendToClient) -> SendToClient:
    said = wire.read(effect.data)
    assert said is not None
    return replace(effect, data=wire.message(said.method, said.kind, said.transaction_id, (*said.values, (0x8022, bytes(600)))))


def _remembers_strangers(world: World) -> None:
    receive = world.server.receive

    def remembering(data: bytes, five_tuple: Any, now: float) -> Any:
        world.server._reserved[data] = data  # type: ignore[assignment]
        return receive(data, five_tuple, now)

    world.server.receive = remembering  # type: ignore[method-assign]


def _grants_all(world: World) -> None:
    world.server._peers = PeerPolicy(["0.0.0.0/0"])


def _delivers_all(world: World) -> None:
    def receive_from_peer(data: bytes, relay_id: int, peer: Any, now: float) -> Any:
        client = world.sockets.get(relay_id)
        return [SendToClient(bytes(4) + data, client)] if client else []

    world.server.receive_from_peer = receive_from_peer  # type: ignore[method-assign]


def _forgets_lifetimes(world: World) -> None:
    world.server.tick = lambda now: []  # type: ignore[method-assign]


def _counts_down(world: World) -> None:
    usage, numbers = world.server.usage, iter(range(10**6, 0, -1))

    def falling(five_tuple: Any) -> Usage | None:
        told = usage(five_tuple)
        return None if told is None else replace(told, to_client_bytes=next(numbers))

    world.server.usage = falling  # type: ignore[method-assign]


def _raises(world: World) -> None:
    world.server.receive = lambda *given: 1 / 0  # type: ignore[assignment, method-assign]


BREAKS: dict[str, tuple[Break, str]] = {
    "a long answer to a stranger": (_each(SendToClient, _padded), "answer a stranger's"),
    "two answers": (_with(lambda world, effects: [*effects, *(effect for effect in effects if isinstance(effect, SendToClient))]), "brought 2 datagrams"),
    "an answer to somebody else": (_each(SendToClient, lambda effect: replace(effect, five_tuple=(("9.9.9.9", 9), *effect.five_tuple[1:]))), "somebody else"),
    "a wrong transaction": (_each(SendToClient, lambda effect: replace(effect, data=effect.data[:8] + bytes(12) + effect.data[20:])), "does not answer"),
    "an unsigned success": (_each(SendToClient, lambda effect: replace(effect, data=effect.data[:-1] + b"?")), "is not signed"),
    "a memory of strangers": (_remembers_strangers, "remembered about a stranger"),
    "peers that are not public": (_grants_all, "a permission for"),
    "another peer than the one meant": (_each(SendToPeer, lambda effect: replace(effect, peer=("8.8.4.4", 9))), "went to"),
    "another's relay socket": (_each(SendToPeer, lambda effect: replace(effect, relay_id=49_152)), "another's port"),
    "data that changed": (_each(SendToPeer, lambda effect: replace(effect, data=effect.data + b"!")), "changed"),
    "peers without a permission": (_delivers_all, "without a permission"),
    "a relay port out of range": (_each(OpenRelays, lambda effect: replace(effect, choices=((80,),))), "out of range"),
    "a port that is taken": (_each(OpenRelays, _taken), "another one is open"),
    "a data path that is not told of a permission": (_without(Permit), "other permissions"),
    "a data path that is not told of a channel": (_without(Bind), "other channels"),
    "a data path that may send to our own machine": (_each(Bind, lambda effect: replace(effect, may_leave=True)), "our own machine"),
    "an end that is not told": (_without(Ended), "not told what ended"),
    "data for a sibling that changed": (_each(SendToSibling, lambda effect: replace(effect, data=b"!")), "for a sibling"),
    "an allocation that never ends": (_forgets_lifetimes, "outlived"),
    "a socket closed twice": (_with(lambda world, effects: effects + [effect for effect in effects if isinstance(effect, CloseRelay)]), "not open"),
    "counters that fall": (_counts_down, "counters"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_the_judge_finds(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks, says = BREAKS[what]

    class Broken(World):
        def __init__(self, *families: int, workers: int = 1) -> None:
            super().__init__(*families, workers=workers)
            breaks(self)

    monkeypatch.setattr(wire, "World", Broken)
    findings = [str(error) for program in CORPUS.values() if (error := _found(program))]
    assert any(says in finding for finding in findings), set(findings)


def _found(program: bytes) -> Finding | None:
    try:
        play(program)
    except Finding as error:
        return error
    return None


def test_what_the_server_raises_is_a_finding_and_the_program_that_is_shown_has_no_step_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(World):
        def __init__(self, *families: int, workers: int = 1) -> None:
            super().__init__(*families, workers=workers)
            _raises(self)

    monkeypatch.setattr(wire, "World", Broken)
    program = CORPUS["a channel both ways, and an empty datagram"]
    with pytest.raises(ZeroDivisionError):
        play(program)
    (step,) = steps_of(shortest(program, ZeroDivisionError))
    assert isinstance(step, Step)
    assert step.kind in (0, ASK)
