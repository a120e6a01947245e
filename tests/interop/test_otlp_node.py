"""OpenTelemetry's SDK for Node under `emp-pipe exec`, beside Python's: one trace across both, the job on every span and Winston log."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from emp_pipe import otel
from tests.interop import counterparts
from tests.support.command import PATIENCE_S, environment
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_grpc_endpoint import OtlpGrpcEndpoint
from tests.support.otlp_seen import metrics, spans
from tests.support.two_services import IN_PYTHON, assert_nothing_else_has_the_job, assert_one_trace_of_the_job, run_both, through_an_edge


@pytest.fixture
def in_node() -> list[str]:
    try:
        return ["node", str(counterparts.node_service())]
    except counterparts.Absent as reason:
        pytest.skip(str(reason))


PAIRS = [("node", "python"), ("python", "node"), ("node", "node")]


@pytest.fixture(params=PAIRS, ids=["node-calls-python", "python-calls-node", "node-calls-node"])
def pair(request: pytest.FixtureRequest, in_node: list[str]) -> list[list[str]]:
    return [in_node if language == "node" else IN_PYTHON for language in request.param]


async def test_one_trace_with_the_job_on_every_span_and_log_over_http(pair: Sequence[Sequence[str]]) -> None:
    async with OtlpEndpoint(chunked=True) as endpoint:
        await asyncio.to_thread(run_both, ["--endpoint", endpoint.url], *pair)
        assert endpoint.violations == []
        assert_one_trace_of_the_job(endpoint.received)
        assert_nothing_else_has_the_job(endpoint.received)


async def test_one_trace_with_the_job_on_every_span_and_log_over_grpc(pair: Sequence[Sequence[str]]) -> None:
    async with OtlpGrpcEndpoint() as endpoint:
        await asyncio.to_thread(run_both, ["--protocol", "grpc", "--endpoint", endpoint.url], *pair)
        assert endpoint.violations == []
        assert_one_trace_of_the_job(endpoint.received)


@pytest.mark.parametrize("options", [[], ["--protocol", "grpc"], ["--protocol", "http/json"]], ids=["http", "grpc", "json"])
async def test_a_failed_job_in_node_is_one_trace_beyond_the_edge_with_its_logs_and_metrics(
    options: list[str], in_node: list[str], tmp_path: Path
) -> None:
    async with OtlpEndpoint() as endpoint:
        await asyncio.to_thread(through_an_edge, tmp_path, endpoint.url, options, in_node, in_node)
        assert endpoint.violations == []
        assert_one_trace_of_the_job(endpoint.received, "/fail")
        (renders,) = (row for row in metrics(endpoint.received) if row.name == "renders")
    assert sum(point.as_double or point.as_int for point in renders.row.sum.data_points) == 1


async def test_metrics_of_a_node_application_leave_when_it_ends(in_node: list[str]) -> None:
    async with OtlpEndpoint(chunked=True) as endpoint:
        await asyncio.to_thread(run_both, ["--endpoint", endpoint.url], in_node, in_node)
        (renders,) = (row for row in metrics(endpoint.received) if row.name == "renders")
    assert renders.resource["worker_id"] == "gpu-7f3a-worker-1"
    assert renders.row.sum.data_points[0].as_double == 1 or renders.row.sum.data_points[0].as_int == 1


async def test_the_resource_holds_no_command_line_which_may_have_secrets(in_node: list[str]) -> None:
    async with OtlpEndpoint(chunked=True) as endpoint:
        await asyncio.to_thread(run_both, ["--endpoint", endpoint.url], in_node, in_node)
        resources = [span.resource for span in spans(endpoint.received)]
    assert resources
    assert not [key for resource in resources for key in resource if key.startswith("process.command")]


def stopped_by(number: signal.Signals, endpoint: str, in_node: Sequence[str], how: str) -> int:
    process = subprocess.Popen(
        [sys.executable, "-m", "emp_pipe", "exec", "--endpoint", endpoint, "--", *in_node, how],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        return process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_signal_ends_a_node_application_as_ever_after_its_spans_were_sent(number: signal.Signals, in_node: list[str]) -> None:
    async with OtlpEndpoint(chunked=True) as endpoint:
        assert await asyncio.to_thread(stopped_by, number, endpoint.url, in_node, "wait") == -number
        assert [span.name for span in spans(endpoint.received)] == ["waiting"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_node_application_that_listens_for_signals_decides_itself(number: signal.Signals, in_node: list[str]) -> None:
    async with OtlpEndpoint(chunked=True) as endpoint:
        assert await asyncio.to_thread(stopped_by, number, endpoint.url, in_node, "decide") == 3


@pytest.mark.parametrize("order", ["before", "after", "twice"])
def test_an_application_that_sets_the_sdk_up_itself_needs_only_the_file(order: str, in_node: list[str]) -> None:
    done = subprocess.run(
        ["node", str(Path(in_node[1]).with_name("own_sdk.cjs")), order, otel.NODE_FILE],
        env=environment(OTEL_TRACES_EXPORTER="none", OTEL_LOGS_EXPORTER="none", OTEL_METRICS_EXPORTER="none"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["spans"] == {
        "early": {"job_id": "job-1"},
        "own id": {"job_id": "its own"},
        "known to the span": {"job_id": "job-2"},
        "step": {"job_id": "job-2"},
        "too long": {},
        "outside": {},
    }
    assert found["logs"] == {
        "in job": {"job_id": "job-1"},
        "own id": {"job_id": "its own", "n": 1},
        "by its span": {"job_id": "job-2"},
        "outside": {},
        "given": {"job_id": "job-3"},
    }


def test_the_file_does_nothing_where_there_is_no_opentelemetry(tmp_path: Path) -> None:
    (tmp_path / "app.js").write_text("console.log('ran', process.listenerCount('SIGTERM'))")
    done = subprocess.run(
        ["node", "--require", otel.NODE_FILE, "app.js"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("ran 0\n", "")
