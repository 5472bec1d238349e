"""What a deployment chooses, given as CDK context (`-c heliograph:<name>=<value>`): the settings of the functions, and a few of the stacks' own.

Standard library only. A setting of the functions that no stack can work out is asked for here; its name and sentence stand in `adapters.settings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Final
from urllib.parse import urlsplit

from adapters.settings import PREFIX as ENVIRONMENT
from adapters.settings import Settings, SettingsError, load

PREFIX: Final = "heliograph:"
DYNAMIC: Final = "{{resolve:secretsmanager:"
COMPUTED: Final = frozenset(
    {
        "mongodb_secret_id",
        "token_keys_secret_id",
        "turn_secret_id",
        "fcm_secret_id",
        "origin_secret_id",
        "redis_user",
        "redis_cache",
        "issuer",
        "connections_url",
        "media_bucket",
        "media_kms_key_id",
        "notifications_queue_url",
        "timers_queue_url",
    }
)
MADE: Final = {  # settings of the functions that the stacks work out unless they are given -> what must then be given
    "redis_url": "without a VPC there is no ElastiCache: give -c heliograph:redis_url=rediss://…, or leave heliograph:vpc at true.",
    "turn_urls": "without a media fleet there is no relay of ours: give -c heliograph:turn_urls=turn:…, or leave heliograph:media at ec2.",
}
PRESETS: Final = ("dev", "prod", "prod-multi-az")
BOOLEANS: Final = ("false", "true")


@dataclass(frozen=True, slots=True)
class Choice:
    """A setting of the stacks themselves: its default in each preset, what it may be (any text where empty), a sentence."""

    dev: str
    prod: str
    prod_multi_az: str
    doc: str
    one_of: tuple[str, ...] = ()
    whole: bool = False

    def default(self, preset: str) -> str:
        return {"dev": self.dev, "prod": self.prod, "prod-multi-az": self.prod_multi_az}[preset]


def _same(value: str, doc: str, one_of: tuple[str, ...] = ()) -> Choice:
    return Choice(value, value, value, doc, one_of)


OWN: Final = {
    "allow_origins": _same("", "Comma-separated origins of web clients, for CORS of the REST API and of the media bucket; empty for none."),
    "bundle": _same("false", "`true` adds the dependencies of the functions as layers (pip, from the network); `cdk.json` sets it.", BOOLEANS),
    "architecture": _same("arm64", "Processor of functions and relays.", ("arm64", "x86_64")),
    "vpc": _same("true", "`false` makes no network: the functions run outside a VPC, `redis_url` is required and there is no media fleet.", BOOLEANS),
    "availability_zones": Choice("2", "2", "3", "In how many Availability Zones the network lies (2 or 3).", ("2", "3")),
    "egress": Choice(
        "ipv6",
        "nat-gateway",
        "nat-gateway",
        "How functions in the VPC reach the internet: `ipv6` costs nothing and reaches only what has an IPv6 address (AWS and FCM do, Atlas does not); "
        "`nat-instance` is one small machine; `nat-gateway` is one per zone in prod-multi-az, else one.",
        ("ipv6", "nat-instance", "nat-gateway"),
    ),
    "redis_max_gb": Choice(
        "1", "5", "20", "Maximum of ElastiCache Serverless in GB: an alarm rings at 60 %, because a full cache evicts keys with a TTL first.", whole=True
    ),
    "evidence_lock": Choice(
        "governance",
        "compliance",
        "compliance",
        "Object Lock of evidence: `compliance` binds everybody until its day, the account's root too; `governance` lets those with a right of their own delete.",
        ("governance", "compliance"),
    ),
    "evidence_days": Choice("1", "365", "365", "How long a piece of evidence cannot be deleted, in days.", whole=True),
    "mongodb": _same("secret", "`secret`: the ledger's URI is put into a secret by hand; `atlas`: MongoDB Atlas resources are made.", ("secret", "atlas")),
    "atlas_project_id": _same("", "Project of MongoDB Atlas; needed by `mongodb=atlas`."),
    "atlas_profile": _same("default", "Secret profile of the Atlas resource types in CloudFormation."),
    "edge": Choice("cloudfront", "cloudfront-waf", "cloudfront-waf", "What stands before the APIs.", ("none", "cloudfront", "cloudfront-waf")),
    "region": _same("", "AWS Region of the stacks; empty for the one of the command line. A firewall needs it, because it stands in us-east-1."),
    "origin_secret_version": _same("", "Version id of the secret that CloudFront adds to requests, as `rotate-secret` prints it; empty for the current one."),
    "snap_start": Choice("false", "true", "true", "SnapStart of the functions that a person waits for.", BOOLEANS),
    "reserved_concurrency": _same("", "Reserved concurrency of functions, `name=number`, comma-separated; empty for none (a new account has 10 in all)."),
    "media": _same("ec2", "Where the media fleet runs; `fargate` has no host network, so one relay a task.", ("none", "ec2", "fargate")),
    "relay_entry": Choice(
        "address",
        "load-balancer",
        "load-balancer",
        "`address`: clients are told the fixed addresses of a fleet of fixed size; `load-balancer`: a Network Load Balancer before a fleet that grows.",
        ("address", "load-balancer"),
    ),
    "relay_instance": Choice("t4g.micro", "c7gn.medium", "c7gn.large", "EC2 instance type of a relay."),
    "relay_min": Choice("1", "2", "3", "Least number of relays.", whole=True),
    "relay_max": Choice("1", "6", "12", "Most relays; with `relay_entry=address` the same as `relay_min`.", whole=True),
    "image_uri": _same("", "Image of the media fleet that is there already; empty builds it with CodeBuild."),
    "alarm_email": _same("", "Who gets the alarms; empty makes the topic without a subscriber."),
    "monthly_budget_usd": Choice("30", "500", "1500", "The budget whose forecast raises an alarm, USD a month.", whole=True),
    "log_days": Choice("7", "30", "90", "How long logs are kept, in days.", ("1", "3", "5", "7", "14", "30", "60", "90", "180", "365")),
}
_REGION: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_VERSION: Final = re.compile(r"[A-Za-z0-9-]{32,64}")
_STAGE: Final = re.compile(r"[a-z][a-z0-9-]{0,19}")


class ContextError(SystemExit):
    """A context setting is missing, unknown or of the wrong form; the message is one sentence for the person who deploys."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment's choices. `settings` has a text for every setting of the functions that is not computed."""

    settings: Mapping[str, str]
    own: Mapping[str, str]
    preset: str = "dev"

    @property
    def stage(self) -> str:
        return self.settings["stage"]

    @property
    def allow_origins(self) -> tuple[str, ...]:
        return tuple(item.strip() for item in self.own["allow_origins"].split(",") if item.strip())

    def has(self, name: str) -> bool:
        """Whether a true-or-false setting is true."""
        return self.own[name] == "true"

    def number(self, name: str) -> int:
        return int(self.own[name])

    @property
    def has_edge(self) -> bool:
        """Whether CloudFront stands before the APIs."""
        return self.own["edge"] != "none"

    @property
    def makes_redis(self) -> bool:
        """Whether the stacks make the session store, because nobody named one."""
        return not self.settings["redis_url"]

    @property
    def makes_media(self) -> bool:
        return self.has("vpc") and self.own["media"] != "none"


