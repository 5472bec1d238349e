"""One of several relay processes of a node: a whole `media_fleet.relay.Relay` on inherited sockets, which does what its parent says and ends with it.

Its parent is `media_fleet.workers`, which says all by one inherited socket (`media_fleet.control`).
"""

from __future__ import annotations

import asyncio
import ctypes
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from adapters.settings import now_ms
from media_fleet import control
from media_fleet.control import Start
from media_fleet.log import log
from media_fleet.relay import CannotListen, Relay, Share, raise_file_limit, run_loop
from media_fleet.tls import TlsFiles
from media_fleet.turn import Usage

TELL_S: Final = 1.0  # how often it tells its reading
LOOK_EVERY: Final = 5  # times of which it tells what each living allocation has carried
_PART: Final = 50  # allocations that are read before packets get their turn: under a millisecond
_MOST_UNTOLD_BYTES: Final = 8 * 1024 * 1024  # for a parent that does not listen
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


def main(file: int) -> None:
    """Runs a worker that is told by this inherited socket; it has no exit but the parent's word or end."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are meant for the parent, which drains; a terminal and systemd send them to all processes
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # a hung interpreter, too, must not go on relaying; elsewhere the end of the socket must do
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    raise_file_limit()
    try:
        told = socket.socket(fileno=file)
    except OSError:
        raise SystemExit("`worker` is started by a relay of several processes, not by hand.") from None
    run_loop(_work(told))


async def _work(told: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=told, limit=control.LONGEST_LINE)
    try:
        kind, content = control.parse(await reader.readline())
        if kind == control.START:
            await _Worker(Start.of(content), writer).run(reader)
    except (ValueError, ConnectionError):  # the parent is gone, perhaps in the middle of a line
        pass
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


class _Worker:
    def __init__(self, start: Start, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._credentials = start.credentials
        self._looking = asyncio.Lock()
        config = control.config_of(start.config, control.credentials_of(lambda: self._credentials, start.config["realm"]))
        share = Share(
            worker=start.worker,
            workers=start.workers,
            listeners={transport: [_inherited(file) for file in files] for transport, files in start.listeners.items()},
            inbox=_inherited(start.inbox),
            siblings={worker: _inherited(file) for worker, file in start.siblings.items()},
            ended=self._tell_end,
        )
        self._relay = Relay(config, share=share)

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Until the parent closes the socket, or says so."""
        try:
            await self._relay.start()
        except (CannotListen, ValueError) as error:
            self._say(control.FAILED, {"why": str(error)})
            return
        self._tell_reading()  # first: the registry must not take a pool without capacity for a full one
        self._say(control.READY)
        tasks = [asyncio.create_task(self._tell())]
        try:
            while data := await reader.readline():
                kind, content = control.parse(data)
                if kind == control.CLOSE:
                    break
                if kind == control.LOOK:
                    tasks.append(asyncio.create_task(self._look(is_asked=True)))
                elif kind == control.DRAIN:
                    tasks.append(asyncio.create_task(self._drain()))
                else:
                    await self._take(kind, content)
                tasks = [task for task in tasks if not task.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._relay.close()
            self._tell_reading()

    async def _take(self, kind: str, content: Mapping[str, Any]) -> None:
        """What may change while it runs."""
        if kind == control.CREDENTIALS:
            self._credentials = content
        elif kind == control.TLS_FILES:
            try:
                await self._relay.serve_tls(TlsFiles(**content))
            except (ValueError, CannotListen) as error:
                log("turn_certificate_refused", error=str(error))

    async def _drain(self) -> None:
        draining = asyncio.create_task(self._relay.drain())
        await asyncio.sleep(0)  # from here on it refuses new allocations
        await self._look(is_asked=True)
        await draining
        self._say(control.DRAINED)

    async def _tell(self) -> None:
        times = 0
        while True:
            if times % LOOK_EVERY == 0:
                await self._look(is_asked=False)
            else:
                self._tell_reading()
            times += 1
            await asyncio.sleep(TELL_S)

    async def _look(self, *, is_asked: bool) -> None:
        """Tells its reading, and of each allocation that lives; one look at a time, because the parts of two would mix."""
        async with self._looking:
            self._tell_reading()
            part: list[list[Any]] = []
            for usage in self._relay.usages():
                part.append(control.told_usage(usage))
                if len(part) == _PART:
                    self._say(control.LIVING, {"at_ms": now_ms(), "usages": part, "is_last": False, "is_asked": is_asked})
                    part = []
                    await self._writer.drain()
                    await asyncio.sleep(0)
            self._say(control.LIVING, {"at_ms": now_ms(), "usages": part, "is_last": True, "is_asked": is_asked})
            await self._writer.drain()

    def _tell_reading(self) -> None:
        self._say(control.READING, control.told_reading(self._relay.reading()))

    def _tell_end(self, usage: Usage) -> None:
        self._say(control.ENDED, {"usage": control.told_usage(usage)})

    def _say(self, kind: str, content: Mapping[str, Any] | None = None) -> None:
        """A parent that does not listen costs so much memory and no more; what ended stands in the log anyway."""
        if not self._writer.is_closing() and self._writer.transport.get_write_buffer_size() < _MOST_UNTOLD_BYTES:
            self._writer.write(control.line(kind, content))


def _inherited(file: int) -> socket.socket:
    made = socket.socket(fileno=file)
    made.setblocking(False)
    return made
