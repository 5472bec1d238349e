"""moto's server as a program of its own: `python -m local.moto_server -H HOST -p PORT`. Quiet, and without two costs that have nothing to do with its answers.

SQS asks the clock up to six times per message that it holds, at every call, through `datetime`: with the timers of a few hundred sockets waiting that is tens
of milliseconds a call, and at a reconnect storm the laptop stood still. Each request also lists moto's own folder on disk.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, cast

from adapters.settings import now_ms


def main() -> None:
    """Until killed."""
    from moto import backends, server
    from moto.sqs import models

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    names = frozenset(backends.list_of_moto_modules())
    cast(Any, backends).list_of_moto_modules = lambda: names
    cast(Any, models).unix_time_millis = now_ms
    server.main(sys.argv[1:])


if __name__ == "__main__":
    main()
