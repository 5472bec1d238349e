"""What stands before the APIs, and what a deployment chooses about the functions: CloudFront, firewall, aliases, SnapStart, places in the network."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from functions.routes import FUNCTIONS, Authorizer, Function, Http, Socket
from heliograph.origin import ADDRESS_HEADER, SECRET_HEADER
from infra.cdk import context
from infra.cdk.api import CORS_HEADERS
from infra.cdk.concurrency import QUEUE_CONCURRENCY, reserved
from tests.infra.conftest import CONTEXT, Resource, Synthesise, Synthesised, run_app
from tests.infra.presets import text
from tests.infra.test_stacks import alias_of, lambdas

VERSION = "0f8fad5b-d9cb-469f-a165-70867728950e"
CHOSEN = {
    "reserved_concurrency": "signal=50, authorizer=20, timers=10",
    "origin_secret_version": VERSION,
    "mongodb": "atlas",
    "atlas_project_id": "0" * 24,
    "relay_usage": "true",
}
ABROAD = {"region": "eu-west-1"}


def only(made: Synthesised, kind: str, stack: str = "api") -> Resource:
    (found,) = made.of_type(f"AWS::{kind}", stack).values()
    return found


def distribution(made: Synthesised) -> Any:
    return only(made, "CloudFront::Distribution")["DistributionConfig"]


def environment(made: Synthesised, name: str = "signal") -> dict[str, str]:
    variables = functions(made)[name]["Environment"]["Variables"]
    return {key: value if isinstance(value, str) else text(value) for key, value in variables.items()}


def functions(made: Synthesised) -> dict[str, Resource]:
    """The properties of each function by its name."""
    return {function.name: lambdas_of_the_table(made)[function.handler] for function in FUNCTIONS}


def lambdas_of_the_table(made: Synthesised) -> dict[str, Resource]:
    handlers = {function.handler for function in FUNCTIONS}
    return {item["Handler"]: item for item in made.of_type("AWS::Lambda::Function", "api").values() if item["Handler"] in handlers}


def passed(made: Synthesised, behavior: Resource) -> tuple[set[str], set[str]]:
    """Headers that go to the origin, lower-case: those of the origin request policy, those of the cache's key."""
    requests, keys = made.of_type("AWS::CloudFront::OriginRequestPolicy", "api"), made.of_type("AWS::CloudFront::CachePolicy", "api")
    config = requests[behavior["OriginRequestPolicyId"]["Ref"]]["OriginRequestPolicyConfig"]["HeadersConfig"]
    assert config["HeaderBehavior"] == "whitelist"
    assert len(config["Headers"]) <= 10, "CloudFront takes ten"
    key = behavior["CachePolicyId"]
    held = keys[key["Ref"]]["CachePolicyConfig"]["ParametersInCacheKeyAndForwardedToOrigin"]["HeadersConfig"]["Headers"] if isinstance(key, dict) else []
    return {name.lower() for name in config["Headers"]}, {name.lower() for name in held}


def is_waited_for(function: Function) -> bool:
    return any(isinstance(route, Http | Socket | Authorizer) for route in function.routes)


# --- CloudFront


def test_both_apis_stand_behind_one_name_over_tls_and_know_it(deployed: Synthesise) -> None:
    made, made_before = deployed("dev"), distribution(deployed("dev"))
    origins = {origin["Id"]: origin for origin in made_before["Origins"]}
    apis = {name: item["ProtocolType"] for name, item in made.of_type("AWS::ApiGatewayV2::Api", "api").items()}
    (handshake,) = made_before["CacheBehaviors"]
    behind = {behavior.get("PathPattern", "*"): origins[behavior["TargetOriginId"]] for behavior in (made_before["DefaultCacheBehavior"], handshake)}
    kinds = {path: next(kind for name, kind in apis.items() if f"${{{name}}}" in text(origin["DomainName"])) for path, origin in behind.items()}
    assert kinds == {"*": "HTTP", "/test": "WEBSOCKET"}
    for origin in origins.values():
        assert origin["CustomOriginConfig"] == {"OriginProtocolPolicy": "https-only", "OriginSSLProtocols": ["TLSv1.2"]}
        assert "OriginPath" not in origin, "the stage of the socket is in the client's own path"
    assert {behavior["ViewerProtocolPolicy"] for behavior in (made_before["DefaultCacheBehavior"], handshake)} == {"https-only"}
    outputs = {name: text(item["Value"]) for name, item in made.api["Outputs"].items()}
    domain = f"${{{next(iter(made.of_type('AWS::CloudFront::Distribution', 'api')))}.DomainName}}"
    assert (outputs["RestUrl"], outputs["SocketUrl"]) == (f"https://{domain}", f"wss://{domain}/test")
    assert environment(made)["HELIOGRAPH_ISSUER"] == f"https://{domain}"
    assert domain not in environment(made)["HELIOGRAPH_CONNECTIONS_URL"], "posts to sockets go to the API itself"


