"""MongoDB Atlas for the ledger: a cluster that is reached through a PrivateLink endpoint of our network only, its user, and the connection string.

Plain resources of MongoDB's public extension types, which the account must have activated once in the Region (infra/cdk/README.md).
Source: github.com/mongodb/mongodbatlas-cloudformation-resources, the schemas of Cluster, DatabaseUser, PrivateEndpointService and PrivateEndpointAWS.
"""

from __future__ import annotations

import json
from typing import Any, Final

from aws_cdk import CfnDeletionPolicy, CfnResource, Fn, Token
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_secretsmanager as secretsmanager
from constructs import Construct

from infra.cdk.context import DYNAMIC, Deployment
from infra.cdk.nag import acknowledge
from infra.cdk.network import Network

USER: Final = "heliograph"
USAGE: Final = "relay_usage"  # the one collection that relays write
ENDPOINT_PORTS: Final = (1024, 65_535)  # each node of the cluster answers on a port of its own
_NODES: Final = 3


class Ledger(Construct):
    """`secret_strings` are what the secrets `mongodb` and `relay-mongodb` hold: {uri}, filled in by CloudFormation, so the template has no password."""

    def __init__(self, scope: Construct, deployment: Deployment, network: Network) -> None:
        super().__init__(scope, "Ledger")
        self._project = {"ProjectId": deployment.own["atlas_project_id"], "Profile": deployment.own["atlas_profile"]}
        self._region, self._stage, self._is_for_relays = deployment.region, deployment.stage, deployment.has_relay_usage
        connected = self._private_link(network)
        cluster = self._cluster(deployment.own["atlas_instance"])
        cluster.add_dependency(connected)  # its private connection string is there only after the endpoint
        server = Fn.select(1, Fn.split("//", Fn.select(0, Token.as_list(cluster.get_att("ConnectionStrings.PrivateEndpointsSrv")))))
        database = deployment.settings["mongodb_database"]
        whole = [{"RoleName": name, "DatabaseName": database} for name in ("readWrite", "dbAdmin")]  # the second for `migrate`: it sets validators
        self.secret_strings = {"mongodb": self._user(cluster, server, USER, whole)}
        if deployment.has_relay_usage:
            one = [{"RoleName": "readWrite", "DatabaseName": database, "CollectionName": USAGE}]
            self.secret_strings["relay-mongodb"] = self._user(cluster, server, f"{USER}-relay", one, whose="Relay")

    def _private_link(self, network: Network) -> CfnResource:
        """Atlas' service, our endpoint to it, and Atlas' word that it accepted the endpoint."""
        service = self._atlas("Service", "PrivateEndpointService", Region=self._region, CloudProvider="AWS")
        endpoint = ec2.CfnVPCEndpoint(
            self,
            "Endpoint",
            service_name=Token.as_string(service.get_att("EndpointServiceName")),
            vpc_id=network.vpc.vpc_id,
            vpc_endpoint_type="Interface",
            subnet_ids=network.vpc.select_subnets(subnet_type=ec2.SubnetType.PRIVATE_WITH_EGRESS).subnet_ids,
            security_group_ids=[self._group(network, is_for_relays=self._is_for_relays).security_group_id],
        )
        return self._atlas("Accepted", "PrivateEndpointAWS", EndpointServiceId=service.get_att("Id"), Id=endpoint.ref, EnforceConnectionSuccess=True)

    def _group(self, network: Network, *, is_for_relays: bool) -> ec2.SecurityGroup:
        whose = "functions and relays" if is_for_relays else "functions"
        group = ec2.SecurityGroup(self, "Group", vpc=network.vpc, description=f"Endpoint of the ledger: {whose} only", allow_all_outbound=False)
        for allowed in (network.functions_group, *([network.relay_group] if is_for_relays else [])):
            group.add_ingress_rule(allowed, ec2.Port.tcp_range(*ENDPOINT_PORTS), "MongoDB over TLS")
        return group

    def _cluster(self, instance: str) -> CfnResource:
        specs = {"InstanceSize": instance, "NodeCount": _NODES, "EbsVolumeType": "STANDARD"}
        region = {"ProviderName": "AWS", "RegionName": self._region.upper().replace("-", "_"), "Priority": 7, "ElectableSpecs": specs}
        cluster = self._atlas(
            "Cluster",
            "Cluster",
            Name=f"heliograph-{self._stage}",
            ClusterType="REPLICASET",
            BackupEnabled=True,
            TerminationProtectionEnabled=True,
            AdvancedSettings={"MinimumEnabledTLSProtocol": "TLS1_2"},
            ReplicationSpecs=[{"NumShards": 1, "AdvancedRegionConfigs": [region]}],
        )
        cluster.cfn_options.deletion_policy = cluster.cfn_options.update_replace_policy = CfnDeletionPolicy.RETAIN
        return cluster

    def _user(self, cluster: CfnResource, server: str, user: str, roles: list[dict[str, str]], *, whose: str = "") -> str:
        """A user with these roles; what the secret with the URI holds."""
        password = self._password(whose)
        made = self._atlas(f"{whose}User", "DatabaseUser", Username=user, Password=password, DatabaseName="admin", Roles=roles)
        made.add_dependency(cluster)
        return f'{{"uri": "mongodb+srv://{user}:{password}@{server}/?authSource=admin"}}'

    def _password(self, whose: str) -> str:
        """A reference that CloudFormation fills in; the password is made by Secrets Manager and has no sign that a URI must escape."""
        name = f"atlas-{whose.lower()}-user" if whose else "atlas-user"
        generated = secretsmanager.CfnSecret.GenerateSecretStringProperty(
            secret_string_template=json.dumps({}), generate_string_key="password", password_length=48, exclude_punctuation=True
        )
        secret = secretsmanager.CfnSecret(
            self,
            f"{whose}Password",
            name=f"heliograph/{self._stage}/{name}",
            description="{password} of a user of the ledger in Atlas.",
            generate_secret_string=generated,
        )
        secret.cfn_options.deletion_policy = secret.cfn_options.update_replace_policy = CfnDeletionPolicy.RETAIN
        acknowledge(secret, "AwsSolutions-SMG4", "The password stands in Atlas too: a deployment changes both, and no one signs in outside of the network.")
        return f"{DYNAMIC}{secret.ref}:SecretString:password}}}}"

    def _atlas(self, name: str, kind: str, **properties: Any) -> CfnResource:
        return CfnResource(self, name, type=f"MongoDB::Atlas::{kind}", properties={**self._project, **properties})
