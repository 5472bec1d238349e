"""Does what the rules want done: posts in one go, forgets sockets that are gone, queues pushes."""

from __future__ import annotations

from collections.abc import Iterable

from functions import wiring
from heliograph.effects import Close, Effect, Notify, Post
from heliograph.push import queue_message


def perform(effects: Iterable[Effect]) -> set[str]:
    """Performs every effect; returns the connection ids that turned out to be gone.

    A push is queued before anything is posted: what is acknowledged is durable.
    """
    listed = list(effects)
    for effect in listed:
        if isinstance(effect, Notify):
            wiring.notifications().send(queue_message(effect))
    posts = [(effect.connection_id, effect.event.serialize()) for effect in listed if isinstance(effect, Post)]
    outcomes = wiring.outbox().post_many(posts) if posts else []
    for effect in listed:
        if isinstance(effect, Close):
            wiring.outbox().delete(effect.connection_id)
    for outcome in outcomes:
        if outcome.kind not in ("delivered", "gone"):
            wiring.logger().warning("post failed", connection_id=outcome.connection_id, outcome=outcome.kind, detail=outcome.detail)
    return {outcome.connection_id for outcome in outcomes if outcome.kind == "gone"}