def asked() -> dict[str, str | None]:
    """Context settings that become settings of the functions: name -> default, None where there is none."""
    texts = {item.name: None if item.default is MISSING else str(item.default) for item in fields(Settings) if item.name not in COMPUTED}
    return texts | dict.fromkeys(MADE, "")


def arguments(given: Iterable[str]) -> dict[str, str]:
    """`name=value` texts, as `cdk -c` takes them."""
    parsed = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ContextError(f"-c {text} has no value: write -c {name}=<value>.")
        parsed[name] = value
    return parsed


def read(context: Mapping[str, object]) -> Deployment:
    """The deployment in this CDK context; keys without our prefix are the CDK's own. ContextError names what is wrong."""
    given = {name.removeprefix(PREFIX): _text(value) for name, value in context.items() if name.startswith(PREFIX)}
    known = asked()
    preset = given.pop("preset", PRESETS[0])
    if preset not in PRESETS:
        raise ContextError(f"{PREFIX}preset must be one of {', '.join(PRESETS)}.")
    for name in given:
        if name not in known and name not in OWN:
            raise ContextError(_unknown(name, ["preset", *known, *OWN]))
    missing = [name for name, default in known.items() if default is None and not given.get(name)]
    if missing:
        raise ContextError(f"Give the context settings {', '.join(missing)}: {' '.join(f'-c {PREFIX}{name}=<value>' for name in missing)}")
    deployment = Deployment(
        {name: given.get(name, default or "") for name, default in known.items()},
        {name: given.get(name, choice.default(preset)) for name, choice in OWN.items()},
        preset,
    )
    _check_own(deployment)
    _check(deployment.settings)
    return deployment


