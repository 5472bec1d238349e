"""The Lambda service of the laptop: runs each function in worker processes of its own over the Runtime API, as AWS does.

One event at a time per environment, warm reuse, cold starts on demand, SIGKILL on timeout. It knows nothing of gateways and queues.
Source: AWS Lambda developer guide, "Understanding the Lambda execution environment lifecycle" and "Runtime API".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
import uuid
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from functions.routes import Function
from local import runtime

ACCOUNT_ID: Final = "000000000000"
MAX_PAYLOAD_BYTES: Final = 6 * 1024 * 1024
_INIT_TIMEOUT_S: Final = 30  # AWS gives 10 s; a laptop under load gets more
_HAS_PROC: Final = Path("/proc/self/stat").exists()
_ROOT: Final = Path(__file__).resolve().parent.parent
_PATIENCE_S: Final = 0.02  # a burst on a laptop is over before a cold start would be; AWS starts at once
_PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


class FunctionError(Exception):
    """The function did not answer: it raised, crashed, timed out or could not start."""

    def __init__(self, error_type: str, message: str, stack_trace: Sequence[str] = ()) -> None:
        super().__init__(f"{error_type}: {message}")
        self.error_type, self.message, self.stack_trace = error_type, message, tuple(stack_trace)

    @classmethod
    def parse(cls, body: bytes) -> FunctionError:
        """The error a worker reported."""
        report = json.loads(body)
        return cls(report.get("errorType", "Unhandled"), report.get("errorMessage", ""), report.get("stackTrace", ()))


class _NeverStarted(FunctionError):
    """The environment died before it had read the event: another one may have it."""


@dataclass(slots=True)
class _Invocation:
    request_id: str
    payload: bytes
    deadline_ms: int
    answer: asyncio.Future[bytes]


@dataclass(slots=True, eq=False)
class _Environment:
    """One worker process and the event it has in hand."""

    key: str
    pool: _Pool
    ready: asyncio.Future[None]
    process: asyncio.subprocess.Process | None = None
    connection: _Connection | None = None
    invocation: _Invocation | None = None
    is_gone: bool = False
    has_hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    left_event_unread: bool = False

    def is_alive(self) -> bool:
        """Asks the kernel: the event loop may not have heard of a death yet."""
        if self.is_gone or self.process is None or self.process.returncode is not None or self.connection is None:
            return False
        return not _is_dying(self.process.pid)

    def deliver(self, invocation: _Invocation) -> None:
        self.invocation = invocation
        assert self.connection is not None
        headers = (
            f"Lambda-Runtime-Aws-Request-Id: {invocation.request_id}\r\nLambda-Runtime-Deadline-Ms: {invocation.deadline_ms}\r\n"
            f"Lambda-Runtime-Invoked-Function-Arn: {self.pool.arn}\r\nContent-Type: application/json\r\n"
        )
        self.connection.answer("200 OK", invocation.payload, headers)

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()


def _is_dying(pid: int) -> bool:
    """Whether a child of ours is dead or has a signal waiting that will kill it: proc_pid_stat(5), fields 3 and 31. Elsewhere than on Linux, no."""
    if not _HAS_PROC:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return True
    return fields[0] in (b"Z", b"X") or fields[28] != b"0"


@dataclass(slots=True, eq=False)
class _Pool:
    """The environments of one function: most recently used first, the longest waiter first."""

    service: Lambdas
    function: Function
    living: dict[str, _Environment] = field(default_factory=dict)
    idle: list[_Environment] = field(default_factory=list)
    waiters: deque[asyncio.Future[_Environment]] = field(default_factory=deque)
    starting: int = 0

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{self.service.region}:{ACCOUNT_ID}:function:{self.function.name}"

    async def acquire(self) -> _Environment:
        while self.idle:
            if (environment := self.idle.pop()).is_alive():
                return environment
            self.forget(environment)
        waiter: asyncio.Future[_Environment] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        if self.living:
            asyncio.get_running_loop().call_later(_PATIENCE_S, self.start_as_needed)
        else:
            self.start_as_needed()
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(waiter.result())
            raise

    def release(self, environment: _Environment) -> None:
        """The environment asked for its next event."""
        while self.waiters and environment.is_alive():
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_result(environment)
                return
        self.idle.append(environment)

    def start_as_needed(self) -> None:
        while self.starting < sum(not waiter.done() for waiter in self.waiters) and len(self.living) < self.service.max_environments:
            self.starting += 1
            key = f"{self.function.name}-{uuid.uuid4().hex[:8]}"
            environment = self.living[key] = _Environment(key, self, asyncio.get_running_loop().create_future())
            self.service.spawn_task(self._start(environment))

    async def _start(self, environment: _Environment) -> None:
        try:
            environment.process = await self.service.spawn(environment)
            self.service.spawn_task(self._watch(environment, environment.process))
            await asyncio.wait_for(environment.ready, _INIT_TIMEOUT_S)
        except (FunctionError, OSError, TimeoutError) as error:
            self._fail_first_waiter(error if isinstance(error, FunctionError) else FunctionError("Runtime.InitError", f"{type(error).__name__}: {error}"))
            environment.kill()
            self.forget(environment)
        finally:
            self.starting -= 1
            self.start_as_needed()

    def _fail_first_waiter(self, error: FunctionError) -> None:
        while self.waiters:
            waiter = self.waiters.popleft()
            if not waiter.done():
                waiter.set_exception(error)
                return

    async def _watch(self, environment: _Environment, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        if environment.connection is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(environment.has_hung_up.wait(), 1)
        how = f"signal: {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        how = "signal: killed" if status == -signal.SIGKILL else how
        request = f"RequestId: {environment.invocation.request_id} " if environment.invocation else ""
        kind = _NeverStarted if environment.left_event_unread else FunctionError
        error = kind("Runtime.ExitError", f"{request}Error: Runtime exited with error: {how}")
        if not environment.ready.done():
            environment.ready.set_exception(error)
        if environment.invocation is not None and not environment.invocation.answer.done():
            environment.invocation.answer.set_exception(error)
        self.forget(environment)
        self.start_as_needed()

    def forget(self, environment: _Environment) -> None:
        environment.is_gone = True
        self.living.pop(environment.key, None)
        if environment in self.idle:
            self.idle.remove(environment)


class _Connection(asyncio.Protocol):
    """One worker's keep-alive connection: HTTP/1.1 with Content-Length, which is all the runtime loop speaks."""

    def __init__(self, service: Lambdas) -> None:
        self._service = service
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self.environment: _Environment | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it

    def connection_lost(self, exc: Exception | None) -> None:
        if self.environment is not None:  # its process is dead or dying; the watcher tells the rest
            self.environment.left_event_unread |= isinstance(exc, ConnectionError)  # a peer that closes with bytes unread resets (RFC 2525, 2.17)
            self.environment.connection = None
            self.environment.has_hung_up.set()

    def eof_received(self) -> None:
        """The process closed; when we wrote after that, the reset waits behind the end of the stream."""
        if self.environment is not None and self._transport is not None:
            error = self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.environment.left_event_unread = error != 0

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            lines = self._buffer[:end].decode("latin-1").split("\r\n")
            length = next((int(line[15:]) for line in lines[1:] if line[:15].lower() == "content-length:"), 0)
            if len(self._buffer) < end + 4 + length:
                return
            body = bytes(self._buffer[end + 4 : end + 4 + length])
            del self._buffer[: end + 4 + length]
            self._service.receive(self, lines[0].split(" ")[1], body)

    def answer(self, status: str, body: bytes, headers: str = "") -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)


