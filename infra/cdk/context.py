"""What a deployment chooses, given as CDK context (`-c heliograph:<name>=<value>`): the settings of the functions, and a few of the stacks' own.

Standard library only. A setting of the functions that no stack can work out is asked for here; its name and sentence stand in `adapters.settings`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
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
    needs: str = ""  # what must be made for this choice to have an effect: a key of _MADE_WHEN

    def default(self, preset: str) -> str:
        return {"dev": self.dev, "prod": self.prod, "prod-multi-az": self.prod_multi_az}[preset]


def _same(value: str, doc: str, one_of: tuple[str, ...] = (), needs: str = "") -> Choice:
    return Choice(value, value, value, doc, one_of, needs=needs)


OWN: Final = {
    "region": _same("", "Region of the stacks; empty takes the one of the command line's profile. `cloudfront-waf` and `atlas` must know it at synthesis."),
    "allow_origins": _same("", "Comma-separated origins of web clients, for CORS of the REST API and of the media bucket; empty for none."),
    "bundle": _same("false", "`true` adds the dependencies of the functions as layers (pip, from the network); `cdk.json` sets it.", BOOLEANS),
    "architecture": _same("arm64", "Processor of functions and relays.", ("arm64", "x86_64")),
    "vpc": _same("true", "`false` makes no network: the functions run outside a VPC, `redis_url` is required and there is no media fleet.", BOOLEANS),
    "availability_zones": Choice(
        "2",
        "2",
        "3",
        "In how many Availability Zones the network lies (2 or 3), or their names, comma-separated: ElastiCache is not in every zone.",
        needs="vpc",
    ),
    "egress": Choice(
        "ipv6",
        "nat-gateway",
        "nat-gateway",
        "How functions in the VPC reach the internet: `ipv6` costs nothing and reaches only what has an IPv6 address (AWS and FCM do, Atlas without "
        "PrivateLink does not); `nat-instance` is one small machine; `nat-gateway` is one per zone in prod-multi-az, else one.",
        ("ipv6", "nat-instance", "nat-gateway"),
        needs="vpc",
    ),
    "redis_max_gb": Choice(
        "1",
        "5",
        "20",
        "Maximum of ElastiCache Serverless in GB: an alarm rings at 60 %, because a full cache evicts keys with a TTL first.",
        whole=True,
        needs="redis",
    ),
    "evidence_lock": Choice(
        "governance",
        "compliance",
        "compliance",
        "Object Lock of evidence: `compliance` binds everybody until its day, the root user too; `governance` lets those with a right of their own delete.",
        ("governance", "compliance"),
    ),
    "evidence_days": Choice("1", "365", "365", "How long a piece of evidence cannot be deleted, in days.", whole=True),
    "mongodb": _same(
        "secret",
        "`secret`: the ledger's URI is put into a secret by hand; `atlas`: a cluster of MongoDB Atlas with a PrivateLink endpoint is made.",
        ("secret", "atlas"),
    ),
    "atlas_project_id": _same("", "Project of MongoDB Atlas: 24 hexadecimal digits.", needs="atlas"),
    "atlas_profile": _same(
        "default", "Secret profile of the Atlas resource types: the secret `cfn/atlas/profile/<profile>` holds the API keys.", needs="atlas"
    ),
    "atlas_instance": Choice("M10", "M30", "M30", "Size of the Atlas cluster's three nodes; M10 is the least that has PrivateLink.", needs="atlas"),
    "edge": Choice("cloudfront", "cloudfront-waf", "cloudfront-waf", "What stands before the APIs.", ("none", "cloudfront", "cloudfront-waf")),
    "origin_secret_version": _same(
        "", "Version id of the secret that CloudFront adds to requests, as `rotate-secret` prints it; empty for the current one.", needs="edge"
    ),
    "snap_start": Choice("false", "true", "true", "SnapStart of the functions that a person waits for.", BOOLEANS),
    "reserved_concurrency": _same("", "Reserved concurrency of functions, `name=number`, comma-separated; empty for none (a new account has 10 in all)."),
    "media": _same("ec2", "Where the media fleet runs; `fargate` has no host network, so one relay a task.", ("none", "ec2", "fargate")),
    "relay_entry": Choice(
        "address",
        "load-balancer",
        "load-balancer",
        "`address`: clients are told the fixed addresses of a fleet of fixed size; `load-balancer`: a Network Load Balancer before a fleet that grows.",
        ("address", "load-balancer"),
        needs="media",
    ),
    "relay_instance": Choice("t4g.micro", "c7gn.medium", "c7gn.large", "EC2 instance type of a relay.", needs="ec2"),
    "relay_min": Choice("1", "2", "3", "Least number of relays.", whole=True, needs="media"),
    "relay_max": Choice("1", "6", "12", "Most relays; with `relay_entry=address` the same as `relay_min`.", whole=True, needs="media"),
    "turn_tls_name": _same(
        "",
        "Host name of the relays, as in the certificate of the secret `relay-tls`: then they take TURN over TLS too, on ports 5349 and 443; empty for none.",
        needs="media",
    ),
    "relay_usage": Choice(
        "false",
        "true",
        "true",
        "`true`: relays tell the ledger what each account sent, as a user of MongoDB of their own, whose URI stands in a secret.",
        BOOLEANS,
        needs="media",
    ),
    "image_uri": _same("", "Image of the media fleet that is there already; empty builds it with CodeBuild.", needs="media"),
    "alarm_email": _same("", "Who gets the alarms; empty makes the topic without a subscriber."),
    "monthly_budget_usd": Choice("45", "500", "1500", "The budget whose forecast raises an alarm, USD a month.", whole=True),
    "log_days": Choice("7", "30", "90", "How long logs are kept, in days.", ("1", "3", "5", "7", "14", "30", "60", "90", "180", "365")),
}
# Every commercial Region that has ElastiCache (botocore 1.44.5, endpoints of `elasticache` in the partition `aws`).
_REGIONS: Final = """
    af-south-1 ap-east-1 ap-east-2 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1 ap-south-2 ap-southeast-1 ap-southeast-2 ap-southeast-3
    ap-southeast-4 ap-southeast-5 ap-southeast-6 ap-southeast-7 ca-central-1 ca-west-1 eu-central-1 eu-central-2 eu-north-1 eu-south-1 eu-south-2 eu-west-1
    eu-west-2 eu-west-3 il-central-1 me-central-1 me-south-1 mx-central-1 sa-east-1 us-east-1 us-east-2 us-west-1 us-west-2