def region(deployment: Deployment, environ: Mapping[str, str]) -> str:
    """Where the stacks are to stand; empty where that may stay open until they are deployed. The CDK's command line knows its own."""
    named = deployment.own["region"]
    if deployment.own["edge"] != "cloudfront-waf":
        return named
    found = named or environ.get("CDK_DEFAULT_REGION", "")
    if not found:
        raise ContextError(f"{PREFIX}region is missing: the firewall stands in us-east-1 and must know where the APIs are; give -c {PREFIX}region=eu-west-1.")
    return found


def _check_own(deployment: Deployment) -> None:
    """Each choice by itself, then those that do not go together."""
    for name, choice in OWN.items():
        value = deployment.own[name]
        if choice.one_of and value not in choice.one_of:
            raise ContextError(f"{PREFIX}{name} must be {' or '.join(choice.one_of)}.")
        if choice.whole and not (value.isdecimal() and int(value) >= 1):
            raise ContextError(f"{PREFIX}{name} must be a whole number, at least 1.")
    if deployment.own["region"] and not _REGION.fullmatch(deployment.own["region"]):
        raise ContextError(f"{PREFIX}region must be a Region's name, such as eu-west-1.")
    if deployment.own["origin_secret_version"] and not _VERSION.fullmatch(deployment.own["origin_secret_version"]):
        raise ContextError(f"{PREFIX}origin_secret_version must be the version id that `python -m admin rotate-secret` printed.")
    if deployment.makes_redis and not deployment.has("vpc"):
        raise ContextError(f"{PREFIX}redis_url is missing: {MADE['redis_url']}")
    if not deployment.makes_media and not deployment.settings["turn_urls"]:
        raise ContextError(f"{PREFIX}turn_urls is missing: {MADE['turn_urls']}")
    if deployment.own["mongodb"] == "atlas" and not deployment.own["atlas_project_id"]:
        raise ContextError(f"{PREFIX}atlas_project_id is missing: mongodb=atlas makes a cluster in that project.")
    if deployment.own["relay_entry"] == "address" and deployment.own["relay_min"] != deployment.own["relay_max"]:
        raise ContextError(f"{PREFIX}relay_min and {PREFIX}relay_max must be the same with relay_entry=address: clients are told every address.")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unknown(name: str, known: list[str]) -> str:
    if name in COMPUTED:
        return f"{PREFIX}{name} is worked out by the stacks; leave it out."
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {PREFIX}{close[0]}?" if close else "docs/settings.md lists them."
    return f"{PREFIX}{name} is not a context setting of Heliograph; {hint}"


def _check(settings: Mapping[str, str]) -> None:
    if not _STAGE.fullmatch(settings["stage"]):
        raise ContextError(f"{PREFIX}stage must be 1 to 20 of a-z, 0-9 and -, a letter first: it stands in names of stacks and secrets.")
    if settings["redis_url"]:
        _check_redis_url(settings["redis_url"])
    values = {ENVIRONMENT + name.upper(): text or "computed" for name, text in settings.items() if text or name in MADE} | {
        ENVIRONMENT + name.upper(): "computed" for name in COMPUTED
    }
    try:
        load(values)
    except SettingsError as error:
        raise ContextError(re.sub(rf"{ENVIRONMENT}([A-Z0-9_]+)", lambda found: PREFIX + found[1].lower(), str(error))) from None


def _check_redis_url(url: str) -> None:
    if url.startswith(DYNAMIC):
        return
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ContextError(f"{PREFIX}redis_url must be redis://host:port or rediss://host:port, or a {DYNAMIC}<name>:SecretString:<field>}}}} reference.")
    if parts.password is not None:
        raise ContextError(
            f"{PREFIX}redis_url holds a password, which would stand in the template: store the URL in Secrets Manager and give "
            f"{DYNAMIC}<name>:SecretString:<field>}}}} instead."
        )
