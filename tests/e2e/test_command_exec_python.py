"""Python applications under `emp-pipe exec`: instrumented where OpenTelemetry is installed, one trace across two, job_id on all of it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.command import ROOT, environment
from tests.support.execution import SHOW, execute
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_grpc_endpoint import OtlpGrpcEndpoint
from tests.support.otlp_seen import logs, metrics, spans
from tests.support.two_services import JOB, assert_nothing_else_has_the_job, assert_one_trace_of_the_job, run_both

PYTHON = sys.executable
TELL = "import json, sys; print(json.dumps([sys.path, sorted(sys.modules)]))"


# --- one trace ------------------------------------------------------------------------------------------------------------------


async def test_two_applications_make_one_trace_with_the_job_on_every_span_and_log() -> None:
    async with OtlpEndpoint() as endpoint:
        await asyncio.to_thread(run_both, ["--endpoint", endpoint.url])
        assert endpoint.violations == []
        assert_one_trace_of_the_job(endpoint.received)


async def test_the_same_over_grpc() -> None:
    async with OtlpGrpcEndpoint() as endpoint:
        await asyncio.to_thread(run_both, ["--protocol", "grpc", "--endpoint", endpoint.url])
        assert endpoint.violations == []
        assert_one_trace_of_the_job(endpoint.received)


async def test_outside_a_job_nothing_has_its_id_and_other_baggage_is_never_copied() -> None:
    async with OtlpEndpoint() as endpoint:
        await asyncio.to_thread(run_both, ["--endpoint", endpoint.url])
        assert_nothing_else_has_the_job(endpoint.received)


async def test_metrics_leave_when_the_application_ends() -> None:
    async with OtlpEndpoint() as endpoint:
        await asyncio.to_thread(run_both, ["--endpoint", endpoint.url])
        (renders,) = (row for row in metrics(endpoint.received) if row.name == "renders")
    assert renders.resource["worker_id"] == "gpu-7f3a-worker-1"
    assert renders.row.sum.data_points[0].as_int == 1


async def test_the_keys_that_are_copied_can_be_chosen() -> None:
    async with OtlpEndpoint() as endpoint:
        await asyncio.to_thread(run_both, ["--endpoint", endpoint.url], EMP_OTEL_BAGGAGE_KEYS="user_id, tenant")
        rows = [*spans(endpoint.received), *logs(endpoint.received)]
    with_user = {row.name for row in rows if row.attributes.get("user_id") == "not to be copied"}
    assert {"submit", "render", "submitting", "rendering /render"} <= with_user
    assert not [row.name for row in rows if row.attributes.get("job_id") == JOB]


async def test_the_edges_token_is_sent() -> None:
    async with OtlpEndpoint(token="a secret, with %") as endpoint:
        await asyncio.to_thread(run_both, ["--endpoint", endpoint.url], EMP_OTLP_TOKEN="a secret, with %")
        assert_one_trace_of_the_job(endpoint.received)


async def test_a_service_that_logs_without_a_span_is_heard_too() -> None:
    async with OtlpEndpoint() as endpoint:
        code = "import logging; logging.getLogger('x').error('alone')"
        done = await asyncio.to_thread(execute, "--endpoint", endpoint.url, "--", PYTHON, "-c", code, WORKER_ID="w")
        assert done.returncode == 0, done.stderr
        (record,) = logs(endpoint.received)
    assert (record.name, record.trace_id, record.resource["worker_id"]) == ("alone", "", "w")


# --- what instruments it --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Return a Python that has nothing installed."""
    venv.create(tmp_path / "bare", symlinks=True)
    return tmp_path / "bare/bin/python"


@pytest.fixture
def equipped(bare: Path) -> Path:
    """Return another Python than the one that runs emp-pipe, with OpenTelemetry in its environment and without emp-pipe."""
    (site,) = bare.parent.parent.glob("lib/python3*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith("emp_pipe") and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return bare


def test_without_auto_instrumentation_the_environment_is_set_and_one_line_says_so(bare: Path) -> None:
    done = execute("--", bare, "-c", SHOW, WORKER_ID="w")
    variables = json.loads(done.stdout)
    assert variables["OTEL_TRACES_SAMPLER"] == "parentbased_always_on"
    assert variables["PYTHONPATH"] == environment()["PYTHONPATH"]
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"emp-pipe exec: opentelemetry-instrument is not installed for {bare}: ")
    assert "pip install opentelemetry-distro" in line


