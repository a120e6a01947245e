"""The real command samples: OTLP in by a socket, each policy and each setting, and what its `file` exporter got."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from emp_pipe.processors.tail_sample import TailSampleConfig
from tests.support.command import free_port, run, running, until
from tests.support.command_bench import Bench, rows_in
from tests.support.otlp_post import keyed, lines_in, post

GOOD, BAD = b"\x01" * 9 + b"\xf0" * 7, b"\x01" * 9 + b"\x10" * 7
"""Trace ids that a probability of 10 % keeps, and does not keep."""
ERROR = Status(code=Status.STATUS_CODE_ERROR)


class SamplingBench(Bench):
    """A process that takes OTLP and samples before its `file` exporter."""

    def __init__(self, directory: Path) -> None:
        self.otlp_port = free_port()
        super().__init__(directory)

    def configure(self, processors: str) -> None:
        self.write(
            receivers=f'{{otlp_http: {{listen: "127.0.0.1:{self.otlp_port}"}}}}',
            processors=processors,
            deadline_s=5,
            more="log_level: info",
        )

    def send(self, *spans: Span, service: str = "api", **resource: str) -> None:
        request = ExportTraceServiceRequest()
        group = request.resource_spans.add()
        group.resource.attributes.extend(keyed(service_name=service, **resource))
        group.scope_spans.add().spans.extend(spans)
        assert post(self.otlp_port, request) == 200

    def send_logs(self, *bodies: str, severity: int = 9, service: str = "api") -> None:
        request = ExportLogsServiceRequest()
        group = request.resource_logs.add()
        group.resource.attributes.extend(keyed(service_name=service))
        records = group.scope_logs.add().log_records
        for body in bodies:
            record: Any = records.add(time_unix_nano=time.time_ns(), severity_number=severity)
            record.body.string_value = body
        assert post(self.otlp_port, request) == 200

    def states(self) -> dict[str, str]:
        """Return name → tracestate of the spans that were written; a span that is there twice is an error."""
        found = [
            span
            for line in lines_in(self.data_dir)
            for resource in line.get("resourceSpans", ())
            for scope in resource["scopeSpans"]
            for span in scope["spans"]
        ]
        states = {span["name"]: span.get("traceState", "") for span in found}
        assert len(states) == len(found), "a span was written twice"
        return states

    def wait_for_states(self, expected: dict[str, str]) -> None:
        """Return when these spans are there and no others, sooner than a decision usually waits."""
        patience_s = TailSampleConfig().decision_wait_s * 0.6
        until(lambda: self.states().keys() >= expected.keys(), f"{expected}, {self.states()} are there", patience_s)
        assert self.states() == expected


def span(name: str, trace: bytes = BAD, *, duration_ms: int = 5, root: bool = False, state: str = "", **more: Any) -> Span:
    now = time.time_ns()
    return Span(
        trace_id=trace,
        span_id=name.encode().rjust(8, b"-")[-8:],
        parent_span_id=b"" if root else b"parent--",
        name=name,
        start_time_unix_nano=now - duration_ms * 1_000_000,
        end_time_unix_nano=now,
        trace_state=state,
        **more,
    )


def trace(number: int) -> bytes:
    return bytes([number]) * 9 + BAD[9:]


@pytest.fixture
def bench(tmp_path: Path) -> SamplingBench:
    return SamplingBench(tmp_path)


POLICIES: list[tuple[str, Sequence[Span], dict[str, str]]] = [
    ("[{type: always}]", [span("a")], {"a": "ot=th:0"}),
    ("[{type: error}]", [span("a", status=ERROR), span("b", trace(2))], {"a": "ot=th:0"}),
    ("[{type: slow, min_duration_s: 1, max_duration_s: 3}]", [span("a", duration_ms=2000), span("b", trace(2))], {"a": "ot=th:0"}),
    (
        "[{type: attribute, key: tenant, values: [acme*]}]",
        [span("a", attributes=keyed(tenant="acme-1")), span("b", trace(2), attributes=keyed(tenant="other"))],
        {"a": "ot=th:0"},
    ),
    ("[{type: attribute, key: service.name, where: resource, values: [api]}]", [span("a")], {"a": "ot=th:0"}),
    (
        "[{type: probability, percent: 10}]",
        [span("a", GOOD), span("b", GOOD, state="ot=th:8,x=y"), span("c")],
        {"a": "ot=th:e666", "b": "ot=th:e666,x=y"},
    ),
    ("[{type: rate_limit, traces_per_s: 1}]", [span("a"), span("b", trace(2))], {"a": ""}),
    ("[{type: rate_limit, spans_per_s: 2}]", [span("a"), span("a2"), span("b", trace(2))], {"a": "", "a2": ""}),
    (
        "[{type: and, policies: [{type: error}, {type: probability, percent: 10}]}]",
        [span("a", GOOD, status=ERROR), span("b", status=ERROR), span("c", b"\x02" + GOOD[1:])],
        {"a": "ot=th:e666"},
    ),
    (
        "[{type: or, policies: [{type: error}, {type: slow, min_duration_s: 1}]}]",
        [span("a", status=ERROR), span("b", trace(2), duration_ms=2000), span("c", trace(3))],
        {"a": "ot=th:0", "b": "ot=th:0"},
    ),
    (
        "[{type: not, policy: {type: attribute, key: http.route, values: [/healthz]}}]",
        [span("a"), span("b", trace(2), attributes=keyed(http_route="/healthz"))],
        {"a": "ot=th:0"},
    ),
]


@pytest.mark.parametrize(("policies", "spans", "kept"), POLICIES, ids=[policies for policies, _, _ in POLICIES])
def test_each_policy_samples_traces_that_came_by_a_socket(
    bench: SamplingBench, policies: str, spans: Sequence[Span], kept: dict[str, str]
) -> None:
    bench.configure(f"{{tail_sample: {{policies: {policies}, decision_wait_s: 0.3}}}}")
    with running(*bench.arguments):
        bench.send(*spans)
        acked = {"topic": "traces.in", "group": "tail_sample"}
        until(
            lambda: (
                sum(bench.metric("emp_pipe_group_records_total", outcome=outcome, **acked) for outcome in ("acked", "skipped"))
                == len(spans)
            ),
            "every span is decided",
        )
        bench.wait_for_states(kept)
        assert bench.metric("emp_pipe_tail_sample_open_traces") == 0


def decided(bench: SamplingBench, cause: str) -> float:
    return bench.metric("emp_pipe_tail_sample_decisions_traces_total", cause=cause)


def test_by_default_errors_come_at_once_and_the_rest_is_held_until_the_decision(bench: SamplingBench) -> None:
    bench.configure("{tail_sample: }")
    with running(*bench.arguments) as process:
        bench.send(span("error", status=ERROR), span("other", GOOD))
        bench.wait_for_states({"error": "ot=th:0"})
        assert decided(bench, "error") == 1
        process.signal(signal.SIGTERM)
        process.wait_for("tail_sample: 2 records stay in the buffer for the next start")
        assert process.wait() == 0
    bench.configure("{tail_sample: {decision_wait_s: 0.3}}")
    with running(*bench.arguments):
        bench.wait_for_states({"error": "ot=th:0", "other": "ot=th:e666"})


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ("decision_wait_s: 0.5, decide_on_error: false", "decision_wait"),
        ("decide_after_root_s: 0.1", "root"),
        ("max_trace_spans: 2, decide_on_error: false", "max_trace_spans"),
    ],
)
def test_each_setting_decides_when_it_says(bench: SamplingBench, settings: str, cause: str) -> None:
    bench.configure(f"{{tail_sample: {{{settings}}}}}")
    with running(*bench.arguments):
        bench.send(span("a", GOOD), span("b", GOOD, root=True))
        bench.wait_for_states({"a": "ot=th:e666", "b": "ot=th:e666"})
        assert decided(bench, cause) == 1
        bench.send(span("late", GOOD))
        bench.wait_for_states({"a": "ot=th:e666", "b": "ot=th:e666", "late": "ot=th:e666"})
        until(lambda: bench.metric("emp_pipe_tail_sample_late_spans_total", verdict="kept") == 1, "the late span is counted")


def test_late_spans_s_ends_what_a_decision_holds_for(bench: SamplingBench) -> None:
    bench.configure("{tail_sample: {policies: [{type: error}], decision_wait_s: 0.2, late_spans_s: 0.5, on_error: stop}}")
    with running(*bench.arguments):
        bench.send(span("dropped"))
        until(lambda: decided(bench, "decision_wait") == 1, "it is decided")
        time.sleep(1.0)  # what is waited for is that something is no more
        bench.send(span("new trace", trace(3)))
        until(lambda: decided(bench, "decision_wait") == 2, "a tick has passed")
        bench.send(span("error", status=ERROR))
        bench.wait_for_states({"error": "ot=th:0"})


def test_memory_bytes_decides_the_oldest_early_and_loses_nothing(bench: SamplingBench) -> None:
    bench.configure("{tail_sample: {policies: [{type: always}], decision_wait_s: 3600, memory_bytes: 1MiB}}")
    with running(*bench.arguments):
        for part in range(5):
            bench.send(*(span(f"{part}-{at}", bytes([part]) + at.to_bytes(15, "big")) for at in range(1, 1001)))
        early = until(lambda: decided(bench, "memory"), "memory is full")
        until(lambda: len(bench.states()) >= 1000, "what was decided early is written")
        assert early + bench.metric("emp_pipe_tail_sample_open_traces") == 5000


def test_traces_wait_compressed_whatever_the_destination_takes(bench: SamplingBench) -> None:
    bench.write(
        receivers=f'{{otlp_http: {{listen: "127.0.0.1:{bench.otlp_port}"}}}}',
        processors="{tail_sample: {decision_wait_s: 3600}}",
        exporters='{otlp_grpc: {endpoint: "http://127.0.0.1:1"}}',
    )
    with running(*bench.arguments):
        bench.send(*(span(f"{at}", trace(1), attributes=keyed(same="x" * 1000)) for at in range(500)))
        held = until(lambda: bench.groups()["tail_sample"]["held_bytes"], "the traces are in the log")
        assert held < 500 * 100, "a kilobyte of the same in each of 500 spans"


SAMPLES: list[tuple[str, set[str], set[str]]] = [
    ("", {"kept", "error"}, {"info", "debug", "bad"}),
    ("traces_percent: 100", {"kept", "error", "dropped"}, {"info", "debug", "bad"}),
    ("logs_percent: 0", {"kept", "error"}, {"bad"}),
    ("services: {ap*: {logs_percent: 0, traces_percent: 0}}", {"error"}, {"bad"}),
    ("rules: [{signal: logs, max_severity: debug, percent: 0}]", {"kept", "error"}, {"info", "bad"}),
]


@pytest.mark.parametrize(("settings", "spans", "logs"), SAMPLES, ids=[settings or "defaults" for settings, _, _ in SAMPLES])
def test_sample_leaves_out_before_the_buffer_what_it_is_told_to(
    bench: SamplingBench, settings: str, spans: set[str], logs: set[str]
) -> None:
    bench.configure(f"{{sample: {{{settings}}}}}")
    with running(*bench.arguments):
        bench.send(span("kept", GOOD), span("dropped"), span("error", status=ERROR))
        bench.send_logs("info")
        bench.send_logs("debug", severity=5)
        bench.send_logs("bad", severity=17)
        until(lambda: set(bench.states()) >= spans and set(messages(bench)) >= logs, f"{spans} and {logs}")
        assert (set(bench.states()), set(messages(bench))) == (spans, logs)
        left_out = 6 - len(spans) - len(logs)
        assert bench.metric("emp_pipe_receiver_records_total", outcome="dropped") == left_out
        counted = [line for line in bench.get("/metrics")[1].splitlines() if line.startswith("emp_pipe_sample_dropped_records_total{")]
        assert sum(float(line.rsplit(" ", 1)[1]) for line in counted) == left_out


def messages(bench: SamplingBench) -> Iterable[str]:
    return [row["message"] for row in rows_in(bench.data_dir)]


@pytest.mark.parametrize(
    ("processors", "said"),
    [
        ("{tail_sample: {policies: [{type: slow}]}}", "a policy of type slow needs 'min_duration_s'"),
        ("{tail_sample: {policies: [{type: error, percent: 5}]}}", "a policy of type error has no 'percent'"),
        ("{tail_sample: {policies: [{type: error}, {type: error}]}}", "two policies are called 'error'"),
        ("{tail_sample: {policies: [{type: rate_limit}]}}", "needs either 'spans_per_s' or 'traces_per_s'"),
        ("{tail_sample: {policies: []}}", "at least 1 item"),
        ("{tail_sample: {policies: [{type: errors}]}}", "'error'"),
        ("{tail_sample: {decision_wait_s: 5, decide_after_root_s: 6}}", "decide_after_root_s must not be more than decision_wait_s"),
        ("{sample: {metrics_percent: 10}}", "metrics are never sampled"),
        ("{sample: {logs_percent: 200}}", "less than or equal to 100"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(bench: SamplingBench, processors: str, said: str) -> None:
    bench.configure(processors)
    result = run("validate", str(bench.file))
    assert result.returncode == 2
    assert said in result.stderr
    assert "emp.yaml:6: processors." in result.stderr


def test_a_sample_of_traces_beside_tail_sampling_is_refused_at_the_start(bench: SamplingBench) -> None:
    bench.configure("{sample: {traces_percent: 50}, tail_sample: }")
    with running(*bench.arguments, ready="") as process:
        assert process.wait() == 2
        assert "processors.sample: it is told to sample traces, which `tail_sample` or `red_metrics` must see whole" in process.lines[-1]
