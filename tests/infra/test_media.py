"""The media fleet's stack: a relay a machine or a task, a public address each, least rights, room to drain, growth by what runs out first."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from media_fleet import meters
from media_fleet.node import FINISH_S
from media_fleet.settings import NodeSettings, load
from tests.infra.conftest import Synthesise
from tests.infra.presets import NAMED_IMAGE, Presets, Properties, Template, most_allocations, text


@pytest.fixture(scope="module")
def presets(deployed: Synthesise) -> Presets:
    return Presets(deployed)


@pytest.fixture(params=["dev", "prod", "fargate"])
def media(request: pytest.FixtureRequest, presets: Presets) -> Template:
    return presets[request.param]["media"]


def container(media: Template) -> Properties:
    (found,) = media.one("AWS::ECS::TaskDefinition")["ContainerDefinitions"]
    return dict(found)


def environment(media: Template) -> dict[str, str]:
    return {item["Name"]: text(item["Value"]) for item in container(media)["Environment"]}


# The task


def test_a_node_understands_every_setting_that_its_task_has(media: Template) -> None:
    settings = load(environment(media))
    assert isinstance(settings, NodeSettings)
    assert (settings.stage, settings.relay_address, settings.turn_listen, settings.meters_s) == ("test", "auto", "0.0.0.0:3478", "60")
    assert settings.redis_url.startswith("rediss://")
    assert (settings.redis_user, settings.redis_cache) == ("heliograph-test", "heliograph-test")  # no password in the URL
    assert settings.connections_url.endswith("/test")


def test_no_environment_holds_a_secret_only_its_name(media: Template) -> None:
    assert "Secrets" not in container(media)
    assert environment(media)["HELIOGRAPH_TURN_SECRET_ID"].startswith("${heliograph-test-state:ExportsOutputRefsecretturn")


def test_relays_tell_usage_where_it_is_chosen_and_know_the_name_of_their_own_secret_only(presets: Presets) -> None:
    settings = load(environment(presets["prod"]["media"]))
    assert settings.mongodb_secret_id.startswith("${heliograph-test-state:ExportsOutputRefsecretrelaymongodb")
    assert settings.mongodb_database == "heliograph"
    assert load(environment(presets["dev"]["media"])).mongodb_secret_id == ""


def test_the_container_may_do_as_little_as_can_be(media: Template) -> None:
    made = container(media)
    assert (made["ReadonlyRootFilesystem"], made["User"], made.get("Privileged", False)) == (True, "10001:10001", False)
    assert made["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]}
    assert made["HealthCheck"]["Command"] == ["CMD", "python", "-m", "media_fleet", "health"]


def test_calls_may_end_before_ecs_kills_the_task(media: Template) -> None:
    assert float(environment(media)["HELIOGRAPH_RELAY_DRAIN_S"]) + FINISH_S < container(media)["StopTimeout"] <= 120  # ECS's most


def test_a_socket_for_each_allocation_fits_into_the_files_a_task_may_open(media: Template) -> None:
    (limit,) = container(media)["Ulimits"]
    assert (limit["Name"], limit["SoftLimit"]) == ("nofile", limit["HardLimit"])
    assert limit["SoftLimit"] > 2 * most_allocations()


def test_the_stack_and_the_fleet_speak_of_the_same_metrics_and_limits() -> None:
    """The stack does not import the fleet: infra/cdk names code by path."""
    source = (Path(__file__).resolve().parents[2] / "infra/cdk/media.py").read_text()
    assert f'NAMESPACE: Final = "{meters.NAMESPACE}"' in source
    assert f"MAX_ALLOCATIONS: Final = {most_allocations():_}" in source


# Rights


def test_a_relay_may_read_its_secret_post_to_sockets_and_sign_in_to_the_session_store(presets: Presets) -> None:
    for name in ("dev", "prod"):
        rights = presets[name]["media"].role("TaskRole")
        assert set(rights) == {"secretsmanager:GetSecretValue", "execute-api:ManageConnections", "elasticache:Connect"}
        secrets = [secret.partition("ExportsOutputRef")[2] for secret, _ in rights["secretsmanager:GetSecretValue"]]
        assert [re.sub(r"[0-9A-F]{8}.*", "", secret) for secret in secrets] == ["secretturn", *(["secretrelaymongodb"] if name == "prod" else [])]
        assert {found.split("/test/")[1] for found, _ in rights["execute-api:ManageConnections"]} == {"POST/@connections/*", "DELETE/@connections/*"}
        assert {found.rpartition(":")[0].rpartition(":")[2] for found, _ in rights["elasticache:Connect"]} == {"serverlesscache", "user"}
        assert all(found.endswith(":heliograph-test") for found, _ in rights["elasticache:Connect"])


def test_only_a_fargate_task_asks_ec2_for_its_address(presets: Presets) -> None:
    wanted = presets["fargate"]["media"].role("TaskRole")
    assert wanted["ec2:DescribeNetworkInterfaces"] == [("*", {})]
    assert set(wanted) - set(presets["dev"]["media"].role("TaskRole")) == {"ec2:DescribeNetworkInterfaces"}


def test_a_machine_takes_only_an_address_with_the_deployments_tag_and_only_for_a_machine_with_it(presets: Presets) -> None:
    rights, tagged = presets["dev"]["media"].role("MachineRole"), {"StringEquals": {"aws:ResourceTag/heliograph:relay": "test"}}
    assert {found.rpartition(":")[2] for found, _ in rights["ec2:AssociateAddress"]} == {"elastic-ip/*", "instance/*"}
    assert [condition for _, condition in rights["ec2:AssociateAddress"]] == [tagged, tagged]
    assert {action for action in rights if action.startswith("ec2:")} == {"ec2:AssociateAddress", "ec2:DescribeAddresses"}
    tags = {(tag["Key"], tag["Value"], tag["PropagateAtLaunch"]) for tag in presets["dev"]["media"].one("AWS::AutoScaling::AutoScalingGroup")["Tags"]}
    assert ("heliograph:relay", "test", True) in tags
    addresses = presets["dev"]["network"].of_type("AWS::EC2::EIP").values()
    assert [{"Key": "heliograph:relay", "Value": "test"} in address["Tags"] for address in addresses] == [True]


def test_a_machine_behind_a_load_balancer_has_the_agents_rights_alone(presets: Presets) -> None:
    rights = presets["prod"]["media"].role("MachineRole")
    assert {action.partition(":")[0] for action in rights} == {"ecs"}
    assert [resource for resource, _ in rights["ecs:DiscoverPollEndpoint"]] == ["*"]  # knows no resource
    (cluster,) = presets["prod"]["media"].of_type("AWS::ECS::Cluster")
    assert {resource for action, found in rights.items() if action != "ecs:DiscoverPollEndpoint" for resource, _ in found} == {
        f"${{{cluster}.Arn}}",
        f"arn:${{AWS::Partition}}:ecs:us-east-1:${{AWS::AccountId}}:container-instance/${{{cluster}}}/*",
    }


def test_no_action_is_a_wildcard(media: Template) -> None:
    policies = [policy for role in media.of_type("AWS::IAM::Role").values() for policy in role.get("Policies", [])]
    documents = [item["PolicyDocument"] for item in (*policies, *media.of_type("AWS::IAM::Policy").values())]
    actions = [action for document in documents for statement in document["Statement"] for action in statement["Action"]]
    assert actions
    assert not any("*" in action for action in actions)


# EC2


def test_a_machine_is_encrypted_asks_for_a_token_and_is_one_hop_from_its_metadata(presets: Presets) -> None:
    for name in ("dev", "prod"):
        data = presets[name]["media"].one("AWS::EC2::LaunchTemplate")["LaunchTemplateData"]
        assert data["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
        assert [disk["Ebs"]["Encrypted"] for disk in data["BlockDeviceMappings"]] == [True]
        (interface,) = data["NetworkInterfaces"]
        assert interface["AssociatePublicIpAddress"] is True
        assert "KeyName" not in data


def test_each_relay_has_a_machine_with_the_hosts_network_to_itself(presets: Presets) -> None:
    for name in ("dev", "prod"):
        media = presets[name]["media"]
        assert media.one("AWS::ECS::TaskDefinition")["NetworkMode"] == "host"
        service = media.one("AWS::ECS::Service")
        assert service["PlacementConstraints"] == [{"Type": "distinctInstance"}]
        assert service["DeploymentConfiguration"]["DeploymentCircuitBreaker"] == {"Enable": True, "Rollback": True}


def test_a_machine_is_drained_before_it_goes_and_a_busy_one_is_not_taken_while_the_fleet_shrinks(presets: Presets) -> None:
    for name, protection in (("dev", "DISABLED"), ("prod", "ENABLED")):
        provider = presets[name]["media"].one("AWS::ECS::CapacityProvider")["AutoScalingGroupProvider"]
        assert (provider["ManagedDraining"], provider["ManagedTerminationProtection"]) == ("ENABLED", protection), name
        group = presets[name]["media"].one("AWS::AutoScaling::AutoScalingGroup")
        assert group["NewInstancesProtectedFromScaleIn"] is (protection == "ENABLED")  # without it ECS refuses the protection
    assert not presets["dev"]["media"].of_type("AWS::Lambda::Function").keys() - {name for name in presets["dev"]["media"].resources if "Builder" in name}


def test_a_lonely_relay_may_go_before_its_successor_comes_and_of_several_half_stay(presets: Presets) -> None:
    """One port a machine: without a spare machine the successor has no place before."""
    wanted = {"dev": (0, 100), "prod": (50, 150), "fargate": (100, 200)}
    for name, (least, most) in wanted.items():
        made = presets[name]["media"].one("AWS::ECS::Service")["DeploymentConfiguration"]
        assert (made["MinimumHealthyPercent"], made["MaximumPercent"]) == (least, most), name


def script(presets: Presets, name: str) -> str:
    found = text(presets[name]["media"].one("AWS::EC2::LaunchTemplate")["LaunchTemplateData"]["UserData"])
    return re.sub(r"\$\{Cluster\w+\}", "the-cluster", found.replace("${AWS::Region}", "us-east-1"))


def run_script(script: str, folder: Path, commands: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The boot script with stand-ins for what a machine has; /etc is a folder here."""
    (folder / "bin").mkdir()
    (folder / "etc/ecs").mkdir(parents=True)
    for command, body in commands.items():
        path = folder / "bin" / command
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    script = script.replace("/etc/ecs", str(folder / "etc/ecs"))
    search = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(["bash", "-c", script], env={"PATH": search, "HERE": str(folder)}, capture_output=True, text=True, timeout=30, check=False)