def test_quiet_says_nothing(bare: Path) -> None:
    assert execute("--quiet", "--", bare, "-c", "").stderr == ""


def test_the_interpreter_of_the_application_is_asked_not_that_of_emp_pipe(equipped: Path) -> None:
    paths, modules = json.loads(execute("--", equipped, "-c", TELL).stdout)
    assert str(equipped.parent.parent) in " ".join(paths)
    assert "opentelemetry.sdk.trace" in modules


@pytest.mark.parametrize(
    "first_line",
    ["#!{python}", "#!/usr/bin/env python", "#!/usr/bin/env -S python -u", "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''"],
)
def test_a_script_is_instrumented_by_its_first_line(first_line: str, equipped: Path, tmp_path: Path) -> None:
    script = tmp_path / "my-service"
    script.write_text(f"{first_line.format(python=equipped)}\n{TELL}\n")
    script.chmod(0o755)
    done = execute("--", script, PATH=f"{equipped.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert "opentelemetry.sdk.trace" in json.loads(done.stdout)[1]


def test_the_application_does_not_get_to_see_emp_pipe_itself(equipped: Path) -> None:
    _, modules = json.loads(execute("--", equipped, "-c", TELL).stdout)
    assert "emp_pipe_otel" in modules
    assert not [name for name in modules if name.partition(".")[0] == "emp_pipe"]


@pytest.mark.parametrize("flags", ["-I", "-E", "-S", "-uIB"])
def test_flags_that_shut_instrumentation_out_are_named(flags: str) -> None:
    done = execute("--", PYTHON, flags, "-c", TELL)
    assert done.returncode == 0
    assert "shuts auto-instrumentation out" in done.stderr
    assert "opentelemetry.sdk.trace" not in json.loads(done.stdout)[1]


def test_what_the_user_has_on_the_path_stays_on_it(tmp_path: Path) -> None:
    paths = json.loads(execute("--", PYTHON, "-c", SHOW, PYTHONPATH=str(tmp_path)).stdout)["PYTHONPATH"].split(os.pathsep)
    assert paths[0].endswith("opentelemetry/instrumentation/auto_instrumentation")
    assert paths[1].endswith("emp_pipe/otel_site")
    assert paths[2:] == environment(PYTHONPATH=str(tmp_path))["PYTHONPATH"].split(os.pathsep)


def test_an_exec_within_an_exec_adds_nothing_twice() -> None:
    once = json.loads(execute("--service-name", "a", "--", PYTHON, "-c", SHOW).stdout)
    twice = json.loads(execute("--service-name", "a", "--", PYTHON, "-m", "emp_pipe", "exec", "--", PYTHON, "-c", SHOW).stdout)
    assert {name: value for name, value in twice.items() if once.get(name) != value} == {}


async def test_a_user_who_wraps_the_application_already_gets_the_job_too() -> None:
    async with OtlpEndpoint() as endpoint:
        wrapped = [str(Path(PYTHON).with_name("opentelemetry-instrument")), PYTHON, str(ROOT / "tests/support/service_app.py")]
        await asyncio.to_thread(run_both, ["--endpoint", endpoint.url], wrapped, wrapped)
        assert_one_trace_of_the_job(endpoint.received)


def test_a_missing_exporter_is_named(equipped: Path, tmp_path: Path) -> None:
    done = execute("--protocol", "http/json", "--", equipped, "-c", "")
    assert "an exporter for http/json not installed for" in done.stderr


def test_an_interpreter_that_gives_no_answer_stops_nothing(tmp_path: Path) -> None:
    odd = tmp_path / "python3"
    odd.write_text("#!/bin/sh\necho started\n")
    odd.chmod(0o755)
    done = execute("--", odd, "app.py")
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert f"{odd} could not be asked" in done.stderr


def test_a_shell_script_has_only_its_environment_set_unless_the_language_is_said(tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    script.write_text(f"#!/bin/sh\nexec {PYTHON} -c '{TELL}'\n")
    script.chmod(0o755)
    plain = execute("--", script)
    assert "start.sh is neither Python nor Node" in plain.stderr
    assert "opentelemetry.sdk.trace" not in json.loads(plain.stdout)[1]
    said = execute("--language", "python", "--", script, PATH=f"{Path(PYTHON).parent}:{os.environ['PATH']}")
    assert said.stderr == ""
    assert "opentelemetry.sdk.trace" in json.loads(said.stdout)[1]
