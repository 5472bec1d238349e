"""Handing events to whoever waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from .errors import TimedOutError
from .frames import Event


class Subscription:
    """Events by name (all of them without names), from the moment it was made; an async iterator and a context manager."""

    def __init__(self, names: frozenset[str], close: Callable[[Subscription], None]) -> None:
        """Made by `Client.subscribe`."""
        self._names = names
        self._close = close
        self._queue: asyncio.Queue[Event] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Hand over an event; those of other names are dropped."""
        if not self._names or event.event in self._names:
            self._queue.put_nowait(event)

    async def next(self, where: Callable[[Event], bool] = lambda _: True, timeout_s: float | None = None) -> Event:
        """The next event for which `where` holds; others before it are dropped. Raises TimedOutError."""
        try:
            async with asyncio.timeout(timeout_s):
                while not where(event := await self._queue.get()):
                    pass
                return event
        except TimeoutError:
            raise TimedOutError(f"No {' or '.join(sorted(self._names)) or 'such'} event within {timeout_s:g} s.") from None

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Every event, without end."""
        while True:
            yield await self._queue.get()

    def __enter__(self) -> Subscription:
        """Leave the block to stop collecting."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop collecting."""
        self._close(self)


class Relayed:
    """Frames that were relayed to us: one that its sender sent again is relayed again, and counts once."""

    def __init__(self, remembered: int = 1_000) -> None:
        """`remembered` is how many are told apart."""
        self._seen: dict[tuple[str, str], None] = {}
        self._remembered = remembered

    def is_new(self, event: Event) -> bool:
        """Whether this is not a relay of a frame that came before; events that relay nothing are always new."""
        sender, frame_id = event.body.get("from"), event.body.get("id")
        if event.offset is not None or not isinstance(sender, dict) or not isinstance(frame_id, str):
            return True
        key = (str(sender.get("device_id")), frame_id)
        if key in self._seen:
            return False
        self._seen[key] = None
        if len(self._seen) > self._remembered:
            del self._seen[next(iter(self._seen))]
        return True
