"""Reserved concurrency by function, as the context setting `reserved_concurrency` writes it. Standard library only."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from functions.routes import FUNCTIONS, Queue
from infra.cdk.context import PREFIX, ContextError

QUEUE_CONCURRENCY: Final = 10
"""Most invocations at once by one queue."""
_SETTING: Final = f"{PREFIX}reserved_concurrency"


def reserved(text: str) -> dict[str, int]:
    """Function name -> how many environments are kept for it and are its most; ContextError for another form, an unknown function or a starved queue."""
    found: dict[str, int] = {}
    least = {function.name: QUEUE_CONCURRENCY for function in FUNCTIONS if any(isinstance(route, Queue) for route in function.routes)}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = part.partition("=")
        _check(name, number, found)
        found[name] = int(number)
        if found[name] < least.get(name, 0):
            raise ContextError(f"{_SETTING}: {name} consumes a queue, which would be turned away below {least[name]}; give it at least so many, or none.")
    return found


def _check(name: str, number: str, found: Collection[str]) -> None:
    known = [function.name for function in FUNCTIONS]
    if name not in known:
        raise ContextError(f"{_SETTING}: {name!r} is not a function of the route table; there are {', '.join(known)}.")
    if name in found:
        raise ContextError(f"{_SETTING} names {name} twice.")
    if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= 10_000):
        raise ContextError(f"{_SETTING}: {name}={number!r} must be a whole number from 1 to 10000.")
