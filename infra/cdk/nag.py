"""Findings of cdk-nag that stand, each with its reason beside the construct it is about."""

from __future__ import annotations

from aws_cdk import Acknowledgment, Validations
from constructs import IConstruct


def acknowledge(construct: IConstruct, finding: str, reason: str) -> None:
    """Says why this finding stands for the construct and all below it, e.g. `AwsSolutions-IAM5[Action::s3:*]` or a rule's bare name."""
    Validations.of(construct).acknowledge(Acknowledgment(id=finding, reason=reason))
