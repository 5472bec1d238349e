"""The synthesised templates say what the route table says: every route once, a role each, no wildcard, every queue with its dead letters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from adapters.settings import PREFIX, Settings, load
from functions.routes import FUNCTIONS, Authorizer, Function, Http, Queue, Socket, http_routes, socket_routes
from tests.infra.conftest import Resource, Synthesised, read, run_app
from tests.infra.presets import text

SECRETS = ("token_keys", "turn_secret", "origin_secret", "mongo_uri", "fcm_credentials")
QUEUES = [(function, route) for function in FUNCTIONS for route in function.routes if isinstance(route, Queue)]


def of_socket(synthesised: Synthesised, properties: Resource) -> bool:
    apis = synthesised.of_type("AWS::ApiGatewayV2::Api")
    return bool(apis[properties["ApiId"]["Ref"]]["ProtocolType"] == "WEBSOCKET")


def lambdas(synthesised: Synthesised) -> dict[str, tuple[str, Resource]]:
    """Handler string -> logical id, properties."""
    found = synthesised.of_type("AWS::Lambda::Function")
    assert len({properties["Handler"] for properties in found.values()}) == len(found)
    return {properties["Handler"]: (name, properties) for name, properties in found.items()}


def alias_of(synthesised: Synthesised, text: str) -> str:
    """The logical id of the Lambda whose alias `live` this text names."""
    found = re.search(r"\${(\w+live[0-9A-F]{8})}", text)
    assert found is not None, text
    alias = synthesised.of_type("AWS::Lambda::Alias")[found[1]]
    version = synthesised.of_type("AWS::Lambda::Version")[alias["FunctionVersion"]["Fn::GetAtt"][0]]
    assert (alias["Name"], version["FunctionName"]) == ("live", alias["FunctionName"])
    return str(alias["FunctionName"]["Ref"])


def target_of(synthesised: Synthesised, route: Resource) -> str:
    """The logical id of the Lambda behind a route."""
    integration = synthesised.of_type("AWS::ApiGatewayV2::Integration")[text(route["Target"]).removeprefix("integrations/${").rstrip("}")]
    return alias_of(synthesised, text(integration["IntegrationUri"]))


def statements_of(synthesised: Synthesised, function: Function) -> Iterator[tuple[list[str], list[str]]]:
    """(actions, resources) of each statement of the function's role, but for those that no API has a name for: traces and network interfaces."""
    _, properties = lambdas(synthesised)[function.handler]
    (policy,) = synthesised.of_type("AWS::IAM::Role")[properties["Role"]["Fn::GetAtt"][0]]["Policies"]
    for statement in policy["PolicyDocument"]["Statement"]:
        actions, resources = ([item] if isinstance(item, str) else item for item in (statement["Action"], statement["Resource"]))
        if {action.partition(":")[0] for action in actions} in ({"xray"}, {"ec2"}) and resources == ["*"]:
            continue
        assert statement["Effect"] == "Allow"
        yield actions, [text(item) for item in (resources if isinstance(resources, list) else [resources])]


def test_every_route_of_the_table_is_in_the_templates_exactly_once_and_nothing_else(synthesised: Synthesised) -> None:
    routes = synthesised.of_type("AWS::ApiGatewayV2::Route").values()
    found = Counter((of_socket(synthesised, route), route["RouteKey"]) for route in routes)
    wanted = {(False, route.key): 1 for _, route in http_routes()} | {(True, route.key): 1 for _, route in socket_routes()}
    assert found == wanted


def test_every_route_reaches_the_function_that_the_table_names(synthesised: Synthesised) -> None:
    routes = {(of_socket(synthesised, route), route["RouteKey"]): route for route in synthesised.of_type("AWS::ApiGatewayV2::Route").values()}
    known = lambdas(synthesised)
    table = [*((function, False, route.key) for function, route in http_routes()), *((function, True, route.key) for function, route in socket_routes())]
    for function, is_socket, key in table:
        assert target_of(synthesised, routes[is_socket, key]) == known[function.handler][0], key


def test_gateway_may_invoke_every_function_it_reaches(synthesised: Synthesised) -> None:
    allowed = {
        alias_of(synthesised, text(item["FunctionName"]))
        for item in synthesised.of_type("AWS::Lambda::Permission").values()
        if item["Principal"] == "apigateway.amazonaws.com"
    }
    reached = [function for function in FUNCTIONS if any(isinstance(route, Http | Socket | Authorizer) for route in function.routes)]
    assert allowed == {lambdas(synthesised)[function.handler][0] for function in reached}


