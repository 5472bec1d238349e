"""The function behind the custom resource of `image.py`: starts CodeBuild, waits, and tells CloudFormation how it ended. It stands in the template.

Source: CloudFormation user guide, "Custom resource request and response reference".
"""

import json
import time
import urllib.request
from typing import Any

import boto3

POLL_S = 5
LEFT_MS = 20_000  # of our own time, for stopping the build and answering
SHOWN = 900  # characters of a reason; an answer may have 4096 bytes


def handler(event: dict[str, Any], context: Any) -> None:
    reason = ""
    if event["RequestType"] != "Delete":  # the images go with their repository
        try:
            reason = build(event["ResourceProperties"], context)
        except Exception as error:  # the process edge: without an answer CloudFormation waits for its own time-out
            reason = repr(error)
    answer(event, reason)


def build(asked: dict[str, str], context: Any) -> str:
    """Empty when the image is there, else why not."""
    client = boto3.client("codebuild")
    tag = [{"name": "TAG", "value": asked["Tag"], "type": "PLAINTEXT"}]
    found = client.start_build(projectName=asked["Project"], environmentVariablesOverride=tag)["build"]
    while found["buildStatus"] == "IN_PROGRESS":
        if context.get_remaining_time_in_millis() < LEFT_MS:
            client.stop_build(id=found["id"])
            return f"the build took too long and was stopped; its log: {log_of(found)}"
        time.sleep(POLL_S)
        found = client.batch_get_builds(ids=[found["id"]])["builds"][0]
    if found["buildStatus"] == "SUCCEEDED":
        return ""
    said = [context["message"] for phase in found.get("phases", []) for context in phase.get("contexts", []) if context.get("message")]
    return f"the build ended with {found['buildStatus']}: {'; '.join(said)[:SHOWN]} Its log: {log_of(found)}"


def log_of(found: dict[str, Any]) -> str:
    return str(found.get("logs", {}).get("deepLink", "CodeBuild's console"))


def answer(event: dict[str, Any], reason: str) -> None:
    body = {
        "Status": "FAILED" if reason else "SUCCESS",
        "Reason": reason or "done",
        "PhysicalResourceId": event.get("PhysicalResourceId", "heliograph-fleet-image"),
        **{name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")},
    }
    data = json.dumps(body).encode()
    # CloudFormation's own URL, signed for no type
    request = urllib.request.Request(event["ResponseURL"], data=data, method="PUT", headers={"Content-Type": ""})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10):  # noqa: S310
        print(json.dumps({"event": "answered", "status": body["Status"], "reason": body["Reason"]}))
