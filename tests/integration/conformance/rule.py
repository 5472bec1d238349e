"""What a rule is: a paragraph, a sentence, and a proof on real sockets in which a refusal stands beside a twin that passes.

Nobody waits for silence: what follows is answered, and nothing comes before that.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from media_fleet.stun import Address
from tests.integration.conformance.world import TLS, UDP, V4, V6, Client, Field, Peer, Stage, World, lifetime

Proof = Callable[[Stage], Awaitable[None]]
Where = Callable[[World], bool]
NUMBER, OTHER_NUMBER = 0x4000, 0x4FFF  # the first channel and the last
PORT = 20_000 + os.getpid() % 10_000 // 2 * 2  # for relays with one port: an even one that the system gives to nobody
LIVES_LONG = lifetime(3600)


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """`paragraph` names the RFC by its number; `twin` is what passes beside what the rule refuses; `config` is the relay's besides the world's."""

    section: str
    paragraph: str
    sentence: str
    twin: str
    proof: Proof
    where: Where
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.proof.__name__


def everywhere(world: World) -> bool:
    return True


def over_udp(world: World) -> bool:
    return not world.is_stream


def over_streams(world: World) -> bool:
    return world.is_stream


def over_tls(world: World) -> bool:
    return world.transport == TLS


def over_udp_v4(world: World) -> bool:
    return world.transport == UDP and world.client_host == V4


def over_udp_v6(world: World) -> bool:
    return world.transport == UDP and world.client_host == V6


def with_df_bit(world: World) -> bool:
    """Where DONT-FRAGMENT counts."""
    return world.is_stream or over_udp_v4(world)


def rule(rules: list[Rule], section: str, paragraph: str, sentence: str, twin: str = "", where: Where = everywhere, **config: Any) -> Callable[[Proof], Proof]:
    """Makes the function that follows the proof of a rule."""

    def add(proof: Proof) -> Proof:
        rules.append(Rule(section, paragraph, sentence, twin, proof, where, config))
        return proof

    return add


async def allocated(stage: Stage, *fields: Field) -> tuple[Client, Peer, Address]:
    """A client with an allocation, a peer that may send to it, and the relayed address."""
    ann, peer = await stage.client(), stage.peer()
    address = await ann.allocate(*fields)
    assert await ann.permit(peer.address) is None
    return ann, peer, address