def test_scoped_http_routes_are_guarded_and_public_ones_are_open(synthesised: Synthesised) -> None:
    routes = {route["RouteKey"]: route for route in synthesised.of_type("AWS::ApiGatewayV2::Route").values() if not of_socket(synthesised, route)}
    authorizers = synthesised.of_type("AWS::ApiGatewayV2::Authorizer")
    for _, route in http_routes():
        made = routes[route.key]
        assert made["AuthorizationType"] == ("NONE" if route.scope is None else "CUSTOM"), route.key
        if route.scope is not None:
            guard = authorizers[made["AuthorizerId"]["Ref"]]
            assert (guard["EnableSimpleResponses"], guard["AuthorizerResultTtlInSeconds"], guard["AuthorizerPayloadFormatVersion"]) == (True, 0, "2.0")
            assert guard["IdentitySource"] == ["$request.header.Authorization"]


def test_a_socket_is_authorised_by_its_ticket_when_it_opens(synthesised: Synthesised) -> None:
    routes = {route["RouteKey"]: route for route in synthesised.of_type("AWS::ApiGatewayV2::Route").values() if of_socket(synthesised, route)}
    guard = synthesised.of_type("AWS::ApiGatewayV2::Authorizer")[routes.pop("$connect")["AuthorizerId"]["Ref"]]
    assert (guard["AuthorizerType"], guard["IdentitySource"]) == ("REQUEST", ["route.request.header.Sec-WebSocket-Protocol"])
    assert all(route["AuthorizationType"] == "NONE" for route in routes.values())


def test_what_a_function_returns_reaches_the_client_exactly_where_the_table_says_so(synthesised: Synthesised) -> None:
    by_id = synthesised.of_type("AWS::ApiGatewayV2::Route")
    responses = synthesised.of_type("AWS::ApiGatewayV2::RouteResponse").values()
    answering = {by_id[response["RouteId"]["Ref"]]["RouteKey"] for response in responses if response["RouteResponseKey"] == "$default"}
    assert answering == {route.key for _, route in socket_routes() if route.answers}
    assert {route["RouteKey"] for route in by_id.values() if route.get("RouteResponseSelectionExpression") == "$default"} == answering


def test_every_function_is_as_the_table_says(synthesised: Synthesised) -> None:
    known = lambdas(synthesised)
    assert set(known) == {function.handler for function in FUNCTIONS}
    for function in FUNCTIONS:
        _, made = known[function.handler]
        assert (made["MemorySize"], made["Timeout"], made["Runtime"], made["Architectures"]) == (
            function.memory_mb,
            function.timeout_s,
            "python3.13",
            ["arm64"],
        )
        log_group = synthesised.of_type("AWS::Logs::LogGroup")[made["LoggingConfig"]["LogGroup"]["Ref"]]
        assert log_group["RetentionInDays"] == 7
        assert made["TracingConfig"] == {"Mode": "Active"}


def test_every_function_has_a_role_of_its_own(synthesised: Synthesised) -> None:
    roles = Counter(properties["Role"]["Fn::GetAtt"][0] for _, properties in lambdas(synthesised).values())
    assert set(roles.values()) == {1}
    assert set(roles) == set(synthesised.of_type("AWS::IAM::Role"))
    assert not synthesised.of_type("AWS::IAM::Policy")
    assert not any("ManagedPolicyArns" in role for role in synthesised.of_type("AWS::IAM::Role").values())


def test_no_role_has_a_wildcard_but_for_names_that_only_run_time_knows(synthesised: Synthesised) -> None:
    for function in FUNCTIONS:
        for actions, resources in statements_of(synthesised, function):
            assert all(re.fullmatch(r"[a-z0-9-]+:[A-Za-z]+", action) for action in actions), (function.name, actions)
            for resource in resources:
                known = re.fullmatch(r"(.+/test/(POST|DELETE)/@connections|\${heliograph-test-state:ExportsOutputFnGetAttMedia\w+Arn\w+})/\*", resource)
                assert "*" not in (known[1] if known else resource), (function.name, resource)


