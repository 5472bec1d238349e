"""The network: what functions in the VPC reach and what it costs to be there, who may talk to whom, and what clients are told of the relays."""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import urlsplit

import botocore.session
import pytest
from botocore.endpoint_provider import EndpointProvider

from tests.infra.conftest import Synthesise, Synthesised

OTHERWISE: Final = {"egress": "nat-instance", "availability_zones": "us-east-1b,us-east-1d", "relay_min": "2", "relay_max": "2"}  # one synth for all of them
WITH_ATLAS: Final = {"mongodb": "atlas", "atlas_project_id": "0123456789abcdef01234567", "media": "none", "turn_urls": "turn:turn.example.com:3478"}


def private_routes(made: Synthesised) -> dict[str, set[str]]:
    """Route table of each private subnet -> the kinds of target of its routes."""
    found: dict[str, set[str]] = {name: set() for name in made.of_type("AWS::EC2::RouteTable", "network") if "Private" in name}
    for route in made.of_type("AWS::EC2::Route", "network").values():
        if (table := route["RouteTableId"]["Ref"]) in found:
            found[table] |= {name for name in route if name.endswith(("GatewayId", "InstanceId"))}
    return found


@pytest.mark.parametrize(
    ("preset", "chosen", "targets", "gateways", "machines"),
    [
        ("dev", {}, {"EgressOnlyInternetGatewayId"}, 0, 0),
        ("dev", OTHERWISE, {"EgressOnlyInternetGatewayId", "InstanceId"}, 0, 1),
        ("prod-multi-az", {}, {"EgressOnlyInternetGatewayId", "NatGatewayId"}, 3, 0),
    ],
)
def test_private_subnets_leave_as_the_setting_says(
    deployed: Synthesise, preset: str, chosen: dict[str, str], targets: set[str], gateways: int, machines: int
) -> None:
    made = deployed(preset, **chosen)
    routes = private_routes(made)
    assert len(routes) == (3 if preset == "prod-multi-az" else 2)
    assert all(kinds == targets for kinds in routes.values())
    assert len(made.of_type("AWS::EC2::NatGateway", "network")) == gateways
    nat = made.of_type("AWS::EC2::Instance", "network").values()
    assert len(nat) == machines
    assert all(item["NetworkInterfaces"][0]["AssociatePublicIpAddress"] and item["SourceDestCheck"] is False for item in nat)


def test_every_subnet_has_both_kinds_of_address_in_a_zone_of_its_own(deployed: Synthesise) -> None:
    subnets = deployed("prod-multi-az").of_type("AWS::EC2::Subnet", "network")
    for kind in ("Public", "Private"):
        zones = [json.dumps(subnet["AvailabilityZone"]) for name, subnet in subnets.items() if kind in name]
        assert len(zones) == len(set(zones)) == 3
    assert all(subnet["AssignIpv6AddressOnCreation"] and subnet["Ipv6CidrBlock"] for subnet in subnets.values())


def test_zones_may_be_named_because_the_session_store_is_not_in_every_one(deployed: Synthesise) -> None:
    subnets = deployed("dev", **OTHERWISE).of_type("AWS::EC2::Subnet", "network")
    assert sorted(subnet["AvailabilityZone"] for subnet in subnets.values()) == ["us-east-1b", "us-east-1b", "us-east-1d", "us-east-1d"]


def test_nothing_has_to_be_looked_up_in_the_account(deployed: Synthesise) -> None:
    assert "missing" not in json.loads((deployed("dev").folder / "manifest.json").read_text())


@pytest.mark.parametrize("preset", ["dev", "prod-multi-az"])
def test_uploads_do_not_pass_through_what_costs_by_the_gigabyte(deployed: Synthesise, preset: str) -> None:
    made = deployed(preset)
    (endpoint,) = made.of_type("AWS::EC2::VPCEndpoint", "network").values()
    assert endpoint["VpcEndpointType"] == "Gateway"
    assert json.dumps(endpoint["ServiceName"]).endswith('.s3"]]}') or endpoint["ServiceName"] == "com.amazonaws.us-east-1.s3"
    assert {table["Ref"] for table in endpoint["RouteTableIds"]} == set(made.of_type("AWS::EC2::RouteTable", "network"))


def test_refused_packets_are_logged(deployed: Synthesise) -> None:
    made = deployed("dev")
    (flows,) = made.of_type("AWS::EC2::FlowLog", "network").values()
    assert (flows["ResourceType"], flows["TrafficType"]) == ("VPC", "REJECT")
    log_group = made.of_type("AWS::Logs::LogGroup", "network")[flows["LogGroupName"]["Ref"]]
    assert log_group["RetentionInDays"] == 7


def resolved(service: str, region: str, *, is_dual_stack: bool) -> str:
    """The host that botocore's own rules give."""
    loader = botocore.session.get_session().get_component("data_loader")
    rules = EndpointProvider(loader.load_service_model(service, "endpoint-rule-set-1"), loader.load_data("partitions"))
    return str(urlsplit(rules.resolve_endpoint(Region=region, UseDualStack=is_dual_stack, UseFIPS=False).url).hostname)


