"""A small TURN client over UDP, on a blocking socket: for tests that need many, or one that does exactly what it is told. aioice's is the independent peer."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from heliograph.ice import turn_key
from media_fleet.stun import Address, Attribute, Class, Message, Method, attributes, parse

CHANNEL = 0x4000
PATIENCE_S = 10.0
Fields = tuple[tuple[Attribute[Any], Any], ...]


class Refused(Exception):
    """An error response."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class TurnClient:
    """A five-tuple. `inbox` has what peers sent and was not taken yet: (data, the number of its channel or the peer's address)."""

    def __init__(self, server: Address, username: str = "ann", password: str = "pass") -> None:  # noqa: S107
        self._username, self._password = username, password
        self._realm, self._nonce = "", b""
        self.relayed: Address = ("", 0)
        self.inbox: deque[tuple[bytes, int | Address]] = deque()
        self.socket = socket.socket(socket.AF_INET6 if ":" in server[0] else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(server)

    def close(self) -> None:
        self.socket.close()

    def allocate(self, fields: Fields = ()) -> Address:
        answer = self.ask(Method.ALLOCATE, ((attributes.REQUESTED_TRANSPORT, 17), *fields))
        relayed = answer.get(attributes.XOR_RELAYED_ADDRESS)
        assert relayed is not None
        self.relayed = relayed
        return relayed

    def refresh(self, lifetime_s: int) -> None:
        self.ask(Method.REFRESH, ((attributes.LIFETIME, lifetime_s),))

    def permit(self, peer: Address) -> None:
        self.ask(Method.CREATE_PERMISSION, ((attributes.XOR_PEER_ADDRESS, peer),))

    def bind(self, peer: Address, number: int = CHANNEL) -> None:
        self.ask(Method.CHANNEL_BIND, ((attributes.CHANNEL_NUMBER, number), (attributes.XOR_PEER_ADDRESS, peer)))

    def send(self, data: bytes, number: int = CHANNEL) -> None:
        """By a channel."""
        self.socket.send(number.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data)

    def send_to(self, data: bytes, peer: Address) -> None:
        """By a Send indication."""
        self.socket.send(Message(Method.SEND, Class.INDICATION, os.urandom(12), ((attributes.XOR_PEER_ADDRESS, peer), (attributes.DATA, data))).serialize())

    def receive(self) -> tuple[bytes, int | Address]:
        """The next datagram of a peer."""
        while not self.inbox:
            self._take()
        return self.inbox.popleft()

    def ask(self, method: Method, fields: Fields) -> Message:
        """The success response; Refused with its code. Realm and nonce are learned."""
        try:
            return self._ask(method, fields)
        except Refused as refused:
            if refused.code not in (401, 438):
                raise
            return self._ask(method, fields)

    def _ask(self, method: Method, fields: Fields) -> Message:
        who: Fields = ((attributes.USERNAME, self._username), (attributes.REALM, self._realm), (attributes.NONCE, self._nonce)) if self._nonce else ()
        request = Message(method, Class.REQUEST, os.urandom(12), (*fields, *who))
        self.socket.send(request.serialize(turn_key(self._username, self._realm, self._password) if who else None))
        answer = self._until(lambda message: message.transaction_id == request.transaction_id)
        error = answer.get(attributes.ERROR_CODE)
        if error is None:
            return answer
        self._realm, self._nonce = answer.get(attributes.REALM) or self._realm, answer.get(attributes.NONCE) or self._nonce
        raise Refused(error.code)

    def _until(self, is_it: Callable[[Message], bool]) -> Message:
        while True:
            message = self._take()
            if message is not None and is_it(message):
                return message

    def _take(self) -> Message | None:
        """The next message that is a response; what peers sent goes to the inbox."""
        data = self.socket.recv(65_535)
        if data[0] & 0xC0 == 0x40:
            self.inbox.append((data[4 : 4 + int.from_bytes(data[2:4], "big")], int.from_bytes(data[:2], "big")))
            return None
        message = parse(data)
        payload, peer = message.get(attributes.DATA), message.get(attributes.XOR_PEER_ADDRESS)
        if message.method == Method.DATA and payload is not None and peer is not None:
            self.inbox.append((payload, peer))
            return None
        return message
