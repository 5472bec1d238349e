"""Which choices of a media fleet go together. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_ARM: Final = re.compile(r"a1|[a-z]+\d+g[a-z]*")  # Graviton's families: t4g, c7gn, m8gd, im4gn


def unsuitable(own: Mapping[str, str]) -> str | None:
    """Why these choices of `media`, entry, numbers and machine cannot be built, in one sentence; None where they can."""
    if own["vpc"] != "true" or own["media"] == "none":
        return None
    if own["media"] == "fargate" and own["relay_entry"] == "address":
        return "heliograph:media=fargate needs heliograph:relay_entry=load-balancer: a Fargate task cannot have an Elastic IP."
    if int(own["relay_max"]) < int(own["relay_min"]):
        return "heliograph:relay_max must not be less than heliograph:relay_min."
    family, _, size = own["relay_instance"].partition(".")
    if not size:
        return "heliograph:relay_instance must be an EC2 instance type, such as t4g.micro."
    if own["media"] == "ec2" and bool(_ARM.fullmatch(family)) != (own["architecture"] == "arm64"):
        kind, architecture = own["relay_instance"], own["architecture"]
        return f"heliograph:relay_instance={kind} is not of heliograph:architecture={architecture}: t4g.micro is arm64, t3.micro is x86_64."
    return None
