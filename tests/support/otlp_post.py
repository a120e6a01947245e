"""Posts OTLP to a running command, and reads what its `file` exporter wrote of it."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from google.protobuf.message import Message
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, NumberDataPoint
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

_SIGNALS = {"ExportLogsServiceRequest": "logs", "ExportTraceServiceRequest": "traces", "ExportMetricsServiceRequest": "metrics"}


def post(port: int, request: Message, *, token: str = "", timeout_s: float = 20.0) -> int:
    """Send an export request to /v1/… on loopback; return the status."""
    headers = {"Content-Type": "application/x-protobuf", **({"Authorization": f"Bearer {token}"} if token else {})}
    url = f"http://127.0.0.1:{port}/v1/{_SIGNALS[type(request).__name__]}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, request.SerializeToString(), headers), timeout=timeout_s) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def keyed(**attributes: str) -> list[KeyValue]:
    return [KeyValue(key=key.replace("_", "."), value=AnyValue(string_value=value)) for key, value in attributes.items()]


def spans(
    names: Iterable[str],
    chance: Random,
    *,
    now_unix_nano: int,
    service: str = "api",
    failed: bool = False,
    duration_ms: int = 20,
    **attributes: str,
) -> ExportTraceServiceRequest:
    """Return spans of those names, each the only one of its trace, with attributes whose `_` stand for dots."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.extend(keyed(service_name=service))
    scope = resource.scope_spans.add()
    for name in names:
        scope.spans.append(
            Span(
                trace_id=chance.getrandbits(128).to_bytes(16, "big"),
                span_id=chance.getrandbits(64).to_bytes(8, "big"),
                name=name,
                kind=Span.SPAN_KIND_SERVER,
                start_time_unix_nano=now_unix_nano - duration_ms * 1_000_000,
                end_time_unix_nano=now_unix_nano,
                status=Status(code=Status.STATUS_CODE_ERROR if failed else Status.STATUS_CODE_UNSET),
                attributes=keyed(**attributes),
            )
        )
    return request


def delta_sum(
    name: str, values: Iterable[int], *, now_unix_nano: int, start_unix_nano: int, service: str = "api"
) -> ExportMetricsServiceRequest:
    """Return a delta counter with a point for each value, all of one stream."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    resource.resource.attributes.extend(keyed(service_name=service))
    metric = resource.scope_metrics.add().metrics.add(name=name, unit="1")
    metric.sum.aggregation_temporality = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
    metric.sum.is_monotonic = True
    for value in values:
        metric.sum.data_points.append(
            NumberDataPoint(start_time_unix_nano=start_unix_nano, time_unix_nano=now_unix_nano, as_int=value, attributes=keyed(path="/"))
        )
    return request


def lines_in(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects that the `file` exporter has written below a directory."""
    for path in sorted(directory.rglob("*.json*")):
        for line in path.read_bytes().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # its last line is being written


def span_names(directory: Path) -> list[str]:
    """Return the names of all spans that the `file` exporter has written, in order."""
    return [
        span["name"]
        for line in lines_in(directory)
        for resource in line.get("resourceSpans", ())
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def points_in(directory: Path, name: str) -> list[int]:
    """Return the values of a sum's points that the `file` exporter has written."""
    return [
        int(point["asInt"])
        for line in lines_in(directory)
        for resource in line.get("resourceMetrics", ())
        for scope in resource["scopeMetrics"]
        for metric in scope["metrics"]
        if metric["name"] == name
        for point in metric["sum"]["dataPoints"]
    ]


def calls_in(directory: Path) -> int:
    """Return how many calls the RED metrics in the files count."""
    return sum(points_in(directory, "traces.span.metrics.calls"))
