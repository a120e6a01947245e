"""Two applications under `emp-pipe exec`, one of which calls the other over HTTP inside a job; and what must be true of what they sent."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.support.command import PATIENCE_S, ROOT, environment, running
from tests.support.execution import execute
from tests.support.otlp_seen import Seen, logs, spans
from tests.support.otlp_strict import Received

JOB = "job-5f0c"
IN_PYTHON = [sys.executable, str(ROOT / "tests/support/service_app.py")]
CALLER = {"SERVICE_NAME": "api", "SERVICE_TYPE": "api", "MACHINE_ID": "railway-1"}
CALLED = {"SERVICE_NAME": "renderer", "MACHINE_ID": "gpu-7f3a", "WORKER_ID": "gpu-7f3a-worker-1", "TELEMETRY_ENV": "test"}
_CLIENT, _SERVER = 3, 2


def run_both(
    options: Sequence[str], caller: Sequence[str] = IN_PYTHON, called: Sequence[str] = IN_PYTHON, path: str = "/render", **variables: str
) -> None:
    """Run the two to their ends; `options` are those of `emp-pipe exec`, `/fail` is a path where the job fails."""
    process = subprocess.Popen(
        [sys.executable, "-m", "emp_pipe", "exec", *options, "--", *called, "serve"],
        env=environment(**CALLED, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, process.communicate(timeout=PATIENCE_S)
        done = execute(*options, "--", *caller, "call", f"http://127.0.0.1:{port}{path}", JOB, **CALLER, **variables)
        assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
        assert "Traceback" not in done.stderr
        _, said = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()


def through_an_edge(
    directory: Path,
    endpoint: str,
    options: Sequence[str] = (),
    caller: Sequence[str] = IN_PYTHON,
    called: Sequence[str] = IN_PYTHON,
    **variables: str,
) -> None:
    """Run the two beside an edge, which sends to an endpoint, and stop it. The job fails: such a trace is kept as a whole."""
    listens = ("receivers.forward.listen", "receivers.otlp_http.listen", "receivers.otlp_grpc.listen", "http.listen")
    settings = [word for name in listens for word in ("--set", f"{name}=127.0.0.1:0")]
    its_own = {"MACHINE_ID": "gpu-edge", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    with running("edge", "--data-dir", str(directory), *settings, **its_own, **variables) as edge:
        run_both(options, caller, called, "/fail", EMP_DATA_DIR=str(directory), **variables)
        edge.signal(signal.SIGTERM)
        assert edge.wait() == 0, edge.lines


def assert_one_trace_of_the_job(received: Iterable[Received], path: str = "/render") -> None:
    """Fail unless there is one trace across both, each span below the right one, with the job on every span and log record, once each."""
    received = list(received)
    found = _by_name(spans(received))
    way = [found[name] for name in ("submit", "client", "server", "render")]
    assert {span.trace_id for span in way} == {way[0].trace_id}
    assert [span.parent_id for span in way] == ["", *(span.span_id for span in way[:-1])]
    assert [span.resource["service.name"] for span in way] == ["api", "api", "renderer", "renderer"]
    for span in way[:2]:
        assert (span.resource["machine_id"], span.resource["service_type"]) == ("railway-1", "api")
        assert span.resource["service.instance.id"] == "machine-railway-1"
    for span in way[2:]:
        assert (span.resource["machine_id"], span.resource["worker_id"]) == ("gpu-7f3a", "gpu-7f3a-worker-1")
        assert span.resource["service.instance.id"] == "machine-gpu-7f3a.worker-1"
        assert span.resource["deployment.environment.name"] == "test"
    assert [span.attributes.get("job_id") for span in way] == [JOB] * 4
    records = _by_name(logs(received))
    for record, span in ((records["submitting"], way[0]), (records[f"rendering {path}"], way[3])):
        assert (record.trace_id, record.span_id) == (span.trace_id, span.span_id)
        assert record.attributes["job_id"] == JOB
        assert record.resource["service.instance.id"] == span.resource["service.instance.id"]


def assert_nothing_else_has_the_job(received: Iterable[Received]) -> None:
    received = list(received)
    rows = [*spans(received), *logs(received)]
    assert {row.name for row in rows if "job_id" not in row.attributes} == {"idle", "no job"}
    assert not [row.name for row in rows if "user_id" in row.attributes]


def _by_name(rows: Iterable[Seen]) -> dict[str, Seen]:
    """Spans of instrumented HTTP are called by their kind: every language has names of its own for them."""
    kinds = {_CLIENT: "client", _SERVER: "server"}
    named = [(kinds.get(getattr(row.row, "kind", 0), row.name), row) for row in rows]
    assert len(dict(named)) == len(named), f"not once each: {[name for name, _ in named]}"
    return dict(named)