def test_what_the_functions_read_reaches_them_and_the_host_does_not(deployed: Synthesise) -> None:
    made = deployed("dev")
    (handshake,) = distribution(made)["CacheBehaviors"]
    rest, key = passed(made, distribution(made)["DefaultCacheBehavior"])
    assert key == {"authorization"}
    assert {*CORS_HEADERS, ADDRESS_HEADER, "origin", "access-control-request-method", "access-control-request-headers"} <= rest | key
    opening, _ = passed(made, handshake)
    assert {"sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol", ADDRESS_HEADER} <= opening
    assert not {"host", SECRET_HEADER} & (rest | key | opening)
    assert set(distribution(made)["DefaultCacheBehavior"]["AllowedMethods"]) >= {"GET", "POST", "PUT", "DELETE", "OPTIONS"}


def test_nothing_is_kept_in_the_cache(deployed: Synthesise) -> None:
    made = deployed("dev")
    policy = only(made, "CloudFront::CachePolicy")["CachePolicyConfig"]
    assert (policy["MinTTL"], policy["DefaultTTL"], policy["MaxTTL"]) == (0, 0, 1), "MinTTL 0: `no-store`, which every function answers, is obeyed"
    assert policy["ParametersInCacheKeyAndForwardedToOrigin"]["QueryStringsConfig"] == {"QueryStringBehavior": "all"}
    assert {item["ErrorCachingMinTTL"] for item in distribution(made)["CustomErrorResponses"]} == {0}
    (handshake,) = distribution(made)["CacheBehaviors"]
    assert handshake["CachePolicyId"] == "4135ea2d-6df8-44a3-9df3-4b5a84be39ad"  # AWS's CachingDisabled


def test_cloudfront_sends_the_secret_whose_value_stands_in_no_template(deployed: Synthesise) -> None:
    made = deployed("dev")
    headers = [header for origin in distribution(made)["Origins"] for header in origin["OriginCustomHeaders"]]
    assert headers == [{"HeaderName": SECRET_HEADER, "HeaderValue": "{{resolve:secretsmanager:heliograph/test/origin:SecretString:current}}"}] * 2
    (secret,) = [item for item in made.of_type("AWS::SecretsManager::Secret", "state").values() if item["Name"] == "heliograph/test/origin"]
    assert json.loads(secret["GenerateSecretString"]["SecretStringTemplate"]) == {"previous": None}
    assert (secret["GenerateSecretString"]["GenerateStringKey"], secret["GenerateSecretString"]["PasswordLength"]) == ("current", 48)
    assert "secretorigin" in environment(made)["HELIOGRAPH_ORIGIN_SECRET_ID"]


def test_a_version_of_the_secret_is_what_makes_cloudformation_send_the_new_one(deployed: Synthesise) -> None:
    values = {header["HeaderValue"] for origin in distribution(deployed("dev", **CHOSEN))["Origins"] for header in origin["OriginCustomHeaders"]}
    assert values == {f"{{{{resolve:secretsmanager:heliograph/test/origin:SecretString:current::{VERSION}}}}}"}


def test_whoever_answers_strangers_may_read_the_secret_and_nobody_else() -> None:
    for function in FUNCTIONS:
        asks = any(isinstance(route, Authorizer) or (isinstance(route, Http) and route.scope is None) for route in function.routes)
        assert any(right.resource == "origin_secret" for right in function.rights) == asks, function.name


