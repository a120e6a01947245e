"""Python applications under `emp-pipe exec`: instrumented where OpenTelemetry is installed, one trace across two, job_id on all of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.command import PATIENCE_S, ROOT, environment
from tests.support.execution import execute
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_seen import Seen, logs, metrics, spans

PYTHON = sys.executable
SERVICE = str(ROOT / "tests/support/service_app.py")
JOB = "job-5f0c"


@contextmanager
def serving(endpoint: str, **variables: str) -> Iterator[str]:
    """Run the service that is called; yields its address, waits for its end."""
    process = subprocess.Popen(
        [PYTHON, "-m", "emp_pipe", "exec", "--endpoint", endpoint, "--", PYTHON, SERVICE, "serve"],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, process.communicate(timeout=PATIENCE_S)
        yield f"http://127.0.0.1:{port}/render"
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
    finally:
        process.kill()
        process.wait()


def run_both(endpoint: str) -> None:
    with serving(endpoint, SERVICE_NAME="renderer", MACHINE_ID="gpu-7f3a", WORKER_ID="worker-001") as url:
        done = execute("--endpoint", endpoint, "--", PYTHON, SERVICE, "call", url, JOB, SERVICE_NAME="api", MACHINE_ID="railway-1")
        assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
        assert "Traceback" not in done.stderr


def by_name(rows: list[Seen]) -> dict[str, Seen]:
    named = {row.name: row for row in rows}
    assert len(named) == len(rows), [row.name for row in rows]
    return named


async def test_two_applications_make_one_trace_with_the_job_on_every_span_and_log() -> None:
    async with OtlpEndpoint() as endpoint:
        await asyncio.to_thread(run_both, endpoint.url)
        assert endpoint.violations == []
        found, records = by_name(spans(endpoint.received)), by_name(logs(endpoint.received))
    submit, sent, answered, render = (found[name] for name in ("submit", "GET", "GET /render", "render"))
    assert {span.trace_id for span in (submit, sent, answered, render)} == {submit.trace_id}
    assert (submit.parent_id, sent.parent_id, answered.parent_id, render.parent_id) == ("", submit.span_id, sent.span_id, answered.span_id)
    assert [span.resource["service.name"] for span in (submit, sent, answered, render)] == ["api", "api", "renderer", "renderer"]
    assert render.resource["machine_id"] == "gpu-7f3a"
    assert render.resource["service.instance.id"] == "machine-gpu-7f3a.worker-001"
    assert [span.attributes.get("job_id") for span in (submit, sent, answered, render)] == [JOB] * 4
    for record, span in ((records["submitting"], submit), (records["rendering /render"], render)):
        assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id)
        assert record.attributes["job_id"] == JOB
        assert record.resource["service.instance.id"] == span.resource["service.instance.id"]


async def test_outside_a_job_nothing_has_its_id_and_other_baggage_is_never_copied() -> None:
    async with OtlpEndpoint() as endpoint:
        await asyncio.to_thread(run_both, endpoint.url)
        rows = spans(endpoint.received) + logs(endpoint.received)
    assert {row.name for row in rows if "job_id" not in row.attributes} == {"idle", "no job"}
    assert not [row.name for row in rows if "user_id" in row.attributes]


async def test_metrics_leave_when_the_application_ends() -> None:
    async with OtlpEndpoint() as endpoint:
        await asyncio.to_thread(run_both, endpoint.url)
        (renders,) = (row for row in metrics(endpoint.received) if row.name == "renders")
    assert renders.resource["worker_id"] == "worker-001"
    assert renders.row.sum.data_points[0].as_int == 1
