"""The rehearsal on moto's server: everything moves through the real CLI, but moto skips types silently and runs no code. What it skips is listed."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from infra.rehearsal import assembly, stand_ins, steps, tools
from infra.rehearsal.record import Record
from local.services import choose_ports
from local.supervisor import Supervisor

MADE: Final = ("AWS::Lambda::Function", "AWS::SQS::Queue", "AWS::IAM::Role")  # what moto is known to make
MIGRATION: Final = "Custom::HeliographMigration"
SETTINGS: Final = {
    "stage": tools.STAGE,
    "bundle": "true",  # the layers are uploaded as on AWS
    "vpc": "false",
    "media": "none",
    "edge": "none",
    "redis_url": "rediss://redis.example.com:6379",
    "turn_urls": "turn:relay.example.com:3478",
}


async def rehearse(record: Record, supervisor: Supervisor, folder: Path, environ: dict[str, str]) -> dict[str, str]:
    """Everything in order; answers the versions that ran."""
    with record.step("install the CDK's command line"):
        port = choose_ports(("moto",), {})["moto"]
        cdk = steps.cdk_for(folder, "moto", stand_ins.moto_url(port), stand_ins.MOTO_ACCOUNT)
    with record.step("start moto"):
        await supervisor.start(stand_ins.moto(port))
        stand_ins.must_be_on_loopback(port)
    deployment = steps.Deployment(
        record, cdk, stand_ins.Asker(stand_ins.moto_url(port)), SETTINGS, _adapt, method="direct"
    )  # moto exports the outputs of a stack that was made without a change set only
    await deployment.bootstrap()
    await deployment.deploy()
    for kind in MADE:
        row = record.findings["resources"][kind]
        record.require(row["made"] == row["in_templates"], f"moto made {row['made']} of {row['in_templates']} {kind}.")
    await deployment.deploy_again(new_synth=False)
    await deployment.destroy()
    return steps.versions(cdk) | {"moto": version("moto")}


def _adapt(folder: Path) -> dict[str, Any]:
    """moto has no UpdateTerminationProtection, and the CLI calls it; what refers to what it does not make would fail."""
    return {
        MIGRATION: {"why": "moto runs no function, so nobody would answer.", "resources": assembly.take_out(folder, MIGRATION)},
        "functions_instead_of_their_aliases": assembly.name_functions(folder),  # moto takes what Ref says of an alias for the name of a function, and fails
        "termination_protection_of": assembly.drop_termination_protection(folder),
        "references_written_out": assembly.write_out_references(folder, _has),
    }


def _has(kind: str, attribute: str | None) -> bool:
    """Whether moto's CloudFormation makes this type, and knows this attribute of it."""
    from moto.cloudformation.parsing import get_model_map

    model = get_model_map().get(kind)
    return model is not None and (attribute is None or bool(model.has_cfn_attr(attribute)))
