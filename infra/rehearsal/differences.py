"""Where MiniStack's API Gateway differs from AWS's, found by the contract tests of the local gateway, which say what AWS documents.

A test that fails there and is not named here fails the rehearsal. docs/deploy-rehearsal.md lists all of this; a test compares the two.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from infra.rehearsal import outcomes
from infra.rehearsal.gateway import ENDPOINT_ENVIRONMENT, PORT_ENVIRONMENT
from infra.rehearsal.tools import clean_environment, run

SUITES: Final = ("tests/contract/test_gateway_sockets.py", "tests/contract/test_gateway_http.py", "tests/contract/test_gateway_connections.py")
RUN_S: Final = 180.0
ONE_TEST_S: Final = 4  # some wait for a frame that never comes

# test -> why it cannot be asked of another gateway
NOT_ASKED: Final = {
    "test_a_slow_function_is_a_timeout_frame": "It shortens a quota, which only the local gateway allows.",
    "test_a_slow_function_is_503": "It shortens a quota, which only the local gateway allows.",
    "test_too_large_a_body_is_413": "It lowers a quota, which only the local gateway allows.",
    "test_closing_the_gateway_closes_every_socket_and_tells_disconnect": "It is about the end of our own process.",
    "test_a_client_that_does_not_read_is_429": "It sends 64 MB to find the end of a buffer; MiniStack's has none.",
}

# test -> what MiniStack 1.5.33 does instead of what the test says of AWS
DIFFERENCES: Final = {
    "test_connect_has_headers_query_and_the_common_context": "The headers of a $connect event have their names in lower case.",
    "test_query_fields_are_absent_when_there_is_no_query": "Without a query, queryStringParameters is there and null.",
    "test_a_message_has_no_headers_and_no_query": "connectedAt is the time of each event, not that of the connection.",
    "test_disconnect_tells_how_the_socket_closed": "The client's close code and reason are lost: $disconnect always says 1006.",
    "test_the_route_is_selected_by_action": "An action called $connect invokes the $connect route.",
    "test_without_a_default_route_the_client_gets_forbidden": "A message that matches no route gets no answer.",
    "test_a_route_without_a_route_response_answers_nothing": "The function's body is sent to the client although the route has no route response.",
    "test_an_error_of_the_function_is_an_error_frame": "A failing function sends its own error text to the client, and an answer without a body sends nothing.",
    "test_messages_of_one_connection_run_concurrently": "The messages of one connection run one after another.",
    "test_the_authorizer_sees_the_handshake_and_its_context_stands_in_every_later_event": "The authorizer's headers have their names in lower case.",
    "test_what_the_authorizer_says_counts": "A nested context passes; the HTTP API's error bodies have a space after the colon.",
    "test_connect_decides_over_the_handshake": "A refusal by $connect is 403 whatever its status, and an answer of nothing opens the socket.",
    "test_another_stage_is_forbidden": "An unknown stage is not refused as such: the authorizer's check comes first.",
    "test_the_subprotocol_is_the_one_connect_returns": "The subprotocol that $connect returns is not sent to the client.",
    "test_a_frame_above_32_kb_closes_with_1009": "A frame of more than 32 KB passes.",
    "test_a_message_of_128_kb_in_frames_passes_and_a_larger_one_closes_with_1009": "A message of more than 128 KB passes.",
    "test_a_binary_frame_closes_with_1003": "A binary frame is decoded and passes as text.",
    "test_the_event_is_payload_2_0": "Cookies stay in the headers and not in `cookies`.",
    "test_binary_bodies_come_as_base64": "JSON under a vendor's media type comes as base64, and invalid UTF-8 as text.",
    "test_literal_routes_win_over_parameters": "Without path parameters, pathParameters is there and null.",
    "test_an_unknown_route_is_404": "OPTIONS without an Origin is 403.",
    "test_both_forms_of_an_answer": "An answer without a content type is application/json, and inferred JSON has spaces.",
    "test_a_malformed_answer_is_500": "A body or headers of the wrong form pass.",
    "test_a_function_error_is_500": "A failing function is 502, with its error in the body.",
    "test_request_line_and_header_values_have_10_240_bytes_and_one_more_is_431": "Request line and headers of more than 10,240 bytes pass.",
    "test_cors_headers_stand_on_every_answer_and_the_functions_own_are_ignored": "401 and 404 carry no CORS headers.",
    "test_get_describes_the_connection": "GetConnection answers with capital letters, which AWS's clients do not read.",
    "test_a_connection_that_closed_or_never_was_is_gone": "A post within half a second after the close is taken.",
    "test_a_malformed_id_is_400": "A connection id of the wrong form is 410.",
    "test_more_than_128_kb_is_413": "A post of more than 128 KB is taken.",
    "test_a_wrong_or_missing_signature_is_403": "Signatures of the callback API are not checked.",
}


def name_of(test: str) -> str:
    """`tests/…py::test_x[a]` -> `test_x`."""
    return test.rpartition("::")[2].partition("[")[0] if "::" in test else test


def ask(folder: Path, name: str, tests: Sequence[str], gateway_url: str | None, port: int) -> list[dict[str, Any]]:
    """Run the tests; one row each, as `outcomes` writes it. Without a URL they ask the local gateway."""
    found = folder / f"{name}.json"
    found.unlink(missing_ok=True)
    environment = clean_environment() | {outcomes.FILE_ENVIRONMENT: str(found)}
    if gateway_url:
        environment |= {ENDPOINT_ENVIRONMENT: gateway_url, PORT_ENVIRONMENT: str(port)}
    deselected = " and ".join(f"not {each}" for each in NOT_ASKED)
    command = [sys.executable, "-m", "pytest", "-p", "infra.rehearsal.outcomes", *tests, f"--timeout={ONE_TEST_S}", "--tb=no", "-k", deselected]
    run(command, folder / f"{name}.log", timeout_s=RUN_S, environment=environment)
    rows: list[dict[str, Any]] = json.loads(found.read_text()) if found.exists() else []
    return rows


def table(local: Sequence[dict[str, Any]], ministack: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a test: what AWS documents, what both gateways do."""
    passed_here = {row["test"]: row["passed"] for row in local}
    return [
        {
            "test": row["test"].rpartition("::")[2],
            "aws_documents": row["aws"],
            "local": "as AWS" if passed_here.get(row["test"]) else "differs",
            "ministack": "as AWS" if row["passed"] else DIFFERENCES.get(name_of(row["test"]), "differs"),
            **({} if row["passed"] else {"said": row["said"]}),
        }
        for row in ministack
    ]


def unknown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The tests that fail without standing in the list."""
    return [row["test"] for row in rows if not row["passed"] and name_of(row["test"]) not in DIFFERENCES]


def vanished(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Listed differences of which nothing was seen: the list may be shortened."""
    return sorted(DIFFERENCES.keys() - {name_of(row["test"]) for row in rows if not row["passed"]})
