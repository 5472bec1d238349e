"""What `HELIOGRAPH_RELAY_ADDRESS=auto` stands for: the public IPv4 address of this machine or task, asked of AWS.

On EC2 the instance's metadata know it, an Elastic IP included. A Fargate task has a network interface of its own, whose metadata name only the private
address: EC2 is asked for the public one (the task's role needs ec2:DescribeNetworkInterfaces).
Sources: EC2 user guide, "Use IMDSv2"; ECS developer guide, "Task metadata endpoint version 4"; EC2 API reference, DescribeNetworkInterfaces.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlencode, urlsplit

from adapters import settings, sigv4

AUTO: Final = "auto"
WAIT_S: Final = 30.0  # an address that is being associated is there within seconds
RETRY_S: Final = 1.0
TIMEOUT_S: Final = 2.0
_IMDS: Final = "http://169.254.169.254"
_SESSION_S: Final = "60"
_PUBLIC: Final = re.compile(r"<publicIp>([0-9.]+)</publicIp>")


class Unknown(Exception):
    """The address cannot be learned; the message is the end of a sentence."""


class NotYet(Unknown):
    """There is none, but one may be on its way."""


def learn(environ: Mapping[str, str], wait_s: float = WAIT_S) -> str:
    """The public IPv4 address, once there is one; NotYet when after `wait_s` there is none, Unknown at once when nobody can be asked."""
    ask = _of_task if environ.get("AWS_EXECUTION_ENV") == "AWS_ECS_FARGATE" else _of_instance
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _checked(ask(environ))
        except NotYet:
            if time.monotonic() >= deadline:
                raise
        time.sleep(RETRY_S)


def _of_instance(environ: Mapping[str, str]) -> str:
    """IMDSv2: a session token first, then the address; 404 says that the instance has none."""
    base = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _IMDS  # as every AWS SDK reads it
    where = f"the instance metadata at {base}"
    token = _exchange("PUT", base, "/latest/api/token", where, {"X-aws-ec2-metadata-token-ttl-seconds": _SESSION_S})
    if token is None:
        raise Unknown(f"{where} give no session token")
    found = _exchange("GET", base, "/latest/meta-data/public-ipv4", where, {"X-aws-ec2-metadata-token": token})
    if found is None:
        raise NotYet("this machine has no public IPv4 address: give it one, or an Elastic IP")
    return found


def _of_task(environ: Mapping[str, str]) -> str:
    base = environ.get("ECS_CONTAINER_METADATA_URI_V4", "")
    if not base:
        raise Unknown("ECS_CONTAINER_METADATA_URI_V4 is not set, so this is no task of platform version 1.4.0 or newer")
    try:
        network = json.loads(_exchange("GET", base, urlsplit(base).path, "the task metadata") or "{}")["Networks"][0]
        mac, private = str(network["MACAddress"]), str(network["IPv4Addresses"][0])
    except (ValueError, LookupError, TypeError):
        raise Unknown("the task metadata name no network interface") from None
    found = _PUBLIC.search(_describe_interface(question(mac, private)))
    if found is None:
        raise NotYet("the task's network interface has no public IPv4 address: assignPublicIp must be ENABLED, in a public subnet")
    return found[1]


def question(mac: str, private: str) -> bytes:
    """The form of DescribeNetworkInterfaces. A private address alone may stand in several networks of an account; with the MAC it is one interface."""
    filters = {"Filter.1.Name": "mac-address", "Filter.1.Value.1": mac, "Filter.2.Name": "addresses.private-ip-address", "Filter.2.Value.1": private}
    return urlencode({"Action": "DescribeNetworkInterfaces", "Version": "2016-11-15", **filters}).encode()


def _describe_interface(body: bytes) -> str:
    """EC2's answer, XML."""
    region = settings.aws_region()
    url = (settings.aws_endpoint("ec2") or f"https://ec2.{region}.amazonaws.com").rstrip("/")
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    try:
        credentials = settings.aws_credentials()
    except OSError as error:
        raise Unknown(str(error).rstrip(".")) from None
    signed = sigv4.sign("POST", f"{url}/", headers, body, credentials=credentials, region=region, service="ec2", now=settings.now_ms() / 1000)
    answer = _exchange("POST", url, "/", "EC2's DescribeNetworkInterfaces", signed, body)
    return answer or ""


def _exchange(method: str, base: str, path: str, where: str, headers: Mapping[str, str] | None = None, body: bytes | None = None) -> str | None:
    """The body of a 200, None for a 404. No proxy: these hosts are never behind one."""
    parts = urlsplit(base)
    kind: Callable[..., http.client.HTTPConnection] = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        text = answer.read(1_000_000).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise Unknown(f"{where} cannot be reached ({type(error).__name__})") from None
    finally:
        connection.close()
    if answer.status not in (200, 404):
        raise Unknown(f"{where} answered {answer.status}")
    return text if answer.status == 200 else None


def _checked(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text.strip()))
    except ValueError:
        raise Unknown("what AWS told as the public address is no IPv4 address") from None