"""
REGIONS: Final = frozenset(_REGIONS.split())
_STAGE: Final = re.compile(r"(?=.{1,20}$)[a-z](-?[a-z0-9])*")
_REFERENCE: Final = re.compile(r"{{resolve:secretsmanager:[^:{}]+(:[^:{}]+)*:SecretString:[^:{}]+(:[^:{}]*){0,2}}}")
_ORIGIN: Final = re.compile(r"https?://[a-z0-9.-]+(:\d+)?")
_INSTANCE: Final = re.compile(r"[a-z]+\d+(?P<attributes>[a-z-]*)\.[a-z0-9-]+")
_IMAGE: Final = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9._-]+)+(:[\w.-]+|@sha256:[0-9a-f]{64})?")
_FORMS: Final = {  # what a choice must look like where it is given, in words
    "atlas_project_id": (re.compile(r"[0-9a-f]{24}"), "24 hexadecimal digits, as Atlas shows them in the project's settings"),
    "origin_secret_version": (re.compile(r"[A-Za-z0-9-]{32,64}"), "the version id that `python -m admin rotate-secret` printed"),
    "atlas_profile": (re.compile(r"[\w+=,.@-]+"), "the name of a profile"),
    "atlas_instance": (re.compile(r"M[1-9]\d+"), "a dedicated size such as M10: smaller ones have no PrivateLink"),
    "alarm_email": (re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+"), "an e-mail address"),
    "relay_instance": (_INSTANCE, "an EC2 instance type such as t4g.micro"),
    "image_uri": (_IMAGE, "the name of an image with its registry, such as 123456789012.dkr.ecr.eu-west-1.amazonaws.com/heliograph:1"),
    "availability_zones": (re.compile(r"[23]|[a-z0-9-]+(\s*,\s*[a-z0-9-]+){1,2}"), "2 or 3, or the names of 2 or 3 zones"),
}
_MADE_WHEN: Final = {
    "vpc": "with vpc=true",
    "redis": "with vpc=true and without redis_url",
    "atlas": "with mongodb=atlas",
    "edge": "with edge=cloudfront or edge=cloudfront-waf",
    "media": "with vpc=true and a media fleet",
    "ec2": "with vpc=true and media=ec2",
}


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
    def region(self) -> str:
        """The Region that was chosen; empty where the command line's profile decides."""
        return self.own["region"]

    @property
    def env(self) -> dict[str, str] | None:
        """The `env` of every stack but the one of the web ACL; None where the command line's profile decides."""
        return {"region": self.region} if self.region else None

    @property
    def zones(self) -> tuple[str, ...]:
        """Names of Availability Zones, if they were named."""
        text = self.own["availability_zones"]
        return () if text.isdecimal() else tuple(item.strip() for item in text.split(","))

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

    @property
    def turn_tls_name(self) -> str:
        """Empty where relays do not speak TLS."""
        return self.own["turn_tls_name"] if self.makes_media else ""

    @property
    def has_relay_usage(self) -> bool:
        """Whether relays tell the ledger what accounts sent."""
        return self.makes_media and self.has("relay_usage")

    @property
    def makes_atlas(self) -> bool:
        return self.own["mongodb"] == "atlas"


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
    for name in given:
        if name != "preset" and name not in known and name not in OWN:
            raise ContextError(_unknown(name, ["preset", *known, *OWN]))
    preset = given.pop("preset", PRESETS[0])
    if preset not in PRESETS:
        raise ContextError(f"{PREFIX}preset must be {' or '.join(PRESETS)}{_meant(preset, PRESETS)}.")
    missing = [name for name, default in known.items() if default is None and not given.get(name)]
    if missing:
        raise ContextError(f"Give the context settings {', '.join(missing)}: {' '.join(f'-c {PREFIX}{name}=<value>' for name in missing)}")
    settings = {name: given.get(name, default or "") for name, default in known.items()}
    if not settings["redis_url"] and "redis_mode" not in given:
        settings["redis_mode"] = "cluster"  # ElastiCache Serverless is one, always
    deployment = Deployment(settings, {name: given.get(name, choice.default(preset)) for name, choice in OWN.items()}, preset)
    for name in OWN:
        _check_choice(name, deployment.own[name])
    _check_together(deployment)
    _check_effect(deployment, given)
    _check(deployment.settings)
    return deployment


