"""Toy functions: small handlers that show what the local cloud does, and the route table they stand in."""

from __future__ import annotations

from functions import routes


class Toy(routes.Function):
    """A function whose handler is `handler` in the module of its name in this folder."""

    __slots__ = ()

    @property
    def handler(self) -> str:
        return f"tests.contract.toys.{self.name}.handler"
