"""Does what the rules want done: posts in one go or by a hub, queues pushes, says which sockets are gone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adapters.settings import settings
from functions import wiring
from heliograph.effects import Close, Effect, Notify, Post
from heliograph.fanout import Scope, job_of, plan
from heliograph.push import queue_message


def perform(effects: Iterable[Effect], scope: Scope | None = None) -> set[str]:
    """Performs every effect; returns the connection ids that turned out to be gone.

    A push is queued before anything is posted: what is acknowledged is durable. With a `scope`, an event for many sockets goes to the hub
    of its room while one is live; the hub forgets those that are gone, so they are not in the answer.
    """
    listed = list(effects)
    for effect in listed:
        if isinstance(effect, Notify):
            wiring.notifications().send(queue_message(effect))
    posts = [effect for effect in listed if isinstance(effect, Post)]
    if scope is not None:
        posts = _hand_over(posts, scope)
    outcomes = wiring.outbox().post_many([(post.connection_id, post.event.serialize()) for post in posts]) if posts else []
    for effect in listed:
        if isinstance(effect, Close):
            wiring.outbox().delete(effect.connection_id)
    for outcome in outcomes:
        if outcome.kind not in ("delivered", "gone"):
            wiring.logger().warning("post failed", connection_id=outcome.connection_id, outcome=outcome.kind, detail=outcome.detail)
    return {outcome.connection_id for outcome in outcomes if outcome.kind == "gone"}


def _hand_over(posts: Sequence[Post], scope: Scope) -> list[Post]:
    """Gives wide events to a hub; returns what is to be posted here: everything, while no hub lives."""
    planned = plan(posts, settings().direct_recipients)
    left, is_refused = list(planned.direct), False
    for batch in planned.wide:
        is_refused = is_refused or not wiring.hubs().hand_over(job_of(scope, batch))
        if is_refused:  # from here on all of it, in its order
            left += [Post(connection_id, batch.event) for connection_id in batch.connection_ids]
    return left