def check_region(name: str) -> None:
    """ContextError unless the stacks can be deployed in this Region."""
    if name not in REGIONS:
        raise ContextError(
            f"The Region {name} has not what the stacks need{_meant(name, REGIONS)}: give -c {PREFIX}region=<a commercial Region with ElastiCache>."
        )


def _check_choice(name: str, value: str) -> None:
    """One choice by itself."""
    choice = OWN[name]
    if choice.one_of and value not in choice.one_of:
        raise ContextError(f"{PREFIX}{name} must be {' or '.join(choice.one_of)}{_meant(value, choice.one_of)}.")
    if choice.whole and not (value.isascii() and value.isdecimal() and 1 <= int(value) <= 36_500):
        raise ContextError(f"{PREFIX}{name} must be a whole number, at least 1.")
    if value and name in _FORMS and not _FORMS[name][0].fullmatch(value):
        raise ContextError(f"{PREFIX}{name} must be {_FORMS[name][1]}.")
    if not value and name in ("relay_instance", "atlas_profile", "atlas_instance", "availability_zones"):
        raise ContextError(f"{PREFIX}{name} must not be empty: leave it out for {choice.dev}.")
    if name == "region" and value:
        check_region(value)
    if name == "allow_origins" and value and not all(_ORIGIN.fullmatch(item.strip()) for item in value.split(",")):
        raise ContextError(f"{PREFIX}allow_origins must be origins such as https://app.example.com, comma-separated: no path and no *.")