def test_rights_are_those_of_the_table_and_no_more(synthesised: Synthesised) -> None:
    services = {"connections": "execute-api", "notifications": "sqs", "timers": "sqs", "media": "s3", "media_key": "kms", "redis": None, "mongo": None}
    for function in FUNCTIONS:
        wanted = {services.get(right.resource, "secretsmanager") for right in function.rights} - {None} | {"logs"}
        granted = [(action, resource) for actions, resources in statements_of(synthesised, function) for action in actions for resource in resources]
        assert {action.partition(":")[0] for action, _ in granted} == wanted, function.name
        secrets = {right.resource for right in function.rights if right.resource in SECRETS}
        assert len([action for action, _ in granted if action == "secretsmanager:GetSecretValue"]) == len(secrets), function.name
        has = {(right.resource, right.action) for right in function.rights}
        actions = {action for action, _ in granted}
        assert ("s3:PutObject" in actions, "s3:GetObject" in actions) == (("media", "put") in has, ("media", "get") in has)
        sends, receives = ({resource for resource, action in has if action == way} for way in ("send", "receive"))
        assert ("sqs:SendMessage" in actions, "sqs:ReceiveMessage" in actions) == (bool(sends), bool(receives))


def test_a_missing_upload_is_told_from_a_forbidden_one(synthesised: Synthesised) -> None:
    """Without s3:ListBucket S3 answers 403 instead of 404 for an object that is not there (S3 API reference, HeadObject, "Permissions")."""
    (media_link,) = [function for function in FUNCTIONS if function.name == "media_link"]
    assert "s3:ListBucket" in [action for actions, _ in statements_of(synthesised, media_link) for action in actions]


def test_every_queue_has_a_dead_letter_queue_that_remembers_longest(synthesised: Synthesised) -> None:
    queues = synthesised.of_type("AWS::SQS::Queue")
    dead = {properties["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"][0] for properties in queues.values() if "RedrivePolicy" in properties}
    sources = {name: properties for name, properties in queues.items() if name not in dead}
    assert len(sources) == len(QUEUES) == len(dead)
    for function, queue in QUEUES:
        (made,) = [properties for name, properties in sources.items() if name.startswith(queue.name)]
        assert made["VisibilityTimeout"] == queue.visibility_s >= 6 * function.timeout_s
        assert made["RedrivePolicy"]["maxReceiveCount"] == queue.max_receives
        letters = queues[made["RedrivePolicy"]["deadLetterTargetArn"]["Fn::GetAtt"][0]]
        assert letters["MessageRetentionPeriod"] == 14 * 86_400 > made["MessageRetentionPeriod"]


def test_queues_are_consumed_in_batches_that_report_each_failure(synthesised: Synthesised) -> None:
    sources = {alias_of(synthesised, text(item["FunctionName"])): item for item in synthesised.of_type("AWS::Lambda::EventSourceMapping").values()}
    assert len(sources) == len(QUEUES)
    for function, queue in QUEUES:
        source = sources[lambdas(synthesised)[function.handler][0]]
        assert (source["FunctionResponseTypes"], source["BatchSize"]) == (["ReportBatchItemFailures"], queue.batch_size)
        assert source["ScalingConfig"]["MaximumConcurrency"] >= 2
        assert f"ExportsOutputFnGetAtt{queue.name}" in text(source["EventSourceArn"])


def test_the_environment_of_every_function_is_the_settings_and_nothing_else(synthesised: Synthesised) -> None:
    for _, properties in lambdas(synthesised).values():
        variables = {name: value if isinstance(value, str) else text(value) for name, value in properties["Environment"]["Variables"].items()}
        over_ipv6 = {"AWS_ENDPOINT_URL_SQS"} if "VpcConfig" in properties else set()
        assert {name for name in variables if not name.startswith(PREFIX)} == over_ipv6
        settings = load(variables)
        assert isinstance(settings, Settings)
        assert (settings.stage, settings.redis_url, settings.redis_mode) == ("test", "rediss://redis.example.com:6379", "single")
        assert settings.connections_url.startswith("https://")
        assert settings.connections_url.endswith("/test")


