"""What a data path is: the part of the relay that reads UDP sockets and forwards. It learns of allocations, permissions and channels by the core's effects."""

from __future__ import annotations

import socket
from typing import Final, Literal, Protocol, get_args

from media_fleet.stun import Address
from media_fleet.turn import Bind, Extend, Install, Permit, RelayId

DataPathName = Literal["auto", "python", "compiled"]
NAMES: Final[tuple[DataPathName, ...]] = get_args(DataPathName)


class DataPath(Protocol):
    """The sockets stay the caller's: others may send on them, and they are closed after `unlisten` or `close`."""

    name: str

    def listen(self, listener: socket.socket, address: Address) -> None:
        """Read what clients send to this listener; `address` is its own, as five-tuples have it."""

    def unlisten(self, address: Address) -> None: ...

    def open(self, relay: socket.socket, install: Install) -> None:
        """Read what peers send to this relay socket, and forward by the rules until `close`."""

    def close(self, relay_id: RelayId) -> None: ...

    def extend(self, effect: Extend) -> None: ...

    def permit(self, effect: Permit) -> None: ...

    def bind(self, effect: Bind) -> None: ...

    def stop(self) -> None: ...

    def dropped(self) -> dict[str, int]:
        """Datagrams that were not relayed since the start, by reason."""
