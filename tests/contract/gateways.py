"""The gateway that the contract tests ask: ours, or, in a deployment rehearsal, the one of a stand-in (docs/deploy-rehearsal.md)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or "REHEARSAL_GATEWAY" not in os.environ:
    from local.gateway import Gateway
else:
    from infra.rehearsal.gateway import StandInGateway as Gateway

__all__ = ["Gateway"]
