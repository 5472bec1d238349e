"""The local Lambda service. What the real one does: AWS Lambda developer guide, execution environment lifecycle, Runtime API, Python context object."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from local.lambdas import FunctionError, Lambdas
from tests.contract.toys import Toy

TOYS = (Toy("worker", "Does as told.", (), (), memory_mb=256, timeout_s=1), Toy("broken", "Cannot start.", (), ()), Toy("missing", "Is not there.", (), ()))
ENVIRONMENT = {"AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "secret", "HELIOGRAPH_STAGE": "local"}


@pytest.fixture
async def lambdas(tmp_path: Path) -> AsyncIterator[Lambdas]:
    service = Lambdas(TOYS, environment=ENVIRONMENT, log_dir=tmp_path, max_environments=2)
    await service.start()
    yield service
    await service.close()


async def _until_dead(pid: int) -> None:
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"process {pid} is still there")


async def _invoke(lambdas: Lambdas, **event: object) -> Any:
    return await lambdas.invoke("worker", event)


async def test_an_environment_is_used_again_and_handles_one_event_at_a_time(lambdas: Lambdas) -> None:
    """Lambda developer guide, "Understanding the Lambda execution environment lifecycle": warm environments keep their state."""
    first, second = await _invoke(lambdas), await _invoke(lambdas, text="grüß")
    assert (first["pid"], first["calls"], second["calls"]) == (second["pid"], 1, 2)
    assert second["echo"] == {"text": "grüß"}
    await asyncio.gather(*(_invoke(lambdas, do="sleep", s=0.3) for _ in range(2)))  # now both are warm: none is late by its start
    together = await asyncio.gather(*(_invoke(lambdas, do="sleep", s=0.3) for _ in range(4)))
    assert sorted(answer["pid"] for answer in together) == sorted(lambdas.pids()["worker"] * 2)
    assert len(lambdas.pids()["worker"]) == 2


async def test_the_environment_holds_lambdas_variables_and_nothing_of_the_parent(lambdas: Lambdas, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lambda developer guide, "Defined runtime environment variables"."""
    monkeypatch.setenv("PARENT_SECRET", "x")
    found = await _invoke(lambdas, do="environment")
    variables = found["environment"]
    assert variables["AWS_LAMBDA_FUNCTION_NAME"] == "worker"
    assert variables["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "256"
    assert variables["_HANDLER"] == "tests.contract.toys.worker.handler"
    assert variables["AWS_LAMBDA_RUNTIME_API"].startswith("127.0.0.1:")
    assert ENVIRONMENT.items() <= variables.items()
    assert "PARENT_SECRET" not in variables
    assert not any(name.startswith("PYTEST") for name in variables)
    root = str(Path(__file__).parents[2])
    assert found["path"][0] == root
    assert not any(path.startswith(f"{root}/functions") for path in found["path"])


async def test_the_context_is_lambdas(lambdas: Lambdas) -> None:
    """Lambda developer guide, "Using the Lambda context object to retrieve Python function information"."""
    context = await _invoke(lambdas, do="context")
    assert context["function_name"] == "worker"
    assert context["function_version"] == "$LATEST"
    assert context["invoked_function_arn"] == "arn:aws:lambda:eu-central-1:000000000000:function:worker"
    assert context["memory_limit_in_mb"] == "256"
    assert context["log_group_name"] == "/aws/lambda/worker"
    assert len(context["aws_request_id"]) == 36
    assert 500 < context["remaining_ms"] <= 1000
    assert context["client_context"] is None


async def test_an_exception_is_reported_with_type_message_and_trace(lambdas: Lambdas, tmp_path: Path) -> None:
    """Lambda developer guide, "Python function errors": errorType, errorMessage, stackTrace; the environment lives on."""
    with pytest.raises(FunctionError) as caught:
        await _invoke(lambdas, do="raise")
    assert (caught.value.error_type, caught.value.message) == ("LookupError", "nobody there")
    assert "worker.py" in caught.value.stack_trace[0]
    assert (await _invoke(lambdas))["calls"] == 2
    assert "[ERROR] LookupError: nobody there" in (tmp_path / "worker.log").read_text()


async def test_an_answer_that_is_not_json_is_a_marshal_error(lambdas: Lambdas) -> None:
    """awslambdaric: Runtime.MarshalError."""
    with pytest.raises(FunctionError) as caught:
        await _invoke(lambdas, do="set")
    assert caught.value.error_type == "Runtime.MarshalError"


async def test_a_timeout_kills_the_process(lambdas: Lambdas) -> None:
    """Lambda developer guide, "Configure Lambda function timeout": "Task timed out after N seconds"."""
    first = await _invoke(lambdas)
    with pytest.raises(FunctionError, match=r"Task timed out after 1\.00 seconds"):
        await _invoke(lambdas, do="sleep", s=30)
    second = await _invoke(lambdas)
    assert second["pid"] != first["pid"]
    await _until_dead(first["pid"])


async def test_a_caller_who_gives_up_does_not_stop_the_function(lambdas: Lambdas) -> None:
    """API Gateway's integration timeout ends the request, not the function: it runs on to its own timeout, and its environment stays."""
    first = await _invoke(lambdas)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(_invoke(lambdas, do="sleep", s=0.3), 0.05)
    await asyncio.sleep(0.4)
    assert await _invoke(lambdas) == {"echo": {}, "pid": first["pid"], "calls": 3}


@pytest.mark.parametrize(("do", "how"), [("exit", "exit status 3"), ("kill", "signal: killed")])
async def test_a_crash_fails_its_invoke_only(lambdas: Lambdas, do: str, how: str) -> None:
    """Lambda answers Runtime.ExitError when the runtime process ends during an invoke, and starts a fresh environment for the next one."""
    with pytest.raises(FunctionError, match=how) as caught:
        await _invoke(lambdas, do=do)
    assert caught.value.error_type == "Runtime.ExitError"
    assert (await _invoke(lambdas))["calls"] == 1


async def test_an_environment_killed_while_idle_is_replaced_unnoticed(lambdas: Lambdas) -> None:
    """Lambda may reclaim an idle environment at any time; callers see a cold start, not an error."""
    for _ in range(3):
        first = await _invoke(lambdas)
        os.kill(first["pid"], signal.SIGKILL)
        assert (await _invoke(lambdas))["pid"] != first["pid"]


async def test_a_function_that_cannot_start_says_why(lambdas: Lambdas) -> None:
    """awslambdaric: Runtime.ImportModuleError through /runtime/init/error."""
    with pytest.raises(FunctionError, match="no_such_module") as caught:
        await lambdas.invoke("broken", {})
    assert caught.value.error_type == "Runtime.ImportModuleError"
    with pytest.raises(FunctionError):
        await lambdas.warm(["worker", "missing"])
    assert lambdas.pids()["broken"] == []


async def test_logs_of_a_function_stand_in_its_file(lambdas: Lambdas, tmp_path: Path) -> None:
    """CloudWatch gets what a function prints and logs; here it is one file per function."""
    await _invoke(lambdas, do="log")
    log = (tmp_path / "worker.log").read_text()
    assert "a printed line\n" in log
    assert "[WARNING]\t" in log
    assert "a logged line" in log
    assert "REPORT RequestId: " in log


async def test_a_payload_above_six_megabytes_is_refused(lambdas: Lambdas) -> None:
    """Lambda quotas: 6 MB for synchronous invocation, request and response each."""
    with pytest.raises(FunctionError, match="smaller than 6291456 bytes"):
        await _invoke(lambdas, text="x" * 6 * 1024 * 1024)


async def test_in_process_gives_the_same_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a debugger: same events, same errors, no process."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    service = Lambdas(TOYS, environment=ENVIRONMENT, log_dir=tmp_path, in_process=True)
    await service.start()
    answer: Any = await service.invoke("worker", {"a": 1})
    assert (answer["echo"], answer["pid"]) == ({"a": 1}, os.getpid())
    with pytest.raises(FunctionError, match="nobody there"):
        await service.invoke("worker", {"do": "raise"})
    await service.close()


async def test_no_process_outlives_the_service(tmp_path: Path) -> None:
    """Nothing of the laptop's cloud stays behind."""
    service = Lambdas(TOYS, environment=ENVIRONMENT, log_dir=tmp_path)
    await service.start()
    await service.warm(["worker"])
    (pid,) = service.pids()["worker"]
    await service.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_all_of_it_runs_on_uvloop_too(tmp_path: Path) -> None:
    """The laptop's cloud runs on uvloop where there is one; its transports are of another family."""
    uvloop = pytest.importorskip("uvloop")

    async def scenario() -> None:
        service = Lambdas(TOYS, environment=ENVIRONMENT, log_dir=tmp_path)
        await service.start()
        for _ in range(3):
            first: Any = await service.invoke("worker", {})
            os.kill(first["pid"], signal.SIGKILL)
        with pytest.raises(FunctionError, match="signal: killed"):
            await service.invoke("worker", {"do": "kill"})
        await service.close()

    uvloop.run(scenario())
