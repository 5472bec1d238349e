"""Findings of cdk-nag that stand, each with its reason beside the construct it is about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aws_cdk import Acknowledgment, Stack, Validations
from constructs import IConstruct


def acknowledge(construct: IConstruct, finding: str, reason: str) -> None:
    """Says why this finding stands for the construct and all below it; one by one, e.g. `AwsSolutions-S1` or `AwsSolutions-IAM5[Action::s3:*]`."""
    Validations.of(construct).acknowledge(Acknowledgment(id=finding, reason=reason))


def acknowledge_wildcards(role: IConstruct, resources: Iterable[str], reason: str) -> None:
    """Says why these resources of the role's statements, each with a `*`, are as narrow as they can be."""
    for resource in resources:
        acknowledge(role, f"AwsSolutions-IAM5[Resource::{_said(Stack.of(role).resolve(resource))}]", reason)


def _said(value: Any) -> str:
    """A resolved value as cdk-nag writes it: references in angle brackets, imports by their bare name."""
    if isinstance(value, str):
        return value
    ((kind, target),) = value.items()
    if kind == "Fn::Join":
        return str(target[0]).join(_said(part) for part in target[1])
    if kind == "Fn::ImportValue":
        return str(target)
    return f"<{'.'.join(target) if kind == 'Fn::GetAtt' else target}>"
