"""job_id from baggage onto an SDK's spans and log records, set up by hand: what `emp_pipe.otel` promises without `emp-pipe exec`."""

from __future__ import annotations

import subprocess
import sys
from types import MappingProxyType
from typing import Any

import pytest
from opentelemetry import baggage, context
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from emp_pipe import otel
from tests.support.command import environment


class Sdk:
    """An SDK as an application sets it up: what exports is there before `copy_baggage`."""

    def __init__(self) -> None:
        self._spans, self._logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
        self.tracers, self.loggers = TracerProvider(shutdown_on_exit=False), LoggerProvider(shutdown_on_exit=False)
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self._snapshot = _Snapshot(self._logs)
        self.loggers.add_log_record_processor(self._snapshot)
        self.tracer = self.tracers.get_tracer("test")

    def copy(self, *keys: str) -> bool:
        return otel.copy_baggage(self.tracers, self.loggers, keys or None)

    def log(self, **attributes: Any) -> None:
        self.loggers.get_logger("test").emit(LogRecord(body="a record", attributes=attributes, context=context.get_current()))

    @property
    def spans(self) -> dict[str, dict[str, Any]]:
        return {span.name: dict(span.attributes or {}) for span in self._spans.get_finished_spans()}

    @property
    def logs(self) -> list[dict[str, Any]]:
        return self._snapshot.seen


class _Snapshot(SimpleLogRecordProcessor):
    """Notes what a record has when the exporter gets it, not what it has later."""

    def __init__(self, exporter: InMemoryLogRecordExporter) -> None:
        super().__init__(exporter)
        self.seen: list[dict[str, Any]] = []

    def on_emit(self, log_record: Any) -> None:
        self.seen.append(dict(log_record.log_record.attributes or {}))
        super().on_emit(log_record)


@pytest.fixture
def sdk() -> Sdk:
    return Sdk()


def test_spans_and_logs_of_a_job_have_its_id(sdk: Sdk) -> None:
    assert sdk.copy()
    with otel.job("job-1"):
        sdk.log()
        with sdk.tracer.start_as_current_span("outer"), sdk.tracer.start_as_current_span("inner"):
            sdk.log()
    assert sdk.spans == {"outer": {"job_id": "job-1"}, "inner": {"job_id": "job-1"}}
    assert sdk.logs == [{"job_id": "job-1"}] * 2


def test_a_job_ends_where_its_block_ends_and_may_be_within_another(sdk: Sdk) -> None:
    sdk.copy()
    with otel.job("job-1"):
        with otel.job("job-2"):
            sdk.log()
        sdk.log()
    sdk.log()
    assert sdk.logs == [{"job_id": "job-2"}, {"job_id": "job-1"}, {}]


def test_what_a_span_or_record_says_itself_stays(sdk: Sdk) -> None:
    sdk.copy()
    with otel.job("from baggage"):
        sdk.log(job_id="its own", other=1)
        sdk.tracer.start_span("span", attributes={"job_id": "its own"}).end()
    assert sdk.logs == [{"job_id": "its own", "other": 1}]
    assert sdk.spans == {"span": {"job_id": "its own"}}


def test_a_job_that_only_a_span_knows_reaches_what_is_inside_it(sdk: Sdk) -> None:
    sdk.copy()
    with sdk.tracer.start_as_current_span("job", attributes={"job_id": "job-1"}):
        sdk.log()
        with sdk.tracer.start_as_current_span("step"):
            sdk.log()
    assert sdk.spans["step"] == {"job_id": "job-1"}
    assert sdk.logs == [{"job_id": "job-1"}] * 2


def test_a_span_in_a_context_of_its_own_gets_what_that_context_has(sdk: Sdk) -> None:
    sdk.copy()
    other = baggage.set_baggage("job_id", "job-9", context.Context())
    with otel.job("job-1"):
        sdk.tracer.start_span("span", context=other).end()
        sdk.loggers.get_logger("test").emit(LogRecord(body="a record", context=other))
    assert sdk.spans == {"span": {"job_id": "job-9"}}
    assert sdk.logs == [{"job_id": "job-9"}]


@pytest.mark.parametrize("value", ["", "x" * 257, 7, ["job-1"], None], ids=["empty", "too-long", "number", "list", "none"])
def test_what_is_no_id_is_not_copied(value: object, sdk: Sdk) -> None:
    sdk.copy()
    token = context.attach(baggage.set_baggage("job_id", value))
    sdk.log()
    sdk.tracer.start_span("span").end()
    context.detach(token)
    assert (sdk.logs, sdk.spans) == ([{}], {"span": {}})


def test_the_longest_id_is_copied_whole(sdk: Sdk) -> None:
    sdk.copy()
    with otel.job("x" * 256):
        sdk.log()
    assert sdk.logs == [{"job_id": "x" * 256}]


def test_only_the_listed_keys_are_copied(sdk: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMP_OTEL_BAGGAGE_KEYS", " tenant ,, job_id")
    sdk.copy()
    token = context.attach(baggage.set_baggage("tenant", "t", baggage.set_baggage("session_id", "s")))
    sdk.log()
    context.detach(token)
    assert sdk.logs == [{"tenant": "t"}]


def test_no_keys_is_nothing_copied(sdk: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMP_OTEL_BAGGAGE_KEYS", "")
    sdk.copy()
    with otel.job("job-1"):
        sdk.log()
    assert sdk.logs == [{}]


def test_a_second_call_changes_nothing(sdk: Sdk) -> None:
    assert sdk.copy("job_id")
    assert sdk.copy("tenant")
    token = context.attach(baggage.set_baggage("tenant", "t"))
    sdk.log()
    context.detach(token)
    assert sdk.logs == [{}]


def test_attributes_that_cannot_be_changed_lose_nothing(sdk: Sdk) -> None:
    record = LogRecord(body="a record")
    record.attributes = MappingProxyType({"own": 1})

    class Emitted:
        log_record = record

    with otel.job("job-1"):
        otel.log_processor().on_emit(Emitted())  # type: ignore[arg-type]
    assert record.attributes == {"own": 1}


def test_the_api_without_an_sdk_is_no_error() -> None:
    code = "from emp_pipe import otel; print(otel.copy_baggage())\nwith otel.job('job-1'): print('ran')"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "False\nran\n"


def test_an_application_starts_although_its_sdk_cannot_be_set_up_and_is_told_what_it_misses(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class OfAnotherVersion:
        def add_span_processor(self, processor: Any) -> None:
            raise LookupError("this SDK has changed")

    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", OfAnotherVersion)
    otel.instrumented()
    assert caplog.messages == ["job_id from baggage is not copied onto spans and logs"]
    assert "this SDK has changed" in caplog.text


def test_importing_it_imports_neither_opentelemetry_nor_the_rest_of_emp_pipe() -> None:
    code = "import sys; before = set(sys.modules); import emp_pipe.otel; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=30, check=True)
    imported = done.stdout.split()
    assert [name for name in imported if name.startswith("emp_pipe.")] == ["emp_pipe.otel"]
    assert [name for name in imported if name.partition(".")[0] in ("opentelemetry", "pydantic", "asyncio")] == []
