"""Import budgets: what a cold start may load. A heavy module that nobody allowed fails here, not in a customer's latency.

Heavy is every top-level module that is neither ours nor the standard library's, and asyncio. `bench/imports.py` measures what they cost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

import pytest

from adapters.settings import PREFIX, Settings
from functions.routes import FUNCTIONS

ROOT: Final = Path(__file__).resolve().parents[2]
OURS: Final = {"heliograph", "adapters", "functions"}
BATCH: Final = {"aws_lambda_powertools", "botocore", "jmespath", "typing_extensions", "asyncio"}  # Powertools' batch processor; no client waits for a queue
ALLOWED: Final[dict[str, set[str]]] = {
    "authorizer": set(),
    "ws_connect": set(),
    "ws_disconnect": set(),
    "signal": set(),
    "presence": set(),
    "tokens": {"argon2", "_argon2_cffi_bindings", "_cffi_backend"},  # a hasher is made before the first sign-in waits for it
    "accounts": set(),
    "rooms": set(),
    "devices": set(),
    "ice_servers": set(),
    "media_link": set(),
    "push_dispatch": BATCH,
    "timers": BATCH,
    "openapi": set(),
}
_LOADED = """
import sys
before = set(sys.modules)
%s
import json, signal
modules = sorted(set(sys.modules) - before)
print(json.dumps({"modules": modules, "path": sys.path, "sigint": int(signal.SIGINT)}), flush=True)
import os
os._exit(0)
"""


def loaded_by(*statements: str) -> dict[str, Any]:
    """What a fresh interpreter with only the repository root on its path has loaded after these statements."""
    environment = {PREFIX + item.name.upper(): "x" for item in fields(Settings) if item.default is MISSING}
    environment |= {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "AWS_REGION": "eu-west-1"}
    command = [sys.executable, "-P", "-c", _LOADED % "\n".join(statements)]
    ended = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return found


def heavy(modules: list[str]) -> set[str]:
    tops = {name.partition(".")[0] for name in modules}
    return {name for name in tops if name == "asyncio" or (name not in sys.stdlib_module_names and name not in OURS)}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_a_handler_loads_what_its_budget_allows_and_no_more(function: Any) -> None:
    module, _, name = function.handler.rpartition(".")
    found = loaded_by(f"import {module} as module", f"assert callable(module.{name})")
    allowed = ALLOWED.get(function.name)
    assert allowed is not None, f"functions/{function.name} has no import budget; give it a line in {Path(__file__).name}"
    loaded = heavy(found["modules"])
    assert not loaded - allowed, (
        f"importing functions/{function.name} loads {', '.join(sorted(loaded - allowed))}: import it inside the function that needs it, "
        f"or allow it in {Path(__file__).name} with the reason"
    )
    assert not allowed - loaded, f"functions/{function.name} no longer loads {', '.join(sorted(allowed - loaded))}: take it out of its budget"


def test_every_budget_is_of_a_function_of_the_route_table() -> None:
    assert set(ALLOWED) == {function.name for function in FUNCTIONS}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_the_folder_of_the_functions_hides_no_standard_module(function: Any) -> None:
    found = loaded_by(f"import {function.handler.rpartition('.')[0]}")
    assert found["sigint"] == 2
    assert str(ROOT) in found["path"]
    assert not [path for path in found["path"] if path.startswith(f"{ROOT}/functions")]


def test_the_path_of_a_frame_never_loads_an_sdk_of_aws() -> None:
    found = loaded_by(
        "import functions.signal.handler",
        "import adapters.board_redis, adapters.connections_redis, adapters.rooms_mongo, adapters.streams_mongo",
        "import adapters.outbox_apigateway, adapters.queues_sqs",
        "from adapters import mongo_client, redis_client",
        "mongo_client.connect('mongodb://127.0.0.1:1', 'x'), redis_client.connect('redis://127.0.0.1:1', 'single')",
        "from functions import wiring",
        "wiring.logger().info('frame')",
    )
    assert {"redis", "pymongo", "aws_lambda_powertools"} <= set(found["modules"])
    # botocore's empty package is loaded by Powertools, which asks for its version; the session is what costs.
    unwanted = {"boto3", "botocore.session", "aws_xray_sdk", "firebase_admin", "aiohttp", "aiortc", "jwt", "pydantic"} & set(found["modules"])
    assert not unwanted, f"a frame of a live socket pays for {', '.join(sorted(unwanted))} at its first call"
