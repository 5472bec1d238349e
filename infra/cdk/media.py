"""The stack of the media fleet: one relay with its hub a machine (EC2, host network) or a task (Fargate), and what makes the fleet grow, drain and heal.

A relay must have a public address of its own, because peers send to relayed addresses directly: a load balancer, where there is one, stands before
the listener only. What keeps a relay from being a way to 169.254.169.254 and into the VPC: it relays UDP only, metadata speak TCP; its peer filter
refuses link-local, private and every other special address (media_fleet/turn/peers.py); and the metadata want a token that no datagram can ask for.
"""

from __future__ import annotations

from typing import Final

from aws_cdk import Duration, RemovalPolicy, Stack, Tags
from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_ecs as ecs
from aws_cdk import aws_elasticloadbalancingv2 as elbv2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra.cdk.api import Api
from infra.cdk.context import Deployment
from infra.cdk.image import FleetImage
from infra.cdk.nag import acknowledge, acknowledge_wildcards
from infra.cdk.network import RELAY_TAG, TURN_PORT, TURN_TLS_PORTS, Network
from infra.cdk.retention import kept
from infra.cdk.state import State

NAMESPACE: Final = "Heliograph/Fleet"  # as media_fleet/meters.py tells it; a test compares the two
METERS_S: Final = 60
STATS_PORT: Final = 9478
MAX_ALLOCATIONS: Final = 8_000  # of one relay: the default of media_fleet.relay.RelayConfig; a test compares the two
ALLOCATIONS_WANTED: Final = 500  # a relay's share at which the fleet grows: 500 calls of 50 packets a second each way
CPU_WANTED: Final = 50  # per cent of one core: a relay is one thread
DRAIN_S: Final = 100  # calls may go on so long after SIGTERM; the rest of STOP_TIMEOUT is for the last usage
STOP_TIMEOUT: Final = Duration.seconds(120)  # the longest ECS allows
DEREGISTRATION: Final = Duration.seconds(300)  # before SIGTERM: flows that are there go on, new ones go elsewhere
_PUBLIC: Final = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC)


