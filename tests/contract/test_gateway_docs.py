"""The page of the local cloud names tests that exist, flags that are parsed and faults that are read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import textwrap
import venv
from dataclasses import fields
from pathlib import Path

from local.__main__ import parse
from local.gateway_faults import FaultSettings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/local-cloud.md").read_text()


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 20
    assert not [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / "tests/contract" / file).read_text()]


def test_the_page_lists_every_flag() -> None:
    flags = {f"--{name.replace('_', '-')}" for name in vars(parse([]))}
    assert flags <= set(re.findall(r"^\| `(--[a-z-]+)", PAGE, re.MULTILINE))


def test_the_page_lists_every_fault() -> None:
    assert not [item.name for item in fields(FaultSettings) if f"`{item.name}`" not in PAGE]


_STRANGER = """
import asyncio, urllib.request
from pathlib import Path
from adapters.sigv4 import Credentials
from functions.routes import Function, Http, Socket
from local.gateway import Gateway
from local.gateway_limits import Limits
from local.lambdas import Lambdas
from websockets.asyncio.client import connect

async def main():
{recipe}
    answer = await asyncio.to_thread(lambda: urllib.request.urlopen(gateway.http_url + "/hello").read().decode())
    async with connect(gateway.socket_url) as socket:
        await socket.send("x")
        print(answer, await socket.recv())
    await gateway.close()
    await lambdas.close()

asyncio.run(main())
"""


def test_a_stranger_gets_it_going_with_the_files_and_the_lines_of_the_page(tmp_path: Path) -> None:
    section = PAGE[PAGE.index("## For a project of your own") :]
    copied, recipe = section[: section.index("```")], re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert recipe is not None
    for pattern in re.findall(r"`((?:local|functions|adapters)/[\w*]+\.py)`", copied):
        for found in ROOT.glob(pattern):
            (tmp_path / found.relative_to(ROOT)).parent.mkdir(exist_ok=True)
            shutil.copy(found, tmp_path / found.relative_to(ROOT))
    (tmp_path / "functions/hello").mkdir()
    (tmp_path / "functions/hello/handler.py").write_text("def handler(event, context):\n    return {'statusCode': 200, 'body': 'hello'}\n")
    program = _STRANGER.format(recipe=textwrap.indent(recipe[1], "    "))
    venv.create(tmp_path / "venv", with_pip=False)  # of their own, with our libraries and without our checkout, which `make setup` puts on the path
    theirs = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}
    ended = subprocess.run([tmp_path / "venv/bin/python", "-c", program], cwd=tmp_path, env=theirs, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.stdout, ended.stderr) == ("hello hello\n", "")
