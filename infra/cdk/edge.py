"""What stands before both APIs: one CloudFront distribution, and a firewall (AWS WAF) in a stack of its own, because WAF of CloudFront lives in us-east-1.

The APIs' own addresses stay open, CloudFront calls them: a secret header tells its requests from others (functions/admission.py looks at it).
Sources: CloudFront developer guide, "Use WebSockets with CloudFront distributions", "Add CloudFront request headers", "Restrict access to files on custom
origins".
"""

from __future__ import annotations

import json
from typing import Final

from aws_cdk import ArnFormat, Duration, Environment, RemovalPolicy, Stack
from aws_cdk import aws_apigatewayv2 as gateway
from aws_cdk import aws_cloudfront as cloudfront
from aws_cdk import aws_cloudfront_origins as origins
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_wafv2 as waf
from constructs import Construct

from heliograph import errors
from heliograph.limits import LIMITS
from heliograph.origin import ADDRESS_HEADER, SECRET_HEADER
from infra.cdk.context import DYNAMIC, Deployment
from infra.cdk.nag import acknowledge
from infra.cdk.retention import access_log_bucket, kept

FIREWALL_REGION: Final = "us-east-1"
# A policy that lets every viewer header through either sends Host too, which API Gateway refuses, or leaves CloudFront's own headers out: so both name theirs.
REST_HEADERS: Final = (  # ten is CloudFront's most
    "Accept",
    "Access-Control-Request-Headers",
    "Access-Control-Request-Method",
    "Content-Type",
    "Idempotency-Key",
    "Origin",
    "traceparent",
    "X-Trace-Id",
    ADDRESS_HEADER,
)
HANDSHAKE_HEADERS: Final = ("Origin", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol", "Sec-WebSocket-Version", ADDRESS_HEADER)
ERRORS_NOT_KEPT: Final = (400, 403, 404, 405, 414, 416, 500, 501, 502, 503, 504)
ORIGIN_SECRET: Final = "origin"  # noqa: S105 - its name
_RETRY_AFTER_S: Final = 60
WINDOW_S: Final = 300  # of a rate-based rule
MOST_IN_WINDOW: Final = round(LIMITS["address"].per_s * WINDOW_S)
MOST_SIGN_INS_IN_WINDOW: Final = 1_000  # refreshes are among them, and an office has one address
MANAGED: Final = {  # rule group of AWS -> its rules that only count, because the functions decide
    "AWSManagedRulesAmazonIpReputationList": (),
    "AWSManagedRulesKnownBadInputsRuleSet": (),
    "AWSManagedRulesCommonRuleSet": ("SizeRestrictions_BODY",),  # 8 KB; a function takes 64 KB and says so with a code
}


class Firewall(Stack):
    """The web ACL: an address that floods, then what AWS knows to be bad."""

    def __init__(self, scope: Construct, deployment: Deployment) -> None:
        super().__init__(
            scope,
            f"heliograph-{deployment.stage}-waf",
            description="Heliograph: the firewall before CloudFront",
            env=Environment(region=FIREWALL_REGION),
            cross_region_references=True,
        )
        refusal = waf.CfnWebACL.CustomResponseBodyProperty(content_type="APPLICATION_JSON", content=_refusal())
        self._acl = waf.CfnWebACL(
            self,
            "Acl",
            name=f"heliograph-{deployment.stage}",
            scope="CLOUDFRONT",
            default_action=waf.CfnWebACL.DefaultActionProperty(allow={}),
            custom_response_bodies={"rate_limited": refusal},
            rules=[*_rate_rules(), *(_managed_rule(number, name) for number, name in enumerate(MANAGED, start=2))],
            visibility_config=_seen_as("heliograph"),
        )
        self._log(deployment)

    @property
    def arn(self) -> str:
        return self._acl.attr_arn

    def _log(self, deployment: Deployment) -> None:
        """What was blocked, without the headers that are credentials."""
        log_group = logs.LogGroup(
            self,
            "blocked",
            log_group_name=f"aws-waf-logs-heliograph-{deployment.stage}",  # WAF asks for this beginning
            retention=kept(deployment),
            removal_policy=RemovalPolicy.DESTROY,
        )
        arn = self.format_arn(service="logs", resource="log-group", resource_name=log_group.log_group_name, arn_format=ArnFormat.COLON_RESOURCE_NAME)
        hidden = [waf.CfnLoggingConfiguration.FieldToMatchProperty(single_header={"Name": name}) for name in ("authorization", "sec-websocket-protocol")]
        blocked = {"Behavior": "KEEP", "Requirement": "MEETS_ANY", "Conditions": [{"ActionCondition": {"Action": "BLOCK"}}]}
        made = waf.CfnLoggingConfiguration(
            self,
            "Blocked",
            resource_arn=self.arn,
            log_destination_configs=[arn],
            redacted_fields=hidden,
            logging_filter={"DefaultBehavior": "DROP", "Filters": [blocked]},
        )
        made.node.add_dependency(log_group)


def _rate_rules() -> list[waf.CfnWebACL.RuleProperty]:
    """Too many requests of one address in five minutes get the answer that the functions would give."""
    response = waf.CfnWebACL.CustomResponseProperty(
        response_code=errors.RateLimited.status,
        custom_response_body_key="rate_limited",
        response_headers=[waf.CfnWebACL.CustomHTTPHeaderProperty(name="retry-after", value=str(_RETRY_AFTER_S))],
    )
    action = waf.CfnWebACL.RuleActionProperty(block=waf.CfnWebACL.BlockActionProperty(custom_response=response))
    signing_in = waf.CfnWebACL.StatementProperty(
        byte_match_statement=waf.CfnWebACL.ByteMatchStatementProperty(
            field_to_match=waf.CfnWebACL.FieldToMatchProperty(uri_path={}),
            positional_constraint="STARTS_WITH",
            search_string="/v1/tokens",
            text_transformations=[waf.CfnWebACL.TextTransformationProperty(priority=0, type="NORMALIZE_PATH")],
        )
    )
    narrower = {"sign-ins": (MOST_SIGN_INS_IN_WINDOW, signing_in), "requests": (MOST_IN_WINDOW, None)}
    return [
        waf.CfnWebACL.RuleProperty(
            name=name,
            priority=number,
            action=action,
            statement=waf.CfnWebACL.StatementProperty(
                rate_based_statement=waf.CfnWebACL.RateBasedStatementProperty(
                    aggregate_key_type="IP", limit=limit, evaluation_window_sec=WINDOW_S, scope_down_statement=scope
                )
            ),
            visibility_config=_seen_as(name),
        )
        for number, (name, (limit, scope)) in enumerate(narrower.items())
    ]


def _managed_rule(priority: int, name: str) -> waf.CfnWebACL.RuleProperty:
    counting = waf.CfnWebACL.RuleActionProperty(count={})
    overrides = [waf.CfnWebACL.RuleActionOverrideProperty(name=rule, action_to_use=counting) for rule in MANAGED[name]]
    group = waf.CfnWebACL.ManagedRuleGroupStatementProperty(vendor_name="AWS", name=name, rule_action_overrides=overrides or None)
    return waf.CfnWebACL.RuleProperty(
        name=name,
        priority=priority,
        override_action=waf.CfnWebACL.OverrideActionProperty(none={}),
        statement=waf.CfnWebACL.StatementProperty(managed_rule_group_statement=group),
        visibility_config=_seen_as(name),
    )


def _seen_as(metric: str) -> waf.CfnWebACL.VisibilityConfigProperty:
    """Metrics, but no samples: those would show headers that are credentials."""
    return waf.CfnWebACL.VisibilityConfigProperty(cloud_watch_metrics_enabled=True, metric_name=metric, sampled_requests_enabled=False)


def _refusal() -> str:
    """The wire form of every refusal; WAF knows no trace."""
    return json.dumps(errors.RateLimited(retry_after_ms=_RETRY_AFTER_S * 1000).body("0" * 32))


class Edge(Construct):
    """The distribution: the REST API behind every path, the WebSocket API behind `/<stage>`, as its own address has it.

    It stands in the APIs' stack: functions need its name (`iss` of tokens), and it needs nothing but the APIs' ids. Nothing is kept in a cache.
    """

    def __init__(self, scope: Construct, deployment: Deployment, http: gateway.HttpApi, socket: gateway.WebSocketApi, web_acl_arn: str | None) -> None:
        super().__init__(scope, "Edge")
        self._stage, self._deployment = deployment.stage, deployment
        self._secret = _origin_secret(deployment)
        self.distribution = cloudfront.Distribution(
            self,
            "Distribution",
            comment=f"Heliograph {deployment.stage}",
            default_behavior=self._rest(http),
            additional_behaviors={f"/{deployment.stage}": self._handshake(socket)},
            error_responses=[cloudfront.ErrorResponse(http_status=status, ttl=Duration.seconds(0)) for status in ERRORS_NOT_KEPT],
            http_version=cloudfront.HttpVersion.HTTP2_AND_3,
            log_bucket=access_log_bucket(self, "Logs", deployment, s3.ObjectOwnership.BUCKET_OWNER_PREFERRED),
            web_acl_id=web_acl_arn,
        )
        self.domain = self.distribution.distribution_domain_name
        acknowledge(self.distribution, "AwsSolutions-CFR1", "Who may call is decided by tokens, not by country.")
        acknowledge(
            self.distribution, "AwsSolutions-CFR4", "CloudFront's own name comes with its own certificate; a name of the operator's brings its policy along."
        )
        if web_acl_arn is None:
            acknowledge(
                self.distribution, "AwsSolutions-CFR2", "The setting edge=cloudfront leaves the firewall out for its price; edge=cloudfront-waf makes it."
            )

    def _rest(self, http: gateway.HttpApi) -> cloudfront.BehaviorOptions:
        """Authorization passes only as part of the cache's key, and a key needs a cache: of a second at most, which the answers' `no-store` forbids to use."""
        key = cloudfront.CachePolicy(
            self,
            "Guarded",
            comment="Nothing is kept: Authorization and the query pass, no-store decides",
            header_behavior=cloudfront.CacheHeaderBehavior.allow_list("Authorization"),
            query_string_behavior=cloudfront.CacheQueryStringBehavior.all(),
            cookie_behavior=cloudfront.CacheCookieBehavior.none(),
            min_ttl=Duration.seconds(0),
            default_ttl=Duration.seconds(0),
            max_ttl=Duration.seconds(1),
        )
        passed = cloudfront.OriginRequestPolicy(
            self, "Rest", comment="What the REST API reads", header_behavior=cloudfront.OriginRequestHeaderBehavior.allow_list(*REST_HEADERS)
        )
        return cloudfront.BehaviorOptions(
            origin=self._origin(http.api_id),
            allowed_methods=cloudfront.AllowedMethods.ALLOW_ALL,
            cache_policy=key,
            origin_request_policy=passed,
            viewer_protocol_policy=cloudfront.ViewerProtocolPolicy.HTTPS_ONLY,
            compress=False,
        )

    def _handshake(self, socket: gateway.WebSocketApi) -> cloudfront.BehaviorOptions:
        passed = cloudfront.OriginRequestPolicy(
            self, "Handshake", comment="What opens a socket", header_behavior=cloudfront.OriginRequestHeaderBehavior.allow_list(*HANDSHAKE_HEADERS)
        )
        return cloudfront.BehaviorOptions(
            origin=self._origin(socket.api_id),
            cache_policy=cloudfront.CachePolicy.CACHING_DISABLED,
            origin_request_policy=passed,
            viewer_protocol_policy=cloudfront.ViewerProtocolPolicy.HTTPS_ONLY,
            compress=False,
        )

    def _origin(self, api_id: str) -> origins.HttpOrigin:
        here = Stack.of(self)
        return origins.HttpOrigin(
            f"{api_id}.execute-api.{here.region}.{here.url_suffix}",
            protocol_policy=cloudfront.OriginProtocolPolicy.HTTPS_ONLY,
            origin_ssl_protocols=[cloudfront.OriginSslPolicy.TLS_V1_2],
            custom_headers={SECRET_HEADER: self._secret},
        )


def _origin_secret(deployment: Deployment) -> str:
    """What CloudFormation puts in place of this text: the current secret, as it is when the distribution is changed. A version of it makes a change."""
    name, version = f"heliograph/{deployment.stage}/{ORIGIN_SECRET}", deployment.own["origin_secret_version"]
    return f"{DYNAMIC}{name}:SecretString:current{f'::{version}' if version else ''}}}}}"