class Media(Stack):
    """`service`, `log_group` and `target_group` (None without a load balancer) are there for alarms."""

    def __init__(self, scope: Construct, deployment: Deployment, network: Network, state: State, api: Api) -> None:
        super().__init__(scope, f"heliograph-{deployment.stage}-media", description="Heliograph: the media fleet", env=deployment.env)
        self._deployment, self._network, self._state, self._api = deployment, network, state, api
        self._is_fargate = deployment.own["media"] == "fargate"
        self._is_behind_balancer = network.relay_balancer is not None
        self.log_group = logs.LogGroup(self, "log", retention=kept(deployment), removal_policy=RemovalPolicy.DESTROY)
        self.image = FleetImage(self, deployment)
        self.cluster = ecs.Cluster(self, "Cluster", vpc=network.vpc, container_insights_v2=ecs.ContainerInsights.DISABLED)
        acknowledge(
            self.cluster, "AwsSolutions-ECS4", "Relays tell their own meters, eight metrics in all; Container Insights would bill dozens for each task."
        )
        task = self._fargate_task() if self._is_fargate else self._ec2_task()
        self.service: ecs.BaseService = self._fargate_service(task) if self._is_fargate else self._ec2_service(task)
        if self.image.built is not None:
            self.service.node.add_dependency(self.image.built)
        self.target_group = self._add_listeners() if network.relay_balancer is not None else None
        if deployment.number("relay_max") > deployment.number("relay_min"):
            self._grow()

    # The task

    def _ec2_task(self) -> ecs.TaskDefinition:
        task = ecs.Ec2TaskDefinition(self, "Task", network_mode=ecs.NetworkMode.HOST, task_role=self._task_role(), execution_role=self._execution_role())
        self._add_container(task, docker_security_options=["no-new-privileges"], cpu=1024, memory_reservation_mib=256)
        return task

    def _fargate_task(self) -> ecs.TaskDefinition:
        is_arm = self._deployment.own["architecture"] == "arm64"
        task = ecs.FargateTaskDefinition(
            self,
            "Task",
            cpu=1024,
            memory_limit_mib=2048,
            runtime_platform=ecs.RuntimePlatform(
                cpu_architecture=ecs.CpuArchitecture.ARM64 if is_arm else ecs.CpuArchitecture.X86_64, operating_system_family=ecs.OperatingSystemFamily.LINUX
            ),
            task_role=self._task_role(),
            execution_role=self._execution_role(),
        )
        self._add_container(task)
        return task

    def _add_container(self, task: ecs.TaskDefinition, **more: object) -> None:
        container = task.add_container(
            "relay",
            image=self.image.image,
            environment=self._environment(),
            logging=ecs.LogDrivers.aws_logs(stream_prefix="relay", log_group=self.log_group),
            readonly_root_filesystem=True,
            user="10001:10001",
            stop_timeout=STOP_TIMEOUT,
            health_check=ecs.HealthCheck(
                command=["CMD", "python", "-m", "media_fleet", "health"],
                interval=Duration.seconds(30),
                timeout=Duration.seconds(5),
                retries=3,
                start_period=Duration.seconds(60),  # it may wait for its address
            ),
            linux_parameters=self._linux(),
            port_mappings=[
                ecs.PortMapping(container_port=TURN_PORT, protocol=ecs.Protocol.UDP),
                ecs.PortMapping(container_port=TURN_PORT, protocol=ecs.Protocol.TCP),
                *(ecs.PortMapping(container_port=port, protocol=ecs.Protocol.TCP) for port in self._tls_ports),
                ecs.PortMapping(container_port=STATS_PORT, protocol=ecs.Protocol.TCP),
            ],
            **more,
        )
        container.add_ulimits(ecs.Ulimit(name=ecs.UlimitName.NOFILE, soft_limit=65_536, hard_limit=65_536))  # a socket per allocation
        acknowledge(task, "AwsSolutions-ECS2", "The environment holds names and addresses only; secrets are read from Secrets Manager at run time.")

    @property
    def _tls_ports(self) -> tuple[int, ...]:
        return TURN_TLS_PORTS if self._deployment.turn_tls_name else ()

    def _linux(self) -> ecs.LinuxParameters:
        linux = ecs.LinuxParameters(self, "Linux")
        linux.drop_capabilities(ecs.Capability.ALL)
        return linux

    def _environment(self) -> dict[str, str]:
        """Settings of media_fleet/settings.py. The health check asks on loopback; a load balancer's check comes from its subnets."""
        values = {
            "stage": self._deployment.stage,
            "turn_secret_id": self._state.secrets["turn_secret"].ref,
            "relay_address": "auto",
            "turn_listen": f"0.0.0.0:{TURN_PORT}",
            "turn_listen_tls": ",".join(f"0.0.0.0:{port}" for port in self._tls_ports),
            "turn_tls_secret_id": self._state.relay_tls.ref if self._state.relay_tls else "",
            "turn_tls_name": self._deployment.turn_tls_name,
            "stats_listen": f"{'0.0.0.0' if self._is_behind_balancer else '127.0.0.1'}:{STATS_PORT}",
            "relay_drain_s": str(DRAIN_S),
            "meters_s": str(METERS_S),
            "redis_url": self._state.redis_url,
            "redis_mode": self._deployment.settings["redis_mode"],
            "redis_user": self._state.redis_user,
            "redis_cache": self._state.redis_cache,
            "connections_url": self._api.connections_url,
            "mongodb_secret_id": self._state.relay_mongodb.ref if self._state.relay_mongodb else "",
            "mongodb_database": self._deployment.settings["mongodb_database"] if self._state.relay_mongodb else "",
        }
        return {f"HELIOGRAPH_{name.upper()}": value for name, value in values.items() if value}

    def _task_role(self) -> iam.Role:
        api_id = self._api.export_value(self._api.socket.api_id)  # as an import by name, which the acknowledgement must write out
        stage = self.format_arn(service="execute-api", resource=str(api_id), resource_name=self._deployment.stage)
        sockets = [f"{stage}/{method}/@connections/*" for method in ("POST", "DELETE")]
        own = [secret for secret in (self._state.relay_mongodb, self._state.relay_tls) if secret is not None]
        secrets = [self._state.secrets["turn_secret"].ref, *(secret.ref for secret in own)]
        statements = [
            iam.PolicyStatement(actions=["secretsmanager:GetSecretValue"], resources=secrets),
            iam.PolicyStatement(actions=["execute-api:ManageConnections"], resources=sockets),
        ]
        if self._state.redis_connect_arns:
            statements.append(iam.PolicyStatement(actions=["elasticache:Connect"], resources=self._state.redis_connect_arns))
        if self._is_fargate:
            statements.append(iam.PolicyStatement(actions=["ec2:DescribeNetworkInterfaces"], resources=["*"]))
        role = self._role("TaskRole", "ecs-tasks.amazonaws.com", "What a relay and its hub may", statements)
        acknowledge_wildcards(role, sockets, "Only run time knows the ids of connections.")
        if self._is_fargate:
            acknowledge_wildcards(role, ["*"], "ec2:DescribeNetworkInterfaces knows no resource.")
        return role

    def _execution_role(self) -> iam.Role:
        """What ECS itself needs to start the task: the image and the log, granted by the constructs that know them."""
        role = iam.Role(self, "ExecutionRole", assumed_by=iam.ServicePrincipal("ecs-tasks.amazonaws.com"), description="Starts relays: image and log")
        acknowledge_wildcards(role, ["*"], "ecr:GetAuthorizationToken knows no resource; what the token opens is the other statements' matter.")
        return role

    def _role(self, name: str, service: str, description: str, statements: list[iam.PolicyStatement]) -> iam.Role:
        policy = iam.PolicyDocument(statements=statements)
        return iam.Role(self, name, assumed_by=iam.ServicePrincipal(service), description=description, inline_policies={"rights": policy})

    # EC2

    def _ec2_service(self, task: ecs.TaskDefinition) -> ecs.Ec2Service:
        provider = self._capacity()
        return ecs.Ec2Service(
            self,
            "Service",
            cluster=self.cluster,
            task_definition=task,
            desired_count=self._deployment.number("relay_min"),
            capacity_provider_strategies=[ecs.CapacityProviderStrategy(capacity_provider=provider.capacity_provider_name, weight=1)],
            placement_constraints=[ecs.PlacementConstraint.distinct_instances()],
            placement_strategies=[ecs.PlacementStrategy.spread_across(ecs.BuiltInAttributes.AVAILABILITY_ZONE)],
            **self._rollout(),
        )

    def _rollout(self) -> dict[str, object]:
        """Without spare machines a relay must go before its successor comes; a lonely one takes the fleet with it for that while."""
        is_growing = self._deployment.number("relay_max") > self._deployment.number("relay_min")
        is_lonely = self._deployment.number("relay_min") == 1 and not is_growing
        return {
            "min_healthy_percent": 0 if is_lonely else 50,
            "max_healthy_percent": 150 if is_growing else 100,
            "circuit_breaker": ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
            "propagate_tags": ecs.PropagatedTagSource.SERVICE,
        }

    def _capacity(self) -> ecs.AsgCapacityProvider:
        """A machine per relay. ECS drains a machine before it goes; where the fleet grows, only machines without a relay are taken away again."""
        own, least, most = self._deployment.own, self._deployment.number("relay_min"), self._deployment.number("relay_max")
        group = autoscaling.AutoScalingGroup(
            self,
            "Machines",
            vpc=self._network.vpc,
            vpc_subnets=_PUBLIC,
            launch_template=self._launch_template(),
            min_capacity=least,
            max_capacity=most,
            new_instances_protected_from_scale_in=own["relay_entry"] == "load-balancer",
            update_policy=autoscaling.UpdatePolicy.rolling_update(max_batch_size=1, min_instances_in_service=least - 1),
            group_metrics=[autoscaling.GroupMetrics.all()],
        )
        Tags.of(group).add(RELAY_TAG, self._deployment.stage)
        acknowledge(group, "AwsSolutions-AS3", "A machine that comes or goes is no event for a person; the alarms on relays are (docs/operations.md).")
        provider = ecs.AsgCapacityProvider(
            self,
            "Capacity",
            auto_scaling_group=group,
            enable_managed_scaling=True,
            enable_managed_draining=True,
            enable_managed_termination_protection=own["relay_entry"] == "load-balancer",
        )
        self.cluster.add_asg_capacity_provider(provider)
        return provider

    def _launch_template(self) -> ec2.LaunchTemplate:
        is_arm = self._deployment.own["architecture"] == "arm64"
        template = ec2.LaunchTemplate(
            self,
            "Machine",
            instance_type=ec2.InstanceType(self._deployment.own["relay_instance"]),
            machine_image=ecs.EcsOptimizedImage.amazon_linux2023(ecs.AmiHardwareType.ARM if is_arm else ecs.AmiHardwareType.STANDARD),
            role=self._instance_role().without_policy_updates(),  # what it may is written out below
            security_group=self._network.relay_group,
            associate_public_ip_address=True,
            user_data=self._user_data(),
            require_imdsv2=True,
            http_put_response_hop_limit=1,  # a container in the host's network is one hop away, one behind a bridge would be two
            block_devices=[
                ec2.BlockDevice(
                    device_name="/dev/xvda",
                    volume=ec2.BlockDeviceVolume.ebs(30, encrypted=True, volume_type=ec2.EbsDeviceVolumeType.GP3),
                )
            ],
        )
        Tags.of(template).add(RELAY_TAG, self._deployment.stage)
        return template

    def _user_data(self) -> ec2.UserData:
        """Runs before the ECS agent starts, so no relay starts without its address."""
        data = ec2.UserData.for_linux()
        data.add_commands(
            "set -eu",
            "sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608",
            f"sysctl -w net.ipv4.ip_unprivileged_port_start={min(TURN_TLS_PORTS)}",  # relays are not root, and have no capability
            "cat >> /etc/ecs/ecs.config <<'END'",
            "ECS_ENABLE_TASK_IAM_ROLE=true",
            "ECS_ENABLE_TASK_IAM_ROLE_NETWORK_HOST=true",
            "ECS_DISABLE_PRIVILEGED=true",
            f"ECS_CONTAINER_STOP_TIMEOUT={STOP_TIMEOUT.to_seconds()}s",
            "END",
        )
        if not self._is_behind_balancer:
            data.add_commands(f"tag={RELAY_TAG} stage={self._deployment.stage}", f"export AWS_DEFAULT_REGION={self.region}", *_ASSOCIATE.splitlines())
        return data

    def _instance_role(self) -> iam.Role:
        """The ECS agent's rights, and where relays have fixed addresses, to take one of those: a tag names them and the machines that may get one."""
        cluster = self.cluster.cluster_arn
        members = self.format_arn(service="ecs", resource="container-instance", resource_name=f"{self.cluster.cluster_name}/*")
        told = (
            "RegisterContainerInstance",
            "DeregisterContainerInstance",
            "SubmitAttachmentStateChanges",
            "SubmitContainerStateChange",
            "SubmitTaskStateChange",
        )
        statements = [
            iam.PolicyStatement(actions=[f"ecs:{action}" for action in told], resources=[cluster]),
            iam.PolicyStatement(actions=["ecs:Poll", "ecs:StartTelemetrySession"], resources=[members]),
            iam.PolicyStatement(actions=["ecs:DiscoverPollEndpoint"], resources=["*"]),
        ]
        arns = [] if self._is_behind_balancer else [self.format_arn(service="ec2", resource=kind, resource_name="*") for kind in ("elastic-ip", "instance")]
        if arns:
            ours = {"StringEquals": {f"aws:ResourceTag/{RELAY_TAG}": self._deployment.stage}}
            statements.append(iam.PolicyStatement(actions=["ec2:AssociateAddress"], resources=arns, conditions=ours))
            statements.append(iam.PolicyStatement(actions=["ec2:DescribeAddresses"], resources=["*"]))
        role = self._role("MachineRole", "ec2.amazonaws.com", "The ECS agent of a relay's machine, and its address", statements)
        acknowledge_wildcards(role, [members], "Only run time knows the id that a machine gets in the cluster.")
        acknowledge_wildcards(role, ["*"], "ecs:DiscoverPollEndpoint and ec2:DescribeAddresses know no resource.")
        acknowledge_wildcards(role, arns, "The condition on the tag names the addresses and the machines.")
        return role

    # Fargate

    def _fargate_service(self, task: ecs.TaskDefinition) -> ecs.FargateService:
        return ecs.FargateService(
            self,
            "Service",
            cluster=self.cluster,
            task_definition=task,
            desired_count=self._deployment.number("relay_min"),
            assign_public_ip=True,
            vpc_subnets=_PUBLIC,
            security_groups=[self._network.relay_group],
            min_healthy_percent=100,
            max_healthy_percent=200,
            circuit_breaker=ecs.DeploymentCircuitBreaker(enable=True, rollback=True),
            propagate_tags=ecs.PropagatedTagSource.SERVICE,
        )

    # The load balancer

    def _add_listeners(self) -> elbv2.NetworkTargetGroup:
        """Before TURN's ports only. The balancer keeps clients' addresses, so each flow of five-tuple stays with its relay."""
        group = self._add_listener("Turn", "Relays", TURN_PORT, elbv2.Protocol.TCP_UDP, ecs.Protocol.UDP)
        for port in self._tls_ports:  # TLS ends at the relay
            self._add_listener(f"Turns{port}", f"Relays{port}", port, elbv2.Protocol.TCP, ecs.Protocol.TCP)
        self._let_checks_in()
        return group

    def _add_listener(self, name: str, group_name: str, port: int, protocol: elbv2.Protocol, container_protocol: ecs.Protocol) -> elbv2.NetworkTargetGroup:
        group = elbv2.NetworkTargetGroup(
            self,
            group_name,
            vpc=self._network.vpc,
            protocol=protocol,
            port=port,
            target_type=elbv2.TargetType.IP if self._is_fargate else elbv2.TargetType.INSTANCE,
            deregistration_delay=DEREGISTRATION,
            health_check=elbv2.HealthCheck(
                protocol=elbv2.Protocol.HTTP,
                port=str(STATS_PORT),
                path="/healthz",  # and not /readyz: a target that fails its check loses the flows it has, and those of a draining relay are calls
                interval=Duration.seconds(10),
                healthy_threshold_count=2,
                unhealthy_threshold_count=2,
            ),
            targets=[self.service.load_balancer_target(container_name="relay", container_port=port, protocol=container_protocol)],
        )
        balancer = self._network.relay_balancer
        listener = elbv2.NetworkListener(self, name, load_balancer=balancer, port=port, protocol=protocol, default_target_groups=[group])
        self.service.node.add_dependency(listener)
        return group

    def _let_checks_in(self) -> None:
        for number, subnet in enumerate(self._network.vpc.public_subnets):
            ec2.CfnSecurityGroupIngress(
                self,
                f"Checks{number}",
                group_id=self._network.relay_group.security_group_id,
                ip_protocol="tcp",
                from_port=STATS_PORT,
                to_port=STATS_PORT,
                cidr_ip=subnet.ipv4_cidr_block,
                description="health checks of the load balancer",
            )

    # Growth

    def _grow(self) -> None:
        """By what runs out first: one core, or allocations. A relay that goes ends its calls' path, so the fleet shrinks slowly."""
        least, most = self._deployment.number("relay_min"), self._deployment.number("relay_max")
        count = self.service.auto_scale_task_count(min_capacity=least, max_capacity=most)
        slowly, soon = Duration.minutes(15), Duration.minutes(1)
        count.scale_on_cpu_utilization("Cpu", target_utilization_percent=CPU_WANTED, scale_in_cooldown=slowly, scale_out_cooldown=soon)
        count.scale_to_track_custom_metric(
            "Allocations", metric=self.metric("Allocations"), target_value=ALLOCATIONS_WANTED, scale_in_cooldown=slowly, scale_out_cooldown=soon
        )

    def metric(self, name: str, statistic: str = "Average") -> cloudwatch.Metric:
        """A metric of media_fleet/meters.py: Average is a node's share, Sum the fleet's, SampleCount the nodes that spoke."""
        return fleet_metric(self._deployment.stage, name, statistic)


