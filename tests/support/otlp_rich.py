"""Export requests that use what the specification has: every kind of value, of metric and of link, with what readers tend to forget.

They survive a Collector unchanged, which has no place for unknown fields.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import Exemplar, Metric, ResourceMetrics, ScopeMetrics
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status

from tests.support.otlp_rows import any_value, attributes

TRACE_ID, SPAN_ID, PARENT_ID = bytes(range(1, 17)), bytes(range(21, 29)), bytes(range(31, 39))
_VALUES: dict[str, Any] = {
    "text": "käse ✓",
    "empty": "",
    "yes": True,
    "no": False,
    "int": -(2**63),
    "zero": 0,
    "double": 0.1,
    "bytes": b"\x00\xff",
    "list": ["a", 1, 2.5, None, ["deep"]],
    "map": {"inner": {"innermost": 7}, "list": [True]},
}
_RESOURCE = Resource(
    attributes=attributes({"service.name": "renderer", "machine_id": "gpu-7f3a", "ports": [1, 2]}), dropped_attributes_count=3
)
_SCOPE = InstrumentationScope(name="lib", version="1.2", attributes=attributes({"scope.key": "value"}), dropped_attributes_count=1)
_SCHEMA = "https://opentelemetry.io/schemas/1.30.0"


def rich_request(signal: str) -> Any:
    """Return a request of one resource and scope, dated now."""
    now = time.time_ns()
    if signal == "logs":
        scope_logs = ScopeLogs(scope=_SCOPE, log_records=list(_logs(now)), schema_url=_SCHEMA)
        return ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=_RESOURCE, scope_logs=[scope_logs], schema_url=_SCHEMA)])
    if signal == "traces":
        scope_spans = ScopeSpans(scope=_SCOPE, spans=list(_spans(now)), schema_url=_SCHEMA)
        return ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=_RESOURCE, scope_spans=[scope_spans], schema_url=_SCHEMA)])
    scope_metrics = ScopeMetrics(scope=_SCOPE, metrics=_metrics(now), schema_url=_SCHEMA)
    return ExportMetricsServiceRequest(
        resource_metrics=[ResourceMetrics(resource=_RESOURCE, scope_metrics=[scope_metrics], schema_url=_SCHEMA)]
    )


def _logs(now: int) -> Any:
    for number, (name, value) in enumerate(_VALUES.items()):
        yield LogRecord(
            time_unix_nano=now + number,
            observed_time_unix_nano=now + 1000 + number,
            severity_number=13,
            severity_text="WARN",
            body=any_value(f"body of {name}"),
            attributes=attributes({name: value, "number": number}),
            dropped_attributes_count=number,
            flags=1,
            trace_id=TRACE_ID,
            span_id=SPAN_ID,
            event_name="cache.filled" if number == 3 else "",
        )
    for number, body in enumerate(({"a": [1, "two"]}, ["list"], 12, 2.5, True, b"raw")):
        yield LogRecord(
            time_unix_nano=now,
            observed_time_unix_nano=now,
            severity_number=9,
            severity_text="INFO",
            body=any_value(body),
            attributes=attributes({"number": 100 + number}),
        )


def _spans(now: int) -> Any:
    for number, (name, value) in enumerate(_VALUES.items()):
        yield Span(
            trace_id=TRACE_ID,
            span_id=(number + 1).to_bytes(8, "big"),
            parent_span_id=PARENT_ID if number % 2 else b"",
            trace_state="vendor=1,ot=rv:0123456789abcd",
            flags=0x301,
            name=f"span of {name}",
            kind=number % 6,
            start_time_unix_nano=now,
            end_time_unix_nano=now + number,
            attributes=attributes({name: value, "number": number}),
            dropped_attributes_count=1,
            events=[Span.Event(time_unix_nano=now, name="event", attributes=attributes({name: value}), dropped_attributes_count=2)],
            dropped_events_count=3,
            links=[
                Span.Link(
                    trace_id=bytes(range(51, 67)),
                    span_id=SPAN_ID,
                    trace_state="vendor=2",
                    attributes=attributes({name: value}),
                    dropped_attributes_count=4,
                    flags=0x101,
                )
            ],
            dropped_links_count=5,
            status=Status(code=number % 3, message="why" if number % 3 == 2 else ""),
        )


def _metrics(now: int) -> list[Metric]:
    times: dict[str, Any] = {"start_time_unix_nano": now - 10**10, "time_unix_nano": now}
    exemplar = Exemplar(
        filtered_attributes=attributes({"cut": "off"}), time_unix_nano=now, as_double=1.5, span_id=SPAN_ID, trace_id=TRACE_ID
    )
    labels = attributes({"gpu": 1, "name": "käse"})
    with_all: dict[str, Any] = {**times, "attributes": labels, "exemplars": [exemplar]}
    made = []

    def metric(name: str) -> Metric:
        made.append(Metric(name=name, description=f"the {name}", unit="By", metadata=attributes({"origin": "test"})))
        return made[-1]

    metric("gauge.double").gauge.data_points.add(**times, as_double=-0.5, attributes=labels, exemplars=[exemplar])
    metric("gauge.int").gauge.data_points.add(**times, as_int=-(2**63), attributes=labels)
    metric("gauge.zero").gauge.data_points.add(**times, as_int=0, attributes=labels)
    metric("gauge.absent").gauge.data_points.add(**times, flags=1, attributes=labels)
    for name, temporality in (("delta", 1), ("cumulative", 2)):
        summed = metric(f"sum.{name}").sum
        summed.aggregation_temporality = temporality  # type: ignore[assignment]
        summed.is_monotonic = True
        summed.data_points.add(**times, as_int=7, attributes=labels, exemplars=[exemplar])
        histogram = metric(f"histogram.{name}").histogram
        histogram.aggregation_temporality = temporality  # type: ignore[assignment]
        histogram.data_points.add(**with_all, count=6, sum=12.5, bucket_counts=[1, 2, 3], explicit_bounds=[1, 5], min=0.5, max=9)
        exponential = metric(f"exponential.{name}").exponential_histogram
        exponential.aggregation_temporality = temporality  # type: ignore[assignment]
        point = exponential.data_points.add(**with_all, count=10, sum=3.5, scale=-2, zero_count=1, zero_threshold=0.01, min=-4, max=5)
        point.positive.offset, point.negative.offset = -3, 2
        point.positive.bucket_counts.extend([1, 0, 5])
        point.negative.bucket_counts.extend([3])
    summary = metric("summary").summary.data_points.add(**times, count=3, sum=6, attributes=labels)
    summary.quantile_values.add(quantile=0.5, value=2)
    summary.quantile_values.add(quantile=1.0, value=3)
    return made