def test_with_ipv6_only_functions_use_the_hosts_that_have_such_an_address(deployed: Synthesise) -> None:
    """What has none over its ordinary name is named in the environment, and only then."""
    environment = some_environment(deployed("dev"))
    for service, variable in (("sqs", "AWS_ENDPOINT_URL_SQS"), ("secretsmanager", "AWS_ENDPOINT_URL_SECRETS_MANAGER")):
        usual, dual = (resolved(service, "us-east-1", is_dual_stack=dual) for dual in (False, True))
        assert environment.get(variable) == (f"https://{dual}" if dual != usual else None)
    assert "AWS_ENDPOINT_URL_S3" not in environment  # its gateway endpoint is reached over IPv4
    assert not [name for name in some_environment(deployed("prod-multi-az")) if name.startswith("AWS_")]


def some_environment(made: Synthesised) -> dict[str, Any]:
    functions = [item for item in made.of_type("AWS::Lambda::Function").values() if "HELIOGRAPH_STAGE" in item.get("Environment", {}).get("Variables", {})]
    return dict(functions[0]["Environment"]["Variables"])


def test_functions_stand_in_the_private_subnets_with_both_kinds_of_address(deployed: Synthesise) -> None:
    placed = [item["VpcConfig"] for item in deployed("dev").of_type("AWS::Lambda::Function", "api").values() if "VpcConfig" in item]
    assert placed
    for config in placed:
        assert config["Ipv6AllowedForDualStack"] is True
        assert all("PrivateSubnet" in json.dumps(subnet) for subnet in config["SubnetIds"])
        assert ["Functions" in json.dumps(group) for group in config["SecurityGroupIds"]] == [True]


def ingress(made: Synthesised, group: str) -> list[dict[str, Any]]:
    """Every rule that lets somebody in to the group: those written in it and those beside it."""
    inside = [
        rule
        for name, item in made.of_type("AWS::EC2::SecurityGroup", "network").items()
        if name.startswith(group)
        for rule in item.get("SecurityGroupIngress", [])
    ]
    beside = [rule for rule in made.of_type("AWS::EC2::SecurityGroupIngress", "network").values() if rule["GroupId"]["Fn::GetAtt"][0].startswith(group)]
    return inside + beside


def test_only_functions_and_relays_reach_the_session_store_and_nobody_reaches_functions(deployed: Synthesise) -> None:
    made = deployed("dev")
    rules = ingress(made, "Cache")
    assert {rule["SourceSecurityGroupId"]["Fn::GetAtt"][0].rstrip("0123456789ABCDEF") for rule in rules} == {"Functions", "Relays"}
    assert {(rule["FromPort"], rule["ToPort"], rule["IpProtocol"]) for rule in rules} == {(6379, 6380, "tcp")}
    assert ingress(made, "Functions") == []


def test_relays_take_turn_and_what_peers_send_from_everywhere_and_nothing_else(deployed: Synthesise) -> None:
    rules = ingress(deployed("dev"), "Relays")
    assert {(rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) for rule in rules} == {("udp", 3478, 3478), ("tcp", 3478, 3478), ("udp", 49_152, 65_535)}
    assert {rule.get("CidrIp") or rule.get("CidrIpv6") for rule in rules} == {"0.0.0.0/0", "::/0"}


def test_clients_are_told_every_fixed_address(deployed: Synthesise) -> None:
    made = deployed("dev", **OTHERWISE)
    addresses = {name: item for name, item in made.of_type("AWS::EC2::EIP", "network").items() if name.startswith("Address")}
    assert len(addresses) == 2
    assert all({"Key": "heliograph:relay", "Value": "test"} in item["Tags"] for item in addresses.values())
    told = json.dumps(some_environment(made)["HELIOGRAPH_TURN_URLS"])
    assert (told.count("turn:"), told.count(":3478?transport=udp"), told.count(":3478?transport=tcp")) == (4, 2, 2)
    assert not made.of_type("AWS::ElasticLoadBalancingV2::LoadBalancer", "network")


def test_or_the_load_balancers_name(deployed: Synthesise) -> None:
    made = deployed("prod-multi-az")
    (balancer,) = made.of_type("AWS::ElasticLoadBalancingV2::LoadBalancer", "network").values()
    assert (balancer["Type"], balancer["Scheme"], len(balancer["Subnets"])) == ("network", "internet-facing", 3)
    assert {"Key": "deletion_protection.enabled", "Value": "true"} in balancer["LoadBalancerAttributes"]
    assert "DNSName" in json.dumps(some_environment(made)["HELIOGRAPH_TURN_URLS"])
    assert not [name for name in made.of_type("AWS::EC2::EIP", "network") if name.startswith("Address")]


def test_relays_of_others_need_no_entry_of_ours(deployed: Synthesise) -> None:
    made = deployed("dev", **WITH_ATLAS)
    assert not made.of_type("AWS::EC2::EIP", "network")
    assert some_environment(made)["HELIOGRAPH_TURN_URLS"] == "turn:turn.example.com:3478"


def test_without_a_vpc_there_is_no_network_at_all(deployed: Synthesise) -> None:
    made = deployed("dev", vpc="false", redis_url="rediss://redis.example.com:6379", turn_urls="turn:turn.example.com:3478")
    assert "network" not in made.templates
    assert not any("VpcConfig" in item for item in made.of_type("AWS::Lambda::Function").values())