class Lambdas:
    """Invokes functions by name. `environment` is what every function's process sees beside Lambda's own variables; nothing else is passed on."""

    def __init__(
        self, functions: Sequence[Function], *, environment: Mapping[str, str], log_dir: Path, max_environments: int = 4, in_process: bool = False
    ) -> None:
        self.max_environments = max_environments
        self.region = environment.get("AWS_REGION", "eu-central-1")
        self._environment = dict(environment)
        self._log_dir = log_dir
        self._in_process = in_process
        self._pools = {function.name: _Pool(self, function) for function in functions}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._address = ""

    async def start(self) -> None:
        """Open the Runtime API; no function is started yet."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        if self._in_process:
            os.environ.update(self._environment)
            return
        self._server = await asyncio.get_running_loop().create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self._address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def invoke(self, name: str, event: object) -> object:
        """The function's answer to this event. Raises FunctionError; KeyError for a function that does not exist."""
        pool, payload, request_id = self._pools[name], runtime.serialize(event), str(uuid.uuid4())
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise FunctionError("RequestEntityTooLargeException", f"Request must be smaller than {MAX_PAYLOAD_BYTES} bytes for the InvokeFunction operation")
        if self._in_process:
            return await asyncio.to_thread(self._call, pool, payload, request_id)
        while True:
            try:
                body = await self._run(pool, payload, request_id)
                break
            except _NeverStarted:
                continue
        if len(body) > MAX_PAYLOAD_BYTES:
            raise FunctionError("Function.ResponseSizeTooLarge", f"Response payload size exceeded maximum allowed payload size ({MAX_PAYLOAD_BYTES} bytes).")
        return json.loads(body)

    async def _run(self, pool: _Pool, payload: bytes, request_id: str) -> bytes:
        environment = await pool.acquire()
        loop, timeout_s, started = asyncio.get_running_loop(), pool.function.timeout_s, time.perf_counter()
        invocation = _Invocation(request_id, payload, time.time_ns() // 1_000_000 + timeout_s * 1000, loop.create_future())
        deadline = loop.call_later(timeout_s, self._time_out, environment, invocation)
        environment.deliver(invocation)

        def settle(answer: asyncio.Future[bytes]) -> None:
            deadline.cancel()
            answer.exception()  # looked at here, because a caller who gave up will not

        invocation.answer.add_done_callback(settle)
        try:
            return await asyncio.shield(invocation.answer)  # a caller who gives up does not stop the function
        finally:
            self._log(pool, f"REPORT RequestId: {request_id}\tDuration: {(time.perf_counter() - started) * 1000:.2f} ms\n")

    async def warm(self, names: Iterable[str]) -> None:
        """Start one environment of each of these functions; raises FunctionError when one cannot start."""
        if self._in_process:
            return
        together = asyncio.Semaphore(max(2, os.cpu_count() or 1))

        async def one(pool: _Pool) -> None:
            async with together:
                pool.release(await pool.acquire())

        await asyncio.gather(*(one(self._pools[name]) for name in names))

    def pids(self) -> dict[str, list[int]]:
        """The living worker processes of each function."""
        return {name: [e.process.pid for e in pool.living.values() if e.process and e.process.returncode is None] for name, pool in self._pools.items()}

    async def close(self) -> None:
        """Kill every environment; invokes in flight fail."""
        self.max_environments = 0
        environments = [environment for pool in self._pools.values() for environment in pool.living.values()]
        for environment in environments:
            environment.kill()
        for pool in self._pools.values():
            for waiter in pool.waiters:
                waiter.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        for environment in environments:
            if environment.connection is not None:
                environment.connection.environment = None
        if self._server is not None:
            self._server.close()

    def receive(self, connection: _Connection, path: str, body: bytes) -> None:
        """One request of a worker to the Runtime API."""
        key, _, call = path.strip("/").partition("/2018-06-01/runtime/")
        pool = self._pools.get(key.rpartition("-")[0])
        environment = pool.living.get(key) if pool else None
        if pool is None or environment is None:
            connection.answer("403 Forbidden", b"{}")
            return
        connection.environment, environment.connection = environment, connection
        if call == "invocation/next":
            if not environment.ready.done():
                environment.ready.set_result(None)
            environment.invocation = None
            pool.release(environment)
        elif call == "init/error":
            connection.answer("202 Accepted", b"{}")
            if not environment.ready.done():
                environment.ready.set_exception(FunctionError.parse(body))
        else:
            self._finish(environment, call, body)
            connection.answer("202 Accepted", b'{"status":"OK"}')

    @staticmethod
    def _finish(environment: _Environment, call: str, body: bytes) -> None:
        invocation = environment.invocation
        _, _, rest = call.partition("/")
        request_id, _, kind = rest.partition("/")
        if invocation is None or invocation.request_id != request_id or invocation.answer.done():
            return
        if kind == "response":
            invocation.answer.set_result(body)
        else:
            invocation.answer.set_exception(FunctionError.parse(body))

    def _time_out(self, environment: _Environment, invocation: _Invocation) -> None:
        if invocation.answer.done():
            return
        timeout_s = environment.pool.function.timeout_s
        message = f"RequestId: {invocation.request_id} Error: Task timed out after {timeout_s:.2f} seconds"
        invocation.answer.set_exception(FunctionError("Sandbox.Timedout", message))
        self._log(environment.pool, f"{message}\n")
        environment.kill()

    async def spawn(self, environment: _Environment) -> asyncio.subprocess.Process:
        """A new worker process; its output goes to the function's log."""
        with self._log_path(environment.pool).open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-m", "local.runtime",
                cwd=_ROOT, env=self._variables(environment), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _variables(self, environment: _Environment) -> dict[str, str]:
        function = environment.pool.function
        passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        return (
            passed_on | self._environment | self._lambda_variables(function, environment.key) | {"AWS_LAMBDA_RUNTIME_API": f"{self._address}/{environment.key}"}
        )

    def _lambda_variables(self, function: Function, key: str) -> dict[str, str]:
        return {
            "_HANDLER": function.handler,
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": f"[$LATEST]{key}",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "LAMBDA_TASK_ROOT": str(_ROOT),
            "TZ": ":UTC",
        }

    def _call(self, pool: _Pool, payload: bytes, request_id: str) -> object:
        """Without a process of its own, for a debugger: no timeout, no isolation."""
        deadline_ms = time.time_ns() // 1_000_000 + pool.function.timeout_s * 1000
        context = runtime.Context(request_id, deadline_ms, self._lambda_variables(pool.function, "in-process"), arn=pool.arn)
        try:
            return json.loads(runtime.serialize(runtime.load(pool.function.handler)(json.loads(payload), context)))
        except Exception as error:
            raise FunctionError.parse(runtime.serialize(runtime.report(error))) from error

    def _log_path(self, pool: _Pool) -> Path:
        return self._log_dir / f"{pool.function.name}.log"

    def _log(self, pool: _Pool, line: str) -> None:
        with self._log_path(pool).open("a") as log:
            log.write(line)

    def spawn_task(self, work: Coroutine[object, object, None]) -> None:
        """Keep the task until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
