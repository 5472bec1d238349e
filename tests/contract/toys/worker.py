"""Does what the event asks for: echo, raise, sleep, die, tell its environment."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

_calls = 0


def handler(event: Any, context: Any) -> object:
    global _calls
    _calls += 1
    match event.get("do"):
        case "raise":
            raise LookupError("nobody there")
        case "sleep":
            time.sleep(event["s"])
        case "exit":
            sys.exit(3)
        case "kill":
            os.kill(os.getpid(), 9)
        case "set":
            return {1, 2}
        case "log":
            print("a printed line")
            logging.getLogger().warning("a logged line")
        case "environment":
            return {"environment": dict(os.environ), "path": sys.path}
        case "context":
            names = ("function_name", "function_version", "invoked_function_arn", "memory_limit_in_mb", "aws_request_id", "log_group_name", "log_stream_name")
            values = {name: getattr(context, name) for name in names}
            return values | {"remaining_ms": context.get_remaining_time_in_millis(), "client_context": context.client_context}
    return {"echo": event, "pid": os.getpid(), "calls": _calls}
