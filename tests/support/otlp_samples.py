"""Requests in which every field of the protocol is set, for tests that nothing of them is lost."""

from __future__ import annotations

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, ResourceMetrics, ScopeMetrics
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tests.support.otlp_rows import NOW, attributes, log

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
IDS = {"trace_id": bytes.fromhex(TRACE), "span_id": bytes.fromhex(SPAN)}
METRIC_KINDS = ("gauge", "sum", "histogram", "exponential_histogram", "summary")


def rich_logs() -> ExportLogsServiceRequest:
    row = log(
        {"map": ["☃", 1, 2.5, True, b"\x00\xff", None]},
        severity=17,
        attrs={"n": -(2**63), "deep": {"a": [{"b": 1}]}},
        severity_text="ERROR",
        observed_time_unix_nano=NOW + 1,
        dropped_attributes_count=2,
        flags=1,
        event_name="job.failed",
        **IDS,
    )
    scope = ScopeLogs(log_records=[row], schema_url="https://s")
    scope.scope.name, scope.scope.version, scope.scope.dropped_attributes_count = "lib", "1.0", 1
    of_resource = ResourceLogs(scope_logs=[scope], schema_url="https://r")
    of_resource.resource.attributes.extend(attributes({"service.name": "api", "n": 1}))
    of_resource.resource.dropped_attributes_count = 3
    return ExportLogsServiceRequest(resource_logs=[of_resource])


def rich_spans() -> ExportTraceServiceRequest:
    span = Span(
        **IDS,
        parent_span_id=bytes(range(1, 9)),
        trace_state="ot=th:e666;rv:00000000000001,other=1",
        name="GET /jobs/{id} ☃",
        kind=Span.SPAN_KIND_SERVER,
        start_time_unix_nano=NOW,
        end_time_unix_nano=NOW + 5,
        attributes=attributes({"http.route": "/jobs/{id}", "n": 2**62, "list": ["a", 1.5, {"k": b"\x00\xff"}]}),
        dropped_attributes_count=1,
        dropped_events_count=2,
        dropped_links_count=3,
        flags=0x301,
    )
    span.events.add(time_unix_nano=NOW + 1, name="exception", attributes=attributes({"exception.type": "E"}), dropped_attributes_count=4)
    span.links.add(trace_id=bytes([9] * 16), span_id=bytes([8] * 8), trace_state="a=b", attributes=attributes({"why": "retry"}), flags=1)
    span.status.message, span.status.code = "no", 2  # type: ignore[assignment]
    scope = ScopeSpans(spans=[span], schema_url="https://s")
    scope.scope.name, scope.scope.version = "lib", "1.0"
    of_resource = ResourceSpans(scope_spans=[scope], schema_url="https://r")
    of_resource.resource.attributes.extend(attributes({"service.name": "api", "job_id": "job-1"}))
    return ExportTraceServiceRequest(resource_spans=[of_resource])


def rich_metric(kind: str) -> ExportMetricsServiceRequest:
    metric = Metric(name=f"a.{kind}", unit="1", description="what ☃ it is", metadata=attributes({"m": "d"}))
    data = getattr(metric, kind)
    point = data.data_points.add(
        start_time_unix_nano=NOW - 10, time_unix_nano=NOW, attributes=attributes({"gpu": "0", "n": 1, "ok": True}), flags=1
    )
    if kind in ("gauge", "sum"):
        point.as_int = -5
        data.data_points.add(time_unix_nano=NOW, as_double=-0.5)
    elif kind == "histogram":
        point.count, point.sum, point.min, point.max = 7, 12.5, 0.5, 9.0
        point.bucket_counts.extend([1, 2, 4])
        point.explicit_bounds.extend([1.0, 5.0])
    elif kind == "exponential_histogram":
        point.count, point.sum, point.scale, point.zero_count, point.zero_threshold = 7, 12.5, -3, 1, 0.001
        point.positive.offset, point.negative.offset = -2, 3
        point.positive.bucket_counts.extend([1, 0, 300])
        point.negative.bucket_counts.extend([4])
    else:
        point.count, point.sum = 4, 10.0
        point.quantile_values.add(quantile=0.99, value=8.5)
    if kind != "summary":
        point.exemplars.add(time_unix_nano=NOW - 1, as_double=2.5, filtered_attributes=attributes({"path": "/x"}), **IDS)
    if kind not in ("gauge", "summary"):
        data.aggregation_temporality = 1
    if kind == "sum":
        data.is_monotonic = True
    scope = ScopeMetrics(metrics=[metric], schema_url="https://s")
    scope.scope.name = "lib"
    of_resource = ResourceMetrics(scope_metrics=[scope], schema_url="https://r")
    of_resource.resource.attributes.extend(attributes({"service.name": "api"}))
    return ExportMetricsServiceRequest(resource_metrics=[of_resource])