def test_access_logs_say_whose_request_it_is_behind_cloudfront_too(deployed: Synthesise) -> None:
    for made, is_told in ((deployed("dev"), True), (deployed("dev", edge="none"), False)):
        lines = [json.loads(stage["AccessLogSettings"]["Format"]) for stage in made.of_type("AWS::ApiGatewayV2::Stage", "api").values()]
        assert [line.get("authorizer.address") for line in lines] == ["$context.authorizer.address" if is_told else None] * 2
    logs = distribution(deployed("dev"))["Logging"]
    bucket = deployed("dev").of_type("AWS::S3::Bucket", "api")[logs["Bucket"]["Fn::GetAtt"][0]]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["LifecycleConfiguration"]["Rules"][0]["ExpirationInDays"] == 7
    assert not logs.get("IncludeCookies")


def test_without_cloudfront_nothing_of_it_is_made_and_nobody_looks_for_a_secret(deployed: Synthesise) -> None:
    made = deployed("dev", edge="none")
    assert not [item for stack in made.templates.values() for item in stack["Resources"].values() if "CloudFront" in item["Type"] or "WAF" in item["Type"]]
    assert "HELIOGRAPH_ORIGIN_SECRET_ID" not in environment(made)
    assert "heliograph/test/origin" not in json.dumps(made.templates)
    assert "execute-api" in text(made.api["Outputs"]["RestUrl"]["Value"]) or "ApiEndpoint" in text(made.api["Outputs"]["RestUrl"]["Value"])


def test_the_apis_have_addresses_of_both_kinds(deployed: Synthesise) -> None:
    assert {item["IpAddressType"] for item in deployed("dev").of_type("AWS::ApiGatewayV2::Api", "api").values()} == {"dualstack"}


# --- the firewall


def test_the_firewall_stands_in_us_east_1_and_before_the_distribution(deployed: Synthesise) -> None:
    made = deployed("prod", **ABROAD)
    acl = only(made, "WAFv2::WebACL", "waf")
    assert (acl["Scope"], acl["DefaultAction"]) == ("CLOUDFRONT", {"Allow": {}})
    manifest = json.loads((made.folder / "manifest.json").read_text())["artifacts"]
    regions = {name: item["environment"].rpartition("/")[2] for name, item in manifest.items() if item["type"] == "aws:cloudformation:stack"}
    assert {name: region for name, region in regions.items() if region != "eu-west-1"} == {"heliograph-test-waf": "us-east-1"}
    reader, name = distribution(made)["WebACLId"]["Fn::GetAtt"]
    assert made.api["Resources"][reader]["Type"] == "Custom::CrossRegionExportReader"
    writer = next(item for item in made.templates["waf"]["Resources"].values() if item["Type"] == "Custom::CrossRegionExportWriter")
    ((path, value),) = writer["Properties"]["WriterProps"]["exports"].items()
    assert (path, value) == (name, {"Fn::GetAtt": [next(iter(made.of_type("AWS::WAFv2::WebACL", "waf"))), "Arn"]})


def test_a_flood_of_one_address_gets_our_own_refusal_and_signing_in_is_guarded_more_closely(deployed: Synthesise) -> None:
    acl = only(deployed("prod", **ABROAD), "WAFv2::WebACL", "waf")
    rates = {rule["Name"]: rule for rule in acl["Rules"] if "RateBasedStatement" in rule["Statement"]}
    statements = {name: rule["Statement"]["RateBasedStatement"] for name, rule in rates.items()}
    assert {name: (item["AggregateKeyType"], item["EvaluationWindowSec"], item["Limit"]) for name, item in statements.items()} == {
        "sign-ins": ("IP", 300, 1_000),
        "requests": ("IP", 300, 30_000),
    }
    assert "ScopeDownStatement" not in statements["requests"]
    match = statements["sign-ins"]["ScopeDownStatement"]["ByteMatchStatement"]
    assert (match["FieldToMatch"], match["PositionalConstraint"]) == ({"UriPath": {}}, "STARTS_WITH")
    public = {route.path for function in FUNCTIONS for route in function.routes if isinstance(route, Http) and route.scope is None and route.method == "POST"}
    assert all(path.startswith(match["SearchString"]) for path in public)
    for rule in rates.values():
        response = rule["Action"]["Block"]["CustomResponse"]
        assert (response["ResponseCode"], response["ResponseHeaders"]) == (429, [{"Name": "retry-after", "Value": "60"}])
        body = json.loads(acl["CustomResponseBodies"][response["CustomResponseBodyKey"]]["Content"])
        assert (body["code"], body["retryable"], body["retry_after_ms"]) == ("rate_limited", True, 60_000)


