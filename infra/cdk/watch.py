"""The stack that watches: alarms with their topic, the dashboard, the budget. An alarm says what is wrong and which section of the runbook to open.

Everything is told by metrics that AWS makes anyway and by the fleet's own eight, so watching costs alarms only: CloudWatch bills each metric of an
alarm, and joins by metric math are no cheaper. So in `dev` one alarm watches the functions of the whole Region, and elsewhere each function is watched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from aws_cdk import CfnOutput, Duration, Stack
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from infra.cdk.api import Api
from infra.cdk.context import PRESETS, Deployment
from infra.cdk.media import MAX_ALLOCATIONS, Media
from infra.cdk.nag import acknowledge
from infra.cdk.network import Network
from infra.cdk.state import State

RUNBOOK: Final = "docs/operations.md"
FULL: Final = 0.6  # of the session store's maximum: a full one evicts keys with a TTL, and all of ours have one
OLD_S: Final = 1_800  # a message may wait 900 s on purpose
NEAR: Final = 0.8  # of a limit
HUB_BACKLOG: Final = 5_000  # half of where presence is shed
METRICS_PER_ALARM: Final = 10  # CloudWatch's most in an expression
_MINUTE, _FIVE = Duration.minutes(1), Duration.minutes(5)
_OVER, _FROM, _UNDER = (
    cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
    cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
    cloudwatch.ComparisonOperator.LESS_THAN_THRESHOLD,
)


class Watch(Stack):
    """`topic` gets every alarm; `alarms` by name."""

    def __init__(
        self,
        scope: Construct,
        deployment: Deployment,
        network: Network | None,
        state: State,
        api: Api,
        media: Media | None,
    ) -> None:
        super().__init__(scope, f"heliograph-{deployment.stage}-watch", description="Heliograph: alarms, dashboard, budget", env=deployment.env)
        self._deployment, self._state, self._api, self._media = deployment, state, api, media
        self._stage, self._is_small = deployment.stage, deployment.preset == PRESETS[0]  # each metric of an alarm costs
        self.topic = self._topic()
        self.alarms: dict[str, cloudwatch.Alarm] = {}
        self._watch_queues()
        self._watch_functions()
        self._watch_apis()
        if state.redis_cache:
            self._watch_redis(state.redis_cache)
        if media is not None:
            self._watch_relays(media)
        self._add_dashboard()
        self._add_budget()
        CfnOutput(self, "AlarmTopic", value=self.topic.topic_arn)

    def _topic(self) -> sns.Topic:
        """Encrypted with a key of ours, because CloudWatch and Budgets may not use the one that AWS keeps for SNS."""
        key = kms.Key(self, "TopicKey", description="Encrypts alarms of Heliograph", enable_key_rotation=True)
        topic = sns.Topic(self, "Topic", topic_name=f"heliograph-{self._stage}-alarms", master_key=key, enforce_ssl=True)
        account = {"StringEquals": {"aws:SourceAccount": self.account}}
        services = [iam.ServicePrincipal(f"{name}.amazonaws.com") for name in ("cloudwatch", "budgets")]
        uses = iam.PolicyStatement(actions=["kms:Decrypt", "kms:GenerateDataKey"], principals=list(services), resources=["*"], conditions=account)
        key.add_to_resource_policy(uses)
        sends = iam.PolicyStatement(sid="Alarms", actions=["sns:Publish"], principals=list(services), resources=[topic.topic_arn], conditions=account)
        topic.add_to_resource_policy(sends)
        if self._deployment.own["alarm_email"]:
            topic.add_subscription(subscriptions.EmailSubscription(self._deployment.own["alarm_email"]))
            why = "An e-mail about an alarm is of no use later: the alarm keeps its history, and the dashboard shows its state."
            acknowledge(topic, "Serverless-SNSRedrivePolicy", why)
        return topic

    def _alarm(
        self,
        name: str,
        section: str,
        says: str,
        metric: cloudwatch.IMetric,
        threshold: float,
        comparison: cloudwatch.ComparisonOperator = _OVER,
        *,
        periods: int = 1,
        is_missing_bad: bool = False,
    ) -> None:
        """Rings when the metric was bad in each of the last `periods`. `section` is a heading of the runbook, as its anchor."""
        alarm = cloudwatch.Alarm(
            self,
            name,
            alarm_name=f"heliograph-{self._stage}-{name}",
            alarm_description=f"{says} What to do: {RUNBOOK}#{section}",
            metric=metric,
            threshold=threshold,
            comparison_operator=comparison,
            evaluation_periods=periods,
            treat_missing_data=cloudwatch.TreatMissingData.BREACHING if is_missing_bad else cloudwatch.TreatMissingData.NOT_BREACHING,
        )
        to_topic = actions.SnsAction(self.topic)
        alarm.add_alarm_action(to_topic)
        alarm.add_ok_action(to_topic)
        self.alarms[name] = alarm

    # What is watched

    def _watch_queues(self) -> None:
        for name, queue in self._state.queues.items():
            dead = _dead(queue)
            self._alarm(
                f"{name}-dead-letters",
                "dead-letters",
                f"The dead-letter queue of {name} is not empty.",
                _of_queue(dead, "ApproximateNumberOfMessagesVisible"),
                0,
            )
            says = f"A message of {name} has waited longer than {OLD_S // 60} minutes."
            self._alarm(f"{name}-age", "a-queue-does-not-keep-up", says, _of_queue(queue, "ApproximateAgeOfOldestMessage"), OLD_S, periods=5)

    def _watch_functions(self) -> None:
        throttles = _of_lambda("Throttles")
        says = "Functions of this Region were turned away: all environments of the account, or of a function, are busy."
        self._alarm("throttles", "functions-are-throttled", says, throttles, 0, periods=2)
        if self._is_small:
            self._alarm("errors", "functions-fail", "Functions of this Region ended with an error or ran into their time-out.", _of_lambda("Errors"), 5, _FROM)
            return
        for number, names in enumerate(_groups(list(self._api.functions))):
            errors = {f"e{index}": self._of_function(name, "Errors") for index, name in enumerate(names)}
            self._alarm(
                f"errors-{number}", "functions-fail", f"Ended with an error or ran into their time-out: one of {', '.join(names)}.", _sum(errors), 5, _FROM
            )
            durations = {f"d{index}": self._of_function(name, "Duration", "p99") for index, name in enumerate(names)}
            shares = ",".join(
                f"FILL(d{index}, 0)/{(self._api.functions[name].timeout or Duration.seconds(3)).to_milliseconds()}" for index, name in enumerate(names)
            )
            slowest = cloudwatch.MathExpression(expression=f"100*MAX([{shares}])", using_metrics=durations, period=_FIVE, label="slowest, % of its time-out")
            says = f"One call in a hundred needs over {NEAR:.0%} of its time-out: one of {', '.join(names)}."
            self._alarm(f"slow-{number}", "functions-are-slow", says, slowest, NEAR * 100, periods=3)

    def _watch_apis(self) -> None:
        self._alarm("rest-errors", "the-rest-api-fails", "The REST API answered 5xx.", self._of_http("5xx"), 5, _FROM)
        failed = {"i": self._of_socket("IntegrationError"), "x": self._of_socket("ExecutionError")}
        self._alarm("socket-errors", "the-websocket-api-fails", "Frames or handshakes of the WebSocket API failed on our side.", _sum(failed), 5, _FROM)
        if self._is_small:
            return
        refused = cloudwatch.MathExpression(
            expression="IF(FILL(c, 0) > 100 AND FILL(c, 0) > FILL(o, 0), c, 0)",
            using_metrics={"c": self._of_socket("ClientError"), "o": self._of_socket("ConnectCount")},
            period=_FIVE,
        )
        self._alarm("sockets-refused", "sockets-are-refused", "More handshakes and frames were refused than sockets opened.", refused, 0, periods=2)

    def _watch_redis(self, cache: str) -> None:
        section, most = "the-session-store-fills-up", self._deployment.number("redis_max_gb") * 10**9
        self._alarm("redis-fills-up", section, f"The session store is over {FULL:.0%} of its maximum.", _of_cache(cache, "BytesUsedForCache"), FULL * most)
        says = "The session store threw keys away: rooms, presence and locks are gone before their time."
        self._alarm("redis-evicts", section, says, _of_cache(cache, "Evictions", "Sum"), 0)
        says = "The session store turned commands away: the load grows faster than it can."
        self._alarm("redis-throttles", "the-session-store-throttles", says, _of_cache(cache, "ThrottledCmds", "Sum"), 0, periods=2)

    def _watch_relays(self, media: Media) -> None:
        least, nodes = self._deployment.number("relay_min"), media.metric("Allocations", "SampleCount")
        self._alarm("no-relay", "no-relay-is-there", "No relay tells its meters.", nodes, 1, _UNDER, periods=5, is_missing_bad=True)
        if least > 1:
            self._alarm("relays-missing", "no-relay-is-there", f"Fewer than {least} relays tell their meters.", nodes, least, _UNDER, periods=15)
        if not self._is_small:
            says = f"A relay has over {NEAR:.0%} of the {MAX_ALLOCATIONS} allocations it takes."
            self._alarm("relay-allocations", "relays-are-full", says, media.metric("Allocations", "Maximum"), NEAR * MAX_ALLOCATIONS, periods=3)
        self._alarm(
            "relay-cpu", "relays-are-full", "The relays' core has been busy for 15 minutes.", _of_service(media, "CPUUtilization"), NEAR * 100, periods=3
        )
        says = "No hub has a lease: functions post to every socket themselves."
        self._alarm("no-hub", "no-hub-has-a-lease", says, media.metric("HubHasLease", "Maximum"), 1, _UNDER, periods=5)
        says = f"A hub has over {HUB_BACKLOG} posts waiting; at twice as many it drops presence."
        self._alarm("hub-backlog", "the-hub-does-not-keep-up", says, media.metric("HubBacklog", "Maximum"), HUB_BACKLOG, periods=3)
        if self._deployment.has_relay_usage:
            says = "Relays could not write what accounts sent to the ledger in time: it stands in their log only."
            self._alarm("usage-logged", "usage-is-only-in-the-log", says, media.metric("UsageLogged", "Sum"), 0)
        if media.target_group is not None:
            sick = media.target_group.metrics.un_healthy_host_count(period=_MINUTE, statistic="Maximum")
            self._alarm("relays-unhealthy", "the-load-balancer-sees-no-relay", "The load balancer gets no healthy answer of a relay.", sick, 0, periods=10)

    # The picture

    def _add_dashboard(self) -> None:
        board = cloudwatch.Dashboard(self, "Dashboard", dashboard_name=f"heliograph-{self._stage}", default_interval=Duration.hours(3))
        board.add_widgets(cloudwatch.AlarmStatusWidget(title="Alarms", alarms=list(self.alarms.values()), width=24, height=4))
        board.add_widgets(
            _graph("Sockets and requests", [self._of_socket("ConnectCount"), self._of_socket("MessageCount"), self._of_http("Count")]),
            _graph("Errors at the APIs", [*map(self._of_http, ("5xx", "4xx")), *map(self._of_socket, ("IntegrationError", "ExecutionError", "ClientError"))]),
            _graph(
                "Latency at the APIs, ms",
                [
                    *(self._of_http("Latency", statistic) for statistic in ("p50", "p99")),
                    *(self._of_socket("IntegrationLatency", statistic) for statistic in ("p50", "p99")),
                ],
            ),
        )
        board.add_widgets(
            _graph("Errors of functions", [self._of_function(name, "Errors") for name in self._api.functions]),
            _graph("Duration of functions, p99, ms", [self._of_function(name, "Duration", "p99") for name in self._api.functions]),
            _graph("Environments at once, Region", [_of_lambda("ConcurrentExecutions", "Maximum"), _of_lambda("Throttles")]),
        )
        queues = self._state.queues
        board.add_widgets(
            _graph("Messages waiting", [_of_queue(queue, "ApproximateNumberOfMessagesVisible", name) for name, queue in queues.items()]),
            _graph("Oldest message, s", [_of_queue(queue, "ApproximateAgeOfOldestMessage", name) for name, queue in queues.items()]),
            _graph("Dead letters", [_of_queue(_dead(queue), "ApproximateNumberOfMessagesVisible", name) for name, queue in queues.items()]),
        )
        if cache := self._state.redis_cache:
            board.add_widgets(
                _graph("Session store, bytes", [_of_cache(cache, "BytesUsedForCache")]),
                _graph(
                    "Session store, units and refusals",
                    [_of_cache(cache, name, "Sum") for name in ("ElastiCacheProcessingUnits", "ThrottledCmds", "Evictions")],
                ),
                _graph("Session store, latency, µs", [_of_cache(cache, f"Successful{kind}RequestLatency", "p99") for kind in ("Read", "Write")]),
            )
        if self._media is not None:
            self._add_fleet(board, self._media)

    def _add_fleet(self, board: cloudwatch.Dashboard, media: Media) -> None:
        carried = cloudwatch.MathExpression(
            expression="bytes * 8 / 1000000 / 60", using_metrics={"bytes": media.metric("RelayedBytes", "Sum")}, period=_MINUTE, label="relayed, Mbit/s"
        )
        board.add_widgets(
            _graph("Allocations", [media.metric("Allocations", statistic) for statistic in ("Sum", "Maximum")]),
            _graph("Relays", [media.metric("Allocations", "SampleCount"), _of_service(media, "CPUUtilization")]),
            _graph("Relayed", [carried, media.metric("DroppedDatagrams", "Sum")]),
        )
        board.add_widgets(
            _graph("Hub, posts", [media.metric(name, "Sum") for name in ("HubDelivered", "HubFailed")]),
            _graph("Hub, waiting", [media.metric("HubBacklog", "Maximum")]),
            _graph("Hubs with a lease", [media.metric("HubHasLease", "Sum")]),
        )
        if self._deployment.has_relay_usage:
            board.add_widgets(_graph("Usage that only the log has", [media.metric("UsageLogged", "Sum")]))

    def _add_budget(self) -> None:
        """Of the account: costs can be told apart by tag only where somebody has made the tags known to billing."""
        to_topic = budgets.CfnBudget.SubscriberProperty(subscription_type="SNS", address=self.topic.topic_arn)
        notes = [
            budgets.CfnBudget.NotificationWithSubscribersProperty(
                notification=budgets.CfnBudget.NotificationProperty(
                    comparison_operator="GREATER_THAN", notification_type=kind, threshold=threshold, threshold_type="PERCENTAGE"
                ),
                subscribers=[to_topic],
            )
            for kind, threshold in (("FORECASTED", 100), ("ACTUAL", NEAR * 100))
        ]
        budget = budgets.CfnBudget(
            self,
            "Budget",
            budget=budgets.CfnBudget.BudgetDataProperty(
                budget_name=f"heliograph-{self._stage}",
                budget_type="COST",
                time_unit="MONTHLY",
                budget_limit=budgets.CfnBudget.SpendProperty(amount=self._deployment.number("monthly_budget_usd"), unit="USD"),
            ),
            notifications_with_subscribers=notes,
        )
        budget.node.add_dependency(self.topic)  # with its policy: Budgets tries it at once

    # Metrics

    def _of_http(self, name: str, statistic: str = "Sum") -> cloudwatch.Metric:
        return _metric("AWS/ApiGateway", name, {"ApiId": self._api.http.api_id, "Stage": "$default"}, statistic, label=f"REST {name}")

    def _of_socket(self, name: str, statistic: str = "Sum") -> cloudwatch.Metric:
        return _metric("AWS/ApiGateway", name, {"ApiId": self._api.socket.api_id, "Stage": self._stage}, statistic, label=f"socket {name}")

    def _of_function(self, name: str, metric: str, statistic: str = "Sum") -> cloudwatch.Metric:
        return _metric("AWS/Lambda", metric, {"FunctionName": self._api.functions[name].function_name}, statistic, label=name)


def _metric(
    namespace: str, name: str, dimensions: Mapping[str, str], statistic: str, *, label: str | None = None, period: Duration = _FIVE
) -> cloudwatch.Metric:
    return cloudwatch.Metric(namespace=namespace, metric_name=name, dimensions_map=dict(dimensions) or None, statistic=statistic, period=period, label=label)


def _of_lambda(name: str, statistic: str = "Sum") -> cloudwatch.Metric:
    """Over all functions of the account in this Region: Lambda's metrics without a dimension."""
    return _metric("AWS/Lambda", name, {}, statistic, label=f"{name}, Region")


