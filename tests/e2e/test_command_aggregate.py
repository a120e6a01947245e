"""The real command with `aggregate` and `red_metrics`: each of their settings, from OTLP in to the file exporter."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from emp_pipe.processors.aggregate import AggregateConfig
from emp_pipe.processors.red_metrics import RedMetricsConfig
from tests.support.command import Running, free_port, run, running, until
from tests.support.command_bench import Bench
from tests.support.metrics import histogram, histogram_point, point, request, sum_of
from tests.support.otlp_post import lines_in, post, spans


class Point(NamedTuple):
    """A data point as the file exporter wrote it."""

    metric: str
    unit: str
    kind: str
    labels: dict[str, Any]
    fields: dict[str, Any]


def points_in(directory: Path, metric: str | None = None) -> list[Point]:
    return [one for one in _points(directory) if metric is None or one.metric == metric]


def _points(directory: Path) -> Iterator[Point]:
    for line in lines_in(directory):
        for resource in line.get("resourceMetrics", ()):
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    for kind in ("gauge", "sum", "histogram", "exponentialHistogram"):
                        for found in metric.get(kind, {}).get("dataPoints", ()):
                            labels = {one["key"]: next(iter(one["value"].values())) for one in found.get("attributes", ())}
                            yield Point(metric["name"], metric.get("unit", ""), kind, labels, found)


class MetricsBench(Bench):
    """A process that takes OTLP/HTTP, with the processors of a test, and writes files."""

    def __init__(self, directory: Path) -> None:
        self.otlp_port = free_port()
        self._chance = Random(11)
        super().__init__(directory)

    def processors(self, *parts: str) -> None:
        listen = f'{{otlp_http: {{listen: "127.0.0.1:{self.otlp_port}"}}}}'
        super().write(receivers=listen, processors="{" + ", ".join(parts) + "}")

    def send(self, *requests: ExportMetricsServiceRequest) -> None:
        for one in requests:
            assert post(self.otlp_port, one) == 200

    def send_spans(self, *names: str, **settings: Any) -> None:
        assert post(self.otlp_port, spans(names, self._chance, now_unix_nano=time.time_ns(), **settings)) == 200

    def wait_for_points(self, metric: str, count: int) -> list[Point]:
        """Return the points of a metric once there are so many, sooner than a window of the usual length would end."""
        found: list[Point] = until(
            lambda: len(points := points_in(self.data_dir, metric)) >= count and points,
            f"{count} points of {metric} in {self.data_dir}",
            patience_s=AggregateConfig().interval_s * 0.5,
        )
        return found


@pytest.fixture
def bench(tmp_path: Path) -> MetricsBench:
    return MetricsBench(tmp_path)


def stopped(process: Running) -> None:
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


# aggregate


def test_a_stop_ends_the_window_and_what_was_taken_is_written_once(bench: MetricsBench) -> None:
    bench.processors("aggregate: ")
    with running(*bench.arguments) as process:
        bench.send(*(request(sum_of("requests", point(value, at=value, start=value - 1, path="/"))) for value in (1, 2, 4)))
        assert points_in(bench.data_dir) == [], "a window of 30 seconds has not ended yet"
        groups = until(lambda: (found := bench.groups()) and found["aggregate"]["held_records"] == 3 and found, "the points are held")
        assert groups["aggregate"]["topics"] == ["metrics.in"]
        assert bench.metric("emp_pipe_aggregate_streams") == 1
        stopped(process)
    (found,) = points_in(bench.data_dir)
    assert (found.metric, found.fields["asInt"], found.labels) == ("requests", "7", {"path": "/"})


def test_a_window_ends_after_interval_s(bench: MetricsBench) -> None:
    bench.processors("aggregate: {interval_s: 0.2}")
    with running(*bench.arguments):
        bench.send(request(sum_of("requests", point(5))))
        assert bench.wait_for_points("requests", 1)[0].fields["asInt"] == "5"
        bench.send(request(sum_of("requests", point(6))))
        assert [one.fields["asInt"] for one in bench.wait_for_points("requests", 2)] == ["5", "6"]


def test_streams_past_max_streams_go_to_the_overflow_stream_and_are_counted(bench: MetricsBench) -> None:
    bench.processors("aggregate: {interval_s: 0.2, max_streams: 3}")
    with running(*bench.arguments) as process:
        bench.send(request(sum_of("requests", *(point(1, user=str(number)) for number in range(10)))))
        found = bench.wait_for_points("requests", 3)
        assert [(one.labels, one.fields["asInt"]) for one in found] == [
            ({"user": "0"}, "1"),
            ({"user": "1"}, "1"),
            ({"otel.metric.overflow": True}, "8"),
        ]
        assert bench.metric("emp_pipe_aggregate_overflow_points_total", metric="requests") == 8
        assert "metric requests has over 3 streams" in process.wait_for("over 3 streams")


def test_a_point_has_at_most_max_exemplars(bench: MetricsBench) -> None:
    bench.processors("aggregate: {interval_s: 0.2, max_exemplars: 2}")
    one = histogram_point(0.5, 0.6, 0.7)
    for number in range(4):
        one.exemplars.add(time_unix_nano=number + 1, as_double=0.5, trace_id=bytes([number + 1]) * 16, span_id=bytes([1]) * 8)
    with running(*bench.arguments):
        bench.send(request(histogram("latency", one)))
        (found,) = bench.wait_for_points("latency", 1)
        assert [exemplar["traceId"] for exemplar in found.fields["exemplars"]] == ["03" * 16, "04" * 16]


def test_a_window_ends_early_at_max_held_bytes(bench: MetricsBench) -> None:
    bench.processors("aggregate: {interval_s: 600, max_held_bytes: 1000}")
    chance = Random(2)
    with running(*bench.arguments):
        for _ in range(4):
            bench.send(request(sum_of("requests", *(point(1, text=chance.randbytes(30).hex()) for _ in range(30)))))
        bench.wait_for_points("requests", 30)


def test_a_misspelt_setting_is_named(bench: MetricsBench) -> None:
    bench.processors("aggregate: {intervall_s: 3}")
    result = run("validate", str(bench.file))
    assert result.returncode != 0
    assert "interval_s" in result.stdout + result.stderr


# red_metrics


def test_calls_and_durations_of_spans_are_written_beside_the_spans(bench: MetricsBench) -> None:
    bench.processors("red_metrics: {interval_s: 0.1}", "aggregate: {interval_s: 0.2}")
    with running(*bench.arguments):
        bench.send_spans("GET /", "GET /", "POST /")
        bench.send_spans("GET /", failed=True)
        until(lambda: sum(int(one.fields["asInt"]) for one in points_in(bench.data_dir, "traces.span.metrics.calls")) == 4, "4 calls")
        errors = [one for one in points_in(bench.data_dir, "traces.span.metrics.calls") if one.labels["status.code"] == "STATUS_CODE_ERROR"]
        assert [(one.labels["span.name"], one.fields["asInt"]) for one in errors] == [("GET /", "1")]
        durations = points_in(bench.data_dir, "traces.span.metrics.duration")
        assert sum(int(one.fields["count"]) for one in durations) == 4
        assert {one.unit for one in durations} == {"s"}
        assert len(durations[0].fields["exemplars"][0]["traceId"]) == 32
        assert bench.metric("emp_pipe_red_spans_total", outcome="counted") == 4
        until(lambda: sum("resourceSpans" in line for line in lines_in(bench.data_dir)) == 4, "the spans themselves are written")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("namespace: red", lambda one: one.metric.startswith("red.")),
        ("unit: ms", lambda one: one.kind == "sum" or one.unit == "ms"),
        ("histogram: exponential", lambda one: one.kind in ("sum", "exponentialHistogram")),
        ("bounds_s: [0.5, 1]", lambda one: one.kind == "sum" or one.fields["explicitBounds"] == [0.5, 1]),
        ("dimensions: [http.route]", lambda one: one.labels["http.route"] == "/jobs"),
        ("dimensions: []", lambda one: "http.route" not in one.labels),
        ("max_span_names: 1", lambda one: ("span.name" in one.labels) != ("otel.metric.overflow" in one.labels)),
        ("max_exemplars: 1", lambda one: len(one.fields.get("exemplars", ())) == (0 if one.kind == "sum" else 1)),
        ("interval_s: 0.1", lambda one: one.metric.startswith("traces.span.metrics.")),
        ("interval_s: 600, max_held_bytes: 1", lambda one: one.metric.startswith("traces.span.metrics.")),
        ("on_error: stop", lambda one: one.metric.startswith("traces.span.metrics.")),
    ],
)
def test_each_setting_of_red_metrics_does_what_it_says(bench: MetricsBench, setting: str, expected: Any) -> None:
    bench.processors(f"red_metrics: {{{setting}}}")
    with running(*bench.arguments):
        bench.send_spans("GET /", "GET /", "POST /", http_route="/jobs")
        found = until(lambda: len(points := points_in(bench.data_dir)) >= 4 and points, "calls and durations of two names")
    assert all(expected(one) for one in found), found
    if "max_span_names" in setting:
        assert sorted("span.name" in one.labels for one in found) == [False, False, True, True]


def test_red_metrics_are_written_when_interval_s_is_over_and_not_before(bench: MetricsBench) -> None:
    bench.processors("red_metrics: {interval_s: 600}")
    with running(*bench.arguments) as process:
        bench.send_spans("GET /")
        until(lambda: bench.groups()["red_metrics"]["held_records"] == 1, "the span is held")
        time.sleep(RedMetricsConfig().interval_s * 2)  # what is waited for is that nothing comes
        assert (points_in(bench.data_dir), bench.groups()["red_metrics"]["held_records"]) == ([], 1)
        stopped(process)
    assert [one.metric for one in points_in(bench.data_dir)] == ["traces.span.metrics.calls", "traces.span.metrics.duration"]