def test_the_firewall_has_what_aws_knows_to_be_bad_and_takes_bodies_that_the_functions_take(deployed: Synthesise) -> None:
    acl = only(deployed("prod", **ABROAD), "WAFv2::WebACL", "waf")
    groups = {rule["Name"]: rule for rule in acl["Rules"] if "ManagedRuleGroupStatement" in rule["Statement"]}
    assert set(groups) == {"AWSManagedRulesCommonRuleSet", "AWSManagedRulesKnownBadInputsRuleSet", "AWSManagedRulesAmazonIpReputationList"}
    assert all(rule["OverrideAction"] == {"None": {}} for rule in groups.values())
    overrides = [item for rule in groups.values() for item in rule["Statement"]["ManagedRuleGroupStatement"].get("RuleActionOverrides", [])]
    assert overrides == [{"Name": "SizeRestrictions_BODY", "ActionToUse": {"Count": {}}}]
    assert sorted(rule["Priority"] for rule in acl["Rules"]) == list(range(len(acl["Rules"])))


def test_what_the_firewall_writes_down_has_no_credential_in_it(deployed: Synthesise) -> None:
    made = deployed("prod", **ABROAD)
    logging = only(made, "WAFv2::LoggingConfiguration", "waf")
    assert {item["SingleHeader"]["Name"] for item in logging["RedactedFields"]} == {"authorization", "sec-websocket-protocol"}
    assert logging["LoggingFilter"]["DefaultBehavior"] == "DROP"
    acl = only(made, "WAFv2::WebACL", "waf")
    seen = [acl["VisibilityConfig"], *(rule["VisibilityConfig"] for rule in acl["Rules"])]
    assert {(item["SampledRequestsEnabled"], item["CloudWatchMetricsEnabled"]) for item in seen} == {(False, True)}


def test_dev_pays_for_no_firewall(deployed: Synthesise) -> None:
    assert "waf" not in deployed("dev").templates
    assert "WebACLId" not in distribution(deployed("dev"))


# --- the functions


def test_what_people_wait_for_starts_from_a_snapshot_where_that_is_chosen(deployed: Synthesise) -> None:
    chosen, plain = functions(deployed("prod", **ABROAD)), functions(deployed("dev"))
    for function in FUNCTIONS:
        assert chosen[function.name].get("SnapStart") == ({"ApplyOn": "PublishedVersions"} if is_waited_for(function) else None), function.name
        assert "SnapStart" not in plain[function.name]


def test_authorizers_call_the_alias_too(deployed: Synthesise) -> None:
    made = deployed("dev")
    guards = made.of_type("AWS::ApiGatewayV2::Authorizer", "api").values()
    authorizer = lambdas(made)["functions.authorizer.handler.handler"][0]
    assert [alias_of(made, text(guard["AuthorizerUri"])) for guard in guards] == [authorizer] * 2
    assert len(made.of_type("AWS::Lambda::Alias", "api")) == len(FUNCTIONS)


def test_functions_stand_in_the_network_where_their_rights_need_it_and_no_others(deployed: Synthesise) -> None:
    inside = {name for name, item in functions(deployed("dev")).items() if "VpcConfig" in item}
    assert inside == {function.name for function in FUNCTIONS if any(right.resource == "redis" for right in function.rights)}
    assert not {"push_dispatch", "openapi"} & inside
    with_atlas = {name for name, item in functions(deployed("dev", **CHOSEN)).items() if "VpcConfig" in item}
    assert with_atlas == inside | {"push_dispatch"}, "the ledger has a private endpoint there"
    for item in functions(deployed("dev")).values():
        if "VpcConfig" in item:
            assert item["VpcConfig"]["Ipv6AllowedForDualStack"] is True
            assert len(item["VpcConfig"]["SecurityGroupIds"]) == 1