def test_stages_throttle_and_log_who_called_without_credentials(synthesised: Synthesised) -> None:
    stages = synthesised.of_type("AWS::ApiGatewayV2::Stage")
    assert {stage["StageName"] for stage in stages.values()} == {"$default", "test"}
    for stage in stages.values():
        assert stage["DefaultRouteSettings"]["ThrottlingRateLimit"] > 0
        assert stage["DefaultRouteSettings"]["ThrottlingBurstLimit"] > 0
        assert stage["DefaultRouteSettings"]["DetailedMetricsEnabled"] is True
        line = json.loads(stage["AccessLogSettings"]["Format"])
        assert {"requestId", "routeKey", "status"} <= set(line)
        assert not re.search(r"header|authorization|queryString", stage["AccessLogSettings"]["Format"], re.IGNORECASE)


def test_web_clients_get_the_same_cors_as_on_the_laptop(synthesised: Synthesised) -> None:
    from local import gateway_http

    (api,) = [item for item in synthesised.of_type("AWS::ApiGatewayV2::Api").values() if item["ProtocolType"] == "HTTP"]
    cors = api["CorsConfiguration"]
    assert cors["AllowOrigins"] == ["https://app.example.com", "https://console.example.com"]
    assert (set(cors["AllowHeaders"]), cors["MaxAge"]) == (set(gateway_http.CORS_HEADERS), gateway_http.CORS_MAX_AGE_S)
    assert {route.method for _, route in http_routes()} == set(cors["AllowMethods"]) <= set(gateway_http.CORS_METHODS)
    (bucket,) = [item for item in synthesised.of_type("AWS::S3::Bucket").values() if "CorsConfiguration" in item]
    assert bucket["CorsConfiguration"]["CorsRules"][0]["AllowedOrigins"] == cors["AllowOrigins"]


def test_media_are_encrypted_versioned_private_and_kept(synthesised: Synthesised) -> None:
    ((name, bucket),) = [(name, item) for name, item in synthesised.of_type("AWS::S3::Bucket").items() if name.startswith("Media")]
    (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert (rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"], rule["BucketKeyEnabled"]) == ("aws:kms", True)
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert all(key["EnableKeyRotation"] is True for key in synthesised.of_type("AWS::KMS::Key").values())
    resources = synthesised.state["Resources"]
    kept = {
        resources[name]["DeletionPolicy"],
        *(item["DeletionPolicy"] for item in resources.values() if item["Type"] in ("AWS::KMS::Key", "AWS::SecretsManager::Secret")),
    }
    assert kept == {"Retain"}


def test_bucket_and_queues_refuse_plain_http(synthesised: Synthesised) -> None:
    policies = {**synthesised.of_type("AWS::S3::BucketPolicy"), **synthesised.of_type("AWS::SQS::QueuePolicy")}
    assert len(policies) == len(synthesised.of_type("AWS::S3::Bucket")) + 2 * len(QUEUES)
    for policy in policies.values():
        denied = [item for item in policy["PolicyDocument"]["Statement"] if item.get("Condition") == {"Bool": {"aws:SecureTransport": "false"}}]
        assert [item["Effect"] for item in denied] == ["Deny"]
        allowed = [item for item in policy["PolicyDocument"]["Statement"] if item["Effect"] != "Deny"]
        assert all((item["Principal"], item["Action"]) == ({"Service": "logging.s3.amazonaws.com"}, "s3:PutObject") for item in allowed)


def test_secrets_bear_the_deployments_name_and_no_value(synthesised: Synthesised) -> None:
    secrets = synthesised.of_type("AWS::SecretsManager::Secret").values()
    assert {secret["Name"] for secret in secrets} == {f"heliograph/test/{name}" for name in ("token-keys", "mongodb", "turn", "origin", "fcm")}
    assert not any("SecretString" in secret for secret in secrets)


def test_cloudformation_finds_no_error_in_the_templates(synthesised: Synthesised) -> None:
    templates = [str(path) for path in sorted(synthesised.folder.glob("*.template.json"))]
    cfn_lint = str(Path(sys.executable).parent / "cfn-lint")
    command = [cfn_lint, "--regions", "eu-west-1", "--non-zero-exit-code", "error", "--ignore-checks", "W3005", "--", *templates]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_another_synth_gives_the_same_templates_and_assets(synthesised: Synthesised, tmp_path: Path) -> None:
    ended = run_app(tmp_path, hash_seed="1")
    assert ended.returncode == 0, ended.stderr
    again = read(tmp_path)
    names = [f"heliograph-test-{stack}.{kind}.json" for stack in ("state", "api") for kind in ("template", "assets")]
    assert {name: (again.folder / name).read_bytes() for name in names} == {name: (synthesised.folder / name).read_bytes() for name in names}
