"""Makes docs/run.svg: the scenario's table as a terminal shows it. Run `python -m docs.picture_of_a_run` from the repository root."""

from __future__ import annotations

import asyncio
import io
import re
import tempfile
from pathlib import Path

from rich.console import Console

from local import scenario
from local.stack import Stack


async def main() -> int:
    console = Console(record=True, width=104, file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        async with Stack(Path(folder)) as stack:
            console.print(f"$ make run ONCE=1\nReady in {stack.started_in_s:.1f} s.")
            status = await scenario.run(stack.endpoints, out=Path("build/call.json"), console=console)
    if status == 0:
        picture = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="make run ONCE=1"), flags=re.DOTALL)  # a picture fetches nothing
        Path(__file__).with_name("run.svg").write_text(picture)
    return status


if __name__ == "__main__":
    raise SystemExit(asyncio.run(main()))
