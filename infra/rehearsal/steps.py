"""What both rehearsals do: bootstrap, deploy, deploy again without a change, compare with what exists, destroy, look at what stays."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from infra.rehearsal import assembly, inventory
from infra.rehearsal.record import Record
from infra.rehearsal.stand_ins import REGION, Asker
from infra.rehearsal.tools import Cdk, install_cdk, node, reason, run

Adapt = Callable[[Path], dict[str, Any]]  # takes out of an assembly what the stand-in refuses, and says what that was
BOOTSTRAP_STACK = "CDKToolkit"
_UNCHANGED = re.compile(r"✅\s+(\S+) \(no changes\)")


class Deployment:
    """The stacks at one stand-in. `settings` are their context settings, `method` is how the CLI talks to CloudFormation (its own default: change-set)."""

    def __init__(self, record: Record, cdk: Cdk, asker: Asker, settings: dict[str, str], adapt: Adapt, *, method: str = "change-set") -> None:
        self.record, self.cdk, self.asker, self.settings, self._adapt, self._method = record, cdk, asker, settings, adapt, method
        self.assembly = Path()
        self.wanted: Counter[str] = Counter()
        self._before: dict[str, int | None] = {}

    async def bootstrap(self) -> None:
        with self.record.step("cdk bootstrap"):
            await asyncio.to_thread(self.cdk.bootstrap)

    async def deploy(self) -> None:
        """Synth, take out what is refused, deploy, ask what exists."""
        with self.record.step("cdk synth") as step:
            self.assembly, taken_out = await asyncio.to_thread(self._synth, "first.out")
            self.wanted = assembly.types(self.assembly)
            self.record.findings["taken_out"] = taken_out
            step["note"] = f"{sum(self.wanted.values())} resources of {len(self.wanted)} types"
        self._before = await asyncio.to_thread(inventory.snapshot, self.asker, self.wanted)
        with self.record.step("cdk deploy"):
            await asyncio.to_thread(self.cdk.deploy, "first-deploy", self.assembly, self._method)
        with self.record.step("what really exists") as step:
            after = await asyncio.to_thread(inventory.snapshot, self.asker, self.wanted)
            rows = inventory.compare(self.wanted, self._before, after)
            missing, unasked = inventory.not_made(rows), inventory.not_asked(rows)
            self.record.findings |= {"resources": rows, "not_created": missing, "not_asked": unasked}
            made = sum(min(row["made"] or 0, row["in_templates"]) for row in rows.values())
            step["note"] = (
                f"{made} of {sum(self.wanted.values())}; not created: {', '.join(missing) or 'none'}; could not be asked: {', '.join(unasked) or 'none'}"
            )

    def _synth(self, name: str) -> tuple[Path, dict[str, Any]]:
        folder = self.cdk.synth(name, self.settings)
        return folder, self._adapt(folder)

    async def deploy_again(self, *, new_synth: bool) -> None:
        """What is deployed already changes nothing; nor does a new synth of the same sources."""
        with self.record.step("cdk deploy again: no change") as step:
            again = (await asyncio.to_thread(self._synth, "second.out"))[0] if new_synth else self.assembly
            output = await asyncio.to_thread(self.cdk.deploy, "second-deploy", again, self._method)
            unchanged, names = set(_UNCHANGED.findall(output)), set(assembly.templates(again))
            self.record.require(unchanged == names, f"deployed again, these stacks changed: {', '.join(sorted(names - unchanged))}.")
            step["note"] = f"{len(unchanged)} stacks unchanged{' by a new synth' if new_synth else ''}"

    async def destroy(self) -> None:
        """Nothing may stay but what the templates say is to be kept."""
        with self.record.step("cdk destroy") as step:
            status, output = await asyncio.to_thread(self.cdk.destroy, "destroy", self.assembly)
            self.record.require(status == 0, f"cdk destroy ended with status {status}: {reason(output)}.")
            left = await asyncio.to_thread(stacks, self.asker)
            self.record.require(not left, f"these stacks are still there: {', '.join(left)}.")
            stays = await asyncio.to_thread(self._what_stays)
            step["note"] = f"still there: {', '.join(f'{number} {kind}' for kind, number in sorted(stays.items())) or 'nothing'}"

    def _what_stays(self) -> dict[str, int]:
        """What is there still of each type, beyond what was there before; where that is not what the templates keep, `stays_otherwise` says so."""
        now, kept = inventory.snapshot(self.asker, self.wanted), assembly.retained(self.assembly)
        stays = {kind: (number or 0) - (self._before[kind] or 0) for kind, number in now.items()}
        made = [kind for kind in now if kind not in self.record.findings["not_created"]]  # of what never was nothing can stay
        self.record.findings["stays_after_destroy"] = {kind: number for kind, number in stays.items() if number > 0}
        self.record.findings["stays_otherwise"] = {
            kind: {"stays": stays[kind], "templates_keep": kept[kind]} for kind in made if now[kind] is not None and stays[kind] != kept[kind]
        }
        return {kind: number for kind, number in stays.items() if number > 0}


def stacks(asker: Asker) -> list[str]:
    """The living stacks but the one that `cdk bootstrap` made."""
    found = inventory.items(asker, "cloudformation", "describe_stacks", "Stacks")
    return [stack["StackName"] for stack in found if stack["StackName"] != BOOTSTRAP_STACK and stack["StackStatus"] != "DELETE_COMPLETE"]


def cdk_for(folder: Path, stand_in: str, endpoint_url: str, account: str) -> Cdk:
    """The CDK's command line against this stand-in; installs it the first time."""
    return Cdk(install_cdk(folder / "tools"), folder / stand_in, endpoint_url, account, REGION)


def versions(cdk: Cdk) -> dict[str, str]:
    """What ran."""
    cli = run([str(node()), str(cdk.script), "--version"], cdk.folder / "version.log", timeout_s=30, environment=cdk.environment)[1].split()
    return {
        "cdk": cli[0] if cli else "",
        "aws-cdk-lib": version("aws-cdk-lib"),
        "node": run([str(node()), "--version"], cdk.folder / "node.log", timeout_s=30)[1].strip(),
    }