MACHINE = {
    "sysctl": "true",
    "sleep": "true",
    "curl": """case "$*" in
*api/token*) echo the-token ;;
*instance-id*) echo i-0001 ;;
*public-ipv4*) n=$(($(cat $HERE/asked 2>/dev/null || echo 0) + 1)); echo $n > $HERE/asked; [ $n -gt 2 ] && cat $HERE/address || echo 192.0.2.99 ;;
esac""",
}


def test_a_machine_takes_the_first_free_address_waits_until_it_has_it_and_only_then_joins(presets: Presets, tmp_path: Path) -> None:
    """Somebody else was faster at the first one."""
    aws = """echo "$*" >> $HERE/calls
case "$*" in
*describe-addresses*) [ "$(grep -c describe $HERE/calls)" -gt 1 ] && printf 'eipalloc-1\\t192.0.2.1\\neipalloc-2\\t192.0.2.2\\n' ;;
*eipalloc-1*) echo "already associated" >&2; exit 254 ;;
*eipalloc-2*) echo 192.0.2.2 > $HERE/address; echo '{"AssociationId": "eipassoc-1"}' ;;
esac
true"""
    done = run_script(script(presets, "dev"), tmp_path, MACHINE | {"aws": aws})
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all("Name=tag:heliograph:relay,Values=test" in call for call in calls if "describe" in call)
    assert calls[-1] == "ec2 associate-address --allocation-id eipalloc-2 --instance-id i-0001 --no-allow-reassociation"
    assert int((tmp_path / "asked").read_text()) == 3  # the metadata still knew the old address twice
    joined = (tmp_path / "etc/ecs/ecs.config").read_text().splitlines()
    assert joined[-1] == "ECS_CLUSTER=the-cluster"
    assert {"ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST=true", "ECS_CONTAINER_STOP_TIMEOUT=120s"} <= set(joined)


