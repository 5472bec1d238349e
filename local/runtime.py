"""The loop inside one Lambda environment: fetches events from the Runtime API, calls the handler, posts what it returns.

Standard library only, so that what a function imports is what the function wrote. Run as `python -m local.runtime` in the repository root.
Source: AWS Lambda developer guide, "Using the Lambda runtime API for custom runtimes"; error names are those of awslambdaric.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from http.client import HTTPConnection, HTTPException
from types import SimpleNamespace, TracebackType
from typing import Any

Handler = Callable[[Any, "Context"], object]


class InitError(Exception):
    """The handler could not be loaded. `error_type` is what AWS reports."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


class Context:
    """What a handler gets as its second argument."""

    def __init__(self, request_id: str, deadline_ms: int, environment: Mapping[str, str], *, arn: str, client_context: str | None = None) -> None:
        self.aws_request_id = request_id
        self.invoked_function_arn = arn
        self.function_name = environment["AWS_LAMBDA_FUNCTION_NAME"]
        self.function_version = environment["AWS_LAMBDA_FUNCTION_VERSION"]
        self.memory_limit_in_mb = environment["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]
        self.log_group_name = environment["AWS_LAMBDA_LOG_GROUP_NAME"]
        self.log_stream_name = environment["AWS_LAMBDA_LOG_STREAM_NAME"]
        self.identity = SimpleNamespace(cognito_identity_id=None, cognito_identity_pool_id=None)
        self.client_context: object = json.loads(client_context) if client_context else None
        self._deadline_ms = deadline_ms

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the platform kills this environment."""
        return max(0, self._deadline_ms - time.time_ns() // 1_000_000)


def load(handler: str) -> Handler:
    """The callable named by a handler string such as `functions.signal.handler.handler`."""
    module_name, _, name = handler.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InitError("Runtime.ImportModuleError", f"Unable to import module '{module_name}': {error}") from error
    except SyntaxError as error:
        raise InitError("Runtime.UserCodeSyntaxError", f"Syntax error in module '{module_name}': {error}") from error
    found: Handler | None = getattr(module, name, None)
    if found is None:
        raise InitError("Runtime.HandlerNotFound", f"Handler '{name}' missing on module '{module_name}'")
    return found


def report(error: BaseException) -> dict[str, object]:
    """The error as the Runtime API takes it: errorType, errorMessage, stackTrace without this file's own frames."""
    error_type = error.error_type if isinstance(error, InitError) else type(error).__name__
    return {"errorType": error_type, "errorMessage": str(error), "stackTrace": traceback.format_list(traceback.extract_tb(_theirs(error)))}


def _theirs(error: BaseException) -> TracebackType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def serialize(answer: object) -> bytes:
    """The handler's answer as JSON; raises TypeError or ValueError when it is not of JSON's types."""
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


class _RuntimeApi:
    def __init__(self, address: str) -> None:
        host, _, key = address.partition("/")
        self._connection = HTTPConnection(host)
        self._path = f"/{key}/2018-06-01/runtime" if key else "/2018-06-01/runtime"

    def next(self) -> tuple[Mapping[str, str], bytes]:
        """The next event; waits for it."""
        return self._ask("GET", "/invocation/next", None)

    def post(self, path: str, body: bytes) -> None:
        """An answer or an error."""
        self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[Mapping[str, str], bytes]:
        self._connection.request(method, self._path + path, body)
        response = self._connection.getresponse()
        return {name.lower(): value for name, value in response.getheaders()}, response.read()


class _Lines(logging.Formatter):
    """Lambda's own text format; the request id is that of the event in hand."""

    request_id = ""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"[{record.levelname}]\t{stamp}.{int(record.msecs):03d}Z\t{self.request_id}\t{super().format(record)}"


def _serve_one(api: _RuntimeApi, handler: Handler, lines: _Lines) -> None:
    headers, payload = api.next()
    request_id = lines.request_id = headers["lambda-runtime-aws-request-id"]
    os.environ["_X_AMZN_TRACE_ID"] = headers.get("lambda-runtime-trace-id", "")
    deadline_ms, arn = int(headers["lambda-runtime-deadline-ms"]), headers["lambda-runtime-invoked-function-arn"]
    try:
        context = Context(request_id, deadline_ms, os.environ, arn=arn, client_context=headers.get("lambda-runtime-client-context"))
        answer = handler(json.loads(payload), context)
    except Exception as error:
        _fail(api, f"/invocation/{request_id}/error", report(error))
        return
    try:
        body = serialize(answer)
    except (TypeError, ValueError) as error:
        message = f"Unable to marshal response: {error}"
        _fail(api, f"/invocation/{request_id}/error", {"errorType": "Runtime.MarshalError", "errorMessage": message, "stackTrace": []})
        return
    api.post(f"/invocation/{request_id}/response", body)


def _fail(api: _RuntimeApi, path: str, error: dict[str, object]) -> None:
    trace = error["stackTrace"]
    print(f"[ERROR] {error['errorType']}: {error['errorMessage']}", *(trace if isinstance(trace, list) else ()), sep="\n", file=sys.stderr, flush=True)
    api.post(path, serialize(error))


def main() -> None:
    """Serve events until the platform hangs up."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    lines, to_stderr = _Lines("%(message)s"), logging.StreamHandler()
    to_stderr.setFormatter(lines)
    logging.getLogger().addHandler(to_stderr)
    api = _RuntimeApi(os.environ["AWS_LAMBDA_RUNTIME_API"])
    try:
        handler = load(os.environ["_HANDLER"])
    except Exception as error:
        _fail(api, "/init/error", report(error))
        sys.exit(1)
    try:
        while True:
            _serve_one(api, handler, lines)
    except (OSError, HTTPException, KeyboardInterrupt):
        sys.exit(0)  # the platform went away; there is nobody left to tell


if __name__ == "__main__":
    main()
