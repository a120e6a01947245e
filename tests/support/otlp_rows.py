"""Small OTLP requests written with the official classes, for tests of batches and blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric, ResourceMetrics, ScopeMetrics
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from emp_pipe import _core

NOW = 1_700_000_000_000_000_000


def any_value(value: Any) -> AnyValue:
    """An AnyValue of a Python value; None is the empty one."""
    match value:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case str():
            return AnyValue(string_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case Mapping():
            return AnyValue(kvlist_value=KeyValueList(values=attributes(value)))
        case _:
            return AnyValue(array_value=ArrayValue(values=[any_value(element) for element in value]))


def plain(value: AnyValue) -> Any:
    """The reverse of `any_value`."""
    match value.WhichOneof("value"):
        case None:
            return None
        case "kvlist_value":
            return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
        case "array_value":
            return [plain(element) for element in value.array_value.values]
        case field:
            return getattr(value, field)


def attributes(values: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


def plain_attributes(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    assert len({pair.key for pair in pairs}) == len(pairs), "a key occurs twice"
    return {pair.key: plain(pair.value) for pair in pairs}


def log(body: Any = "hello", *, time: int = NOW, severity: int = 9, attrs: Mapping[str, Any] | None = None, **fields: Any) -> LogRecord:
    return LogRecord(
        time_unix_nano=time,
        severity_number=severity,
        body=any_value(body),
        attributes=attributes(attrs or {}),
        **fields,  # type: ignore[arg-type]
    )


def log_request(rows: Sequence[LogRecord], *, resource: Mapping[str, Any] | None = None, tag: str | None = "app") -> bytes:
    scope = ScopeLogs(log_records=rows)
    if tag is not None:
        scope.scope.attributes.extend(attributes({"fluent.tag": tag}))
    of_resource = ResourceLogs(scope_logs=[scope])
    of_resource.resource.attributes.extend(attributes({"service.name": "api"} if resource is None else resource))
    return ExportLogsServiceRequest(resource_logs=[of_resource]).SerializeToString()


def log_batch(*rows: LogRecord, resource: Mapping[str, Any] | None = None, tag: str | None = "app") -> _core.Batch:
    return _core.Batch.from_otlp(log_request(rows, resource=resource, tag=tag), signal="logs")


def span_batch(*rows: Span, resource: Mapping[str, Any] | None = None) -> _core.Batch:
    of_resource = ResourceSpans(scope_spans=[ScopeSpans(spans=rows)])
    of_resource.resource.attributes.extend(attributes({"service.name": "api"} if resource is None else resource))
    return _core.Batch.from_otlp(ExportTraceServiceRequest(resource_spans=[of_resource]).SerializeToString(), signal="traces")


def metric_batch(*rows: Metric, resource: Mapping[str, Any] | None = None) -> _core.Batch:
    of_resource = ResourceMetrics(scope_metrics=[ScopeMetrics(metrics=rows)])
    of_resource.resource.attributes.extend(attributes({"service.name": "api"} if resource is None else resource))
    return _core.Batch.from_otlp(ExportMetricsServiceRequest(resource_metrics=[of_resource]).SerializeToString(), signal="metrics")


def logs_of(batch: _core.Batch | None) -> list[LogRecord]:
    """The rows of a batch of logs, read back by the official classes."""
    if batch is None:
        return []
    request = ExportLogsServiceRequest.FromString(batch.to_block("none", topic="logs", block_id="b").payload("none"))
    return [row for resource in request.resource_logs for scope in resource.scope_logs for row in scope.log_records]


def spans_of(batch: _core.Batch | None) -> list[Span]:
    """The rows of a batch of spans, read back by the official classes."""
    if batch is None:
        return []
    request = ExportTraceServiceRequest.FromString(batch.to_block("none", topic="traces", block_id="b").payload("none"))
    return [row for resource in request.resource_spans for scope in resource.scope_spans for row in scope.spans]


def metrics_of(batch: _core.Batch | None) -> list[Metric]:
    """The rows of a batch of metrics, read back by the official classes."""
    if batch is None:
        return []
    request = ExportMetricsServiceRequest.FromString(batch.to_block("none", topic="metrics", block_id="b").payload("none"))
    return [row for resource in request.resource_metrics for scope in resource.scope_metrics for row in scope.metrics]


def bodies(batch: _core.Batch | None) -> list[Any]:
    return [plain(row.body) for row in logs_of(batch)]