def fleet_metric(stage: str, name: str, statistic: str = "Average") -> cloudwatch.Metric:
    period = Duration.seconds(METERS_S)
    return cloudwatch.Metric(namespace=NAMESPACE, metric_name=name, dimensions_map={"stage": stage}, statistic=statistic, period=period)


# A relay's fixed address: the first free one of those that bear the tag. Two machines that want the same one are told apart by EC2; who gets none waits
# for the machine that is going. The relay reads the address from the metadata, so the script ends when they know it.
_ASSOCIATE: Final = """\
command -v aws > /dev/null || dnf install -y -q awscli-2
token=$(curl -sf --retry 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 21600' http://169.254.169.254/latest/api/token)
metadata() { curl -sf --retry 5 -H "X-aws-ec2-metadata-token: $token" "http://169.254.169.254/latest/meta-data/$1"; }
machine=$(metadata instance-id)
list() { aws ec2 describe-addresses --filters "Name=tag:$tag,Values=$stage" --query 'Addresses[?AssociationId==null].[AllocationId,PublicIp]' --output text; }
take() {
  list | while read -r allocation address; do
    if aws ec2 associate-address --allocation-id "$allocation" --instance-id "$machine" --no-allow-reassociation > /dev/null; then
      echo "$address"
      return
    fi
  done
}
until address=$(take) && [ -n "$address" ]; do sleep 5; done
until [ "$(metadata public-ipv4)" = "$address" ]; do sleep 1; done"""
