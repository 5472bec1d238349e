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
        "issuer",
        "connections_url",
        "media_bucket",
        "media_kms_key_id",
        "notifications_queue_url",
        "timers_queue_url",
    }
)
OWN: Final = {  # name -> default, sentence
    "allow_origins": ("", "Comma-separated origins of web clients, for CORS of the REST API and of the media bucket; empty for none."),
    "bundle": ("false", "`true` adds the dependencies of the functions as a layer (pip, from the network); `cdk.json` sets it, a plain synth does without."),
}
_STAGE: Final = re.compile(r"[a-z][a-z0-9-]{0,19}")


class ContextError(SystemExit):
    """A context setting is missing, unknown or of the wrong form; the message is one sentence for the person who deploys."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One deployment's choices. `settings` has a text for every setting of the functions that is not computed."""

    settings: Mapping[str, str]
    allow_origins: tuple[str, ...] = ()
    bundle: bool = False

    @property
    def stage(self) -> str:
        return self.settings["stage"]


def asked() -> dict[str, str | None]:
    """Context settings that become settings of the functions: name -> default, None where there is none."""
    return {item.name: None if item.default is MISSING else str(item.default) for item in fields(Settings) if item.name not in COMPUTED}


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
    own = {name.removeprefix(PREFIX): _text(value) for name, value in context.items() if name.startswith(PREFIX)}
    known = asked()
    for name in own:
        if name not in known and name not in OWN:
            raise ContextError(_unknown(name, [*known, *OWN]))
    missing = [name for name, default in known.items() if default is None and not own.get(name)]
    if missing:
        raise ContextError(f"Give the context settings {', '.join(missing)}: {' '.join(f'-c {PREFIX}{name}=<value>' for name in missing)}")
    settings = {name: own.get(name, default or "") for name, default in known.items()}
    _check(settings)
    if own.get("bundle", OWN["bundle"][0]) not in ("true", "false"):
        raise ContextError(f"{PREFIX}bundle must be true or false.")
    origins = tuple(item.strip() for item in own.get("allow_origins", "").split(",") if item.strip())
    return Deployment(settings, origins, own.get("bundle") == "true")


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
    _check_redis_url(settings["redis_url"])
    values = {ENVIRONMENT + name.upper(): text for name, text in settings.items()} | {ENVIRONMENT + name.upper(): "computed" for name in COMPUTED}
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
