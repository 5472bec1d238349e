"""How long logs are kept."""

from __future__ import annotations

from typing import Final

from aws_cdk import aws_logs as logs

from infra.cdk.context import Deployment

_DAYS: Final = {
    "1": logs.RetentionDays.ONE_DAY,
    "3": logs.RetentionDays.THREE_DAYS,
    "5": logs.RetentionDays.FIVE_DAYS,
    "7": logs.RetentionDays.ONE_WEEK,
    "14": logs.RetentionDays.TWO_WEEKS,
    "30": logs.RetentionDays.ONE_MONTH,
    "60": logs.RetentionDays.TWO_MONTHS,
    "90": logs.RetentionDays.THREE_MONTHS,
    "180": logs.RetentionDays.SIX_MONTHS,
    "365": logs.RetentionDays.ONE_YEAR,
}


def kept(deployment: Deployment) -> logs.RetentionDays:
    """The setting `log_days` as CloudWatch Logs takes it."""
    return _DAYS[deployment.own["log_days"]]