def _check_together(deployment: Deployment) -> None:
    """Choices that do not go together, or that ask for another."""
    own = deployment.own
    if deployment.makes_redis and not deployment.has("vpc"):
        raise ContextError(f"{PREFIX}redis_url is missing: {MADE['redis_url']}")
    if not deployment.makes_media and not deployment.settings["turn_urls"]:
        raise ContextError(f"{PREFIX}turn_urls is missing: {MADE['turn_urls']}")
    if deployment.makes_atlas:
        if not own["atlas_project_id"]:
            raise ContextError(f"{PREFIX}atlas_project_id is missing: mongodb=atlas makes a cluster in that project.")
        if not deployment.has("vpc"):
            raise ContextError(f"{PREFIX}mongodb=atlas needs {PREFIX}vpc=true: the cluster is reached by PrivateLink only.")
    if not deployment.region:
        for name, value in (("edge", "cloudfront-waf"), ("mongodb", "atlas")):
            if own[name] == value:
                raise ContextError(
                    f"{PREFIX}region is missing: {name}={value} must know it at synthesis; give -c {PREFIX}region=eu-west-1 or {PREFIX}{name}={OWN[name].dev}."
                )
    if deployment.makes_media:
        _check_media(own)


def _check_media(own: Mapping[str, str]) -> None:
    if own["media"] == "fargate" and own["relay_entry"] == "address":
        raise ContextError(f"{PREFIX}media=fargate needs {PREFIX}relay_entry=load-balancer: a task cannot take a fixed address.")
    if own["relay_entry"] == "address" and own["relay_min"] != own["relay_max"]:
        raise ContextError(f"{PREFIX}relay_min and {PREFIX}relay_max must be the same with relay_entry=address: clients are told every address.")
    if int(own["relay_min"]) > int(own["relay_max"]):
        raise ContextError(f"{PREFIX}relay_min must not be more than {PREFIX}relay_max.")
    found = _INSTANCE.fullmatch(own["relay_instance"])
    is_arm = found is not None and "g" in found["attributes"].partition("-")[0]
    if own["media"] == "ec2" and is_arm != (own["architecture"] == "arm64"):
        other = "t3.micro" if is_arm else "t4g.micro"
        raise ContextError(f"{PREFIX}relay_instance={own['relay_instance']} does not run {own['architecture']}: give an instance type such as {other}.")


def _check_effect(deployment: Deployment, given: Mapping[str, str]) -> None:
    """A choice that changes nothing is a misunderstanding."""
    ec2 = deployment.makes_media and deployment.own["media"] == "ec2"
    made = {
        "vpc": deployment.has("vpc"),
        "redis": deployment.makes_redis,
        "atlas": deployment.makes_atlas,
        "edge": deployment.has_edge,
        "media": deployment.makes_media,
        "ec2": ec2,
    }
    for name in given:
        if name in OWN and (needs := OWN[name].needs) and not made[needs]:
            raise ContextError(f"{PREFIX}{name} has an effect only {_MADE_WHEN[needs]}: leave it out.")
    if given.get("media", "none") != "none" and not deployment.has("vpc"):
        raise ContextError(f"{PREFIX}media={given['media']} needs {PREFIX}vpc=true.")


def _meant(word: str, known: Collection[str]) -> str:
    begun = [item for item in known if word and (item.startswith(word) or word.startswith(item))]
    close = begun or get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


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
        raise ContextError(
            f"{PREFIX}stage must be 1 to 20 of a-z, 0-9 and single -, a letter first and no - last: it stands in names of stacks, secrets and the cache."
        )
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
        if not _REFERENCE.fullmatch(url):
            raise ContextError(f"{PREFIX}redis_url names no field of a secret: give {DYNAMIC}<name>:SecretString:<field>}}}}.")
        return
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ContextError(f"{PREFIX}redis_url must be redis://host:port or rediss://host:port, or a {DYNAMIC}<name>:SecretString:<field>}}}} reference.")
    if parts.password is not None:
        raise ContextError(
            f"{PREFIX}redis_url holds a password, which would stand in the template: store the URL in Secrets Manager and give "
            f"{DYNAMIC}<name>:SecretString:<field>}}}} instead."
        )