def test_a_machine_that_cannot_even_read_its_metadata_does_not_join(presets: Presets, tmp_path: Path) -> None:
    done = run_script(script(presets, "dev"), tmp_path, MACHINE | {"aws": "true", "curl": "exit 22"})
    assert done.returncode != 0
    assert "ECS_CLUSTER" not in (tmp_path / "etc/ecs/ecs.config").read_text()


def test_a_machine_behind_a_load_balancer_takes_no_address(presets: Presets, tmp_path: Path) -> None:
    done = run_script(script(presets, "prod"), tmp_path, {"sysctl": "true", "aws": "touch $HERE/calls", "curl": "touch $HERE/calls"})
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "calls").exists()
    assert "ECS_CLUSTER" in (tmp_path / "etc/ecs/ecs.config").read_text()


# Fargate and the load balancer


def test_a_fargate_task_has_a_public_address_of_its_own(presets: Presets) -> None:
    media = presets["fargate"]["media"]
    task, service = media.one("AWS::ECS::TaskDefinition"), media.one("AWS::ECS::Service")
    assert (task["NetworkMode"], service["LaunchType"]) == ("awsvpc", "FARGATE")
    network = service["NetworkConfiguration"]["AwsvpcConfiguration"]
    assert network["AssignPublicIp"] == "ENABLED"
    assert all("PublicSubnet" in text(subnet) for subnet in network["Subnets"])
    assert not media.of_type("AWS::AutoScaling::AutoScalingGroup")


