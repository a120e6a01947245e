"""The same record by every protocol is the same row: its bytes as exported, its columns, its block's header.

One running process takes each case by each way in, through its sockets. What may differ is what tells of the way itself: the scope of
the receiver, the time of arrival, the order of attributes. A later receiver is one more entry in `tests/support/parity.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from tests.support.command import free_port, running, until
from tests.support.otlp_endpoint import OtlpEndpoint
from tests.support.otlp_rows import plain, plain_attributes
from tests.support.otlp_samples import IDS, METRIC_KINDS, SPAN, TRACE, rich_metric, rich_spans
from tests.support.otlp_strict import in_a_thread
from tests.support.parity import OTLP_WAYS, WAYS, Case, Made, Ports, made_of

CONNECTOR_LOGGER = {
    "message": "Job failed: CUDA out of memory",
    "level": "error",
    "machine_id": "gpu-7f3a",
    "worker_id": "worker-001",
    "service_type": "comfyui",
    "connector_id": "connector-3",
    "job_id": "job-550e8400-e29b-41d4-a716-446655440000",
    "session_id": "session-9",
    "event_type": "job_failed",
    "job_status": "failed",
    "error": "CUDA out of memory",
    "error_type": "memory",
    "duration_ms": 1234.5,
    "progress": 87,
    "model": "flux-1",
    "input_size": 10_485_760,
    "output_size": 0,
    "queue_position": 3,
    "estimated_wait_time": 12.25,
    "resource_allocation": {"gpu": 1, "memory_gb": 23.5, "devices": ["cuda:0", "cuda:1"]},
    "priority": "high",
    "current_operation": "sampling",
    "elapsed_time": 99,
    "health_status": "degraded",
    "source": "connector",
}
CASES = {
    "plain sdk record": Case(
        {"message": "hello", "level": "INFO", "n": 3, "ratio": 0.25, "yes": True},
        {"severity_number": 9, "severity_text": "INFO", "body": "hello", "attributes": {"n": 3, "ratio": 0.25, "yes": True}},
        {"service.name": "api"},
    ),
    "sdk record in a span": Case(
        {"message": "hello", "level": "WARN", "trace_id": TRACE, "span_id": SPAN},
        {"severity_number": 13, "severity_text": "WARN", "body": "hello", **IDS},
        {"service.name": "api", "host.name": "h"},
    ),
    "bare message": Case({"message": "only this"}),
    "connector logger with all fields": Case(CONNECTOR_LOGGER),
    "aliases": Case(
        {"msg": "aliased", "lvl": "warn", "jobId": "job-1", "machineId": "gpu-1", "workerId": "w-1", "sessionId": "s-1", "eventType": "x"}
    ),
    "aliases and the names that they stand for": Case({"message": "both", "level": "info", "job_id": "job-1", "jobId": "job-2"}),
    **{
        f"severity only as text: {text}": Case({"message": "m", "level": text})
        for text in ("trace", "debug", "info", "warn", "warning", "error", "fatal", "ERROR", "Critical", "silly", "notice", "E", "nonsense")
    },
    "no severity": Case({"message": "m", "a": "b"}),
    "identity on the record": Case(
        {
            "message": "m",
            "level": "info",
            "machine_id": "gpu-7f3a",
            "worker_id": "gpu-7f3a-worker-2",
            "service_type": "api",
            "hostname": "h",
        }
    ),
    "exception fields": Case(
        {
            "message": "it failed",
            "level": "error",
            "exception.type": "ValueError",
            "exception.message": "bad value",
            "exception.stacktrace": 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: bad value',
        }
    ),
    "error as a map": Case(
        {"message": "it failed", "level": "error", "error": {"name": "TypeError", "message": "x is not a function", "stack": "at y"}}
    ),
    "error and stack as texts": Case({"message": "it failed", "level": "error", "error": "boom", "stack": "at y\nat z"}),
    "trace ids in capitals": Case({"message": "m", "trace_id": TRACE.upper(), "span_id": SPAN.upper()}),
    "trace ids of a service's own making": Case({"message": "m", "trace_id": "trace_1712345678901_ab12cd", "span_id": "span-1"}),
    "unicode": Case(
        {"message": "Grüße, 世界 🎉 \u0000 e\u0301 עברית", "level": "info", "schlüssel": "wért", "🎯": "🇨🇭", "job_id": "job-ü"},
    ),
    "numbers at their ends": Case(
        {
            "message": "m",
            "least": -(2**63),
            "most": 2**63 - 1,
            "tiny": 5e-324,
            "huge": 1.7976931348623157e308,
            "minus zero": -0.0,
            "no": False,
        }
    ),
    "nothing in it": Case({"message": "", "level": "info", "empty": "", "none": {}, "no elements": []}),
    "maps and lists": Case({"message": "m", "deep": {"a": [{"b": {"c": [1, [2.5, "x", True]]}}]}, "list": ["a", 1, False]}),
    "json as the message": Case({"message": '{"level":"error","message":"inside","jobId":"job-7","n":1}'}),
    "a record in the body": Case(
        {"level": 50, "msg": "as pino writes it", "pid": 7, "jobId": "job-1"},
        {"body": {"level": 50, "msg": "as pino writes it", "pid": 7, "jobId": "job-1"}},
    ),
    "level as a number": Case({"message": "m", "level": 40}, {"body": "m", "attributes": {"level": 40}}),
    "time only in the record": Case(
        {"message": "m", "timestamp": "2025-10-09T08:53:20.123456789Z", "level": "info"},
        {"time_unix_nano": 0, "body": "m", "severity_text": "info", "attributes": {"timestamp": "2025-10-09T08:53:20.123456789Z"}},
    ),
    "event": Case({"message": "m", "eventType": "job_started", "jobId": "job-1"}),
    "long": Case({"message": "x" * 70_000, "level": "debug", "long": "ü" * 5_000}),
}


@dataclass
class Subject:
    """The running process, and where its output arrives."""

    ports: Ports
    endpoint: OtlpEndpoint
    file: Path
    seen: int = 0

    def take(self, signal: str) -> tuple[Any, str]:
        """Return the next export request, and the columns that belong to it."""
        until(lambda: len(self.endpoint.received) > self.seen, "an export request")
        received = self.endpoint.received[self.seen]
        self.seen += 1
        assert received.signal == signal
        assert not self.endpoint.violations
        lines = self.file.read_text(encoding="utf-8").splitlines()
        assert len(lines) == self.seen
        return received.message, lines[-1]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    directory = tmp_path_factory.mktemp("parity")
    ports, columns = Ports(*(free_port() for _ in range(4))), directory / "columns.jsonl"
    with in_a_thread(OtlpEndpoint()) as endpoint:
        file = directory / "emp.yaml"
        file.write_text(
            f"""
