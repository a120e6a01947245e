"""The real command, started without a deriver that it had before: what that one held goes on, each span once, also over kills."""

from __future__ import annotations

import base64
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.command import Running, free_port, running, until
from tests.support.command_bench import Bench
from tests.support.otlp_post import calls_in, delta_sum, keyed, points_in, post, span_names, spans
from tests.support.roles import EdgeAndCentral

COUNT = 12
UNDECIDED = "tail_sample: {decision_wait_s: 3600}"
UNMERGED = "aggregate: {interval_s: 600}"


class HandingOnBench(Bench):
    """A process that takes OTLP/HTTP, and is started again with other processors."""

    def __init__(self, directory: Path) -> None:
        self.otlp_port = free_port()
        super().__init__(directory)

    def configure(self, processors: str, exporters: str = "{file: }") -> None:
        receivers = f'{{otlp_http: {{listen: "127.0.0.1:{self.otlp_port}"}}}}'
        self.write(receivers=receivers, processors=processors, exporters=exporters)

    @contextmanager
    def killed_with_spans_held(self, processors: str = UNDECIDED, padding_bytes: int = 0) -> Iterator[None]:
        """Run with processors, get spans acknowledged, see something else, and end by SIGKILL."""
        self.configure(f"{{{processors}}}")
        with running(*self.arguments) as process:
            for number in range(COUNT):
                request = spans([f"span {number}"], Random(number), now_unix_nano=time.time_ns())
                if padding_bytes:
                    padding = base64.b85encode(Random(number).randbytes(padding_bytes)).decode()
                    request.resource_spans[0].scope_spans[0].spans[0].attributes.extend(keyed(padding=padding))
                assert post(self.otlp_port, request) == 200
            yield
            kill(process)

    def assert_each_span_once(self) -> None:
        until(lambda: len(span_names(self.data_dir)) >= COUNT, f"{COUNT} spans in the files")
        assert Counter(span_names(self.data_dir)) == Counter(f"span {number}" for number in range(COUNT))


@pytest.fixture
def bench(tmp_path: Path) -> HandingOnBench:
    return HandingOnBench(tmp_path)


def kill(process: Running) -> None:
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_undecided_traces_arrive_once_after_a_kill_and_a_start_without_the_sampler(bench: HandingOnBench) -> None:
    with bench.killed_with_spans_held():
        assert span_names(bench.data_dir) == []
    bench.configure("{}")
    with running(*bench.arguments) as process:
        assert "tail_sample: handed on 12 blocks that it had not come to" in process.messages()
        bench.assert_each_span_once()
        assert set(bench.groups()) == {"file"}
        sampler = {"topic": "traces.in", "group": "tail_sample"}
        outcomes = {"appended": COUNT, "acked": COUNT, "dropped": 0, "dead": 0, "skipped": 0}
        assert {outcome: bench.metric("emp_pipe_group_records_total", outcome=outcome, **sampler) for outcome in outcomes} == outcomes
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    bench.assert_each_span_once()


@pytest.mark.parametrize("failpoint", ["log.append:1", "log.commit:1", "log.append:2", "log.commit:2", "log.append:3", "log.commit:4"])
def test_a_kill_while_they_are_handed_on_neither_loses_nor_doubles_a_span(bench: HandingOnBench, failpoint: str) -> None:
    with bench.killed_with_spans_held(padding_bytes=800_000):  # more than one commit of handing on has
        pass
    bench.configure("{}")
    with running(*bench.arguments, ready="", EMP_PIPE_FAILPOINT=failpoint) as process:
        assert process.wait() == -signal.SIGKILL
        assert not [message for message in process.messages() if "health: " in message], "it was killed too late to show anything"
    assert span_names(bench.data_dir) == []
    with running(*bench.arguments):
        bench.assert_each_span_once()
        assert set(bench.groups()) == {"file"}


