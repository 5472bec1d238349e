"""The route table against the routes that were really deployed, in both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from functions.routes import Function, Http, Socket
from infra.rehearsal.inventory import items


@dataclass(frozen=True, slots=True)
class Deployed:
    """One route as API Gateway has it: which handler answers, and whether an authorizer is asked before."""

    handler: str
    is_guarded: bool


def expected(functions: Sequence[Function]) -> dict[str, Deployed]:
    """What the route table wants, by route key; a WebSocket route's key has no method, so the two APIs cannot meet."""
    wanted: dict[str, Deployed] = {}
    for function in functions:
        for route in function.routes:
            match route:
                case Http():
                    wanted[route.key] = Deployed(function.handler, route.scope is not None)
                case Socket():
                    wanted[route.key] = Deployed(function.handler, route.key == "$connect")
                case _:
                    pass
    return wanted


def deployed(session: Any, names: Sequence[str]) -> dict[str, Deployed]:
    """Every route of the APIs of these names."""
    handlers = {function["FunctionArn"]: function["Handler"] for function in items(session, "lambda", "list_functions", "Functions")}
    found: dict[str, Deployed] = {}
    for api in items(session, "apigatewayv2", "get_apis", "Items"):
        if api["Name"] not in names:
            continue
        uris = {
            each["IntegrationId"]: each.get("IntegrationUri", "") for each in items(session, "apigatewayv2", "get_integrations", "Items", ApiId=api["ApiId"])
        }
        for route in items(session, "apigatewayv2", "get_routes", "Items", ApiId=api["ApiId"]):
            uri = uris.get(str(route.get("Target", "")).removeprefix("integrations/"), "")
            found[route["RouteKey"]] = Deployed(_handler(uri, handlers), route.get("AuthorizationType", "NONE") == "CUSTOM")
    return found


def _handler(uri: str, handlers: Mapping[str, str]) -> str:
    """The handler behind an integration's URI, which holds the function's ARN with or without a version."""
    fitting = [arn for arn in handlers if arn in uri]
    return handlers[max(fitting, key=len)] if fitting else ""


def drift(wanted: Mapping[str, Deployed], found: Mapping[str, Deployed]) -> list[str]:
    """A sentence for each route that is missing, too many, or other than the table says."""
    sentences = [f"{key} stands in functions/routes.py and is not deployed." for key in sorted(wanted.keys() - found.keys())]
    sentences += [f"{key} is deployed and does not stand in functions/routes.py." for key in sorted(found.keys() - wanted.keys())]
    for key in sorted(wanted.keys() & found.keys()):
        if wanted[key].handler != found[key].handler:
            sentences.append(f"{key} is answered by {found[key].handler or 'no function of ours'} instead of {wanted[key].handler}.")
        if wanted[key].is_guarded != found[key].is_guarded:
            sentences.append(f"{key} {'has no authorizer' if wanted[key].is_guarded else 'has an authorizer although it is public'}.")
    return sentences