def _of_queue(queue: sqs.IQueue, name: str, label: str | None = None) -> cloudwatch.Metric:
    return _metric("AWS/SQS", name, {"QueueName": queue.queue_name}, "Maximum", label=label, period=_MINUTE)


def _of_cache(cache: str, name: str, statistic: str = "Maximum") -> cloudwatch.Metric:
    """Serverless caches bear the dimension `clusterId`, in lower case (ElastiCache user guide, "Serverless metrics and events")."""
    return _metric("AWS/ElastiCache", name, {"clusterId": cache}, statistic)


def _of_service(media: Media, name: str) -> cloudwatch.Metric:
    """Per cent of what the task reserves: one core."""
    return _metric("AWS/ECS", name, {"ClusterName": media.cluster.cluster_name, "ServiceName": media.service.service_name}, "Average")


def _dead(queue: sqs.Queue) -> sqs.IQueue:
    letters = queue.dead_letter_queue
    if letters is None:
        raise ValueError(f"{queue.node.path} has no dead-letter queue.")
    return letters.queue


def _sum(metrics: Mapping[str, cloudwatch.IMetric]) -> cloudwatch.MathExpression:
    return cloudwatch.MathExpression(expression=" + ".join(f"FILL({name}, 0)" for name in metrics), using_metrics=dict(metrics), period=_FIVE, label="in all")


def _groups(names: list[str]) -> Iterable[list[str]]:
    """As few groups of at most METRICS_PER_ALARM as there can be."""
    for start in range(0, len(names), METRICS_PER_ALARM):
        yield names[start : start + METRICS_PER_ALARM]


def _graph(title: str, metrics: list[cloudwatch.IMetric]) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(title=title, left=metrics, width=8, height=6)