def test_metrics_that_were_not_merged_arrive_once_after_a_start_without_the_aggregator(bench: HandingOnBench) -> None:
    bench.configure(f"{{{UNMERGED}}}")
    with running(*bench.arguments) as process:
        now = time.time_ns()
        for value in range(1, 11):
            assert post(bench.otlp_port, delta_sum("jobs.done", [value], now_unix_nano=now, start_unix_nano=now - 10**9)) == 200
        kill(process)
    bench.configure("{}")
    with running(*bench.arguments):
        until(lambda: len(points_in(bench.data_dir, "jobs.done")) >= 10, "ten points in the files")
    assert sorted(points_in(bench.data_dir, "jobs.done")) == list(range(1, 11))


def test_red_metrics_that_stay_count_each_span_once_when_the_sampler_is_gone(bench: HandingOnBench) -> None:
    with bench.killed_with_spans_held(f"{UNDECIDED}, red_metrics: {{interval_s: 0.1}}"):
        until(lambda: calls_in(bench.data_dir) >= COUNT, "all spans are counted")
        until(lambda: not bench.groups()["file"]["held_records"], "what is in the files is acked")
    bench.configure("{red_metrics: {interval_s: 0.1}}")
    with running(*bench.arguments) as process:
        bench.assert_each_span_once()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    bench.assert_each_span_once()
    assert calls_in(bench.data_dir) == COUNT


def test_where_nobody_takes_traces_any_more_they_are_dropped_counted_and_said(bench: HandingOnBench) -> None:
    with bench.killed_with_spans_held():
        pass
    bench.configure("{}", exporters="{file: {only: {signals: [logs]}}}")
    with running(*bench.arguments) as process:
        lost = "traces.in: group tail_sample is not in the configuration: 12 held blocks (12 records) are given up"
        assert lost in process.messages()
        assert not [message for message in process.messages() if "handed on" in message]
        dropped = {"topic": "traces.in", "group": "tail_sample", "outcome": "dropped"}
        assert bench.metric("emp_pipe_group_records_total", **dropped) == COUNT


def test_an_edge_that_sends_traces_by_central_from_now_on_sends_what_it_had_not_decided(tmp_path: Path) -> None:
    both = EdgeAndCentral.of(tmp_path)
    undecided = {"processors.tail_sample.decision_wait_s": "3600"}
    with both.edge.running(settings=undecided, EMP_TRACES_METRICS_TO="direct") as edge:
        for number in range(COUNT):
            assert post(edge.otlp_port, kept_by_any_sampler(number)) == 200
        until(lambda: calls_in(edge.directory) >= COUNT, "the edge has counted all spans")
        until(lambda: not edge.metric("group_held_records", group="file"), "what is in the files is acked")
        assert edge.process is not None
        kill(edge.process)
    assert span_names(edge.directory) == []
    by_central = {**both.for_edge, "EMP_TRACES_METRICS_TO": "central"}
    with both.central.running(**both.for_central) as central:
        with both.edge.running(leave_out=("tail_sample", "red_metrics"), **by_central) as edge:
            until(lambda: len(span_names(central.directory)) >= COUNT, "central has decided all")
            edge.assert_balanced()
        central.assert_balanced()
        counted_here = {"component": "red_metrics", "topic": "metrics.in"}
        assert central.metric("group_records_total", group="red_metrics", topic="traces.in", outcome="acked") == COUNT
        assert central.metric("deriver_output_records_total", **counted_here) == 0, "central counted what the edge had counted"
    assert Counter(span_names(central.directory)) == Counter(f"span {number}" for number in range(COUNT))


def kept_by_any_sampler(number: int) -> ExportTraceServiceRequest:
    request = spans([f"span {number}"], Random(number), now_unix_nano=time.time_ns())
    span = request.resource_spans[0].scope_spans[0].spans[0]
    span.trace_id = span.trace_id[:9] + b"\xf0" * 7
    return request