http: {{listen: "127.0.0.1:{free_port()}"}}
machine_id: gpu-test
buffer: sqlite
receivers:
  forward: {{listen: "127.0.0.1:{ports.forward}"}}
  otlp_grpc: {{listen: "127.0.0.1:{ports.otlp_grpc}"}}
  otlp_http: {{listen: "127.0.0.1:{ports.otlp_http}"}}
  http_json: {{listen: "127.0.0.1:{ports.http_json}"}}
processors:
  tests.support.parity:ColumnsProcessor: {{file: "{columns}"}}
exporters:
  otlp_http: {{endpoint: "{endpoint.url}"}}
"""
        )
        with running("run", str(file), "--data-dir", str(directory / "data")):
            yield Subject(ports, endpoint, columns)


def made_by(subject: Subject, way: str, case: Case) -> Made:
    WAYS[way](subject.ports, case)
    return made_of(*subject.take("logs"))


def told(made: Made) -> dict[str, Any]:
    """Return a row in words, for whoever reads the failure."""
    row = LogRecord.FromString(made.row)
    fields = {field.name: value for field, value in row.ListFields() if field.name not in ("attributes", "body")}
    return {"body": plain(row.body), "attributes": plain_attributes(row.attributes), **fields}


@pytest.mark.parametrize("way", [way for way in WAYS if way != "forward"])
@pytest.mark.parametrize("name", list(CASES))
def test_a_record_is_the_same_whichever_way_it_came(subject: Subject, name: str, way: str) -> None:
    expected, made = made_by(subject, "forward", CASES[name]), made_by(subject, way, CASES[name])
    assert told(made) == told(expected)
    assert made.resource == expected.resource
    assert made.columns == expected.columns
    assert made.header == expected.header
    assert made.row == expected.row


@pytest.mark.parametrize("way", list(OTLP_WAYS))
def test_a_span_leaves_as_it_came_whichever_way_that_was(subject: Subject, way: str) -> None:
    sent = rich_spans()
    OTLP_WAYS[way](subject.ports, "traces", sent)
    assert subject.take("traces")[0] == sent


@pytest.mark.parametrize("way", list(OTLP_WAYS))
@pytest.mark.parametrize("kind", METRIC_KINDS)
def test_a_metric_leaves_as_it_came_whichever_way_that_was(subject: Subject, kind: str, way: str) -> None:
    sent = rich_metric(kind)
    OTLP_WAYS[way](subject.ports, "metrics", sent)
    assert subject.take("metrics")[0] == sent
