"""`python -m infra.rehearsal`: the stacks deployed, deployed again and destroyed by the real CDK CLI, against moto and against MiniStack.

Without Docker, without an AWS account. Writes build/rehearsal.json; exit code 1 after a sentence for each thing that did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.rehearsal import on_ministack, on_moto, tools
from infra.rehearsal.record import SCHEMA_VERSION, Record, RehearsalError, write
from local.services import LocalError
from local.supervisor import ChildFailed, Supervisor, end_stale

WHOLE_S = 1200.0  # either half; on an idle machine it is a tenth of that


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.rehearsal", description=__doc__)
    parser.add_argument("--only", choices=("moto", "ministack"), help="one of the two stand-ins")
    parser.add_argument("--folder", type=Path, default=tools.ROOT / "build/rehearsal", help="logs, templates, installed tools")
    parser.add_argument("--out", type=Path, default=tools.ROOT / "build/rehearsal.json")
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    environ = dict(os.environ)
    for name in environ:
        if name.startswith(("AWS_", "CDK_", "HELIOGRAPH_")):
            del os.environ[name]  # no child may reach a real account, and a Lambda refuses settings that it does not know
    return asyncio.run(_rehearse(options, environ))


async def _rehearse(options: argparse.Namespace, environ: dict[str, str]) -> int:
    folder: Path = options.folder
    started_at, started_s = datetime.now(UTC), time.monotonic()
    records = [Record(name) for name in ("moto", "ministack") if options.only in (None, name)]
    versions: dict[str, Any] = {}
    for record in records:
        end_stale(folder / record.stand_in / "pids.json")
        supervisor = Supervisor(folder / record.stand_in / "logs", folder / record.stand_in / "pids.json")
        part = on_moto.rehearse if record.stand_in == "moto" else on_ministack.rehearse
        try:
            async with asyncio.timeout(WHOLE_S):
                versions |= await part(record, supervisor, folder, environ)
        except (RehearsalError, LocalError, ChildFailed) as error:
            record.require(False, str(error))
        except TimeoutError:
            record.require(False, f"the rehearsal did not end within {WHOLE_S:.0f} s.")
        except Exception as error:  # the edge of the process
            log = folder / record.stand_in / "traceback.log"
            await asyncio.to_thread(log.write_text, traceback.format_exc())
            record.require(False, f"{type(error).__name__}: {error} (traceback: {log}).")
        finally:
            await supervisor.stop()
    failures = [failure for record in records for failure in record.failures]
    result = {
        "schema_version": SCHEMA_VERSION,
        "ok": not failures,
        "started_at_ms": int(started_at.timestamp() * 1_000),
        "duration_s": round(time.monotonic() - started_s, 1),
        "failures": failures,
        "versions": versions,
        **{record.stand_in: record.as_json() for record in records},
    }
    await asyncio.to_thread(write, options.out, result)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    print(f"{'The deployment rehearsal held' if not failures else 'Not everything held'} in {result['duration_s']:.0f} s; details in {options.out}.")
    return 0 if not failures else 1


if __name__ == "__main__":
    raise SystemExit(main())
