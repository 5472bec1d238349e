"""The stack of the network: the VPC, how functions in it reach the internet, who may talk to whom, and the relays' entry.

The entry stands here and not beside the relays, because the API must tell clients of it before there is a relay.
"""

from __future__ import annotations

from typing import Final, cast

from aws_cdk import CfnTag, Fn, RemovalPolicy, Stack
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_elasticloadbalancingv2 as elbv2
from aws_cdk import aws_logs as logs
from constructs import Construct

from infra.cdk.context import Deployment
from infra.cdk.nag import acknowledge
from infra.cdk.retention import kept

TURN_PORT: Final = 3478
TURN_TLS_PORTS: Final = (5349, 443)  # RFC 8656 s5; and where nothing but the web is let out
RELAYED_PORTS: Final = (49_152, 65_535)  # RFC 8656, section 7.2
REDIS_PORTS: Final = (6379, 6380)  # writes; reads from a replica
NAT_DISK_GB: Final = 8  # what the image of Amazon Linux needs
CIDR: Final = "10.0.0.0/16"
RELAY_TAG: Final = "heliograph:relay"


class Network(Stack):
    """VPC, security groups, and the addresses that clients are told."""

    def __init__(self, scope: Construct, deployment: Deployment) -> None:
        self._deployment = deployment  # before the stack begins: it asks for its zones
        super().__init__(scope, f"heliograph-{deployment.stage}-network", description="Heliograph: the network and the relays' entry", env=deployment.env)
        self._nat = self._nat_provider()
        self.vpc = self._vpc()
        self.functions_group = self._group("Functions", "Functions of Heliograph: nobody calls them over the network", out=True)
        self.relay_group = self._group("Relays", "Relays of Heliograph: TURN from everywhere", out=True)
        self.cache_group = self._group("Cache", "The session store: functions and hubs only", out=False)
        self._add_rules()
        self.relay_addresses: list[ec2.CfnEIP] = []
        self.relay_balancer: elbv2.NetworkLoadBalancer | None = None
        self.turn_urls = ""
        if deployment.makes_media:
            self._add_entry()

    @property
    def availability_zones(self) -> list[str]:
        """The CDK's own answer would be a look-up in the account, which only its command line makes."""
        named = self._deployment.zones
        return list(named) or [Fn.select(index, Fn.get_azs()) for index in range(self._deployment.number("availability_zones"))]

    @property
    def endpoints(self) -> dict[str, str]:
        """Environment of what runs in the VPC: another host of a service whose own has no IPv6 address, where that is the only way out.

        By botocore's endpoint rules Secrets Manager and both APIs have one. S3 is reached by its gateway endpoint, over IPv4.
        """
        if self._deployment.own["egress"] != "ipv6":
            return {}
        return {"AWS_ENDPOINT_URL_SQS": f"https://sqs.{self.region}.api.aws"}

    def _vpc(self) -> ec2.Vpc:
        zones, egress = self.availability_zones, self._deployment.own["egress"]
        log_group = logs.LogGroup(self, "flows", retention=kept(self._deployment), removal_policy=RemovalPolicy.DESTROY)
        destination = ec2.FlowLogDestination.to_cloud_watch_logs(log_group)
        return ec2.Vpc(
            self,
            "Vpc",
            ip_addresses=ec2.IpAddresses.cidr(CIDR),
            availability_zones=zones,
            ip_protocol=ec2.IpProtocol.DUAL_STACK,
            nat_gateway_provider=self._nat,
            nat_gateways=0 if egress == "ipv6" else len(zones) if self._deployment.preset == "prod-multi-az" else 1,
            subnet_configuration=[
                ec2.SubnetConfiguration(name="Public", subnet_type=ec2.SubnetType.PUBLIC, cidr_mask=24),
                ec2.SubnetConfiguration(name="Private", subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS, cidr_mask=22),
            ],
            gateway_endpoints={"S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3)},
            # Of refusals only: a relay would log a line a minute for every peer of every call.
            flow_logs={"Refused": ec2.FlowLogOptions(destination=destination, traffic_type=ec2.FlowLogTrafficType.REJECT)},
        )

    def _nat_provider(self) -> ec2.NatInstanceProviderV2 | None:
        if self._deployment.own["egress"] != "nat-instance":
            return None
        kind = ec2.InstanceType("t4g.nano")
        outbound = ec2.NatTrafficDirection.OUTBOUND_ONLY
        return ec2.NatProvider.instance_v2(instance_type=kind, default_allowed_traffic=outbound, associate_public_ip_address=True)

    def _group(self, name: str, description: str, *, out: bool) -> ec2.SecurityGroup:
        return ec2.SecurityGroup(self, name, vpc=self.vpc, description=description, allow_all_outbound=out, allow_all_ipv6_outbound=out)

    def _add_rules(self) -> None:
        for group in (self.functions_group, self.relay_group):
            self.cache_group.add_ingress_rule(group, ec2.Port.tcp_range(*REDIS_PORTS), "Redis over TLS")
        for peer in (ec2.Peer.any_ipv4(), ec2.Peer.any_ipv6()):
            self.relay_group.add_ingress_rule(peer, ec2.Port.udp(TURN_PORT), "TURN")
            self.relay_group.add_ingress_rule(peer, ec2.Port.tcp(TURN_PORT), "TURN over TCP")
            for port in TURN_TLS_PORTS if self._deployment.turn_tls_name else ():
                self.relay_group.add_ingress_rule(peer, ec2.Port.tcp(port), "TURN over TLS")
            self.relay_group.add_ingress_rule(peer, ec2.Port.udp_range(*RELAYED_PORTS), "relayed addresses")
        acknowledge(self.relay_group, "AwsSolutions-EC23", "A TURN relay serves clients and peers at any address; its credentials and its peer filter decide.")
        if self._nat is not None:
            self._finish_nat(self._nat)

    def _finish_nat(self, nat: ec2.NatInstanceProviderV2) -> None:
        nat.security_group.add_ingress_rule(ec2.Peer.ipv4(CIDR), ec2.Port.all_traffic(), "from the VPC to the internet")
        for machine in nat.gateway_instances:
            plain = cast(ec2.CfnInstance, machine.node.default_child)
            disk = ec2.CfnInstance.EbsProperty(encrypted=True, volume_type="gp3", volume_size=NAT_DISK_GB, delete_on_termination=True)
            plain.block_device_mappings = [ec2.CfnInstance.BlockDeviceMappingProperty(device_name="/dev/xvda", ebs=disk)]
            acknowledge(machine, "AwsSolutions-EC28", "Metrics of five minutes are enough for a machine that only passes packets on; the others are paid for.")
            acknowledge(machine, "AwsSolutions-EC29", "It keeps nothing: a new one does the same work, and a protected one would stop `cdk destroy`.")

    def _add_entry(self) -> None:
        stage, own = self._deployment.stage, self._deployment.own
        if own["relay_entry"] == "load-balancer":
            public = ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC)
            self.relay_balancer = elbv2.NetworkLoadBalancer(
                self, "Entry", vpc=self.vpc, internet_facing=True, vpc_subnets=public, cross_zone_enabled=False, deletion_protection=True
            )
            acknowledge(
                self.relay_balancer, "AwsSolutions-ELB2", "A Network Load Balancer writes access logs of TLS listeners only, and TURN over UDP has none."
            )
            hosts = [self.relay_balancer.load_balancer_dns_name]
        else:
            tags = [CfnTag(key=RELAY_TAG, value=stage), CfnTag(key="Name", value=f"heliograph-{stage}-relay")]
            self.relay_addresses = [ec2.CfnEIP(self, f"Address{number}", domain="vpc", tags=tags) for number in range(self._deployment.number("relay_min"))]
            hosts = [address.attr_public_ip for address in self.relay_addresses]
        urls = [f"turn:{host}:{TURN_PORT}?transport={transport}" for host in hosts for transport in ("udp", "tcp")]
        name = self._deployment.turn_tls_name
        self.turn_urls = ",".join(urls + [f"turns:{name}:{port}?transport=tcp" for port in TURN_TLS_PORTS if name])