def test_a_function_cannot_make_network_interfaces_although_lambda_does_with_its_role(deployed: Synthesise) -> None:
    made = deployed("dev")
    for function in FUNCTIONS:
        item = functions(made)[function.name]
        (policy,) = made.of_type("AWS::IAM::Role", "api")[item["Role"]["Fn::GetAtt"][0]]["Policies"]
        statements = [each for each in policy["PolicyDocument"]["Statement"] if "ec2:CreateNetworkInterface" in each["Action"]]
        if "VpcConfig" in item:
            allowed, denied = statements
            assert (allowed["Effect"], denied["Effect"], allowed["Action"]) == ("Allow", "Deny", denied["Action"])
            assert denied["Condition"] == {"Null": {"lambda:SourceFunctionArn": "false"}}
        else:
            assert statements == []


def test_reserved_concurrency_is_given_as_chosen_and_queues_keep_their_most(deployed: Synthesise) -> None:
    chosen, plain = functions(deployed("dev", **CHOSEN)), functions(deployed("dev"))
    reserved = {name: item["ReservedConcurrentExecutions"] for name, item in chosen.items() if "ReservedConcurrentExecutions" in item}
    assert reserved == {"signal": 50, "authorizer": 20, "timers": 10}
    assert not any("ReservedConcurrentExecutions" in item for item in plain.values())
    sources = deployed("dev", **CHOSEN).of_type("AWS::Lambda::EventSourceMapping", "api").values()
    assert {source["ScalingConfig"]["MaximumConcurrency"] for source in sources} == {QUEUE_CONCURRENCY}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("signals=5", "heliograph:reserved_concurrency: 'signals' is not a function of the route table; there are authorizer, "),
        ("signal", "heliograph:reserved_concurrency: signal='' must be a whole number from 1 to 10000."),
        ("signal=0", "heliograph:reserved_concurrency: signal='0' must be"),
        ("signal=many", "heliograph:reserved_concurrency: signal='many' must be"),
        ("signal=1,signal=2", "heliograph:reserved_concurrency names signal twice."),
        ("timers=9", "heliograph:reserved_concurrency: timers consumes a queue"),
        ("push_dispatch=1", "heliograph:reserved_concurrency: push_dispatch consumes a queue"),
    ],
)
def test_a_wrong_reserve_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(context.ContextError, match=re.escape(sentence)):
        reserved(text)
    assert reserved(" signal=5, timers=10,") == {"signal": 5, "timers": QUEUE_CONCURRENCY}
    assert reserved("") == {}


def test_the_app_ends_with_that_sentence(tmp_path_factory: pytest.TempPathFactory) -> None:
    ended = run_app(tmp_path_factory.mktemp("cdk"), CONTEXT | {"heliograph:reserved_concurrency": "signals=5"})
    assert (ended.returncode, ended.stderr.splitlines()[-1][:34]) == (1, "heliograph:reserved_concurrency: '")


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        (
            {"origin_secret_version": "}}{{resolve:ssm:x"},
            "heliograph:origin_secret_version must be the version id that `python -m admin rotate-secret` printed",
        ),
        ({"origin_secret_version": VERSION, "edge": "none"}, "heliograph:origin_secret_version has an effect only with edge=cloudfront"),
        ({"origin_secret_id": "x"}, "worked out by the stacks; leave it out"),
    ],
)
def test_a_wrong_choice_about_the_secret_is_one_sentence(chosen: dict[str, str], sentence: str) -> None:
    with pytest.raises(context.ContextError, match=re.escape(sentence)):
        context.read(CONTEXT | {f"heliograph:{name}": value for name, value in chosen.items()})
    assert context.read(CONTEXT | {"heliograph:origin_secret_version": VERSION}).has_edge
