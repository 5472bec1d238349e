"""What is kept: the session store that is signed in to by IAM, evidence that cannot be deleted, and the ledger's cluster where it is made."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from adapters.migrations_mongo import COLLECTIONS
from adapters.redis_client import ACCESS
from functions.routes import FUNCTIONS
from tests.infra.conftest import Synthesise, Synthesised
from tests.infra.test_edge import CHOSEN
from tests.infra.test_network import WITH_ATLAS, some_environment


@pytest.mark.parametrize(("preset", "most"), [("dev", 1), ("prod-multi-az", 20)])
def test_the_session_store_is_private_bounded_and_asks_who_calls(deployed: Synthesise, preset: str, most: int) -> None:
    made = deployed(preset)
    (cache,) = made.of_type("AWS::ElastiCache::ServerlessCache", "state").values()
    assert (cache["Engine"], cache["CacheUsageLimits"]) == ("valkey", {"DataStorage": {"Maximum": most, "Unit": "GB"}})
    assert all("PrivateSubnet" in json.dumps(subnet) for subnet in cache["SubnetIds"])
    assert ["Cache" in json.dumps(group) for group in cache["SecurityGroupIds"]] == [True]
    ((users, group),) = made.of_type("AWS::ElastiCache::UserGroup", "state").items()
    ((user_id, user),) = made.of_type("AWS::ElastiCache::User", "state").items()
    assert (cache["UserGroupId"], group["UserIds"]) == ({"Ref": users}, [{"Ref": user_id}])
    assert user["AuthenticationMode"] == {"Type": "iam"}
    assert user["UserId"] == user["UserName"]  # IAM asks for it
    assert user["AccessString"] == ACCESS


def test_functions_sign_in_with_the_names_that_the_store_has_and_over_tls(deployed: Synthesise) -> None:
    made, environment = deployed("dev"), some_environment(deployed("dev"))
    (cache,) = made.of_type("AWS::ElastiCache::ServerlessCache", "state").values()
    (user,) = made.of_type("AWS::ElastiCache::User", "state").values()
    assert (environment["HELIOGRAPH_REDIS_CACHE"], environment["HELIOGRAPH_REDIS_USER"]) == (cache["ServerlessCacheName"], user["UserName"])
    assert '"rediss://"' in json.dumps(environment["HELIOGRAPH_REDIS_URL"])
    assert environment["HELIOGRAPH_REDIS_MODE"] == "cluster"


def test_whoever_has_a_right_to_redis_may_connect_and_nobody_else(deployed: Synthesise) -> None:
    made = deployed("dev")
    roles = made.of_type("AWS::IAM::Role", "api")
    for function in FUNCTIONS:
        (made_function,) = [item for item in made.of_type("AWS::Lambda::Function", "api").values() if item.get("Handler") == function.handler]
        policy = json.dumps(roles[made_function["Role"]["Fn::GetAtt"][0]]["Policies"])
        may = any(right.resource == "redis" for right in function.rights)
        assert ("elasticache:Connect" in policy) == may, function.name
        if may:
            assert ":serverlesscache:heliograph-test" in policy
            assert ":user:heliograph-test" in policy


def test_a_store_that_somebody_else_runs_is_named_and_not_made(synthesised: Synthesised) -> None:
    assert not [item for item in synthesised.state["Resources"].values() if item["Type"].startswith("AWS::ElastiCache")]
    environment = some_environment(synthesised)
    assert not {"HELIOGRAPH_REDIS_USER", "HELIOGRAPH_REDIS_CACHE"} & set(environment)
    assert "elasticache:" not in json.dumps(synthesised.api)


def bucket(made: Synthesised, name: str) -> dict[str, Any]:
    (found,) = [item for logical, item in made.of_type("AWS::S3::Bucket", "state").items() if re.fullmatch(rf"{name}[0-9A-F]{{8}}", logical)]
    return found


@pytest.mark.parametrize(("preset", "mode", "days"), [("dev", "GOVERNANCE", 1), ("prod-multi-az", "COMPLIANCE", 365)])
def test_evidence_is_write_once_under_a_key_of_its_own(deployed: Synthesise, preset: str, mode: str, days: int) -> None:
    made = deployed(preset)
    evidence, media = bucket(made, "Evidence"), bucket(made, "Media")
    assert evidence["ObjectLockEnabled"] is True
    assert evidence["ObjectLockConfiguration"]["Rule"]["DefaultRetention"] == {"Mode": mode, "Days": days}
    assert "ObjectLockConfiguration" not in media
    keys = [
        json.dumps(item["BucketEncryption"]["ServerSideEncryptionConfiguration"][0]["ServerSideEncryptionByDefault"]["KMSMasterKeyID"])
        for item in (evidence, media)
    ]
    assert len(set(keys)) == 2
    assert len(made.of_type("AWS::KMS::Key", "state")) == 2


def test_who_asked_for_media_and_evidence_is_logged_in_a_bucket_of_its_own(deployed: Synthesise) -> None:
    made = deployed("dev")
    logs = {bucket(made, name)["LoggingConfiguration"]["LogFilePrefix"] for name in ("Media", "Evidence")}
    assert logs == {"media/", "evidence/"}
    assert "LoggingConfiguration" not in bucket(made, "AccessLog")
    assert all(item["PublicAccessBlockConfiguration"]["BlockPublicAcls"] for item in made.of_type("AWS::S3::Bucket", "state").values())
    assert "AccessControl" not in json.dumps(made.of_type("AWS::S3::Bucket", "state"))


def test_a_ledger_in_atlas_is_reached_through_the_network_only(deployed: Synthesise) -> None:
    made = deployed("dev", **WITH_ATLAS)
    resources = made.state["Resources"]
    atlas = {item["Type"].removeprefix("MongoDB::Atlas::"): (name, item) for name, item in resources.items() if item["Type"].startswith("MongoDB::")}
    assert set(atlas) == {"Cluster", "DatabaseUser", "PrivateEndpointService", "PrivateEndpointAWS"}
    assert {(item["Properties"]["ProjectId"], item["Properties"]["Profile"]) for _, item in atlas.values()} == {(WITH_ATLAS["atlas_project_id"], "default")}
    cluster = atlas["Cluster"][1]
    (region,) = cluster["Properties"]["ReplicationSpecs"][0]["AdvancedRegionConfigs"]
    assert (region["RegionName"], region["ElectableSpecs"]["InstanceSize"], cluster["DeletionPolicy"]) == ("US_EAST_1", "M10", "Retain")
    assert atlas["PrivateEndpointAWS"][0] in cluster["DependsOn"]  # its private connection string is there only then
    (endpoint,) = made.of_type("AWS::EC2::VPCEndpoint", "state").values()
    assert endpoint["VpcEndpointType"] == "Interface"
    assert all("PrivateSubnet" in json.dumps(subnet) for subnet in endpoint["SubnetIds"])


def test_the_atlas_password_is_in_no_template(deployed: Synthesise) -> None:
    made = deployed("dev", **WITH_ATLAS)
    secrets = made.of_type("AWS::SecretsManager::Secret", "state")
    (uri,) = [json.dumps(item["SecretString"]) for item in secrets.values() if "SecretString" in item]
    assert all(
        part in uri for part in ("mongodb+srv://heliograph:", "{{resolve:secretsmanager:", ":SecretString:password}}", "ConnectionStrings.PrivateEndpointsSrv")
    )
    (user,) = made.of_type("MongoDB::Atlas::DatabaseUser", "state").values()
    assert "{{resolve:secretsmanager:" in json.dumps(user["Password"])
    assert {role["DatabaseName"] for role in user["Roles"]} == {"heliograph"}


def test_relays_are_a_user_of_atlas_of_their_own_who_may_write_one_collection(deployed: Synthesise) -> None:
    made = deployed("dev", **CHOSEN)
    users = {item["Username"]: item for item in made.of_type("MongoDB::Atlas::DatabaseUser", "state").values()}
    assert set(users) == {"heliograph", "heliograph-relay"}
    assert users["heliograph-relay"]["Roles"] == [{"RoleName": "readWrite", "DatabaseName": "heliograph", "CollectionName": "relay_usage"}]
    assert "relay_usage" in COLLECTIONS
    assert users["heliograph-relay"]["Password"] != users["heliograph"]["Password"]
    secrets = {item["Name"]: json.dumps(item.get("SecretString")) for item in made.of_type("AWS::SecretsManager::Secret", "state").values()}
    assert "mongodb+srv://heliograph-relay:" in secrets["heliograph/test/relay-mongodb"]
    assert "mongodb+srv://heliograph:" in secrets["heliograph/test/mongodb"]
    (group,) = [item for item in made.of_type("AWS::EC2::SecurityGroup", "state").values() if "ledger" in item["GroupDescription"]]
    rules = [*group.get("SecurityGroupIngress", []), *made.of_type("AWS::EC2::SecurityGroupIngress", "state").values()]
    assert len(rules) == 2  # functions and relays
    assert {"Functions" in json.dumps(rule) for rule in rules} == {True, False}
    assert {"Relays" in json.dumps(rule) for rule in rules} == {True, False}


def test_where_relays_tell_no_usage_there_is_neither_their_secret_nor_their_user(deployed: Synthesise) -> None:
    names = {item["Name"] for item in deployed("dev").of_type("AWS::SecretsManager::Secret", "state").values()}
    assert "heliograph/test/relay-mongodb" not in names
    made = deployed("dev", **WITH_ATLAS)
    assert len(made.of_type("MongoDB::Atlas::DatabaseUser", "state")) == 1
