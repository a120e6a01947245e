"""Small batches for tests, made with the official protobuf classes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from emp_pipe._core import Batch, Block

NOW_UNIX_NANO = 1_700_000_000_000_000_000
_ids = count(1)


def attribute(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def log_record(body: str, *, time_unix_nano: int = NOW_UNIX_NANO, severity: int = 9, attributes: dict[str, str] | None = None) -> LogRecord:
    return LogRecord(
        time_unix_nano=time_unix_nano,
        observed_time_unix_nano=time_unix_nano,
        severity_number=severity,  # type: ignore[arg-type]
        body=AnyValue(string_value=body),
        attributes=[attribute(key, value) for key, value in (attributes or {}).items()],
    )


def log_request(records: Sequence[LogRecord], *, service: str = "api") -> ExportLogsServiceRequest:
    request = ExportLogsServiceRequest()
    resource = request.resource_logs.add()
    resource.resource.CopyFrom(Resource(attributes=[attribute("service.name", service)]))
    resource.scope_logs.add().log_records.extend(records)
    return request


def span_request(count: int = 1, *, service: str = "api") -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.CopyFrom(Resource(attributes=[attribute("service.name", service)]))
    scope = resource.scope_spans.add()
    for index in range(1, count + 1):
        scope.spans.append(
            Span(
                trace_id=index.to_bytes(16, "big"),
                span_id=index.to_bytes(8, "big"),
                name=f"span {index}",
                start_time_unix_nano=NOW_UNIX_NANO,
                end_time_unix_nano=NOW_UNIX_NANO + 1_000_000,
            )
        )
    return request


def metric_request(count: int = 1, *, service: str = "api") -> ExportMetricsServiceRequest:
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.CopyFrom(Resource(attributes=[attribute("service.name", service)]))
    scope = resource.scope_metrics.add()
    for index in range(count):
        metric = Metric(name=f"metric.{index}", unit="1")
        metric.gauge.data_points.add(time_unix_nano=NOW_UNIX_NANO, as_double=index)
        scope.metrics.append(metric)
    return request


def log_batch(records: Sequence[LogRecord] | Sequence[str] | int, *, service: str = "api") -> Batch:
    """Return a batch of log records; given a number, of so many with bodies `record 0`, `record 1`, …"""
    if isinstance(records, int):
        records = [f"record {index}" for index in range(records)]
    rows = [log_record(record) if isinstance(record, str) else record for record in records]
    return Batch.from_otlp(log_request(rows, service=service).SerializeToString(), signal="logs")


def log_block(
    records: Sequence[LogRecord] | Sequence[str] | int, *, codec: str = "gzip", service: str = "api", topic: str = "logs"
) -> Block:
    return log_batch(records, service=service).to_block(codec, topic=topic, block_id=f"block-{next(_ids)}")  # type: ignore[arg-type]


def span_block(count: int = 1, *, codec: str = "gzip") -> Block:
    batch = Batch.from_otlp(span_request(count).SerializeToString(), signal="traces")
    return batch.to_block(codec, topic="traces", block_id=f"block-{next(_ids)}")  # type: ignore[arg-type]


def metric_block(count: int = 1, *, codec: str = "gzip") -> Block:
    batch = Batch.from_otlp(metric_request(count).SerializeToString(), signal="metrics")
    return batch.to_block(codec, topic="metrics", block_id=f"block-{next(_ids)}")  # type: ignore[arg-type]