def test_with_a_name_for_its_certificate_a_relay_takes_turn_over_tls_and_may_read_the_secret(deployed: Synthesise) -> None:
    made = {
        stack: Template(template["Resources"])
        for stack, template in deployed("prod", turn_tls_name="relay.example.com", image_uri=NAMED_IMAGE).templates.items()
    }
    media, told = made["media"], environment(made["media"])
    assert (told["HELIOGRAPH_TURN_LISTEN_TLS"], told["HELIOGRAPH_TURN_TLS_NAME"]) == ("0.0.0.0:5349,0.0.0.0:443", "relay.example.com")
    assert told["HELIOGRAPH_TURN_TLS_SECRET_ID"] in {resource for resource, _ in media.role("TaskRole")["secretsmanager:GetSecretValue"]}
    assert "heliograph/test/relay-tls" in {secret["Name"] for secret in made["state"].of_type("AWS::SecretsManager::Secret").values()}
    listeners = {(item["Protocol"], item["Port"]) for item in media.of_type("AWS::ElasticLoadBalancingV2::Listener").values()}
    assert listeners == {("TCP_UDP", 3478), ("TCP", 5349), ("TCP", 443)}
    assert {mapping["ContainerPort"] for mapping in container(media)["PortMappings"]} == {3478, 5349, 443, 9478}
    assert load(told).turn_tls_name == "relay.example.com"


def test_without_one_it_does_not(media: Template) -> None:
    assert not [name for name in environment(media) if "TLS" in name]


@pytest.mark.parametrize(("name", "target"), [("prod", "instance"), ("fargate", "ip")])
def test_the_load_balancer_stands_before_turns_port_and_asks_each_relay_whether_it_is_well(presets: Presets, name: str, target: str) -> None:
    media = presets[name]["media"]
    listener, group = media.one("AWS::ElasticLoadBalancingV2::Listener"), media.one("AWS::ElasticLoadBalancingV2::TargetGroup")
    assert (listener["Protocol"], listener["Port"]) == ("TCP_UDP", 3478)
    assert (group["Protocol"], group["Port"], group["TargetType"]) == ("TCP_UDP", 3478, target)
    assert (group["HealthCheckProtocol"], group["HealthCheckPath"], group["HealthCheckPort"]) == ("HTTP", "/healthz", "9478")
    assert environment(media)["HELIOGRAPH_STATS_LISTEN"] == "0.0.0.0:9478"
    rules = media.of_type("AWS::EC2::SecurityGroupIngress").values()
    assert len(rules) == 2  # zones
    for rule in rules:
        assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", 9478, 9478)
    public = [subnet["CidrBlock"] for name, subnet in presets[name]["network"].of_type("AWS::EC2::Subnet").items() if "Public" in name]
    assert [rule["CidrIp"] for rule in rules] == public


def test_without_a_load_balancer_nobody_outside_reaches_the_statistics(presets: Presets) -> None:
    media = presets["dev"]["media"]
    assert environment(media)["HELIOGRAPH_STATS_LISTEN"] == "127.0.0.1:9478"
    for kind in ("AWS::EC2::SecurityGroupIngress", "AWS::ElasticLoadBalancingV2::Listener", "AWS::ElasticLoadBalancingV2::TargetGroup"):
        assert not media.of_type(kind)


# Growth


@pytest.mark.parametrize("name", ["prod", "fargate"])
def test_the_fleet_grows_by_cpu_and_by_the_allocations_that_relays_tell(presets: Presets, name: str) -> None:
    media = presets[name]["media"]
    limits = media.one("AWS::ApplicationAutoScaling::ScalableTarget")
    assert limits["MinCapacity"] < limits["MaxCapacity"]
    by: dict[str, Any] = {}
    for policy in media.of_type("AWS::ApplicationAutoScaling::ScalingPolicy").values():
        tracking = policy["TargetTrackingScalingPolicyConfiguration"]
        known = tracking.get("PredefinedMetricSpecification") or tracking["CustomizedMetricSpecification"]
        by[known.get("PredefinedMetricType") or known["MetricName"]] = known
        assert tracking["ScaleInCooldown"] > tracking["ScaleOutCooldown"]
    assert set(by) == {"ECSServiceAverageCPUUtilization", "Allocations"}
    told = by["Allocations"]
    assert "Allocations" in meters.METRICS
    assert (told["Namespace"], told["Dimensions"], told["Statistic"]) == (meters.NAMESPACE, [{"Name": meters.DIMENSION, "Value": "test"}], "Average")


def test_a_fleet_of_fixed_size_does_not_grow(presets: Presets) -> None:
    media = presets["dev"]["media"]
    assert not media.of_type("AWS::ApplicationAutoScaling::ScalableTarget")
    group = media.one("AWS::AutoScaling::AutoScalingGroup")
    assert group["MinSize"] == group["MaxSize"] == str(media.one("AWS::ECS::Service")["DesiredCount"])
    assert len(presets["dev"]["network"].of_type("AWS::EC2::EIP")) == int(group["MaxSize"])
